//! prompt_engine's system prompts and description text (HPAI-BSC/prompt_engine, commits 5fd13a6 and 21e68bd, which agree; aloe.md 2.1).
//!
//! Its fixed worked examples are promptbase's; ours are in `prompt_engine_shots`. Its ten retries with rising temperature are an option
//! (`aloe-eval`, `Retry`): without it an unparsed sample is counted, never asked again in silence.

use super::{CotShot, Protocol, letter, message};
use crate::{ChoiceOrder, Question, Result};
use aloe_text::{Message, Role};

const FOUR: &str = "Please answer the question in the same style as the examples below. Note the exam question has an \
unique answer based on the information given. Let's think step by step. Include Answer: [X] at the end where X must be A, \
B, C, or D. Don't include more tokens after answering the question.";
const FIVE: &str = "Please answer the question in the same style as the examples below. Note the exam question has an \
unique answer based on the information given. Let's think step by step. Include Answer: [X] at the end where X must be A, \
B, C, D or E. Don't include more tokens after answering the question.";
const YES_NO_MAYBE: &str = "Please answer the question in the same style as the examples below. A medical question will be \
asked to you after the examples. The questions are about medicine and have 3 possible answers: yes, no or maybe. The \
questions may include an 'Abstract' section with context to provide you more information. Contexts are separated by line \
breaks. They are followed by the question you have to answer, and the possible choices. Let's think step by step. Include \
Answer: [X] at the end where X must be A, B, C.";

/// The conversation.
pub fn messages(question: &Question, order: &ChoiceOrder, shots: &[CotShot]) -> Result<Vec<Message>> {
    let mut messages = vec![message(Role::System, system(question)?)];
    for shot in shots {
        messages.push(message(Role::User, description(&shot.question, &shot.order)));
        messages.push(message(Role::Assistant, shot.response.clone()));
    }
    messages.push(message(Role::User, description(question, order)));
    Ok(messages)
}

/// The system prompt by the number of options.
pub fn system(question: &Question) -> Result<&'static str> {
    match question.choices.len() {
        4 => Ok(FOUR),
        5 => Ok(FIVE),
        3 if question.is_yes_no_maybe() => Ok(YES_NO_MAYBE),
        n => Err(Protocol::PromptEngine.refuse(&format!("has no system prompt for {n} options; use --protocol aloe"))),
    }
}

/// `get_problem_description`: letters in order, contents by the shuffled order; no `Question:` without a context.
pub fn description(question: &Question, order: &ChoiceOrder) -> String {
    let mut text = String::new();
    if let Some(context) = &question.context {
        if !context.is_empty() {
            text += &format!("Abstract: {context}");
        }
        text += "\nQuestion: ";
    }
    text += &question.stem;
    text += "\nOptions:\n";
    for (shown, choice) in order.apply(&question.choices).into_iter().enumerate() {
        text += &format!("{}. {}\n", letter(shown), choice.trim_matches([' ', '\n']));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_letters_shown_positions_and_takes_contents_from_the_order() {
        let mut question = Question {
            id: "1".into(),
            stem: "Does it?".into(),
            context: None,
            choices: ["yes", " no\n", "maybe"].map(String::from).to_vec(),
            key: 0,
            subject: String::new(),
            explanation: None,
            source: String::new(),
        };
        let order = ChoiceOrder::from_indices(vec![2, 0, 1]).unwrap();
        assert_eq!(description(&question, &order), "Does it?\nOptions:\nA. maybe\nB. yes\nC. no\n");
        question.context = Some("one\ntwo".into());
        let expected = "Abstract: one\ntwo\nQuestion: Does it?\nOptions:\nA. maybe\nB. yes\nC. no\n";
        assert_eq!(description(&question, &order), expected);
    }
}
