//! Multiple-choice rows in own columns that the recipe names. Which way the answer is written is part of the name, for 1 may mean the
//! first option or the second: `answer_letter`, `answer_index` (from 0), `answer_number` (from 1) or `answer_text`.

use super::{optional, text};
use crate::RowError;
use aloe_task::Question;
use aloe_task::rows::{Row, shown_key};
use serde_json::Value;
use std::collections::BTreeMap;

const ANSWERS: [&str; 4] = ["answer_letter", "answer_index", "answer_number", "answer_text"];
const OPTIONS: [&str; 10] = [
    "option_1",
    "option_2",
    "option_3",
    "option_4",
    "option_5",
    "option_6",
    "option_7",
    "option_8",
    "option_9",
    "option_10",
];

/// What cannot be meant by the meanings that a source maps.
pub(crate) fn mistakes(columns: &BTreeMap<String, String>) -> Vec<String> {
    let mut mistakes = Vec::new();
    if columns.is_empty() {
        return mistakes;
    }
    let has = |meaning: &str| columns.contains_key(meaning);
    let known: Vec<&str> = if has("question") {
        ["question", "options", "explanation", "context", "subject"].into_iter().chain(ANSWERS).chain(OPTIONS).collect()
    } else {
        vec!["prompt", "response", "rejected", "system"]
    };
    for key in columns.keys().filter(|key| !known.contains(&key.as_str())) {
        mistakes.push(format!("`columns` maps `{key}`; known are {}", known.join(", ")));
    }
    if !has("question") {
        if !has("prompt") || !has("response") {
            mistakes.push("`columns` needs `prompt` and `response`, or `question` with options and an answer".into());
        }
        return mistakes;
    }
    let n_answers = ANSWERS.iter().filter(|meaning| has(meaning)).count();
    if n_answers != 1 {
        mistakes.push(format!("`columns` with `question` needs one of {}, and has {n_answers}", ANSWERS.join(", ")));
    }
    let n_options = OPTIONS.iter().take_while(|meaning| has(meaning)).count();
    let n_named = OPTIONS.iter().filter(|meaning| has(meaning)).count();
    if n_options != n_named || (has("options") == (n_named > 0)) || n_named == 1 {
        mistakes.push(
            "`columns` with `question` needs either `options`, a list, or `option_1`, `option_2` and so on".into(),
        );
    }
    mistakes
}

/// The place of the option whose text is `answer`.
pub(super) fn place_of(row: &Row, choices: &[String], answer: &str) -> Result<usize, RowError> {
    let same = |choice: &&String| choice.trim() == answer.trim();
    match choices.iter().filter(same).count() {
        1 => Ok(choices.iter().position(|choice| same(&choice)).unwrap_or_default()),
        n => Err(RowError::new(&row.at, format!("the answer's text stands among the options {n} times"))),
    }
}

/// The question of a row.
pub(super) fn question(row: &Row, columns: &BTreeMap<String, String>, index: usize) -> Result<Question, RowError> {
    let failed = |error: aloe_task::Error| RowError::from_task(&row.at, &error);
    let column = |meaning: &str| columns.get(meaning).map(String::as_str);
    let choices = match column("options") {
        Some(name) => listed(row, name)?,
        None => {
            OPTIONS.iter().map_while(|meaning| column(meaning)).map(|name| text(row, name)).collect::<Result<_, _>>()?
        }
    };
    let (way, name) = ANSWERS
        .iter()
        .find_map(|way| Some((*way, column(way)?)))
        .ok_or_else(|| RowError::new(&row.at, "no column is mapped to the answer"))?;
    let key = match way {
        "answer_letter" => letter(row, &text(row, name)?)?,
        "answer_index" => place(row, row.integer(name).map_err(failed)?)?,
        "answer_number" => place(row, row.integer(name).map_err(failed)? - 1)?,
        _ => place_of(row, &choices, &text(row, name)?)?,
    };
    let part = |meaning: &str| column(meaning).map(|name| optional(row, name)).transpose().map(Option::flatten);
    let question = Question {
        id: format!("row_{index}"),
        stem: text(row, column("question").unwrap_or_default())?,
        context: part("context")?,
        choices,
        key,
        subject: part("subject")?.unwrap_or_default(),
        explanation: part("explanation")?,
        source: row.at.clone(),
    };
    question.checked().map_err(failed)
}

/// The place that an option's name stands for: a letter from A, or a number.
fn option_place(key: &str) -> Option<usize> {
    match key.trim().as_bytes() {
        [letter] if letter.is_ascii_alphabetic() => Some(usize::from(letter.to_ascii_uppercase() - b'A')),
        _ => key.trim().parse().ok(),
    }
}

/// A list of texts, an object of texts by letter, or a text that holds such a list as JSON, as CSV files do.
pub(super) fn listed(row: &Row, name: &str) -> Result<Vec<String>, RowError> {
    let parsed = match row.columns.get(name) {
        Some(Value::String(text)) => serde_json::from_str(text).unwrap_or(Value::Null),
        Some(value) => value.clone(),
        None => Value::Null,
    };
    let texts = |values: Vec<&Value>| values.into_iter().map(|value| value.as_str().map(String::from)).collect();
    let found: Option<Vec<String>> = match &parsed {
        Value::Array(list) => texts(list.iter().collect()),
        Value::Object(by_letter) => {
            let mut pairs: Vec<(usize, &Value)> =
                by_letter.iter().filter_map(|(key, value)| Some((option_place(key)?, value))).collect();
            pairs.sort_by_key(|(place, _)| *place);
            let first = pairs.first().map_or(0, |(place, _)| *place);
            let is_whole =
                pairs.len() == by_letter.len() && pairs.iter().enumerate().all(|(at, (place, _))| *place == first + at);
            if !is_whole
                || (first > 0 && by_letter.keys().any(|key| key.as_bytes()[0].is_ascii_alphabetic()))
                || first > 1
            {
                let reason =
                    format!("column `{name}`: options are named A, B, C .. or 0, 1, 2 .. or 1, 2, 3 .. without a gap");
                return Err(RowError::new(&row.at, reason));
            }
            texts(pairs.into_iter().map(|(_, value)| value).collect())
        }
        _ => None,
    };
    found.ok_or_else(|| RowError::new(&row.at, format!("column `{name}`: expected a list of options")))
}

fn letter(row: &Row, answer: &str) -> Result<usize, RowError> {
    match answer.trim().as_bytes() {
        [letter] if letter.is_ascii_alphabetic() => Ok(usize::from(letter.to_ascii_uppercase() - b'A')),
        _ => Err(RowError::new(&row.at, format!("answer key {} is no letter", shown_key(answer)))),
    }
}

fn place(row: &Row, number: i64) -> Result<usize, RowError> {
    usize::try_from(number).map_err(|_| RowError::new(&row.at, "the answer's number is below the first option's"))
}
