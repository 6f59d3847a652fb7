//! What of a server's words may stand in an error. A server that refuses a request often repeats it, and a request holds rows, questions
//! and patients' words, which no error or log may hold.
//!
//! Its answer is shown as it is where it says nothing that was sent. Otherwise what was sent is cut out: each word of it but those in
//! which servers speak of requests, each run of [`N_RUN`] of its words whatever they are, and runs of its token ids.

use serde_json::Value;
use std::collections::HashSet;

/// Characters of an answer that an error shows.
const N_SHOWN: usize = 300;

/// Bytes of an answer that are looked at.
const N_READ: usize = 8 << 10;

/// So many words in a row that were sent in this order are a quotation, even of words that servers use.
const N_RUN: usize = 4;

/// From so many bytes on a word is also taken for sent where it is a part of a sent one: escapes and cuts leave parts.
const N_PART: usize = 4;

const CUT: &str = "[..]";

/// Words that servers use to say what is wrong. They stay although a request holds them too, unless in a run.
const WORDS: &str = "a above after all allowed an and any are array as at be because been before below but by can cannot characters chat class code \
    completion completions content context could decoder detail did does embedding embeddings empty encoder error errors exceed exceeded exceeds \
    exception expected fail failed failure field fields file for format found from get given got greater had has have however if in input inputs \
    instead int integer internal invalid is it json its key large larger len length less limit list loc logprob logprobs long longer many max maximum \
    message messages method min minimum missing model more most msg must name new no none not null number object of on one only operation or out \
    output over parameter parameters please post prompt prompts provided reduce reason request requested requests required response retry role \
    roles sequence server service should size small status str string supported system template than that the their there this to token \
    tokenizer tokens too total try type unable unexpected unknown unsupported url use user used using valid value was were which while with would wrong \
    you your";

/// Keys whose values are no text of a row.
const NAMES: [&str; 4] = ["model", "role", "type", "stop"];

/// What was sent, in small letters.
#[derive(Default)]
struct Sent {
    words: HashSet<String>,
    /// All words and token ids in their order, each with a blank before and behind it.
    joined: String,
    keys: HashSet<String>,
}

impl Sent {
    fn add(&mut self, value: &Value) {
        match value {
            Value::String(text) => {
                for (_, word) in words(text) {
                    let word = word.to_lowercase();
                    self.joined.push_str(&word);
                    self.joined.push(' ');
                    self.words.insert(word);
                }
            }
            Value::Number(number) => self.joined.push_str(&format!("{number} ")),
            Value::Array(parts) => parts.iter().for_each(|part| self.add(part)),
            Value::Object(parts) => {
                for (key, part) in parts {
                    self.keys.extend(words(key).map(|(_, word)| word.to_lowercase()));
                    if !NAMES.contains(&key.as_str()) {
                        self.add(part);
                    }
                }
            }
            Value::Null | Value::Bool(_) => {}
        }
    }

    fn is_said(&self, word: &str) -> bool {
        if WORDS.split_whitespace().any(|own| own == word) || self.keys.contains(word) {
            return false;
        }
        self.words.contains(word) || (word.len() >= N_PART && self.joined.contains(word) && !is_number(word))
    }
}

fn is_number(word: &str) -> bool {
    word.bytes().all(|byte| byte.is_ascii_digit())
}

/// The words of a text, each with where it begins.
fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let parts = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    parts.map(move |word| (word.as_ptr() as usize - text.as_ptr() as usize, word))
}

