//! Questions and answers made from passages by Genstruct-7B (aloe.md 6; NousResearch, read through distilabel's description), or by any
//! model that continues text: its exact prompt without a chat template, and its two turns read out of what follows.
//!
//! Passages are rows with `title` and `content` (or `text`) of any file that data stages read. Kept is a text with exactly one
//! `[[[Assistant]]]`, both sides non-empty, that the model ended itself.

use super::texts::{self, TextVerdict, TextsConfig, TextsReport, Wanted};
use crate::asking::log::Answered;
use crate::asking::{Item, Run};
use crate::data::lines;
use crate::{Error, Problems, Result, RowError, source};
use aloe_engine::{Engine, FinishReason, Prompt};
use aloe_record::{Cancel, Progress};
use serde_json::{Value, json};
use std::path::Path;

/// Ends the first exchange, where a model goes on with another.
pub const GENSTRUCT_STOP: &str = "[[[User]]]";

const ASSISTANT: &str = "[[[Assistant]]]";

/// Genstruct's prompt.
pub fn genstruct_prompt(title: &str, content: &str) -> String {
    format!(
        "[[[Title]]] {title}\n[[[Content]]] {content}\n\nThe following is an interaction between a user and an AI assistant that is related to \
         the above text.\n\n[[[User]]] "
    )
}

struct Passage {
    title: String,
    content: String,
    at: String,
}

