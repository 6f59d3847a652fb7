//! Cleaning and dropping, each rule named and counted (Aloe-Beta, appendix B.1: cleaning, Tables B5 to B7).
//!
//! Answers of a conversation are judged by the last one, of a pair by both sides; questions by the first user message.

use crate::simplify::{plain, simplify_start};
use crate::{Body, Item, Rules, simplify};
use aloe_tensor::Isa;
use aloe_text::{Message, Role};
use regex::Regex;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::LazyLock;

/// What became of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It stays; these rules changed it.
    Kept(Vec<&'static str>),
    /// This rule dropped it.
    Dropped(&'static str),
}

/// Table B5: questions that ask nothing. A question is dropped only when it is one of these from end to end, case, accents and
/// punctuation aside.
const LISTED_QUESTIONS: [&str; 18] = [
    "no input",
    "noinput",
    "abstract",
    "editorial",
    "n a",
    "na",
    "no abstract available",
    "no abstract present",
    "no abstract provided",
    "no abstract",
    "no disponible",
    "not available",
    "supplemental digital content is available in the text",
    "the authors have requested that this preprint be removed from research square",
    "this article is protected by copyright all rights reserved",
    "unknown",
    "figure see text",
    "image see text",
];

/// Entries that the table breaks off with dots: the question begins with them.
const LISTED_QUESTION_STARTS: [&str; 2] =
    ["an amendment to this paper has been published", "declaration de liens d interets"];

/// The entry that the table begins with dots: the question ends with it.
const LISTED_QUESTION_END: &str = "withdrawn due to erroneous posting";

/// The entry whose year counts; simplified text has lost its numbers.
const LISTED_COPYRIGHT: &str = "copyright 2020";

/// Table B6: answers that answer nothing.
const LISTED_ANSWERS: [&str; 17] = [
    "answers",
    "conclusion",
    "conclusions",
    "correction",
    "corrigendum",
    "editor s note",
    "editor’s note",
    "erratum",
    "guest editorial",
    "highlights from this issue",
    "nieuws",
    "noncontributory",
    "none",
    "president s message",
    "president’s message",
    "unremarkable",
    "world economic prospects monthly",
];

const LISTED_ANSWER_STARTS: [&str; 2] = ["erratum regarding", "in case you haven t heard"];

/// Table B7's kind: explanations that explain nothing.
const CONTENTLESS: [&str; 16] = [
    "",
    "all of the above",
    "none of the above",
    "all the above",
    "all",
    "none",
    "both",
    "nan",
    "na",
    "n a",
    "explanation",
    "see explanation",
    "no explanation",
    "option",
    "ref",
    "reference",
];

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("a fixed pattern")
}

static URL: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"(?i)\b(?:https?://|www\.)[^\s<>\[\]]*[^\s<>\[\]().,;:!?'\x22]"));
static EMAIL: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"(?i)\b[a-z0-9._%+-]+@[a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z]{2,}\b"));
// Spaces that begin a line are the layout of code and lists and stay.
static SPACES: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?P<kept>[^\s])[ \t\x{a0}]{2,}"));
static BREAKS: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?:[ \t]*\r?\n){3,}"));
static TRAILING: LazyLock<Regex> = LazyLock::new(|| pattern(r"[ \t]+(\r?\n|$)"));
static SPACE_BEFORE_STOP: LazyLock<Regex> = LazyLock::new(|| pattern(r" +([.,;:!?])(\s|$)"));
static REPEATED: LazyLock<Regex> = LazyLock::new(|| pattern(r"!{2,}|\?{2,}|,{2,}"));
// An address taken out leaves U+0000, which no cleaned text holds, until the marks of punctuation about it are seen to.
static BRACKETS: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"\(\s*\x00[\s\x00]*\)|\[\s*\x00[\s\x00]*\]|<\s*\x00[\s\x00]*>"));
static GAPS: LazyLock<Regex> = LazyLock::new(|| {
    pattern(r"(?P<before>(?:^|\n)?[ \t]*)\x00(?:[ \t]*\x00)*(?P<after>[ \t]*)(?:(?P<stop>[.,;:!?])(?P<end>\s|$))?")
});
static ANSWER_LINE: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"(?s)^(?P<why>.*?)\s*(?P<line>Answer: \[?(?:Option )?(?P<key>[A-Za-z]+)\]?)\s*$"));
static BARE_KEY: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"^(?:the )?(?:correct )?(?:ans|answer|option)?(?: is)?(?: option)? ?[a-e0](?: ie| i e)?(?: (?P<rest>.*))?$",
    )
});

