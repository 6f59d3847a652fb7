//! Whether a model is as sure as it is right: expected calibration error, Brier score and the bins of a reliability diagram.
//!
//! A log-likelihood run's probabilities are the softmax of the options' summed log-probabilities, a voted run's the shares of
//! all samples that named each option: samples without a readable answer name none. One worked answer says nothing of its sureness, nor do
//! next letters of which some are not told.

use crate::Sample;
use serde::{Deserialize, Serialize};

/// Bins of equal width: bin i holds confidences above i/10 up to (i+1)/10; confidence 0 is in the first.
pub const N_BINS: usize = 10;

/// Sureness against accuracy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// What the probabilities are.
    pub of: String,
    /// Questions.
    pub n: usize,
    /// Expected calibration error (Guo et al. 2017, 1706.04599, equation 3): the mean over questions of |accuracy - confidence|
    /// of their bin. 0 is best.
    pub ece: f64,
    /// Brier score over all options (Brier 1950): the mean over questions of the sum over options of (p - y)^2. 0 to 2, 0 is best.
    pub brier: f64,
    /// One entry a bin that is not empty.
    pub bins: Vec<Bin>,
}

/// Questions of like confidence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bin {
    /// Which tenth, from 0.
    pub bin: usize,
    /// Questions.
    pub n: usize,
    /// Mean probability of the most probable option.
    pub confidence: f64,
    /// Share of them that are right.
    pub accuracy: f64,
}

impl Calibration {
    /// Of a task's samples; `None` where they hold no probabilities. Refused questions are left out, and those of which a letter is not told.
    pub fn of(samples: &[Sample]) -> Option<Self> {
        let answered: Vec<&Sample> = samples.iter().filter(|sample| sample.refused.is_none()).collect();
        let rows: Vec<(Vec<f64>, &Sample)> =
            answered.iter().filter_map(|sample| Some((probabilities(sample)?, *sample))).collect();
        let of = match rows.first()?.1.votes.is_empty() {
            true => "softmax of the options' log-probabilities",
            false => "share of the samples",
        };
        let rows: Vec<(Vec<f64>, usize, bool)> = rows.into_iter().map(|(p, s)| (p, s.key, s.correct)).collect();
        Some(Self::of_rows(of, &rows))
    }

    /// Of (probability of each option, the key, whether the prediction was right), at least one.
    pub fn of_rows(of: &str, rows: &[(Vec<f64>, usize, bool)]) -> Self {
        let mut sums = [(0usize, 0.0f64, 0usize); N_BINS]; // questions, summed confidence, right ones
        let mut brier = 0.0;
        for (probabilities, key, is_right) in rows {
            let confidence = probabilities.iter().copied().fold(0.0, f64::max);
            let bin = &mut sums[bin_of(confidence)];
            *bin = (bin.0 + 1, bin.1 + confidence, bin.2 + usize::from(*is_right));
            let error = |(option, p): (usize, &f64)| (p - f64::from(u8::from(option == *key))).powi(2);
            brier += probabilities.iter().enumerate().map(error).sum::<f64>();
        }
        let n = rows.len();
        let filled = sums.into_iter().enumerate().filter(|(_, (n_bin, ..))| *n_bin > 0);
        let bins: Vec<Bin> = filled
            .map(|(bin, (n_bin, confidence, n_right))| {
                let per = n_bin as f64;
                Bin { bin, n: n_bin, confidence: confidence / per, accuracy: n_right as f64 / per }
            })
            .collect();
        let ece = bins.iter().map(|b| b.n as f64 * (b.accuracy - b.confidence).abs()).sum::<f64>() / n as f64;
        Self { of: of.to_owned(), n, ece, brier: brier / n as f64, bins }
    }
}

fn bin_of(confidence: f64) -> usize {
    // By comparison and not by a product, which puts 0.3 (0.30000000000000004 * 10) on either side.
    (1..N_BINS).find(|&i| confidence <= i as f64 / N_BINS as f64).map_or(N_BINS - 1, |i| i - 1)
}

