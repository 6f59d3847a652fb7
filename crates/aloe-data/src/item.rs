//! A row on its way through the stage: what it says, where it came from and what it is about.

use aloe_task::Question;
use aloe_text::{Conversation, Message, Pair, Role};
use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;

/// Where a row stands, written `path:line`, or `path:line:column` of a row that is not the first on its line. Rows of a file share its
/// path: of a million rows it would be a tenth of a gigabyte.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Place {
    path: Arc<str>,
    /// Both count from 1.
    line: Option<NonZeroU32>,
    column: Option<NonZeroU32>,
}

/// The number behind the last colon. `007` and `+7` are not how a place is written: they would come back otherwise.
fn number_behind(at: &str) -> Option<(&str, NonZeroU32)> {
    let (path, digits) = at.rsplit_once(':')?;
    let is_written_so = digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.starts_with('0');
    if is_written_so { Some((path, digits.parse().ok()?)) } else { None }
}

impl Place {
    /// A place that does not end in a line keeps its whole text.
    pub(crate) fn of(at: &str) -> Self {
        let Some((path, last)) = number_behind(at) else { return Self { path: at.into(), ..Self::default() } };
        match number_behind(path) {
            Some((path, line)) => Self { path: path.into(), line: Some(line), column: Some(last) },
            None => Self { path: path.into(), line: Some(last), column: None },
        }
    }

    /// Holds the path together with `other`, where it is the same.
    pub(crate) fn share(&mut self, other: &Place) {
        if !Arc::ptr_eq(&self.path, &other.path) && self.path == other.path {
            self.path = Arc::clone(&other.path);
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)?;
        [self.line, self.column].into_iter().flatten().try_for_each(|number| write!(f, ":{number}"))
    }
}

/// One row. Of a million of them each byte here is a megabyte: what rows of a file say alike is held once, what few say in a box.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// `source/file:line`, with `:column` where a line holds several rows; unique.
    pub id: String,
    /// To open.
    pub at: Place,
    /// Index of the source in the settings.
    pub source: usize,
    /// What it is about and under whose terms.
    pub about: Arc<About>,
    /// The multiple-choice question, when the layout has one.
    pub question: Option<Box<Question>>,
    /// What few rows say; see [`Item::rare`].
    pub(crate) rare: Option<Box<Rare>>,
    /// The text.
    pub body: Body,
}

/// What most rows of a file say alike.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct About {
    /// Sub-task, such as `mcqa` or `qa`.
    pub task: Cow<'static, str>,
    /// Subject; empty when none is known.
    pub subject: String,
    /// The licence that the row itself carries, from its set or from an earlier data stage; `None` is that of its source.
    pub licence: Option<Arc<str>>,
    /// The split of its published set, where that is known.
    pub split: Option<Arc<str>>,
}

/// What few rows say of themselves.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rare {
    /// Preference stage, when the row names one.
    pub stage: Option<u64>,
    /// Rows of one group stay on one side of the hold-out, as rows of one question do: the base question of red-team variants.
    pub group: Option<String>,
    /// Attack style of a red-team row.
    pub style: Option<String>,
    /// How a synthetic row says it came about, such as `self-generated` or `gold-conditioned`.
    pub made: Option<String>,
}

impl Rare {
    /// No box where nothing is said.
    pub(crate) fn boxed(self) -> Option<Box<Rare>> {
        (self != NOTHING_RARE).then(|| Box::new(self))
    }
}

const NOTHING_RARE: Rare = Rare { stage: None, group: None, style: None, made: None };

/// The text of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// For SFT.
    Conversation(Conversation),
    /// For DPO; in a box, for it is three lists where a conversation is one.
    Pair(Box<Pair>),
}

/// What rows said alike, to be held once. Where rows say too many things, what comes later is held by each row alone.
#[derive(Debug, Default)]
pub(crate) struct Alike(HashSet<Arc<About>>);

/// Things that rows said alike, at most.
const MOST_ALIKE: usize = 1 << 12;

impl Alike {
    /// Holds what `item` says together with what rows before it said, `before` the last of them. The item is not looked at where it holds both
    /// already: it was made on another thread, and is far away.
    pub(crate) fn share(&mut self, item: &mut Item, before: Option<&Item>) {
        if let Some(before) = before {
            item.at.share(&before.at);
            if item.shares_about(&before.about) {
                return;
            }
        }
        match self.0.get(&item.about) {
            Some(known) => item.about = Arc::clone(known),
            None if self.0.len() < MOST_ALIKE => {
                self.0.insert(Arc::clone(&item.about));
            }
            None => {}
        }
    }
}

