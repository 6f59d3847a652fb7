//! The rows a data stage wrote, as training takes them. A single JSONL file stands for a folder without held-out rows. A byte order mark at the
//! start and blank lines at the end are passed over; a blank line between rows, where a row may be missing, is refused, and so is what is not
//! UTF-8, by file and line.

use crate::failure::Failure;
use aloe_text::{Conversation, Message, Pair, Role, TextModel};
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
    source: Option<String>,
    messages: Vec<Message>,
}

#[derive(Deserialize)]
struct PairRow {
    id: Option<String>,
    source: Option<String>,
    prompt: Vec<Message>,
    chosen: Vec<Message>,
    rejected: Vec<Message>,
}

/// Conversations of a data folder.
pub(crate) fn conversations(data: &Path) -> anyhow::Result<Rows<SftRow>> {
    read(data, |row: ConversationRow, at| SftRow {
        source: place(at, row.id),
        data_source: row.source,
        conversation: Conversation { messages: row.messages },
    })
}

/// Preference pairs of a data folder.
pub(crate) fn pairs(data: &Path) -> anyhow::Result<Rows<DpoRow>> {
    let file = data.file_stem().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    read(data, |row: PairRow, at| DpoRow {
        source: place(at, row.id),
        set: row.source.unwrap_or_else(|| file.clone()),
        pair: Pair { prompt: row.prompt, chosen: row.chosen, rejected: row.rejected },
    })
}

/// The line to open, and the row of the source that the data stage made it from. The line alone tells rows apart: ids of a file that no data stage
/// wrote may repeat.
fn place(at: String, id: Option<String>) -> String {
    match id {
        Some(id) => format!("{at} ({id})"),
        None => at,
    }
}

/// A sentence on the system prompt that the template itself puts before rows without one; `None` where it puts none.
pub(crate) fn template_system(rows: &[SftRow], start: &Path, chat_template: Option<&str>) -> Option<String> {
    let without = |row: &&SftRow| row.conversation.messages.iter().all(|message| message.role != Role::System);
    let n_without = rows.iter().filter(without).count();
    let text = crate::commands::open_text(&aloe_train::start_weights(start)).ok()?;
    let text = chat_template.map_or(Some(text.clone()), |name| text.with_template(name).ok())?;
    let system = default_system(&text).filter(|_| n_without > 0)?;
    Some(format!(
        "{n_without} of {} rows have no system message and are trained with the one that the chat template puts there: {system:?}. `aloe chat` \
         asks with the reference card's system prompt; give it --system \"\" to ask as these rows were trained",
        rows.len()
    ))
}

/// The system prompt that a template adds of its own: what stands where a given one would.
fn default_system(text: &TextModel) -> Option<String> {
    const MARK: &str = "a-system-message";
    let bare = text.render_text(&[Message::user("a-question")], false).ok()?;
    let given = text.render_text(&[Message::new(Role::System, MARK), Message::user("a-question")], false).ok()?;
    let (head, tail) = given.split_once(MARK)?;
    let between = bare.strip_prefix(head)?.strip_suffix(tail)?;
    (!between.trim().is_empty()).then(|| between.trim().to_owned())
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
    let bytes =
        std::fs::read(path).map_err(|error| Failure::usage(format!("cannot read {}: {error}", path.display())))?;
    let mut lines: Vec<&[u8]> = bytes.split(|&byte| byte == b'\n').collect();
    while lines.last().is_some_and(|line| is_blank(line)) {
        lines.pop();
    }
    let mut rows = Vec::new();
    for (at, line) in lines.into_iter().enumerate() {
        let place = format!("{}:{}", path.display(), at + 1);
        let row = serde_json::from_str::<Row>(text_of(line, path, at)?).map_err(|error| {
            let hint = "training reads what `aloe data run` writes: rows with `messages` for sft, with `prompt`, `chosen` and \
                        `rejected` for dpo";
            Failure::usage(format!("{place}: {error}; {hint}"))
        })?;
        rows.push(convert(row, place));
    }
    Ok(rows)
}

/// Whether a line holds nothing, not even a part of a row.
pub(crate) fn is_blank(line: &[u8]) -> bool {
    line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line).trim_ascii().is_empty()
}

/// The text of line `at` of a file, counted from 0. Refuses what is not UTF-8, and a blank line.
pub(crate) fn text_of<'a>(line: &'a [u8], path: &Path, at: usize) -> anyhow::Result<&'a str> {
    let place = format!("{}:{}", path.display(), at + 1);
    if is_blank(line) {
        return Err(
            Failure::usage(format!("{place}: a blank line between rows; remove it, or put its row there")).into()
        );
    }
    let start: &[u8] = if at == 0 { BYTE_ORDER_MARK } else { b"" };
    std::str::from_utf8(line.strip_prefix(start).unwrap_or(line)).map_err(|error| {
        let byte = error.valid_up_to() + 1;
        Failure::usage(format!("{place}: not UTF-8 at byte {byte} of the line; write the file in UTF-8")).into()
    })
}

