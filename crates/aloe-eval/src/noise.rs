//! The noise floor of scores from an endpoint: up to 100 questions of a task are scored a second time, after all are answered.
//!
//! Servers batch requests, keep prefixes and pick kernels as they please, so the same tokens may get other log-probabilities
//! the next time. A difference between two models that is no larger than this is none. A local model has no such floor: its
//! log-probabilities repeat bit for bit.

use crate::Sample;
use aloe_engine::ScoreResult;
use serde::{Deserialize, Serialize};

/// The most questions of a task that are scored twice.
const N_TWICE: usize = 100;

/// How far two scorings of the same questions by the same endpoint lie apart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NoiseFloor {
    /// Questions scored twice.
    pub n_questions: usize,
    /// Tokens of their options.
    pub n_tokens: usize,
    /// The largest difference of a token's log-probability, in nat.
    pub max_nat: f64,
    /// The mean of the absolute differences, in nat.
    pub mean_nat: f64,
    /// Questions whose predicted option changed.
    pub n_predictions_changed: usize,
}

/// Which of `n` questions are scored twice: all up to 100, else 100 that lie evenly.
pub(crate) fn twice(n: usize) -> Vec<usize> {
    let n_twice = n.min(N_TWICE);
    (0..n_twice).map(|at| at * n / n_twice).collect()
}

impl NoiseFloor {
    /// Sets the second scoring of questions beside the first; `samples` and `again` are in the same order.
    pub(crate) fn of(samples: &[&Sample], again: &[ScoreResult]) -> Self {
        let (mut n_tokens, mut sum, mut max_nat, mut n_predictions_changed) = (0, 0.0, 0.0f64, 0);
        for (sample, result) in samples.iter().zip(again) {
            for (choice, scored) in sample.choices.iter().zip(&result.continuations) {
                for (first, second) in choice.logps.iter().zip(&scored.logps) {
                    let difference = (first - second).abs();
                    n_tokens += 1;
                    sum += difference;
                    max_nat = max_nat.max(difference);
                }
            }
            let predicted = crate::strategy::first_best(result.continuations.iter().map(aloe_engine::Scored::sum));
            n_predictions_changed += usize::from(sample.predicted != Some(predicted));
        }
        let mean_nat = sum / (n_tokens as f64).max(1.0);
        Self { n_questions: samples.len().min(again.len()), n_tokens, max_nat, mean_nat, n_predictions_changed }
    }

    /// For the table.
    pub fn words(&self) -> String {
        format!(
            "noise floor: {} questions scored twice differ by at most {:.3} nat a token (mean {:.4}), predictions changed {}",
            self.n_questions, self.max_nat, self.mean_nat, self.n_predictions_changed
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aloe_engine::Scored;

    fn sample(logps: [[f64; 2]; 2], predicted: usize) -> Sample {
        let choice = |logps: [f64; 2]| serde_json::json!({"ids": [1, 2], "logps": logps, "logp": logps[0] + logps[1]});
        serde_json::from_value(serde_json::json!({
            "task": "", "id": "", "index": 0, "subject": "", "n_choices": 2, "key": 0, "predicted": predicted,
            "correct": true, "prompt_sha256": "", "choices": logps.map(choice)
        }))
        .unwrap()
    }

    fn again(logps: [[f64; 2]; 2]) -> ScoreResult {
        let scored = |logps: [f64; 2]| Scored { ids: vec![1, 2], logps: logps.to_vec(), is_greedy: false };
        ScoreResult { id: String::new(), prompt_ids: vec![1], continuations: logps.map(scored).to_vec() }
    }

    /// By hand: differences 0.5, 0, 0, 0 and 0, 0, 0.25, 0.25: 1.0 over 8 tokens. Only the first question's best option, -2.0
    /// against -2.25, becomes the second, -2.5 against -2.25.
    #[test]
    fn the_floor_is_the_largest_and_the_mean_difference_and_the_predictions_that_changed() {
        let first = [sample([[-1.0, -1.0], [-1.25, -1.0]], 0), sample([[-1.0, -1.0], [-2.0, -2.0]], 0)];
        let second = [again([[-1.5, -1.0], [-1.25, -1.0]]), again([[-1.0, -1.0], [-2.25, -1.75]])];
        let floor = NoiseFloor::of(&first.iter().collect::<Vec<_>>(), &second);
        let expected =
            NoiseFloor { n_questions: 2, n_tokens: 8, max_nat: 0.5, mean_nat: 0.125, n_predictions_changed: 1 };
        assert_eq!(floor, expected);
        assert_eq!(
            floor.words(),
            "noise floor: 2 questions scored twice differ by at most 0.500 nat a token (mean 0.1250), predictions changed 1"
        );
    }

    #[test]
    fn all_questions_up_to_a_hundred_and_then_a_hundred_that_lie_evenly_are_scored_twice() {
        assert_eq!(twice(3), [0, 1, 2]);
        assert_eq!(twice(0), [0usize; 0]);
        let many = twice(250);
        assert_eq!((many.len(), &many[..4], many[99]), (100, &[0, 2, 5, 7][..], 247));
    }
}
