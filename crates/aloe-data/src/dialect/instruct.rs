//! Instruction rows: Alpaca, self-instruct, ShareGPT, messages, question and response, and own columns.

use super::{Body, conversation, message_list, optional, role, text};
use crate::RowError;
use aloe_task::rows::Row;
use aloe_text::Message;
use serde_json::Value;
use std::collections::BTreeMap;

fn turn(row: &Row, system: Option<String>, prompt: String, response: String) -> Result<Body, RowError> {
    let mut messages: Vec<Message> = system.map(Message::system).into_iter().collect();
    messages.extend([Message::user(prompt), Message::assistant(response)]);
    conversation(row, messages)
}

pub(super) fn with_input(instruction: String, input: Option<String>) -> String {
    match input.map(|input| input.trim().to_owned()).filter(|input| !input.is_empty()) {
        Some(input) if instruction.trim().is_empty() => input,
        Some(input) => format!("{}\n\n{input}", instruction.trim_end()),
        None => instruction,
    }
}

pub(super) fn alpaca(row: &Row) -> Result<Body, RowError> {
    let prompt = with_input(text(row, "instruction")?, optional(row, "input")?);
    turn(row, optional(row, "system")?, prompt, text(row, "output")?)
}

pub(super) fn instances(row: &Row) -> Result<Body, RowError> {
    let first = row.columns.get("instances").and_then(Value::as_array).and_then(|list| list.first());
    let part = |name: &str| first.and_then(|instance| instance.get(name)).and_then(Value::as_str);
    let Some(output) = part("output") else {
        return Err(RowError::new(&row.at, "column `instances`: expected a list of objects with `output`"));
    };
    turn(row, None, with_input(text(row, "instruction")?, part("input").map(String::from)), output.to_owned())
}

pub(super) fn sharegpt(row: &Row) -> Result<Body, RowError> {
    let (name, value) = match (row.columns.get("conversations"), row.columns.get("conversation")) {
        (Some(value), _) => ("conversations", value),
        (None, Some(value)) => ("conversation", value),
        (None, None) => return Err(RowError::new(&row.at, "no column `conversations`")),
    };
    let capybara = value.as_array().and_then(|list| list.first()).is_some_and(|turn| turn.get("input").is_some());
    let mut messages = if capybara { input_output(row, name, value)? } else { message_list(row, name, value)? };
    if let Some(system) = optional(row, "system")? {
        messages.insert(0, Message::system(system));
    }
    conversation(row, messages)
}

fn input_output(row: &Row, name: &str, value: &Value) -> Result<Vec<Message>, RowError> {
    let mut messages = Vec::new();
    for turn in value.as_array().into_iter().flatten() {
        for (part, speaker) in [("input", "user"), ("output", "assistant")] {
            let content = turn.get(part).and_then(Value::as_str);
            let content =
                content.ok_or_else(|| RowError::new(&row.at, format!("column `{name}`: a turn without `{part}`")))?;
            messages.push(Message::new(role(row, speaker)?, content));
        }
    }
    Ok(messages)
}

pub(super) fn messages(row: &Row) -> Result<Body, RowError> {
    let value = row.columns.get("messages").unwrap_or(&Value::Null);
    conversation(row, message_list(row, "messages", value)?)
}

/// The columns of question and answer, when there is exactly one reading.
pub(super) fn pair_of_columns(row: &Row) -> Option<(&'static str, &'static str)> {
    let has = |name: &str| row.columns.contains_key(name);
    let found: Vec<_> =
        [("question", "response"), ("question", "answer"), ("prompt", "response"), ("prompt", "completion")]
            .into_iter()
            .filter(|(question, answer)| has(question) && has(answer))
            .collect();
    match found.as_slice() {
        [only] => Some(*only),
        _ => None,
    }
}

pub(super) fn question_response(row: &Row) -> Result<Body, RowError> {
    let Some((question, answer)) = pair_of_columns(row) else {
        return Err(RowError::new(
            &row.at,
            "expected `question` or `prompt` with one of `response`, `answer`, `completion`",
        ));
    };
    turn(row, optional(row, "system_prompt")?, text(row, question)?, text(row, answer)?)
}

/// Columns that the recipe names; with `rejected` a preference row.
pub(super) fn mapped(row: &Row, columns: &BTreeMap<String, String>) -> Result<Body, RowError> {
    let part = |meaning: &str| columns.get(meaning).map(|column| text(row, column)).transpose();
    let (prompt, response) = (part("prompt")?.unwrap_or_default(), part("response")?.unwrap_or_default());
    let system = part("system")?.filter(|text| !text.trim().is_empty());
    match part("rejected")? {
        None => turn(row, system, prompt, response),
        Some(rejected) => {
            let mut messages: Vec<Message> = system.map(Message::system).into_iter().collect();
            messages.push(Message::user(prompt));
            super::pair(row, messages, vec![Message::assistant(response)], vec![Message::assistant(rejected)])
        }
    }
}
