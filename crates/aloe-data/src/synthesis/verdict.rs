//! What an attempt at a worked solution is worth, from its text alone: whether it ends at the right answer by the parser of the evaluations,
//! whether it reasons at all, and what it betrays.
//!
//! Kept are attempts whose answer is the key, unless they merely restate the question (the two checks of the published sets, aloe.md 1.4),
//! say nothing before the answer, hold a second answer's line, which would tell a blind reader, or lack one of the three published parts.

use crate::shingles::windows;
use crate::simplify;
use aloe_engine::FinishReason;
use aloe_task::extract::{Reading, reasoned};
use aloe_task::wording::synthesis::shown;
use aloe_task::{ChoiceOrder, Question, letter};
use regex::Regex;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::sync::LazyLock;

/// What became of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Kept.
    Accepted,
    /// The answer is another option.
    Wrong,
    /// No answer could be read.
    Unread,
    /// The text before the answer is the question again: at least [`RESTATED`] of its runs of five words stand there.
    Restated,
    /// Fewer than [`LEAST_WORDS`] words stand before the answer.
    Bare,
    /// `Answer:` stands in the reasoning a second time.
    TwoAnswers,
    /// Of the three parts the first is missing: nothing stands before the options in turn.
    NoQuestionPart,
    /// The second: an option is not discussed.
    NoOptionsPart,
    /// The third: nothing stands between the last option and the answer's line.
    NoChoicePart,
    /// Parts cannot be told apart, as there are fewer than three paragraphs or lines.
    NoParts,
}

/// Share of a text's runs of five words that stand in question, options or abstract from which on it only restates them.
pub const RESTATED: f64 = 0.7;

/// Words of a reasoning.
pub const LEAST_WORDS: usize = 15;

/// Words of its first and of its last part, where options stand between them.
const LEAST_PART_WORDS: usize = 3;

/// A text with its verdict.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Judged {
    pub(crate) verdict: Verdict,
    /// The option read.
    pub(crate) answer: Option<usize>,
    /// What stands before the answer's line.
    pub(crate) reasoning: String,
}

/// Reads and judges; `in_parts` asks for the three published parts.
pub(crate) fn judge(question: &Question, text: &str, finish_reason: FinishReason, in_parts: bool) -> Judged {
    let order = ChoiceOrder::natural(question.choices.len());
    let is_cut = finish_reason != FinishReason::Stop;
    // Without the line `Answer:` evaluations take a last `[B]`; here nothing would part the reasoning from it.
    let has_line = LINE.is_match(text);
    let read = reasoned(Reading { text, choices: &question.choices, order: &order, is_cut }).filter(|_| has_line);
    let Some((answer, reasoning)) = read else {
        return Judged { verdict: Verdict::Unread, answer: None, reasoning: String::new() };
    };
    let verdict = if answer != question.key {
        Verdict::Wrong
    } else if LINE.is_match(&reasoning) {
        Verdict::TwoAnswers
    } else if reasoning.split_whitespace().count() < LEAST_WORDS {
        Verdict::Bare
    } else if share_restated(question, &reasoning) >= RESTATED {
        Verdict::Restated
    } else {
        missing_part(question, &reasoning).filter(|_| in_parts).unwrap_or(Verdict::Accepted)
    };
    Judged { verdict, answer: Some(answer), reasoning }
}

