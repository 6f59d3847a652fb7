//! The one error enum of the crate. Every variant names the file, message or token to mend; none is retried or hidden.

use std::path::PathBuf;

/// What can go wrong between messages and ids.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A folder without tokenizer.json.
    #[error(
        "{dir} has no tokenizer.json: copy that of the model that its weights come from (with tokenizer_config.json), or fetch the model with \
         `aloe pull`; a tokenizer.model or vocab.json alone is not read"
    )]
    NoTokenizer {
        /// The folder.
        dir: PathBuf,
    },
    /// A file is not the JSON that it should be.
    #[error("{path}: not the expected JSON: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// The cause, with line and column.
        source: serde_json::Error,
    },
    /// The tokenizer library refused the tokenizer.
    #[error("tokenizer of {origin}: {message}")]
    Tokenizer {
        /// File or "GGUF metadata".
        origin: String,
        /// The cause.
        message: String,
    },
    /// GGUF metadata lacks a key or holds the wrong type.
    #[error("GGUF metadata: {key}: {message}")]
    Gguf {
        /// The metadata key.
        key: String,
        /// What is wrong.
        message: String,
    },
    /// Encoding failed inside the tokenizer library.
    #[error("encoding a text of {len} bytes: {message}")]
    Encode {
        /// Bytes of the text.
        len: usize,
        /// The cause.
        message: String,
    },
    /// Decoding failed inside the tokenizer library.
    #[error("decoding {len} ids: {message}")]
    Decode {
        /// Number of ids.
        len: usize,
        /// The cause.
        message: String,
    },
    /// The model has no chat template.
    #[error(
        "{origin} has no chat template: put the one it was trained with beside its tokenizer as chat_template.jinja; a model that is yet to be \
         trained takes a built-in one ({builtins}) by the setting chat_template of `aloe sft` and `aloe dpo`"
    )]
    NoTemplate {
        /// Where the tokenizer came from.
        origin: String,
        /// Names of the built-in templates.
        builtins: String,
    },
    /// A template that is neither built in nor a readable file.
    #[error("no chat template `{name}`: the built-in ones are {builtins}; a file must end in .jinja")]
    UnknownTemplate {
        /// The name given.
        name: String,
        /// Names of the built-in templates.
        builtins: String,
    },
    /// A template larger than the cap.
    #[error("chat template of {origin} has {len} bytes; at most {cap} are accepted")]
    TemplateTooLarge {
        /// Where it came from.
        origin: String,
        /// Its size in bytes.
        len: usize,
        /// The cap in bytes.
        cap: usize,
    },
    /// The template failed, ran out of fuel, wrote too much or raised an exception itself.
    #[error("chat template of {origin}: {message}")]
    Template {
        /// Where it came from.
        origin: String,
        /// The cause, with its line when known.
        message: String,
    },
    /// The template cuts or rearranges message contents, so that text and control tokens cannot be told apart.
    #[error(
        "chat template of {origin} cuts or rearranges the contents of messages: user text cannot be kept apart from control tokens"
    )]
    TemplateRewritesContent {
        /// Where it came from.
        origin: String,
    },
    /// No end-of-turn token follows an assistant message.
    #[error(
        "chat template of {origin} writes no end-of-turn token after message {message}: the model could never learn to stop"
    )]
    NoEndOfTurn {
        /// Where it came from.
        origin: String,
        /// Index of the message, from 0.
        message: usize,
    },
    /// What is rendered before an answer is not the rendering of its prompt.
    #[error(
        "chat template of {origin}: what stands before an answer in a training row is not the prompt that a chat sends (they part at byte {at}), \
         so that training and chat would see different prompts; correct what the template writes under add_generation_prompt, or name another \
         chat_template"
    )]
    NotPrefixConsistent {
        /// Where it came from.
        origin: String,
        /// Bytes that both begin with.
        at: usize,
    },
    /// The sequence begins with the BOS token twice.
    #[error(
        "the sequence begins with the BOS token `{bos}` twice: the chat template of {origin} and the text or template both write it"
    )]
    DoubleBos {
        /// The token.
        bos: String,
        /// Where the template came from.
        origin: String,
    },
    /// A conversation in which no token, or every token, is trained.
    #[error("{trained} of {total} tokens are trained: a loss mask must leave some and take some")]
    LossMask {
        /// Trained tokens.
        trained: usize,
        /// All tokens.
        total: usize,
    },
    /// A conversation or pair of the wrong form.
    #[error("message {index}: {message}")]
    Messages {
        /// Index of the message, from 0.
        index: usize,
        /// What is wrong.
        message: String,
    },
    /// A control token came out of plain text. The vocabulary itself allows it, so the tokenizer is refused.
    #[error("tokenizer of {origin}: plain text yields the control token `{token}`")]
    ControlFromText {
        /// Where the tokenizer came from.
        origin: String,
        /// The token.
        token: String,
    },
    /// A text to score that holds no token.
    #[error("the continuation is empty after tokenising prompt and continuation together")]
    EmptyContinuation,
    /// Neither BOS nor EOS to condition on.
    #[error("the prompt is empty and {origin} names neither a BOS nor an EOS token")]
    NoPrefixToken {
        /// Where the tokenizer came from.
        origin: String,
    },
    /// A date that is not in the calendar.
    #[error("date {0}: expected YYYY-MM-DD")]
    Date(String),
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
