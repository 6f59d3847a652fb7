//! What is asked of an engine and what it answers: plain structs that every consumer builds and reads.

use aloe_text::Message;
use serde::{Deserialize, Serialize};

/// What a model is shown before it continues.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// Token ids, used as they are: nothing is added.
    Ids(Vec<u32>),
    /// Raw text without a chat template; BOS is added as the tokenizer itself would. Control tokens in it stay text.
    Text(String),
    /// A conversation, rendered by the model's chat template with the generation prompt. Contents never become control
    /// tokens.
    Messages(Vec<Message>),
    /// As `Messages`, but rendered as prompt_engine does: white space at both ends is cut, and ChatML stands in for a template that refuses
    /// the conversation. For comparison with it only.
    StrippedMessages(Vec<Message>),
    /// As `Messages`, but control tokens inside contents are encoded as control tokens, the way common servers do. Only
    /// the red-team's injection styles use this.
    ForgedMessages(Vec<Message>),
}

/// One continuation to be scored.
#[derive(Clone, Debug, PartialEq)]
pub enum Continuation {
    /// Text. After a `Prompt::Text` both are tokenised together and split as lm-evaluation-harness does.
    Text(String),
    /// Text that is tokenised together with the prompt, also behind a conversation, where lm-evaluation-harness with
    /// `--apply_chat_template` scores the white space at the prompt's end with it.
    Joint(String),
    /// Token ids.
    Ids(Vec<u32>),
}

/// Asks for the log-probability of each continuation after the prompt. Without continuations the prompt's own tokens
/// are scored, from the second on.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoreRequest {
    /// The caller's name for the request; returned with the answer.
    pub id: String,
    /// What comes before.
    pub prompt: Prompt,
    /// What is scored.
    pub continuations: Vec<Continuation>,
}

/// The log-probabilities of one continuation, natural logarithm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scored {
    /// The continuation's token ids.
    pub ids: Vec<u32>,
    /// One log-probability per id.
    pub logps: Vec<f64>,
    /// Whether each id was the most probable one at its place (the lowest id wins a tie).
    pub is_greedy: bool,
}

impl Scored {
    /// The summed log-probability, in f64.
    pub fn sum(&self) -> f64 {
        self.logps.iter().sum()
    }
}

/// The answer to a [`ScoreRequest`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScoreResult {
    /// The request's id.
    pub id: String,
    /// The prompt as the model saw it.
    pub prompt_ids: Vec<u32>,
    /// One entry per continuation; with none asked, one entry that holds the prompt's own tokens from the second on.
    pub continuations: Vec<Scored>,
}

/// Asks for the log-probabilities of texts as the next token.
#[derive(Clone, Debug, PartialEq)]
pub struct NextRequest {
    /// The caller's name for the request; returned with the answer.
    pub id: String,
    /// What comes before: a raw text or a conversation.
    pub prompt: Prompt,
    /// Each a token, with the space before it where the prompt's end has none.
    pub wanted: Vec<String>,
}

/// Where the log-probabilities of a [`NextResult`] are from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NextTold {
    /// Each text was scored after the prompt: none is missing.
    Scored,
    /// The most probable tokens that `/completions` names with one drawn token.
    Completions,
    /// As `Completions`, but the prompt went to `/chat/completions`, behind the server's template; a raw text as a user's message.
    Chat,
}

/// The answer to a [`NextRequest`].
#[derive(Clone, Debug, PartialEq)]
pub struct NextResult {
    /// The request's id.
    pub id: String,
    /// One for each text, natural logarithm; `None` where the server does not name it among the most probable tokens.
    pub logps: Vec<Option<f64>>,
    /// The prompt as the model saw it, where this side made its tokens.
    pub prompt_ids: Option<Vec<u32>>,
    /// Tokens of the prompt, where told.
    pub n_prompt_tokens: Option<usize>,
    /// Where they are from.
    pub told: NextTold,
}

