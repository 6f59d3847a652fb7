//! CareQA, closed, English and Spanish (Arias-Duart et al. 2025): a reported set only.
//!
//! One row of the Hub's file has no question text; lm-evaluation-harness puts the exam's text in its place, and so do we.
//! Columns `exam_id, question, op1..op4, cop (1 to 4), year, category, unique_id`.

use crate::rows::{self, Row};
use crate::{Error, Question, Result, Split, Task};
use std::path::Path;

/// The file of the test split, below the data folder; there is no other.
pub fn file(data_dir: &Path, split: Split, task: Task) -> Result<String> {
    if split != Split::Test {
        let hint = "CareQA has a test split only; take examples from MedMCQA, or run with 0 shots";
        return Err(task.no_split(split, hint));
    }
    let name = if task == Task::CareqaEs { "CareQA_es" } else { "CareQA_en" };
    let parts = [".json", ".jsonl", "/test.jsonl", "/test-00000-of-00001.parquet"];
    let candidates = parts.map(|part| format!("careqa/{name}{part}"));
    task.find(data_dir, split, &candidates)
}

/// Loads the test split from its file.
pub fn load(data_dir: &Path, file: &str) -> Result<Vec<Question>> {
    rows::read(data_dir, file)?.iter().map(question).collect()
}

/// The row without text and the text the harness gives it; its options and key are there.
const WITHOUT_TEXT: (&str, &str) = (
    "5636d1af-e0b1-43b0-8a04-6f127dcf6785",
    "In relation to the immune mechanism involved in the rejection of transplanted solid organs, indicate the incorrect \
answer:",
);

fn stem(row: &Row, id: &str) -> Result<String> {
    if id == WITHOUT_TEXT.0 && !row.has("question") {
        return Ok(WITHOUT_TEXT.1.into());
    }
    row.text("question")
}

/// One row.
pub fn question(row: &Row) -> Result<Question> {
    let cop = row.integer("cop")?;
    let key = usize::try_from(cop - 1).ok().filter(|key| *key < 4).ok_or_else(|| Error::Key {
        at: row.at.clone(),
        key: format!("{} (the first option is 1)", rows::shown_number(cop)),
        n_choices: 4,
    })?;
    let id = row.text("unique_id")?;
    Question {
        stem: stem(row, &id)?,
        id,
        context: None,
        choices: (1..=4).map(|i| row.text(&format!("op{i}"))).collect::<Result<_>>()?,
        key,
        subject: row.optional_text("category")?.unwrap_or_default(),
        explanation: None,
        source: row.at.clone(),
    }
    .checked()
}
