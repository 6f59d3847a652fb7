//! `results.json`, `samples.jsonl` and the table. Neither file holds a time, a host or a path.

use crate::calibration::Calibration;
use crate::expect::{self, Expected};
use crate::metrics::{Counts, Estimate, Group, groups};
use crate::noise::NoiseFloor;
use crate::parts::{self, Part};
use crate::stats::Interval;
use crate::{Encoders, EvalConfig, Result, Sample};
use aloe_engine::{Embedder, EngineIdentity, NextTold};
use aloe_record::{atomic, digest};
use aloe_task::{Protocol, Split, Task, worked};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::io::Write as _;
use std::path::Path;

/// Everything an evaluation found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalResults {
    /// What decides the answers beside the requests.
    pub model: EngineIdentity,
    /// The settings, without folders.
    pub settings: Map<String, Value>,
    /// One entry a task.
    pub tasks: Vec<TaskResult>,
    /// Averages whose tasks are all there.
    pub groups: Vec<GroupResult>,
    /// Accuracies that were to come out, where any were stated.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub expected: Vec<Expected>,
}

/// One task's result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskResult {
    /// The task's name.
    pub task: String,
    /// The version of the task's reader, or of the user's description.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub version: String,
    /// The split.
    pub split: Split,
    /// Whether the figure may be set beside published ones, in words.
    pub comparability: String,
    /// Questions in the split's file, of which the first were asked.
    #[serde(default)]
    pub n_whole: usize,
    /// The counts.
    #[serde(flatten)]
    pub counts: Counts,
    /// What the reader must know before the figure: that nearly every answer is the same option.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub warning: Option<String>,
    /// Whether it is as sure as it is right.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub calibration: Option<Calibration>,
    /// By subject, where the set names several.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub by_subject: Vec<Part>,
    /// By the specialty that a classifier put each question into.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub by_specialty: Vec<Part>,
    /// By quarters of the question's length.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub by_length: Vec<Part>,
    /// Medprompt: apart for the questions that the example pool holds too.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub by_pool: Vec<Part>,
    /// Apart for the questions that the model's training rows hold; empty where those are not known.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub by_training: Vec<Part>,
    /// Of an endpoint: how far its second answers to some questions lie from the first.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub noise_floor: Option<NoiseFloor>,
    /// What the strategy has to say: Medprompt's pool, neighbour search, exclusions.
    #[serde(skip_serializing_if = "Map::is_empty", default)]
    pub notes: Map<String, Value>,
}

/// An average with its comparability.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupResult {
    /// The average.
    #[serde(flatten)]
    pub group: Group,
    /// `comparable`, or why not.
    pub comparability: String,
}

/// The words for a figure that may be set beside published ones.
pub const COMPARABLE: &str = "comparable";

impl TaskResult {
    /// Counts the samples of `task`; `n_whole` is how many questions its file holds.
    pub fn of(task: Task, samples: &[Sample], n_whole: usize, config: &EvalConfig, notes: Map<String, Value>) -> Self {
        let counts = Counts::of(samples);
        Self {
            task: task.name(),
            version: task.version().to_owned(),
            split: config.split,
            comparability: comparability(task, counts.n_refused, samples.len(), n_whole, config),
            n_whole,
            warning: one_option(&counts),
            calibration: Calibration::of(samples),
            by_subject: parts::by_subject(samples),
            by_specialty: parts::by_specialty(samples),
            by_length: parts::by_length(samples),
            by_pool: parts::by_pool(samples),
            by_training: if config.trained_on.is_empty() {
                Vec::new()
            } else {
                parts::by_training(samples, !config.is_training_partly_known)
            },
            counts,
            noise_floor: None,
            notes,
        }
    }

    /// Accuracy with its standard error and its interval in words, for summaries.
    pub fn words(&self) -> String {
        let acc = self.counts.acc;
        let interval = acc.interval.map_or_else(String::new, |one| format!(" (95 %: {})", one.percent(1)));
        let warning = self.warning.as_ref().map_or("", |_| ", nearly all answers one option");
        let refused = self.counts.refused_words().map_or_else(String::new, |words| format!(", {words}"));
        format!("{} {:.1} % +- {:.1}{interval}{warning}{refused}", self.task, 100.0 * acc.value, 100.0 * acc.stderr)
    }

