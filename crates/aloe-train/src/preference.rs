//! Preference losses on the summed log-probabilities of a pair's two answers, and their gradients.
//!
//! Rafailov et al. 2023 (arXiv 2305.18290): h = (log pi(chosen) - log ref(chosen)) - (log pi(rejected) - log ref(rejected)),
//! each a sum over the answer's tokens, its end-of-turn token included. Must agree with `DPOTrainer` of TRL 1.16 and, for
//! `sigmoid` with label smoothing, with OpenRLHF. Everything is f64: h is a small difference of large sums. The term that
//! `nll_weight` adds (TRL's loss type `sft`) is a mean over all chosen tokens of a step; it stands in `dpo_data`.

use serde::{Deserialize, Serialize};

/// Which loss of h is minimised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PreferenceLoss {
    /// -(1 - e) log s(beta h) - e log s(-beta h), with e the label smoothing (conservative DPO when e > 0).
    #[default]
    Sigmoid,
    /// (-(1 - e) log s(beta h) + e log s(-beta h)) / (1 - 2 e): unbiased when a share e of the labels is flipped.
    Robust,
    /// max(0, 1 - beta h).
    Hinge,
    /// (h' - 1 / (2 beta))^2, where h' takes each answer's mean over its tokens instead of the sum, as TRL does.
    Ipo,
    /// -log s(beta h'), with the means of `ipo`.
    SigmoidNorm,
    /// 1 - s(beta r_chosen) + s(beta r_rejected), with r each answer's own log-ratio: equation 7 of D'Oosterlinck et al. 2024
    /// (arXiv 2408.06266), meant for chosen answers that are better than the model's own.
    ApoZero,
}

/// Summed log-probabilities of the two answers under one model.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct PairLogps {
    /// Of the preferred answer.
    pub(crate) chosen: f64,
    /// Of the other answer.
    pub(crate) rejected: f64,
}

/// The settings of a preference loss.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Preference {
    /// The loss.
    pub(crate) loss: PreferenceLoss,
    /// Strength of the tie to the reference.
    pub(crate) beta: f64,
    /// Assumed share of flipped labels, in [0, 0.5).
    pub(crate) label_smoothing: f64,
}

/// What one pair contributes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct PairOutcome {
    /// The loss.
    pub(crate) loss: f64,
    /// beta * (log pi - log ref) of the chosen answer.
    pub(crate) reward_chosen: f64,
    /// beta * (log pi - log ref) of the rejected answer.
    pub(crate) reward_rejected: f64,
    /// Derivative of the loss by each token's log-probability of the chosen answer.
    pub(crate) grad_chosen: f64,
    /// Derivative of the loss by each token's log-probability of the rejected answer.
    pub(crate) grad_rejected: f64,
}

impl Preference {
    /// Loss, rewards and gradients of one pair; `n_chosen` and `n_rejected` are the answers' lengths in tokens.
    pub(crate) fn outcome(
        &self,
        policy: PairLogps,
        reference: PairLogps,
        n_chosen: usize,
        n_rejected: usize,
    ) -> PairOutcome {
        let ratio_chosen = policy.chosen - reference.chosen;
        let ratio_rejected = policy.rejected - reference.rejected;
        let (scale_chosen, scale_rejected) = match self.loss {
            PreferenceLoss::Ipo | PreferenceLoss::SigmoidNorm => (1.0 / n_chosen as f64, 1.0 / n_rejected as f64),
            _ => (1.0, 1.0),
        };
        let (loss, slope_chosen, slope_rejected) =
            self.of_ratios(ratio_chosen * scale_chosen, ratio_rejected * scale_rejected);
        PairOutcome {
            loss,
            reward_chosen: self.beta * ratio_chosen,
            reward_rejected: self.beta * ratio_rejected,
            grad_chosen: slope_chosen * scale_chosen,
            grad_rejected: slope_rejected * scale_rejected,
        }
    }

    /// Loss and its derivatives by the two answers' log-ratios.
    fn of_ratios(&self, chosen: f64, rejected: f64) -> (f64, f64, f64) {
        let (beta, smoothing) = (self.beta, self.label_smoothing);
        let h = chosen - rejected;
        let x = beta * h;
        let (loss, slope) = match self.loss {
            PreferenceLoss::Sigmoid => (
                -(1.0 - smoothing) * log_sigmoid(x) - smoothing * log_sigmoid(-x),
                beta * (smoothing * sigmoid(x) - (1.0 - smoothing) * sigmoid(-x)),
            ),
            PreferenceLoss::Robust => {
                let norm = 1.0 - 2.0 * smoothing;
                (
                    (-(1.0 - smoothing) * log_sigmoid(x) + smoothing * log_sigmoid(-x)) / norm,
                    beta * (-(1.0 - smoothing) * sigmoid(-x) - smoothing * sigmoid(x)) / norm,
                )
            }
            PreferenceLoss::Hinge if x < 1.0 => (1.0 - x, -beta),
            PreferenceLoss::Hinge => (0.0, 0.0),
            PreferenceLoss::Ipo => {
                let gap = h - 0.5 / beta;
                (gap * gap, 2.0 * gap)
            }
            PreferenceLoss::SigmoidNorm => (-log_sigmoid(x), -beta * sigmoid(-x)),
            PreferenceLoss::ApoZero => {
                let (good, bad) = (beta * chosen, beta * rejected);
                let bend = |x: f64| beta * sigmoid(x) * sigmoid(-x);
                return (sigmoid(-good) + sigmoid(bad), -bend(good), bend(bad));
            }
        };
        (loss, slope, -slope)
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// log s(x) without overflow on either side.
fn log_sigmoid(x: f64) -> f64 {
    x.min(0.0) - (-x.abs()).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [PreferenceLoss; 6] = [
        PreferenceLoss::Sigmoid,
        PreferenceLoss::Robust,
        PreferenceLoss::Hinge,
        PreferenceLoss::Ipo,
        PreferenceLoss::SigmoidNorm,
        PreferenceLoss::ApoZero,
    ];

    fn preference(loss: PreferenceLoss, label_smoothing: f64) -> Preference {
        Preference { loss, beta: 0.1, label_smoothing }
    }

    const POLICY: PairLogps = PairLogps { chosen: -10.0, rejected: -14.0 };
    const REFERENCE: PairLogps = PairLogps { chosen: -12.0, rejected: -11.0 };

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-12, "{found} is not {expected}");
    }

