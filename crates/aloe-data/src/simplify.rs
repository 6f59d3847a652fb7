//! Datatrove's text simplification (`utils/text.py`, 0.6.0): lower case, numbers to `0`, punctuation to spaces, white space
//! joined, accents off. Golden: `tests/golden/minhash.json`.

use regex::Regex;
use std::sync::LazyLock;
use unicode_normalization::UnicodeNormalization as _;

/// Datatrove's table, characters as it lists them; the control characters are in [`is_punctuation`].
const PUNCTUATION: &str = "!/—”:％１〈&(、━\\【#%「」，】；+^]~“《„';’{|∶´[=-`*．（–？！：$～«〉,><》)?）。…@_.\"}►»";

static NUMBERS: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\p{Nd}+([.,،٫⎖⎗⎘]\p{Nd}+)?").expect("a fixed pattern"));
static MARKS: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\p{Mn}+").expect("a fixed pattern"));

fn is_punctuation(c: char) -> bool {
    match c {
        '\t' | '\n' => false,
        '\0'..='\x1f' | '\x7f'..='\u{9f}' => true,
        _ if c.is_ascii_alphanumeric() || c == ' ' => false,
        _ => PUNCTUATION.contains(c),
    }
}

/// A text without case and punctuation, numbers as they are: what says the same to the letter and the dose.
pub(crate) fn words_alone(text: &str) -> String {
    let lower = text.to_lowercase();
    lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// The text by which rows are compared.
pub fn simplify(text: &str) -> String {
    if text.is_ascii() { simplify_ascii(text.as_bytes()) } else { simplify_any(text) }
}

/// One pass over bytes: the common case, several times faster. The test below holds it to [`simplify_any`].
fn simplify_ascii(text: &[u8]) -> String {
    let mut simplified = String::with_capacity(text.len());
    let mut at = 0;
    let mut space = false;
    while at < text.len() {
        let byte = text[at];
        let mut next = at + 1;
        if byte.is_ascii_alphanumeric() {
            if space && !simplified.is_empty() {
                simplified.push(' ');
            }
            space = false;
            if byte.is_ascii_digit() {
                let digits = |from: usize| text[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
                next = at + digits(at);
                if next < text.len() && matches!(text[next], b'.' | b',') {
                    let n_decimals = digits(next + 1);
                    next += if n_decimals > 0 { 1 + n_decimals } else { 0 };
                }
                simplified.push('0');
            } else {
                simplified.push(char::from(byte.to_ascii_lowercase()));
            }
        } else {
            space = true;
        }
        at = next;
    }
    simplified
}

fn simplify_any(text: &str) -> String {
    let lower = text.to_lowercase();
    let numbers = NUMBERS.replace_all(&lower, "0");
    let spaced: String = numbers.chars().map(|c| if is_punctuation(c) { ' ' } else { c }).collect();
    let mut joined = String::with_capacity(spaced.len());
    for word in spaced.split_whitespace() {
        if !joined.is_empty() {
            joined.push(' ');
        }
        joined.push_str(word);
    }
    if joined.is_ascii() {
        return joined;
    }
    let decomposed: String = joined.nfd().collect();
    MARKS.replace_all(&decomposed, "").trim().to_owned()
}

/// Lower case, letters and digits only, single spaces: unlike [`simplify`] it keeps numbers and accents.
pub(crate) fn plain(text: &str) -> String {
    if text.is_ascii() { plain_ascii(text) } else { plain_any(text) }
}

fn plain_ascii(text: &str) -> String {
    let mut joined = String::with_capacity(text.len());
    let mut space = false;
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() {
            if space && !joined.is_empty() {
                joined.push(' ');
            }
            space = false;
            joined.push(char::from(byte.to_ascii_lowercase()));
        } else {
            space = true;
        }
    }
    joined
}

fn plain_any(text: &str) -> String {
    let spaced: String = text.to_lowercase().chars().map(|c| if c.is_alphanumeric() { c } else { ' ' }).collect();
    spaced.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pass_over_bytes_equals_the_general_one_on_every_ascii_character_and_on_numbers() {
        let all: String = (0..128u8).map(char::from).collect();
        let doubled: String =
            (0..128u8).flat_map(|byte| ['a', char::from(byte), '1', char::from(byte), char::from(byte)]).collect();
        for text in [all.as_str(), &doubled, "", " ", "1,000,000.5 mg", "3. 4 .5 6,7,8", "x1.2y", "v1..2", "end 5."] {
            assert_eq!(simplify_ascii(text.as_bytes()), simplify_any(text), "{text:?}");
            assert_eq!(plain_ascii(text), plain_any(text), "{text:?}");
        }
    }
}
