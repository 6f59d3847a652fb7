//! Watches loss and gradient norm before each update: non-finite values stop the run (or skip the step, if so configured),
//! spikes of more than six standard deviations are counted (or skipped, if so configured).
//!
//! Its memory is part of the checkpoint, so that a resumed run judges as the uninterrupted one would.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// What to do with a step whose loss or gradient is not finite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnNonFinite {
    /// Stop before anything is saved.
    #[default]
    Stop,
    /// Leave the weights as they are and go on; three in a row stop.
    Skip,
}

/// What to do with a step whose loss or gradient norm is far above the recent ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnSpike {
    /// Count it and update all the same.
    #[default]
    Keep,
    /// Leave the weights as they are, and count it.
    Skip,
}

/// The judgement of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Update.
    Apply,
    /// Do not update, go on.
    Skip,
    /// End the run with an error.
    Stop,
}

/// Steps that are compared with; none is judged a spike before half of them have been seen.
const WINDOW: usize = 64;
const SIGMAS: f64 = 6.0;
const NON_FINITE_IN_A_ROW: u64 = 3;

/// The recent past of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Guard {
    losses: Window,
    log_grad_norms: Window,
    non_finite_in_a_row: u64,
    /// Steps skipped because of a non-finite value.
    pub(crate) n_non_finite: u64,
    /// Steps that were spikes, skipped or not.
    pub(crate) n_spikes: u64,
}

impl Guard {
    /// Judges a step by its loss and gradient norm.
    pub(crate) fn judge(
        &mut self,
        loss: f64,
        grad_norm: f64,
        on_non_finite: OnNonFinite,
        on_spike: OnSpike,
    ) -> Verdict {
        if !loss.is_finite() || !grad_norm.is_finite() {
            self.n_non_finite += 1;
            self.non_finite_in_a_row += 1;
            let give_up = self.non_finite_in_a_row >= NON_FINITE_IN_A_ROW;
            return if on_non_finite == OnNonFinite::Stop || give_up { Verdict::Stop } else { Verdict::Skip };
        }
        self.non_finite_in_a_row = 0;
        // Norms spread over orders of magnitude, so their logarithm is compared. A norm of 0 has none and is no spike.
        let log_grad_norm = grad_norm.max(f64::MIN_POSITIVE).ln();
        let spike = self.losses.is_above(loss) || self.log_grad_norms.is_above(log_grad_norm);
        // A skipped step counts among the recent ones, as in OLMo-core's SkipStepOptimizer: otherwise a run whose loss has
        // risen for good would skip every step until its end.
        self.losses.push(loss);
        self.log_grad_norms.push(log_grad_norm);
        self.n_spikes += u64::from(spike);
        if spike && on_spike == OnSpike::Skip { Verdict::Skip } else { Verdict::Apply }
    }
}

/// The last values, kept as bits: JSON numbers need not survive reading exactly.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Window(VecDeque<u64>);

impl Window {
    fn push(&mut self, value: f64) {
        if self.0.len() == WINDOW {
            self.0.pop_front();
        }
        self.0.push_back(value.to_bits());
    }

    /// Whether `value` is more than six standard deviations above the mean. A curve that hardly moves is given one
    /// percent of its mean as deviation.
    fn is_above(&self, value: f64) -> bool {
        if self.0.len() < WINDOW / 2 {
            return false;
        }
        let n = self.0.len() as f64;
        let values = || self.0.iter().map(|&bits| f64::from_bits(bits));
        let mean = values().sum::<f64>() / n;
        let variance = values().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0);
        value > mean + SIGMAS * variance.sqrt().max(0.01 * mean.abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aloe_record::CounterRng;

    #[test]
    fn two_thousand_normal_steps_of_a_falling_loss_hold_no_spike_and_a_planted_one_is_skipped() {
        let mut guard = Guard::default();
        let mut rng = CounterRng::new(5, "test", 0);
        for step in 0..2000 {
            let trend = 1.5 + 2.0 * (-f64::from(step) / 300.0).exp();
            let loss = trend + 0.15 * f64::from(rng.normal());
            let grad_norm = (0.5 * f64::from(rng.normal())).exp();
            assert_eq!(guard.judge(loss, grad_norm, OnNonFinite::Stop, OnSpike::Skip), Verdict::Apply, "step {step}");
        }
        assert_eq!(guard.judge(1.5 + 0.15 * 8.0, 1.0, OnNonFinite::Stop, OnSpike::Skip), Verdict::Skip);
        assert_eq!(guard.judge(1.5, 1e4, OnNonFinite::Stop, OnSpike::Skip), Verdict::Skip);
        assert_eq!(guard.judge(1.5, 1e4, OnNonFinite::Stop, OnSpike::Keep), Verdict::Apply);
        assert_eq!(guard.n_spikes, 3);
    }

    #[test]
    fn a_loss_that_has_risen_for_good_is_skipped_for_a_few_steps_and_not_for_ever() {
        let mut guard = Guard::default();
        let mut rng = CounterRng::new(6, "test", 0);
        let mut judge = |level: f64| {
            let loss = level + 0.15 * f64::from(rng.normal());
            guard.judge(loss, 1.0, OnNonFinite::Stop, OnSpike::Skip)
        };
        assert!((0..100).all(|_| judge(1.5) == Verdict::Apply));
        assert_eq!(judge(4.0), Verdict::Skip);
        let n_skipped = (0..100).filter(|_| judge(4.0) == Verdict::Skip).count();
        assert!(n_skipped < 5, "{n_skipped} of 100");
    }

    #[test]
    fn non_finite_steps_stop_at_once_or_after_three_in_a_row() {
        let mut guard = Guard::default();
        assert_eq!(guard.judge(f64::NAN, 1.0, OnNonFinite::Stop, OnSpike::Keep), Verdict::Stop);
        let mut guard = Guard::default();
        let mut judge = |loss: f64, grad_norm: f64| guard.judge(loss, grad_norm, OnNonFinite::Skip, OnSpike::Keep);
        assert_eq!(judge(f64::NAN, 1.0), Verdict::Skip);
        assert_eq!(judge(1.0, f64::INFINITY), Verdict::Skip);
        assert_eq!(judge(1.0, 1.0), Verdict::Apply);
        assert_eq!(judge(1.0, f64::NAN), Verdict::Skip);
        assert_eq!(judge(f64::INFINITY, 1.0), Verdict::Skip);
        assert_eq!(judge(f64::NAN, 1.0), Verdict::Stop);
    }

    #[test]
    fn a_guard_written_and_read_back_is_the_same() {
        let mut guard = Guard::default();
        let mut rng = CounterRng::new(9, "test", 0);
        for _ in 0..100 {
            guard.judge(rng.uniform_f64(), rng.uniform_f64(), OnNonFinite::Stop, OnSpike::Keep);
        }
        let text = serde_json::to_string(&guard).unwrap();
        assert_eq!(serde_json::from_str::<Guard>(&text).unwrap(), guard);
    }
}
