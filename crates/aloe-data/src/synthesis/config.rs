//! The settings of a synthesis stage, and their check.

use crate::{Error, Result};
use aloe_engine::{EngineIdentity, Sampling};
use aloe_record::digest;
use aloe_task::Task;
use aloe_task::wording::synthesis::{MAX_SYNTHESIS_SHOTS, SYNTHESIS_PROMPT_VERSION, Told};
use serde_json::json;
use std::path::PathBuf;

/// Worked solutions to the train questions of benchmarks.
#[derive(Clone, Debug)]
pub struct SynthesisConfig {
    /// Whose train questions.
    pub tasks: Vec<Task>,
    /// Folder with the benchmarks' files.
    pub data_dir: PathBuf,
    /// What the writer is told.
    pub mode: Told,
    /// At most so many questions of each task, drawn by the seed.
    pub limit: Option<usize>,
    /// Worked examples before each question.
    pub shots: usize,
    /// The most attempts at a question.
    pub attempts: usize,
    /// How attempts are drawn.
    pub sampling: Sampling,
    /// Whether a second call picks an option from the reasoning without its answer.
    pub blind: bool,
    /// Whether only solutions in the three published parts are kept.
    pub in_parts: bool,
    /// Decides the draw of questions and attempts.
    pub seed: u64,
}

impl SynthesisConfig {
    /// Three worked examples, five attempts at temperature 0.7, 700 new tokens at most.
    pub fn new(tasks: Vec<Task>, data_dir: PathBuf, mode: Told) -> Self {
        let sampling = Sampling { max_new_tokens: 700, temperature: 0.7, ..Sampling::default() };
        let (limit, shots, attempts, blind, in_parts, seed) = (None, MAX_SYNTHESIS_SHOTS, 5, true, true, 0);
        Self { tasks, data_dir, mode, limit, shots, attempts, sampling, blind, in_parts, seed }
    }

    /// Everything that can be known without reading a file.
    pub fn check(&self) -> Result<()> {
        let mut mistakes = self.sampling.mistakes();
        if self.tasks.is_empty() {
            mistakes.push("`tasks` is empty".to_owned());
        }
        if self.shots > MAX_SYNTHESIS_SHOTS {
            mistakes.push(format!("`shots` is {}; there are {MAX_SYNTHESIS_SHOTS} worked examples", self.shots));
        }
        if self.attempts == 0 {
            mistakes.push("`attempts` must be at least 1".to_owned());
        }
        if self.attempts > 1 && self.sampling.temperature == 0.0 {
            mistakes.push(
                "a second attempt at temperature 0 is the first one again: raise it, or set `attempts = 1`".into(),
            );
        }
        if self.limit == Some(0) {
            mistakes.push("`limit` must be at least 1".to_owned());
        }
        if mistakes.is_empty() { Ok(()) } else { Err(Error::Config { mistakes }) }
    }

    /// Digest of what decides an attempt beside its question and its number.
    pub(crate) fn fingerprint(&self, model: &EngineIdentity) -> String {
        let mut hasher = digest::Hasher::default();
        let settings = json!({
            "model": model, "wording": SYNTHESIS_PROMPT_VERSION, "mode": self.mode, "shots": self.shots,
            "sampling": self.sampling, "seed": self.seed,
        });
        hasher.field(settings.to_string().as_bytes());
        hasher.hex()
    }
}
