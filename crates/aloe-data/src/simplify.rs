//! Datatrove's text simplification (`utils/text.py`, 0.6.0): lower case, numbers to `0`, punctuation to spaces, white space
//! joined, accents off. Golden: `tests/golden/minhash.json`.

use aloe_tensor::Isa;
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
    by_words(text, simplify_ascii, simplify_any)
}

/// Simplifies a text by its stretches: long ones of ASCII by `ascii`, and what stands between two blanks of ASCII with another character
/// in it by `any`, whose result counts as a word unless it is `None`. Neither case, numbers nor accents reach across a blank of ASCII, so
/// that the whole is its parts with single spaces between them.
fn by_words(text: &str, ascii: fn(&[u8]) -> String, any: fn(&str) -> Option<String>) -> String {
    if text.is_ascii() {
        return ascii(text.as_bytes());
    }
    let bytes = text.as_bytes();
    let is_blank = |byte: &u8| byte.is_ascii_whitespace();
    let mut joined = String::with_capacity(text.len());
    let mut is_begun = false;
    let mut add = |part: &str| {
        if std::mem::replace(&mut is_begun, true) {
            joined.push(' ');
        }
        joined.push_str(part);
    };
    let mut at = 0;
    while at < bytes.len() {
        let n_ascii = n_ascii(&bytes[at..]);
        let is_last = at + n_ascii == bytes.len();
        // The word that the other character stands in is not ASCII.
        let before = &bytes[at..at + n_ascii];
        let n_whole = if is_last { n_ascii } else { before.iter().rposition(is_blank).map_or(0, |blank| blank + 1) };
        let simple = ascii(&before[..n_whole]);
        if !simple.is_empty() {
            add(&simple);
        }
        at += n_whole;
        let word = &text[at..];
        let word = &word[..word.bytes().position(|byte| is_blank(&byte)).unwrap_or(word.len())];
        if let Some(simple) = any(word) {
            add(&simple);
        }
        at += word.len();
    }
    joined.trim().to_owned()
}

/// Bytes of ASCII at the beginning.
fn n_ascii(bytes: &[u8]) -> usize {
    let (chunks, _) = bytes.as_chunks::<32>();
    let n_sure = 32 * chunks.iter().take_while(|chunk| chunk.is_ascii()).count();
    n_sure + bytes[n_sure..].iter().take_while(|byte| byte.is_ascii()).count()
}

/// Bytes that are taken at once where they are all letters and single spaces.
const N_RUN: usize = 32;

/// The bytes in lower case, if they are letters and single spaces alone: without a branch, for vectors.
#[inline(always)]
fn lower_run(bytes: &[u8; N_RUN]) -> Option<[u8; N_RUN]> {
    let (mut lower, mut other) = ([0; N_RUN], 0);
    for (lower, &byte) in lower.iter_mut().zip(bytes) {
        // A space has the bit by which small letters differ from capitals.
        *lower = byte | 0x20;
        other |= u8::from((lower.wrapping_sub(b'a') >= 26) & (byte != b' '));
    }
    for (&byte, &next) in bytes.iter().zip(&bytes[1..]) {
        other |= u8::from((byte == b' ') & (next == b' '));
    }
    (other == 0).then_some(lower)
}

/// Text of ASCII in the making, without a space behind a space. Its room is asked for once.
struct Joined {
    bytes: Vec<u8>,
    len: usize,
    /// The last byte; at first a space, so that none is the first.
    last: u8,
}

impl Joined {
    fn new(len_at_most: usize) -> Joined {
        Joined { bytes: vec![0; len_at_most], len: 0, last: b' ' }
    }

    /// A space behind a space is overwritten by what comes next.
    #[inline(always)]
    fn push(&mut self, byte: u8) {
        self.bytes[self.len] = byte;
        self.len += usize::from((byte != b' ') | (self.last != b' '));
        self.last = byte;
    }

    /// Adds the next bytes of `text` from `at` on, if they are letters and single spaces.
    #[inline(always)]
    fn push_run(&mut self, text: &[u8], at: usize) -> bool {
        let Some(lower) = text[at..].first_chunk().and_then(lower_run) else { return false };
        if lower[0] == b' ' && self.last == b' ' {
            return false;
        }
        self.bytes[self.len..self.len + N_RUN].copy_from_slice(&lower);
        self.len += N_RUN;
        self.last = lower[N_RUN - 1];
        true
    }

    fn finish(mut self) -> String {
        self.len -= usize::from(self.len > 0 && self.last == b' ');
        self.bytes.truncate(self.len);
        String::from_utf8(self.bytes).expect("ASCII in, ASCII out")
    }
}

/// What a byte is in simplified text: 1 a number, else a space or the letter in lower case.
const SIMPLE: [u8; 256] = {
    let mut table = [b' '; 256];
    let mut byte = 0;
    while byte < 128 {
        let ascii = byte as u8;
        if ascii.is_ascii_digit() {
            table[byte] = 1;
        } else if ascii.is_ascii_alphabetic() {
            table[byte] = ascii.to_ascii_lowercase();
        }
        byte += 1;
    }
    table
};

/// One pass over bytes: the common case, several times faster. The test below holds it to [`simplify_any`].
fn simplify_ascii(text: &[u8]) -> String {
    let mut simplified = Joined::new(text.len());
    Isa::wide(|| {
        let mut at = 0;
        while at < text.len() {
            if simplified.push_run(text, at) {
                at += N_RUN;
                continue;
            }
            let end = text.len().min(at + N_RUN);
            while at < end {
                at = simplify_byte(text, at, &mut simplified);
            }
        }
    });
    simplified.finish()
}

