//! `kind = "synthesis"` as written, its help, and its size for the plan. [`SynthesisStage::checked`] gives the form that the maker takes.

use super::keys::{Key, list, minimal};
use super::sizes::{Meter, Size};
use crate::cli::{connections_mistake, timeout_mistake};
use crate::weights::Quantize;
use aloe_data::synthesis::SynthesisConfig;
use aloe_task::wording::synthesis::{SYNTHESIS_PROMPT_VERSION, Told, messages};
use aloe_task::{Split, Task};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::PathBuf;

/// The keys of a synthesis stage.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SynthesisStage {
    /// Task names; a group stands for its members.
    pub(crate) tasks: Vec<String>,
    /// Folder with the benchmarks' files.
    pub(crate) data: PathBuf,
    /// What the writer is told.
    #[serde(default = "gold")]
    pub(crate) mode: Told,
    /// At most so many questions of each task, drawn by the seed.
    pub(crate) limit: Option<usize>,
    /// Worked examples before each question.
    #[serde(default = "three")]
    pub(crate) shots: usize,
    /// The most attempts at a question.
    #[serde(default = "five")]
    pub(crate) attempts: usize,
    /// Whether a second call picks an option from the reasoning alone.
    #[serde(default = "yes")]
    pub(crate) blind: bool,
    /// Of attempts.
    #[serde(default = "warm")]
    pub(crate) temperature: f32,
    /// Of attempts.
    #[serde(default = "one")]
    pub(crate) top_p: f32,
    /// The most tokens of an attempt.
    #[serde(default = "tokens")]
    pub(crate) max_new_tokens: usize,
    /// For an endpoint: folder or `.gguf` file whose tokenizer and template render the prompts.
    pub(crate) tokenizer: Option<PathBuf>,
    /// For an endpoint: let the server render chat messages by its own template; recorded as such.
    #[serde(default)]
    pub(crate) server_template: bool,
    /// Blocks that a folder's weights are rounded to on load.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) quantize: Option<Quantize>,
    /// The most memory for keys and values, in MiB. Results do not depend on it.
    #[serde(skip_serializing)]
    pub(crate) kv_budget: Option<usize>,
    /// The longest that one answer of an endpoint is waited for, in seconds. Results do not depend on it.
    #[serde(skip_serializing)]
    pub(crate) request_timeout: Option<u64>,
    /// Requests that an endpoint's server is sent at once. Results do not depend on it.
    #[serde(skip_serializing)]
    pub(crate) connections: Option<usize>,
    /// Folder of answers kept on disk. A local model's results do not depend on it.
    #[serde(skip_serializing)]
    pub(crate) answer_cache: Option<PathBuf>,
    /// Seed of the draw of questions and of attempts; default the recipe's.
    #[serde(default)]
    pub(crate) seed: u64,
}

fn gold() -> Told {
    Told::Gold
}

fn defaults() -> SynthesisConfig {
    SynthesisConfig::new(Vec::new(), PathBuf::new(), Told::Gold)
}

fn three() -> usize {
    defaults().shots
}

fn five() -> usize {
    defaults().attempts
}

fn yes() -> bool {
    defaults().blind
}

fn warm() -> f32 {
    defaults().sampling.temperature
}

fn one() -> f32 {
    defaults().sampling.top_p
}

fn tokens() -> usize {
    defaults().sampling.max_new_tokens
}

impl SynthesisStage {
    /// The maker's settings, or every mistake.
    pub(crate) fn checked(&self) -> Result<SynthesisConfig, Vec<String>> {
        let mut mistakes = Vec::from_iter(timeout_mistake(self.request_timeout));
        mistakes.extend(connections_mistake(self.connections));
        let tasks = Task::parse_all(&self.tasks).map_err(|error| mistakes.push(error.to_string())).unwrap_or_default();
        let mut config = SynthesisConfig::new(tasks, self.data.clone(), self.mode);
        config.limit = self.limit;
        config.shots = self.shots;
        config.attempts = self.attempts;
        config.blind = self.blind;
        config.seed = self.seed;
        config.sampling.temperature = self.temperature;
        config.sampling.top_p = self.top_p;
        config.sampling.max_new_tokens = self.max_new_tokens;
        if mistakes.is_empty()
            && let Err(error) = config.check()
        {
            mistakes.push(error.to_string());
        }
        if mistakes.is_empty() { Ok(config) } else { Err(mistakes) }
    }