/// The beginning of a server's `answer` to `request`, a JSON text, without what was sent.
pub(super) fn shown(answer: &str, request: &[u8]) -> String {
    let mut sent = Sent { joined: " ".to_owned(), ..Sent::default() };
    sent.add(&serde_json::from_slice(request).unwrap_or_default());
    let read = &answer[..answer.floor_char_boundary(N_READ)];
    // Twice: a message inside JSON often quotes what was escaped before.
    let plain = without_escapes(&without_escapes(read));
    let found: Vec<(usize, &str)> = words(&plain).collect();
    let lower: Vec<String> = found.iter().map(|(_, word)| word.to_lowercase()).collect();
    let mut is_cut: Vec<bool> = lower.iter().map(|word| sent.is_said(word)).collect();
    for (start, run) in lower.windows(N_RUN).enumerate() {
        if sent.joined.contains(&format!(" {} ", run.join(" "))) {
            is_cut[start..start + N_RUN].fill(true);
        }
    }
    if !is_cut.contains(&true) {
        return answer.chars().take(N_SHOWN).collect();
    }
    let (mut text, mut end) = (String::new(), 0);
    let mut was_cut = false;
    for ((start, word), is_cut) in found.into_iter().zip(is_cut) {
        if !(is_cut && was_cut) {
            text.push_str(&plain[end..start]);
            text.push_str(if is_cut { CUT } else { word });
        }
        (end, was_cut) = (start + word.len(), is_cut);
    }
    text.push_str(&plain[end..]);
    text.chars().take(N_SHOWN).collect()
}

/// The text with JSON's escapes replaced by what they stand for, line breaks and tabs by blanks.
fn without_escapes(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once('\\') {
        plain.push_str(before);
        let mut chars = behind.chars();
        rest = match chars.next() {
            Some('n' | 'r' | 't') => {
                plain.push(' ');
                chars.as_str()
            }
            Some('u') => match behind.get(1..5).and_then(|digits| u32::from_str_radix(digits, 16).ok()) {
                Some(code) => {
                    plain.push(char::from_u32(code).unwrap_or(' '));
                    &behind[5..]
                }
                None => behind,
            },
            Some(c) => {
                plain.push(c);
                chars.as_str()
            }
            None => "",
        };
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const ROW: &str = "A 54-year-old café owner, Ngozi Okafor,\nsays: \"the pain is in the left arm\"";

    fn request() -> Value {
        json!({"model": "llama", "messages": [{"role": "user", "content": ROW}], "max_tokens": 8, "top_k": -1,
            "stop": ["<|eot|>"]})
    }

    fn check(answer: &str) -> String {
        shown(answer, request().to_string().as_bytes())
    }

    #[test]
    fn an_answer_that_repeats_nothing_is_shown_as_it_is_up_to_300_characters() {
        for answer in [
            "{\"error\":{\"message\":\"This model's maximum context length is 2048 tokens, you requested 4096\\n\"}}",
            "unknown field `top_k`",
            "{\"detail\": \"model `llama` not found\"}",
            "",
        ] {
            assert_eq!(check(answer), answer);
        }
        assert_eq!(check(&"xyzzy ".repeat(200)).len(), 300);
    }

    /// As FastAPI's validation, a Python exception and a plain server repeat a message; the words of the row are those of [`ROW`].
    #[test]
    fn what_a_server_repeats_of_a_row_is_cut_out_however_it_is_escaped() {
        let nested = json!({"detail": [{"loc": ["body", "messages"], "msg": "Input should be valid", "input": [{"content": ROW}]}]});
        let python = json!({"error": {"message": format!("bad message: {}", json!({"content": ROW}))}});
        for answer in [
            nested.to_string(),
            nested.to_string().replace("é", "\\u00e9"),
            python.to_string(),
            format!("cannot render: {ROW}"),
            format!("cannot render: {}", ROW.to_uppercase()),
        ] {
            let text = check(&answer);
            for word in ["54", "year", "caf", "owner", "ngozi", "okafor", "says", "pain", "left", "arm", "is in the"] {
                assert!(!text.to_lowercase().contains(word), "{word}: {text}");
            }
            assert!(text.contains("[..]"), "{text}");
        }
        assert!(check(&nested.to_string()).contains("Input should be valid"), "{}", check(&nested.to_string()));
        assert_eq!(check("bad prompt: the pain is in the left arm!"), "bad prompt: [..]!");
        assert_eq!(check("the prompt is too long for the pain"), "the prompt is too long for the [..]");
    }

    #[test]
    fn token_ids_that_a_server_repeats_are_cut_out_and_a_limit_that_is_one_of_them_stays() {
        let request = json!({"model": "m", "prompt": [128_000, 2048, 77, 91, 15, 3]}).to_string();
        assert_eq!(
            shown("not taken: [128000, 2048, 77, 91, 15, 3]; at most 2048 tokens", request.as_bytes()),
            "not taken: [[..]]; at most 2048 tokens"
        );
    }
}
