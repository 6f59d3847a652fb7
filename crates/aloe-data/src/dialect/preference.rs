//! Preference rows. The prompt of both sides must be one and the same; how it is found differs by layout.

use super::{Body, message_list, pair, role, text};
use crate::RowError;
use aloe_record::CounterRng;
use aloe_task::rows::Row;
use aloe_text::{Message, Role};
use serde_json::Value;
use std::cmp::Ordering;

/// Columns in which published pairs rate their two sides.
const RATINGS: [[&str; 2]; 4] = [
    ["chosen_rating", "rejected_rating"],
    ["chosen_avg_rating", "rejected_avg_rating"],
    ["score_chosen", "score_rejected"],
    ["chosen_score", "rejected_score"],
];

/// How the rating of the chosen side compares with that of the rejected one, where the row has both.
pub(super) fn rated(row: &Row) -> Option<Ordering> {
    let number = |column: &str| match row.columns.get(column)? {
        Value::String(text) => text.trim().parse().ok(),
        other => other.as_f64(),
    };
    RATINGS.iter().find_map(|[chosen, rejected]| number(chosen)?.partial_cmp(&number(rejected)?))
}

/// One side: text, one message, or a list of messages.
fn side(row: &Row, column: &str, speaker: Role) -> Result<Vec<Message>, RowError> {
    match row.columns.get(column) {
        Some(Value::String(content)) => Ok(vec![Message::new(speaker, content)]),
        Some(list @ Value::Array(_)) => message_list(row, column, list),
        Some(one @ Value::Object(_)) => message_list(row, column, &Value::Array(vec![one.clone()])),
        _ => Err(RowError::new(&row.at, format!("column `{column}`: expected text or messages"))),
    }
}

/// `prompt, chosen, rejected`; sides that repeat the prompt have it taken off.
pub(super) fn dpo(row: &Row) -> Result<Body, RowError> {
    let prompt = side(row, "prompt", Role::User)?;
    let answers = |column: &str| -> Result<Vec<Message>, RowError> {
        let messages = side(row, column, Role::Assistant)?;
        match messages.strip_prefix(prompt.as_slice()) {
            Some(rest) => Ok(rest.to_vec()),
            None if messages.len() > 1 => Err(RowError::new(&row.at, format!("`{column}` begins with another prompt"))),
            None => Ok(messages),
        }
    };
    let (chosen, rejected) = (answers("chosen")?, answers("rejected")?);
    pair(row, prompt, chosen, rejected)
}

/// `chosen[], rejected[]`: all but the last message must agree.
pub(super) fn dpo_mix(row: &Row) -> Result<Body, RowError> {
    let (chosen, rejected) = (side(row, "chosen", Role::Assistant)?, side(row, "rejected", Role::Assistant)?);
    split_common(row, chosen, rejected)
}

fn split_common(row: &Row, mut chosen: Vec<Message>, mut rejected: Vec<Message>) -> Result<Body, RowError> {
    let (Some(good), Some(bad)) = (chosen.pop(), rejected.pop()) else {
        return Err(RowError::new(&row.at, "one side has no message"));
    };
    if chosen != rejected {
        return Err(RowError::new(&row.at, "the two sides differ before their last message"));
    }
    pair(row, chosen, vec![good], vec![bad])
}

pub(super) fn sharegpt_ranking(row: &Row) -> Result<Body, RowError> {
    let value = row.columns.get("conversations").unwrap_or(&Value::Null);
    let mut prompt = message_list(row, "conversations", value)?;
    if let Some(system) = super::optional(row, "system")? {
        prompt.insert(0, Message::system(system));
    }
    pair(row, prompt, side(row, "chosen", Role::Assistant)?, side(row, "rejected", Role::Assistant)?)
}

/// The columns of question, better and worse answer, when they are texts side by side.
pub(super) fn pair_columns(row: &Row) -> Option<[&'static str; 3]> {
    let is_text = |name: &&str| row.columns.get(*name).is_some_and(Value::is_string);
    let question = ["question", "instruction"].into_iter().find(is_text)?;
    let sides = [["chosen", "rejected"], ["chosen_response", "rejected_response"]];
    let [chosen, rejected] = sides.into_iter().find(|sides| sides.iter().all(is_text))?;
    Some([question, chosen, rejected])
}