/// What is missing of the three parts (aloe.md 1.4): the question in own words, each option in turn, the final choice; of PubMedQA the
/// summary, the reasoning, the verdict. The published check is not public; ours: options that begin lines part the text, which has words before
/// the first and behind the last; any other text has three lines or paragraphs. Every option is discussed. What the parts say is not read.
fn missing_part(question: &Question, reasoning: &str) -> Option<Verdict> {
    let lines: Vec<&str> = reasoning.lines().filter(|line| !line.trim().is_empty()).collect();
    if !question.is_yes_no_maybe() && !discusses_all(question, reasoning) {
        return Some(Verdict::NoOptionsPart);
    }
    let is_option = |line: &&str| OPTION_LINE.is_match(line);
    let labelled: Vec<usize> = (0..lines.len()).filter(|at| is_option(&lines[*at])).collect();
    let has_words = |lines: &[&str]| lines.iter().flat_map(|line| line.split_whitespace()).count() >= LEAST_PART_WORDS;
    match labelled.as_slice() {
        [first, .., last] if !question.is_yes_no_maybe() => {
            if !has_words(&lines[..*first]) {
                Some(Verdict::NoQuestionPart)
            } else if !has_words(&lines[last + 1..]) {
                Some(Verdict::NoChoicePart)
            } else {
                None
            }
        }
        _ => (lines.len() < 3).then_some(Verdict::NoParts),
    }
}

/// A line that begins with an option's letter as a label: `A.`, `(B)`, `**C:**`, `- D)`, `Option E`; `E. coli` is none.
static OPTION_LINE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^\s*(?:[-*_(\[]+\s*)*(?:(?:[Oo]ption|[Cc]hoice)\s+[A-J]\b|[A-J](?:\*\*)?(?:[):\]]|\.(?:\s*$|\*|\s*[^\sa-z])))")
        .expect("a fixed pattern")
});

static LINE: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"(?i)\banswer\s*:").expect("a fixed pattern"));

/// Share of the reasoning's runs of five words that stand in the question.
fn share_restated(question: &Question, reasoning: &str) -> f64 {
    let (source, text) = (simplify(&shown(question)), simplify(reasoning));
    let known: HashSet<&str> = windows(&source, 5).collect();
    let runs: Vec<&str> = windows(&text, 5).collect();
    runs.iter().filter(|run| known.contains(**run)).count() as f64 / runs.len().max(1) as f64
}

static ANSWER_CHOICES: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(?i)\banswer (choices?|options?)\b").expect("a fixed pattern"));

/// How each phrase of [`betrayal`] is named.
const BETRAYING: [(&str, &str); 6] = [
    (
        "an answer or option that was given",
        r"\b(?:given|provided|stated|supplied|indicated|listed) (?:(?:right|correct|final|gold) )?answer\b",
    ),
    (
        "the answer is given",
        r"\banswer (?:is|was|has been|as|that is|that was) (?:already )?(?:given|provided|stated|supplied|indicated|specified)\b",
    ),
    (
        "a reference explanation",
        r"\b(?:reference|given|provided|supplied|accompanying) (?:explanation|rationale|reasoning|solution)\b",
    ),
    (
        "the explanation says",
        r"\bthe (?:explanation|rationale) (?:says|states|provided|given|mentions|indicates|confirms|above)\b",
    ),
    ("the answer key", r"\banswer key\b|\bgold (?:answer|standard answer|label)\b"),
    (
        "we know the answer beforehand",
        r"\b(?:since|as|because|given that|we (?:know|are told) that|knowing that) the (?:right|correct) (?:answer|option|choice) is\b",
    ),
];

static BETRAYS: LazyLock<Vec<(&str, Regex)>> = LazyLock::new(|| {
    let compiled =
        |(name, pattern): (&'static str, &str)| (name, Regex::new(&format!("(?i){pattern}")).expect("a fixed pattern"));
    BETRAYING.into_iter().map(compiled).collect()
});

/// The first kind of phrase that betrays an answer known beforehand.
pub(crate) fn betrayal(reasoning: &str) -> Option<&'static str> {
    // "Of the given answer choices" speaks of the question.
    let reasoning = ANSWER_CHOICES.replace_all(reasoning, "$1");
    BETRAYS.iter().find(|(_, pattern)| pattern.is_match(&reasoning)).map(|(name, _)| *name)
}

