//! `kind = "eval"` as written: names are strings and what depends on the strategy may be left out. [`EvalStage::checked`]
//! gives the form that the evaluator takes.

use crate::cli::{connections_mistake, timeout_mistake};
use crate::weights::Quantize;
use aloe_eval::{EvalConfig, Neighbours, Retry, Strategy};
use aloe_task::open::OpenTask;
use aloe_task::{Protocol, Split, Task};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
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
    /// `loglikelihood`, `next-letter`, `cot`, `sc-cot` or `medprompt`.
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
    /// Texts that end an answer; the answer does not hold them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) stop: Vec<String>,
    /// Whether prompts are conversations in the model's chat template; by default for generated answers only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) chat_template: Option<bool>,
    /// System prompt in place of the protocol's; empty for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) system: Option<String>,
    /// `none`, or `prompt-engine`: samples without an answer are asked again by its rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) retry: Option<String>,
    /// Medprompt: file of worked examples in place of self-generated ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) examples: Option<PathBuf>,
    /// Medprompt: `nearest`, `random` or `static`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) neighbours: Option<String>,
    /// Medprompt: let the test question itself be its example.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) include_same: Option<bool>,
    /// Medprompt: pool questions that a reranker sees for each example wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rerank_factor: Option<usize>,
    /// Folder of a sentence encoder for Medprompt's neighbours, or an endpoint's address; without it they are found by words.
    pub(crate) embedder: Option<PathBuf>,
    /// Folder of a BERT-type cross-encoder that puts the nearest of them in order.
    pub(crate) reranker: Option<PathBuf>,
    /// Medprompt: at most so many pool questions get a self-generated answer.
    pub(crate) pool_limit: Option<usize>,
    /// Medprompt: attempts per pool question.
    pub(crate) pool_attempts: Option<usize>,
    /// Data stages' folders, or files of their rows, that the model was trained on, beside those that its record leads to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) trained_on: Vec<PathBuf>,
    /// A model that puts each question into one of 35 specialties: folder, `.gguf` file or endpoint, whose server renders the prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) specialties: Option<String>,
    /// Accuracies that tasks or averages must have, `[lowest, highest]` in percent.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) expect_accuracy: BTreeMap<String, [f64; 2]>,
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
    /// Requests that an endpoint's server is sent at once; 16 by default. Results do not depend on it.
    #[serde(skip_serializing)]
    pub(crate) connections: Option<usize>,
    /// Folder of answers kept on disk. A local model's results do not depend on it, so it is no part of what decides them.
    #[serde(skip_serializing)]
    pub(crate) answer_cache: Option<PathBuf>,
    /// Open tasks: a person's labels on some of the answers, which the judges' error is measured on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) labels: Option<PathBuf>,
    /// Open tasks: the most tokens of a judge's reply.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) judge_max_new_tokens: Option<usize>,
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
        if self.is_open() {
            let open: Vec<&str> =
                self.tasks.iter().map(|name| name.trim()).filter(|name| OpenTask::parse(name).is_some()).collect();
            let text = format!(
                "{} is answered in free text, without options: evaluate it in a stage of its own (two stages)",
                open.join(", ")
            );
            return Err(vec![text]);
        }
        let mut mistakes = Vec::from_iter(timeout_mistake(self.request_timeout));
        mistakes.extend(connections_mistake(self.connections));
        self.refuse_open_keys(&mut mistakes);
        let tasks = Task::parse_all(&self.tasks).map_err(|error| mistakes.push(error.to_string())).unwrap_or_default();
        let protocol = Protocol::parse(&self.protocol);
        if protocol.is_none() {
            mistakes.push(format!("no protocol {:?}; there are aloe, lm-eval, prompt-engine", self.protocol));
        }
        let strategy = Strategy::parse(&self.strategy);
        if strategy.is_none() {
            let known = "loglikelihood, next-letter, cot, sc-cot, medprompt";
            mistakes.push(format!("no strategy {:?}; there are {known}", self.strategy));
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
        config.sampling.stop.clone_from(&self.stop);
        // A server's template renders conversations alone.
        let is_rendered_there = strategy == Strategy::NextLetter && self.server_template;
        config.chat_template = self.chat_template.unwrap_or(config.chat_template || is_rendered_there);
        if is_rendered_there && !config.chat_template {
            mistakes.push("server_template renders conversations: leave it out, or chat_template = false".into());
        }
        config.system.clone_from(&self.system);
        config.examples.clone_from(&self.examples);
        match Retry::parse(self.retry.as_deref().unwrap_or("none")) {
            Some(retry) => config.retry = retry,
            None => mistakes.push(format!("no retry {:?}; there are none, prompt-engine", self.retry)),
        }
        match Neighbours::parse(self.neighbours.as_deref().unwrap_or("nearest")) {
            Some(neighbours) => config.medprompt.neighbours = neighbours,
            None => mistakes.push(format!("no neighbours {:?}; there are nearest, random, static", self.neighbours)),
        }
        config.expect = self.expect_accuracy.iter().map(|(name, [low, high])| (name.clone(), *low, *high)).collect();
        config.trained_on = self.trained_on.iter().map(|path| crate::lineage::rows_of(path)).collect();
        config.medprompt.include_same = self.include_same.unwrap_or(config.medprompt.include_same);
        config.medprompt.rerank_factor = self.rerank_factor.unwrap_or(config.medprompt.rerank_factor);
        config.medprompt.pool_limit = self.pool_limit.or(config.medprompt.pool_limit);
        config.medprompt.pool_attempts = self.pool_attempts.unwrap_or(config.medprompt.pool_attempts);
        if strategy != Strategy::Medprompt {
            self.refuse_medprompt_keys(strategy, &mut mistakes);
        }
        self.refuse_idle_keys(strategy, config.medprompt.neighbours, &mut mistakes);
        mistakes.extend(self.rendered_twice());
        if mistakes.is_empty()
            && let Err(error) = config.check()
        {
            mistakes.push(error.to_string());
        }
        if mistakes.is_empty() { Ok(config) } else { Err(mistakes) }
    }

    /// Settings that only Medprompt reads: under another strategy what they ask for would not happen.
    fn refuse_medprompt_keys(&self, strategy: Strategy, mistakes: &mut Vec<String>) {
        let keys = [
            ("neighbours", self.neighbours.is_some()),
            ("include_same", self.include_same.is_some()),
            ("rerank_factor", self.rerank_factor.is_some()),
            ("pool_limit", self.pool_limit.is_some()),
            ("pool_attempts", self.pool_attempts.is_some()),
            ("embedder", self.embedder.is_some()),
            ("reranker", self.reranker.is_some()),
            ("examples", self.examples.is_some()),
        ];
        for (key, _) in keys.into_iter().filter(|(_, is_set)| *is_set) {
            mistakes.push(format!("{key} is for medprompt, and the strategy is {}: leave it out", strategy.name()));
        }
    }

    /// What each task reads, by its name; nothing where the settings cannot be used or their folder is not there, which is said elsewhere.
    pub(crate) fn task_files(&self) -> BTreeMap<String, Vec<PathBuf>> {
        if !self.data.is_dir() {
            return BTreeMap::new();
        }
        match self.is_open() {
            true => self.checked_open().map(|config| config.task_files()).unwrap_or_default(),
            false => self.checked().map(|config| config.task_files()).unwrap_or_default(),
        }
    }

    /// Settings that the strategy, or another setting, leaves without a use: what they ask for would not happen.
    fn refuse_idle_keys(&self, strategy: Strategy, neighbours: Neighbours, mistakes: &mut Vec<String>) {
        let mut refuse = |keys: &[(&str, bool)], why: &str| {
            let set = keys.iter().filter(|(_, is_set)| *is_set);
            mistakes.extend(set.map(|(key, _)| format!("{key} is for {why}: leave it out")));
        };
        if strategy.weighs_options() {
            let keys = [
                ("temperature", self.temperature.is_some()),
                ("top_p", self.top_p.is_some()),
                ("max_new_tokens", self.max_new_tokens.is_some()),
                ("stop", !self.stop.is_empty()),
            ];
            refuse(&keys, &format!("generated answers, and the strategy is {}", strategy.name()));
        }
        if strategy != Strategy::Medprompt {
            return;
        }
        let factor = ("rerank_factor", self.rerank_factor.is_some());
        if neighbours != Neighbours::Nearest {
            let keys = [("embedder", self.embedder.is_some()), ("reranker", self.reranker.is_some()), factor];
            refuse(&keys, "the search for the nearest examples, and neighbours is another");
        } else if self.reranker.is_none() {
            refuse(&[factor], "a reranker, and none is named");
        }
        if self.examples.is_some() {
            let keys = [("pool_limit", self.pool_limit.is_some()), ("pool_attempts", self.pool_attempts.is_some())];
            refuse(&keys, "examples that the model writes, and `examples` names a file of them");
        }
    }

    /// An endpoint's prompts are rendered here or there.
    pub(super) fn rendered_twice(&self) -> Option<String> {
        (self.server_template && self.tokenizer.is_some()).then(|| {
            "tokenizer and server_template: prompts are rendered by one of them: leave the other out".to_owned()
        })
    }

    /// The folders that are read.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let paths = [&self.embedder, &self.reranker, &self.tokenizer, &self.examples, &self.labels];
        let tasks = Task::parse_all(&self.tasks).unwrap_or_default();
        let own = tasks.into_iter().flat_map(Task::own_files);
        [self.data.clone()]
            .into_iter()
            .chain(paths.into_iter().flatten().cloned())
            .chain(own)
            .chain(self.trained_on.clone())
            .chain(self.specialties.iter().map(PathBuf::from).filter(|path| path.exists()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(more: &str) -> Vec<String> {
        let stage: EvalStage = toml::from_str(&format!("tasks = [\"starter_mcqa\"]\ndata = \"d\"\n{more}")).unwrap();
        stage.checked().err().unwrap_or_default()
    }

    #[test]
    fn settings_that_others_leave_without_a_use_are_refused_by_name() {
        let drawn = "temperature = 0.5\ntop_p = 0.9\nmax_new_tokens = 9\nstop = [\"x\"]\n";
        let why = |name: &str| format!("is for generated answers, and the strategy is {name}: leave it out");
        for name in ["loglikelihood", "next-letter"] {
            let expected = ["temperature", "top_p", "max_new_tokens", "stop"].map(|key| format!("{key} {}", why(name)));
            assert_eq!(mistakes(&format!("strategy = \"{name}\"\n{drawn}")), expected);
        }
        assert!(mistakes(&format!("strategy = \"sc-cot\"\n{drawn}")).is_empty());
        let medprompt = |more: &str| mistakes(&format!("strategy = \"medprompt\"\n{more}"));
        let encoders = "embedder = \"e\"\nreranker = \"r\"\nrerank_factor = 2\n";
        for neighbours in ["random", "static"] {
            let found = medprompt(&format!("neighbours = \"{neighbours}\"\n{encoders}"));
            let keys: Vec<&str> = found.iter().map(|one| one.split(' ').next().unwrap()).collect();
            assert_eq!(keys, ["embedder", "reranker", "rerank_factor"], "{found:?}");
        }
        assert!(medprompt(encoders).is_empty());
        assert_eq!(
            medprompt("rerank_factor = 2"),
            ["rerank_factor is for a reranker, and none is named: leave it out"]
        );
        let written = "pool_limit = 9\npool_attempts = 2\n";
        assert!(medprompt(written).is_empty());
        let found = medprompt(&format!("examples = \"e.json\"\n{written}"));
        assert!(
            found.len() == 2 && found[0].starts_with("pool_limit is for examples that the model writes"),
            "{found:?}"
        );
    }

    #[test]
    fn prompts_are_not_rendered_both_here_and_by_the_server() {
        let both = "strategy = \"cot\"\ntokenizer = \"t\"\nserver_template = true\n";
        assert!(mistakes(both)[0].contains("tokenizer and server_template"), "{:?}", mistakes(both));
        let open: EvalStage =
            toml::from_str("tasks = [\"starter_open\"]\ndata = \"d\"\ntokenizer = \"t\"\nserver_template = true\n")
                .unwrap();
        assert!(open.checked_open().unwrap_err()[0].contains("tokenizer and server_template"));
    }
}
