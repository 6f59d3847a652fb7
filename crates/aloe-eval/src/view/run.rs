//! A run as a reader looks at it: finished, from `results.json` and `samples.jsonl`; or still growing, from the hidden log of answers.

use super::index::{Index, Rows};
use super::open::{self, Light, OpenRun};
use super::parts::Parts;
use super::texts;
use crate::asked;
use crate::metrics::Counts;
use crate::open::paired::is_open;
use crate::open::report::OpenResults;
use crate::report::{EvalResults, one_option};
use crate::{Error, Result, Sample};
use aloe_report::Texts;
use serde_json::{Map, Value};
use std::cell::OnceCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// From this size of a run's files on, an index of them is kept: shorter ones open as fast without.
const KEPT_FROM_BYTES: usize = 1 << 22;

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
    /// The samples, without ids of tokens and without texts.
    pub samples: Vec<Sample>,
    /// Their texts, and which row of them belongs to each sample.
    pub(super) texts: Texts,
    pub(super) rows: Vec<usize>,
    /// The questions' tasks and ids, and their texts; none for runs that did not keep them.
    pub(super) questions: Option<Rows<(String, String)>>,
    /// Of a run of open answers: what is its own.
    pub(super) open: Option<OpenRun>,
    /// Of a run that is not finished: how many questions there are in all, where known.
    pub unfinished: Option<Option<usize>>,
    /// Why the index of a long run could not be kept.
    pub unkept: Option<String>,
    places: OnceCell<HashMap<(String, String), usize>>,
}

/// Where the index of the run in `folder`, finished or its partial one, is kept: beside it, hidden, since a stage's record vouches for all
/// that lies within.
pub fn index_path(folder: &Path) -> PathBuf {
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let finished = name.strip_prefix('.').and_then(|name| name.strip_suffix(".partial")).unwrap_or(&name);
    folder.with_file_name(format!(".{finished}.index"))
}

/// Keeps the index of a long run in `folder` that has just finished, so that its first opening is as fast as the next. A run is none the
/// worse without one: that is told, and no error.
pub fn keep_index(folder: &Path) {
    let len = |name: &str| folder.join(name).metadata().map_or(0, |file| file.len());
    if len("samples.jsonl") + len(asked::FILE) < KEPT_FROM_BYTES as u64 {
        return;
    }
    let path = index_path(folder);
    let unkept = match Run::read(folder, "", &path) {
        Ok(run) => run.unkept,
        Err(error) => Some(error.to_string()),
    };
    if let Some(reason) = unkept {
        aloe_record::tell(&format!("warning: {} is not kept: {reason}", path.display()));
    }
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
    /// Its accuracy in parts.
    pub parts: Parts,
}

impl Run {
    /// Reads a folder. A long run's index is taken from the file `index`, and kept there.
    pub fn read(folder: &Path, name: &str, index: &Path) -> Result<Self> {
        let (results, log) = (folder.join("results.json"), folder.join(".answers.log"));
        let (path, mut kept) = (index, Index::open(index));
        let questions = match folder.join(asked::FILE) {
            questions if questions.exists() => Some(kept.rows(&questions, asked::FILE, &texts::QUESTIONS)?),
            _ => None,
        };
        let mut run = if results.exists() && is_open(folder)? {
            let results: OpenResults = aloe_record::atomic::read_json(&results)?;
            let file = folder.join("samples.jsonl");
            let questions = kept.rows(&file, "samples.jsonl, questions", &open::QUESTIONS)?;
            Self::judged(name, results, kept.rows(&file, "samples.jsonl", &open::SAMPLES)?, questions)
        } else if results.exists() {
            let results: EvalResults = aloe_record::atomic::read_json(&results)?;
            let samples = kept.rows(&folder.join("samples.jsonl"), "samples.jsonl", &texts::SAMPLES)?;
            Self::finished(name, results, samples, questions)
        } else if log.exists() {
            let facts = asked_for(folder);
            let strategy = facts.iter().find(|(key, _)| key == "strategy").map(|(_, value)| value.clone());
            // Every stage that may ask judges says how it words them.
            let is_open = facts.iter().any(|(key, _)| key == "judge_prompt_version");
            let grown = if is_open {
                let questions = kept.rows(&log, ".answers.log, questions", &open::ASKED)?;
                let (answered, marks) = apart(kept.rows(&log, ".answers.log", &open::ANSWERS)?);
                Self::growing(name, answered, Some(questions), Some(OpenRun { results: None, marks }))
            } else {
                Self::growing(name, kept.rows(&log, ".answers.log", &texts::ANSWERS)?, questions, None)
            };
            Self { facts, strategy, ..grown }
        } else {
            let reason =
                format!("{} holds no results.json of an evaluation and no answers of one that runs", folder.display());
            return Err(Error::Config(reason));
        };
        if kept.n_bytes() >= KEPT_FROM_BYTES {
            run.unkept = kept.write(path).err().map(|error| error.to_string());
        }
        Ok(run)
    }

