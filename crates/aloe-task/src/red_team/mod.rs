//! The red-team's material: questions by topic, attack styles as templates, and how a response is judged.
//!
//! Refusal phrases give a non-refusal rate and nothing more; the words attack success rate belong to a judge model
//! ([`llama_guard`]) whose error is known.

pub mod llama_guard;
pub mod questions;
pub mod refusal;
pub mod styles;

pub use questions::{RedTeamQuestion, RedTeamSplit, Topic};
pub use refusal::{RefusalRule, Verdict};
pub use styles::{Rendering, Style, TurnTokens};