    /// The settings with their defaults, and the version of the prompts: another wording is another result.
    pub(super) fn used(&self) -> Result<Value, serde_json::Error> {
        let mut used = serde_json::to_value(self)?;
        used["prompt_version"] = Value::from(SYNTHESIS_PROMPT_VERSION);
        Ok(used)
    }

    /// The files and folders that are read.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let tasks = Task::parse_all(&self.tasks).unwrap_or_default();
        let own = tasks.into_iter().flat_map(Task::own_files);
        [self.data.clone()].into_iter().chain(self.tokenizer.clone()).chain(own).collect()
    }

    /// The questions with the tokens of one attempt at each, and the most that all attempts generate; none where the questions are not at
    /// hand.
    pub(super) fn size(&self, meter: &Meter) -> Option<Size> {
        let config = self.checked().ok()?;
        let (mut rows, mut tokens) = (0, 0.0);
        for task in &config.tasks {
            let mut questions = task.load(&config.data_dir, Split::Train).ok()?;
            questions.truncate(config.limit.unwrap_or(questions.len()));
            rows += questions.len() as u64;
            tokens += questions
                .iter()
                .map(|question| meter.prompt(&messages(question, config.mode, config.shots)))
                .sum::<f64>();
        }
        let generated = rows * (config.attempts * config.sampling.max_new_tokens) as u64;
        Some(Size { rows, tokens: tokens as u64, generated })
    }
}

/// Every key, for `--help`.
pub(super) const SYNTHESIS: &[Key] = &[
    ("tasks", "list of task names whose train questions are solved"),
    ("data", "folder with the benchmarks' files"),
    (
        "mode",
        "gold: the writer is told the right answer, and the reference explanation where the set has one; self: the question alone",
    ),
    ("limit", "at most N questions of each task, drawn by the seed"),
    ("shots", "worked examples in three parts before each question, 3 at most"),
    ("attempts", "the most attempts at a question; the first that reaches the key is kept"),
    (
        "blind",
        "a second call is shown question and reasoning without the answer's line and picks an option; false leaves it out",
    ),
    ("temperature", "of attempts; 0 is greedy, and goes with attempts = 1"),
    ("top_p", "nucleus sampling, above 0 to 1"),
    ("max_new_tokens", "the most tokens of an attempt"),
    ("tokenizer", "endpoint: folder or .gguf whose tokenizer and template render the prompts"),
    ("server_template", "endpoint: the server renders chat messages (recorded as such)"),
    ("quantize", "q8 or q4: round the weights of a folder to blocks on load; not with dtype f32"),
    ("kv_budget", "the most memory for keys and values, in MiB; default a quarter of what is free"),
    (
        "request_timeout",
        "endpoint: the longest that one answer is waited for before it is asked again, in seconds; default 600",
    ),
    ("connections", "endpoint: requests that a server is sent at once; by default 16"),
    (
        "answer_cache",
        "folder of answers kept on disk: a model is not asked again what it was asked before; default none",
    ),
    ("seed", "seed of the draw of questions and of attempts; default the recipe's or --seed"),
];

/// The keys of `aloe synthesis`, with examples.
pub(crate) fn synthesis() -> String {
    format!(
        "Settings: keys of --set KEY=VALUE and of a recipe's stage\n{}\nExamples:\n  aloe synthesis http://host:8000/v1#mixtral --server-template \
         --tasks medqa_4options,medmcqa,pubmedqa --data $ALOE_DATA --out runs/cot\n  aloe synthesis models/smollm2 --tasks starter_mcqa --data \
         starter --mode self --set attempts=3 --out runs/cot-self\n\nWorked solutions to train questions: what is asked, each option in turn, the \
         final choice. One is kept when the parser of `aloe eval` reads the key from it; others are written anew. A set without explanations \
         (MedQA) is solved from the right answer alone, and the report says so.\n\nWrites train.jsonl (columns question, response, as the \
         published *-cot sets, and made, support, attempts, blind_reader, betrays of each row; a source of `aloe data run`), \
         attempts.jsonl, examples.json (for `aloe eval --strategy medprompt --set examples=FILE`; one file a task where there are several), \
         results.json, report.html and record.json into --out. An interrupted run goes on with the same command.",
        list(SYNTHESIS, &minimal::<SynthesisStage>(r#"{"tasks": [], "data": ""}"#))
    )
}