/// Whether every option is discussed, by its text or by its letter as a label. Of PubMedQA there are none to discuss.
pub(crate) fn discusses_all(question: &Question, reasoning: &str) -> bool {
    let lower = reasoning.to_lowercase();
    let is_named = |(at, choice): (usize, &String)| {
        let letter = letter(at);
        let label =
            Regex::new(&format!(r"(?m)(?:^[\s*_(\[-]*{letter}[).:\]*]|\b[Oo]ption {letter}\b|[(\[]{letter}[)\]])"));
        lower.contains(choice.trim().trim_end_matches('.').to_lowercase().as_str())
            || label.is_ok_and(|label| label.is_match(reasoning))
    };
    question.is_yes_no_maybe() || question.choices.iter().enumerate().all(is_named)
}

#[cfg(test)]
mod tests {
    use super::*;
    use aloe_task::wording::synthesis::{Told, messages};

    fn question() -> Question {
        Question {
            id: "q".into(),
            stem: "A man of 60 years has smoked for 40 of them and now coughs blood each morning. Which tumour is most likely?".into(),
            context: None,
            choices: ["Lipoma", "Squamous cell carcinoma", "Osteoma", "Mesothelioma"].map(String::from).to_vec(),
            key: 1,
            subject: String::new(),
            explanation: None,
            source: String::new(),
        }
    }

    fn check(text: &str) -> (Verdict, Option<usize>) {
        let found = judge(&question(), text, FinishReason::Stop, true);
        (found.verdict, found.answer)
    }

    const GOOD: &str = "Long use of tobacco with blood in the sputum points to a tumour of the central airways.\n\nA. Lipoma: harmless \
        fat.\nB. fits best. Osteoma is of bone, and mesothelioma follows asbestos.\n\nThe airway tumour of smokers it is.";

    #[test]
    fn an_attempt_is_kept_when_it_reasons_to_the_key_and_every_other_one_is_named_by_its_fault() {
        let stem = question().stem;
        for (text, expected) in [
            (format!("{GOOD}\nAnswer: B"), (Verdict::Accepted, Some(1))),
            (format!("{GOOD}\nAnswer: D"), (Verdict::Wrong, Some(3))),
            (GOOD.to_owned(), (Verdict::Unread, None)),
            ("Answer: B".to_owned(), (Verdict::Bare, Some(1))),
            ("It is clearly the second one.\nAnswer: B".to_owned(), (Verdict::Bare, Some(1))),
            (format!("{stem}\nA. Lipoma\nB. Squamous cell carcinoma\n\nAnswer: B"), (Verdict::Restated, Some(1))),
            (format!("{GOOD}\nAnswer: it is clear\n{GOOD}\nAnswer: B"), (Verdict::TwoAnswers, Some(1))),
        ] {
            assert_eq!(check(&text), expected, "{text}");
        }
    }

    const ASKED: &str = "Long use of tobacco with blood in the sputum points to a tumour of the central airways.";
    const EACH: &str =
        "A. Lipoma: harmless fat.\n**B)** fits best.\n- C: of bone.\nOption D follows asbestos, not tobacco.";
    const END: &str = "The airway tumour of smokers it is.";

