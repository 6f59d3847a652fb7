//! What is asked and how: benchmark questions, the wording of prompts, the reading of answers, and the red-team's
//! questions, styles and judges.
//!
//! Knows no weights: text in, text out. Reading order: `question`, `task`, `datasets/*`, `wording/*`, `order`, `extract`,
//! `worked` (files of worked answers), then `open` (questions answered in free text) and `red_team/*`. `rows` reads the file formats (JSON by `strict`), `python_random` replays lm-evaluation-harness's few-shot draws,
//! `reported` knows the sets on which nothing may be chosen.

pub mod datasets;
mod error;
pub mod extract;
pub mod open;
pub mod order;
pub mod python_random;
mod question;
pub mod red_team;
pub mod reported;
pub mod rows;
pub mod strict;
mod task;
pub mod wording;
pub mod worked;

pub use error::Error;
pub use extract::{Answer, AnswerRule, Extracted};
pub use order::{ChoiceOrder, Exhausted};
pub use question::{MAX_CHOICES, Question, Split, letter};
pub use task::{Subject, Task};
pub use wording::{ChoicePrompt, CotShot, Protocol};

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