/// Adds what begins at `at`; gives where it ends.
#[inline(always)]
fn simplify_byte(text: &[u8], at: usize, simplified: &mut Joined) -> usize {
    let simple = SIMPLE[usize::from(text[at])];
    if simple != 1 {
        simplified.push(simple);
        return at + 1;
    }
    simplified.push(b'0');
    let digits = |from: usize| text[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let end = at + digits(at);
    if !matches!(text.get(end), Some(b'.' | b',')) {
        return end;
    }
    let n_decimals = digits(end + 1);
    if n_decimals > 0 { end + 1 + n_decimals } else { end }
}

/// The beginning of [`simplify`]'s text, at least `enough` bytes of it where it has so many: what a comparison with a list of short texts
/// needs.
pub(crate) fn simplify_start(text: &str, enough: usize) -> String {
    // Cut at a blank, which nothing reaches across.
    let mut n_bytes = enough + enough / 4;
    while let Some(n_rest) =
        text.as_bytes().get(n_bytes..).and_then(|rest| rest.iter().position(u8::is_ascii_whitespace))
    {
        let simplified = simplify(&text[..n_bytes + n_rest]);
        if simplified.len() >= enough {
            return simplified;
        }
        n_bytes = 2 * (n_bytes + n_rest);
    }
    simplify(text)
}

/// `None` where nothing is a word.
fn simplify_any(text: &str) -> Option<String> {
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
        return Some(joined).filter(|joined| !joined.is_empty());
    }
    let decomposed: String = joined.nfd().collect();
    Some(MARKS.replace_all(&decomposed, "").into_owned())
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
    let any = |text: &str| {
        let lower = text.to_lowercase();
        Some(signs_of(&lower)).filter(|kept| !kept.is_empty())
    };
    by_words(text, signs_of_ascii, any)
}

/// What a byte is in such a text: a letter or digit in lower case, a space for blanks, 1 for all else, which may be a sign.
const SIGNED: [u8; 256] = {
    let mut table = [1; 256];
    let mut byte = 0;
    while byte < 128 {
        let ascii = byte as u8;
        if ascii.is_ascii_alphanumeric() {
            table[byte] = ascii.to_ascii_lowercase();
        } else if matches!(ascii, b' ' | b'\t'..=b'\r') {
            table[byte] = b' ';
        }
        byte += 1;
    }
    table
};

/// One pass over bytes, as for [`simplify`]; the test below holds it to [`signs_of`].
fn signs_of_ascii(text: &[u8]) -> String {
    // Each sign may have a space before and behind it.
    let mut kept = Joined::new(3 * text.len());
    Isa::wide(|| {
        let mut at = 0;
        while at < text.len() {
            if kept.push_run(text, at) {
                at += N_RUN;
                continue;
            }
            let end = text.len().min(at + N_RUN);
            while at < end {
                let c = SIGNED[usize::from(text[at])];
                if c == 1 {
                    push_mark(text, at, &mut kept)
                } else {
                    kept.push(c)
                }
                at += 1;
            }
        }
    });
    kept.finish()
}

/// Adds the mark or sign at `at`.
fn push_mark(text: &[u8], at: usize, kept: &mut Joined) {
    let around = |at: Option<&u8>| at.copied().map_or(' ', char::from);
    let (before, after) = (around(at.checked_sub(1).and_then(|at| text.get(at))), around(text.get(at + 1)));
    let written = if text[at] == b',' { b'.' } else { text[at] };
    if before.is_ascii_digit() && after.is_ascii_digit() {
        kept.push(written);
        return;
    }
    kept.push(b' ');
    if is_sign(char::from(written), before, after) {
        kept.push(written);
        kept.push(b' ');
    }
}

fn signs_of(lower: &str) -> String {
    let mut kept = String::with_capacity(lower.len());
    let mut chars = lower.chars().peekable();
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
            assert_eq!(simplify_ascii(text.as_bytes()), simplify_any(text).unwrap_or_default(), "{text:?}");
            assert_eq!(signs_of_ascii(text.as_bytes()), signs_of(&text.to_lowercase()), "{text:?}");
            assert_eq!(plain_ascii(text), plain_any(text), "{text:?}");
        }
    }

    /// Against the general passes over the whole text, on texts drawn from characters at which something turns: blanks and marks of
    /// several scripts, digits, accents apart, letters whose lower case depends on their neighbours or is longer.
    #[test]
    fn a_text_is_the_sum_of_its_stretches_between_blanks() {
        let parts = [
            " ",
            "  ",
            "\n",
            "\t",
            "\r\n",
            "\u{b}",
            "\u{c}",
            "\u{a0}",
            "\u{2003}",
            "\u{200b}",
            "\u{1}",
            "\u{1f}",
            ".",
            ",",
            "-",
            "+",
            "/",
            "'",
            ">",
            "1",
            "25",
            "1.5",
            "a",
            "B",
            "word",
            "Runs of plain letters and single spaces ",
            "é",
            "E\u{301}",
            "\u{301}",
            "Σ",
            "ΑΣ",
            "İ",
            "—",
            "–",
            "٣",
            "،",
            "½",
            "😀",
            "Å",
            "％",
            "（",
        ];
        let mut draw = aloe_record::CounterRng::new(1, "texts", 0);
        for _ in 0..30_000 {
            let text: String = (0..draw.below(24)).map(|_| parts[draw.below(parts.len())]).collect();
            let whole = simplify_any(&text).unwrap_or_default();
            let whole = whole.trim();
            assert_eq!(simplify(&text), whole, "{text:?}");
            assert_eq!(to_the_sign(&text), signs_of(&text.to_lowercase()), "{text:?}");
            let start = simplify_start(&text, 10);
            assert!(whole.starts_with(&start) && start.len() >= whole.len().min(10), "{text:?}: {start:?}");
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
