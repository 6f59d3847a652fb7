//! From a completion to an answer: a shown position, or [`Answer::Unparsed`]. Nothing is guessed and nothing retried here.
//!
//! Two rules. [`AnswerRule::Aloe`] reads by position in the text, after reasoning blocks are cut out and before the first question that
//! the model made up itself:
//! 1. an option's whole text right behind the last `Answer:`, the longest of several;
//! 2. else a lone letter right behind it (the form of the published `*-cot` sets): `B`, `B.`, `(B)`, `**B**`, `B (phrenic nerve)`, `B. The
//!    nerve`; not the first letter of a word or of a species (`C. difficile`), and not a number of things (`B cells`);
//! 3. else the first bracketed letter of the sentence behind it: an answer names its option first;
//! 4. else the last bracketed letter behind it, without any marker that of the whole text: a text that goes through the options ends with
//!    the one it takes. Only of a text that the model ended itself; one that was cut off at its most tokens has not answered.
//!
//! Exam questions end in "indicate the incorrect answer:", and a model that restates one writes a marker which is no answer's. So options
//! that are listed line by line right behind a marker are none of 1 to 3; what stands behind the list is read by 4.
//!
//! [`AnswerRule::PromptEngine`] is prompt_engine's `parse_response` of the stripped completion: the text after the last `"\nAnswer: "`, reasoning and all; only
//! bracketed letters; of several the one that comes latest in the shuffled order string.

use crate::order::ChoiceOrder;
use crate::question::letter;
use crate::wording::lm_eval::python_strip;

/// What a completion says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The option, by its index in the question (mapped back from the shown position).
    Choice(usize),
    /// No answer could be read. Counts as wrong, is counted.
    Unparsed,
}

/// How to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerRule {
    /// By position in the text.
    Aloe,
    /// By the shuffled order string, exactly as prompt_engine.
    PromptEngine,
}

/// An answer and what was removed before reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extracted {
    /// The answer.
    pub answer: Answer,
    /// Whether a reasoning block was cut out.
    pub reasoning_removed: bool,
}

/// A completion and what was shown before it.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'a> {
    /// The completion.
    pub text: &'a str,
    /// The options in the question's own order.
    pub choices: &'a [String],
    /// In which order they were shown.
    pub order: &'a ChoiceOrder,
    /// Whether the model did not end the text itself.
    pub is_cut: bool,
}

/// Reads the answer.
pub fn extract(reading: Reading<'_>, rule: AnswerRule) -> Extracted {
    let (answer, reasoning_removed) = match rule {
        AnswerRule::Aloe => {
            let (visible, removed) = without_reasoning(reading.text);
            (by_position(&visible, reading).map(|found| found.answer), removed)
        }
        AnswerRule::PromptEngine => (by_order(python_strip(reading.text), reading.order), false),
    };
    Extracted { answer: answer.map_or(Answer::Unparsed, Answer::Choice), reasoning_removed }
}

/// The answer by [`AnswerRule::Aloe`], and the text before it: without reasoning blocks, and without the answer's own line where that says
/// nothing else. `None` where no answer can be read.
pub fn reasoned(reading: Reading<'_>) -> Option<(usize, String)> {
    let (visible, _) = without_reasoning(reading.text);
    let Found { answer, begins, is_marked } = by_position(&visible, reading)?;
    let before = &visible[..begins];
    let line = before.rfind('\n').map_or(0, |at| at + 1);
    let is_label = before[line..].split_whitespace().count() <= 3 && !before[line..].contains(['.', ':', ';']);
    let kept = if is_label && is_marked { &before[..line] } else { before };
    Some((answer, kept.trim_end_matches(['*', '_', '#', ' ', '\t', '\n', '\r']).trim_start().to_owned()))
}

/// Cuts `<think>...</think>` (also `<thinking>`, `<reasoning>`) out. A block never closed is cut to the end: the model ran
/// out of tokens while thinking and has not answered. A lone closing tag cuts what precedes it, because some templates put
/// the opening tag into the prompt.
pub fn without_reasoning(text: &str) -> (String, bool) {
    let mut visible = text.to_string();
    let mut removed = false;
    for name in ["think", "thinking", "reasoning"] {
        let (open, close) = (format!("<{name}>"), format!("</{name}>"));
        while let Some(start) = visible.find(&open) {
            let end = visible[start..].find(&close).map_or(visible.len(), |at| start + at + close.len());
            visible.replace_range(start..end, "");
            removed = true;
        }
        if let Some(end) = visible.rfind(&close) {
            visible.replace_range(..end + close.len(), "");
            removed = true;
        }
    }
    (visible, removed)
}

