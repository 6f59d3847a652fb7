//! HEAD-QA, English and Spanish (Vilares and Gomez-Rodriguez 2019): four or five options a question.
//!
//! Columns `name, year, category, qid, qtext, ra (aid of the right answer), image, answers[{aid, atext}]`.

use crate::rows::{self, Row};
use crate::{Error, Question, Result, Split, Task};
use serde_json::Value;
use std::path::Path;

/// The file of a split, below the data folder.
pub fn file(data_dir: &Path, split: Split, task: Task) -> Result<String> {
    let part = match split {
        Split::Test => "test",
        Split::Validation => "validation",
        Split::Train => "train",
        Split::Dev => return Err(task.no_split(split, "examples come from the train split")),
    };
    let language = if task == Task::HeadqaEs { "es" } else { "en" };
    let candidates =
        [format!("headqa/{part}_{language}.jsonl"), format!("headqa/{language}/{part}-00000-of-00001.parquet")];
    task.find(data_dir, split, &candidates)
}

/// Loads a split from its file.
pub fn load(data_dir: &Path, file: &str) -> Result<Vec<Question>> {
    rows::read(data_dir, file)?.iter().map(question).collect()
}

/// One row.
pub fn question(row: &Row) -> Result<Question> {
    let found = row.columns.get("answers");
    let answers: Option<Vec<(i64, String)>> = found.and_then(Value::as_array).and_then(|list| {
        list.iter().map(|item| Some((item.get("aid")?.as_i64()?, item.get("atext")?.as_str()?.to_string()))).collect()
    });
    let answers = answers.ok_or_else(|| row.unexpected("answers", "a list of {aid, atext}", found))?;
    let right = row.integer("ra")?;
    let key = answers.iter().position(|(aid, _)| *aid == right).ok_or_else(|| Error::Key {
        at: row.at.clone(),
        key: rows::shown_number(right),
        n_choices: answers.len(),
    })?;
    Question {
        id: format!("{}_{}", row.text("name")?, row.integer("qid")?),
        stem: row.text("qtext")?,
        context: None,
        choices: answers.into_iter().map(|(_, text)| text).collect(),
        key,
        subject: row.optional_text("category")?.unwrap_or_default(),
        explanation: None,
        source: row.at.clone(),
    }
    .checked()
}
