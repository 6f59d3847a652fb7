//! The noise floor of an endpoint: what some 100 requests of a task answer when they are sent a second time, seeds and all, after
//! every question is answered.
//!
//! Servers batch requests, keep prefixes and pick kernels as they please, so the same tokens may get other log-probabilities and
//! the same seed another text the next time. A difference between two models that is no larger than this is none. A local model
//! has no such floor: its answers repeat bit for bit, and nothing is asked twice. Second answers never count toward the score.

use crate::answers::AnswerLog;
use crate::strategy::{Plan, TaskRun};
use crate::{Result, Sample};
use aloe_engine::Engine;
use serde::{Deserialize, Serialize};

/// The most requests of a task that are sent twice; one question's are never parted.
const N_TWICE: usize = 100;

/// How far two answers of the same endpoint to the same questions lie apart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NoiseFloor {
    /// Questions asked twice.
    pub n_questions: usize,
    /// Questions whose predicted option changed; an answer where there was none, and none where there was one, is a change.
    pub n_predictions_changed: usize,
    /// What the prediction was made from.
    #[serde(flatten)]
    pub below: Below,
}

/// What lies below the predictions and may change without them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Below {
    /// Log-probabilities of the options' tokens; of letters those that were told both times.
    Scores {
        /// Tokens of the options.
        n_tokens: usize,
        /// The largest difference of a token's log-probability, in nat.
        max_nat: f64,
        /// The mean of the absolute differences, in nat.
        mean_nat: f64,
    },
    /// Generated texts.
    Texts {
        /// Requests sent twice: what a second asking costs.
        n_requests: usize,
        /// Requests of which any text changed.
        n_requests_changed: usize,
        /// Texts of these requests, `n` a request.
        n_texts: usize,
        /// Texts that changed.
        n_texts_changed: usize,
    },
}

/// Asks an endpoint some questions of `samples` again, past any cache. `None` for a local model. What an earlier, interrupted run
/// asked again stands in the log and is not asked a third time.
pub(crate) fn floor(run: &TaskRun, plan: &Plan, samples: &[Sample], log: &mut AnswerLog) -> Result<Option<NoiseFloor>> {
    let engine = run.engine.without_cache();
    let Engine::Endpoint(_) = engine else { return Ok(None) };
    let taken: Vec<&Sample> = samples.iter().filter(|sample| sample.refused.is_none()).collect();
    let first: Vec<&Sample> = twice(taken.len(), plan.n_requests()).into_iter().map(|at| taken[at]).collect();
    let mut again = log.again_of(run.task, run.questions)?;
    let missing: Vec<usize> = first.iter().map(|sample| sample.index).filter(|&at| again[at].is_none()).collect();
    run.progress.grow(first.len() as u64);
    run.progress.resume((first.len() - missing.len()) as u64);
    run.progress.message(&format!("{}: {} questions a second time", run.task.name(), first.len()));
    engine.ask_for(&format!("{} again", run.task.name()));
    let answered = plan.answer(&TaskRun { engine, ..*run }, &missing, &mut |sample| {
        if sample.refused.is_none() {
            log.append_again(&run.questions[sample.index], &sample)?;
        }
        run.progress.advance(1);
        let place = sample.index;
        again[place] = Some(sample);
        Ok(())
    });
    log.sync(true)?;
    engine.ask_for("");
    answered.map_err(|error| error.at_question(run.places()))?;
    if !missing.is_empty() {
        engine.forget_answers()?;
    }
    let pairs: Vec<(&Sample, &Sample)> =
        first.into_iter().filter_map(|sample| Some((sample, again[sample.index].as_ref()?))).collect();
    let below = match plan {
        Plan::Loglikelihood(_) | Plan::NextLetter(..) => Below::scores(&pairs),
        Plan::Generate(_) => Below::texts(&pairs, plan.n_requests()),
    };
    Ok(Some(NoiseFloor::of(&pairs, below)))
}

/// Which of `n` questions of `n_requests` requests each are asked twice: all up to 100 requests, else as many that lie evenly.
fn twice(n: usize, n_requests: usize) -> Vec<usize> {
    let n_twice = n.min((N_TWICE / n_requests).max(1));
    (0..n_twice).map(|at| at * n / n_twice).collect()
}

