//! The words of a prompt, one protocol per file. Nothing here reads files or knows a model.
//!
//! Three forms: [`choice_prompt`] for log-likelihood scoring (plain text, one continuation per option), [`letter_prompt`] where the
//! continuations must be letters, and [`cot_messages`] for generated answers (a conversation whose last turn is the question).

pub mod aloe;
pub mod lm_eval;
pub mod open;
pub mod prompt_engine;
mod prompt_engine_shots;
pub mod synthesis;

use crate::{AnswerRule, ChoiceOrder, Error, Exhausted, Question, Result, Task};
use aloe_text::Message;

pub use crate::question::letter;

/// Whose wording.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// Ours.
    Aloe,
    /// lm-evaluation-harness 0.4: log-likelihood only.
    LmEval,
    /// HPAI-BSC's prompt_engine: generated answers only.
    PromptEngine,
}

impl Protocol {
    /// The name on the command line and in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Aloe => "aloe",
            Self::LmEval => "lm-eval",
            Self::PromptEngine => "prompt-engine",
        }
    }

    /// What its strings and rules are those of. Ours goes up by one when a string or rule changes.
    pub fn version(self) -> &'static str {
        match self {
            Self::Aloe => "aloe 3",
            Self::LmEval => "lm-evaluation-harness 0.4.13",
            Self::PromptEngine => "prompt_engine 21e68bd, worked examples of this program",
        }
    }

    /// From its name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Aloe, Self::LmEval, Self::PromptEngine].into_iter().find(|protocol| protocol.name() == name)
    }

    /// How its answers are read.
    pub fn answer_rule(self) -> AnswerRule {
        match self {
            Self::PromptEngine => AnswerRule::PromptEngine,
            Self::Aloe | Self::LmEval => AnswerRule::Aloe,
        }
    }

    /// What it does when a question has fewer option orders than samples.
    pub fn exhausted(self) -> Exhausted {
        match self {
            Self::PromptEngine => Exhausted::Natural,
            Self::Aloe | Self::LmEval => Exhausted::Repeat,
        }
    }

    fn refuse(self, reason: &str) -> Error {
        Error::Wording { protocol: self.name().into(), reason: reason.into() }
    }
}

/// A prompt to score options behind.
#[derive(Clone, Debug, PartialEq)]
pub struct ChoicePrompt {
    /// Raw text or a conversation.
    pub shown: Shown,
    /// One per option, with the delimiter: `" A"`; behind a conversation there is none.
    pub continuations: Vec<String>,
    /// The options without the delimiter; their character counts normalise `acc_norm`.
    pub choices: Vec<String>,
}

/// What stands before the options that are scored.
#[derive(Clone, Debug, PartialEq)]
pub enum Shown {
    /// Raw text; the engine adds BOS as the tokenizer does.
    Text(String),
    /// A conversation for the model's chat template.
    Messages(Vec<Message>),
}

impl Shown {
    /// The text, or the messages as JSON: what a digest of the prompt is of.
    pub fn to_digest(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Messages(messages) => serde_json::to_string(messages).unwrap_or_default(),
        }
    }
}

/// Whether and how a log-likelihood prompt is a conversation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChatForm<'a> {
    /// Whether it is one.
    pub is_chat: bool,
    /// The operator's system prompt.
    pub system: Option<&'a str>,
}

/// An example with its worked answer.
#[derive(Clone, Debug, PartialEq)]
pub struct CotShot {
    /// The question.
    pub question: Question,
    /// The order its options were shown in when `response` was written.
    pub order: ChoiceOrder,
    /// The worked answer, ending in its letter *as shown*.
    pub response: String,
}

/// The prompt for log-likelihood scoring.
pub fn choice_prompt(
    task: Task,
    protocol: Protocol,
    question: &Question,
    shots: &[&Question],
    form: ChatForm<'_>,
) -> Result<ChoicePrompt> {
    match protocol {
        Protocol::LmEval => lm_eval::choice_prompt(task, question, shots, form),
        Protocol::Aloe => Ok(aloe::choice_prompt(question, shots, form)),
        Protocol::PromptEngine => Err(protocol.refuse("scores generated answers only; use sc-cot or medprompt")),
    }
}

/// As [`choice_prompt`], with options by letters whatever the set: what can be asked of a model that tells its next token alone.
pub fn letter_prompt(
    protocol: Protocol,
    question: &Question,
    shots: &[&Question],
    form: ChatForm<'_>,
) -> Result<ChoicePrompt> {
    match protocol {
        Protocol::Aloe => Ok(aloe::letter_prompt(question, shots, form)),
        Protocol::LmEval | Protocol::PromptEngine => {
            Err(protocol.refuse("has no prompt for the next letter; use --protocol aloe"))
        }
    }
}

/// The conversation for a generated answer, options shown in `order`, after the worked examples.
pub fn cot_messages(
    protocol: Protocol,
    question: &Question,
    order: &ChoiceOrder,
    shots: &[CotShot],
) -> Result<Vec<Message>> {
    match protocol {
        Protocol::Aloe => Ok(aloe::messages(question, order, shots)),
        Protocol::PromptEngine => prompt_engine::messages(question, order, shots),
        Protocol::LmEval => Err(protocol.refuse("scores log-likelihoods only; use the loglikelihood strategy")),
    }
}

/// A conversation as plain text, for a model without a chat template: contents with a blank line between them, and one behind.
pub fn plain_text(messages: &[Message]) -> String {
    messages.iter().map(|message| format!("{}\n\n", message.content.trim_end())).collect()
}

/// The fixed worked examples of SC-CoT: the first `k` for questions of this kind. Written by us for both protocols
/// (prompt_engine's own are promptbase's and not ours to ship), so results with them are named accordingly.
pub fn fixed_shots(protocol: Protocol, question: &Question, k: usize) -> Result<Vec<CotShot>> {
    let shots = prompt_engine_shots::for_question(question);
    if k > shots.len() {
        return Err(protocol.refuse(&format!("has {} fixed worked examples; {k} were asked for", shots.len())));
    }
    Ok(shots.into_iter().take(k).collect())
}

pub(crate) fn message(role: aloe_text::Role, content: impl Into<String>) -> Message {
    Message { role, content: content.into() }
}
