//! MedQA (USMLE), four and five options (Jin et al. 2020).
//!
//! Layouts: GBaker/MedQA-USMLE-4-options and the original lines (`question, options{A..}, answer, answer_idx`),
//! bigbio's source (`options[{key, value}]`), GBaker's `-hf` (`sent1, sent2, ending0..3, label`), and MMedBench's lines, which have a
//! `rationale` beside the question. `meta_info`, which says of which step of the exam a question is, and `metamap_phrases` may be missing.

use crate::rows::{self, Row};
use crate::{Error, Question, Result, Split, Task};
use serde_json::Value;
use std::path::Path;

/// How many options the set has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Options {
    /// A to D.
    Four,
    /// A to E.
    Five,
}

impl Options {
    fn task(self) -> (Task, usize) {
        match self {
            Self::Four => (Task::Medqa4, 4),
            Self::Five => (Task::Medqa5, 5),
        }
    }
}

/// The file of a split, below the data folder.
pub fn file(data_dir: &Path, split: Split, options: Options) -> Result<String> {
    let (task, _) = options.task();
    let names: &[&str] = match (options, split) {
        (_, Split::Dev) => return Err(task.no_split(split, "examples come from the train split")),
        (Options::Four, Split::Test) => &["phrases_no_exclude_test.jsonl", "test_4_options.jsonl", "test.json"],
        (Options::Four, Split::Validation) => &["phrases_no_exclude_dev.jsonl", "dev_4_options.jsonl", "dev.json"],
        (Options::Four, Split::Train) => {
            &["phrases_no_exclude_train.jsonl", "train_part_4_options.jsonl", "train.json"]
        }
        (Options::Five, Split::Test) => &["US_test.jsonl", "test_5_options.jsonl"],
        (Options::Five, Split::Validation) => &["US_dev.jsonl", "dev_5_options.jsonl"],
        (Options::Five, Split::Train) => &["US_train.jsonl", "train_part_5_options.jsonl"],
    };
    let mut candidates: Vec<String> = names.iter().map(|name| format!("medqa/{name}")).collect();
    if options == Options::Four {
        candidates.push(format!("medqa/data/{}-00000-of-00001.parquet", split.name()));
    }
    task.find(data_dir, split, &candidates)
}

/// Loads a split from its file.
pub fn load(data_dir: &Path, split: Split, options: Options, file: &str) -> Result<Vec<Question>> {
    let (task, n_choices) = options.task();
    let rows = rows::read(data_dir, file)?;
    let prefix = format!("{}_{}", task.name(), split.name());
    rows.iter().enumerate().map(|(index, row)| question(row, n_choices, format!("{prefix}_{index}"))).collect()
}

/// One row with `n_choices` options.
pub fn question(row: &Row, n_choices: usize, id: String) -> Result<Question> {
    let (stem, choices, key) = if row.has("sent1") { hf_row(row)? } else { lettered_row(row)? };
    if choices.len() != n_choices {
        return Err(row.refuse(format!("expected {n_choices} options, found {}", choices.len())));
    }
    let subject = row.optional_text("meta_info")?.unwrap_or_default();
    let explanation = explanation_column(row).and_then(|column| row.text(column).ok());
    Question { id, stem, context: None, choices, key, subject, explanation, source: row.at.clone() }.checked()
}

/// The column with the reference rationale, where the row has one: MMedBench's `rationale`, which the reference's chains of thought were
/// written from, or `explanation` or `exp` of other copies of the set.
pub fn explanation_column(row: &Row) -> Option<&'static str> {
    let says =
        |column: &&str| row.columns.get(*column).and_then(Value::as_str).is_some_and(|text| !text.trim().is_empty());
    ["rationale", "explanation", "exp"].into_iter().find(says)
}

fn hf_row(row: &Row) -> Result<(String, Vec<String>, usize)> {
    let second = row.optional_text("sent2")?.unwrap_or_default();
    if !second.is_empty() {
        return Err(row.refuse("column `sent2` is not empty; this is not MedQA"));
    }
    let choices = (0..4).map(|i| row.text(&format!("ending{i}"))).collect::<Result<Vec<_>>>()?;
    let label = row.integer("label")?;
    let key = usize::try_from(label).map_err(|_| Error::Key {
        at: row.at.clone(),
        key: rows::shown_number(label),
        n_choices: choices.len(),
    })?;
    Ok((row.text("sent1")?, choices, key))
}

fn lettered_row(row: &Row) -> Result<(String, Vec<String>, usize)> {
    let options = lettered_options(row)?;
    let answer = row.text("answer_idx")?;
    let key = options.iter().position(|(letter, _)| *letter == answer).ok_or_else(|| Error::Key {
        at: row.at.clone(),
        key: rows::shown_key(&answer),
        n_choices: options.len(),
    })?;
    if let Some(text) = row.optional_text("answer")?
        && text != options[key].1
    {
        return Err(row.refuse(format!("columns `answer` and `answer_idx` disagree: option {answer} is another text")));
    }
    Ok((row.text("question")?, options.into_iter().map(|(_, text)| text).collect(), key))
}

/// Options in letter order, from `{A: ..}` or `[{key, value}]`.
fn lettered_options(row: &Row) -> Result<Vec<(String, String)>> {
    let found = row.columns.get("options");
    let refuse = || row.unexpected("options", "options by letter", found);
    let pairs: Option<Vec<(String, String)>> = match found {
        Some(Value::Object(map)) => {
            map.iter().map(|(letter, text)| Some((letter.clone(), text.as_str()?.to_string()))).collect()
        }
        Some(Value::Array(list)) => list
            .iter()
            .map(|item| Some((item.get("key")?.as_str()?.to_string(), item.get("value")?.as_str()?.to_string())))
            .collect(),
        _ => None,
    };
    let mut pairs = pairs.ok_or_else(refuse)?;
    pairs.sort();
    let in_sequence = pairs.iter().enumerate().all(|(i, (key, _))| *key == crate::wording::letter(i).to_string());
    if in_sequence { Ok(pairs) } else { Err(refuse()) }
}