impl NoiseFloor {
    fn of(pairs: &[(&Sample, &Sample)], below: Below) -> Self {
        let n_predictions_changed = pairs.iter().filter(|(first, again)| first.predicted != again.predicted).count();
        Self { n_questions: pairs.len(), n_predictions_changed, below }
    }

    /// For the table.
    pub fn words(&self) -> String {
        let Self { n_questions, n_predictions_changed, .. } = self;
        match self.below {
            Below::Scores { max_nat, mean_nat, .. } => format!(
                "noise floor: {n_questions} questions scored twice differ by at most {max_nat:.3} nat a token (mean {mean_nat:.4}), \
                 predictions changed {n_predictions_changed}"
            ),
            Below::Texts { n_requests, n_requests_changed, n_texts, n_texts_changed } => format!(
                "noise floor: {n_requests} requests sent twice ({n_texts} more answers): texts changed in {}{}, predictions in {}",
                share(n_requests_changed, n_requests, "requests"),
                if n_texts == n_requests {
                    String::new()
                } else {
                    format!(", {}", share(n_texts_changed, n_texts, "texts"))
                },
                share(*n_predictions_changed, *n_questions, "questions"),
            ),
        }
    }
}

fn share(n_changed: usize, n: usize, of: &str) -> String {
    format!("{n_changed} of {n} {of} ({:.1} %)", 100.0 * n_changed as f64 / (n as f64).max(1.0))
}

impl Below {
    fn scores(pairs: &[(&Sample, &Sample)]) -> Self {
        let (mut n_tokens, mut sum, mut max_nat) = (0usize, 0.0, 0.0f64);
        let choices = pairs.iter().flat_map(|(first, again)| first.choices.iter().zip(&again.choices));
        for (first, second) in choices.flat_map(|(first, again)| first.logps.iter().zip(&again.logps)) {
            let difference = (first - second).abs();
            n_tokens += 1;
            sum += difference;
            max_nat = max_nat.max(difference);
        }
        Self::Scores { n_tokens, max_nat, mean_nat: sum / n_tokens.max(1) as f64 }
    }

