//! What to evaluate and how. Checked whole before anything runs.

use crate::{Error, Result};
use aloe_engine::{Call, MAX_SAMPLES, NextTold, Sampling};
use aloe_task::wording::{ChatForm, choice_prompt, letter_prompt};
use aloe_task::{ChoicePrompt, Protocol, Question, Split, Task};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// How an answer is got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// The option with the highest log-probability.
    Loglikelihood,
    /// The option whose letter is the most probable next token: what a server can tell that gives no log-probabilities of prompts.
    NextLetter,
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
            Self::NextLetter => "next-letter",
            Self::Cot => "cot",
            Self::ScCot => "sc-cot",
            Self::Medprompt => "medprompt",
        }
    }

    /// What it asks of a model; `told` says how it hears of next letters.
    pub fn call(self, told: Option<NextTold>) -> Call {
        match self {
            Self::Loglikelihood => Call::Score,
            Self::NextLetter if told == Some(NextTold::Scored) => Call::Score,
            Self::NextLetter | Self::Cot | Self::ScCot | Self::Medprompt => Call::Generate,
        }
    }

    /// Whether options are weighed, and no answer is generated.
    pub fn weighs_options(self) -> bool {
        matches!(self, Self::Loglikelihood | Self::NextLetter)
    }

    /// From its name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Loglikelihood, Self::NextLetter, Self::Cot, Self::ScCot, Self::Medprompt]
            .into_iter()
            .find(|found| found.name() == name)
    }
}

/// How a question's examples are chosen from the solved pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Neighbours {
    /// The nearest, most similar last.
    Nearest,
    /// Drawn for each question: what the search is worth is the difference to this.
    Random,
    /// The pool's first, the same for every question.
    Static,
}

impl Neighbours {
    /// From its name.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "nearest" => Some(Self::Nearest),
            "random" => Some(Self::Random),
            "static" => Some(Self::Static),
            _ => None,
        }
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
    /// Whether a pool question that is the test question itself may be its example, as in prompt_engine.
    pub include_same: bool,
    /// How examples are chosen.
    pub neighbours: Neighbours,
    /// With a reranker: how many pool questions it sees for each example that is wanted.
    pub rerank_factor: usize,
}

impl Default for MedpromptConfig {
    fn default() -> Self {
        Self {
            pool_limit: None,
            pool_attempts: 5,
            same_question_jaccard: 0.8,
            include_same: false,
            neighbours: Neighbours::Nearest,
            rerank_factor: 4,
        }
    }
}

/// What is done with a sample that names no option.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Retry {
    /// Nothing: it is counted.
    None,
    /// prompt_engine's rule: up to ten passes (three over example pools), pass r with the temperature raised by 0.05 r, to 1 at most, and
    /// 100 r tokens more. The score is then one of the best of several tries; for comparison with prompt_engine only.
    PromptEngine,
}