/// Applies the rules that are on, in this order: clean, literal breaks, capitals and punctuation, trailing questions, contentless, drops.
pub(crate) fn apply(item: &mut Item, rules: &Rules) -> Outcome {
    let mut changed = Vec::new();
    if rules.clean && each_message(item, clean) {
        changed.push("clean");
    }
    if rules.literal_breaks && each_message(item, literal_breaks) {
        changed.push("literal_breaks");
    }
    if rules.standardise && each_message(item, standardise) {
        changed.push("standardise");
    }
    if rules.unanswered_end && cut_unanswered(item) {
        changed.push("unanswered_end");
    }
    if rules.contentless_mcqa && contentless(item) {
        changed.push("contentless_mcqa");
    }
    match dropped_by(item, rules) {
        Some(rule) => Outcome::Dropped(rule),
        None => Outcome::Kept(changed),
    }
}

fn each_message(item: &mut Item, change: for<'a> fn(&'a str) -> Cow<'a, str>) -> bool {
    let mut any = false;
    for message in item.messages_mut() {
        if let Cow::Owned(new) = change(&message.content)
            && new != message.content
        {
            message.content = new;
            any = true;
        }
    }
    any
}

/// Bytes that are looked at together.
const N_BLOCK: usize = 64;

/// Whether [`clean`] would leave the text as it is, as far as one pass over its bytes tells: most texts hold nothing of what it looks for.
fn is_clean(text: &str) -> bool {
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return true };
    if [first, last].iter().any(|byte| byte.is_ascii_whitespace() || !byte.is_ascii()) {
        return false;
    }
    let is_clean = |block: Range<usize>| block.into_iter().all(|at| is_clean_at(bytes, at));
    let n_pairs = bytes.len() - 1;
    if n_pairs < N_BLOCK {
        return is_clean(0..bytes.len());
    }
    // The last block ends with the text, whatever the one before it has seen.
    let starts = (0..n_pairs - N_BLOCK).step_by(N_BLOCK).chain([n_pairs - N_BLOCK]);
    Isa::wide(|| {
        let mut blocks =
            starts.filter_map(|start| Some((start, bytes[start..].first_chunk()?, bytes[start + 1..].first_chunk()?)));
        blocks.all(|(start, block, next)| !may_be_unclean(block, next) || is_clean(start..start + N_BLOCK))
    }) && is_clean_at(bytes, n_pairs)
}

/// Whether a byte of a block, with the one behind it, may begin what [`is_clean_at`] looks for: without a branch, for vectors.
#[inline(always)]
fn may_be_unclean(block: &[u8; N_BLOCK], following: &[u8; N_BLOCK]) -> bool {
    let mut found = 0u8;
    for (&byte, &next) in block.iter().zip(following) {
        let breaks = (byte == b'\n') & (next == b'\n');
        let spaces = (byte == b' ') & ((next == b' ') | (next == b'\n'));
        let address =
            ((byte == b':') & (next == b'/')) | ((byte | 0x20 == b'w') & (next | 0x20 == b'w')) | (byte == b'@');
        let control = ((byte < 0x20) & (byte != b'\n')) | (byte == 0x7f);
        let other = (byte == 0xc2) | (byte == 0xef) | ((byte == 0xe2) & (next == 0x80));
        found |= u8::from(breaks | spaces | address | control | other);
    }
    found != 0
}