    /// Questions that the training rows, or the example pool, hold and do not hold, apart.
    pub(crate) fn apart(&self) -> impl Iterator<Item = &Part> {
        self.by_training.iter().chain(&self.by_pool)
    }

    /// Which questions of the published set have no answer; `None` where all have.
    pub(crate) fn partial(&self) -> Option<String> {
        let published = self.task().and_then(Task::published_test_len).unwrap_or(self.n_whole);
        let (n, n_refused) = (self.counts.n, self.counts.n_refused);
        let asked = (n != published).then(|| format!("{n} of {published} questions of {}", self.task));
        asked.or_else(|| (n_refused > 0).then(|| format!("{n_refused} questions of {} were refused", self.task)))
    }

    fn task(&self) -> Option<Task> {
        Task::all().into_iter().find(|task| task.name() == self.task)
    }
}

/// From this share of one option on, an accuracy tells where the keys stand and not what the model knows.
const SAME_OPTION: f64 = 0.9;

/// Says that nearly all answers are one option, from 20 answers on.
pub(crate) fn one_option(counts: &Counts) -> Option<String> {
    let n: usize = counts.chosen_positions.iter().sum();
    let (position, &most) = counts.chosen_positions.iter().enumerate().max_by_key(|(_, chosen)| **chosen)?;
    let (letter, share) = (char::from(b'A' + position as u8), most as f64 / n.max(1) as f64);
    let at_letter =
        *counts.key_positions.get(position)? as f64 / counts.key_positions.iter().sum::<usize>().max(1) as f64;
    (n >= 20 && share >= SAME_OPTION).then(|| {
        format!(
            "{:.0} % of the answers are option {letter}, which is right in {:.1} %: no evidence of knowledge",
            100.0 * share,
            100.0 * at_letter
        )
    })
}

/// Published figures were made by lm-evaluation-harness's scoring of options, or by prompt_engine with worked examples that are not ours
/// to ship; whatever else is asked otherwise gives a figure of another kind. Says so of another protocol, where answers are got by `how`.
pub(crate) fn of_another_kind(protocol: Protocol, how: &str) -> Option<String> {
    (protocol != Protocol::LmEval)
        .then(|| format!("not comparable with published figures: {how} in the wording of {}", protocol.name()))
}

/// Whether the figure of a task may be set beside published ones, or the first reason why not.
fn comparability(task: Task, n_refused: usize, n: usize, n_whole: usize, config: &EvalConfig) -> String {
    if task.is_starter() {
        let part = if n < n_whole { format!("the first {n} of {n_whole} ") } else { String::new() };
        return format!(
            "not comparable: {part}starter questions, not clinically reviewed; the score checks the program"
        );
    }
    if config.split != Split::Test {
        return format!("not comparable: the {} split, for choosing only", config.split.name());
    }
    if n < n_whole {
        return format!("not comparable: the first {n} of {n_whole} questions");
    }
    if let Some(published) = task.published_test_len().filter(|published| *published != n) {
        return format!("not comparable: {n} of the published set's {published} questions");
    }
    if let Task::Own(_) = task {
        return "not comparable: a set of your own".into();
    }
    if n_refused > 0 {
        return format!("not comparable: {n_refused} questions were refused");
    }
    if let Some(reason) = of_another_kind(config.protocol, config.strategy.name()) {
        return reason;
    }
    if config.system.is_some() || config.chat_template {
        let what = if config.system.is_some() { "a system prompt of your own" } else { "the model's chat template" };
        return format!("not comparable with published figures, which are without it: {what}");
    }
    if task.shots_from_test() && config.shots > 0 {
        return "not comparable: its examples are test questions, as in lm-evaluation-harness".into();
    }
    COMPARABLE.into()
}