    #[test]
    fn the_sigmoid_loss_of_one_pair_is_as_worked_by_hand() {
        // Ratios 2 and -3, h = 5, beta h = 0.5: loss ln(1 + e^-0.5) = 0.47407698418010663,
        // slope -0.1 * s(-0.5) = -0.1 * 0.3775406687981454, rewards 0.2 and -0.3.
        let found = preference(PreferenceLoss::Sigmoid, 0.0).outcome(POLICY, REFERENCE, 7, 9);
        close(found.loss, 0.474_076_984_180_106_6);
        close(found.reward_chosen, 0.2);
        close(found.reward_rejected, -0.3);
        close(found.grad_chosen, -0.037_754_066_879_814_54);
        close(found.grad_rejected, 0.037_754_066_879_814_54);
    }

    #[test]
    fn label_smoothing_hinge_and_ipo_are_as_worked_by_hand() {
        // Smoothing 0.1: 0.9 * 0.474076984 + 0.1 * (0.474076984 + 0.5) = 0.524076984.
        close(preference(PreferenceLoss::Sigmoid, 0.1).outcome(POLICY, REFERENCE, 7, 9).loss, 0.524_076_984_180_106_6);
        // Hinge: 1 - 0.5.
        close(preference(PreferenceLoss::Hinge, 0.0).outcome(POLICY, REFERENCE, 7, 9).loss, 0.5);
        // IPO over 4 and 6 tokens: 2 / 4 + 3 / 6 = 1, (1 - 5)^2 = 16; slopes 2 * -4 / 4 and -(2 * -4) / 6.
        let ipo = preference(PreferenceLoss::Ipo, 0.0).outcome(POLICY, REFERENCE, 4, 6);
        close(ipo.loss, 16.0);
        close(ipo.grad_chosen, -2.0);
        close(ipo.grad_rejected, 8.0 / 6.0);
    }

    #[test]
    fn the_apo_zero_loss_of_one_pair_is_as_worked_by_hand() {
        // Log-ratios 2 and -3: 1 - s(0.2) + s(-0.3) with s(0.2) = 1 / (1 + e^-0.2) = 0.549833997312478 and
        // s(-0.3) = 0.425557483188341; slopes -0.1 * s(0.2) * s(-0.2) and 0.1 * s(-0.3) * s(0.3).
        let found = preference(PreferenceLoss::ApoZero, 0.0).outcome(POLICY, REFERENCE, 7, 9);
        close(found.loss, 0.875_723_485_875_863);
        close(found.grad_chosen, -0.1 * 0.549_833_997_312_478 * 0.450_166_002_687_522);
        close(found.grad_rejected, 0.1 * 0.425_557_483_188_341 * 0.574_442_516_811_659);
        close(found.reward_chosen - found.reward_rejected, 0.5);
    }

    #[test]
    fn at_the_reference_the_loss_is_log_two_and_far_away_it_stays_finite() {
        let loss = preference(PreferenceLoss::Sigmoid, 0.0);
        close(loss.outcome(POLICY, POLICY, 1, 1).loss, std::f64::consts::LN_2);
        let far = PairLogps { chosen: -1e6, rejected: 0.0 };
        close(loss.outcome(far, PairLogps::default(), 1, 1).loss, 1e5);
        assert_eq!(loss.outcome(PairLogps { chosen: 1e6, ..far }, PairLogps::default(), 1, 1).loss, 0.0);
    }

    #[test]
    fn gradients_agree_with_finite_differences_for_every_loss() {
        for loss in ALL {
            let preference = preference(loss, 0.2);
            let at = |chosen: f64, rejected: f64| {
                let policy = PairLogps { chosen: POLICY.chosen + chosen, rejected: POLICY.rejected + rejected };
                preference.outcome(policy, REFERENCE, 4, 6)
            };
            let step = 1e-5;
            let chosen = (at(step, 0.0).loss - at(-step, 0.0).loss) / (2.0 * step);
            let rejected = (at(0.0, step).loss - at(0.0, -step).loss) / (2.0 * step);
            let found = at(0.0, 0.0);
            assert!((found.grad_chosen - chosen).abs() < 1e-8, "{loss:?}: {} {chosen}", found.grad_chosen);
            assert!((found.grad_rejected - rejected).abs() < 1e-8, "{loss:?}: {} {rejected}", found.grad_rejected);
        }
    }
}
