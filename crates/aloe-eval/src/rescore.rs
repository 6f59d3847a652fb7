//! A finished run scored again from its stored answers: after a mended parser, or by another reading rule, without asking a model.

use crate::calibration::Calibration;
use crate::metrics::Counts;
use crate::report::{EvalResults, TaskResult, one_option};
use crate::strategy::best_told;
use crate::vote::elected;
use crate::{AskedQuestion, Error, Result, Sample, Vote, parts};
use aloe_engine::FinishReason;
use aloe_task::extract::{Reading, extract, without_reasoning};
use aloe_task::{Answer, AnswerRule, ChoiceOrder};
use std::collections::{HashMap, HashSet};

/// What scoring again changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Rescored {
    /// The results, with the figures of the answers as read now.
    pub results: EvalResults,
    /// The samples, as read now.
    pub samples: Vec<Sample>,
    /// Answers that are read otherwise than they were.
    pub n_answers_changed: usize,
    /// Questions whose prediction is another one.
    pub n_predictions_changed: usize,
}

/// Reads every stored answer again by `rule` and counts anew. Log-probabilities are compared anew; they are what they were. Refuses a run of which
/// `results`, `samples` and `asked` do not hold the same questions: figures of a part would stand beside the words for the whole.
pub fn rescore(
    results: &EvalResults,
    samples: &[Sample],
    asked: &[AskedQuestion],
    rule: AnswerRule,
) -> Result<Rescored> {
    check_whole(results, samples, asked)?;
    let questions: HashMap<(&str, &str), &AskedQuestion> =
        asked.iter().map(|question| ((question.task.as_str(), question.id.as_str()), question)).collect();
    let mut found =
        Rescored { results: results.clone(), samples: Vec::new(), n_answers_changed: 0, n_predictions_changed: 0 };
    for sample in samples {
        let question = questions.get(&(sample.task.as_str(), sample.id.as_str()));
        let question = question.filter(|question| question.key == sample.key).ok_or_else(|| {
            Error::Torn(format!("{}/{} is in samples.jsonl and not so in questions.jsonl", sample.task, sample.id))
        })?;
        let now = read(sample, &question.choices, rule)?;
        let answers = |sample: &Sample| sample.votes.iter().map(|vote| vote.answer).collect::<Vec<_>>();
        found.n_answers_changed += answers(sample).iter().zip(answers(&now)).filter(|(a, b)| **a != *b).count();
        found.n_predictions_changed += usize::from(sample.predicted != now.predicted);
        found.samples.push(now);
    }
    for task in &mut found.results.tasks {
        let of_task: Vec<Sample> = found.samples.iter().filter(|sample| sample.task == task.task).cloned().collect();
        recount(task, &of_task);
    }
    let expect: Vec<(String, f64, f64)> =
        results.expected.iter().map(|one| (one.name.clone(), one.low, one.high)).collect();
    found.results.regroup(&expect);
    Ok(found)
}

fn recount(task: &mut TaskResult, samples: &[Sample]) {
    task.counts = Counts::of(samples);
    task.warning = one_option(&task.counts);
    // Its second answers were read by the earlier rule and are not kept.
    task.noise_floor = None;
    task.calibration = Calibration::of(samples);
    task.by_subject = parts::by_subject(samples);
    task.by_specialty = parts::by_specialty(samples);
    task.by_length = parts::by_length(samples);
    task.by_pool = parts::by_pool(samples);
    if !task.by_training.is_empty() {
        let is_whole = !task.by_training.iter().any(|part| part.part.starts_with("unknown"));
        task.by_training = parts::by_training(samples, is_whole);
    }
}

/// Each question that was asked has one sample, and each task as many as were counted.
fn check_whole(results: &EvalResults, samples: &[Sample], asked: &[AskedQuestion]) -> Result<()> {
    for task in &results.tasks {
        let n_samples = samples.iter().filter(|sample| sample.task == task.task).count();
        let n_asked = asked.iter().filter(|question| question.task == task.task).count();
        if n_samples != task.counts.n || n_asked != task.counts.n {
            return Err(Error::Torn(format!(
                "{}: {} questions are counted in results.json, {n_samples} answers are in samples.jsonl and {n_asked} questions in \
                 questions.jsonl; files were cut or edited, or are of two runs",
                task.task, task.counts.n
            )));
        }
    }
    let mut seen = HashSet::new();
    match samples.iter().find(|sample| !seen.insert((&sample.task, &sample.id))) {
        Some(twice) => Err(Error::Torn(format!("{}/{} is twice in samples.jsonl", twice.task, twice.id))),
        None => Ok(()),
    }
}

