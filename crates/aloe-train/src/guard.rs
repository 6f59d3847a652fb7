//! Watches loss and gradient norm before each update: non-finite values and spikes of more than six standard deviations stop the
//! run, or skip the step if so configured; a spike may also be counted and kept.
//!
//! Its memory is part of the checkpoint, so that a resumed run judges as the uninterrupted one would.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// What to do with a step whose loss or gradient is not finite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnNonFinite {
    /// Save the state before the step and stop.
    #[default]
    Stop,
    /// Leave weights and optimizer as they are and go on: the step counts for the learning-rate schedule, and not as one of AdamW's for its
    /// bias correction. Three in a row stop.
    Skip,
}

/// What to do with a step whose loss or gradient norm is far above the recent ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnSpike {
    /// Save the state before the step and stop.
    #[default]
    Stop,
    /// Leave weights and optimizer as they are, as [`OnNonFinite::Skip`] does, and count it.
    Skip,
    /// Count it and update all the same.
    Keep,
}

/// The judgement of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Verdict {
    /// Update.
    Apply,
    /// Do not update, go on.
    Skip,
    /// End the run: a value is not finite.
    Stop,
    /// End the run: a value is finite and far above the recent ones.
    StopAtSpike(Spike),
}

/// A value far above the recent ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spike {
    /// `loss` or `gradient norm`.
    pub what: &'static str,
    /// The value.
    pub value: f64,
    /// The most that the recent steps let pass.
    pub limit: f64,
}

/// The first spike among (loss, gradient norm) of steps in order, by the rule that stops our own trainer; non-finite steps are left out.
/// For logs of other trainers.
pub fn first_spike(steps: impl Iterator<Item = (f64, f64)>) -> Option<(usize, Spike)> {
    let mut guard = Guard::default();
    for (at, (loss, grad_norm)) in steps.enumerate() {
        if let Verdict::StopAtSpike(spike) = guard.judge(loss, grad_norm, OnNonFinite::Skip, OnSpike::Stop) {
            return Some((at, spike));
        }
    }
    None
}

