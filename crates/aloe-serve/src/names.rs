//! Tokens as texts: what a client reads in `tokens` and `top_logprobs`, and where each stands in the text.

use aloe_text::{DecodeStream, TextModel};
use std::collections::HashMap;
use std::sync::{OnceLock, PoisonError, RwLock};

/// A token as a client sees it.
#[derive(Debug, PartialEq)]
pub(crate) struct Named {
    /// Its text with the space before it; of a part of a character its bytes, written `bytes:\xe2\x82` as OpenAI does.
    pub(crate) name: String,
    /// Its bytes.
    pub(crate) bytes: Vec<u8>,
}

/// The names of a vocabulary, each made when it is first asked for.
pub(crate) struct Names {
    text: TextModel,
    /// An ordinary token, behind which another one keeps the space at its beginning, and its text.
    anchor: Option<(u32, String)>,
    named: Vec<OnceLock<Named>>,
    /// Ids beyond the tokenizer's vocabulary: a model may have more rows than that.
    beyond: RwLock<HashMap<u32, std::sync::Arc<Named>>>,
}

impl Names {
    pub(crate) fn new(text: TextModel) -> Self {
        let anchor = text.tokenizer.encode_plain("a").ok().and_then(|ids| ids.last().copied());
        let anchor = anchor.and_then(|id| Some((id, text.tokenizer.decode(&[id], false).ok()?)));
        let named = (0..text.tokenizer.vocab_size()).map(|_| OnceLock::new()).collect();
        Self { text, anchor, named, beyond: RwLock::default() }
    }

    /// Reads a token's name and bytes.
    pub(crate) fn with<T>(&self, id: u32, read: impl FnOnce(&Named) -> T) -> T {
        if let Some(named) = self.named.get(id as usize) {
            return read(named.get_or_init(|| self.make(id)));
        }
        let known = self.beyond.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
        let named = known.unwrap_or_else(|| {
            let mut beyond = self.beyond.write().unwrap_or_else(PoisonError::into_inner);
            std::sync::Arc::clone(beyond.entry(id).or_insert_with(|| std::sync::Arc::new(self.make(id))))
        });
        read(&named)
    }

    /// A token's name, or `token_id:5`.
    pub(crate) fn name(&self, id: u32, by_id: bool) -> String {
        if by_id { format!("token_id:{id}") } else { self.with(id, |named| named.name.clone()) }
    }

    fn make(&self, id: u32) -> Named {
        let tokenizer = &self.text.tokenizer;
        let word = tokenizer.token(id).unwrap_or_default();
        if tokenizer.is_control(id) || word.is_empty() {
            return Named { bytes: word.clone().into_bytes(), name: word };
        }
        let decoded = |ids: &[u32]| tokenizer.decode(ids, false).unwrap_or_default();
        let behind = self.anchor.as_ref().and_then(|(anchor, text)| {
            let both = decoded(&[*anchor, id]);
            both.strip_prefix(text.as_str()).map(str::to_owned)
        });
        let name = behind.unwrap_or_else(|| decoded(&[id]));
        if !name.contains('\u{FFFD}') {
            return Named { bytes: name.clone().into_bytes(), name };
        }
        match bytes_of(&word) {
            Some(bytes) => {
                let hex: String = bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect();
                Named { name: format!("bytes:{hex}"), bytes }
            }
            None => Named { bytes: word.clone().into_bytes(), name: word },
        }
    }

    /// Where each token begins in the text of `ids`, counted in characters from `start`, and where the text ends. A character of several
    /// tokens belongs to the last of them.
    pub(crate) fn offsets(&self, ids: &[u32], skip_special: bool, start: usize) -> (Vec<usize>, usize) {
        offsets_in(&mut self.stream(skip_special), ids, start)
    }

    /// The text of ids that come one by one.
    pub(crate) fn stream(&self, skip_special: bool) -> DecodeStream {
        self.text.tokenizer.decode_stream(skip_special)
    }
}

/// As [`Names::offsets`], for the next ids of a text.
pub(crate) fn offsets_in(stream: &mut DecodeStream, ids: &[u32], start: usize) -> (Vec<usize>, usize) {
    let (mut at, mut offsets) = (start, Vec::with_capacity(ids.len()));
    for &id in ids {
        offsets.push(at);
        at += stream.step(id).map_or(0, |piece| piece.chars().count());
    }
    (offsets, at)
}

/// The bytes of a token as a vocabulary writes them: `<0xE2>` (sentencepiece), or a character for each byte (GPT-2).
fn bytes_of(word: &str) -> Option<Vec<u8>> {
    let hex = word.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    if let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
        return Some(vec![byte]);
    }
    word.chars().map(byte_of).collect()
}

/// GPT-2's `bytes_to_unicode`, backwards: printable bytes are themselves, the others follow from U+0100 on in their order.
fn byte_of(c: char) -> Option<u8> {
    let is_itself = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    match u32::from(c) {
        code @ 0..=255 => Some(code as u8).filter(|&byte| is_itself(byte)),
        code => (0..=255u8).filter(|&byte| !is_itself(byte)).nth((code - 256) as usize),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By GPT-2's table: a space is U+0120, a new line U+010A, the byte 0xad U+0143.
    #[test]
    fn the_bytes_of_a_token_are_read_from_both_ways_of_writing_them() {
        assert_eq!(bytes_of("<0xE2>"), Some(vec![0xe2]));
        assert_eq!(bytes_of("\u{120}a\u{10a}\u{143}"), Some(vec![b' ', b'a', b'\n', 0xad]));
        assert_eq!(bytes_of("\u{2581}a"), None);
    }
}