/// Whether nothing begins at a byte that [`clean`] takes out or changes.
/// UTF-8 puts control characters to U+009F and the blank U+00A0 behind the byte C2, U+200B behind E2 80, U+FEFF and U+FFFD behind EF.
fn is_clean_at(bytes: &[u8], at: usize) -> bool {
    let follows =
        |what: &[u8]| bytes.get(at + 1..at + 1 + what.len()).is_some_and(|found| found.eq_ignore_ascii_case(what));
    match bytes[at] {
        b'\n' => !follows(b"\n\n"),
        b' ' => !follows(b" ") && !follows(b"\n"),
        b':' => !follows(b"//"),
        b'w' | b'W' => !follows(b"ww."),
        0..=0x1f | 0x7f | b'@' | 0xc2 | 0xef => false,
        0xe2 => !follows(b"\x80\x8b"),
        _ => true,
    }
}

/// URLs and e-mail addresses out, with the brackets and blanks they leave; control characters out; repeated spaces joined.
fn clean(text: &str) -> Cow<'_, str> {
    if is_clean(text) { Cow::Borrowed(text) } else { Cow::Owned(clean_by_patterns(text)) }
}

fn clean_by_patterns(text: &str) -> String {
    let is_stray = |c: char| {
        (c.is_control() && !matches!(c, '\n' | '\t' | '\r')) || matches!(c, '\u{200b}' | '\u{feff}' | '\u{fffd}')
    };
    let mut text: Cow<'_, str> = if text.contains(is_stray) {
        text.chars().filter(|c| !is_stray(*c)).collect::<String>().into()
    } else {
        text.into()
    };
    let may_hold_address = text.contains("://") || text.contains('@') || text.to_ascii_lowercase().contains("www.");
    if may_hold_address && (URL.is_match(&text) || EMAIL.is_match(&text)) {
        text = without_addresses(&text).into();
    }
    // The patterns are slow and most texts hold none of what they look for.
    if text.contains("  ") || text.contains(['\t', '\u{a0}']) {
        text = SPACES.replace_all(&text, "$kept ").into_owned().into();
    }
    if text.contains(" \n") || text.contains("\t\n") || text.contains('\r') {
        text = TRAILING.replace_all(&text, "$1").into_owned().into();
    }
    if text.contains("\n\n\n") || text.contains('\r') {
        text = BREAKS.replace_all(&text, "\n\n").into_owned().into();
    }
    text.trim().to_owned()
}

/// Takes out addresses, the brackets that held nothing else, and the blanks that this leaves. Brackets and blanks elsewhere are code's.
fn without_addresses(text: &str) -> String {
    let mut marked = EMAIL.replace_all(&URL.replace_all(text, "\0"), "\0").into_owned();
    while let Cow::Owned(inner) = BRACKETS.replace_all(&marked, "\0") {
        marked = inner;
    }
    let close = |parts: &regex::Captures<'_>| {
        let before = &parts["before"];
        if let (Some(stop), Some(end)) = (parts.name("stop"), parts.name("end")) {
            return format!("{}{}{}", before.trim_end_matches([' ', '\t']), stop.as_str(), end.as_str());
        }
        // What stands before the first word of a line is its layout.
        let start = parts.get(0).map_or(0, |whole| whole.start());
        let starts_line = before.starts_with('\n') || start == 0 || marked.as_bytes()[start - 1] == b'\n';
        match before {
            _ if starts_line => before.to_owned(),
            "" if parts["after"].is_empty() => String::new(),
            _ => " ".to_owned(),
        }
    };
    GAPS.replace_all(&marked, close).into_owned()
}

fn literal_breaks(text: &str) -> Cow<'_, str> {
    if text.contains('\n') {
        text.into()
    } else {
        text.replace("\\r\\n", "\n").replace("\\n", "\n").replace("\\t", "\t").into()
    }
}