    /// A question whose second asking was refused has no texts then: all of its changed.
    fn texts(pairs: &[(&Sample, &Sample)], n_requests: usize) -> Self {
        let (mut n_requests_changed, mut n_texts, mut n_texts_changed) = (0, 0, 0);
        for (first, again) in pairs {
            let is_changed = |at: usize| again.votes.get(at).map(|vote| &vote.text) != Some(&first.votes[at].text);
            let changed: Vec<bool> = (0..first.votes.len()).map(is_changed).collect();
            let per_request = changed.len().div_ceil(n_requests).max(1);
            n_requests_changed += changed.chunks(per_request).filter(|texts| texts.contains(&true)).count();
            n_texts += changed.len();
            n_texts_changed += changed.iter().filter(|&&is_changed| is_changed).count();
        }
        Self::Texts { n_requests: pairs.len() * n_requests, n_requests_changed, n_texts, n_texts_changed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(predicted: Option<usize>, choices: serde_json::Value, texts: &[&str]) -> Sample {
        let vote = |text: &&str| serde_json::json!({"order": [], "shots": [], "text": text, "finish_reason": "stop", "answer": predicted});
        serde_json::from_value(serde_json::json!({
            "task": "", "id": "", "index": 0, "subject": "", "n_choices": 2, "key": 0, "predicted": predicted,
            "correct": true, "prompt_sha256": "", "choices": choices, "votes": texts.iter().map(vote).collect::<Vec<_>>()
        }))
        .unwrap()
    }

    fn scored(logps: [[f64; 2]; 2], predicted: usize) -> Sample {
        let choice = |logps: [f64; 2]| serde_json::json!({"ids": [1, 2], "logps": logps, "logp": logps[0] + logps[1]});
        sample(Some(predicted), serde_json::json!(logps.map(choice)), &[])
    }

    fn floor_of(pairs: &[(Sample, Sample)], below: impl Fn(&[(&Sample, &Sample)]) -> Below) -> NoiseFloor {
        let pairs: Vec<(&Sample, &Sample)> = pairs.iter().map(|(first, again)| (first, again)).collect();
        NoiseFloor::of(&pairs, below(&pairs))
    }

    /// By hand: differences 0.5, 0, 0, 0 and 0, 0, 0.25, 0.25: 1.0 over 8 tokens. Only the first question's best option, -2.0
    /// against -2.25, becomes the second, -2.5 against -2.25.
    #[test]
    fn the_floor_of_scores_is_the_largest_and_the_mean_difference_and_the_predictions_that_changed() {
        let pairs = [
            (scored([[-1.0, -1.0], [-1.25, -1.0]], 0), scored([[-1.5, -1.0], [-1.25, -1.0]], 1)),
            (scored([[-1.0, -1.0], [-2.0, -2.0]], 0), scored([[-1.0, -1.0], [-2.25, -1.75]], 0)),
        ];
        let floor = floor_of(&pairs, Below::scores);
        let below = Below::Scores { n_tokens: 8, max_nat: 0.5, mean_nat: 0.125 };
        assert_eq!(floor, NoiseFloor { n_questions: 2, n_predictions_changed: 1, below });
        assert_eq!(
            floor.words(),
            "noise floor: 2 questions scored twice differ by at most 0.500 nat a token (mean 0.1250), predictions changed 1"
        );
        read_back(&floor);
    }

    /// By hand, two texts a question: b for a changes one text of the first question, the second is refused the second time, the
    /// third repeats. Of requests of two texts 2 of 3 changed, of requests of one text 3 of 6.
    #[test]
    fn the_floor_of_texts_counts_requests_texts_and_predictions_that_changed() {
        let of = |predicted: Option<usize>, texts: &[&str]| sample(predicted, serde_json::json!([]), texts);
        let pairs = [
            (of(Some(0), &["a", "a"]), of(Some(0), &["a", "b"])),
            (of(Some(1), &["c", "d"]), of(None, &[])),
            (of(None, &["e", "f"]), of(None, &["e", "f"])),
        ];
        let shared = floor_of(&pairs, |pairs| Below::texts(pairs, 1));
        let below = Below::Texts { n_requests: 3, n_requests_changed: 2, n_texts: 6, n_texts_changed: 3 };
        assert_eq!(shared, NoiseFloor { n_questions: 3, n_predictions_changed: 1, below });
        assert_eq!(
            shared.words(),
            "noise floor: 3 requests sent twice (6 more answers): texts changed in 2 of 3 requests (66.7 %), 3 of 6 texts (50.0 %), \
             predictions in 1 of 3 questions (33.3 %)"
        );
        read_back(&shared);
        let own = floor_of(&pairs, |pairs| Below::texts(pairs, 2));
        let below = Below::Texts { n_requests: 6, n_requests_changed: 3, n_texts: 6, n_texts_changed: 3 };
        assert_eq!(own.below, below);
        assert_eq!(
            own.words(),
            "noise floor: 6 requests sent twice (6 more answers): texts changed in 3 of 6 requests (50.0 %), \
             predictions in 1 of 3 questions (33.3 %)"
        );
    }

    /// Records are read for the card.
    fn read_back(floor: &NoiseFloor) {
        let json = serde_json::to_string(floor).unwrap();
        assert_eq!(serde_json::from_str::<NoiseFloor>(&json).unwrap(), *floor, "{json}");
    }

    #[test]
    fn all_questions_up_to_a_hundred_requests_and_then_as_many_that_lie_evenly_are_asked_twice() {
        assert_eq!(twice(3, 1), [0, 1, 2]);
        assert_eq!(twice(0, 1), [0usize; 0]);
        let many = twice(250, 1);
        assert_eq!((many.len(), &many[..4], many[99]), (100, &[0, 2, 5, 7][..], 247));
        let shuffled = twice(250, 20);
        assert_eq!(shuffled, [0, 50, 100, 150, 200], "five questions of twenty requests");
        assert_eq!(twice(7, 300), [0]);
    }
}
