//! From a completion to an answer: a shown position, or [`Answer::Unparsed`]. Nothing is guessed and nothing retried here.
//!
//! Two rules. [`AnswerRule::Aloe`] reads by position in the text: after the last `Answer:`, the last bracketed letter, else
//! a lone letter right behind it (the form of the published `*-cot` sets); without any `Answer:`, the last bracketed letter
//! of the text. [`AnswerRule::PromptEngine`] is prompt_engine's `parse_response`: the text after the last
//! `"\nAnswer: "`, only bracketed letters, and of several the one that comes latest in the shuffled order string.

use crate::order::ChoiceOrder;
use crate::question::letter;

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

/// Reads the answer of `text` to a question whose options were shown in `order`.
pub fn extract(text: &str, order: &ChoiceOrder, rule: AnswerRule) -> Extracted {
    let (visible, reasoning_removed) = without_reasoning(text);
    let answer = match rule {
        AnswerRule::Aloe => by_position(&visible, order),
        AnswerRule::PromptEngine => by_order(&visible, order),
    };
    Extracted { answer: answer.map_or(Answer::Unparsed, Answer::Choice), reasoning_removed }
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

fn by_position(text: &str, order: &ChoiceOrder) -> Option<usize> {
    let marker = "answer:";
    // ASCII lower-casing keeps every byte position.
    let tail = text.to_ascii_lowercase().rfind(marker).map(|at| &text[at + marker.len()..]);
    let shown = match tail {
        Some(tail) => last_bracketed(tail, order.len()).or_else(|| leading_letter(tail, order.len())),
        None => last_bracketed(text, order.len()),
    };
    shown.map(|position| order.original(position))
}

fn last_bracketed(text: &str, n_choices: usize) -> Option<usize> {
    (0..n_choices)
        .filter_map(|shown| text.rfind(&format!("[{}]", letter(shown))).map(|at| (at, shown)))
        .max()
        .map(|(_, shown)| shown)
}

/// `B`, `B.`, `(B)`, `**B**` right behind the marker, not the first letter of a word.
fn leading_letter(tail: &str, n_choices: usize) -> Option<usize> {
    let tail = tail.trim_start_matches([' ', '\n', '\t', '(', '*']);
    let first = tail.chars().next()?;
    let next = tail.chars().nth(1);
    let shown = (0..n_choices).find(|&shown| letter(shown) == first)?;
    if next.is_none_or(|c| !c.is_alphanumeric() && c != '\'' && !(c == ' ' && first == 'A')) {
        Some(shown)
    } else {
        None
    }
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

    fn check(text: &str, indices: &[usize], rule: AnswerRule, expected: Option<usize>) {
        let answer = extract(text, &order(indices), rule).answer;
        assert_eq!(answer, expected.map_or(Answer::Unparsed, Answer::Choice), "{text:?} {rule:?}");
    }

    #[test]
    fn the_last_bracketed_letter_after_the_last_answer_marker_wins() {
        let rule = AnswerRule::Aloe;
        check("It is [A].\nAnswer: [B]", &[0, 1, 2, 3], rule, Some(1));
        check("Answer: [A]. No, wait.\nAnswer: [C] not [B]", &[0, 1, 2, 3], rule, Some(1));
        check("Answer: D", &[0, 1, 2, 3], rule, Some(3));
        check("**Answer:** no", &[0, 1, 2, 3], rule, None);
        check("answer: (B) because", &[0, 1, 2, 3], rule, Some(1));
        check("Answer: A man came", &[0, 1, 2, 3], rule, None);
        check("Answer: Because", &[0, 1, 2, 3], rule, None);
        check("so [B] then [D]", &[0, 1, 2, 3], rule, Some(3));
        check("so B", &[0, 1, 2, 3], rule, None);
        check("Answer: [E]", &[0, 1, 2, 3], rule, None);
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
        let natural = order(&[0, 1, 2, 3]);
        let closed = extract("<think>Answer: [A]</think>Answer: [B]", &natural, AnswerRule::Aloe);
        assert_eq!(closed, Extracted { answer: Answer::Choice(1), reasoning_removed: true });
        let open = extract("<think>so it is [A]. Answer: [A]", &natural, AnswerRule::Aloe);
        assert_eq!(open, Extracted { answer: Answer::Unparsed, reasoning_removed: true });
        let tail = extract("perhaps [A]</think>Answer: [C]", &natural, AnswerRule::Aloe);
        assert_eq!(tail, Extracted { answer: Answer::Choice(2), reasoning_removed: true });
    }
}
