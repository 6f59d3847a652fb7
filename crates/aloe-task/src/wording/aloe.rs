//! Our own wording, the same for every set.
//!
//! Rules: texts are trimmed; a context comes first as `Abstract:`; options are lettered in shown order; answers to score are
//! the letters, for yes/no/maybe questions the words (letters too where a next letter is asked for). Generated answers end in `Answer: [X]`.

use super::{ChatForm, ChoicePrompt, CotShot, Shown, letter, message};
use crate::{ChoiceOrder, Question};
use aloe_text::{Message, Role};

/// The system prompt of generated answers.
pub const SYSTEM: &str = "You answer medical exam questions. Think step by step, briefly. Exactly one option is right. \
End with a last line of the form \"Answer: [X]\", where X is the letter of that option, and write nothing after it.";

/// How a question is shown, and the answers behind it.
type Form = fn(&Question) -> (String, Vec<String>);

/// For log-likelihood scoring. As a conversation, examples are turns and no space stands before an option.
pub fn choice_prompt(question: &Question, shots: &[&Question], form: ChatForm<'_>) -> ChoicePrompt {
    prompt(question, shots, form, scored)
}

/// For the most probable next letter.
pub fn letter_prompt(question: &Question, shots: &[&Question], form: ChatForm<'_>) -> ChoicePrompt {
    prompt(question, shots, form, lettered)
}

fn prompt(question: &Question, shots: &[&Question], form: ChatForm<'_>, of: Form) -> ChoicePrompt {
    let (asked, choices) = of(question);
    let shots = shots.iter().map(|shot| {
        let (asked, mut answers) = of(shot);
        (asked, answers.swap_remove(shot.key))
    });
    if form.is_chat {
        let mut messages: Vec<Message> = form
            .system
            .iter()
            .filter(|system| !system.is_empty())
            .map(|system| message(Role::System, *system))
            .collect();
        for (asked, answer) in shots {
            messages.push(message(Role::User, asked));
            messages.push(message(Role::Assistant, answer));
        }
        messages.push(message(Role::User, asked));
        return ChoicePrompt { shown: Shown::Messages(messages), continuations: choices.clone(), choices };
    }
    let text = shots.map(|(asked, answer)| format!("{asked} {answer}\n\n")).chain([asked]).collect();
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

fn scored(question: &Question) -> (String, Vec<String>) {
    match question.is_yes_no_maybe() {
        true => (format!("{}Answer:", head(question)), question.choices.clone()),
        false => lettered(question),
    }
}

fn lettered(question: &Question) -> (String, Vec<String>) {
    let n = question.choices.len();
    let asked = format!("{}\nAnswer:", description(question, &ChoiceOrder::natural(n)));
    (asked, (0..n).map(|i| letter(i).to_string()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(choices: &[&str], key: usize) -> Question {
        Question {
            id: "1".into(),
            stem: " Does it? ".into(),
            context: Some("It may.".into()),
            choices: choices.iter().map(|choice| choice.to_string()).collect(),
            key,
            subject: String::new(),
            explanation: None,
            source: String::new(),
        }
    }

    /// Written out by hand. The words themselves are what log-likelihoods are of.
    #[test]
    fn a_next_letter_is_asked_for_behind_lettered_options_also_where_the_words_are_scored_otherwise() {
        let (asked, shot) = (question(&["yes", "no", "maybe"], 0), question(&["yes", "no", "maybe"], 1));
        let plain = ChatForm::default();
        let shown = "Abstract: It may.\nQuestion: Does it?\nA. yes\nB. no\nC. maybe\nAnswer:";
        let prompt = letter_prompt(&asked, &[&shot], plain);
        assert_eq!(prompt.shown, Shown::Text(format!("{shown} B\n\n{shown}")));
        assert_eq!((prompt.continuations, prompt.choices), (strings(&[" A", " B", " C"]), strings(&["A", "B", "C"])));
        let words = choice_prompt(&asked, &[&shot], plain);
        let shown = "Abstract: It may.\nQuestion: Does it?\nAnswer:";
        assert_eq!(words.shown, Shown::Text(format!("{shown} no\n\n{shown}")));
        assert_eq!(words.continuations, [" yes", " no", " maybe"]);
        let four = question(&["a", "b", "c", "d"], 3);
        for form in [plain, ChatForm { is_chat: true, system: Some("Be brief.") }] {
            assert_eq!(
                letter_prompt(&four, &[&four], form),
                choice_prompt(&four, &[&four], form),
                "the same elsewhere"
            );
        }
    }

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| text.to_string()).collect()
    }
}
