//! Instruction rows: Alpaca, self-instruct, ShareGPT, messages, question and response, and own columns.

use super::{Body, conversation, is_filled, message_list, optional, refuse, role, text};
use crate::RowError;
use aloe_task::rows::Row;
use aloe_text::{Message, Role};
use serde_json::Value;
use std::collections::BTreeMap;

fn turn(row: &Row, system: Option<String>, prompt: String, response: String) -> Result<Body, RowError> {
    let mut messages = Vec::with_capacity(2 + usize::from(system.is_some()));
    messages.extend(system.map(Message::system));
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
    let (system, history) = (optional(row, "system")?, history(row)?);
    let mut messages = Vec::with_capacity(2 + usize::from(system.is_some()) + history.len());
    messages.extend(system.map(Message::system));
    messages.extend(history);
    messages.extend([Message::user(prompt), Message::assistant(text(row, "output")?)]);
    conversation(row, messages)
}

/// Earlier turns: a list of `[question, answer]`.
fn history(row: &Row) -> Result<Vec<Message>, RowError> {
    if !is_filled(row, "history") {
        return Ok(Vec::new());
    }
    let wrong = || RowError::new(&row.at, "column `history`: expected a list of `[question, answer]`");
    let list = row.columns.get("history").and_then(Value::as_array).ok_or_else(wrong)?;
    let mut messages = Vec::new();
    for turn in list {
        let texts: Option<Vec<&str>> = turn.as_array().and_then(|parts| parts.iter().map(Value::as_str).collect());
        let Some([question, answer]) = texts.as_deref() else { return Err(wrong()) };
        messages.extend([Message::user(*question), Message::assistant(*answer)]);
    }
    Ok(messages)
}

/// The row once for each of its instances.
pub(super) fn each_instance(row: &Row) -> Vec<Row> {
    let instances = row.columns.get("instances").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let alone = |instance: &Value| {
        let mut columns = row.columns.clone();
        columns.insert("instances".into(), Value::Array(vec![instance.clone()]));
        Row { columns, at: row.at.clone() }
    };
    instances.iter().map(alone).collect()
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
    add_columns(row, &mut messages)?;
    conversation(row, messages)
}

/// What may stand beside a list of messages: a system message in a column of its own, and tools, which are refused.
fn add_columns(row: &Row, messages: &mut Vec<Message>) -> Result<(), RowError> {
    refuse(row, "tools", "definitions of tools")?;
    if let Some(system) = optional(row, "system")? {
        if messages.first().is_some_and(|message| message.role == Role::System) {
            return Err(RowError::new(&row.at, "column `system` beside a system message: two system messages"));
        }
        messages.insert(0, Message::system(system));
    }
    Ok(())
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
    let mut messages = message_list(row, "messages", value)?;
    add_columns(row, &mut messages)?;
    conversation(row, messages)
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
    let system = match optional(row, "system_prompt")? {
        None => optional(row, "system")?,
        found => found,
    };
    refuse(row, "history", "earlier turns")?;
    for column in ["options", "choices"] {
        refuse(row, column, "options of an answer")?;
    }
    let asked = text(row, question)?;
    let asked = match context(row)? {
        Some(context) => format!("{}\n\n{asked}", context.trim()),
        None => asked,
    };
    turn(row, system, asked, text(row, answer)?)
}

/// What a question is about: a text, or several.
fn context(row: &Row) -> Result<Option<String>, RowError> {
    match row.columns.get("context") {
        Some(Value::Array(parts)) if parts.iter().all(Value::is_string) => {
            let parts: Vec<&str> = parts.iter().filter_map(Value::as_str).collect();
            Ok(Some(parts.join("\n")).filter(|text| !text.trim().is_empty()))
        }
        _ => optional(row, "context"),
    }
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