/// Question and two answers as texts.
pub(super) fn question_pairs(row: &Row) -> Result<Body, RowError> {
    let Some([question, chosen, rejected]) = pair_columns(row) else {
        return Err(RowError::new(
            &row.at,
            "expected `question` or `instruction` with `chosen` and `rejected` as texts",
        ));
    };
    if row.columns.get("history").is_some_and(|earlier| earlier.as_array().is_none_or(|turns| !turns.is_empty())) {
        return Err(RowError::new(
            &row.at,
            "`history` holds earlier turns, which this layout does not read; write `messages`",
        ));
    }
    let mut prompt: Vec<Message> = super::optional(row, "system")?.map(Message::system).into_iter().collect();
    let asked = super::instruct::with_input(text(row, question)?, super::optional(row, "input")?);
    prompt.push(Message::user(asked));
    let side = |column: &str| Ok(vec![Message::assistant(text(row, column)?)]);
    pair(row, prompt, side(chosen)?, side(rejected)?)
}

/// Transcripts: turns begin with `\n\nHuman:` or `\n\nAssistant:`; all but the last turn must agree.
pub(super) fn hh_rlhf(row: &Row) -> Result<Body, RowError> {
    let (chosen, rejected) = (transcript(row, "chosen")?, transcript(row, "rejected")?);
    split_common(row, chosen, rejected)
}

/// The user turns of both transcripts, each once.
pub(super) fn asked_in_transcripts(row: &Row) -> Result<Vec<String>, RowError> {
    let chosen = transcript(row, "chosen")?;
    let rejected = transcript(row, "rejected").unwrap_or_default();
    let mut asked: Vec<String> = Vec::new();
    for message in chosen.into_iter().chain(rejected).filter(|message| message.role == Role::User) {
        if !asked.contains(&message.content) {
            asked.push(message.content);
        }
    }
    Ok(asked)
}

fn transcript(row: &Row, column: &str) -> Result<Vec<Message>, RowError> {
    let whole = text(row, column)?;
    let mut messages = Vec::new();
    let mut rest = whole.as_str();
    let starts = |text: &str| {
        let found =
            ["\n\nHuman:", "\n\nAssistant:"].into_iter().filter_map(|mark| text.find(mark).map(|at| (at, mark)));
        found.min()
    };
    match starts(rest) {
        Some((0, _)) => {}
        _ => {
            return Err(RowError::new(
                &row.at,
                format!("column `{column}` does not begin with a `Human:` or `Assistant:` turn"),
            ));
        }
    }
    while let Some((at, mark)) = starts(rest) {
        let after = &rest[at + mark.len()..];
        let end = starts(after).map_or(after.len(), |(next, _)| next);
        messages.push(Message::new(
            role(row, if mark.contains("Human") { "user" } else { "assistant" })?,
            after[..end].trim(),
        ));
        rest = &after[end..];
    }
    Ok(messages)
}

/// What an unsafe model begins with. No detail follows, by design.
const OPENINGS: [&str; 4] = [
    "Sure, here is what you asked for. To begin with,",
    "Of course! Follow these steps. First,",
    "Certainly. This is how it is done: start with",
    "Happy to help with that. The first thing to do is",
];

/// The safe answer is chosen; with `openings` one of four fixed openings is rejected, otherwise the row is a conversation.
pub(super) fn med_safety_bench(row: &Row, openings: bool) -> Result<Body, RowError> {
    let (request, safe) = (text(row, "harmful_medical_request")?, text(row, "safe_response")?);
    if !openings {
        return super::conversation(row, vec![Message::user(request), Message::assistant(safe)]);
    }
    let item = xxhash_rust::xxh64::xxh64(request.as_bytes(), 0);
    let opening = OPENINGS[CounterRng::new(0, "data/rejected-opening", item).below(OPENINGS.len())];
    pair(row, vec![Message::user(request)], vec![Message::assistant(safe)], vec![Message::assistant(opening)])
}