const MARKER: &str = "answer:";

/// An answer and where it stands.
struct Found {
    /// The option, by its index in the question.
    answer: usize,
    /// The byte at which its marker begins; without one the end of what was read.
    begins: usize,
    /// Whether the marker's own sentence names it.
    is_marked: bool,
}

fn by_position(text: &str, reading: Reading<'_>) -> Option<Found> {
    let original = |shown| reading.order.original(shown);
    // ASCII lower-casing keeps every byte position.
    let lower = text.to_ascii_lowercase();
    let tails: Vec<usize> = lower.match_indices(MARKER).map(|(at, _)| at + MARKER.len()).collect();
    let Some(&first) = tails.first() else {
        let shown = last_bracketed(text, reading)?;
        return Some(Found { answer: original(shown), begins: text.len(), is_marked: false });
    };
    let end_of = |from: usize| tails.iter().find(|&&next| next > from).map_or(text.len(), |next| next - MARKER.len());
    // A question after an answer is the model's own; one before it is not.
    let whole = Reading { is_cut: false, ..reading };
    let has_answer = |from: usize| {
        let part = &text[from..end_of(from)];
        behind(&part[..made_up_question(&lower[from..end_of(from)])], whole).is_some()
    };
    let answered = tails.iter().copied().find(|&from| has_answer(from));
    let end = answered.map_or(text.len(), |from| from + made_up_question(&lower[from..]));
    let last = tails.iter().copied().rfind(|&from| from <= end).unwrap_or(first);
    let reading = Reading { is_cut: reading.is_cut && end == text.len(), ..reading };
    let (shown, is_marked) = behind(&text[last..end.max(last)], reading)?;
    let begins = if is_marked { last - MARKER.len() } else { end.max(last) };
    Some(Found { answer: original(shown), begins, is_marked })
}

/// The shown option that the text behind a marker names, and whether its first sentence does: what stands right behind the marker, or that
/// sentence's first bracketed letter; else the last one.
fn behind(tail: &str, reading: Reading<'_>) -> Option<(usize, bool)> {
    let n_choices = reading.order.len();
    let list = listed(tail, n_choices);
    let in_sentence = || {
        whole_option(tail, &reading.order.apply(reading.choices))
            .or_else(|| lone_letter(tail, n_choices))
            .or_else(|| bracketed(own_sentence(tail), n_choices).next().map(|(_, shown)| shown))
    };
    let at_once = if list.is_none() { in_sentence() } else { None };
    at_once.map(|shown| (shown, true)).or_else(|| Some((last_bracketed(&tail[list.unwrap_or(0)..], reading)?, false)))
}

/// The last bracketed letter of a text that the model ended itself.
fn last_bracketed(text: &str, reading: Reading<'_>) -> Option<usize> {
    bracketed(text, reading.order.len()).last().filter(|_| !reading.is_cut).map(|(_, shown)| shown)
}

/// What stands behind a marker up to its line's end, or to a stop that no lower-case word follows (`C. difficile` goes on).
fn own_sentence(tail: &str) -> &str {
    let tail = behind_marker(tail);
    let line = tail.lines().next().unwrap_or_default();
    let is_end = |at: &usize| {
        let rest = &line[at + 1..];
        rest.starts_with(char::is_whitespace) && !rest.trim_start().starts_with(char::is_lowercase)
    };
    let end = line.match_indices(['.', '!', '?']).map(|(at, _)| at).find(is_end);
    &line[..end.unwrap_or(line.len())]
}

/// Where the options end that are listed from the first line of text below a marker on, line by line, two at least.
fn listed(tail: &str, n_choices: usize) -> Option<usize> {
    let mut lines = tail.split_inclusive('\n');
    let mut at = lines.next().filter(|rest| behind_marker(rest).is_empty())?.len();
    let (mut end, mut shown) = (at, 0);
    for line in lines {
        at += line.len();
        if shown < n_choices && is_item(line, letter(shown)) {
            (end, shown) = (at, shown + 1);
        } else if shown > 0 || !line.trim().is_empty() {
            break;
        }
    }
    (shown >= 2).then_some(end)
}

/// `A. text`, `- A) text`, `**A.** text`, `[A] text`.
fn is_item(line: &str, letter: char) -> bool {
    let is_sign = |c: char| c.is_whitespace() || "*_-#>([".contains(c);
    let rest = line.trim_start_matches(is_sign).strip_prefix(letter);
    rest.is_some_and(|rest| rest.trim_start_matches('*').starts_with(['.', ')', ']', ':']))
}

