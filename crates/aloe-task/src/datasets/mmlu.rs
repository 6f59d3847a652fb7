//! MMLU's medical subjects (Hendrycks et al. 2021).
//!
//! Layouts: the header-less CSV files of data.tar (`question, A, B, C, D, letter`), and Parquet files of cais/mmlu (`question, subject,
//! choices, answer` from 0) or in lukaemon/mmlu's columns (`input, A, B, C, D, target`). The dev split is the five fixed examples; there is
//! no train split of a subject.

use crate::{Error, Question, Result, Split, Subject, Task, rows};
use std::path::Path;

/// The file of a split of a subject, below the data folder.
pub fn file(data_dir: &Path, split: Split, subject: Subject) -> Result<String> {
    let task = Task::Mmlu(subject);
    let part = match split {
        Split::Test => "test",
        Split::Validation => "val",
        Split::Dev => "dev",
        Split::Train => return Err(task.no_split(split, "MMLU's subjects have dev, validation and test only")),
    };
    let file = format!("{part}/{}_{part}.csv", subject.name());
    let candidates = ["mmlu_medical/data", "mmlu/data", "mmlu"].map(|folder| format!("{folder}/{file}"));
    let parquet = ["mmlu_medical", "mmlu"]
        .map(|folder| format!("{folder}/{}/{}-00000-of-00001.parquet", subject.name(), split.name()));
    task.find(data_dir, split, &[&candidates[..], &parquet[..]].concat())
}

/// Loads a split of a subject from its file.
pub fn load(data_dir: &Path, split: Split, subject: Subject, file: &str) -> Result<Vec<Question>> {
    if file.ends_with(".parquet") {
        let rows = rows::read(data_dir, file)?;
        return rows.iter().enumerate().map(|(index, row)| hub_question(subject, split, index, row)).collect();
    }
    let rows = rows::read_csv_plain(data_dir, file, 6)?;
    rows.into_iter().enumerate().map(|(index, (cells, at))| question(subject, split, index, cells, at)).collect()
}

/// A row of a Parquet file.
fn hub_question(subject: Subject, split: Split, index: usize, row: &rows::Row) -> Result<Question> {
    if row.has("input") {
        let cells = ["input", "A", "B", "C", "D", "target"].iter().map(|name| row.text(name)).collect::<Result<_>>()?;
        return question(subject, split, index, cells, row.at.clone());
    }
    let (choices, answer) = (row.texts("choices")?, row.integer("answer")?);
    let key = usize::try_from(answer).ok().filter(|key| *key < choices.len()).ok_or_else(|| Error::Key {
        at: row.at.clone(),
        key: rows::shown_number(answer),
        n_choices: choices.len(),
    })?;
    Question {
        id: format!("mmlu_{}_{}_{index}", subject.name(), split.name()),
        stem: row.text("question")?,
        context: None,
        choices,
        key,
        subject: subject.name().into(),
        explanation: None,
        source: row.at.clone(),
    }
    .checked()
}

fn question(subject: Subject, split: Split, index: usize, cells: Vec<String>, at: String) -> Result<Question> {
    let mut cells = cells;
    let letter = cells.pop().unwrap_or_default();
    let choices = cells.split_off(1);
    let key = ["A", "B", "C", "D"].iter().position(|known| *known == letter.trim()).ok_or_else(|| Error::Key {
        at: at.clone(),
        key: rows::shown_key(&letter),
        n_choices: choices.len(),
    })?;
    Question {
        id: format!("mmlu_{}_{}_{index}", subject.name(), split.name()),
        stem: cells.pop().unwrap_or_default(),
        context: None,
        choices,
        key,
        subject: subject.name().into(),
        explanation: None,
        source: at,
    }
    .checked()
}
