//! Between messages and ids: tokenizer, chat template, loss mask.
//!
//! Reading order: `types` (messages and their encoded forms), `tokenizer` (ids of plain text, never a control token), `gguf` (a
//! tokenizer out of GGUF metadata), `chat_template` (a stranger's Jinja program, fenced), `provenance` (which part of the rendered
//! text came from a message), `text_model` (messages to ids and masks; the type that other crates hold), `joint` (lm-eval's rule for
//! scoring), `decode_stream` and `show_mask` (ids back to text).
//!
//! Refused: user text as control tokens, a template that rewrites contents or writes BOS twice, a conversation without targets.

mod added;
mod chat_template;
mod date;
mod decode_stream;
mod error;
mod gguf;
mod joint;
mod plain;
mod provenance;
mod python_json;
mod show_mask;
mod text_model;
mod tokenizer;
mod types;

pub use chat_template::{BUILTIN_TEMPLATES, ChatTemplate};
pub use date::Date;
pub use decode_stream::DecodeStream;
pub use error::{Error, Result};
pub use gguf::{TokenizerFiles, tokenizer_from_gguf};
pub use show_mask::{MaskStyle, mask_counts, show_mask};
pub use text_model::{TextFile, TextModel};
pub use tokenizer::Tokenizer;
pub use types::{Conversation, Encoded, EncodedPair, Message, Pair, Role};