/// Capitals and punctuation; code and formulas, which hold such marks rightly, are left alone.
fn standardise(text: &str) -> Cow<'_, str> {
    if text.contains("```") || text.contains("==") {
        return text.into();
    }
    let straight: String = text
        .chars()
        .map(|c| match c {
            '\u{2018}' | '\u{2019}' => '\'',
            '\u{201c}' | '\u{201d}' => '"',
            other => other,
        })
        .collect();
    let once = REPEATED.replace_all(&straight, |found: &regex::Captures<'_>| found[0][..1].to_owned());
    let closed = SPACE_BEFORE_STOP.replace_all(&once, "$1$2");
    let n_letters = closed.chars().filter(|c| c.is_alphabetic()).count();
    let is_shouted = n_letters >= 20 && !closed.chars().any(char::is_lowercase);
    if is_shouted { sentence_case(&closed).into() } else { closed.into_owned().into() }
}

fn sentence_case(text: &str) -> String {
    let mut starts = true;
    let one = |c: char| -> String {
        let cased = if starts { c.to_uppercase().collect() } else { c.to_lowercase().collect() };
        starts = matches!(c, '.' | '!' | '?' | '\n') || (starts && !c.is_alphanumeric());
        cased
    };
    text.chars().map(one).collect()
}

/// A dialogue that ends with a question keeps what was answered.
fn cut_unanswered(item: &mut Item) -> bool {
    let Body::Conversation(conversation) = &mut item.body else { return false };
    let n_messages = conversation.messages.len();
    while conversation.messages.len() > 1 && conversation.messages.last().is_some_and(|last| last.role == Role::User) {
        conversation.messages.pop();
    }
    conversation.messages.len() != n_messages
}

fn contentless(item: &mut Item) -> bool {
    let is_mcqa = item.about.task == "mcqa" || item.question.is_some();
    let choices: Vec<String> =
        item.question.iter().flat_map(|question| question.choices.iter().map(|choice| simplify(choice))).collect();
    let Body::Conversation(conversation) = &mut item.body else { return false };
    let Some(last) = conversation.messages.last_mut().filter(|message| message.role == Role::Assistant) else {
        return false;
    };
    // Looked for first: the pattern reads every text to its end, and few hold these words.
    if !last.content.contains("Answer: ") {
        return false;
    }
    let Some(parts) = ANSWER_LINE.captures(&last.content) else { return false };
    // The published rows are instructions, which say by the answer alone that they are multiple choice: it ends in a letter, or in `[Option]`.
    let is_key = |key: &str| key.len() == 1 || key == "Option";
    if !is_mcqa && !parts.name("key").is_some_and(|key| is_key(key.as_str())) {
        return false;
    }
    let why = parts.name("why").map_or("", |found| found.as_str());
    if why.is_empty() || !explains_nothing(why, &choices) {
        return false;
    }
    last.content = parts["line"].to_owned();
    true
}

/// Whether an explanation is only a stock phrase, a bare key, or an option said again.
fn explains_nothing(why: &str, choices: &[String]) -> bool {
    let text = simplify(why);
    let text = text.strip_prefix("explanation ").unwrap_or(&text);
    let bare = |text: &str| CONTENTLESS.contains(&text) || choices.iter().any(|choice| choice == text);
    bare(text) || BARE_KEY.captures(text).is_some_and(|parts| parts.name("rest").is_none_or(|rest| bare(rest.as_str())))
}

