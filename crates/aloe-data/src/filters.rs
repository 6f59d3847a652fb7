//! Filters of length, language and repetition, off unless the recipe asks for them. They look at rows that the cleaning rules left, and
//! each drops by a name of its own: `too_short`, `too_long`, `other_language`, `repetition`.
//!
//! Repetition is Gopher's (arXiv 2112.11446, table A1) as Datatrove 0.6.0 counts it, on each answer of [`LEAST_WORDS`] words or more: in
//! shorter ones, which Gopher drops, an option said again is a large share. Golden: `tests/golden/gopher_repetition.jsonl`.
//! Language is whatlang's, by letters and their runs of three, on rows of [`LEAST_LETTERS`] or more; a row stays where it is not sure.

use crate::{Body, Item};
use aloe_text::Role;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use whatlang::Lang;

/// Which rows are dropped.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Filters {
    /// The fewest words of all messages together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_words: Option<usize>,
    /// The most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_words: Option<usize>,
    /// Languages that stay, as ISO 639-3 or 639-1 writes them (`eng` or `en`, `spa` or `es`); all where there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub languages: Vec<String>,
    /// Drop rows with an answer that repeats itself.
    pub repetition: bool,
}

/// Answers of fewer words are not looked at for repetition: Gopher's least length of a document.
const LEAST_WORDS: usize = 50;

/// Rows of fewer letters keep their place whatever they seem to be: below, whatlang is sure that 138 of 12,199 questions of MedMCQA, HEAD-QA and CareQA are
/// not English (names of drugs and germs), from here on of none of 7,134, and it knows 1,587 of 1,628 Spanish questions of HEAD-QA.
const LEAST_LETTERS: usize = 200;

impl Filters {
    pub(crate) fn is_off(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        if let (Some(min), Some(max)) = (self.min_words, self.max_words)
            && min > max
        {
            mistakes.push(format!("`filters`: no row has {min} words or more and {max} or fewer"));
        }
        for name in self.languages.iter().filter(|name| language(name).is_none()) {
            let known: Vec<String> = TWO_LETTERS.iter().map(|(two, lang)| format!("{} ({two})", lang.code())).collect();
            mistakes.push(format!("`filters.languages`: {name:?} is none of {}", known.join(", ")));
        }
        mistakes
    }

    /// The filter that drops `item`, if one does.
    pub(crate) fn dropped_by(&self, item: &Item) -> Option<&'static str> {
        if self.is_off() {
            return None;
        }
        let messages = item.messages();
        if self.min_words.is_some() || self.max_words.is_some() {
            let n_words = messages.iter().map(|message| message.content.split_whitespace().count()).sum::<usize>();
            if self.min_words.is_some_and(|least| n_words < least) {
                return Some("too_short");
            }
            if self.max_words.is_some_and(|most| n_words > most) {
                return Some("too_long");
            }
        }
        if !self.languages.is_empty() {
            let spoken = messages.iter().filter(|message| message.role != Role::System);
            let text: Vec<&str> = spoken.map(|message| message.content.as_str()).collect();
            if is_other(&text.join("\n"), &self.languages) {
                return Some("other_language");
            }
        }
        // A rejected side may repeat itself: that is what is wrong with it.
        let answers = match &item.body {
            Body::Conversation(conversation) => &conversation.messages,
            Body::Pair(pair) => &pair.chosen,
        };
        let mut answers = answers.iter().filter(|message| message.role == Role::Assistant);
        let repeats = |text: &str| text.split_whitespace().nth(LEAST_WORDS - 1).is_some() && repetition(text).is_some();
        (self.repetition && answers.any(|message| repeats(&message.content))).then_some("repetition")
    }
}

/// Whether the text is surely in a language that is none of `wanted`.
fn is_other(text: &str, wanted: &[String]) -> bool {
    if text.chars().filter(|c| c.is_alphabetic()).nth(LEAST_LETTERS - 1).is_none() {
        return false;
    }
    let found = whatlang::detect(text).filter(whatlang::Info::is_reliable);
    found.is_some_and(|found| !wanted.iter().any(|one| language(one) == Some(found.lang())))
}