/// How tokens are drawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// The most tokens to generate.
    pub max_new_tokens: usize,
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep the k most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this share of the most probable one's probability; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or answer; 1 is off.
    pub repetition_penalty: f32,
    /// The seed; each (request id, sample) has a stream of its own.
    pub seed: u64,
    /// Texts that end the answer; the answer does not contain them.
    pub stop: Vec<String>,
    /// Token ids that end the answer, beside the model's own.
    pub stop_ids: Vec<u32>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            max_new_tokens: 256,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
            stop: Vec::new(),
            stop_ids: Vec::new(),
        }
    }
}

impl Sampling {
    /// The most probable token each time, `max_new_tokens` at most.
    pub fn greedy(max_new_tokens: usize) -> Self {
        Self { max_new_tokens, ..Self::default() }
    }

    /// The reference card's sampling: temperature 0.6, top_p 0.9, 256 new tokens.
    pub fn card() -> Self {
        Self { temperature: 0.6, top_p: 0.9, ..Self::default() }
    }

    /// Every value that cannot be used, in words; empty when all is well.
    pub fn mistakes(&self) -> Vec<String> {
        let mut found = Vec::new();
        // Below this a logit divided by it may overflow; 0 is greedy.
        let is_temperature = self.temperature == 0.0 || (self.temperature >= 1e-6 && self.temperature.is_finite());
        if !is_temperature {
            found.push(format!("temperature must be at least 0 (greedy) or 1e-6, found {}", self.temperature));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            found.push(format!("top_p must be above 0 and at most 1, found {}", self.top_p));
        }
        if !(self.min_p >= 0.0 && self.min_p < 1.0) {
            found.push(format!("min_p must be at least 0 and below 1, found {}", self.min_p));
        }
        // Beyond these a logit divided by it, or multiplied, may overflow.
        if !(1e-6..=1e6).contains(&self.repetition_penalty) {
            found.push(format!("repetition_penalty must be from 1e-6 to 1e6, found {}", self.repetition_penalty));
        }
        if self.max_new_tokens == 0 {
            found.push("max_new_tokens must be at least 1".to_owned());
        }
        found
    }
}

/// The most answers to one request; a number beyond it is a slip, and memory for it would be taken before any is drawn.
pub const MAX_SAMPLES: usize = 65_536;

/// Asks for `n` answers to a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateRequest {
    /// The caller's name for the request; with the sample's number and the seed it names the random stream.
    pub id: String,
    /// What comes before.
    pub prompt: Prompt,
    /// How many answers, [`MAX_SAMPLES`] at most.
    pub n: usize,
    /// How they are drawn.
    pub sampling: Sampling,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// A stop token or stop text.
    Stop,
    /// `max_new_tokens` reached.
    Length,
    /// The model's context was full.
    Context,
    /// An endpoint gave another reason.
    Other,
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    /// The ids drawn, stop token included; absent where an endpoint does not tell.
    pub ids: Option<Vec<u32>>,
    /// Log-probability of each id under the model, before temperature and truncation; absent where not told.
    pub logps: Option<Vec<f32>>,
    /// The text, without special tokens and without the stop text.
    pub text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Length of the prompt in tokens, 0 where not told.
    pub prompt_len_tokens: usize,
    /// Tokens drawn, where an endpoint counts them and does not name them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_counted: Option<usize>,
    /// Whether an endpoint's server took a reasoning block out of the text, which may leave it empty.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reasoning_apart: bool,
}

impl Completion {
    /// Tokens drawn, by their ids or by the endpoint's count.
    pub fn n_tokens(&self) -> Option<usize> {
        self.ids.as_ref().map(Vec::len).or(self.n_counted)
    }
}

/// The answers to a [`GenerateRequest`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerateResult {
    /// The request's id.
    pub id: String,
    /// The prompt as the model saw it; absent for a chat-only endpoint.
    pub prompt_ids: Option<Vec<u32>>,
    /// `n` answers, in sample order.
    pub completions: Vec<Completion>,
}
