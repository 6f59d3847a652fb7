//! Our own wording, the same for every set.
//!
//! Rules: texts are trimmed; a context comes first as `Abstract:`; options are lettered in shown order; answers to score are
//! the letters, for yes/no/maybe questions the words. Generated answers end in `Answer: [X]`.

use super::{ChatForm, ChoicePrompt, CotShot, Shown, letter, message};
use crate::{ChoiceOrder, Question};
use aloe_text::{Message, Role};

/// The system prompt of generated answers.
pub const SYSTEM: &str = "You answer medical exam questions. Think step by step, briefly. Exactly one option is right. \
End with a last line of the form \"Answer: [X]\", where X is the letter of that option, and write nothing after it.";

/// For log-likelihood scoring. As a conversation, examples are turns and no space stands before an option.
pub fn choice_prompt(question: &Question, shots: &[&Question], form: ChatForm<'_>) -> ChoicePrompt {
    let choices = answers(question);
    if form.is_chat {
        let mut messages: Vec<Message> = form
            .system
            .iter()
            .filter(|system| !system.is_empty())
            .map(|system| message(Role::System, *system))
            .collect();
        for shot in shots {
            messages.push(message(Role::User, scored_text(shot)));
            messages.push(message(Role::Assistant, answers(shot)[shot.key].clone()));
        }
        messages.push(message(Role::User, scored_text(question)));
        return ChoicePrompt { shown: Shown::Messages(messages), continuations: choices.clone(), choices };
    }
    let mut text = String::new();
    for shot in shots {
        text += &format!("{} {}\n\n", scored_text(shot), answers(shot)[shot.key]);
    }
    text += &scored_text(question);
    let continuations = choices.iter().map(|choice| format!(" {choice}")).collect();
    ChoicePrompt { shown: Shown::Text(text), continuations, choices }
}

/// For generated answers.
pub fn messages(question: &Question, order: &ChoiceOrder, shots: &[CotShot]) -> Vec<Message> {
    let mut messages = vec![message(Role::System, SYSTEM)];
    for shot in shots {
        messages.push(message(Role::User, description(&shot.question, &shot.order)));
        messages.push(message(Role::Assistant, shot.response.trim()));
    }
    messages.push(message(Role::User, description(question, order)));
    messages
}

/// The question with its options in shown order.
pub fn description(question: &Question, order: &ChoiceOrder) -> String {
    let options: Vec<String> = order
        .apply(&question.choices)
        .iter()
        .enumerate()
        .map(|(i, choice)| format!("{}. {}", letter(i), choice.trim()))
        .collect();
    format!("{}{}", head(question), options.join("\n"))
}

/// The abstract, where there is one, and the question, without its options.
pub(super) fn head(question: &Question) -> String {
    match &question.context {
        Some(context) => format!("Abstract: {}\nQuestion: {}\n", context.trim(), question.stem.trim()),
        None => format!("Question: {}\n", question.stem.trim()),
    }
}

fn scored_text(question: &Question) -> String {
    if question.is_yes_no_maybe() {
        return format!("{}Answer:", head(question));
    }
    format!("{}\nAnswer:", description(question, &ChoiceOrder::natural(question.choices.len())))
}

fn answers(question: &Question) -> Vec<String> {
    if question.is_yes_no_maybe() {
        return question.choices.clone();
    }
    (0..question.choices.len()).map(|i| letter(i).to_string()).collect()
}
