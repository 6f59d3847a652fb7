//! `kind = "synthesis"` as written, its help, and its size for the plan. [`SynthesisStage::checked`] gives the form that the maker takes.

use super::keys::{Key, list, minimal};
use super::sizes::{Meter, Size};
use crate::cli::{connections_mistake, timeout_mistake};
use crate::weights::Quantize;
use aloe_data::synthesis::{GENSTRUCT_STOP, SynthesisConfig, TextsConfig};
use aloe_engine::Sampling;
use aloe_task::wording::synthesis::{SYNTHESIS_PROMPT_VERSION, Told, messages};
use aloe_task::{Split, Task};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::PathBuf;

/// The keys of a synthesis stage.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SynthesisStage {
    /// What is made.
    #[serde(default)]
    pub(crate) make: Make,
    /// cot: task names; a group stands for its members.
    #[serde(default)]
    pub(crate) tasks: Vec<String>,
    /// cot: folder with the benchmarks' files.
    pub(crate) data: Option<PathBuf>,
    /// genstruct: file or folder of passages.
    pub(crate) passages: Option<PathBuf>,
    /// roleplay: file of red-team questions.
    pub(crate) questions: Option<PathBuf>,
    /// rejections: file or folder of rows with a better side.
    pub(crate) rows: Option<PathBuf>,
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
    /// cot: whether only solutions in the three published parts are kept.
    #[serde(default = "yes")]
    pub(crate) in_parts: bool,
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

/// What a synthesis stage makes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Make {
    /// Worked solutions to train questions.
    #[default]
    Cot,
    /// Questions and answers from passages.
    Genstruct,
    /// Role-play variants of red-team questions.
    Roleplay,
    /// Own answers as the rejected sides of pairs.
    Rejections,
}

/// The settings as the maker takes them.
pub(crate) enum Checked {
    Cot(SynthesisConfig),
    Genstruct(PathBuf, TextsConfig),
    Roleplay(PathBuf, TextsConfig),
    Rejections(PathBuf, TextsConfig),
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
    pub(crate) fn checked(&self) -> Result<Checked, Vec<String>> {
        let mut mistakes = self.misplaced();
        let file = match self.make {
            Make::Cot => return self.checked_cot(mistakes).map(Checked::Cot),
            Make::Genstruct => self.passages.clone(),
            Make::Roleplay => self.questions.clone(),
            Make::Rejections => self.rows.clone(),
        };
        mistakes.extend(timeout_mistake(self.request_timeout));
        mistakes.extend(connections_mistake(self.connections));
        let config =
            TextsConfig { limit: self.limit, attempts: self.attempts, sampling: self.sampling(), seed: self.seed };
        if let Err(error) = config.check() {
            mistakes.push(error.to_string());
        }
        match (file, mistakes.is_empty()) {
            (Some(file), true) => Ok(match self.make {
                Make::Genstruct => Checked::Genstruct(file, config),
                Make::Rejections => Checked::Rejections(file, config),
                Make::Roleplay | Make::Cot => Checked::Roleplay(file, config),
            }),
            (None, _) => {
                let key = match self.make {
                    Make::Genstruct => "passages",
                    Make::Rejections => "rows",
                    Make::Roleplay | Make::Cot => "questions",
                };
                mistakes.push(format!("{key} = FILE is missing"));
                Err(mistakes)
            }
            (Some(_), false) => Err(mistakes),
        }
    }

    /// Settings of what is not made.
    fn misplaced(&self) -> Vec<String> {
        let of = [
            ("tasks", Make::Cot, !self.tasks.is_empty()),
            ("data", Make::Cot, self.data.is_some()),
            ("passages", Make::Genstruct, self.passages.is_some()),
            ("questions", Make::Roleplay, self.questions.is_some()),
            ("rows", Make::Rejections, self.rows.is_some()),
        ];
        let wrong = of.into_iter().filter(|(_, make, is_set)| *is_set && *make != self.make);
        let name = |make: Make| format!("{make:?}").to_lowercase();
        wrong
            .map(|(key, make, _)| {
                format!("{key} is for make = {:?}, not {:?}: leave it out", name(make), name(self.make))
            })
            .collect()
    }