    #[test]
    fn an_attempt_without_one_of_the_three_parts_is_named_by_the_part_that_is_missing() {
        for (text, expected) in [
            (format!("{ASKED}\n\n{EACH}\n\n{END}"), Verdict::Accepted),
            (format!("{ASKED}\n{EACH}\n{END}"), Verdict::Accepted),
            (format!("{EACH}\n\n{END}"), Verdict::NoQuestionPart),
            (format!("{ASKED}\n\n{EACH}"), Verdict::NoChoicePart),
            (format!("{ASKED}\n\nA. Lipoma: harmless.\nB. It fits best.\n\n{END}"), Verdict::NoOptionsPart),
            (
                format!("{ASKED} A lipoma, an osteoma and a mesothelioma differ from squamous cell carcinoma."),
                Verdict::NoParts,
            ),
            (
                format!(
                    "{ASKED}\n\nLipoma is fat, osteoma bone, mesothelioma asbestos; squamous cell carcinoma fits.\n\n{END}"
                ),
                Verdict::Accepted,
            ),
        ] {
            let text = format!("{text}\nAnswer: B");
            assert_eq!(check(&text), (expected, Some(1)), "{text}");
            let without = judge(&question(), &text, FinishReason::Stop, false).verdict;
            assert_eq!(without, Verdict::Accepted, "{text}");
        }
        let read = Question { choices: ["yes", "no", "maybe"].map(String::from).to_vec(), key: 0, ..question() };
        let judged = |text: &str| judge(&read, text, FinishReason::Stop, true).verdict;
        assert_eq!(
            judged(&format!("{ASKED}\n\nThat is seen in smokers above all.\n\n{END}\nAnswer: yes")),
            Verdict::Accepted
        );
        assert_eq!(judged(&format!("{ASKED} That is seen in smokers above all. {END}\nAnswer: yes")), Verdict::NoParts);
    }

    /// The worked examples show writers the form: each must pass the check that asks for it.
    #[test]
    fn the_worked_examples_that_a_writer_is_shown_have_the_three_parts() {
        let yes_no_maybe = Question { choices: ["yes", "no", "maybe"].map(String::from).to_vec(), ..question() };
        for asked in [question(), yes_no_maybe] {
            let shown = messages(&asked, Told::Nothing, 3);
            assert_eq!(shown.len(), 8);
            for pair in shown[1..7].chunks(2) {
                let options = pair[0].content.lines().filter(|line| OPTION_LINE.is_match(line));
                let choices: Vec<String> = options.map(|line| line[3..].to_owned()).collect();
                let question = match asked.is_yes_no_maybe() {
                    true => asked.clone(),
                    false => Question { choices, ..asked.clone() },
                };
                let reasoning = pair[1].content.rsplit_once("\nAnswer: ").unwrap().0;
                assert_eq!(missing_part(&question, reasoning), None, "{reasoning}");
                assert!(asked.is_yes_no_maybe() || question.choices.len() == 4, "{:?}", question.choices);
            }
        }
    }

    #[test]
    fn a_text_that_was_cut_off_is_read_by_its_marker_alone() {
        let found = |text: &str| judge(&question(), text, FinishReason::Length, true).verdict;
        assert_eq!(found(&format!("{GOOD} So [B]")), Verdict::Unread);
        assert_eq!(found(&format!("{GOOD}\nAnswer: B\n\nQuestion: Which bo")), Verdict::Accepted);
    }

    #[test]
    fn phrases_that_betray_a_known_answer_are_told_from_ordinary_conclusions() {
        for text in [
            "As the provided answer shows, it is B.",
            "The correct answer is given as B.",
            "According to the reference explanation, smoking is the cause.",
            "The explanation states that smoke irritates.",
            "The answer key says B.",
            "Since the correct answer is B, the others must be wrong.",
        ] {
            assert!(betrayal(text).is_some(), "{text}");
        }
        for text in [
            "So the correct answer is B.",
            "The explanation of the cough is a tumour.",
            "Given the history of smoking, the answer is squamous cell carcinoma.",
            "No single explanation fits all findings but one.",
            "Of the given answer choices, only aspirin acetylates the enzyme.",
            GOOD,
        ] {
            assert_eq!(betrayal(text), None, "{text}");
        }
    }

    #[test]
    fn an_option_is_discussed_by_its_text_or_its_letter() {
        assert!(discusses_all(&question(), GOOD));
        assert!(discusses_all(&question(), "Option A is fat. (B) fits.\nC) bone\n**D.** asbestos"));
        assert!(!discusses_all(&question(), "A tumour of the airways, B fits, and lipoma and osteoma do not."));
    }
}