impl EvalResults {
    /// Adds the averages.
    pub fn new(
        model: &EngineIdentity,
        config: &EvalConfig,
        encoders: Encoders,
        told: Option<NextTold>,
        tasks: Vec<TaskResult>,
    ) -> Self {
        let settings = settings(config, encoders, told);
        let mut results = Self { model: model.clone(), settings, tasks, groups: Vec::new(), expected: Vec::new() };
        results.regroup(&config.expect);
        results
    }

    /// Averages and expectations of the tasks as they are now.
    pub(crate) fn regroup(&mut self, expect: &[(String, f64, f64)]) {
        let known: Vec<(Task, &Counts)> = self.tasks.iter().filter_map(|r| Some((r.task()?, &r.counts))).collect();
        let groups = groups(&known);
        let comparability: Vec<String> = groups.iter().map(|group| group_comparability(group, &self.tasks)).collect();
        let paired = groups.into_iter().zip(comparability);
        self.groups = paired.map(|(group, comparability)| GroupResult { group, comparability }).collect();
        self.expected = expect::check(expect, &self.tasks, self.groups.iter().map(|one| &one.group));
    }

    /// The table for the terminal.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{:<36} {:>6} {:>8} {:>8} {:>16} {:>9}  {}\n",
            "task", "n", "acc %", "stderr", "95 % interval", "unparsed", ""
        );
        for result in &self.tasks {
            let counts = &result.counts;
            let n_unparsed = counts.n_unparsed.to_string();
            text += &line(&result.task, counts.n, counts.acc, counts.acc.interval, &n_unparsed, &result.comparability);
            if let Some(warning) = &result.warning {
                text += &format!("{:<36} {warning}\n", "");
            }
            for part in result.apart() {
                text += &line("", part.n, part.acc, Some(part.acc.interval_of(part.n)), "", &part.part);
            }
            if let Some(calibration) = &result.calibration {
                let (ece, brier) = (100.0 * calibration.ece, calibration.brier);
                text += &format!("{:<36} calibration: ECE {ece:.2} points, Brier {brier:.3}\n", "");
            }
            if let Some(words) = counts.sample_words() {
                text += &format!("{:<36} {words}\n", "");
            }
            if let Some(partial) = counts.partial_words() {
                text += &format!("{:<36} {partial}\n", "");
            }
            if let Some(refused) = result.counts.refused_words() {
                text += &format!("{:<36} {refused}\n", "");
            }
            if let Some(noise) = &result.noise_floor {
                text += &format!("{:<36} {}\n", "", noise.words());
            }
        }
        for result in &self.groups {
            let (group, interval) = (&result.group, result.group.acc.normal_interval());
            text += &line(&group.name, group.n, group.acc, interval, "", &result.comparability);
        }
        if self.groups.iter().any(|one| one.group.acc.normal_interval().is_some()) {
            text += &format!("{:<36} intervals of averages: 1.96 standard errors to each side (normal)\n", "");
        }
        if let Some(words) = told_words(self.settings.get("told")) {
            text += &format!("next-letter: {words}\n");
        }
        self.expected.iter().for_each(|one| text += &format!("{}\n", one.words()));
        text
    }
}

fn line(name: &str, n: usize, acc: Estimate, interval: Option<Interval>, unparsed: &str, note: &str) -> String {
    let note = if note == COMPARABLE { "" } else { note };
    let interval = interval.map_or_else(String::new, |one| one.percent(2));
    let (value, stderr) = (acc.value * 100.0, acc.stderr * 100.0);
    format!("{name:<36} {n:>6} {value:>8.2} {stderr:>8.2} {interval:>16} {unparsed:>9}  {note}\n")
}