/// Where the model, done with its answer, goes on with a question of its own: the start of that line.
fn made_up_question(lower: &str) -> usize {
    ["\nquestion:", "\nabstract:", "\noptions:"].iter().filter_map(|mark| lower.find(mark)).min().unwrap_or(lower.len())
}

/// Bracketed letters of shown options, by their place.
fn bracketed(text: &str, n_choices: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut found: Vec<(usize, usize)> = (0..n_choices)
        .flat_map(|shown| {
            text.match_indices(&format!("[{}]", letter(shown))).map(|(at, _)| (at, shown)).collect::<Vec<_>>()
        })
        .collect();
    found.sort_unstable();
    found.into_iter()
}

/// Behind the marker: spaces, brackets and emphasis are passed over.
fn behind_marker(tail: &str) -> &str {
    tail.trim_start_matches([' ', '\n', '\r', '\t', '(', '*', '_', '"'])
}

/// An option whose whole text stands right behind the marker and ends there: at a line's or sentence's end, or before no letter.
fn whole_option(tail: &str, texts: &[&str]) -> Option<usize> {
    let tail = behind_marker(tail).to_lowercase();
    let stands = |text: &str| {
        let text = text.trim().trim_end_matches('.').to_lowercase();
        let rest = tail.strip_prefix(&text)?;
        let ends = rest.chars().next().is_none_or(|c| !c.is_alphanumeric() && c != '-');
        (text.chars().count() > 1 && ends).then_some(text.len())
    };
    let found = texts.iter().enumerate().filter_map(|(shown, text)| Some((stands(text)?, shown)));
    // Of equal ones the first, as everywhere.
    found.max_by_key(|&(len, shown)| (len, std::cmp::Reverse(shown))).map(|(_, shown)| shown)
}

/// `B`, `B.`, `(B)`, `**B**`, `B (text)`, `B. Text` right behind the marker.
fn lone_letter(tail: &str, n_choices: usize) -> Option<usize> {
    let tail = behind_marker(tail);
    let first = tail.chars().next()?;
    let shown = (0..n_choices).find(|&shown| letter(shown) == first)?;
    let rest = tail[first.len_utf8()..].trim_start_matches(['*', '_', '"']);
    let after_space = rest.trim_start_matches([' ', '\t']);
    let is_lone = match rest.chars().next() {
        None | Some('\n' | '\r' | ')' | ']' | ':' | ',' | ';') => true,
        // `C. difficile` names a species, `C. The nerve ..` begins a sentence.
        Some('.') => !rest[1..].trim_start_matches([' ', '\t']).starts_with(char::is_lowercase),
        Some(' ' | '\t') => {
            let next = after_space.chars().next();
            matches!(next, None | Some('\n' | '\r' | '(' | '[' | '*' | '='))
                || ["- ", "\u{2013} ", "\u{2014} "].iter().any(|dash| after_space.starts_with(dash))
        }
        Some(_) => false,
    };
    is_lone.then_some(shown)
}