/// The languages that whatlang knows by their ISO 639-1 codes; Mandarin has that of Chinese, Bokmål may also be written `no`.
#[rustfmt::skip]
const TWO_LETTERS: [(&str, Lang); 70] = [
    ("af", Lang::Afr), ("ak", Lang::Aka), ("am", Lang::Amh), ("ar", Lang::Ara), ("az", Lang::Aze), ("be", Lang::Bel), ("bn", Lang::Ben),
    ("bg", Lang::Bul), ("ca", Lang::Cat), ("cs", Lang::Ces), ("zh", Lang::Cmn), ("cy", Lang::Cym), ("da", Lang::Dan), ("de", Lang::Deu), ("el", Lang::Ell),
    ("en", Lang::Eng), ("eo", Lang::Epo), ("et", Lang::Est), ("fi", Lang::Fin), ("fr", Lang::Fra), ("gu", Lang::Guj), ("he", Lang::Heb),
    ("hi", Lang::Hin), ("hr", Lang::Hrv), ("hu", Lang::Hun), ("hy", Lang::Hye), ("id", Lang::Ind), ("it", Lang::Ita), ("jv", Lang::Jav),
    ("ja", Lang::Jpn), ("kn", Lang::Kan), ("ka", Lang::Kat), ("km", Lang::Khm), ("ko", Lang::Kor), ("la", Lang::Lat), ("lv", Lang::Lav),
    ("lt", Lang::Lit), ("ml", Lang::Mal), ("mr", Lang::Mar), ("mk", Lang::Mkd), ("my", Lang::Mya), ("ne", Lang::Nep), ("nl", Lang::Nld),
    ("nb", Lang::Nob), ("or", Lang::Ori), ("pa", Lang::Pan), ("fa", Lang::Pes), ("pl", Lang::Pol), ("pt", Lang::Por), ("ro", Lang::Ron),
    ("ru", Lang::Rus), ("si", Lang::Sin), ("sk", Lang::Slk), ("sl", Lang::Slv), ("sn", Lang::Sna), ("es", Lang::Spa), ("sr", Lang::Srp),
    ("sv", Lang::Swe), ("ta", Lang::Tam), ("te", Lang::Tel), ("tl", Lang::Tgl), ("th", Lang::Tha), ("tk", Lang::Tuk), ("tr", Lang::Tur),
    ("uk", Lang::Ukr), ("ur", Lang::Urd), ("uz", Lang::Uzb), ("vi", Lang::Vie), ("yi", Lang::Yid), ("zu", Lang::Zul),
];

/// The language of a code of three or two letters.
fn language(code: &str) -> Option<Lang> {
    let code = if code == "no" { "nb" } else { code };
    let two = || TWO_LETTERS.iter().find(|(two, _)| *two == code).map(|(_, lang)| *lang);
    Lang::from_code(code).or_else(two)
}

/// The first row of table A1 that the text is over.
fn repetition(text: &str) -> Option<&'static str> {
    let n_chars = text.chars().count() as f64;
    let paragraphs: Vec<&str> = split(text.trim(), 2);
    let lines: Vec<&str> = split(text, 1);
    for (parts, by_count, by_chars) in
        [(&paragraphs, "dup_para_frac", "dup_para_char_frac"), (&lines, "dup_line_frac", "dup_line_char_frac")]
    {
        let (n_again, n_chars_again) = repeated(parts);
        if n_again as f64 / parts.len() as f64 > 0.3 {
            return Some(by_count);
        }
        if n_chars_again as f64 / n_chars > 0.2 {
            return Some(by_chars);
        }
    }
    let words: Vec<&str> = text.split_whitespace().collect();
    let top = [(2, 0.2, "top_2_gram"), (3, 0.18, "top_3_gram"), (4, 0.16, "top_4_gram")];
    if let Some((_, _, name)) = top.into_iter().find(|(n, most, _)| top_run(&words, *n) as f64 / n_chars > *most) {
        return Some(name);
    }
    let runs = [
        (5, 0.15, "duplicated_5_n_grams"),
        (6, 0.14, "duplicated_6_n_grams"),
        (7, 0.13, "duplicated_7_n_grams"),
        (8, 0.12, "duplicated_8_n_grams"),
        (9, 0.11, "duplicated_9_n_grams"),
        (10, 0.10, "duplicated_10_n_grams"),
    ];
    let over = runs.into_iter().find(|(n, most, _)| repeated_runs(&words, *n) as f64 / n_chars > *most);
    over.map(|(_, _, name)| name)
}