/// The probability of each option.
pub fn probabilities(sample: &Sample) -> Option<Vec<f64>> {
    if !sample.choices.is_empty() {
        let logps: Vec<f64> = sample.choices.iter().map(|choice| choice.logp).collect::<Option<_>>()?;
        let best = logps.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = logps.iter().map(|logp| (logp - best).exp()).collect();
        let sum: f64 = weights.iter().sum();
        return Some(weights.into_iter().map(|weight| weight / sum).collect());
    }
    if sample.votes.len() < 2 {
        return None;
    }
    let mut counts = vec![0usize; sample.n_choices];
    sample.votes.iter().filter_map(|vote| vote.answer).for_each(|option| counts[option] += 1);
    Some(counts.into_iter().map(|count| count as f64 / sample.votes.len() as f64).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// By hand. Confidences 0.8 (right), 0.6 (wrong), 0.75 (right): bins 0.7-0.8 hold two with mean 0.775, all right; bin 0.5-0.6
    /// one with 0.6, wrong. ECE = (2 * 0.225 + 1 * 0.6) / 3 = 0.35. Brier of (0.8, 0.2) with key 0 is 0.08, of (0.6, 0.4) with
    /// key 1 is 0.72, of (0.25, 0.75) with key 1 is 0.125: mean 0.925 / 3.
    #[test]
    fn error_and_score_are_those_of_the_definitions() {
        let rows = [(vec![0.8, 0.2], 0, true), (vec![0.6, 0.4], 1, false), (vec![0.25, 0.75], 1, true)];
        let found = Calibration::of_rows("", &rows);
        assert!((found.ece - 0.35).abs() < 1e-12, "{found:?}");
        assert!((found.brier - 0.925 / 3.0).abs() < 1e-12, "{found:?}");
        assert_eq!(found.bins.iter().map(|bin| (bin.bin, bin.n)).collect::<Vec<_>>(), [(5, 1), (7, 2)]);
    }

    #[test]
    fn a_confidence_on_an_edge_belongs_to_the_bin_below() {
        assert_eq!([0.0, 0.1, 0.1000001, 0.3, 0.7, 1.0].map(bin_of), [0, 0, 1, 2, 6, 9]);
    }

    fn sample(choices: &[f64], votes: &[Option<usize>]) -> Sample {
        let vote = |answer: &Option<usize>| json!({"order": [0, 1, 2], "shots": [], "text": "", "finish_reason": "stop", "answer": answer});
        serde_json::from_value(json!({
            "task": "", "id": "", "index": 0, "subject": "", "n_choices": 3, "key": 0, "predicted": 0, "correct": true,
            "prompt_sha256": "", "votes": votes.iter().map(vote).collect::<Vec<_>>(),
            "choices": choices.iter().map(|logp| json!({"ids": [], "logps": [], "logp": logp})).collect::<Vec<_>>(),
        }))
        .unwrap()
    }

    #[test]
    fn probabilities_are_a_softmax_or_the_shares_of_all_samples_and_unread_ones_name_none() {
        let half = 0.5f64.ln();
        let found = probabilities(&sample(&[half, half, half + 0.5f64.ln()], &[])).unwrap();
        for (found, expected) in found.iter().zip([0.4, 0.4, 0.2]) {
            assert!((found - expected).abs() < 1e-12);
        }
        let far = probabilities(&sample(&[-2000.0, -2001.0, -1e5], &[])).unwrap();
        assert!((far[0] - 1.0 / (1.0 + (-1.0f64).exp())).abs() < 1e-12, "{far:?}");
        assert_eq!(probabilities(&sample(&[], &[Some(0), None, Some(0), Some(2)])), Some(vec![0.5, 0.0, 0.25]));
        // 3 of 5 and 3 of 10 are on the edge of their bins, which a sum of tenths would miss.
        for n in [5, 10] {
            let votes: Vec<Option<usize>> = (0..n).map(|i| (i < 3).then_some(0)).collect();
            let confidence = probabilities(&sample(&[], &votes)).unwrap()[0];
            assert_eq!(bin_of(confidence), if n == 5 { 5 } else { 2 });
        }
        assert_eq!(probabilities(&sample(&[], &[Some(0)])), None, "one answer has no share");
        assert_eq!(Calibration::of(&[sample(&[], &[Some(0)])]), None);
    }
}
