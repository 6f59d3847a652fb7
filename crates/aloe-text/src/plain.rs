//! Encoders that know no control token: what user text goes through.
//!
//! Three of them, because some tokenizers put a space before a text: at the start of a sequence, after a control token, and in the
//! middle of a text. For byte-level tokenizers all three are one. The models share memory with the full tokenizer where they can.

use crate::added::{AddedTokens, is_text};
use crate::{Error, Result};
use serde_json::{Value, json};
use std::ops::Range;
use tokenizers::{
    AddedVocabulary, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    Tokenizer as HfTokenizer,
};

/// Where a piece of text stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Start,
    AfterToken,
    Middle,
}

pub(crate) struct PlainEncoders {
    start: HfTokenizer,
    /// None: the same as `start`.
    after_token: Option<HfTokenizer>,
    middle: Option<HfTokenizer>,
}

impl PlainEncoders {
    pub(crate) fn new(full: &HfTokenizer, added: &AddedTokens, origin: &str) -> Result<PlainEncoders> {
        let fail = |message: String| Error::Tokenizer { origin: origin.to_owned(), message };
        let mut start = full.clone();
        let mut text_tokens: Vec<_> =
            full.get_added_tokens_decoder().into_iter().filter(|(_, t)| is_text(&t.content)).collect();
        text_tokens.sort_by_key(|(id, _)| *id);
        if let Some(model) = hide_control(full.get_model(), added).map_err(|e| fail(e.to_string()))? {
            start.with_model(model);
        }
        start.with_added_vocabulary(AddedVocabulary::new());
        start.add_tokens(text_tokens.into_iter().map(|(_, token)| token)).map_err(|e| fail(e.to_string()))?;
        start.with_post_processor(None::<PostProcessorWrapper>);
        let after_token = variant(&start, Place::AfterToken).map_err(|e| fail(e.to_string()))?;
        let middle = variant(&start, Place::Middle).map_err(|e| fail(e.to_string()))?;
        let encoders = PlainEncoders { start, after_token, middle };
        encoders.check_no_control(added, origin)?;
        Ok(encoders)
    }

    /// Each control token, written as text, must come out as other tokens.
    fn check_no_control(&self, added: &AddedTokens, origin: &str) -> Result<()> {
        let unknown = unknown_id(self.start.get_model());
        for token in added.iter() {
            let ids = self.encode(&token.content, Place::Start)?;
            if ids.iter().any(|&id| Some(id) != unknown && added.contains_id(id)) {
                return Err(Error::ControlFromText { origin: origin.to_owned(), token: token.content.clone() });
            }
        }
        Ok(())
    }

    fn at(&self, place: Place) -> &HfTokenizer {
        match place {
            Place::Start => &self.start,
            Place::AfterToken => self.after_token.as_ref().unwrap_or(&self.start),
            Place::Middle => self.middle.as_ref().unwrap_or(&self.start),
        }
    }

