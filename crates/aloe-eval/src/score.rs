//! One question's record: a line of `samples.jsonl`. No times, no paths.

use crate::{Error, Result};
use aloe_engine::FinishReason;
use aloe_record::digest;
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
    /// The specialty that a classifier put the question into; empty without one.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub specialty: String,
    /// Which questions share an abstract: its digest; empty where the question has none.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub cluster: String,
    /// Digest of the question's text. Empty in runs of earlier versions.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub stem_sha256: String,
    /// Digest of the question's text and its right option, by which two tasks that ask the same are known: MedQA with four and with five
    /// options does, "The chaperones:" with other options does not. Empty in runs of earlier versions.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub question_sha256: String,
    /// Characters of the question: abstract, stem and options.
    #[serde(default)]
    pub n_chars: usize,
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
    /// SHA-256 of the prompt text, or of the prompt's messages as JSON (of generated answers the first sample's).
    pub prompt_sha256: String,
    /// The prompt as the model saw it; empty where each sample has its own, and where a server renders it.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub prompt_ids: Vec<u32>,
    /// Where options are weighed: one entry an option.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub choices: Vec<ScoredChoice>,
    /// For generation: one entry a sample.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub votes: Vec<Vote>,
    /// For generation: whether two options shared the most votes.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub tie: bool,
    /// For Medprompt: how many questions of the pool are this question itself, solved or not.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub n_same_in_pool: Option<usize>,
    /// Which training row holds the question; none where no row does or none was compared.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub trained: Option<String>,
    /// Why the model or its server did not take the question; it then counts as wrong.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub refused: Option<String>,
}

impl Sample {
    /// What questions that two tasks ask have in common; in runs of earlier versions their text alone. Empty where neither is known.
    pub(crate) fn asked(&self) -> &str {
        if self.question_sha256.is_empty() { &self.stem_sha256 } else { &self.question_sha256 }
    }

    /// What is known of a question before it is answered.
    pub(crate) fn unanswered(task: String, index: usize, question: &Question) -> Self {
        let context = question.context.as_deref().unwrap_or_default();
        let right = question.choices.get(question.key).map_or("", String::as_str);
        let texts = question.choices.iter().map(String::as_str).chain([context, question.stem.as_str()]);
        Self {
            task,
            id: question.id.clone(),
            index,
            subject: question.subject.clone(),
            specialty: String::new(),
            cluster: if context.is_empty() { String::new() } else { short_digest(context) },
            stem_sha256: short_digest(&question.stem),
            question_sha256: short_digest(&format!("{}\n{}", question.stem, right.trim())),
            n_chars: texts.map(|text| text.chars().count()).sum(),
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
            n_same_in_pool: None,
            trained: None,
            refused: None,
        }
    }

    /// What of this question is not that of `other`, which another run has under the same task and id, in words; `None` where nothing that both
    /// records tell differs. Runs of earlier versions tell no digest of the text, and are held to key and options.
    pub(crate) fn other_question(&self, other: &Self) -> Option<String> {
        let (a, b) = (&self.stem_sha256, &other.stem_sha256);
        if a != b && !a.is_empty() && !b.is_empty() {
            return Some("its text differs".to_owned());
        }
        if self.n_choices != other.n_choices {
            return Some(format!("it has {} and {} options", self.n_choices, other.n_choices));
        }
        (self.key != other.key).then(|| "it has two different keys".to_owned())
    }

    /// The record of a question that got no answer because it was refused.
    pub(crate) fn refused(task: String, index: usize, question: &Question, reason: String) -> Self {
        Self { refused: Some(reason), ..Self::unanswered(task, index, question) }
    }
}

/// One option's score.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScoredChoice {
    /// The continuation's ids; empty for a next letter.
    pub ids: Vec<u32>,
    /// Log-probability of each id; of a next letter the letter's, where told.
    pub logps: Vec<f64>,
    /// Their sum; none where a server does not name the letter among its most probable tokens.
    pub logp: Option<f64>,
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
    /// How often it was asked again before it named an option (prompt_engine's retry rule only).
    #[serde(skip_serializing_if = "is_zero", default)]
    pub n_retries: usize,
    /// Whether a reasoning block was cut out before reading, here or by the server.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub reasoning_removed: bool,
}

/// The first sixteen digits.
fn short_digest(text: &str) -> String {
    digest::bytes(text.as_bytes())[..16].to_owned()
}

fn is_zero(n: &usize) -> bool {
    *n == 0
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
            serde_json::from_str(line).map_err(|error| Error::Line {
                path: path.display().to_string(),
                line: index + 1,
                reason: error.to_string(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::compare;

    fn asked(task: &str, id: usize, stem: &str, choices: &[&str], key: usize) -> Sample {
        let question = Question {
            id: id.to_string(),
            stem: stem.into(),
            context: None,
            choices: choices.iter().map(|text| (*text).to_owned()).collect(),
            key,
            subject: String::new(),
            explanation: None,
            source: "f:1".into(),
        };
        Sample::unanswered(task.into(), id, &question)
    }

    /// A question with four options and with five is one; two whose stem alone is the same are two. In a run of an earlier version, which
    /// knows stems alone, they stay one.
    #[test]
    fn questions_of_two_tasks_that_share_a_general_stem_count_both() {
        let four = ["Bind proteins.", "Cut proteins.", "Bind DNA.", "Cut DNA."];
        let mut samples = vec![
            asked("careqa_en", 0, "The chaperones:", &four, 0),
            asked("careqa_en", 1, "Which drug is first choice?", &["Metformin", "Insulin", "Acarbose", "None"], 0),
            asked("headqa_en", 0, "The chaperones:", &["Are lipids.", "Are sugars.", "Help folding.", "Are rare."], 2),
            asked(
                "headqa_en",
                1,
                "Which drug is first choice?",
                &["Orlistat", "Insulin", "Metformin ", "None", "Any"],
                2,
            ),
        ];
        let n_counted = |samples: &[Sample]| {
            let rows = compare(samples, samples, 1).unwrap();
            rows.iter().find(|row| row.task == "all tasks").unwrap().n
        };
        assert_eq!(n_counted(&samples), 3);
        for sample in &mut samples {
            let mut old = serde_json::to_value(&*sample).unwrap();
            old.as_object_mut().unwrap().remove("question_sha256").unwrap();
            *sample = serde_json::from_value(old).unwrap();
        }
        assert_eq!(n_counted(&samples), 2);
    }
}
