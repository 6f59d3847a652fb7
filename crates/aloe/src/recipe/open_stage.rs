//! `kind = "eval"` with open tasks, and `kind = "rejudge"`, as written: what is read of an evaluation stage whose questions are answered in
//! free text, and the answers of a finished one judged anew. The judges are the input `judge`.

use super::eval_stage::EvalStage;
use super::sizes::{Meter, Size};
use crate::cli::{connections_mistake, timeout_mistake};
use aloe_eval::open::{JUDGE_TOKENS, OpenConfig};
use aloe_task::open::OpenTask;
use aloe_task::wording::open::{JUDGE_PROMPT_VERSION, OpenPrompt, prompt};
use aloe_task::{Protocol, Task};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::PathBuf;

/// The keys of a rejudge stage.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RejudgeStage {
    /// A person's labels on some of the answers.
    pub(crate) labels: Option<PathBuf>,
    /// The most tokens of a judge's reply.
    #[serde(default = "judge_tokens")]
    pub(crate) judge_max_new_tokens: usize,
    /// The longest that one reply of an endpoint is waited for, in seconds. Results do not depend on it.
    #[serde(skip_serializing)]
    pub(crate) request_timeout: Option<u64>,
}

fn judge_tokens() -> usize {
    JUDGE_TOKENS
}

impl RejudgeStage {
    /// Values out of range, in words.
    pub(super) fn mistakes(&self) -> Vec<String> {
        let tokens = (self.judge_max_new_tokens == 0).then(|| NO_TOKENS.to_owned());
        timeout_mistake(self.request_timeout).into_iter().chain(tokens).collect()
    }

    /// The settings with their defaults, and the version of the judges' prompt.
    pub(super) fn used(&self) -> Result<Value, serde_json::Error> {
        serde_json::to_value(self).map(with_version)
    }
}

const NO_TOKENS: &str = "judge_max_new_tokens must be at least 1";

/// Another wording for judges is another result.
fn with_version(mut used: Value) -> Value {
    used["judge_prompt_version"] = Value::from(JUDGE_PROMPT_VERSION);
    used
}

impl EvalStage {
    /// Whether a task's questions are answered in free text.
    pub(crate) fn is_open(&self) -> bool {
        self.tasks.iter().any(|name| OpenTask::parse(name).is_some())
    }

    /// The most tokens of a judge's reply.
    pub(crate) fn judge_tokens(&self) -> usize {
        self.judge_max_new_tokens.unwrap_or(JUDGE_TOKENS)
    }

    /// As [`EvalStage::checked`], of open tasks.
    pub(crate) fn checked_open(&self) -> Result<OpenConfig, Vec<String>> {
        let mut mistakes = Vec::from_iter(timeout_mistake(self.request_timeout));
        mistakes.extend(connections_mistake(self.connections));
        let mut tasks: Vec<OpenTask> = Vec::new();
        for name in &self.tasks {
            match OpenTask::parse(name) {
                Some(task) if tasks.contains(&task) => {}
                Some(task) => tasks.push(task),
                None => mistakes.push(not_open(name)),
            }
        }
        let protocol = Protocol::parse(&self.protocol);
        if protocol.is_none() {
            mistakes.push(format!("no protocol {:?}; there are aloe, lm-eval, prompt-engine", self.protocol));
        }
        self.refuse_choices(&mut mistakes);
        mistakes.extend(self.rendered_twice());
        let Some(protocol) = protocol else { return Err(mistakes) };
        let mut config = OpenConfig::new(tasks, self.data.clone(), protocol);
        config.limit = self.limit;
        config.sampling.seed = self.seed;
        config.sampling.temperature = self.temperature.unwrap_or(config.sampling.temperature);
        config.sampling.top_p = self.top_p.unwrap_or(config.sampling.top_p);
        config.sampling.max_new_tokens = self.max_new_tokens.unwrap_or(config.sampling.max_new_tokens);
        if mistakes.is_empty()
            && let Err(error) = config.check()
        {
            mistakes.push(error.to_string());
        }
        if mistakes.is_empty() { Ok(config) } else { Err(mistakes) }
    }

    /// Settings of questions with options, which an open question has no use for.
    fn refuse_choices(&self, mistakes: &mut Vec<String>) {
        let strategy = self.strategy.as_str();
        if !matches!(strategy, "loglikelihood" | "open") {
            mistakes.push(format!(
                "strategy {strategy:?} reads an option; open questions are answered once, freely: leave it out"
            ));
        }
        if self.split != "test" {
            mistakes.push(format!("open tasks have a test split only, not {:?}", self.split));
        }
        let unused = [
            ("shots", self.shots.is_some_and(|shots| shots > 0)),
            ("n_samples", self.n_samples.is_some_and(|n| n != 1)),
            ("shuffle", self.shuffle == Some(true)),
            ("embedder", self.embedder.is_some()),
            ("reranker", self.reranker.is_some()),
            ("pool_limit", self.pool_limit.is_some()),
            ("pool_attempts", self.pool_attempts.is_some()),
            ("stop", !self.stop.is_empty()),
            ("chat_template", self.chat_template.is_some()),
            ("system", self.system.is_some()),
            ("retry", self.retry.is_some()),
            ("examples", self.examples.is_some()),
            ("neighbours", self.neighbours.is_some()),
            ("include_same", self.include_same.is_some()),
            ("rerank_factor", self.rerank_factor.is_some()),
            ("specialties", self.specialties.is_some()),
            ("expect_accuracy", !self.expect_accuracy.is_empty()),
            ("trained_on", !self.trained_on.is_empty()),
        ];
        for (key, _) in unused.into_iter().filter(|(_, is_set)| *is_set) {
            mistakes.push(format!("{key} is of no use for open questions: leave it out"));
        }
        if self.judge_max_new_tokens == Some(0) {
            mistakes.push(NO_TOKENS.to_owned());
        }
    }

