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
use std::collections::HashMap;

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

/// Reads every stored answer again by `rule` and counts anew. Log-probabilities are compared anew; they are what they were.
pub fn rescore(
    results: &EvalResults,
    samples: &[Sample],
    asked: &[AskedQuestion],
    rule: AnswerRule,
) -> Result<Rescored> {
    let questions: HashMap<(&str, &str), &AskedQuestion> =
        asked.iter().map(|question| ((question.task.as_str(), question.id.as_str()), question)).collect();
    let mut found =
        Rescored { results: results.clone(), samples: Vec::new(), n_answers_changed: 0, n_predictions_changed: 0 };
    for sample in samples {
        let question = questions.get(&(sample.task.as_str(), sample.id.as_str()));
        let question = question.filter(|question| question.key == sample.key).ok_or_else(|| {
            Error::Unpaired(format!("{}/{} is in samples.jsonl and not so in questions.jsonl", sample.task, sample.id))
        })?;
        let now = read(sample, &question.choices, rule)?;
        let answers = |sample: &Sample| sample.votes.iter().map(|vote| vote.answer).collect::<Vec<_>>();
        found.n_answers_changed += answers(sample).iter().zip(answers(&now)).filter(|(a, b)| **a != *b).count();
        found.n_predictions_changed += usize::from(sample.predicted != now.predicted);
        found.samples.push(now);
    }
    for task in &mut found.results.tasks {
        let of_task: Vec<Sample> = found.samples.iter().filter(|sample| sample.task == task.task).cloned().collect();
        if of_task.is_empty() {
            return Err(Error::Unpaired(format!("{} is in results.json and has no samples", task.task)));
        }
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