impl Retry {
    /// From its name.
    pub fn parse(name: &str) -> Option<Self> {
        [("none", Self::None), ("prompt-engine", Self::PromptEngine)]
            .into_iter()
            .find(|(n, _)| *n == name)
            .map(|(_, r)| r)
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
    /// Answers per question; 1 for loglikelihood, next-letter and cot.
    pub n_samples: usize,
    /// Whether the options are shown in another order in each sample.
    pub shuffle: bool,
    /// How tokens are drawn; its seed is replaced by `seed`.
    pub sampling: Sampling,
    /// Whether prompts are conversations in the model's chat template; else plain text.
    pub chat_template: bool,
    /// System prompt in place of the protocol's own; where options are weighed beside it, as in lm-evaluation-harness.
    pub system: Option<String>,
    /// What is done with samples that name no option.
    pub retry: Retry,
    /// Medprompt: worked examples from this file (prompt_engine's `generations.json`, or the `examples.json` of an earlier run) in place
    /// of those that the model would write itself.
    pub examples: Option<PathBuf>,
    /// Training rows (`train.jsonl` of data stages) that the model has seen: questions that they hold are scored apart.
    pub trained_on: Vec<PathBuf>,
    /// Whether the model has seen more than that: rows that were not found.
    pub is_training_partly_known: bool,
    /// Accuracies that tasks or averages must have, in percent: name, lowest, highest.
    pub expect: Vec<(String, f64, f64)>,
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
            Strategy::Loglikelihood | Strategy::NextLetter => 0,
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
            chat_template: !strategy.weighs_options(),
            system: None,
            retry: Retry::None,
            examples: None,
            trained_on: Vec::new(),
            is_training_partly_known: false,
            expect: Vec::new(),
            medprompt: MedpromptConfig {
                rerank_factor: if protocol == Protocol::PromptEngine { 3 } else { 4 },
                ..MedpromptConfig::default()
            },
        }
    }

    /// The files that each task reads, by its name, each once: those of its questions, of the examples and of Medprompt's pool, and of a user's own
    /// task all that it names. What is missing is left out: reading says so.
    pub fn task_files(&self) -> BTreeMap<String, Vec<PathBuf>> {
        let of_task = |&task: &Task| {
            let takes_shots = self.strategy.weighs_options() && self.shots > 0;
            let has_pool = self.strategy == Strategy::Medprompt && self.examples.is_none();
            let shots = takes_shots.then(|| (task, task.shot_split(self.protocol)));
            let parts = [Some((task, self.split)), shots, has_pool.then(|| self.pool_of(task))];
            let files = parts.into_iter().flatten();
            let files = files.flat_map(|(task, split)| task.files(&self.data_dir, split).unwrap_or_default());
            let files: BTreeSet<PathBuf> = files.map(|file| self.data_dir.join(file)).chain(task.own_files()).collect();
            (task.name(), files.into_iter().collect())
        };
        self.tasks.iter().map(of_task).collect()
    }

    /// Where Medprompt's pool is from: the task's own train questions; MMLU's validation questions; MedMCQA's train questions for CareQA, which
    /// has only a test set (so did prompt_engine). Under `prompt-engine` the validation split.
    pub(crate) fn pool_of(&self, task: Task) -> (Task, Split) {
        let own = if self.protocol == Protocol::PromptEngine { Split::Validation } else { Split::Train };
        match task {
            Task::Mmlu(_) => (task, Split::Validation),
            Task::CareqaEn | Task::CareqaEs => (Task::Medmcqa, own),
            task => (task, own),
        }
    }

    /// Whether examples are searched for near each question.
    pub fn searches(&self) -> bool {
        self.strategy == Strategy::Medprompt && self.medprompt.neighbours == Neighbours::Nearest
    }

    /// The prompt of a strategy that weighs options, and what is weighed behind it.
    pub fn choice_prompt(&self, task: Task, question: &Question, shots: &[&Question]) -> Result<ChoicePrompt> {
        let form = ChatForm { is_chat: self.chat_template, system: self.system.as_deref() };
        Ok(match self.strategy {
            Strategy::NextLetter => letter_prompt(self.protocol, question, shots, form)?,
            _ => choice_prompt(task, self.protocol, question, shots, form)?,
        })
    }

    /// Refuses settings that do not go together, all at once.
    pub fn check(&self) -> Result<()> {
        let mut mistakes = self.sampling.mistakes();
        let mut refuse = |wrong: bool, text: &str| {
            if wrong {
                mistakes.push(text.to_string());
            }
        };
        let scored = self.strategy.weighs_options();
        let single = scored || self.strategy == Strategy::Cot;
        refuse(self.tasks.is_empty(), "no task is named");
        refuse(self.limit == Some(0), "limit must be at least 1");
        refuse(self.n_samples == 0, "n_samples must be at least 1");
        refuse(self.n_samples > MAX_SAMPLES, &format!("n_samples must be at most {MAX_SAMPLES}"));
        let name = self.strategy.name();
        let several = format!("{name} takes one answer per question; use sc-cot for more");
        refuse(single && self.n_samples > 1, &several);
        refuse(single && self.shuffle, "only sc-cot and medprompt shuffle options");
        let alike = self.n_samples > 1 && self.sampling.temperature == 0.0 && !self.shuffle;
        refuse(alike, "greedy samples in one order are all alike: set a temperature or shuffle");
        refuse(self.strategy == Strategy::Medprompt && self.shots == 0, "medprompt needs shots of at least 1");
        let no_pool = self.medprompt.pool_limit == Some(0);
        refuse(no_pool, "medprompt's pool_limit must be at least 1; leave it out for the whole pool");
        refuse(self.medprompt.pool_attempts == 0, "medprompt's pool_attempts must be at least 1");
        let overlap = self.medprompt.same_question_jaccard;
        refuse(!(overlap > 0.0 && overlap <= 1.0), "medprompt's same_question_jaccard must be above 0 and at most 1");
        refuse(self.medprompt.rerank_factor == 0, "medprompt's rerank_factor must be at least 1");
        let is_medprompt = self.strategy == Strategy::Medprompt;
        refuse(self.examples.is_some() && !is_medprompt, "only medprompt takes an example file");
        let several = self.examples.is_some() && self.tasks.len() > 1;
        refuse(several, "an example file serves one task: its worked answers are for questions of one kind");
        let few_orders = self.tasks.iter().any(|task| matches!(task, Task::Pubmedqa | Task::StarterPubmedqa));
        let repeats = self.shuffle && self.sampling.temperature == 0.0 && self.n_samples > 6 && few_orders;
        refuse(repeats, "three options have six orders, so more than 6 greedy samples repeat some: set a temperature");
        for (name, low, high) in &self.expect {
            let is_range = low <= high && *low >= 0.0 && *high <= 100.0;
            refuse(!is_range, &format!("expect_accuracy {name}: [{low}, {high}] is not [lowest, highest] in percent"));
            let is_known = crate::expect::is_given(name, &self.tasks);
            refuse(!is_known, &format!("expect_accuracy {name}: no task or average of these tasks has that name"));
        }
        refuse(scored && self.retry != Retry::None, &format!("{name} has no answers to retry"));
        let plain_system = scored && !self.chat_template && self.system.is_some() && self.protocol == Protocol::Aloe;
        refuse(plain_system, "a system prompt needs chat_template = true here");
        refuse(
            scored && self.protocol == Protocol::PromptEngine,
            &format!("protocol prompt-engine has no {name} scoring"),
        );
        let is_loglikelihood = self.strategy == Strategy::Loglikelihood;
        refuse(
            !is_loglikelihood && self.protocol == Protocol::LmEval,
            &format!("protocol lm-eval has loglikelihood scoring only, no {name}"),
        );
        if mistakes.is_empty() { Ok(()) } else { Err(Error::Config(mistakes.join("; "))) }
    }
}
