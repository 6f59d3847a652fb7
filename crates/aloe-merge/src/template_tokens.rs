//! The control tokens that the result's chat template writes: the one that ends an answer belongs to the tokens that end a text, or the model
//! never stops; those that the vocabulary lacks are cut into pieces that no model has learned. Both are found by rendering a conversation,
//! so a template's text is never searched. Refuses nothing: a template that fails here is named in a note.

use crate::Result;
use crate::beside::Beside;
use crate::special_ids;
use crate::tokenizer::template_of;
use aloe_model::Config;
use aloe_text::{ChatTemplate, Date, Message, Role};
use serde_json::{Map, Value};
use std::sync::Arc;

/// What the conversation's answer says; templates may trim it, so it has no white space.
const ANSWER: &str = "aloe-answer-73";

/// The day of the conversation: Llama 3.1's templates and later ones print today's date and fail without one. No result holds it.
const ANY_DAY: &str = "2024-07-26";

#[derive(serde::Deserialize)]
struct AddedOnly {
    #[serde(default)]
    added_tokens: Vec<Value>,
}

/// Lists the template's end token among the ids that end a text, in the configuration and in `generation_config.json`, and notes what the
/// vocabulary lacks. For a template that the configuration chose; that of a model is taken to fit its own ids.
pub(crate) fn settle(files: &mut [(String, Vec<u8>)], out: &mut Config, notes: &mut Vec<String>) -> Result<()> {
    let beside = Beside::Planned(Arc::new(files.to_vec()));
    let Some(template) = template_of(&beside)? else { return Ok(()) };
    let (Some(known), Some(content)) =
        (beside.read_json::<AddedOnly>("tokenizer.json")?, beside.read("tokenizer.json")?)
    else {
        return Ok(());
    };
    let added: Vec<(u32, String)> = known
        .added_tokens
        .iter()
        .filter_map(|entry| Some((entry["id"].as_u64()? as u32, entry["content"].as_str()?.to_owned())))
        .collect();
    let config: Map<String, Value> = beside.read_json("tokenizer_config.json")?.unwrap_or_default();
    let text = match rendered(&template, &config) {
        Ok(text) => text,
        Err(error) => {
            notes.push(format!("the result's chat template does not render a question and its answer: {error}"));
            return Ok(());
        }
    };
    let is_known = |token: &str| {
        let quoted = serde_json::to_vec(token).unwrap_or_default();
        added.iter().any(|(_, known)| known == token) || content.windows(quoted.len()).any(|window| window == quoted)
    };
    let lacking: Vec<&str> = controls(&text).into_iter().filter(|token| !is_known(token)).collect();
    if !lacking.is_empty() {
        notes.push(format!(
            "the chat template writes {}, which the result's vocabulary does not have: text like that is cut into pieces; take the \
             tokenizer of a model that has them (tokenizer_source), or another template",
            lacking.join(", ")
        ));
    }
    let Some((id, token)) = end(&text, &added) else { return Ok(()) };
    if (id as usize) < out.vocab_size && !out.eos_token_ids.contains(&id) {
        notes.push(format!(
            "eos_token_id gets {id} ({token}) beside {:?}: the chat template ends an answer with it, and the model would not stop there",
            out.eos_token_ids
        ));
        out.eos_token_ids.push(id);
    }
    if let Err(error) = special_ids::end_in_generation_config(files, &out.eos_token_ids) {
        notes.push(format!("generation_config.json stays as it is: {error}"));
    }
    Ok(())
}

/// A question and its answer; with a system prompt where the template takes one.
fn rendered(template: &str, config: &Map<String, Value>) -> aloe_text::Result<String> {
    let template = ChatTemplate::new(template, "chat template")?;
    let talk = [Message::new(Role::User, "question"), Message::new(Role::Assistant, ANSWER)];
    let with_system = [&[Message::new(Role::System, "system")], &talk[..]].concat();
    let date = Date::parse(ANY_DAY).ok();
    let whole = template.render_unopened(&with_system, config, false, date);
    let found = whole.or_else(|_| template.render_unopened(&talk, config, false, date))?;
    Ok(found)
}

/// Pieces of the text in the form of control tokens: `<|im_start|>`, and Gemma's `<start_of_turn>`, `<end_of_turn>`. `[INST]` is plain text to
/// many tokenizers.
fn controls(text: &str) -> Vec<&str> {
    let mut found: Vec<&str> = Vec::new();
    for (at, _) in text.match_indices('<') {
        let Some(end) = text[at..].find('>') else { break };
        let piece = &text[at..=at + end];
        let inside = &piece[1..piece.len() - 1];
        let is_barred = inside.len() > 2 && inside.starts_with('|') && inside.ends_with('|');
        let is_turn = ["start_of_turn", "end_of_turn"].contains(&inside);
        if (is_barred || is_turn) && !inside.contains(['<', ' ', '\n']) && !found.contains(&piece) {
            found.push(piece);
        }
    }
    found
}

/// The added token that follows the answer.
fn end<'a>(text: &str, added: &'a [(u32, String)]) -> Option<(u32, &'a str)> {
    let after = text[text.rfind(ANSWER)? + ANSWER.len()..].trim_start();
    let fits = added.iter().filter(|(_, token)| !token.trim().is_empty() && after.starts_with(token.trim_start()));
    fits.max_by_key(|(_, token)| token.len()).map(|(id, token)| (*id, token.as_str()))
}