    /// Ids of a text.
    pub(crate) fn encode(&self, text: &str, place: Place) -> Result<Vec<u32>> {
        let encoding = self.at(place).encode_fast(text, false).map_err(|e| encode_error(text, e))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Ids with the bytes of `text` that each stands for. Tokens that share a character share its range.
    pub(crate) fn encode_with_ranges(&self, text: &str, place: Place) -> Result<Vec<(u32, Range<usize>)>> {
        let encoding = self.at(place).encode(text, false).map_err(|e| encode_error(text, e))?;
        Ok(encoding.get_ids().iter().zip(encoding.get_offsets()).map(|(&id, &(start, end))| (id, start..end)).collect())
    }
}

pub(crate) fn encode_error(text: &str, error: tokenizers::Error) -> Error {
    Error::Encode { len: text.len(), message: error.to_string() }
}

/// The id for what the vocabulary cannot express: a text may well yield it.
fn unknown_id(model: &ModelWrapper) -> Option<u32> {
    use tokenizers::Model as _;
    match model {
        ModelWrapper::BPE(bpe) => bpe.token_to_id(bpe.unk_token.as_deref()?),
        ModelWrapper::WordPiece(pieces) => pieces.token_to_id(&pieces.unk_token),
        ModelWrapper::WordLevel(words) => words.token_to_id(&words.unk_token),
        ModelWrapper::Unigram(_) => None,
    }
}

/// SmolLM2 and Qwen keep `<|im_start|>` in the model's own vocabulary too; under a name with a private-use character no text
/// reaches it. Left alone where a merge needs the entry: `check_no_control` judges that case.
fn hide_control(model: &ModelWrapper, added: &AddedTokens) -> serde_json::Result<Option<ModelWrapper>> {
    use tokenizers::Model as _;
    let unknown = unknown_id(model);
    let held: Vec<&str> = added
        .iter()
        .filter(|token| model.token_to_id(&token.content) == Some(token.id) && unknown != Some(token.id))
        .map(|token| token.content.as_str())
        .collect();
    if held.is_empty() {
        return Ok(None);
    }
    let mut value = serde_json::to_value(model)?;
    let in_merges = |content: &str, merges: Option<&Value>| {
        let uses = |merge: &Value| match merge {
            Value::String(text) => text.replacen(' ', "", 1) == content,
            Value::Array(parts) => parts.iter().filter_map(Value::as_str).collect::<String>() == content,
            _ => false,
        };
        merges.and_then(Value::as_array).is_some_and(|merges| merges.iter().any(uses))
    };
    let free: Vec<&str> = match value.get("merges").and_then(Value::as_array) {
        Some(merges) if merges.is_empty() => held,
        merges => {
            let merges = merges.map(|merges| Value::Array(merges.clone()));
            held.into_iter().filter(|content| !in_merges(content, merges.as_ref())).collect()
        }
    };
    let hidden = |content: &str| format!("\u{10FFFD}{content}");
    match value.get_mut("vocab") {
        Some(Value::Object(vocab)) => {
            for content in free {
                if let Some(id) = vocab.remove(content) {
                    vocab.insert(hidden(content), id);
                }
            }
        }
        Some(Value::Array(pieces)) => {
            for piece in pieces.iter_mut().filter_map(|piece| piece.get_mut(0)) {
                if piece.as_str().is_some_and(|text| free.contains(&text)) {
                    *piece = json!(hidden(piece.as_str().unwrap_or_default()));
                }
            }
        }
        _ => {}
    }
    serde_json::from_value(value).map(Some)
}

/// The tokenizer without the space that it puts before a text, or None when it puts none.
fn variant(start: &HfTokenizer, place: Place) -> serde_json::Result<Option<HfTokenizer>> {
    let normalizer = serde_json::to_value(start.get_normalizer())?;
    let pre_tokenizer = serde_json::to_value(start.get_pre_tokenizer())?;
    let (new_normalizer, new_pre_tokenizer) =
        (without_prefix(normalizer.clone(), place), without_prefix(pre_tokenizer.clone(), place));
    if new_normalizer == normalizer && new_pre_tokenizer == pre_tokenizer {
        return Ok(None);
    }
    let mut tokenizer = start.clone();
    let pre_tokenizer: Option<PreTokenizerWrapper> = serde_json::from_value(new_pre_tokenizer)?;
    let normalizer: Option<NormalizerWrapper> = serde_json::from_value(new_normalizer)?;
    tokenizer.with_pre_tokenizer(pre_tokenizer);
    tokenizer
        .with_normalizer(normalizer)
        .map_err(|e| <serde_json::Error as serde::de::Error>::custom(e.to_string()))?;
    Ok(Some(tokenizer))
}

/// Walks a normalizer or pre-tokenizer as JSON. `AfterToken` only changes Metaspace's `first`; `Middle` also drops `Prepend`.
fn without_prefix(value: Value, place: Place) -> Value {
    let Value::Object(mut map) = value else { return value };
    let kind = map.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    match kind.as_str() {
        "Sequence" => {
            for key in ["normalizers", "pretokenizers"] {
                if let Some(Value::Array(parts)) = map.get_mut(key) {
                    let kept = parts.drain(..).map(|part| without_prefix(part, place)).filter(|part| !part.is_null());
                    *parts = kept.collect();
                }
            }
        }
        "Prepend" if place == Place::Middle => return Value::Null,
        "ByteLevel" if place == Place::Middle => {
            map.insert("add_prefix_space".to_owned(), json!(false));
        }
        "Metaspace" if place == Place::Middle || map.get("prepend_scheme") == Some(&json!("first")) => {
            map.insert("prepend_scheme".to_owned(), json!("never"));
        }
        _ => {}
    }
    Value::Object(map)
}