/// Steps that are compared with; none is judged a spike before half of them have been seen.
const WINDOW: usize = 128;
const SIGMAS: f64 = 6.0;
/// The least standard deviation that a loss is given, in nats, and a norm in logarithms: a training that has learnt its rows by heart
/// has losses near 0 with a long tail, and one of 0.05 among them is no fault.
const LEAST_SIGMA: f64 = 0.02;
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
            // A step that stops the run is not made, and so not counted: whoever goes on meets it again.
            if on_non_finite == OnNonFinite::Stop || self.non_finite_in_a_row + 1 >= NON_FINITE_IN_A_ROW {
                return Verdict::Stop;
            }
            self.n_non_finite += 1;
            self.non_finite_in_a_row += 1;
            return Verdict::Skip;
        }
        self.non_finite_in_a_row = 0;
        // Norms spread over orders of magnitude, so their logarithm is compared. A norm of 0 has none and is no spike.
        let log_grad_norm = grad_norm.max(f64::MIN_POSITIVE).ln();
        let spike = self.spike(loss, grad_norm, log_grad_norm);
        if let (Some(spike), OnSpike::Stop) = (spike, on_spike) {
            return Verdict::StopAtSpike(spike);
        }
        // A skipped step counts among the recent ones, as in OLMo-core's SkipStepOptimizer: otherwise a run whose loss has
        // risen for good would skip every step until its end.
        self.losses.push(loss);
        self.log_grad_norms.push(log_grad_norm);
        self.n_spikes += u64::from(spike.is_some());
        if spike.is_some() && on_spike == OnSpike::Skip { Verdict::Skip } else { Verdict::Apply }
    }

    fn spike(&self, loss: f64, grad_norm: f64, log_grad_norm: f64) -> Option<Spike> {
        let of_loss = self.losses.limit().filter(|&limit| loss > limit);
        let of_norm = self.log_grad_norms.limit().filter(|&limit| log_grad_norm > limit);
        match (of_loss, of_norm) {
            (Some(limit), _) => Some(Spike { what: "loss", value: loss, limit }),
            (None, Some(limit)) => Some(Spike { what: "gradient norm", value: grad_norm, limit: limit.exp() }),
            (None, None) => None,
        }
    }

    /// Forgets what recent losses and gradient norms were, where those to come are measured from another point. The counts stay.
    pub(crate) fn forget(&mut self) {
        (self.losses, self.log_grad_norms) = Default::default();
    }

    /// Whether a step was treated otherwise than another setting of `on_nonfinite` or `on_spike` would have.
    pub(crate) fn has_judged(&self) -> bool {
        self.n_non_finite > 0 || self.n_spikes > 0
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

    /// Six standard deviations above the mean, once enough values have been seen. A curve that hardly moves is given one percent of
    /// its mean as deviation, and [`LEAST_SIGMA`].
    fn limit(&self) -> Option<f64> {
        if self.0.len() < WINDOW / 2 {
            return None;
        }
        let n = self.0.len() as f64;
        let values = || self.0.iter().map(|&bits| f64::from_bits(bits));
        let mean = values().sum::<f64>() / n;
        let variance = values().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0);
        Some(mean + SIGMAS * variance.sqrt().max(0.01 * mean.abs()).max(LEAST_SIGMA))
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
        // By default it stops, with the value and what it was held against; nothing is counted, as the step was not made.
        let before = guard.clone();
        let verdict = guard.judge(1.5, 1e5, OnNonFinite::Stop, OnSpike::Stop);
        let Verdict::StopAtSpike(spike) = verdict else { panic!("{verdict:?}") };
        assert!(spike.what == "gradient norm" && spike.value == 1e5 && spike.limit < 1e4, "{spike:?}");
        assert_eq!(guard, before);
        // A log of another trainer is judged alike.
        let steady = |at: usize| (1.5 + 0.1 * (at % 3) as f64, 1.0);
        let log = |n: usize| (0..n).map(steady).chain([(9.0, 1.0)]);
        assert_eq!(first_spike(log(100)).map(|(at, spike)| (at, spike.what)), Some((100, "loss")));
        assert_eq!(first_spike(log(60)), None, "too few steps to judge by");
    }

    /// 6 sigma over the last 128 after 64 steps: 1 and 3 in turn have mean 2 and, with n - 1, a variance of n / (n - 1).
    #[test]
    fn the_limit_is_six_sigma_over_the_last_128_values_after_64_as_worked_by_hand() {
        let mut window = Window::default();
        for at in 0..63 {
            window.push(f64::from(1 + 2 * (at % 2)));
            assert_eq!(window.limit(), None);
        }
        window.push(3.0);
        assert!((window.limit().unwrap() - (2.0 + 6.0 * (64.0f64 / 63.0).sqrt())).abs() < 1e-12);
        // 128 further values push the first 64 out.
        for at in 0..128 {
            window.push(f64::from(11 + 2 * (at % 2)));
        }
        assert!((window.limit().unwrap() - (12.0 + 6.0 * (128.0f64 / 127.0).sqrt())).abs() < 1e-12);
    }

    #[test]
    fn a_loss_that_has_risen_for_good_is_skipped_for_a_few_steps_and_not_for_ever() {
        let mut guard = Guard::default();
        let mut rng = CounterRng::new(6, "test", 0);
        let mut judge = |level: f64| {
            let loss = level + 0.15 * f64::from(rng.normal());
            guard.judge(loss, 1.0, OnNonFinite::Stop, OnSpike::Skip)
        };
        assert!((0..200).all(|_| judge(1.5) == Verdict::Apply));
        assert_eq!(judge(4.0), Verdict::Skip);
        let n_skipped = (0..100).filter(|_| judge(4.0) == Verdict::Skip).count();
        assert!(n_skipped < 8, "{n_skipped} of 100");
    }

    #[test]
    fn non_finite_steps_stop_at_once_or_after_three_in_a_row() {
        let mut guard = Guard::default();
        assert_eq!(guard.judge(f64::NAN, 1.0, OnNonFinite::Stop, OnSpike::Keep), Verdict::Stop);
        assert!(!guard.has_judged(), "the step was not made, and the policy may change");
        let mut judge = |loss: f64, grad_norm: f64| guard.judge(loss, grad_norm, OnNonFinite::Skip, OnSpike::Keep);
        assert_eq!(judge(f64::NAN, 1.0), Verdict::Skip);
        assert_eq!(judge(1.0, f64::INFINITY), Verdict::Skip);
        assert_eq!(judge(1.0, 1.0), Verdict::Apply);
        assert_eq!(judge(1.0, f64::NAN), Verdict::Skip);
        assert_eq!(judge(f64::INFINITY, 1.0), Verdict::Skip);
        assert_eq!(judge(f64::NAN, 1.0), Verdict::Stop);
        assert_eq!(judge(f64::NAN, 1.0), Verdict::Stop, "the same step again");
        assert_eq!(guard.n_non_finite, 4);
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