impl Item {
    /// Whether it says what `other` does; then it is held once.
    pub(crate) fn shares_about(&mut self, other: &Arc<About>) -> bool {
        let is_held = Arc::ptr_eq(&self.about, other);
        let is_same = is_held || self.about == *other;
        if is_same && !is_held {
            self.about = Arc::clone(other);
        }
        is_same
    }

    /// A row that says nothing beside its text.
    #[cfg(test)]
    pub(crate) fn plain(id: impl Into<String>, body: Body) -> Item {
        Item { id: id.into(), at: Place::default(), source: 0, about: Arc::default(), question: None, rare: None, body }
    }

    /// What few rows say; nothing for most.
    pub fn rare(&self) -> &Rare {
        self.rare.as_deref().unwrap_or(&NOTHING_RARE)
    }

    /// The base question of red-team variants, or the question's id; see [`Rare::group`].
    pub(crate) fn group(&self) -> Option<&str> {
        self.rare().group.as_deref()
    }

    /// Attack style of a red-team row.
    pub(crate) fn style(&self) -> Option<&str> {
        self.rare().style.as_deref()
    }

    /// All messages in order; a pair's prompt, chosen and rejected.
    pub fn messages(&self) -> Vec<&Message> {
        self.each_message().collect()
    }

    /// As [`Item::messages`], one after the other.
    pub(crate) fn each_message(&self) -> impl DoubleEndedIterator<Item = &Message> {
        let parts: [&[Message]; 3] = match &self.body {
            Body::Conversation(conversation) => [&conversation.messages, &[], &[]],
            Body::Pair(pair) => [&pair.prompt, &pair.chosen, &pair.rejected],
        };
        parts.into_iter().flatten()
    }

    pub(crate) fn messages_mut(&mut self) -> Vec<&mut Message> {
        match &mut self.body {
            Body::Conversation(conversation) => conversation.messages.iter_mut().collect(),
            Body::Pair(pair) => pair.prompt.iter_mut().chain(&mut pair.chosen).chain(&mut pair.rejected).collect(),
        }
    }

    /// Whether there is more than one user message before the last answer.
    pub fn is_dialogue(&self) -> bool {
        self.each_message().filter(|message| message.role == Role::User).nth(1).is_some()
    }

    /// The text that duplicates are judged by: question and answer joined; dialogues with their speakers' names.
    pub fn dedup_text(&self) -> String {
        let named = self.is_dialogue();
        let spoken = || self.each_message().filter(|message| message.role != Role::System);
        let mut text = String::with_capacity(spoken().map(|message| message.content.len() + 12).sum());
        for (index, message) in spoken().enumerate() {
            if index > 0 {
                text.push('\n');
            }
            if named {
                text.push_str(message.role.as_str());
                text.push_str(": ");
            }
            text.push_str(&message.content);
        }
        text
    }

    /// The system message, beside which the same question is another row.
    pub(crate) fn system(&self) -> Option<&str> {
        let first = match &self.body {
            Body::Conversation(conversation) => conversation.messages.first(),
            Body::Pair(pair) => pair.prompt.first(),
        };
        first.filter(|message| message.role == Role::System).map(|message| message.content.as_str())
    }

    /// What the first user says, simplified: rows with the same stay on one side of the hold-out.
    pub(crate) fn question_key(&self) -> Option<String> {
        let first = self.each_message().find(|message| message.role == Role::User);
        first.map(|message| crate::simplify(&message.content)).filter(|text| !text.is_empty())
    }

    /// Characters of all messages.
    pub fn n_chars(&self) -> usize {
        self.each_message().map(|message| message.content.chars().count()).sum()
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
            "f:2:3:9",
            "f:0:9",
            "f:9:0",
            ":4",
            "x:99999999999",
        ] {
            assert_eq!(Place::of(at).to_string(), at);
        }
        let (first, mut second, mut other) = (Place::of("f:1"), Place::of("f:2"), Place::of("g:2"));
        let mut third = Place::of("f:1:50");
        second.share(&first);
        third.share(&first);
        other.share(&first);
        assert!(std::sync::Arc::ptr_eq(&first.path, &third.path));
        assert!(std::sync::Arc::ptr_eq(&first.path, &second.path));
        assert_eq!((second.to_string(), other.to_string()), ("f:2".into(), "g:2".into()));
    }
}
