//! A run as a reader looks at it: finished, from `results.json` and `samples.jsonl`; or still growing, from the hidden log of answers.

use crate::asked::{self, AskedQuestion};
use crate::metrics::Counts;
use crate::report::EvalResults;
use crate::{Error, Result, Sample, answers};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

/// A run, read.
pub struct Run {
    /// What it is called: its folder's name.
    pub name: String,
    /// Model and settings as (what, value); of a run that is not finished, what was asked for.
    pub facts: Vec<(String, String)>,
    /// The strategy's name, where known.
    pub strategy: Option<String>,
    /// One entry a task.
    pub tasks: Vec<TaskRow>,
    /// Averages over tasks: name, questions, accuracy with its standard error, comparability.
    pub groups: Vec<(String, usize, crate::metrics::Estimate, String)>,
    /// The samples, without ids of tokens.
    pub samples: Vec<Sample>,
    /// Questions by task and id; empty for runs that did not keep them.
    pub questions: HashMap<(String, String), AskedQuestion>,
    /// Of a run that is not finished: how many questions there are in all, where known.
    pub unfinished: Option<Option<usize>>,
}

/// A task's line in the table.
pub struct TaskRow {
    /// The task's name.
    pub task: String,
    /// What was counted.
    pub counts: Counts,
    /// Whether the figure may be set beside published ones, in words.
    pub comparability: String,
    /// What the reader must know before the figure.
    pub warnings: Vec<String>,
}

impl Run {
    /// Reads a folder.
    pub fn read(folder: &Path, name: &str) -> Result<Self> {
        let (results, log) = (folder.join("results.json"), folder.join(".answers.log"));
        let questions: Vec<AskedQuestion> = match folder.join(asked::FILE) {
            path if path.exists() => lines(&path, |one| one)?,
            _ => Vec::new(),
        };
        if results.exists() {
            let results: EvalResults = aloe_record::atomic::read_json(&results)?;
            let samples = lines(&folder.join("samples.jsonl"), light)?;
            return Ok(Self::finished(name, results, samples, questions));
        }
        if log.exists() {
            let facts = asked_for(folder);
            let strategy = facts.iter().find(|(key, _)| key == "strategy").map(|(_, value)| value.clone());
            return Ok(Self { facts, strategy, ..Self::growing(name, answers::read(&log)?, questions) });
        }
        let reason =
            format!("{} holds no results.json of an evaluation and no answers of one that runs", folder.display());
        Err(Error::Config(reason))
    }

    fn finished(name: &str, results: EvalResults, samples: Vec<Sample>, questions: Vec<AskedQuestion>) -> Self {
        let of_task = |result: crate::report::TaskResult| {
            let warnings = [
                result.warning,
                result.counts.refused_words(),
                result.noise_floor.as_ref().map(crate::noise::NoiseFloor::words),
                (!result.notes.is_empty()).then(|| flat("", &Value::Object(result.notes)).join(", ")),
            ];
            TaskRow {
                task: result.task,
                counts: result.counts,
                comparability: result.comparability,
                warnings: warnings.into_iter().flatten().collect(),
            }
        };
        let groups =
            results.groups.into_iter().map(|one| (one.group.name, one.group.n, one.group.acc, one.comparability));
        Self {
            name: name.to_owned(),
            facts: facts(&results.model, &results.settings),
            strategy: results.settings.get("strategy").and_then(Value::as_str).map(str::to_owned),
            groups: groups.collect(),
            tasks: results.tasks.into_iter().map(of_task).collect(),
            samples,
            questions: by_id(questions),
            unfinished: None,
        }
    }

