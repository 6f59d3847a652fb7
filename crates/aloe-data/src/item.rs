//! A row on its way through the stage: what it says, where it came from and what it is about.

use aloe_task::Question;
use aloe_text::{Conversation, Message, Pair, Role};

/// One row.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// `source/file:line`, unique.
    pub id: String,
    /// `path:line`, to open.
    pub at: String,
    /// Index of the source in the settings.
    pub source: usize,
    /// Sub-task, such as `mcqa` or `qa`.
    pub task: String,
    /// Subject; empty when none is known.
    pub subject: String,
    /// The multiple-choice question, when the layout has one.
    pub question: Option<Box<Question>>,
    /// Preference stage, when the row names one.
    pub stage: Option<u64>,
    /// Rows of one group stay on one side of the hold-out: the base question of red-team variants.
    pub group: Option<String>,
    /// Attack style of a red-team row.
    pub style: Option<String>,
    /// The text.
    pub body: Body,
}

/// The text of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// For SFT.
    Conversation(Conversation),
    /// For DPO.
    Pair(Pair),
}

impl Item {
    /// All messages in order; a pair's prompt, chosen and rejected.
    pub fn messages(&self) -> Vec<&Message> {
        match &self.body {
            Body::Conversation(conversation) => conversation.messages.iter().collect(),
            Body::Pair(pair) => pair.prompt.iter().chain(&pair.chosen).chain(&pair.rejected).collect(),
        }
    }

    pub(crate) fn messages_mut(&mut self) -> Vec<&mut Message> {
        match &mut self.body {
            Body::Conversation(conversation) => conversation.messages.iter_mut().collect(),
            Body::Pair(pair) => pair.prompt.iter_mut().chain(&mut pair.chosen).chain(&mut pair.rejected).collect(),
        }
    }

    /// Whether there is more than one user message before the last answer.
    pub fn is_dialogue(&self) -> bool {
        self.messages().iter().filter(|message| message.role == Role::User).count() > 1
    }

    /// The text that duplicates are judged by: question and answer joined; dialogues with their speakers' names.
    pub fn dedup_text(&self) -> String {
        let named = self.is_dialogue();
        let parts: Vec<String> = self
            .messages()
            .iter()
            .filter(|message| message.role != Role::System)
            .map(|message| {
                if named { format!("{}: {}", message.role.as_str(), message.content) } else { message.content.clone() }
            })
            .collect();
        parts.join("\n")
    }

    /// What keeps rows together in the hold-out: the group, else the first user message.
    pub fn group_key(&self) -> String {
        self.group.clone().unwrap_or_else(|| {
            let first = self.messages().into_iter().find(|message| message.role == Role::User);
            first.map_or_else(|| self.id.clone(), |message| crate::simplify(&message.content))
        })
    }

    /// Characters of all messages.
    pub fn n_chars(&self) -> usize {
        self.messages().iter().map(|message| message.content.chars().count()).sum()
    }
}
