//! What a set of pairs came to, whole and by source: means under TRL's names for the training steps, and for the held-out pairs
//! the same with the standard error of the margin.
//!
//! A source is where a row's data came from (`dpo-demo`, `hh-harmless`): a mean over all of them can rise while one falls.

use crate::pairs::Example;
use crate::preference::{PairLogps, PairOutcome};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Sums over pairs, of all and of each source.
#[derive(Default)]
pub(crate) struct Tally<'a> {
    all: Sums,
    by_set: BTreeMap<&'a str, Sums>,
    nll_weight: f64,
}

#[derive(Default)]
struct Sums {
    n: usize,
    loss: f64,
    reward_chosen: f64,
    reward_rejected: f64,
    n_reward_right: usize,
    n_logp_right: usize,
    logps_chosen: f64,
    logps_rejected: f64,
    n_chosen_tokens: usize,
    margins: Vec<f64>,
}

impl<'a> Tally<'a> {
    pub(crate) fn new(nll_weight: f64) -> Self {
        Self { nll_weight, ..Self::default() }
    }

    pub(crate) fn add(&mut self, pair: &'a Example, policy: &PairLogps, outcome: &PairOutcome) {
        let n_chosen_tokens = pair.ids.chosen_ids.len();
        self.all.add(policy, outcome, n_chosen_tokens);
        self.by_set.entry(&pair.set).or_default().add(policy, outcome, n_chosen_tokens);
    }

    /// What is minimised: the mean preference loss, and `nll_weight` times the mean negative log-probability of a chosen token.
    pub(crate) fn loss(&self) -> f64 {
        self.all.total(self.nll_weight)
    }

    /// Means for a training step's line. With `by_set` each also for every source that has pairs in it, named `NAME/SOURCE`.
    pub(crate) fn step_fields(&self, by_set: bool) -> Map<String, Value> {
        let mut fields = Map::new();
        if self.nll_weight > 0.0 {
            fields.insert("preference_loss".into(), json!(self.all.mean(self.all.loss)));
        }
        self.all.step_fields("", &mut fields);
        for (set, sums) in self.by_set.iter().filter(|_| by_set) {
            fields.insert(format!("pairs/{set}"), json!(sums.n));
            sums.step_fields(&format!("/{set}"), &mut fields);
        }
        fields
    }

    /// The same for held-out pairs, under names that begin with `held_out_`.
    pub(crate) fn held_out_fields(&self, by_set: bool) -> Map<String, Value> {
        let mut fields = Map::new();
        self.all.held_out_fields("", self.nll_weight, &mut fields);
        for (set, sums) in self.by_set.iter().filter(|_| by_set) {
            sums.held_out_fields(&format!("/{set}"), self.nll_weight, &mut fields);
        }
        fields
    }
}

impl Sums {
    fn add(&mut self, policy: &PairLogps, outcome: &PairOutcome, n_chosen_tokens: usize) {
        self.n += 1;
        self.loss += outcome.loss;
        self.reward_chosen += outcome.reward_chosen;
        self.reward_rejected += outcome.reward_rejected;
        self.n_reward_right += usize::from(outcome.reward_chosen > outcome.reward_rejected);
        self.n_logp_right += usize::from(policy.chosen > policy.rejected);
        self.logps_chosen += policy.chosen;
        self.logps_rejected += policy.rejected;
        self.n_chosen_tokens += n_chosen_tokens;
        self.margins.push(outcome.reward_chosen - outcome.reward_rejected);
    }

    fn mean(&self, sum: f64) -> f64 {
        sum / self.n as f64
    }

    fn nll(&self) -> f64 {
        -self.logps_chosen / self.n_chosen_tokens as f64
    }

    fn total(&self, nll_weight: f64) -> f64 {
        let preference = self.mean(self.loss);
        if nll_weight > 0.0 { preference + nll_weight * self.nll() } else { preference }
    }

    fn step_fields(&self, suffix: &str, fields: &mut Map<String, Value>) {
        for (name, sum) in [
            ("rewards/chosen", self.reward_chosen),
            ("rewards/rejected", self.reward_rejected),
            ("rewards/margins", self.reward_chosen - self.reward_rejected),
            ("rewards/accuracies", self.n_reward_right as f64),
            ("logps/chosen", self.logps_chosen),
            ("logps/rejected", self.logps_rejected),
        ] {
            fields.insert(format!("{name}{suffix}"), json!(self.mean(sum)));
        }
        fields.insert(format!("nll_loss{suffix}"), json!(self.nll()));
    }

    fn held_out_fields(&self, suffix: &str, nll_weight: f64, fields: &mut Map<String, Value>) {
        let mut insert = |name: &str, value: Value| fields.insert(format!("held_out_{name}{suffix}"), value);
        insert("loss", json!(self.total(nll_weight)));
        insert("logp_accuracy", json!(self.mean(self.n_logp_right as f64)));
        insert("reward_accuracy", json!(self.mean(self.n_reward_right as f64)));
        insert("margin", json!(self.mean(self.reward_chosen - self.reward_rejected)));
        if let Some(se) = standard_error(&self.margins) {
            insert("margin_se", json!(se));
        }
        insert("reward_chosen", json!(self.mean(self.reward_chosen)));
        insert("reward_rejected", json!(self.mean(self.reward_rejected)));
        insert("logps_chosen", json!(self.mean(self.logps_chosen)));
        insert("logps_rejected", json!(self.mean(self.logps_rejected)));
        insert("nll_loss", json!(self.nll()));
        insert("pairs", json!(self.n));
    }
}

