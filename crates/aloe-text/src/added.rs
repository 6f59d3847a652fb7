//! The added tokens of a tokenizer and where a template's own text holds them. User text never comes here.
//!
//! The rule is that of Hugging Face's `AddedVocabulary`: leftmost match, the longest of several, with `single_word`, `lstrip` and
//! `rstrip`. Added tokens that are nothing but white space (GPT-NeoX has runs of spaces) are text, not control, and stay with the
//! plain encoder.

use serde_json::Value;
use std::collections::HashMap;
use std::ops::Range;

/// One added token.
#[derive(Clone, Debug)]
pub(crate) struct AddedToken {
    pub(crate) content: String,
    pub(crate) id: u32,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
}

/// All control tokens: every added token that is not mere white space.
#[derive(Clone, Debug, Default)]
pub(crate) struct AddedTokens {
    tokens: Vec<AddedToken>,
    /// First byte -> indices into `tokens`, longest content first.
    by_first_byte: HashMap<u8, Vec<usize>>,
}

/// A control token found in template text.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Found {
    /// Bytes that the token takes, including stripped white space.
    pub(crate) range: Range<usize>,
    pub(crate) id: u32,
}

impl AddedTokens {
    /// Reads `added_tokens` of a tokenizer.json.
    pub(crate) fn from_json(entries: &[Value]) -> AddedTokens {
        let flag = |entry: &Value, name: &str| entry.get(name).and_then(Value::as_bool).unwrap_or(false);
        let tokens: Vec<AddedToken> = entries
            .iter()
            .filter_map(|entry| {
                let content = entry.get("content")?.as_str()?.to_owned();
                let id = u32::try_from(entry.get("id")?.as_u64()?).ok()?;
                let (single_word, lstrip, rstrip) =
                    (flag(entry, "single_word"), flag(entry, "lstrip"), flag(entry, "rstrip"));
                (!is_text(&content)).then_some(AddedToken { content, id, single_word, lstrip, rstrip })
            })
            .collect();
        let mut by_first_byte: HashMap<u8, Vec<usize>> = HashMap::new();
        for (index, token) in tokens.iter().enumerate() {
            by_first_byte.entry(token.content.as_bytes()[0]).or_default().push(index);
        }
        for indices in by_first_byte.values_mut() {
            indices.sort_by_key(|&i| std::cmp::Reverse(tokens[i].content.len()));
        }
        AddedTokens { tokens, by_first_byte }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &AddedToken> {
        self.tokens.iter()
    }

    pub(crate) fn contains_id(&self, id: u32) -> bool {
        self.tokens.iter().any(|token| token.id == id)
    }

    /// Control tokens whose text lies wholly inside `region` of `text`; `lstrip` and `rstrip` may reach beyond it.
    pub(crate) fn find(&self, text: &str, region: Range<usize>) -> Vec<Found> {
        let bytes = text.as_bytes();
        let (mut found, mut at): (Vec<Found>, usize) = (Vec::new(), region.start);
        while at < region.end {
            match self.match_at(text, at, region.end) {
                Some(token) => {
                    let end = at + token.content.len();
                    let free_from = found.last().map_or(0, |last| last.range.end);
                    let start = if token.lstrip { free_from + text[free_from..at].trim_end().len() } else { at };
                    let tail = &text[end..];
                    let stripped = if token.rstrip { tail.len() - tail.trim_start().len() } else { 0 };
                    found.push(Found { range: start..end + stripped, id: token.id });
                    at = end + stripped;
                }
                None => {
                    at += 1;
                    while at < region.end && (bytes[at] & 0xC0) == 0x80 {
                        at += 1;
                    }
                }
            }
        }
        found
    }

    fn match_at(&self, text: &str, at: usize, end: usize) -> Option<&AddedToken> {
        let rest = &text.as_bytes()[at..end];
        let candidates = self.by_first_byte.get(rest.first()?)?;
        let token =
            candidates.iter().map(|&i| &self.tokens[i]).find(|token| rest.starts_with(token.content.as_bytes()))?;
        let alone = |c: Option<char>| !c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        let whole_word =
            alone(text[..at].chars().next_back()) && alone(text[at + token.content.len()..].chars().next());
        (!token.single_word || whole_word).then_some(token)
    }
}

/// White space only: matched in plain text as Hugging Face does.
pub(crate) fn is_text(content: &str) -> bool {
    content.chars().all(char::is_whitespace)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tokens() -> AddedTokens {
        AddedTokens::from_json(&[
            json!({"id": 1, "content": "<|im_end|>", "special": true}),
            json!({"id": 2, "content": "<|im", "special": false}),
            json!({"id": 3, "content": "<r>", "rstrip": true}),
            json!({"id": 4, "content": "<l>", "lstrip": true}),
            json!({"id": 5, "content": "word", "single_word": true}),
            json!({"id": 6, "content": "    "}),
        ])
    }

    #[test]
    fn the_longest_of_the_leftmost_matches_wins_and_flags_take_their_white_space() {
        let check = |text: &str, want: &[(Range<usize>, u32)]| {
            let got: Vec<_> = tokens().find(text, 0..text.len()).into_iter().map(|f| (f.range, f.id)).collect();
            assert_eq!(got, want, "{text:?}");
        };
        check("a<|im_end|>b", &[(1..11, 1)]);
        check("<|im_e", &[(0..4, 2)]);
        check("<r> \n x", &[(0..6, 3)]);
        check("x  <l>y", &[(1..6, 4)]);
        check("words word", &[(6..10, 5)]);
        check("é    é", &[]);
    }

    #[test]
    fn a_token_that_reaches_out_of_the_region_is_not_found() {
        assert!(tokens().find("<|im_end|>", 0..3).is_empty());
        assert_eq!(tokens().find("<|im_end|>", 0..9).len(), 1, "only the shorter <|im fits");
    }
}