    /// Answers come in any order; they are put into that of the questions.
    fn growing(name: &str, answered: Vec<Sample>, questions: Vec<AskedQuestion>) -> Self {
        let mut tasks: Vec<String> = Vec::new();
        let mut places: HashMap<(usize, usize), Sample> = HashMap::new();
        for sample in answered {
            let task = tasks.iter().position(|one| *one == sample.task).unwrap_or_else(|| {
                tasks.push(sample.task.clone());
                tasks.len() - 1
            });
            places.insert((task, sample.index), light(sample));
        }
        let mut samples: Vec<((usize, usize), Sample)> = places.into_iter().collect();
        samples.sort_by_key(|(place, _)| *place);
        let samples: Vec<Sample> = samples.into_iter().map(|(_, sample)| sample).collect();
        let row = |task: String| {
            let of_task: Vec<Sample> = samples.iter().filter(|sample| sample.task == task).cloned().collect();
            let comparability = "not comparable: the run is not finished".into();
            TaskRow { task, counts: Counts::of(&of_task), comparability, warnings: Vec::new() }
        };
        Self {
            name: name.to_owned(),
            facts: Vec::new(),
            strategy: None,
            groups: Vec::new(),
            tasks: tasks.into_iter().map(row).collect(),
            unfinished: Some((!questions.is_empty()).then_some(questions.len())),
            questions: by_id(questions),
            samples,
        }
    }
}

/// JSON lines, each reduced as it is read: a long run's ids would fill the memory.
fn lines<T: DeserializeOwned>(path: &Path, reduce: fn(T) -> T) -> Result<Vec<T>> {
    let file = File::open(path).map_err(aloe_record::Error::io("read", path))?;
    let read = |(at, line): (usize, std::io::Result<String>)| {
        let line = line.map_err(aloe_record::Error::io("read", path))?;
        let wrong = |error: serde_json::Error| {
            let reason = format!("line {}: {error}", at + 1);
            aloe_record::Error::Json { path: path.to_path_buf(), reason }
        };
        Ok(reduce(serde_json::from_str(&line).map_err(wrong)?))
    };
    BufReader::new(file).lines().enumerate().map(read).collect()
}

/// A sample without what no reader looks at: ids of tokens, and log-probabilities by token.
fn light(mut sample: Sample) -> Sample {
    sample.prompt_ids = Vec::new();
    for choice in &mut sample.choices {
        (choice.ids, choice.logps) = (Vec::new(), Vec::new());
    }
    for vote in &mut sample.votes {
        (vote.ids, vote.prompt_ids) = (None, Vec::new());
    }
    sample
}

fn by_id(questions: Vec<AskedQuestion>) -> HashMap<(String, String), AskedQuestion> {
    questions.into_iter().map(|question| ((question.task.clone(), question.id.clone()), question)).collect()
}

/// The settings that a run under way was started with, where the command left them beside its answers.
fn asked_for(folder: &Path) -> Vec<(String, String)> {
    let decides: Value = aloe_record::atomic::read_json(&folder.join(".decides.json")).unwrap_or_default();
    let config = decides.get("config").and_then(Value::as_object);
    let is_set = |(_, value): &(&String, &Value)| !value.is_null();
    config.into_iter().flatten().filter(is_set).map(|(key, value)| (key.clone(), plain(value))).collect()
}

fn facts(model: &aloe_engine::EngineIdentity, settings: &Map<String, Value>) -> Vec<(String, String)> {
    let of_model = [
        ("model", &model.name),
        ("weights", &model.weights),
        ("tokenizer and template", &model.text),
        ("number format", &model.dtype),
        ("computed by", &model.path),
    ];
    let mut facts: Vec<(String, String)> =
        of_model.into_iter().map(|(what, value)| (what.to_owned(), value.clone())).collect();
    for (key, value) in settings {
        let inner: Vec<(String, String)> = match value {
            Value::Object(inner) => inner.iter().map(|(name, one)| (format!("{key}.{name}"), plain(one))).collect(),
            value => vec![(key.clone(), plain(value))],
        };
        facts.extend(inner);
    }
    facts
}

/// A strategy's notes as `key value` texts.
fn flat(prefix: &str, value: &Value) -> Vec<String> {
    match value {
        Value::Object(inner) => inner.iter().flat_map(|(key, one)| flat(&format!("{prefix}{key} "), one)).collect(),
        value => vec![format!("{prefix}{}", plain(value))],
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "none".into(),
        value => value.to_string(),
    }
}
