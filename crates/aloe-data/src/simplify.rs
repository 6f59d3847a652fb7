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

/// The text by which rows are compared.
pub fn simplify(text: &str) -> String {
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