/// The reason of its tasks where all have one; else of how many and the first of them with its reason.
fn group_comparability(group: &Group, tasks: &[TaskResult]) -> String {
    let belongs = |result: &TaskResult| {
        group.tasks.contains(&result.task)
            || (result.task.starts_with("mmlu_") && group.tasks.iter().any(|name| name.starts_with("mmlu_medical")))
    };
    let of_group: Vec<&TaskResult> = tasks.iter().filter(|result| belongs(result)).collect();
    let others: Vec<&TaskResult> =
        of_group.iter().filter(|result| result.comparability != COMPARABLE).copied().collect();
    let Some(first) = others.first() else { return COMPARABLE.into() };
    let is_shared = others.iter().all(|result| result.comparability == first.comparability);
    if is_shared && others.len() == of_group.len() {
        return first.comparability.clone();
    }
    let (n, n_all) = (others.len(), of_group.len());
    let more = if n == 1 || is_shared { "" } else { ", and others" };
    let reason = first.comparability.strip_prefix("not comparable: ").unwrap_or(&first.comparability);
    let are = if n == 1 { "is" } else { "are" };
    format!("not comparable: {n} of its {n_all} tasks {are} not ({}: {reason}{more})", first.task)
}

/// How the letters of `next-letter` were told, from the settings of its results, in words; `None` for other strategies.
pub fn told_words(told: Option<&Value>) -> Option<&'static str> {
    Some(match NextTold::deserialize(told?).ok()? {
        NextTold::Scored => "each letter scored",
        NextTold::Completions => "letters among the most probable next tokens that /v1/completions names",
        NextTold::Chat => {
            "letters among the most probable next tokens that /v1/chat/completions names (server template)"
        }
    })
}

pub(crate) fn settings(config: &EvalConfig, encoders: Encoders, told: Option<NextTold>) -> Map<String, Value> {
    let mut settings = Map::new();
    settings.insert("protocol".into(), json!(config.protocol));
    settings.insert("protocol_version".into(), json!(config.protocol.version()));
    settings.insert("strategy".into(), json!(config.strategy));
    settings.insert("shots".into(), json!(config.shots));
    settings.insert("limit".into(), json!(config.limit));
    settings.insert("seed".into(), json!(config.seed));
    settings.insert("chat_template".into(), json!(config.chat_template));
    if let Some(system) = &config.system {
        settings.insert("system".into(), json!(system));
    }
    if let Some(told) = told {
        settings.insert("told".into(), json!(told));
    }
    if !config.strategy.weighs_options() {
        if config.retry != crate::Retry::None {
            settings.insert("retry".into(), json!(config.retry));
        }
        settings.insert("n_samples".into(), json!(config.n_samples));
        settings.insert("shuffle".into(), json!(config.shuffle));
        settings.insert(
            "sampling".into(),
            json!({ "max_new_tokens": config.sampling.max_new_tokens,
            "temperature": config.sampling.temperature, "top_k": config.sampling.top_k, "top_p": config.sampling.top_p,
            "min_p": config.sampling.min_p, "repetition_penalty": config.sampling.repetition_penalty,
            "stop": config.sampling.stop, "stop_ids": config.sampling.stop_ids }),
        );
    }
    if let Some(classifier) = encoders.classifier {
        let identity = classifier.identity();
        settings.insert("specialties_by".into(), json!({"name": identity.name, "weights": identity.weights}));
    }
    if config.strategy == crate::Strategy::Medprompt {
        settings.insert("medprompt".into(), json!(config.medprompt));
        let examples = config.examples.as_deref().map(|path| worked::file_digest(path).unwrap_or_default());
        settings.insert("examples".into(), json!(examples.unwrap_or_else(|| "self-generated".to_owned())));
        settings.insert("embedder".into(), json!(encoders.embedder.map(Embedder::name)));
        if let Some(reranker) = encoders.reranker {
            settings.insert("reranker".into(), json!(reranker.name()));
        }
    }
    settings
}

/// Digest of everything that decides the answers but the questions, which the log holds by their digests: model and settings.
pub(crate) fn fingerprint(
    model: &EngineIdentity,
    config: &EvalConfig,
    encoders: Encoders,
    told: Option<NextTold>,
) -> Result<String> {
    let mut settings = settings(config, encoders, told);
    // More questions change no answer.
    settings.remove("limit");
    let mut hasher = digest::Hasher::default();
    hasher.field(json!(model).to_string().as_bytes());
    hasher.field(json!(settings).to_string().as_bytes());
    hasher.field(config.split.name().as_bytes());
    if let Some(path) = &config.examples {
        hasher.field(worked::file_digest(path)?.as_bytes());
    }
    Ok(hasher.hex())
}

