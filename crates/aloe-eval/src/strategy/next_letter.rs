//! The option whose letter is the most probable next token after the question and its lettered options; the first wins a tie.
//!
//! Another protocol than `loglikelihood`, never taken in its place: one token is drawn, and the letters are looked for among the most probable
//! ones that the server names. A letter that is not among them has no log-probability; where none is, the question has no answer. A local
//! model, and a server that can be scored, tell each letter exactly.

use super::loglikelihood::{Plan, shown, weighed};
use super::{TaskRun, handed};
use crate::{Result, Sample, ScoredChoice};
use aloe_engine::{NextRequest, NextResult, NextTold};
use aloe_record::Progress;
use aloe_task::{ChoicePrompt, Question, Task};

/// Asks for one token a question.
pub(super) fn answer(
    plan: &Plan,
    told: NextTold,
    run: &TaskRun,
    indices: &[usize],
    take: &mut dyn FnMut(Sample) -> Result<()>,
) -> Result<()> {
    let request = |&index: &usize| NextRequest {
        id: format!("{}/{}", run.task.name(), run.questions[index].id),
        prompt: shown(&plan.prompts[index]),
        wanted: plan.prompts[index].continuations.clone(),
    };
    let requests: Vec<NextRequest> = indices.iter().map(request).collect();
    handed(
        |take| run.engine.next_into(&requests, told, &Progress::silent(), run.cancel, take),
        |at, answered| {
            let index = indices[at];
            let question = &run.questions[index];
            take(match answered {
                Ok(result) => sample(run.task, index, question, &plan.prompts[index], result)?,
                Err(refused) => Sample::refused(run.task.name(), index, question, refused.to_string()),
            })
        },
    )
}

fn sample(task: Task, index: usize, question: &Question, prompt: &ChoicePrompt, result: NextResult) -> Result<Sample> {
    let choice = |&logp: &Option<f64>| ScoredChoice { ids: Vec::new(), logps: logp.into_iter().collect(), logp };
    let choices = result.logps.iter().map(choice).collect();
    weighed(task, index, question, prompt, result.prompt_ids.unwrap_or_default(), choices)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibration::Calibration;
    use crate::metrics::Counts;
    use crate::report::told_words;
    use aloe_task::Protocol;
    use aloe_task::wording::{ChatForm, letter_prompt};

    fn answered(key: usize, logps: [Option<f64>; 3]) -> Result<Sample> {
        let question = Question {
            id: "q".into(),
            stem: "Which?".into(),
            context: None,
            choices: ["x", "y", "z"].map(String::from).to_vec(),
            key,
            subject: String::new(),
            explanation: None,
            source: "file:1".into(),
        };
        let prompt = letter_prompt(Protocol::Aloe, &question, &[], ChatForm::default()).unwrap();
        let result = NextResult {
            id: "q".into(),
            logps: logps.to_vec(),
            prompt_ids: Some(vec![1, 2]),
            n_prompt_tokens: None,
            told: NextTold::Completions,
        };
        sample(Task::StarterMcqa, 0, &question, &prompt, result)
    }

    fn ln(p: f64) -> Option<f64> {
        Some(p.ln())
    }

    /// By hand: B and C share the highest probability, and the first wins; A is not told and is not taken, however small the others are.
    #[test]
    fn the_most_probable_letter_that_is_told_is_the_answer_and_none_told_is_no_answer() {
        let found = answered(1, [None, ln(0.001), ln(0.001)]).unwrap();
        assert_eq!((found.predicted, found.correct, found.correct_norm), (Some(1), true, None));
        assert_eq!(found.choices.iter().map(|choice| choice.logp).collect::<Vec<_>>(), [None, ln(0.001), ln(0.001)]);
        assert_eq!(found.prompt_ids, [1, 2]);
        let found = answered(0, [None; 3]).unwrap();
        assert_eq!(
            (found.predicted, found.correct),
            (None, false),
            "the first option is not what an unnamed letter means"
        );
        let error = answered(0, [ln(0.5), Some(f64::NAN), None]).unwrap_err().to_string();
        assert!(error.contains("3 options, but 2 finite"), "{error}");
    }

    /// By hand: of four questions two have every letter, with probabilities (0.4, 0.1, 0.1) and (0.1, 0.1, 0.7) before they are made to sum
    /// to one, so (2/3, 1/6, 1/6), right, and (1/9, 1/9, 7/9), wrong. Brier 1/9 + 2/36 = 1/6 and (1 + 64 + 49) / 81; ECE (1/3 + 7/9) / 2. One
    /// lacks a letter and is right all the same, one has none.
    #[test]
    fn what_is_not_told_is_counted_and_enters_neither_calibration_nor_acc_norm() {
        let samples = [
            answered(0, [ln(0.4), ln(0.1), ln(0.1)]),
            answered(1, [ln(0.1), ln(0.1), ln(0.7)]),
            answered(2, [ln(0.1), None, ln(0.3)]),
            answered(0, [None; 3]),
        ]
        .map(Result::unwrap);
        let counts = Counts::of(&samples);
        assert_eq!((counts.acc.value, counts.n_unparsed, counts.n_partial, counts.acc_norm), (0.5, 1, 2, None));
        assert_eq!((counts.n_refused, counts.n_samples, counts.n_ties), (0, None, None));
        assert_eq!(counts.chosen_positions, [1, 0, 2]);
        let found = Calibration::of(&samples).unwrap();
        assert_eq!(found.n, 2);
        let (brier, ece) = ((1.0 / 6.0 + 114.0 / 81.0) / 2.0, (1.0 / 3.0 + 7.0 / 9.0) / 2.0);
        assert!((found.brier - brier).abs() < 1e-12 && (found.ece - ece).abs() < 1e-12, "{found:?}");
        assert_eq!(Calibration::of(&samples[2..]), None);
        assert_eq!(crate::view::confidence(&samples[2]), None, "nor the page's");
        let words = counts.partial_words().unwrap();
        assert_eq!(
            words,
            "questions without the log-probability of every letter: 2 (left out of the calibration), of these without any: 1 (counted wrong)"
        );
        assert_eq!(Counts::of(&samples[..2]).partial_words(), None);
    }

    #[test]
    fn records_say_how_the_letters_were_told() {
        let words = |told: &str| told_words(Some(&serde_json::json!(told)));
        assert!(words("completions").unwrap().contains("/v1/completions"));
        assert!(words("chat").unwrap().contains("server template"));
        assert_eq!((words("scored"), told_words(None)), (Some("each letter scored"), None));
    }
}
