//! One question's record: a line of `samples.jsonl`. No times, no paths.

use crate::{Error, Result};
use aloe_engine::FinishReason;
use aloe_task::Question;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// A question, what the model said, and whether it was right.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The task's name.
    pub task: String,
    /// The question's id.
    pub id: String,
    /// The question's place in its file, from 0.
    pub index: usize,
    /// Subject or category; empty where the set names none.
    pub subject: String,
    /// Number of options.
    pub n_choices: usize,
    /// The right option.
    pub key: usize,
    /// The predicted option; none when no answer could be read.
    pub predicted: Option<usize>,
    /// Whether `predicted` is `key`; an unparsed answer is wrong.
    pub correct: bool,
    /// For log-likelihoods: whether the option with the highest log-probability per character is `key`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub correct_norm: Option<bool>,
    /// SHA-256 of the prompt text (log-likelihoods) or of the prompt's messages as JSON (generation; the first sample's).
    pub prompt_sha256: String,
    /// The prompt as the model saw it; empty where each sample has its own, and where a server renders it.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub prompt_ids: Vec<u32>,
    /// For log-likelihoods: one entry an option.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub choices: Vec<ScoredChoice>,
    /// For generation: one entry a sample.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub votes: Vec<Vote>,
    /// For generation: whether two options shared the most votes.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub tie: bool,
    /// Why the model or its server did not take the question; it then counts as wrong.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub refused: Option<String>,
}

impl Sample {
    /// The record of a question that got no answer because it was refused.
    pub(crate) fn refused(task: String, index: usize, question: &Question, reason: String) -> Self {
        Self {
            task,
            id: question.id.clone(),
            index,
            subject: question.subject.clone(),
            n_choices: question.choices.len(),
            key: question.key,
            predicted: None,
            correct: false,
            correct_norm: None,
            prompt_sha256: String::new(),
            prompt_ids: Vec::new(),
            choices: Vec::new(),
            votes: Vec::new(),
            tie: false,
            refused: Some(reason),
        }
    }
}

/// One option's score.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScoredChoice {
    /// The continuation's ids.
    pub ids: Vec<u32>,
    /// Log-probability of each id.
    pub logps: Vec<f64>,
    /// Their sum.
    pub logp: f64,
}

/// One generated answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Vote {
    /// Original option index by shown position.
    pub order: Vec<usize>,
    /// Ids of the examples shown, in order; fixed worked examples are `worked example`.
    pub shots: Vec<String>,
    /// The prompt as the model saw it, where it is this sample's own.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub prompt_ids: Vec<u32>,
    /// The answer's text.
    pub text: String,
    /// Its ids, where the engine tells.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ids: Option<Vec<u32>>,
    /// Its summed log-probability, where the engine tells.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub logp: Option<f64>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// The option read from it, by its index in the question; none when unparsed.
    pub answer: Option<usize>,
    /// Whether a reasoning block was cut out before reading.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub reasoning_removed: bool,
}

/// Reads a `samples.jsonl`.
pub fn read_samples(path: &Path) -> Result<Vec<Sample>> {
    read_lines(path)
}

/// Reads JSON lines.
pub(crate) fn read_lines<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let text = std::fs::read_to_string(path).map_err(aloe_record::Error::io("read", path))?;
    text.lines()
        .enumerate()
        .map(|(index, line)| {
            serde_json::from_str(line)
                .map_err(|error| Error::Unpaired(format!("{}:{}: {error}", path.display(), index + 1)))
        })
        .collect()
}