/// Parts between runs of at least `n_breaks` line breaks; empty ones at the ends count, as those of Python's `re.split` do.
fn split(text: &str, n_breaks: usize) -> Vec<&str> {
    let (mut parts, mut start, mut at) = (Vec::new(), 0, 0);
    let bytes = text.as_bytes();
    while at < bytes.len() {
        let n = bytes[at..].iter().take_while(|byte| **byte == b'\n').count();
        if n >= n_breaks {
            parts.push(&text[start..at]);
            start = at + n;
        }
        at += n.max(1);
    }
    parts.push(&text[start..]);
    parts
}

/// How many parts stand earlier too, and their characters.
fn repeated(parts: &[&str]) -> (usize, usize) {
    let mut seen = HashSet::new();
    let again = parts.iter().filter(|part| !seen.insert(**part));
    again.fold((0, 0), |(n, n_chars), part| (n + 1, n_chars + part.chars().count()))
}

/// Characters of all copies of the most common run of `n` words, spaces included; of equally common ones the first.
fn top_run(words: &[&str], n: usize) -> usize {
    let mut counts: HashMap<&[&str], usize> = HashMap::new();
    for run in words.windows(n) {
        *counts.entry(run).or_default() += 1;
    }
    let most = counts.values().copied().max().unwrap_or(0);
    let first = words.windows(n).find(|run| counts[run] == most);
    first.map_or(0, |run| most * (n_chars(run) + n - 1))
}

/// Characters, without spaces, of the runs of `n` words that stand earlier too, none over another.
fn repeated_runs(words: &[&str], n: usize) -> usize {
    let mut seen: HashSet<&[&str]> = HashSet::new();
    let (mut at, mut total) = (0, 0);
    while at + n <= words.len() {
        let run = &words[at..at + n];
        if seen.insert(run) {
            at += 1;
        } else {
            total += n_chars(run);
            at += n;
        }
    }
    total
}

