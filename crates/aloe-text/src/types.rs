//! Messages, conversations and preference pairs as they stand in data files, and their encoded forms. Plain values: nothing here
//! reads a file or knows a tokenizer.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions of the operator.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The word that chat templates use.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said: always plain text, whatever it looks like.
    pub content: String,
}

impl Message {
    /// A message of the given role.
    pub fn new(role: Role, content: impl Into<String>) -> Message {
        Message { role, content: content.into() }
    }

    /// A system message.
    pub fn system(content: impl Into<String>) -> Message {
        Message::new(Role::System, content)
    }

    /// A user message.
    pub fn user(content: impl Into<String>) -> Message {
        Message::new(Role::User, content)
    }

    /// An assistant message.
    pub fn assistant(content: impl Into<String>) -> Message {
        Message::new(Role::Assistant, content)
    }
}

/// One supervised row.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Conversation {
    /// In order; at least one is the assistant's.
    pub messages: Vec<Message>,
}

/// One preference row.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pair {
    /// What comes before the answers; ends with a user message.
    pub prompt: Vec<Message>,
    /// The preferred answer: one assistant message.
    pub chosen: Vec<Message>,
    /// The other answer: one assistant message.
    pub rejected: Vec<Message>,
}

/// An encoded conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encoded {
    /// `[T]` token ids.
    pub ids: Vec<u32>,
    /// `[T]` true where the token is a target: assistant text and its end-of-turn token.
    pub loss_mask: Vec<bool>,
}

impl Encoded {
    /// Number of trained tokens.
    pub fn n_targets(&self) -> usize {
        self.loss_mask.iter().filter(|&&trained| trained).count()
    }

    /// Refuses a mask with no target, or with nothing but targets; gives the number of targets.
    pub fn check_trained(&self) -> Result<usize> {
        let (trained, total) = (self.n_targets(), self.ids.len());
        if trained == 0 || trained == total {
            return Err(Error::LossMask { trained, total });
        }
        Ok(trained)
    }
}

/// An encoded preference pair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncodedPair {
    /// Prompt with BOS and the generation prompt.
    pub prompt_ids: Vec<u32>,
    /// Preferred answer with its end-of-turn token.
    pub chosen_ids: Vec<u32>,
    /// The other answer with its end-of-turn token.
    pub rejected_ids: Vec<u32>,
}