/// What some programs begin a file of UTF-8 with.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: &str = r#"{"id":"abc","messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"yo"}]}"#;

    /// The places of a file's rows, or the error.
    fn places(bytes: &[u8]) -> Result<Vec<String>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        std::fs::write(&path, bytes).unwrap();
        let below = |text: &str| text.replace(&format!("{}/", dir.path().display()), "");
        match conversations(&path) {
            Ok(rows) => Ok(rows.train.iter().map(|row| below(&row.source)).collect()),
            Err(error) => Err(below(&error.to_string())),
        }
    }

    #[test]
    fn a_row_is_named_by_its_line_and_its_id_for_both_kinds_of_training() {
        assert_eq!(places(ROW.as_bytes()).unwrap(), ["rows.jsonl:1 (abc)"]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pairs.jsonl");
        std::fs::write(&path, r#"{"id":"abc","prompt":[],"chosen":[],"rejected":[]}"#).unwrap();
        let at = format!("{}:1 (abc)", path.display());
        assert_eq!(pairs(&path).unwrap().train[0].source, at);
    }

    #[test]
    fn a_byte_order_mark_and_blank_lines_at_the_end_hold_no_row_and_others_are_refused_by_line() {
        let two = format!("{ROW}\n{ROW}");
        let expected = ["rows.jsonl:1 (abc)", "rows.jsonl:2 (abc)"];
        for text in [two.clone(), format!("{two}\n"), format!("{two}\r\n\r\n \n"), format!("\u{feff}{two}\n\n")] {
            assert_eq!(places(text.as_bytes()).unwrap(), expected, "{text:?}");
        }
        for (text, told) in [
            (format!("{ROW}\n\n{ROW}\n"), "rows.jsonl:2: a blank line between rows"),
            (format!("{ROW}\n\u{feff}{ROW}\n"), "rows.jsonl:2: expected value"),
            ("\n\n".to_owned(), "holds no rows"),
            ("\u{feff}\n".to_owned(), "holds no rows"),
        ] {
            let refused = places(text.as_bytes()).unwrap_err();
            assert!(refused.contains(told), "{text:?}: {refused}");
        }
        let mut broken = format!("{ROW}\n").into_bytes();
        broken.extend(b"{\"messages\":\"\xff\"}\n");
        let refused = places(&broken).unwrap_err();
        assert!(refused.starts_with("rows.jsonl:2: not UTF-8 at byte 14 of the line"), "{refused}");
    }

    #[test]
    fn rows_that_share_an_id_are_told_apart_by_their_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        let row = "{\"id\": \"q1\", \"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}\n";
        std::fs::write(&path, row.repeat(2)).unwrap();
        let sources: Vec<String> = conversations(&path).unwrap().train.into_iter().map(|row| row.source).collect();
        assert_eq!(sources, [1, 2].map(|line| format!("{}:{line} (q1)", path.display())));
    }

    #[test]
    fn a_template_that_adds_its_own_system_prompt_is_told_from_one_that_adds_none() {
        let Ok(models) = std::env::var("ALOE_MODELS") else {
            assert!(std::env::var("ALOE_REQUIRE").is_err(), "ALOE_MODELS is not set");
            return;
        };
        let smollm2 = Path::new(&models).join("smollm2-135m-instruct-q4_1/model.gguf");
        let own = crate::commands::open_text(&smollm2).unwrap();
        // The sentence in SmolLM2-Instruct's published chat template.
        let expected = "You are a helpful AI assistant named SmolLM, trained by Hugging Face";
        assert_eq!(default_system(&own).as_deref(), Some(expected));
        assert_eq!(default_system(&own.with_template("chatml").unwrap()), None);
        let message = |role| Message::new(role, "x");
        let row = |messages| SftRow { source: "x".into(), data_source: None, conversation: Conversation { messages } };
        let rows = [
            row(vec![message(Role::User), message(Role::Assistant)]),
            row(vec![message(Role::System), message(Role::User), message(Role::Assistant)]),
        ];
        let notice = template_system(&rows, &smollm2, None).unwrap();
        assert!(notice.starts_with("1 of 2 rows") && notice.contains(expected), "{notice}");
        assert_eq!(template_system(&rows[1..], &smollm2, None), None);
        assert_eq!(template_system(&rows, &smollm2, Some("chatml")), None);
    }
}