    /// Settings of open questions where none is asked.
    pub(super) fn refuse_open_keys(&self, mistakes: &mut Vec<String>) {
        for (key, is_set) in
            [("labels", self.labels.is_some()), ("judge_max_new_tokens", self.judge_max_new_tokens.is_some())]
        {
            if is_set {
                mistakes.push(format!("{key} is for open tasks ({}): leave it out", open_names()));
            }
        }
    }

    /// The settings with their defaults; of open tasks what is really done, and the version of the judges' prompt.
    pub(super) fn used(&self) -> Result<Value, serde_json::Error> {
        let mut used = serde_json::to_value(self)?;
        if self.is_open() {
            used["strategy"] = Value::from("open");
            used["judge_max_new_tokens"] = Value::from(self.judge_tokens());
            used = with_version(used);
        }
        Ok(used)
    }

    /// How much an open stage reads and writes; none where its questions are not at hand. Judges are not counted.
    pub(super) fn open_size(&self, meter: &Meter) -> Option<Size> {
        let config = self.checked_open().ok()?;
        let mut size = Size::default();
        for task in &config.tasks {
            let mut questions = task.load(&config.data_dir).ok()?;
            questions.truncate(config.limit.unwrap_or(questions.len()));
            size.rows += questions.len() as u64;
            size.generated += (questions.len() * config.sampling.max_new_tokens) as u64;
            let tokens = questions.iter().map(|question| match prompt(config.protocol, question) {
                OpenPrompt::Messages(messages) => meter.prompt(&messages),
                OpenPrompt::Text(text) => meter.text(&text),
            });
            size.tokens += tokens.sum::<f64>() as u64;
        }
        Some(size)
    }
}

/// The open tasks' names.
pub(crate) fn open_names() -> String {
    OpenTask::ALL.map(OpenTask::name).join(", ")
}

/// What is wrong with a task beside an open one.
fn not_open(name: &str) -> String {
    match Task::parse(name.trim()) {
        Ok(_) => {
            format!("{name} has options, and other tasks here are open ({}): evaluate them in two stages", open_names())
        }
        Err(error) => format!("{error}, {}", open_names()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(more: &str) -> EvalStage {
        toml::from_str(&format!("data = \"d\"\n{more}")).unwrap()
    }

    fn refused(more: &str) -> String {
        stage(more).checked_open().unwrap_err().join("\n")
    }

    #[test]
    fn open_tasks_and_tasks_with_options_do_not_go_into_one_evaluation() {
        let mixed = "tasks = [\"openmedqa\", \"medqa_4options\"]";
        assert!(refused(mixed).contains("medqa_4options has options"), "{}", refused(mixed));
        let as_choices = stage(mixed).checked().unwrap_err().join("\n");
        assert!(as_choices.contains("openmedqa") && as_choices.contains("two stages"), "{as_choices}");
        let unknown = refused("tasks = [\"openmedqa\", \"openmedqq\"]");
        assert!(
            unknown.contains("unknown task `openmedqq`") && unknown.ends_with("careqa_open, starter_open"),
            "{unknown}"
        );
    }

    #[test]
    fn settings_that_an_open_question_has_no_use_for_are_refused_by_name() {
        let text = refused(
            "tasks = [\"openmedqa\"]\nstrategy = \"cot\"\nshots = 3\nsplit = \"validation\"\nshuffle = true\njudge_max_new_tokens = 0\n",
        );
        for part in ["strategy \"cot\"", "shots is of no use", "test split only", "shuffle is of no use", NO_TOKENS] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        let choices = stage("tasks = [\"medqa_4options\"]\nlabels = \"l.jsonl\"").checked().unwrap_err().join("\n");
        assert!(choices.contains("labels is for open tasks (openmedqa"), "{choices}");
    }

    #[test]
    fn the_harness_stops_at_an_empty_line_and_words_no_openmedqa() {
        let config = stage("tasks = [\"careqa_open\"]\nprotocol = \"lm-eval\"").checked_open().unwrap();
        assert_eq!((config.sampling.stop, config.sampling.max_new_tokens), (vec!["\n\n".to_owned()], 256));
        assert!(refused("tasks = [\"openmedqa\"]\nprotocol = \"lm-eval\"").contains("OpenMedQA"));
    }

    #[test]
    fn prompt_engine_asks_openmedqa_for_a_thousand_tokens_at_most_and_words_no_other_open_set() {
        let config = stage("tasks = [\"openmedqa\"]\nprotocol = \"prompt-engine\"").checked_open().unwrap();
        assert_eq!((config.sampling.temperature, config.sampling.max_new_tokens), (0.0, 1000));
        assert!(refused("tasks = [\"careqa_open\"]\nprotocol = \"prompt-engine\"").contains("use --protocol aloe"));
    }
}
