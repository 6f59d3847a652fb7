//! lm-evaluation-harness's exact strings (0.4.13: `tasks/{medqa, medmcqa, pubmedqa, mmlu/default, careqa, headqa}`) and its
//! rule for few-shot examples.
//!
//! The starter set has no task there: it borrows the wording of the set whose layout it has. Five-option MedQA has none and
//! is refused. Examples for CareQA are the harness's, from the test set itself, and the results say so.

use super::{ChatForm, ChoicePrompt, Protocol, Shown, letter, message};
use crate::python_random::PythonRandom;
use crate::{Error, Question, Result, Subject, Task};
use aloe_text::Role;

/// Between a prompt and its answer.
const TARGET_DELIMITER: &str = " ";
/// After each worked example.
const FEWSHOT_DELIMITER: &str = "\n\n";
/// `DEFAULT_OTHER_SEED`: the harness's seed for few-shot draws.
pub const FEWSHOT_SEED: u32 = 1234;

/// The prompt and its options. As a conversation (`--apply_chat_template`, with its default `--fewshot_as_multiturn`): the system message
/// is the operator's prompt and the task's description, each example a turn of its own, and no delimiter stands before the options.
pub fn choice_prompt(task: Task, question: &Question, shots: &[&Question], form: ChatForm<'_>) -> Result<ChoicePrompt> {
    let head = delimited(form.system.unwrap_or_default(), &description(task), FEWSHOT_DELIMITER);
    let choices = choices(task, question);
    if form.is_chat {
        let mut messages = Vec::new();
        if !head.is_empty() {
            messages.push(message(Role::System, head));
        }
        for shot in shots {
            messages.push(message(Role::User, question_text(task, shot)?));
            messages.push(message(Role::Assistant, self::choices(task, shot)[shot.key].clone()));
        }
        messages.push(message(Role::User, question_text(task, question)?));
        return Ok(ChoicePrompt { shown: Shown::Messages(messages), continuations: choices.clone(), choices });
    }
    let mut text = head;
    for shot in shots {
        text += &question_text(task, shot)?;
        text += TARGET_DELIMITER;
        text += &self::choices(task, shot)[shot.key];
        text += FEWSHOT_DELIMITER;
    }
    text += &question_text(task, question)?;
    let continuations = choices.iter().map(|choice| format!("{TARGET_DELIMITER}{choice}")).collect();
    Ok(ChoicePrompt { shown: Shown::Text(text), continuations, choices })
}

/// `maybe_delimit`: both, with the delimiter between them where neither has white space there.
fn delimited(prefix: &str, suffix: &str, delimiter: &str) -> String {
    let is_apart = prefix.ends_with(char::is_whitespace) || suffix.starts_with(char::is_whitespace);
    let between = if prefix.is_empty() || suffix.is_empty() || is_apart { "" } else { delimiter };
    format!("{prefix}{between}{suffix}")
}

/// For each of `n_questions` questions in file order, the pool indices of its `k` examples: MMLU takes the first `k` of
/// dev; the others one `random.sample` per question from one generator, so a question's examples depend on its place. CareQA names no split
/// for examples, so the harness draws from the test set and does not take the question itself out (`fewshot_context` asks for that only
/// where the two splits have one name): now and then a question stands before itself with its answer.
pub fn shot_indices(task: Task, pool: &[Question], n_questions: usize, k: usize) -> Result<Vec<Vec<usize>>> {
    let n_pool = pool.len();
    if k > n_pool {
        let file = pool.first().map_or_else(|| "an empty file".to_owned(), |first| first.source.clone());
        return Err(Error::Pool { task: task.name(), n_shots: k, n_pool, file });
    }
    if let Task::Mmlu(_) = task {
        return Ok(vec![(0..k).collect(); n_questions]);
    }
    let mut random = PythonRandom::new(FEWSHOT_SEED);
    Ok((0..n_questions).map(|_| random.sample(n_pool, k)).collect())
}

fn description(task: Task) -> String {
    match task {
        Task::Mmlu(subject) => {
            let name = subject.name().replace('_', " ");
            format!("The following are multiple choice questions (with answers) about {name}.\n\n")
        }
        _ => String::new(),
    }
}

fn question_text(task: Task, question: &Question) -> Result<String> {
    let lettered = || -> String {
        question.choices.iter().enumerate().map(|(i, choice)| format!("{}. {choice}\n", letter(i))).collect()
    };
    Ok(match task {
        Task::Medqa4 => format!("Question: {}\n{}Answer:", question.stem, lettered()),
        Task::Medmcqa | Task::CareqaEn | Task::CareqaEs | Task::StarterMcqa => {
            format!("Question: {}\nChoices:\n{}Answer:", question.stem, lettered())
        }
        Task::Pubmedqa | Task::StarterPubmedqa => {
            let context = question.context.as_deref().unwrap_or_default();
            format!("Abstract: {context}\nQuestion: {}\nAnswer:", question.stem)
        }
        Task::Mmlu(_) => format!("{}\n{}Answer:", python_strip(&question.stem), lettered()),
        Task::HeadqaEn | Task::HeadqaEs => format!("Question: {}\nAnswer:", question.stem),
        Task::Medqa5 => {
            return Err(Protocol::LmEval.refuse("has no task for five-option MedQA; use --protocol aloe"));
        }
        Task::Own(_) => return Err(Protocol::LmEval.refuse("has no task for a set of your own; use --protocol aloe")),
    })
}

fn choices(task: Task, question: &Question) -> Vec<String> {
    match task {
        Task::Pubmedqa | Task::StarterPubmedqa | Task::HeadqaEn | Task::HeadqaEs => question.choices.clone(),
        _ => (0..question.choices.len()).map(|i| letter(i).to_string()).collect(),
    }
}

