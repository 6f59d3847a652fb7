//! A row on its way through the stage: what it says, where it came from and what it is about.

use aloe_task::Question;
use aloe_text::{Conversation, Message, Pair, Role};
use std::fmt;
use std::sync::Arc;

/// Where a row stands, written `path:line`. Rows of a file share its path: of a million rows it would be a tenth of a gigabyte.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Place {
    path: Arc<str>,
    line: Option<u32>,
}

impl Place {
    /// A place that does not end in a line keeps its whole text.
    pub(crate) fn of(at: &str) -> Self {
        let parts = at.rsplit_once(':').and_then(|(path, line)| Some((path, line.parse().ok()?)));
        // `007` and `+7` are not how a line is written: they would come back otherwise.
        let parts = parts.filter(|&(path, line): &(&str, u32)| path.len() + 1 + line.to_string().len() == at.len());
        match parts {
            Some((path, line)) => Self { path: path.into(), line: Some(line) },
            None => Self { path: at.into(), line: None },
        }
    }

    /// Holds the path together with `other`, where it is the same.
    pub(crate) fn share(&mut self, other: &Place) {
        if self.path == other.path {
            self.path = Arc::clone(&other.path);
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}", self.path),
            None => f.write_str(&self.path),
        }
    }
}

/// One row.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// `source/file:line`, unique.
    pub id: String,
    /// To open.
    pub at: Place,
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
    /// How a synthetic row says it came about, such as `self-generated` or `gold-conditioned`.
    pub made: Option<String>,
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

#[cfg(test)]
mod tests {
    use super::Place;

    #[test]
    fn a_place_is_written_as_it_was_read_and_rows_of_a_file_hold_its_path_once() {
        for at in [
            "a/b.jsonl:7",
            "c:/d.json:12",
            "rows.parquet: row 3",
            "x:007",
            "x:+7",
            "",
            "name",
            "f:3:9",
            ":4",
            "x:99999999999",
        ] {
            assert_eq!(Place::of(at).to_string(), at);
        }
        let (first, mut second, mut other) = (Place::of("f:1"), Place::of("f:2"), Place::of("g:2"));
        second.share(&first);
        other.share(&first);
        assert!(std::sync::Arc::ptr_eq(&first.path, &second.path));
        assert_eq!((second.to_string(), other.to_string()), ("f:2".into(), "g:2".into()));
    }
}