fn dropped_by(item: &Item, rules: &Rules) -> Option<&'static str> {
    let of = |role: Role| item.each_message().filter(move |message| message.role == role);
    let blank = |role: Role| of(role).next().is_none() || of(role).any(|message| message.content.trim().is_empty());
    if rules.drop_empty && blank(Role::User) {
        return Some("empty_question");
    }
    if rules.drop_empty && blank(Role::Assistant) {
        return Some("empty_answer");
    }
    if rules.equal_sides
        && let Body::Pair(pair) = &item.body
        && pair.chosen == pair.rejected
    {
        return Some("equal_sides");
    }
    if rules.drop_listed_questions && of(Role::User).next().is_some_and(|message| is_listed_question(&message.content))
    {
        return Some("listed_question");
    }
    // Of a pair both sides: a listed answer teaches nothing on either.
    let judged: [Option<&Message>; 2] = match &item.body {
        Body::Conversation(_) => [of(Role::Assistant).next_back(), None],
        Body::Pair(pair) => [pair.chosen.last(), pair.rejected.last()],
    };
    if rules.drop_listed_answers && judged.into_iter().flatten().any(|message| is_listed_answer(&message.content)) {
        return Some("listed_answer");
    }
    None
}

/// One byte more than the longest entry of the lists has: a text that simplifies to as much is none of them, whatever follows.
const LONGEST_LISTED: usize = 80;

fn is_listed_question(text: &str) -> bool {
    let start = simplify_start(text, LONGEST_LISTED);
    LISTED_QUESTIONS.contains(&start.as_str())
        || LISTED_QUESTION_STARTS.iter().any(|listed| start.starts_with(listed))
        || (may_end(text, LISTED_QUESTION_END) && simplify(text).ends_with(LISTED_QUESTION_END))
        || (text.contains('©') && plain(text) == LISTED_COPYRIGHT)
}

/// Whether simplified text may end with `end`, whose last word has no accents, by its last letters alone.
fn may_end(text: &str, end: &str) -> bool {
    let last = end.rsplit(' ').next().unwrap_or_default().as_bytes();
    let found = text.trim_end_matches(|c: char| !c.is_ascii_alphanumeric()).as_bytes();
    !text.is_ascii() || found.len().checked_sub(last.len()).is_some_and(|at| found[at..].eq_ignore_ascii_case(last))
}