fn n_chars(words: &[&str]) -> usize {
    words.iter().map(|word| word.chars().count()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use aloe_text::{Conversation, Message, Pair};

    #[derive(Deserialize)]
    struct Golden {
        text: String,
        rule: Option<String>,
    }

    /// ISO 639-1 codes by hand; the table has each language of whatlang once.
    #[test]
    fn languages_are_named_by_three_letters_or_by_two() {
        for (two, three) in
            [("en", "eng"), ("es", "spa"), ("ca", "cat"), ("de", "deu"), ("zh", "cmn"), ("fa", "pes"), ("no", "nob")]
        {
            assert_eq!(language(two), Lang::from_code(three), "{two}");
            assert_eq!(language(three).unwrap().code(), three);
        }
        let known: HashSet<&str> = TWO_LETTERS.iter().map(|(_, lang)| lang.code()).collect();
        let two: HashSet<&str> = TWO_LETTERS.iter().map(|(two, _)| *two).collect();
        assert_eq!((known.len(), two.len(), Lang::all().len()), (70, 70, 70));
        let mistakes = |languages: &[&str]| {
            let languages = languages.iter().map(|one| (*one).to_owned()).collect();
            Filters { languages, ..Filters::default() }.mistakes()
        };
        assert_eq!(mistakes(&["en", "spa"]), [""; 0]);
        assert!(mistakes(&["english"])[0].contains("eng (en)"));
        let spanish = "La hipertensión arterial es una enfermedad crónica que se caracteriza por un incremento continuo de las cifras de la \
            presión sanguínea en las arterias, y aunque no hay un umbral estricto que permita definir el límite entre el riesgo y la seguridad, \
            se considera elevada.";
        let is_kept = |wanted: &str| !is_other(spanish, &[wanted.to_owned()]);
        assert_eq!(["es", "spa", "en", "eng"].map(is_kept), [true, true, false, false]);
    }

    #[test]
    fn repetition_is_found_where_datatroves_gopher_filter_finds_it_and_by_the_same_line_of_the_table() {
        let lines = include_str!("../tests/golden/gopher_repetition.jsonl").lines();
        let golden: Vec<Golden> = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(golden.len(), 90);
        for (number, one) in golden.iter().enumerate() {
            assert_eq!(repetition(&one.text), one.rule.as_deref(), "line {}: {:?}", number + 1, one.text);
        }
    }

    fn item(body: Body) -> Item {
        Item::plain("", body)
    }

    fn row(question: &str, answer: &str) -> Item {
        item(Body::Conversation(Conversation { messages: vec![Message::user(question), Message::assistant(answer)] }))
    }

    #[test]
    fn rows_are_dropped_by_their_number_of_words_at_the_stated_ends() {
        let filters = Filters { min_words: Some(4), max_words: Some(6), ..Filters::default() };
        for (answer, rule) in
            [("b", Some("too_short")), ("b c", None), ("b c d e", None), ("b c d e f", Some("too_long"))]
        {
            assert_eq!(filters.dropped_by(&row("a a", answer)), rule, "{answer}");
        }
        assert_eq!(Filters::default().dropped_by(&row("a", "b")), None);
    }

    const SPANISH: &str = "La insuficiencia cardíaca es la incapacidad del corazón para bombear la sangre que el cuerpo necesita. \
        Los síntomas más frecuentes son la falta de aire con el esfuerzo, el cansancio y la hinchazón de las piernas y de los tobillos.";
    const ENGLISH: &str =
        "Heart failure means that the heart cannot pump as much blood as the body needs at rest or at work.";

    #[test]
    fn rows_surely_in_another_language_are_dropped_and_short_ones_stay() {
        let filters = Filters { languages: vec!["eng".into()], ..Filters::default() };
        assert_eq!(filters.dropped_by(&row("¿Qué es la insuficiencia cardíaca?", SPANISH)), Some("other_language"));
        assert_eq!(filters.dropped_by(&row("What is heart failure?", ENGLISH)), None);
        assert_eq!(
            filters.dropped_by(&row("Nodus sinuatrialis, nodus atrioventricularis?", "Truncus brachiocephalicus")),
            None
        );
        let both = Filters { languages: vec!["eng".into(), "spa".into()], ..Filters::default() };
        assert_eq!(both.dropped_by(&row("¿Qué es la insuficiencia cardíaca?", SPANISH)), None);
    }

    #[test]
    fn an_answer_that_repeats_itself_drops_its_row_and_a_question_or_a_rejected_side_does_not() {
        let filters = Filters { repetition: true, ..Filters::default() };
        let loops = "The liver makes bile. ".repeat(20);
        assert_eq!(filters.dropped_by(&row("What does it do?", &loops)), Some("repetition"));
        assert_eq!(filters.dropped_by(&row(&loops, ENGLISH)), None);
        assert_eq!(filters.dropped_by(&row("Which?", "Option A. Answer: A")), None, "too short to tell");
        let pair = |chosen: &str, rejected: &str| {
            let (chosen, rejected) = (vec![Message::assistant(chosen)], vec![Message::assistant(rejected)]);
            item(Body::Pair(Box::new(Pair { prompt: vec![Message::user("Q?")], chosen, rejected })))
        };
        assert_eq!(filters.dropped_by(&pair(ENGLISH, &loops)), None);
        assert_eq!(filters.dropped_by(&pair(&loops, ENGLISH)), Some("repetition"));
    }

    #[test]
    fn a_language_that_is_not_known_and_ends_that_cross_are_mistakes() {
        let filters =
            Filters { min_words: Some(9), max_words: Some(3), languages: vec!["engl".into()], repetition: false };
        let mistakes = filters.mistakes();
        assert_eq!(mistakes.len(), 2);
        assert!(mistakes[1].contains("\"engl\" is none of") && mistakes[1].contains("eng"), "{mistakes:?}");
    }
}