fn read(sample: &Sample, choices: &[String], rule: AnswerRule) -> Result<Sample> {
    let mut now = sample.clone();
    if !now.choices.is_empty() {
        now.predicted = best_told(&now.choices);
        now.correct = now.predicted == Some(now.key);
        return Ok(now);
    }
    if now.votes.is_empty() {
        return Ok(now);
    }
    for vote in &mut now.votes {
        *vote = read_vote(vote, choices, rule).ok_or_else(|| Error::Answer {
            id: format!("{}/{}", sample.task, sample.id),
            reason: "the stored option order is no permutation of its options".into(),
        })?;
    }
    let outcome = elected(&now.votes);
    (now.predicted, now.correct, now.tie) = (outcome.answer, outcome.answer == Some(now.key), outcome.tie);
    Ok(now)
}

fn read_vote(vote: &Vote, choices: &[String], rule: AnswerRule) -> Option<Vote> {
    let order = ChoiceOrder::from_indices(vote.order.clone()).filter(|order| order.len() == choices.len())?;
    let is_cut = vote.finish_reason != FinishReason::Stop;
    let extracted = extract(Reading { text: &vote.text, choices, order: &order, is_cut }, rule);
    let answer = match extracted.answer {
        Answer::Choice(option) => Some(option),
        Answer::Unparsed => None,
    };
    // A block that was removed and is not in the text was kept back by the server: no rule reads it.
    let is_apart = vote.reasoning_removed && !without_reasoning(&vote.text).1;
    Some(Vote { answer, reasoning_removed: extracted.reasoning_removed || is_apart, ..vote.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Two tasks of two questions, of which the first is right; then what is left when a file was cut.
    #[test]
    fn a_run_of_which_a_part_is_gone_is_not_scored_again() {
        let names = [("a", "1"), ("a", "2"), ("b", "1"), ("b", "2")];
        let sample = |(task, id): (&str, &str)| -> Sample {
            let choices = [-1.0, -2.0].map(|logp| json!({ "ids": [1], "logps": [logp], "logp": logp }));
            serde_json::from_value(
                json!({ "task": task, "id": id, "index": 0, "subject": "", "n_choices": 2, "key": 0, "predicted": 0,
                "correct": true, "prompt_sha256": "", "choices": choices }),
            )
            .unwrap()
        };
        let question = |(task, id): (&str, &str)| -> AskedQuestion {
            serde_json::from_value(
                json!({ "task": task, "id": id, "stem": "s", "choices": ["x", "y"], "key": 0, "subject": "" }),
            )
            .unwrap()
        };
        let (samples, asked) = (names.map(sample).to_vec(), names.map(question).to_vec());
        let task = |name: &str| {
            json!({ "task": name, "split": "test", "comparability": "", "n": 2, "acc": { "value": 0.0, "stderr": 0.0 }, "n_unparsed": 0,
                "chance": 0.5, "majority_key": 1.0, "chosen_positions": [], "key_positions": [] })
        };
        let results: EvalResults = serde_json::from_value(json!({
            "model": { "name": "m", "weights": "", "text": "", "dtype": "f32", "path": "" }, "settings": {}, "groups": [],
            "tasks": [task("a"), task("b")],
        }))
        .unwrap();
        let again = |samples: &[Sample], asked: &[AskedQuestion]| {
            rescore(&results, samples, asked, AnswerRule::Aloe)
                .map(|found| found.results.tasks[1].counts.acc.value)
                .map_err(|e| e.to_string())
        };
        assert_eq!(again(&samples, &asked), Ok(1.0));
        let error = again(&samples[..3], &asked).unwrap_err();
        let words = "b: 2 questions are counted in results.json, 1 answers are in samples.jsonl and 2 questions in questions.jsonl";
        assert!(error.starts_with(&format!("cannot score again: {words}")), "{error}");
        assert!(
            again(&samples[..3], &asked[..3]).unwrap_err().contains("b: 2 questions are counted"),
            "both cut alike"
        );
        assert!(again(&samples[2..], &asked).unwrap_err().contains("a: 2 questions are counted"));
        let twice = [&samples[..1], &samples[..1], &samples[2..]].concat();
        assert!(again(&twice, &asked).unwrap_err().contains("a/1 is twice in samples.jsonl"));
    }

    #[test]
    fn a_cut_line_is_named_by_file_and_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("samples.jsonl");
        std::fs::write(&path, "{\"a\": 1}\n{\"a\": ").unwrap();
        let error = crate::score::read_lines::<serde_json::Value>(&path).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("{}:2: EOF", path.display())) && error.ends_with("cut or edited"),
            "{error}"
        );
    }
}