/// One JSON line a sample.
pub(crate) fn write_samples<T: Serialize>(path: &Path, samples: &[T]) -> Result<()> {
    atomic::write_with(path, |out| {
        for sample in samples {
            let line = serde_json::to_string(sample)
                .map_err(|error| aloe_record::Error::Json { path: path.into(), reason: error.to_string() })?;
            writeln!(out, "{line}").map_err(aloe_record::Error::io("write", path))?;
        }
        Ok::<(), crate::Error>(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Strategy;
    use aloe_task::{Protocol, Subject};

    fn config(split: Split, limit: Option<usize>) -> EvalConfig {
        let mut config = EvalConfig::new(vec![], "data".into(), Protocol::LmEval, Strategy::Loglikelihood);
        config.split = split;
        config.limit = limit;
        config
    }

    fn samples(n: usize) -> Vec<Sample> {
        let row = r#"{"task": "", "id": "", "index": 0, "subject": "", "n_choices": 4, "key": 0, "predicted": 0,
                      "correct": true, "correct_norm": true, "prompt_sha256": ""}"#;
        vec![serde_json::from_str(row).unwrap(); n]
    }

    fn result(task: Task, n: usize, n_whole: usize, split: Split) -> TaskResult {
        TaskResult::of(task, &samples(n), n_whole, &config(split, None), Map::new())
    }

    #[test]
    fn a_model_that_names_one_option_whatever_is_asked_is_called_that() {
        let counts = |chosen: [usize; 4]| Counts {
            chosen_positions: chosen.to_vec(),
            key_positions: vec![10, 20, 30, 40],
            ..Counts::of(&samples(100))
        };
        let said = one_option(&counts([0, 0, 5, 95])).unwrap();
        assert_eq!(said, "95 % of the answers are option D, which is right in 40.0 %: no evidence of knowledge");
        assert_eq!(one_option(&counts([40, 20, 20, 20])), None);
        assert_eq!(one_option(&counts([19, 0, 0, 0])), None, "too few to tell");
    }

    /// The published sizes: PubMedQA 500, MMLU anatomy 135.
    #[test]
    fn a_limit_a_smaller_file_another_split_and_starter_questions_are_not_comparable() {
        let check = |result: TaskResult, words: &str| {
            assert!(result.comparability.contains(words), "{}", result.comparability);
            assert_eq!(result.comparability == COMPARABLE, words == COMPARABLE);
        };
        check(result(Task::Pubmedqa, 500, 500, Split::Test), COMPARABLE);
        check(result(Task::Pubmedqa, 20, 500, Split::Test), "not comparable: the first 20 of 500 questions");
        check(result(Task::StarterMcqa, 10, 60, Split::Test), "not comparable: the first 10 of 60 starter questions");
        check(
            result(Task::Pubmedqa, 450, 450, Split::Test),
            "not comparable: 450 of the published set's 500 questions",
        );
        check(result(Task::Pubmedqa, 500, 500, Split::Validation), "not comparable: the validation split");
        check(result(Task::StarterMcqa, 60, 60, Split::Test), "not comparable: starter questions");
    }

    fn identity() -> EngineIdentity {
        let nothing = String::new;
        EngineIdentity { name: "m".into(), weights: nothing(), text: nothing(), dtype: "f32".into(), path: nothing() }
    }

    /// By hand: 20 of 20 right is 100 % +- 0, and Wilson's interval 20 / 23.841459 = 83.89 % to 100 %.
    #[test]
    fn the_table_and_the_words_hold_the_interval_beside_the_standard_error() {
        let one = result(Task::StarterMcqa, 20, 20, Split::Test);
        assert_eq!(one.words(), "starter_mcqa 100.0 % +- 0.0 (95 %: 83.9 to 100.0), nearly all answers one option");
        let config = config(Split::Test, None);
        let table = EvalResults::new(&identity(), &config, Encoders::default(), None, vec![one]).table();
        assert!(table.contains("100.00     0.00  83.89 to 100.00         0"), "{table}");
    }

    /// By hand: 0 of 10 ends at 27.75 % (stats.rs), two of two start at 2 / (2 + 3.841459) = 34.24 %; 50 -+ 1.959964 * 1 is 48.04 to
    /// 51.96.
    #[test]
    fn clean_and_dirty_questions_and_averages_have_intervals_in_the_table() {
        let mut rows = samples(12);
        rows[..2].iter_mut().for_each(|row| row.trained = Some("data/train.jsonl:7".into()));
        rows[2..].iter_mut().for_each(|row| row.correct = false);
        let mut one = result(Task::Medqa4, 12, 12, Split::Test);
        one.by_training = parts::by_training(&rows, true);
        let mut results =
            EvalResults::new(&identity(), &config(Split::Test, None), Encoders::default(), None, vec![one]);
        let average = |stderr: f64| GroupResult {
            group: Group {
                name: "multimedqa (size-weighted)".into(),
                acc: Estimate { value: 0.5, stderr, interval: None },
                n: 7045,
                tasks: vec![],
            },
            comparability: COMPARABLE.into(),
        };
        results.groups = vec![average(0.01)];
        let table = results.table();
        for line in [
            "           10     0.00     0.00    0.00 to 27.75            clean: no training row holds the question\n",
            "            2   100.00     0.00  34.24 to 100.00            dirty: a training row holds it\n",
            "multimedqa (size-weighted)             7045    50.00     1.00   48.04 to 51.96            \n",
            " intervals of averages: 1.96 standard errors to each side (normal)\n",
        ] {
            assert!(table.contains(line), "{line}{table}");
        }
        results.groups = vec![average(0.0)];
        assert!(!results.table().contains("intervals of averages"), "{}", results.table());
    }

    /// One of the six MMLU subjects is cut short: their mean, and every average over it, says so; no other does.
    #[test]
    fn an_average_over_a_task_that_is_cut_short_is_not_comparable() {
        let mut tasks: Vec<TaskResult> = Subject::ALL
            .map(Task::Mmlu)
            .into_iter()
            .chain([Task::Medqa4, Task::Medmcqa, Task::Pubmedqa, Task::CareqaEn])
            .map(|task| {
                let n = task.published_test_len().unwrap();
                result(task, n, n, Split::Test)
            })
            .collect();
        let groups = |tasks: &[TaskResult]| {
            let results =
                EvalResults::new(&identity(), &config(Split::Test, None), Encoders::default(), None, tasks.to_vec());
            results.groups.into_iter().map(|one| (one.group.name, one.comparability)).collect::<Vec<_>>()
        };
        let names = ["mmlu_medical (macro mean)", "multimedqa (size-weighted)", "arithmetic mean (all sets)"];
        let whole = groups(&tasks);
        assert_eq!(whole.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>()[..3], names);
        assert_eq!(whole[3].0, "arithmetic mean (without PubMedQA)");
        assert!(whole.iter().all(|(_, comparability)| comparability == COMPARABLE), "{whole:?}");
        tasks[0] = result(Task::Mmlu(Subject::ALL[0]), 5, 135, Split::Test);
        let found = groups(&tasks);
        let cut = "(mmlu_anatomy: the first 5 of 135 questions)";
        assert_eq!(found[0].1, format!("not comparable: 1 of its 6 tasks is not {cut}"));
        assert_eq!(found[1].1, format!("not comparable: 1 of its 9 tasks is not {cut}"));
        for (result, n) in tasks.iter_mut().skip(1).zip(1..=5) {
            result.comparability = format!("not comparable: the first {n} of 99 questions");
        }
        let more = "(mmlu_anatomy: the first 5 of 135 questions, and others)";
        assert_eq!(groups(&tasks)[0].1, format!("not comparable: 6 of its 6 tasks are not {more}"));
        let wording = "not comparable with published figures: cot in the wording of aloe";
        tasks.iter_mut().for_each(|result| result.comparability = wording.to_owned());
        assert!(groups(&tasks).iter().all(|(_, words)| words == wording), "{:?}", groups(&tasks));
        tasks.remove(0);
        assert!(groups(&tasks).is_empty(), "an average needs all its tasks: {:?}", groups(&tasks));
    }
}
