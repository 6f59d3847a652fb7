//! Multiple-choice rows in columns that many sets share: `question` with `choices` or `options`, or with `A, B, C ..`, and `answer` as a
//! letter or as the right option's text.
//!
//! An answer that may be read in two ways is refused: a number may count from 0 or from 1, and `columns` of the recipe says which.

use super::{mapped, optional, text};
use crate::RowError;
use aloe_task::Question;
use aloe_task::rows::{Row, shown_key};
use serde_json::Value;

const LISTS: [&str; 2] = ["choices", "options"];
const LETTERS: [&str; 8] = ["A", "B", "C", "D", "E", "F", "G", "H"];

fn is_filled(value: &Value) -> bool {
    match value {
        Value::Array(list) => !list.is_empty(),
        Value::Object(by_letter) => !by_letter.is_empty(),
        Value::String(text) => !text.trim().is_empty(),
        _ => false,
    }
}

fn list(row: &Row) -> Option<&'static str> {
    LISTS.into_iter().find(|name| row.columns.get(*name).is_some_and(is_filled))
}

/// Whether a row with `question` and `answer` has options beside them, so that it is no open question.
pub(super) fn are_there(row: &Row) -> bool {
    let has = |name: &str| row.columns.contains_key(name);
    has("question") && has("answer") && (list(row).is_some() || LETTERS[..3].iter().all(|name| has(name)))
}

pub(super) fn question(row: &Row, index: usize) -> Result<Question, RowError> {
    let choices = match list(row) {
        Some(name) => mapped::listed(row, name)?,
        // A question may have fewer options than its file has columns.
        None => {
            let of = |name: &&str| optional(row, name);
            let all: Vec<Option<String>> = LETTERS.iter().map(of).collect::<Result<_, _>>()?;
            let n_choices = all.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
            all.into_iter().take(n_choices).map(Option::unwrap_or_default).collect()
        }
    };
    let answer = match row.columns.get("answer") {
        Some(Value::String(answer)) => answer.clone(),
        Some(Value::Number(_)) => {
            return Err(RowError::new(
                &row.at,
                "column `answer` is a number, which may count from 0 or from 1: map the columns with `columns = { question = \"..\", \
                 options = \"..\", answer_index = \"answer\" }` (from 0) or `answer_number` (from 1)",
            ));
        }
        _ => return Err(RowError::new(&row.at, "column `answer`: expected an option's letter or its text")),
    };
    let question = Question {
        id: optional(row, "id").ok().flatten().unwrap_or_else(|| format!("row_{index}")),
        stem: text(row, "question")?,
        context: optional(row, "context")?,
        key: key(row, &choices, &answer)?,
        choices,
        subject: optional(row, "subject")?.unwrap_or_default(),
        explanation: optional(row, "explanation")?,
        source: row.at.clone(),
    };
    question.checked().map_err(|error| RowError::from_task(&row.at, &error))
}

fn key(row: &Row, choices: &[String], answer: &str) -> Result<usize, RowError> {
    let by_letter = match answer.trim().trim_matches(['(', ')', '.', ':']).as_bytes() {
        [letter] => LETTERS[..choices.len().min(LETTERS.len())]
            .iter()
            .position(|name| name.as_bytes()[0] == letter.to_ascii_uppercase()),
        _ => None,
    };
    let by_text = choices.iter().position(|choice| choice.trim() == answer.trim());
    match (by_letter, by_text) {
        (Some(place), None) => Ok(place),
        (Some(place), Some(same)) if place == same => Ok(place),
        (Some(_), Some(_)) => Err(RowError::new(
            &row.at,
            format!("column `answer`: {} is the letter of one option and the text of another", shown_key(answer)),
        )),
        (None, _) => mapped::place_of(row, choices, answer),
    }
}
