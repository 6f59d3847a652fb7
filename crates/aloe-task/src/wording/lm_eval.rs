//! lm-evaluation-harness's exact strings (0.4.13: `tasks/{medqa, medmcqa, pubmedqa, mmlu/default, careqa, headqa}`) and its
//! rule for few-shot examples.
//!
//! The starter set has no task there: it borrows the wording of the set whose layout it has. Five-option MedQA has none and
//! is refused; so are examples for CareQA, which the harness would take from the test set itself.

use super::{ChoicePrompt, Protocol, letter};
use crate::python_random::PythonRandom;
use crate::{Error, Question, Result, Subject, Task};

/// Between a prompt and its answer.
const TARGET_DELIMITER: &str = " ";
/// After each worked example.
const FEWSHOT_DELIMITER: &str = "\n\n";
/// `DEFAULT_OTHER_SEED`: the harness's seed for few-shot draws.
pub const FEWSHOT_SEED: u32 = 1234;

/// The prompt and its options.
pub fn choice_prompt(task: Task, question: &Question, shots: &[&Question]) -> Result<ChoicePrompt> {
    let mut text = description(task);
    for shot in shots {
        text += &question_text(task, shot)?;
        text += TARGET_DELIMITER;
        text += &choices(task, shot)[shot.key];
        text += FEWSHOT_DELIMITER;
    }
    text += &question_text(task, question)?;
    let choices = choices(task, question);
    let continuations = choices.iter().map(|choice| format!("{TARGET_DELIMITER}{choice}")).collect();
    Ok(ChoicePrompt { text, continuations, choices })
}

/// For each of `n_questions` questions in file order, the pool indices of its `k` examples: MMLU takes the first `k` of
/// dev; the others one `random.sample` per question from one generator, so a question's examples depend on its place.
pub fn shot_indices(task: Task, n_pool: usize, n_questions: usize, k: usize) -> Result<Vec<Vec<usize>>> {
    if k > n_pool {
        return Err(Error::Pool { task: task.name(), n_shots: k, n_pool });
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
        Task::Medmcqa | Task::CareqaEn | Task::StarterMcqa => {
            format!("Question: {}\nChoices:\n{}Answer:", question.stem, lettered())
        }
        Task::Pubmedqa | Task::StarterPubmedqa => {
            let context = question.context.as_deref().unwrap_or_default();
            format!("Abstract: {context}\nQuestion: {}\nAnswer:", question.stem)
        }
        Task::Mmlu(_) => format!("{}\n{}Answer:", python_strip(&question.stem), lettered()),
        Task::HeadqaEn => format!("Question: {}\nAnswer:", question.stem),
        Task::Medqa5 => {
            return Err(Protocol::LmEval.refuse("has no task for five-option MedQA; use --protocol aloe"));
        }
    })
}

fn choices(task: Task, question: &Question) -> Vec<String> {
    match task {
        Task::Pubmedqa | Task::StarterPubmedqa | Task::HeadqaEn => question.choices.clone(),
        _ => (0..question.choices.len()).map(|i| letter(i).to_string()).collect(),
    }
}

/// Python's `str.strip()`: Unicode white space and the four separators U+001C to U+001F.
fn python_strip(text: &str) -> &str {
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
            assert_eq!(choice_prompt(task, question, &[]).unwrap().text, expected);
        };
        let options = "A. a\nB. b\nC. c\nD. d\nAnswer:";
        check(Task::Medqa4, &four, &format!("Question:  Which bone? \n{options}"));
        check(Task::Medmcqa, &four, &format!("Question:  Which bone? \nChoices:\n{options}"));
        let head = "The following are multiple choice questions (with answers) about college biology.\n\n";
        check(Task::Mmlu(Subject::CollegeBiology), &four, &format!("{head}Which bone?\n{options}"));
        let three = sample(&["yes", "no", "maybe"], Some("x\ny"));
        check(Task::Pubmedqa, &three, "Abstract: x\ny\nQuestion:  Which bone? \nAnswer:");
        assert_eq!(choice_prompt(Task::Pubmedqa, &three, &[]).unwrap().continuations, [" yes", " no", " maybe"]);
        let shot = choice_prompt(Task::Medqa4, &four, &[&four]).unwrap().text;
        assert!(shot.starts_with(&format!("Question:  Which bone? \n{options} B\n\nQuestion:")));
    }

    #[test]
    fn mmlu_takes_the_first_of_dev_and_more_examples_than_the_pool_holds_are_refused() {
        let mmlu = Task::Mmlu(Subject::Anatomy);
        assert_eq!(shot_indices(mmlu, 5, 2, 3).unwrap(), [[0, 1, 2], [0, 1, 2]]);
        assert!(shot_indices(mmlu, 5, 2, 6).is_err());
    }
}