/// Standard error of the mean, with n - 1; none of fewer than two values.
fn standard_error(values: &[f64]) -> Option<f64> {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (values.len() > 1).then(|| (squares / (n - 1.0) / n).sqrt())
}

/// The 95 % interval of a mean of `n` values: mean plus and minus Student's quantile times the standard error. It takes the
/// pairs as drawn independently; pairs that share a prompt are not, and make it too narrow.
pub(crate) fn interval(mean: f64, standard_error: f64, n: usize) -> [f64; 2] {
    let half = student_975(n.saturating_sub(1)) * standard_error;
    [mean - half, mean + half]
}

/// The 97.5 % quantile of Student's t: tables for few degrees of freedom, then the expansion of Abramowitz and Stegun 26.7.5.
fn student_975(degrees: usize) -> f64 {
    const FIRST: [f64; 5] = [f64::INFINITY, 12.706_205, 4.302_653, 3.182_446, 2.776_445];
    const Z: f64 = 1.959_963_985;
    if let Some(&quantile) = FIRST.get(degrees) {
        return quantile;
    }
    let v = degrees as f64;
    let terms = [
        (Z.powi(3) + Z) / 4.0,
        (5.0 * Z.powi(5) + 16.0 * Z.powi(3) + 3.0 * Z) / 96.0,
        (3.0 * Z.powi(7) + 19.0 * Z.powi(5) + 17.0 * Z.powi(3) - 15.0 * Z) / 384.0,
        (79.0 * Z.powi(9) + 776.0 * Z.powi(7) + 1482.0 * Z.powi(5) - 1920.0 * Z.powi(3) - 945.0 * Z) / 92160.0,
    ];
    Z + terms[0] / v + terms[1] / v.powi(2) + terms[2] / v.powi(3) + terms[3] / v.powi(4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use aloe_text::EncodedPair;

    fn pair(set: &str, n_chosen: usize) -> Example {
        let ids = EncodedPair { prompt_ids: vec![1], chosen_ids: vec![2; n_chosen], rejected_ids: vec![3] };
        Example { source: "x:1".into(), set: set.into(), ids, n_turns_removed: 0 }
    }

    fn outcome(loss: f64, chosen: f64, rejected: f64) -> PairOutcome {
        PairOutcome { loss, reward_chosen: chosen, reward_rejected: rejected, grad_chosen: 0.0, grad_rejected: 0.0 }
    }

    #[test]
    fn means_of_all_and_by_source_are_as_worked_by_hand() {
        let (a, b) = (pair("a", 2), pair("b", 4));
        let mut tally = Tally::new(0.5);
        tally.add(&a, &PairLogps { chosen: -2.0, rejected: -3.0 }, &outcome(1.0, 0.5, 0.1));
        tally.add(&b, &PairLogps { chosen: -7.0, rejected: -3.0 }, &outcome(2.0, -0.5, 0.3));
        tally.add(&b, &PairLogps { chosen: -1.0, rejected: -5.0 }, &outcome(3.0, 0.3, 0.2));
        // Preference 2; chosen tokens 2 + 4 + 4 with -10 in all: 2 + 0.5 * 1.
        assert_eq!(tally.loss(), 2.5);
        let step = tally.step_fields(true);
        let number = |name: &str| step[name].as_f64().unwrap();
        assert_eq!(number("preference_loss"), 2.0);
        assert_eq!((number("nll_loss"), number("nll_loss/a"), number("nll_loss/b")), (1.0, 1.0, 1.0));
        assert!((number("rewards/margins") + 0.1).abs() < 1e-15);
        assert!((number("rewards/margins/b") + 0.35).abs() < 1e-15);
        assert_eq!((number("rewards/accuracies/a"), number("rewards/accuracies/b")), (1.0, 0.5));
        assert_eq!((number("pairs/a"), number("pairs/b"), number("logps/rejected/b")), (1.0, 2.0, -4.0));
        let held_out = tally.held_out_fields(true);
        // Margins 0.4, -0.8, 0.1: mean -0.1, squares 0.25 + 0.49 + 0.04 = 0.78, sqrt(0.78 / 2 / 3) = 0.360555.
        assert!((held_out["held_out_margin_se"].as_f64().unwrap() - 0.360_555_127_546_398_9).abs() < 1e-12);
        assert!(!held_out.contains_key("held_out_margin_se/a"), "one pair has no standard error");
        assert_eq!(held_out["held_out_loss/a"], 1.5);
        assert!(tally.step_fields(false).keys().all(|name| !name.ends_with("/a")));
    }

    #[test]
    fn the_interval_uses_students_quantiles_of_the_tables() {
        // Tables of Student's t at 0.975.
        for (degrees, quantile) in [(1, 12.7062), (4, 2.7764), (5, 2.5706), (10, 2.2281), (28, 2.0484), (100, 1.9840)] {
            let found = student_975(degrees);
            assert!((found - quantile).abs() < 5e-4, "{degrees}: {found}");
        }
        let [low, high] = interval(0.2, 0.1, 11);
        assert!((low + 0.0228).abs() < 1e-4 && (high - 0.4228).abs() < 1e-4, "{low} {high}");
    }
}
