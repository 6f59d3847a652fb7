//! The one record form of a benchmark question, whatever its file looked like.

use crate::{Error, Result};

/// A multiple-choice question with its gold answer.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Question {
    /// Unique within its task and split; the source's own id where it has one.
    pub id: String,
    /// The question text, as written.
    pub stem: String,
    /// PubMedQA's abstract: the contexts joined by a line break.
    pub context: Option<String>,
    /// The options in the source's order.
    pub choices: Vec<String>,
    /// Index of the right option in `choices`.
    pub key: usize,
    /// Subject, category or subset, as the source names it; empty when it names none.
    pub subject: String,
    /// The reference explanation, when the source has one.
    pub explanation: Option<String>,
    /// `file:line` (or `file#row`), relative to the data folder.
    pub source: String,
}

impl Question {
    /// Checks what every reader must guarantee: text, at least two options, none empty, the key among them.
    pub fn checked(self) -> Result<Self> {
        let refuse = |reason: &str| Error::Row { at: self.source.clone(), reason: reason.to_string() };
        if self.stem.trim().is_empty() {
            return Err(refuse("the question text is empty"));
        }
        if self.choices.len() < 2 {
            return Err(refuse("the question has fewer than two options"));
        }
        if self.choices.len() > MAX_CHOICES {
            return Err(refuse("the question has more than 26 options"));
        }
        if let Some(empty) = self.choices.iter().position(|choice| choice.trim().is_empty()) {
            return Err(refuse(&format!("option {} is empty", letter(empty))));
        }
        if self.key >= self.choices.len() {
            return Err(Error::Key {
                at: self.source.clone(),
                key: self.key.to_string(),
                n_choices: self.choices.len(),
            });
        }
        Ok(self)
    }

    /// Whether this is a yes/no/maybe question, which protocols word differently.
    pub fn is_yes_no_maybe(&self) -> bool {
        self.choices.len() == 3 && self.choices[0] == "yes" && self.choices[1] == "no" && self.choices[2] == "maybe"
    }
}

/// What a question may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// May be trained on, and may serve as example.
    Train,
    /// MMLU's five fixed few-shot examples a subject.
    Dev,
    /// For choosing between models and settings; never reported, never trained on.
    Validation,
    /// The reported set. Nothing may be chosen on it.
    Test,
}

impl Split {
    /// The name in messages and records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Dev => "dev",
            Self::Validation => "validation",
            Self::Test => "test",
        }
    }
}

/// As many as there are letters.
pub const MAX_CHOICES: usize = 26;

/// The letter of option `index`: 0 is `A`.
pub fn letter(index: usize) -> char {
    assert!(index < 26, "option {index} has no letter");
    (b'A' + index as u8) as char
}
