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

/// What a byte is in simplified text: 0 a space, 1 a number, else the letter in lower case.
const SIMPLE: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 128 {
        let ascii = byte as u8;
        table[byte] = if ascii.is_ascii_digit() {
            1
        } else if ascii.is_ascii_alphabetic() {
            ascii.to_ascii_lowercase()
        } else {
            0
        };
        byte += 1;
    }
    table
};

/// One pass over bytes: the common case, several times faster. The test below holds it to [`simplify_any`].
fn simplify_ascii(text: &[u8]) -> String {
    simplify_ascii_to(text, usize::MAX)
}

/// As [`simplify_ascii`], but nothing more once there are `enough` bytes.
fn simplify_ascii_to(text: &[u8], enough: usize) -> String {
    // Never longer than the text: a space is written for at least one byte.
    let mut simplified = Vec::with_capacity(text.len().min(enough.saturating_add(2)));
    let mut at = 0;
    let mut space = false;
    while at < text.len() && simplified.len() < enough {
        let simple = SIMPLE[usize::from(text[at])];
        at += 1;
        if simple == 0 {
            space = true;
            continue;
        }
        if space && !simplified.is_empty() {
            simplified.push(b' ');
        }
        space = false;
        if simple > 1 {
            simplified.push(simple);
            continue;
        }
        let digits = |from: usize| text[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        at += digits(at);
        if at < text.len() && matches!(text[at], b'.' | b',') {
            let n_decimals = digits(at + 1);
            at += if n_decimals > 0 { 1 + n_decimals } else { 0 };
        }
        simplified.push(b'0');
    }
    String::from_utf8(simplified).expect("ASCII in, ASCII out")
}

/// The beginning of [`simplify`]'s text, at least `enough` bytes of it where it has so many: what a comparison with a list of short texts
/// needs.
pub(crate) fn simplify_start(text: &str, enough: usize) -> String {
    if text.is_ascii() { simplify_ascii_to(text.as_bytes(), enough) } else { simplify_any(text) }
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
    let mut joined = Vec::with_capacity(text.len());
    let mut space = false;
    for &byte in text.as_bytes() {
        if byte.is_ascii_alphanumeric() {
            if space && !joined.is_empty() {
                joined.push(b' ');
            }
            space = false;
            joined.push(byte.to_ascii_lowercase());
        } else {
            space = true;
        }
    }
    String::from_utf8(joined).expect("ASCII in, ASCII out")
}

fn plain_any(text: &str) -> String {
    let spaced: String = text.to_lowercase().chars().map(|c| if c.is_alphanumeric() { c } else { ' ' }).collect();
    spaced.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Marks of writing, which change no meaning; what else is neither letter, digit nor white space says something: `>`, `%`, an emoji.
const MARKS_OF_WRITING: &str = ".,;:!?¿¡…'\"()[]{}’‘‚‛“”„«»‹›`´*_#|\\/·•‣—―－（）、。，；：！？「」【】؟،؛।॥\u{61c}\u{ad}\u{200b}\u{200c}\u{200d}\u{200e}\u{200f}\u{2060}\u{feff}\u{fe0f}";

/// The text whose equality makes two rows exact copies: lower case, marks of writing off, letters, digits and signs as they are. A mark
/// between two digits stays (`1.5`, `1/2`, `3-4`), a minus where it stands at one side of a word or number (`O-`, `-5`).
pub(crate) fn to_the_sign(text: &str) -> String {
    if text.is_ascii() {
        signs_of(text.bytes().map(|byte| char::from(byte.to_ascii_lowercase())), text.len())
    } else {
        let lower = text.to_lowercase();
        signs_of(lower.chars(), lower.len())
    }
}

fn signs_of(chars: impl Iterator<Item = char>, n_bytes: usize) -> String {
    let mut kept = String::with_capacity(n_bytes);
    let mut chars = chars.peekable();
    let (mut before, mut space) = (' ', false);
    while let Some(c) = chars.next() {
        let after = chars.peek().copied().unwrap_or(' ');
        let written = match c {
            '–' | '−' | '‐' | '‑' => '-',
            ',' => '.',
            c => c,
        };
        if c.is_alphanumeric() || (before.is_ascii_digit() && after.is_ascii_digit() && !c.is_whitespace()) {
            if space && !kept.is_empty() {
                kept.push(' ');
            }
            space = false;
            kept.push(written);
        } else {
            if is_sign(written, before, after) {
                if !kept.is_empty() {
                    kept.push(' ');
                }
                kept.push(written);
            }
            space = true;
        }
        before = c;
    }
    kept
}

fn is_sign(c: char, before: char, after: char) -> bool {
    match c {
        '-' => before.is_alphanumeric() != after.is_alphanumeric() && before != '-' && after != '-',
        c => !c.is_whitespace() && !c.is_control() && !MARKS_OF_WRITING.contains(c),
    }
}

/// The signs of such a text in order.
pub(crate) fn signs_alone(to_the_sign: &str) -> String {
    to_the_sign.chars().filter(|c| !c.is_alphanumeric() && !matches!(c, ' ' | '.')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_that_change_what_a_text_says_stay_and_marks_of_writing_do_not() {
        let equal = [
            ("Short?", "short"),
            ("a 45-year-old man, well", "A 45 year old man: well."),
            ("*Na* > 145", "Na>145"),
            ("1,5 mg", "1.5 mg"),
            ("3–4 weeks", "3-4 weeks"),
            ("word - word", "word word"),
            ("“and/or”", "and or"),
        ];
        for (one, other) in equal {
            assert_eq!(to_the_sign(one), to_the_sign(other));
        }
        let different = [
            ("O+", "O-"),
            ("O-", "O"),
            ("Na > 145", "Na < 145"),
            ("excess -5", "excess +5"),
            ("excess −5", "excess 5"),
            ("n=2", "n≠2"),
            ("n≥2", "n≤2"),
            ("😀?", "😂?"),
            ("1.5 mg", "15 mg"),
            ("1-5 mg", "1.5 mg"),
            ("1/2", "1.2"),
            ("5 %", "5"),
            ("5 ± 1", "5 1"),
        ];
        for (one, other) in different {
            assert_ne!(to_the_sign(one), to_the_sign(other));
        }
        assert_eq!(signs_alone(&to_the_sign("Na > 1.5, K 3-4 %; O-")), ">-%-");
    }

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

    #[test]
    fn the_start_of_simplified_text_is_its_beginning_and_the_whole_where_that_is_short() {
        for text in ["One, two - 3.5 three: four", "Añadió 7,5 mg; nada más", "", "  ", "a"] {
            let whole = simplify(text);
            for enough in 0..=whole.len() + 2 {
                let start = simplify_start(text, enough);
                assert!(
                    whole.starts_with(&start) && start.len() >= enough.min(whole.len()),
                    "{text:?} {enough}: {start:?}"
                );
            }
        }
    }
}
