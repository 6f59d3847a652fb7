//! The same text becomes the same token ids in training, chat and scoring, and in every folder of a stage.

use super::{Check, Subject};
use aloe_text::{Conversation, Message, Role, TextModel};
use std::path::Path;

/// Plain texts, with numbers, units, line breaks and letters beyond ASCII.
pub(super) const TEXTS: [&str; 3] = [
    "The patient is a 54-year-old man with chest pain for two hours. Blood pressure is 152/94 mm Hg, pulse 102/min, temperature 37.1 \u{b0}C.",
    "Question: Which vitamin deficiency causes scurvy?\nA. Vitamin A\nB. Vitamin B12\nC. Vitamin C\nD. Vitamin D\nAnswer: C",
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. \u{bf}D\u{f3}nde est\u{e1}?",
];

/// A row of two exchanges.
pub(super) fn conversation() -> Conversation {
    Conversation {
        messages: vec![
            Message::user("What is type 2 diabetes?"),
            Message::assistant(
                "A long-term condition in which cells respond poorly to insulin and blood glucose rises.",
            ),
            Message::user("Name one sign of it."),
            Message::assistant("Thirst."),
        ],
    }
}

pub(super) fn checks(subject: &Subject) -> anyhow::Result<Vec<Check>> {
    Ok(vec![training_and_chat(&subject.text)?, scoring_and_text(&subject.text)?, folders(subject)?])
}

/// The prompt of each answer in a training row is the prompt that a chat would send.
fn training_and_chat(text: &TextModel) -> anyhow::Result<Check> {
    let what = "ids: training row and chat prompt";
    if text.template.is_none() {
        return Ok(Check::not_made(what, "the model has no chat template"));
    }
    let row = conversation();
    let encoded = match text.encode_conversation(&row) {
        Err(error @ aloe_text::Error::NotPrefixConsistent { .. }) => {
            return Ok(Check::equal(what, 0, Some(error.to_string())));
        }
        encoded => encoded?,
    };
    let starts = (1..encoded.ids.len()).filter(|&at| encoded.loss_mask[at] && !encoded.loss_mask[at - 1]);
    let answers = row.messages.iter().enumerate().filter(|(_, message)| message.role == Role::Assistant);
    let (mut n_values, mut found) = (0, None);
    for ((at, _), start) in answers.zip(starts) {
        let prompt = text.encode_prompt(&row.messages[..at])?;
        n_values += prompt.len();
        found = found.or_else(|| difference(&encoded.ids[..start], &prompt));
    }
    Ok(Check::equal(what, n_values, found))
}

/// A prompt and what continues it, cut at a space, are the ids of the text in one.
fn scoring_and_text(text: &TextModel) -> anyhow::Result<Check> {
    let (mut n_values, mut found) = (0, None);
    for whole in TEXTS {
        let at = whole[..whole.len() / 2].rfind(' ').unwrap_or(0);
        let (prompt, continuation) = text.encode_joint(&whole[..at], &whole[at..])?;
        let ids = text.encode_prompt_text(whole)?;
        n_values += ids.len();
        found = found.or_else(|| difference(&[prompt, continuation].concat(), &ids));
    }
    Ok(Check::equal("ids: scoring request and plain text", n_values, found))
}

/// `model/` and `master/` of a training stage have one tokenizer and template.
fn folders(subject: &Subject) -> anyhow::Result<Check> {
    let what = "ids: model/ and master/";
    let master = subject.path.with_file_name("master");
    if !subject.path.ends_with("model") || !master.join("config.json").exists() {
        return Ok(Check::not_made(what, "the checkpoint has no master/ beside it"));
    }
    let (one, other) = (subject.text.digest(), open(&master)?.digest());
    let found = (one != other).then(|| "tokenizer or template differ".to_owned());
    Ok(Check::equal(what, 1, found))
}

fn open(path: &Path) -> anyhow::Result<TextModel> {
    crate::commands::open_text(path)
}

/// Where two lists of ids first differ, in words.
pub(super) fn difference(found: &[u32], expected: &[u32]) -> Option<String> {
    let same = found.iter().zip(expected).take_while(|(a, b)| a == b).count();
    let at = |ids: &[u32]| ids.get(same).map_or("the end".to_owned(), u32::to_string);
    (found != expected).then(|| format!("token {same}: {} against {}", at(found), at(expected)))
}