/// Makes a question and an answer from each passage of the file or folder `passages`; writes `train.jsonl` with the columns `question,
/// response` beside the common files.
pub fn genstruct(
    engine: &Engine,
    passages: &Path,
    config: &TextsConfig,
    out: &Path,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<TextsReport> {
    config.check()?;
    let (all, n_empty) = read(passages)?;
    let passages: Vec<&Passage> = texts::drawn(all.len(), config, "genstruct").into_iter().map(|at| &all[at]).collect();
    let wanted: Vec<Wanted> = passages
        .iter()
        .map(|passage| Wanted {
            id: passage.at.clone(),
            prompt: Prompt::Text(genstruct_prompt(&passage.title, &passage.content)),
            content: format!("{}\n{}", passage.title, passage.content),
        })
        .collect();
    let judge = |_: usize, answered: &Answered| judge(answered).0;
    let told = (n_empty > 0).then(|| format!("{n_empty} passages are empty and nothing was asked about them"));
    let notices = told.into_iter().collect();
    let (items, report) =
        texts::make(Run { engine, progress, cancel }, "genstruct", &wanted, config, out, &judge, notices)?;
    let row = |(item, passage): (&Item, &&Passage)| -> Option<Value> {
        let answered = item.attempts.last().filter(|_| item.is_done)?;
        let (question, response) = self::judge(answered).1?;
        Some(json!({
            "question": question, "response": response, "id": format!("genstruct/{}", passage.at), "title": passage.title,
            "made": "from a passage", "attempts": item.attempts.len(),
        }))
    };
    let rows: Vec<Value> = items.iter().zip(&passages).filter_map(row).collect();
    lines(&out.join("train.jsonl"), &rows)?;
    Ok(report)
}

/// The verdict, and the two turns.
fn judge(answered: &Answered) -> (TextVerdict, Option<(String, String)>) {
    let text = answered.text.split(GENSTRUCT_STOP).next().unwrap_or_default();
    let sides: Vec<&str> = text.split(ASSISTANT).map(str::trim).collect();
    match sides.as_slice() {
        [_] if text.trim().is_empty() => (TextVerdict::Empty, None),
        [_] if answered.finish_reason != FinishReason::Stop => (TextVerdict::Cut, None),
        [question, response] if question.is_empty() || response.is_empty() => (TextVerdict::Empty, None),
        // A second turn of the user's own ends the first answer, however the text ended.
        [_, _] if answered.finish_reason != FinishReason::Stop && !answered.text.contains(GENSTRUCT_STOP) => {
            (TextVerdict::Cut, None)
        }
        [question, response] => (TextVerdict::Accepted, Some(((*question).to_owned(), (*response).to_owned()))),
        _ => (TextVerdict::NoTurns, None),
    }
}

/// The passages, and how many rows have none.
fn read(path: &Path) -> Result<(Vec<Passage>, usize)> {
    let (mut passages, mut n_empty, mut problems) = (Vec::new(), 0, Problems::default());
    for file in source::files(path)? {
        source::read(&file.path, &mut |row| {
            let made = row.and_then(|row| {
                let broken = |error: aloe_task::Error| RowError::from_task(&row.at, &error);
                let content = if row.has("content") { "content" } else { "text" };
                let (title, content) = (row.text("title").map_err(broken)?, row.text(content).map_err(broken)?);
                let at = crate::decontaminate::last_two(&row.at);
                Ok(Passage { title: title.trim().to_owned(), content: content.trim().to_owned(), at })
            });
            match made {
                Ok(passage) if passage.content.is_empty() => n_empty += 1,
                Ok(passage) => passages.push(passage),
                Err(error) => problems.add(error),
            }
            Ok(())
        })?;
    }
    if problems.total > 0 {
        return Err(Error::BrokenPassages { problems });
    }
    if passages.is_empty() { Err(Error::EmptyFile { path: path.to_owned() }) } else { Ok((passages, n_empty)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, finish_reason: FinishReason) -> (TextVerdict, Option<(String, String)>) {
        let (n_prompt_tokens, n_tokens) = (None, None);
        let key = String::new();
        judge(&Answered { key, number: 0, text: text.into(), finish_reason, n_prompt_tokens, n_tokens })
    }

    /// aloe.md 6 gives the prompt; written out here once more.
    #[test]
    fn the_prompt_is_the_published_one_letter_for_letter() {
        let expected = "[[[Title]]] Gout\n[[[Content]]] Crystals.\n\nThe following is an interaction between a user and an AI assistant that is related to the above text.\n\n[[[User]]] ";
        assert_eq!(genstruct_prompt("Gout", "Crystals."), expected);
    }

    #[test]
    fn an_empty_passage_is_counted_and_the_others_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.jsonl");
        let row = |content: &str| json!({"title": "Gout", "content": content}).to_string();
        std::fs::write(&path, [row("Crystals."), row(" "), row("Pain.")].join("\n")).unwrap();
        let (passages, n_empty) = read(&path).unwrap();
        assert_eq!((passages.len(), n_empty), (2, 1));
        std::fs::write(&path, row("")).unwrap();
        assert!(matches!(read(&path), Err(Error::EmptyFile { .. })));
    }

    #[test]
    fn two_turns_are_read_and_every_other_form_is_named() {
        let turns = |a: &str, b: &str| (TextVerdict::Accepted, Some((a.to_owned(), b.to_owned())));
        assert_eq!(check("Why?\n[[[Assistant]]] So. ", FinishReason::Stop), turns("Why?", "So."));
        let more = "Why?\n[[[Assistant]]] So.\n[[[User]]] And wh";
        assert_eq!(check(more, FinishReason::Length), turns("Why?", "So."));
        for (text, reason, expected) in [
            ("Why?\n[[[Assistant]]] So beca", FinishReason::Length, TextVerdict::Cut),
            ("Why is it th", FinishReason::Length, TextVerdict::Cut),
            ("Why?", FinishReason::Stop, TextVerdict::NoTurns),
            ("[[[Assistant]]] So.", FinishReason::Stop, TextVerdict::Empty),
            ("Why?[[[Assistant]]]", FinishReason::Stop, TextVerdict::Empty),
            (" ", FinishReason::Stop, TextVerdict::Empty),
            ("a[[[Assistant]]]b[[[Assistant]]]c", FinishReason::Stop, TextVerdict::NoTurns),
        ] {
            assert_eq!(check(text, reason), (expected, None), "{text:?}");
        }
    }
}
