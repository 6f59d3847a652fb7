//! The rows a data stage wrote, as training takes them. A single JSONL file stands for a folder without held-out rows.

use crate::failure::Failure;
use aloe_text::{Conversation, Message, Pair};
use aloe_train::{DpoRow, SftRow};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// Training rows and held-out rows.
pub(crate) struct Rows<T> {
    pub(crate) train: Vec<T>,
    pub(crate) held_out: Vec<T>,
}

#[derive(Deserialize)]
struct ConversationRow {
    id: Option<String>,
    messages: Vec<Message>,
}

#[derive(Deserialize)]
struct PairRow {
    id: Option<String>,
    prompt: Vec<Message>,
    chosen: Vec<Message>,
    rejected: Vec<Message>,
}

/// Conversations of a data folder.
pub(crate) fn conversations(data: &Path) -> anyhow::Result<Rows<SftRow>> {
    read(data, |row: ConversationRow, at| SftRow {
        source: row.id.unwrap_or(at),
        conversation: Conversation { messages: row.messages },
    })
}

/// Preference pairs of a data folder.
pub(crate) fn pairs(data: &Path) -> anyhow::Result<Rows<DpoRow>> {
    read(data, |row: PairRow, at| DpoRow {
        source: row.id.unwrap_or(at),
        pair: Pair { prompt: row.prompt, chosen: row.chosen, rejected: row.rejected },
    })
}

fn read<Row: DeserializeOwned, T>(data: &Path, convert: impl Fn(Row, String) -> T) -> anyhow::Result<Rows<T>> {
    let (train, held_out): (PathBuf, Option<PathBuf>) = if data.is_dir() {
        (data.join("train.jsonl"), Some(data.join("hold_out.jsonl")).filter(|path| path.exists()))
    } else {
        (data.to_path_buf(), None)
    };
    let train = lines(&train, &convert)?;
    let held_out = held_out.map_or_else(|| Ok(Vec::new()), |path| lines(&path, &convert))?;
    if train.is_empty() {
        return Err(Failure::usage(format!("{} holds no rows", data.display())).into());
    }
    Ok(Rows { train, held_out })
}

fn lines<Row: DeserializeOwned, T>(path: &Path, convert: &impl Fn(Row, String) -> T) -> anyhow::Result<Vec<T>> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("cannot read {}: {error}", path.display())))?;
    let mut rows = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let place = format!("{}:{}", path.display(), at + 1);
        let row = serde_json::from_str::<Row>(line).map_err(|error| {
            let hint = "training reads what `aloe data run` writes: rows with `messages` for sft, with `prompt`, `chosen` and \
                        `rejected` for dpo";
            Failure::usage(format!("{place}: {error}; {hint}"))
        })?;
        rows.push(convert(row, place));
    }
    Ok(rows)
}