    fn sampling(&self) -> Sampling {
        Sampling {
            max_new_tokens: self.max_new_tokens,
            temperature: self.temperature,
            top_p: self.top_p,
            stop: if self.make == Make::Genstruct { vec![GENSTRUCT_STOP.to_owned()] } else { Vec::new() },
            ..Sampling::default()
        }
    }

    fn checked_cot(&self, mut mistakes: Vec<String>) -> Result<SynthesisConfig, Vec<String>> {
        mistakes.extend(timeout_mistake(self.request_timeout));
        mistakes.extend(connections_mistake(self.connections));
        for (missing, text) in [
            (self.tasks.is_empty(), "tasks = [NAME, ..] is missing: whose train questions are to be solved"),
            (self.data.is_none(), "data = FOLDER is missing"),
        ] {
            mistakes.extend(missing.then(|| text.to_owned()));
        }
        let tasks = Task::parse_all(&self.tasks).map_err(|error| mistakes.push(error.to_string())).unwrap_or_default();
        let mut config = SynthesisConfig::new(tasks, self.data.clone().unwrap_or_default(), self.mode);
        config.limit = self.limit;
        config.shots = self.shots;
        config.attempts = self.attempts;
        config.blind = self.blind;
        config.in_parts = self.in_parts;
        config.seed = self.seed;
        config.sampling = self.sampling();
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
        let named = [&self.data, &self.passages, &self.questions, &self.rows, &self.tokenizer];
        named.into_iter().flatten().cloned().chain(own).collect()
    }

    /// The questions with the tokens of one attempt at each, and the most that all attempts generate; none where the questions are not at
    /// hand.
    pub(super) fn size(&self, meter: &Meter) -> Option<Size> {
        let Ok(Checked::Cot(config)) = self.checked() else { return None };
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
    (
        "make",
        "cot: worked solutions to train questions; genstruct: questions and answers from passages, by Genstruct's prompt; roleplay: variants of red-team questions; rejections: the model's own answers as the rejected sides of pairs",
    ),
    ("tasks", "cot: list of task names whose train questions are solved"),
    ("data", "cot: folder with the benchmarks' files"),
    ("passages", "genstruct: file or folder of rows with title and content (or text)"),
    ("questions", "roleplay: file of red-team questions, as for aloe redteam"),
    (
        "rows",
        "rejections: file or folder of pairs, whose chosen side is the better one, or of instruction or multiple-choice rows with their answer",
    ),
    (
        "mode",
        "cot, gold: the writer is told the right answer, and the reference explanation where the set has one; self: the question alone",
    ),
    ("limit", "at most N questions of each task (passages, red-team questions, rows), drawn by the seed"),
    ("shots", "cot: worked examples in three parts before each question, 3 at most"),
    ("attempts", "the most attempts at each; the first that passes the check is kept"),
    (
        "blind",
        "cot: a second call is shown question and reasoning without the answer's line and picks an option; false leaves it out",
    ),
    (
        "in_parts",
        "cot: keep only solutions in the three published parts: the question in own words, each option in turn, the final choice (of PubMedQA three paragraphs)",
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
         attempts.jsonl, examples.json (cot alone, for `aloe eval --strategy medprompt --set examples=FILE`; one file a task where there are several), \
         results.json, report.html and record.json into --out. An interrupted run goes on with the same command.\n\nmake = \"genstruct\" reads the two turns out of what follows Genstruct's exact prompt, without a chat template; make = \"roleplay\" writes questions.jsonl instead of train.jsonl, in the layout of red-team questions, each to be reviewed by hand; make = \"rejections\" writes pairs with the columns chosen and rejected (conversations, as dpo-mix-7k), whose \
         rejected sides nobody has judged.",
        list(SYNTHESIS, &minimal::<SynthesisStage>("{}"))
    )
}