/// prompt_engine iterates the letters of the order string and keeps the last one found in brackets; the found letter is
/// the *shown* one and is mapped back through the order.
fn by_order(text: &str, order: &ChoiceOrder) -> Option<usize> {
    let tail = text.rsplit_once("\nAnswer: ").map_or(text, |(_, tail)| tail);
    let found = order.indices().iter().copied().rfind(|&index| tail.contains(&format!("[{}]", letter(index))));
    found.map(|shown| order.original(shown))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(indices: &[usize]) -> ChoiceOrder {
        ChoiceOrder::from_indices(indices.to_vec()).unwrap()
    }

    fn choices() -> Vec<String> {
        ["Phrenic nerve", "Vagus nerve", "C. difficile", "Ulnar nerve", "Phrenic nerve palsy"]
            .map(String::from)
            .to_vec()
    }

    fn read(text: &str, indices: &[usize], rule: AnswerRule, is_cut: bool) -> Extracted {
        let (choices, order) = (choices(), order(indices));
        extract(Reading { text, choices: &choices[..indices.len()], order: &order, is_cut }, rule)
    }

    fn check(text: &str, indices: &[usize], rule: AnswerRule, expected: Option<usize>) {
        let answer = read(text, indices, rule, false).answer;
        assert_eq!(answer, expected.map_or(Answer::Unparsed, Answer::Choice), "{text:?} {rule:?}");
    }

    fn aloe(text: &str, expected: Option<usize>) {
        check(text, &[0, 1, 2, 3], AnswerRule::Aloe, expected);
    }

    #[test]
    fn the_first_bracketed_letter_after_the_last_answer_marker_wins() {
        aloe("It is [A].\nAnswer: [B]", Some(1));
        aloe("Answer: [A]. No, wait.\nAnswer: [C] not [B]", Some(2));
        aloe("so [B] then [D]", Some(3));
        aloe("so B", None);
        aloe("Answer: C. Option [A] is wrong because of its course.", Some(2));
        aloe("Answer: Vagus nerve. [A] and [C] do not reach it.", Some(1));
        aloe("Answer: it must be [D], as [A] is too long.", Some(3));
        aloe("Answer: [E]", None);
        aloe("**Answer:** no", None);
    }

    /// Every letter by one rule: an answer that is `A` must not be lost where `B` is read.
    #[test]
    fn a_lone_letter_behind_the_marker_is_read_alike_for_every_option() {
        for (index, letter) in ["A", "B", "C", "D"].into_iter().enumerate() {
            for form in [
                "Answer: X",
                "Answer: X ",
                "Answer: X\n",
                "answer: (X) because",
                "Answer: **X**",
                "Answer:\nX",
                "Answer: X.",
                "Answer: X. The nerve is cut.",
                "Answer: X (the nerve)",
                "Answer: X, as said",
                "Answer: X: the nerve",
                "Answer: X \u{2013} the nerve",
                "Answer: X\r\n",
            ] {
                aloe(&form.replace('X', letter), Some(index));
            }
            for form in [
                "Answer: X cells",
                "Answer: X-dimer",
                "Answer: X. coli",
                "Answer: Xeno",
                "Answer: X man came",
                "Answer: X's",
            ] {
                aloe(&form.replace('X', letter), None);
            }
        }
    }

    #[test]
    fn an_options_whole_text_behind_the_marker_is_read_before_a_letter() {
        aloe("Answer: C. difficile", Some(2));
        aloe("Answer: vagus nerve.", Some(1));
        aloe("Answer: vagus nerves", None);
        check("Answer: C. difficile", &[2, 0, 1, 3], AnswerRule::Aloe, Some(2));
        check("Answer: Phrenic nerve palsy", &[0, 1, 2, 3, 4], AnswerRule::Aloe, Some(4));
        check("Answer: Phrenic nerve", &[0, 1, 2, 3, 4], AnswerRule::Aloe, Some(0));
    }

    #[test]
    fn the_reasoning_is_what_stands_before_the_answers_line() {
        let (choices, natural) = (choices(), order(&[0, 1, 2, 3]));
        let check = |text: &str, expected: Option<(usize, &str)>| {
            let reading = Reading { text, choices: &choices[..4], order: &natural, is_cut: false };
            assert_eq!(reasoned(reading), expected.map(|(answer, text)| (answer, text.to_owned())), "{text:?}");
        };
        check("It runs deep.\n\nSo B.\n\nAnswer: B", Some((1, "It runs deep.\n\nSo B.")));
        check("It runs deep.\n**Final Answer: [B]** It does.", Some((1, "It runs deep.")));
        check("It runs deep, and so the right one is Answer: B", Some((1, "It runs deep, and so the right one is")));
        check("<think>Is it A?</think>Deep.\nAnswer: B\n\nQuestion: Which bone?\nAnswer: C", Some((1, "Deep.")));
        check("It is [B]", Some((1, "It is [B]")));
        check("Answer: deep. It is [B]", Some((1, "Answer: deep. It is [B]")));
        check("Answer: deep.\nSo [B]\nQuestion: Which bone?", Some((1, "Answer: deep.\nSo [B]")));
        check("It is deep.", None);
    }

    #[test]
    fn a_question_that_the_model_makes_up_after_its_answer_is_not_read() {
        aloe("So.\nAnswer: [B]\n\nQuestion: Which bone?\nOptions:\nA. x\nAnswer: [D]", Some(1));
        aloe("Question: restated\nAnswer: [B]", Some(1));
        aloe("To find the best answer: go through them.\nOptions:\nA. x\nB. y\nAnswer: [C]", Some(2));
    }

    /// A stem of CareQA ends so. With or without its colon the text says the same.
    #[test]
    fn a_restated_question_that_ends_in_a_marker_is_not_read_as_the_answer() {
        let restated = "The question asks to indicate the incorrect answer: so each option is checked. [A] is true. [B] is true. \
                        [C] is false.\nThe answer is [C]";
        aloe(restated, Some(2));
        aloe(&restated.replace("answer:", "answer"), Some(2));
        for form in ["A. x", "A) x", "(A) x", "[A] x", "- **A.** x", "**A**: x"] {
            let list = ["A", "B", "C", "D"].map(|letter| form.replace('A', letter)).join("\n");
            for head in ["On nerves, indicate the false answer:\n", "**Indicate the false answer:**\n\n"] {
                aloe(&format!("{head}{list}\n\n[A] and [B] are true.\nThe answer is [C]."), Some(2));
                aloe(&format!("{head}{list}\n\nI do not know."), None);
                aloe(&format!("{head}{list}\n\nAnswer: B"), Some(1));
                aloe(&format!("{head}{list}\nAnswer: [B]\n\nQuestion: Which bone?\nAnswer: [D]"), Some(1));
            }
        }
        aloe("Indicate the false answer:\nOptions:\n[A] x\n[B] y\n\nIt is [B].", Some(1));
        aloe("Indicate the false answer:\nOptions:\n[A] x\n[B] y\nAnswer: [B].", Some(1));
        // One letter is no list.
        aloe("Answer:\nA. Phrenic nerve\n\nB. Vagus nerve is wrong.", Some(0));
    }

    #[test]
    fn behind_a_marker_the_first_letter_of_its_sentence_is_read_and_of_later_sentences_the_last() {
        aloe("Answer: it must be the second, [B]. Not [A].", Some(1));
        aloe("**Answer:**\n\nThe right one is **[B]**. Not [A].", Some(1));
        aloe("Answer: as C. difficile shows [B], not [A].", Some(1));
        aloe("Answer: let us see. [A] is too long. [B] fits", Some(1));
        aloe("Answer: let us see.\n[A] is too long, so [B].\n\nQuestion: Which bone?\nAnswer: [D]", Some(1));
        let cut = |text| read(text, &[0, 1, 2, 3], AnswerRule::Aloe, true).answer;
        assert_eq!(cut("Answer: let us see. [A] is too long, [B] is"), Answer::Unparsed);
        assert_eq!(cut("Answer: let us see. So [B].\n\nQuestion: Which"), Answer::Choice(1));
    }

    #[test]
    fn a_text_that_was_cut_off_before_its_answer_has_none() {
        let read = |text| read(text, &[0, 1, 2, 3], AnswerRule::Aloe, true).answer;
        assert_eq!(read("Not [A], rather [B], which is"), Answer::Unparsed);
        assert_eq!(read("Answer: [B] because"), Answer::Choice(1));
    }

    #[test]
    fn a_shown_letter_is_mapped_back_to_the_questions_own_option() {
        check("Answer: [A]", &[2, 0, 3, 1], AnswerRule::Aloe, Some(2));
        check("x\nAnswer: [A]", &[2, 0, 3, 1], AnswerRule::PromptEngine, Some(2));
    }

    /// By hand from prompt_engine's code: order string "CADB", text has [A] and [B]; iterating C, A, D, B leaves B as the
    /// last one found; B is shown position 1, so the answer is order[1] = A.
    #[test]
    fn of_several_letters_prompt_engine_takes_the_latest_in_the_order_string() {
        check("x\nAnswer: [B] or [A]", &[2, 0, 3, 1], AnswerRule::PromptEngine, Some(0));
        check("x\nAnswer: [A] or [B]", &[2, 0, 3, 1], AnswerRule::PromptEngine, Some(0));
        check("[D]", &[2, 0, 3, 1], AnswerRule::PromptEngine, Some(1));
        check("x\nAnswer: B", &[2, 0, 3, 1], AnswerRule::PromptEngine, None);
    }

    #[test]
    fn reasoning_is_cut_before_reading_and_an_unclosed_block_holds_no_answer() {
        let found = |text, rule| read(text, &[0, 1, 2, 3], rule, false);
        let removed = |answer| Extracted { answer, reasoning_removed: true };
        let ours = AnswerRule::Aloe;
        assert_eq!(found("<think>Answer: [A]</think>Answer: [B]", ours), removed(Answer::Choice(1)));
        assert_eq!(found("<think>so it is [A]. Answer: [A]", ours), removed(Answer::Unparsed));
        assert_eq!(found("perhaps [A]</think>Answer: [C]", ours), removed(Answer::Choice(2)));
        let theirs = found("<think>so it is [A].", AnswerRule::PromptEngine);
        assert_eq!(theirs, Extracted { answer: Answer::Choice(0), reasoning_removed: false });
    }
}