fn is_listed_answer(text: &str) -> bool {
    let start = simplify_start(text, LONGEST_LISTED);
    LISTED_ANSWERS.contains(&start.as_str()) || LISTED_ANSWER_STARTS.iter().any(|listed| start.starts_with(listed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use aloe_text::Conversation;

    fn item(question: &str, answer: &str, task: &str) -> Item {
        let messages = vec![Message::user(question), Message::assistant(answer)];
        let about = crate::About { task: task.to_owned().into(), ..Default::default() };
        Item { about: about.into(), ..Item::plain("", Body::Conversation(Conversation { messages })) }
    }

    fn check(question: &str, answer: &str, task: &str) -> (Outcome, String) {
        let mut item = item(question, answer, task);
        let outcome = apply(&mut item, &Rules::default());
        (outcome, item.messages().last().unwrap().content.clone())
    }

    /// Blocks of bytes against single bytes: each thing that is looked for at every place about the ends of two blocks.
    #[test]
    fn the_pass_over_blocks_sees_what_a_look_at_every_byte_sees() {
        let found = ["  ", " \n", "\n\n\n", "\t", "\u{7f}", "@", "://", "WwW.", "\u{a0}", "\u{200b}", "\u{feff}"];
        let none = ["\n\n", " a ", ":/", "ww", "WWw", "\u{2014}", "\u{2028}", "\u{e9}"];
        for (part, is_plain) in found.map(|part| (part, false)).into_iter().chain(none.map(|part| (part, true))) {
            for n_before in 1..140 {
                let text = format!("{}{part}{}", "x".repeat(n_before), "x".repeat(n_before % 9 + 1));
                assert_eq!(is_clean(&text), is_plain, "{part:?} behind {n_before}");
                assert_eq!((0..text.len()).all(|at| is_clean_at(text.as_bytes(), at)), is_plain, "{part:?}");
            }
        }
    }

    /// The pass over bytes judges as the patterns do: a text that it lets pass is what they make of it; and it lets plain texts pass.
    #[test]
    fn a_text_that_is_taken_for_clean_is_one_that_the_patterns_leave_alone() {
        let parts = [
            "a",
            "B1",
            " ",
            "\n",
            "\t",
            "\r\n",
            "@",
            "x@b.ee",
            "http://a.b",
            ":",
            "/",
            "www.a.b",
            "WWW.c.d",
            "ww",
            "\u{a0}",
            "\u{85}",
            "\u{200b}",
            "\u{200a}",
            "\u{feff}",
            "\u{fffd}",
            "é",
            "\u{2003}",
            "—",
            "\u{7f}",
            "\0",
            "你",
            ".",
        ];
        let mut n_clean = 0;
        for number in 0..parts.len().pow(4) {
            let text: String = (0..4u32).map(|place| parts[number / parts.len().pow(place) % parts.len()]).collect();
            if is_clean(&text) {
                n_clean += 1;
                assert_eq!(clean_by_patterns(&text), text, "{text:?}");
            }
        }
        assert!(n_clean > 5_000, "{n_clean}");
        for plain in ["A question: which (of 3) — é?\n\n- one\n- two", "", "wwii", "a:/b"] {
            assert!(is_clean(plain) && clean_by_patterns(plain) == plain, "{plain:?}");
        }
    }

    #[test]
    fn the_lists_are_shorter_than_what_is_looked_at_and_a_long_text_that_begins_like_an_entry_is_none() {
        let lists =
            LISTED_QUESTIONS.iter().chain(&LISTED_ANSWERS).chain(&LISTED_QUESTION_STARTS).chain(&LISTED_ANSWER_STARTS);
        assert!(lists.clone().all(|entry| entry.len() < LONGEST_LISTED));
        for entry in lists {
            let longer = format!("{entry} {}", "and so on ".repeat(20));
            assert!(!LISTED_QUESTIONS.contains(&simplify_start(&longer, LONGEST_LISTED).as_str()), "{entry}");
        }
        let withdrawn = format!("{} Withdrawn due to erroneous POSTING).", "long words ".repeat(30));
        assert!(is_listed_question(&withdrawn) && !is_listed_question(&withdrawn.replace("POSTING", "reposting")));
        assert!(is_listed_question("withdrawn due to erroneous postíng"));
        assert!(is_listed_question("An amendment to this paper has been published, and so on"));
    }

    #[test]
    fn cleaning_takes_out_addresses_and_repeated_spaces_but_not_the_layout_of_code() {
        let cases = [
            ("See https://a.example/x?y=1, or write to me@b.example.", "See, or write to."),
            ("Read (www.a.example) now", "Read now"),
            ("See https://a.example and call f() with x = []", "See and call f() with x = []"),
            ("x = [] # (<https://a.example>, [me@b.example])\n    f( a , b )", "x = [] # (, )\n    f( a , b )"),
            ("List<> a = b ? c : d; // [https://a.example, www.b.example]", "List<> a = b ? c : d; // [, ]"),
            ("One\n    https://a.example is it\n(https://a.example).", "One\n    is it\n."),
            ("https://a.example www.b.example", ""),
            ("one   two\t\tthree  ", "one two three"),
            ("def f():\n    return 1", "def f():\n    return 1"),
            ("a\n\n\n\nb", "a\n\nb"),
            ("zero\u{200b}width\u{7}", "zerowidth"),
            ("1.5 mg/kg at 10:30 (see text)", "1.5 mg/kg at 10:30 (see text)"),
        ];
        for (before, after) in cases {
            assert_eq!(clean(before), after, "{before:?}");
        }
    }

    #[test]
    fn listed_and_empty_rows_are_dropped_by_name() {
        let cases = [
            ("No input", "A real answer.", "listed_question"),
            ("No abstract available.", "A real answer.", "listed_question"),
            ("[figure: see text]", "A real answer.", "listed_question"),
            ("An amendment to this paper has been published and can be accessed", "x", "listed_question"),
            ("What follows?", "Conclusions", "listed_answer"),
            ("What follows?", "President's message", "listed_answer"),
            ("What follows?", "None", "listed_answer"),
            ("What follows?", "  ", "empty_answer"),
            ("", "x", "empty_question"),
        ];
        for (question, answer, rule) in cases {
            assert_eq!(check(question, answer, "qa").0, Outcome::Dropped(rule), "{question} / {answer}");
        }
        assert_eq!(check("What is known?", "None of the drugs helps.", "qa").0, Outcome::Kept(vec![]));
    }

    /// Aloe-Beta's Table B5 as the fact file gives it (1.3): an entry between dots is a part, every other one the whole question.
    #[test]
    fn a_question_on_table_b5_is_dropped_and_one_that_only_holds_an_entry_stays() {
        let listed = [
            "copyright © 2020",
            "Supplemental digital content is available in the text.",
            "The authors have requested that this preprint be removed from research square.",
            "This preprint was withdrawn due to erroneous posting.",
            "This article is protected by copyright. all rights reserved.",
            "An amendment to this paper has been published and can be accessed via a link at the top of the paper.",
            "Déclaration de liens d'intérêts: les auteurs déclarent ne pas avoir de liens.",
            "[image: see text]",
            "N/a.",
        ];
        for question in listed {
            assert_eq!(check(question, "A real answer.", "qa").0, Outcome::Dropped("listed_question"), "{question}");
        }
        let kept = [
            "Supplemental digital content is available in the text. Does it show that aspirin helps?",
            "Why was the paper withdrawn due to erroneous posting and then published again?",
            "This article is protected by copyright. All rights reserved. Which dose was given?",
            "Does it matter that an amendment to this paper has been published?",
            "copyright © 2019",
            "Copyright 2020",
            "Unknown primary tumour: what is the next step?",
        ];
        for question in kept {
            assert_eq!(check(question, "A real answer.", "qa").0, Outcome::Kept(vec![]), "{question}");
        }
    }

    #[test]
    fn explanations_without_content_are_reduced_to_the_answer_line() {
        for why in ["Explanation: All of the above", "Ans. C", "Answer is c i.e.", "(c)", "NaN", "Ans is 'a'"] {
            let (outcome, answer) = check("Q?", &format!("{why}\nAnswer: [C]"), "mcqa");
            assert_eq!((outcome, answer.as_str()), (Outcome::Kept(vec!["contentless_mcqa"]), "Answer: [C]"), "{why}");
        }
        for why in [
            "C fibres carry dull pain.",
            "Answer is C because the nerve runs there.",
            "All of the above nerves are motor.",
        ] {
            assert_eq!(check("Q?", &format!("{why}\nAnswer: [C]"), "mcqa").0, Outcome::Kept(vec![]), "{why}");
        }
    }

    /// Table B7's own example, and the rows that the published sets are: instruction and output, without a layout that names options.
    #[test]
    fn an_instruction_row_that_ends_in_an_options_key_is_reduced_too_and_other_answers_are_not() {
        for (answer, reduced) in [
            ("Explanation: All of the above\nAnswer: [Option]", "Answer: [Option]"),
            ("Explanation: All of the above\nAnswer: D", "Answer: D"),
            ("Explanation: None of the above\nAnswer: [Option B]", "Answer: [Option B]"),
            ("Explanation: nan\nAnswer: Option B", "Answer: Option B"),
        ] {
            let (outcome, left) = check("Which of these? A. x B. y", answer, "instruction");
            assert_eq!((outcome, left.as_str()), (Outcome::Kept(vec!["contentless_mcqa"]), reduced), "{answer}");
            assert_eq!(check("Which of these?", answer, "mcqa").1, reduced);
        }
        for answer in
            ["None\nAnswer: yes", "See explanation\nAnswer: Aspirin", "It is the aorta.\nAnswer: B", "Answer: B"]
        {
            assert_eq!(check("Which?", answer, "instruction").0, Outcome::Kept(vec![]), "{answer}");
        }
    }

    fn conversation(turns: &[&str]) -> Item {
        let speak =
            |(i, text): (usize, &&str)| if i % 2 == 0 { Message::user(*text) } else { Message::assistant(*text) };
        let messages = turns.iter().enumerate().map(speak).collect();
        Item { body: Body::Conversation(Conversation { messages }), ..item("", "", "dialogue") }
    }

    fn pair(chosen: &str, rejected: &str) -> Item {
        let (chosen, rejected) = (vec![Message::assistant(chosen)], vec![Message::assistant(rejected)]);
        Item {
            body: Body::Pair(Box::new(aloe_text::Pair { prompt: vec![Message::user("Q?")], chosen, rejected })),
            ..item("", "", "preference")
        }
    }

    fn last(item: &Item) -> String {
        item.messages().last().unwrap().content.clone()
    }

    #[test]
    fn literal_breaks_become_breaks_only_when_asked_for_and_only_in_texts_of_one_line() {
        let on = Rules { literal_breaks: true, ..Rules::default() };
        for (rules, before, after, changed) in [
            (on, r"one\ntwo\tthree", "one\ntwo\tthree", vec!["literal_breaks"]),
            (on, "print(\"a\\n\")\nend", "print(\"a\\n\")\nend", vec![]),
            (Rules::default(), r"one\ntwo", r"one\ntwo", vec![]),
        ] {
            let mut row = item("Q?", before, "qa");
            assert_eq!(apply(&mut row, &rules), Outcome::Kept(changed));
            assert_eq!(last(&row), after);
        }
    }

    #[test]
    fn a_last_turn_that_nobody_answered_is_cut_off_unless_the_rule_is_off() {
        let mut row = conversation(&["Q1", "A1", "Q2"]);
        assert_eq!(apply(&mut row, &Rules::default()), Outcome::Kept(vec!["unanswered_end"]));
        assert_eq!(last(&row), "A1");
        let mut row = conversation(&["Q1", "A1", "Q2"]);
        assert_eq!(apply(&mut row, &Rules { unanswered_end: false, ..Rules::default() }), Outcome::Kept(vec![]));
        assert_eq!(last(&row), "Q2");
    }

    #[test]
    fn a_pair_is_dropped_for_equal_sides_and_for_a_listed_answer_on_either_side_each_by_its_switch() {
        let off = Rules { equal_sides: false, drop_listed_answers: false, ..Rules::default() };
        for (mut row, rule) in [
            (pair("Same.", "Same."), "equal_sides"),
            (pair("Erratum", "A real answer."), "listed_answer"),
            (pair("A real answer.", "Erratum"), "listed_answer"),
        ] {
            assert_eq!(apply(&mut row.clone(), &off), Outcome::Kept(vec![]));
            assert_eq!(apply(&mut row, &Rules::default()), Outcome::Dropped(rule));
        }
        assert_eq!(apply(&mut pair("Good.", "Bad."), &Rules::default()), Outcome::Kept(vec![]));
    }

    #[test]
    fn capitals_and_punctuation_are_standardised_when_asked_for() {
        let on = Rules { standardise: true, ..Rules::default() };
        for (before, after) in [
            ("WHAT IS THE BEST TREATMENT? GIVE TWO DRUGS.", "What is the best treatment? Give two drugs."),
            ("Really??? Yes!!", "Really? Yes!"),
            ("the patient\u{2019}s \u{201c}pain\u{201d} , now gone .", "the patient's \"pain\", now gone."),
            ("HIV and AIDS", "HIV and AIDS"),
            ("CT, MRI", "CT, MRI"),
            ("if (a == b) f(x ,y)", "if (a == b) f(x ,y)"),
        ] {
            let mut row = item("Q?", before, "qa");
            apply(&mut row, &on);
            assert_eq!(last(&row), after);
            let mut row = item("Q?", before, "qa");
            assert_eq!(apply(&mut row, &Rules::default()), Outcome::Kept(vec![]), "off by default");
        }
    }
}