/// Python's `str.strip()`: Unicode white space and the four separators U+001C to U+001F.
pub(crate) fn python_strip(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c))
}

/// The subjects of MMLU-medical, for groups.
pub fn mmlu_subjects() -> [Task; 6] {
    Subject::ALL.map(Task::Mmlu)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(choices: &[&str], context: Option<&str>) -> Question {
        Question {
            id: "1".into(),
            stem: " Which bone? ".into(),
            context: context.map(String::from),
            choices: choices.iter().map(|choice| choice.to_string()).collect(),
            key: 1,
            subject: String::new(),
            explanation: None,
            source: String::new(),
        }
    }

    /// The strings are those of the fact file (aloe.md 3.3); equality with the installed harness is tested in aloe-eval.
    #[test]
    fn prompts_are_the_harness_strings() {
        let four = sample(&["a", "b", "c", "d"], None);
        let check = |task, question: &Question, expected: &str| {
            let prompt = choice_prompt(task, question, &[], ChatForm::default()).unwrap();
            assert_eq!(prompt.shown, Shown::Text(expected.into()));
        };
        let options = "A. a\nB. b\nC. c\nD. d\nAnswer:";
        check(Task::Medqa4, &four, &format!("Question:  Which bone? \n{options}"));
        check(Task::Medmcqa, &four, &format!("Question:  Which bone? \nChoices:\n{options}"));
        let head = "The following are multiple choice questions (with answers) about college biology.\n\n";
        check(Task::Mmlu(Subject::CollegeBiology), &four, &format!("{head}Which bone?\n{options}"));
        let three = sample(&["yes", "no", "maybe"], Some("x\ny"));
        check(Task::Pubmedqa, &three, "Abstract: x\ny\nQuestion:  Which bone? \nAnswer:");
        let plain = ChatForm::default();
        assert_eq!(choice_prompt(Task::Pubmedqa, &three, &[], plain).unwrap().continuations, [" yes", " no", " maybe"]);
        let shot = choice_prompt(Task::Medqa4, &four, &[&four], plain).unwrap().shown.to_digest();
        assert!(shot.starts_with(&format!("Question:  Which bone? \n{options} B\n\nQuestion:")));
    }

    /// By hand from `build_qa_turn` and `construct_requests`; the installed harness is the judge in aloe-eval's parity test.
    #[test]
    fn a_conversation_has_examples_as_turns_and_no_delimiter() {
        let four = sample(&["a", "b", "c", "d"], None);
        let form = ChatForm { is_chat: true, system: Some("Be brief.") };
        let prompt = choice_prompt(Task::Mmlu(Subject::Anatomy), &four, &[&four], form).unwrap();
        let Shown::Messages(messages) = prompt.shown else { panic!("no conversation") };
        let asked = "Which bone?\nA. a\nB. b\nC. c\nD. d\nAnswer:";
        let head = "Be brief.\n\nThe following are multiple choice questions (with answers) about anatomy.\n\n";
        let expected = [(Role::System, head), (Role::User, asked), (Role::Assistant, "B"), (Role::User, asked)];
        assert_eq!(messages, expected.map(|(role, text)| message(role, text)));
        assert_eq!(prompt.continuations, ["A", "B", "C", "D"]);
        let plain = ChatForm { is_chat: false, ..form };
        let text = choice_prompt(Task::Medqa4, &four, &[], plain).unwrap().shown.to_digest();
        assert!(text.starts_with("Be brief.Question:"), "as the harness joins them: {text}");
    }

    fn pool(n: usize, file: &str) -> Vec<Question> {
        let one = |at: usize| Question { source: format!("{file}:{}", at + 1), ..sample(&["a", "b"], None) };
        (0..n).map(one).collect()
    }

    #[test]
    fn mmlu_takes_the_first_of_dev_and_more_examples_than_the_pool_holds_are_refused_with_its_file() {
        let (mmlu, dev) = (Task::Mmlu(Subject::Anatomy), pool(5, "mmlu/dev/anatomy_dev.csv"));
        assert_eq!(shot_indices(mmlu, &dev, 2, 3).unwrap(), [[0, 1, 2], [0, 1, 2]]);
        let refused = |task, pool: &[Question], k| shot_indices(task, pool, 2, k).unwrap_err().to_string();
        let words = "6 examples asked for, but the pool of task `mmlu_anatomy` holds 5 (mmlu/dev/anatomy_dev.csv:1)";
        assert_eq!(refused(mmlu, &dev, 6), words);
        let words = "7 examples asked for, but the pool of task `careqa_en` holds 6 (careqa/CareQA_en.json:1)";
        assert_eq!(refused(Task::CareqaEn, &pool(6, "careqa/CareQA_en.json"), 7), words);
        assert!(refused(Task::CareqaEn, &[], 1).ends_with("holds 0 (an empty file)"));
    }

    /// Python 3.11: `r = random.Random(1234); [r.sample(range(6), 2) for _ in range(6)]`, what `ContextSampler.sample(2)` does without a
    /// document to take out. Prompts of 500 questions are the harness's in aloe-eval's test of whole sets.
    #[test]
    fn careqas_examples_are_drawn_from_the_test_set_with_the_question_itself_in_it() {
        let test = pool(6, "careqa/CareQA_en.json");
        let expected = [[3, 0], [0, 5], [4, 0], [5, 0], [0, 2], [1, 0]];
        assert_eq!(shot_indices(Task::CareqaEn, &test, 6, 2).unwrap(), expected);
    }
}
