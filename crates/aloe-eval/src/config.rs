//! What to evaluate and how. Checked whole before anything runs.

use crate::{Error, Result};
use aloe_engine::{Call, MAX_SAMPLES, Sampling};
use aloe_task::{Protocol, Split, Task};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// How an answer is got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// The option with the highest log-probability.
    Loglikelihood,
    /// One worked answer, greedy.
    Cot,
    /// Several sampled worked answers, majority vote.
    ScCot,
    /// As sc-cot, with examples near the question and options shuffled in each sample.
    Medprompt,
}

impl Strategy {
    /// The name on the command line and in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Loglikelihood => "loglikelihood",
            Self::Cot => "cot",
            Self::ScCot => "sc-cot",
            Self::Medprompt => "medprompt",
        }
    }

    /// What it asks of a model.
    pub fn call(self) -> Call {
        match self {
            Self::Loglikelihood => Call::Score,
            Self::Cot | Self::ScCot | Self::Medprompt => Call::Generate,
        }
    }

    /// From its name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Loglikelihood, Self::Cot, Self::ScCot, Self::Medprompt].into_iter().find(|found| found.name() == name)
    }
}

/// Medprompt's own settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MedpromptConfig {
    /// At most so many pool questions get a self-generated answer (a seeded sample); none means all.
    pub pool_limit: Option<usize>,
    /// Attempts per pool question; those with a wrong answer are discarded.
    pub pool_attempts: usize,
    /// Word-set overlap (Jaccard, question and options) from which a pool question counts as the test question itself.
    pub same_question_jaccard: f64,
}

impl Default for MedpromptConfig {
    fn default() -> Self {
        Self { pool_limit: None, pool_attempts: 5, same_question_jaccard: 0.8 }
    }
}

/// Everything that decides an evaluation beside the model.
#[derive(Clone, Debug, PartialEq)]
pub struct EvalConfig {
    /// The tasks, in the order of the results.
    pub tasks: Vec<Task>,
    /// Where their files are.
    pub data_dir: PathBuf,
    /// `Test` is what is reported; `Validation` is for choosing.
    pub split: Split,
    /// Whose wording.
    pub protocol: Protocol,
    /// How an answer is got.
    pub strategy: Strategy,
    /// Examples before each question.
    pub shots: usize,
    /// Only the first so many questions of each task; the result is then not comparable.
    pub limit: Option<usize>,
    /// The seed of example draws, option orders and sampling.
    pub seed: u64,
    /// Answers per question; 1 for loglikelihood and cot.
    pub n_samples: usize,
    /// Whether the options are shown in another order in each sample.
    pub shuffle: bool,
    /// How tokens are drawn; its seed is replaced by `seed`.
    pub sampling: Sampling,
    /// Medprompt's own settings.
    pub medprompt: MedpromptConfig,
}

impl EvalConfig {
    /// The defaults of a strategy. Ours sample at temperature 0.7; prompt_engine's published default is 0.01 (and k 3, no
    /// shuffle for SC-CoT; k 5, shuffle for Medprompt; 5 samples; 500 tokens), which makes unshuffled samples all alike.
    pub fn new(tasks: Vec<Task>, data_dir: PathBuf, protocol: Protocol, strategy: Strategy) -> Self {
        let votes = matches!(strategy, Strategy::ScCot | Strategy::Medprompt);
        let temperature = match (votes, protocol) {
            (false, _) => 0.0,
            (true, Protocol::PromptEngine) => 0.01,
            (true, _) => 0.7,
        };
        let shots = match strategy {
            Strategy::Loglikelihood => 0,
            Strategy::Cot | Strategy::ScCot => 3,
            Strategy::Medprompt => 5,
        };
        Self {
            tasks,
            data_dir,
            split: Split::Test,
            protocol,
            strategy,
            shots,
            limit: None,
            seed: 0,
            n_samples: if votes { 5 } else { 1 },
            shuffle: strategy == Strategy::Medprompt,
            sampling: Sampling { max_new_tokens: 500, temperature, ..Sampling::default() },
            medprompt: MedpromptConfig::default(),
        }
    }

    /// Refuses settings that do not go together, all at once.
    pub fn check(&self) -> Result<()> {
        let mut mistakes = self.sampling.mistakes();
        let mut refuse = |wrong: bool, text: &str| {
            if wrong {
                mistakes.push(text.to_string());
            }
        };
        let single = matches!(self.strategy, Strategy::Loglikelihood | Strategy::Cot);
        refuse(self.tasks.is_empty(), "no task is named");
        refuse(self.limit == Some(0), "limit must be at least 1");
        refuse(self.n_samples == 0, "n_samples must be at least 1");
        refuse(self.n_samples > MAX_SAMPLES, &format!("n_samples must be at most {MAX_SAMPLES}"));
        refuse(single && self.n_samples > 1, "loglikelihood and cot take one answer per question; use sc-cot for more");
        refuse(single && self.shuffle, "only sc-cot and medprompt shuffle options");
        let alike = self.n_samples > 1 && self.sampling.temperature == 0.0 && !self.shuffle;
        refuse(alike, "greedy samples in one order are all alike: set a temperature or shuffle");
        refuse(self.strategy == Strategy::Medprompt && self.shots == 0, "medprompt needs shots of at least 1");
        refuse(self.medprompt.pool_attempts == 0, "medprompt's pool_attempts must be at least 1");
        let scored = self.strategy == Strategy::Loglikelihood;
        refuse(
            scored && self.protocol == Protocol::PromptEngine,
            "protocol prompt-engine has no loglikelihood scoring",
        );
        refuse(!scored && self.protocol == Protocol::LmEval, "protocol lm-eval has loglikelihood scoring only");
        if mistakes.is_empty() { Ok(()) } else { Err(Error::Config(mistakes.join("; "))) }
    }
}
