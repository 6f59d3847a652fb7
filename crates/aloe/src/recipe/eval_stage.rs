//! `kind = "eval"` as written: names are strings and what depends on the strategy may be left out. [`EvalStage::checked`]
//! gives the form that the evaluator takes.

use crate::cli::timeout_mistake;
use crate::weights::Quantize;
use aloe_eval::{EvalConfig, Strategy};
use aloe_task::{Protocol, Split, Task};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The keys of an evaluation stage.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EvalStage {
    /// Task names; a group such as `mmlu_medical` stands for its members.
    pub(crate) tasks: Vec<String>,
    /// Folder with the benchmarks' files.
    pub(crate) data: PathBuf,
    /// `aloe`, `lm-eval` or `prompt-engine`.
    #[serde(default = "aloe")]
    pub(crate) protocol: String,
    /// `loglikelihood`, `cot`, `sc-cot` or `medprompt`.
    #[serde(default = "loglikelihood")]
    pub(crate) strategy: String,
    /// `test` (reported) or `validation` (for choosing).
    #[serde(default = "test")]
    pub(crate) split: String,
    /// Examples before each question; default by strategy.
    pub(crate) shots: Option<usize>,
    /// Only the first so many questions of each task.
    pub(crate) limit: Option<usize>,
    /// Answers per question; default by strategy.
    pub(crate) n_samples: Option<usize>,
    /// Whether options are shown in another order in each sample; default by strategy.
    pub(crate) shuffle: Option<bool>,
    /// Default by strategy and protocol.
    pub(crate) temperature: Option<f32>,
    /// Nucleus sampling; default 1.
    pub(crate) top_p: Option<f32>,
    /// The most tokens of a worked answer; default 500.
    pub(crate) max_new_tokens: Option<usize>,
    /// Folder of a sentence encoder for Medprompt's neighbours, or an endpoint's address; without it they are found by words.
    pub(crate) embedder: Option<PathBuf>,
    /// Folder of a BERT-type cross-encoder that puts the nearest of them in order.
    pub(crate) reranker: Option<PathBuf>,
    /// Medprompt: at most so many pool questions get a self-generated answer.
    pub(crate) pool_limit: Option<usize>,
    /// Medprompt: attempts per pool question.
    pub(crate) pool_attempts: Option<usize>,
    /// For an endpoint: folder or `.gguf` file whose tokenizer and template render the prompts.
    pub(crate) tokenizer: Option<PathBuf>,
    /// For an endpoint: let the server render chat messages by its own template; recorded as such.
    #[serde(default)]
    pub(crate) server_template: bool,
    /// Blocks that a folder's weights are rounded to on load.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) quantize: Option<Quantize>,
    /// The most memory for keys and values, in MiB; a quarter of what is free by default. Results do not depend on it.
    #[serde(skip_serializing)]
    pub(crate) kv_budget: Option<usize>,
    /// The longest that one answer of an endpoint is waited for, in seconds: of the model and of the embedder. 600 by default. Results do not depend on it.
    #[serde(skip_serializing)]
    pub(crate) request_timeout: Option<u64>,
    /// Folder of answers kept on disk. A local model's results do not depend on it, so it is no part of what decides them.
    #[serde(skip_serializing)]
    pub(crate) answer_cache: Option<PathBuf>,
    /// Seed of draws, orders and sampling; default the recipe's.
    #[serde(default)]
    pub(crate) seed: u64,
}

fn aloe() -> String {
    "aloe".to_owned()
}

fn loglikelihood() -> String {
    "loglikelihood".to_owned()
}

fn test() -> String {
    "test".to_owned()
}

impl EvalStage {
    /// The evaluator's settings, or every mistake.
    pub(crate) fn checked(&self) -> Result<EvalConfig, Vec<String>> {
        let mut mistakes = Vec::from_iter(timeout_mistake(self.request_timeout));
        let tasks = Task::parse_all(&self.tasks).map_err(|error| mistakes.push(error.to_string())).unwrap_or_default();
        let protocol = Protocol::parse(&self.protocol);
        if protocol.is_none() {
            mistakes.push(format!("no protocol {:?}; there are aloe, lm-eval, prompt-engine", self.protocol));
        }
        let strategy = Strategy::parse(&self.strategy);
        if strategy.is_none() {
            let text = format!("no strategy {:?}; there are loglikelihood, cot, sc-cot, medprompt", self.strategy);
            mistakes.push(text);
        }
        let split = match self.split.as_str() {
            "test" => Split::Test,
            "validation" => Split::Validation,
            other => {
                mistakes.push(format!("no split {other:?}; there are test, validation"));
                Split::Test
            }
        };
        let (Some(protocol), Some(strategy)) = (protocol, strategy) else { return Err(mistakes) };
        let mut config = EvalConfig::new(tasks, self.data.clone(), protocol, strategy);
        config.split = split;
        config.shots = self.shots.unwrap_or(config.shots);
        config.limit = self.limit;
        config.seed = self.seed;
        config.n_samples = self.n_samples.unwrap_or(config.n_samples);
        config.shuffle = self.shuffle.unwrap_or(config.shuffle);
        config.sampling.temperature = self.temperature.unwrap_or(config.sampling.temperature);
        config.sampling.top_p = self.top_p.unwrap_or(config.sampling.top_p);
        config.sampling.max_new_tokens = self.max_new_tokens.unwrap_or(config.sampling.max_new_tokens);
        config.medprompt.pool_limit = self.pool_limit.or(config.medprompt.pool_limit);
        config.medprompt.pool_attempts = self.pool_attempts.unwrap_or(config.medprompt.pool_attempts);
        if mistakes.is_empty()
            && let Err(error) = config.check()
        {
            mistakes.push(error.to_string());
        }
        if mistakes.is_empty() { Ok(config) } else { Err(mistakes) }
    }

    /// The folders that are read.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let folders = [&self.embedder, &self.reranker, &self.tokenizer];
        [self.data.clone()].into_iter().chain(folders.into_iter().flatten().cloned()).collect()
    }
}