    /// The place of a question's sample, which in most runs over the same questions is `near`.
    pub(super) fn place_of(&self, task: &str, id: &str, near: usize) -> Option<usize> {
        if self.samples.get(near).is_some_and(|one| one.task == task && one.id == id) {
            return Some(near);
        }
        let places = self.places.get_or_init(|| {
            let key = |(at, one): (usize, &Sample)| ((one.task.clone(), one.id.clone()), at);
            self.samples.iter().enumerate().map(key).collect()
        });
        places.get(&(task.to_owned(), id.to_owned())).copied()
    }

    fn finished(
        name: &str,
        results: EvalResults,
        samples: Rows<Sample>,
        questions: Option<Rows<(String, String)>>,
    ) -> Self {
        let of_task = |result: crate::report::TaskResult| {
            let parts = Parts::of(&result);
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
                parts,
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
            rows: (0..samples.rows.len()).collect(),
            samples: samples.rows,
            texts: samples.texts,
            questions,
            open: None,
            unfinished: None,
            unkept: None,
            places: OnceCell::new(),
        }
    }

    /// A finished run of open answers.
    fn judged(name: &str, results: OpenResults, samples: Rows<Light>, questions: Rows<(String, String)>) -> Self {
        let (samples, marks) = apart(samples);
        let mut facts = facts(&results.model, &results.settings);
        facts.extend(open::judge_facts(&results));
        Self {
            name: name.to_owned(),
            facts,
            strategy: results.settings.get("strategy").and_then(Value::as_str).map(str::to_owned),
            groups: Vec::new(),
            tasks: Vec::new(),
            rows: (0..samples.rows.len()).collect(),
            samples: samples.rows,
            texts: samples.texts,
            questions: Some(questions),
            open: Some(OpenRun { results: Some(results), marks }),
            unfinished: None,
            unkept: None,
            places: OnceCell::new(),
        }
    }

    /// Answers come in any order; they are put into that of the questions.
    /// Of open ones no file says yet how many there are in all, and the judges speak when all are there.
    fn growing(
        name: &str,
        answered: Rows<Sample>,
        questions: Option<Rows<(String, String)>>,
        open: Option<OpenRun>,
    ) -> Self {
        let mut tasks: Vec<String> = Vec::new();
        let mut places: HashMap<(usize, usize), (usize, Sample)> = HashMap::new();
        for (row, sample) in answered.rows.into_iter().enumerate() {
            let task = tasks.iter().position(|one| *one == sample.task).unwrap_or_else(|| {
                tasks.push(sample.task.clone());
                tasks.len() - 1
            });
            places.insert((task, sample.index), (row, sample));
        }
        let mut placed: Vec<((usize, usize), (usize, Sample))> = places.into_iter().collect();
        placed.sort_by_key(|(place, _)| *place);
        let (rows, samples): (Vec<usize>, Vec<Sample>) = placed.into_iter().map(|(_, found)| found).unzip();
        let row = |task: String| {
            let of_task: Vec<Sample> = samples.iter().filter(|sample| sample.task == task).cloned().collect();
            let comparability = "not comparable: the run is not finished".into();
            let counts = Counts::of(&of_task);
            let warnings = one_option(&counts).into_iter().collect();
            TaskRow { task, counts, comparability, warnings, parts: Parts::none() }
        };
        Self {
            name: name.to_owned(),
            facts: Vec::new(),
            strategy: None,
            groups: Vec::new(),
            tasks: if open.is_some() { Vec::new() } else { tasks.into_iter().map(row).collect() },
            unfinished: Some(questions.as_ref().filter(|_| open.is_none()).map(|questions| questions.rows.len())),
            samples,
            rows,
            texts: answered.texts,
            questions,
            open,
            unkept: None,
            places: OnceCell::new(),
        }
    }
}

/// Answers as paired tests take them, and the judges' marks on each line.
fn apart(rows: Rows<Light>) -> (Rows<Sample>, Vec<open::Marks>) {
    let (samples, marks) = rows.rows.into_iter().map(|one| (one.sample, one.marks)).unzip();
    (Rows { rows: samples, texts: rows.texts }, marks)
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
