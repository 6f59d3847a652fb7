//! What a set of pairs came to, whole and by source: means under TRL's names for the training steps, and for the held-out pairs
//! the same with their standard errors and with what changed since the stage's start, pair by pair.
//!
//! A source is where a row's data came from (`dpo-demo`, `hh-harmless`): a mean over all of them can rise while one falls.

use crate::pairs::Example;
use crate::preference::{PairLogps, PairOutcome};
use crate::statistics::{Estimate, even_split_p, wilson};
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
    logps_chosen: f64,
    logps_rejected: f64,
    n_chosen_tokens: usize,
    pairs: Vec<Held>,
}

/// What the errors of a held-out figure need of one pair.
struct Held {
    margin: f64,
    /// Whether the chosen answer is the more probable one, for the reference and for the policy.
    is_right: [bool; 2],
    /// The chosen answer's negative log-probability for both, and its tokens.
    nll: [f64; 2],
    n_tokens: f64,
}

impl<'a> Tally<'a> {
    pub(crate) fn new(nll_weight: f64) -> Self {
        Self { nll_weight, ..Self::default() }
    }

    /// Of held-out pairs `reference` holds the log-probabilities at the stage's start, to which changes are told.
    pub(crate) fn add(&mut self, pair: &'a Example, policy: &PairLogps, reference: &PairLogps, outcome: &PairOutcome) {
        let n_chosen_tokens = pair.ids.chosen_ids.len();
        for sums in [&mut self.all, self.by_set.entry(&pair.set).or_default()] {
            sums.add(policy, reference, outcome, n_chosen_tokens);
        }
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
    fn add(&mut self, policy: &PairLogps, reference: &PairLogps, outcome: &PairOutcome, n_chosen_tokens: usize) {
        self.n += 1;
        self.loss += outcome.loss;
        self.reward_chosen += outcome.reward_chosen;
        self.reward_rejected += outcome.reward_rejected;
        self.n_reward_right += usize::from(outcome.reward_chosen > outcome.reward_rejected);
        self.logps_chosen += policy.chosen;
        self.logps_rejected += policy.rejected;
        self.n_chosen_tokens += n_chosen_tokens;
        self.pairs.push(Held {
            margin: outcome.reward_chosen - outcome.reward_rejected,
            is_right: [reference, policy].map(|logps| logps.chosen > logps.rejected),
            nll: [reference, policy].map(|logps| -logps.chosen),
            n_tokens: n_chosen_tokens as f64,
        });
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
        let mut insert = |name: &str, value: Value| {
            fields.insert(format!("held_out_{name}{suffix}"), value);
        };
        insert("loss", json!(self.total(nll_weight)));
        insert("margin", json!(self.mean(self.reward_chosen - self.reward_rejected)));
        if let Some(se) = Estimate::of_mean(self.pairs.iter().map(|pair| pair.margin)).se {
            insert("margin_se", json!(se));
        }
        insert("reward_chosen", json!(self.mean(self.reward_chosen)));
        insert("reward_rejected", json!(self.mean(self.reward_rejected)));
        insert("logps_chosen", json!(self.mean(self.logps_chosen)));
        insert("logps_rejected", json!(self.mean(self.logps_rejected)));
        insert("pairs", json!(self.n));
        for (name, value) in self.held_out_errors() {
            insert(&name, json!(value));
        }
    }

    /// Standard errors, and changes since the start over the same pairs. At the start all rewards are 0, so that the reward accuracy has no
    /// change: it is held against one half, pairs with equal rewards left out.
    fn held_out_errors(&self) -> Vec<(String, f64)> {
        let count = |of: &dyn Fn(&Held) -> bool| self.pairs.iter().filter(|pair| of(pair)).count();
        let mean = |of: &dyn Fn(&Held) -> f64| Estimate::of_mean(self.pairs.iter().map(of));
        let a_token = |of: &dyn Fn(&Held) -> f64| {
            Estimate::of_ratio(&self.pairs.iter().map(|pair| (of(pair), pair.n_tokens)).collect::<Vec<_>>())
        };
        let without_interval = |estimate: Estimate| Estimate { interval: None, ..estimate };
        let [logp_accuracy, logp_change] =
            [mean(&|pair| one(pair.is_right[1])), mean(&|pair| one(pair.is_right[1]) - one(pair.is_right[0]))];
        let interval = Some(wilson(self.n_reward_right, self.n));
        let reward_accuracy = Estimate { interval, ..mean(&|pair| one(pair.margin > 0.0)) };
        let mut found = [
            without_interval(logp_accuracy).named("logp_accuracy"),
            logp_change.named("logp_accuracy_change"),
            reward_accuracy.named("reward_accuracy"),
            without_interval(a_token(&|pair| pair.nll[1])).named("nll_loss"),
            a_token(&|pair| pair.nll[1] - pair.nll[0]).named("nll_loss_change"),
        ]
        .concat();
        let won = count(&|pair| pair.is_right[1] && !pair.is_right[0]);
        let lost = count(&|pair| pair.is_right[0] && !pair.is_right[1]);
        found.push(("logp_accuracy_change_p".into(), even_split_p(won, lost)));
        let wrong = count(&|pair| pair.margin < 0.0);
        found.push(("reward_accuracy_p".into(), even_split_p(self.n_reward_right, wrong)));
        found
    }
}

/// 1 for true.
fn one(holds: bool) -> f64 {
    f64::from(u8::from(holds))
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
        let mut add = |pair, start: [f64; 2], now: [f64; 2], outcome: &PairOutcome| {
            let [reference, policy] = [start, now].map(|[chosen, rejected]| PairLogps { chosen, rejected });
            tally.add(pair, &policy, &reference, outcome);
        };
        add(&a, [-3.0, -2.0], [-2.0, -3.0], &outcome(1.0, 0.5, 0.1));
        add(&b, [-6.0, -8.0], [-7.0, -3.0], &outcome(2.0, -0.5, 0.3));
        add(&b, [-5.0, -4.0], [-1.0, -5.0], &outcome(3.0, 0.3, 0.2));
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
        check_errors(&held_out);
        assert!(tally.step_fields(false).keys().all(|name| !name.ends_with("/a")));
    }

    /// Of the three pairs above the start has the second right, the end the first and third: 2/3 - 1/3, changes 1, -1, 1 with rests 2/3,
    /// -4/3, 2/3 and sqrt((4 + 16 + 4) / 9 / 2 / 3) = 2/3; McNemar 2 won, 1 lost of 3: 2 * (1 + 3) / 8 = 1. Two of three rewards are
    /// right: rests 1/3, 1/3, -2/3, sqrt(6 / 9 / 2 / 3) = 1/3. Chosen NLL 2, 7, 1 over 2, 4, 4 tokens: 1, rests 0, 3, -3,
    /// sqrt(3 / 2 * 18) / 10; from 3, 6, 5: changes -1, 1, -4, -4 / 10 = -0.4, rests -0.2, 2.6, -2.4, sqrt(1.5 * 12.56) / 10.
    fn check_errors(held_out: &Map<String, Value>) {
        for (name, expected) in [
            ("logp_accuracy_se", 1.0 / 3.0),
            ("logp_accuracy_change", 1.0 / 3.0),
            ("logp_accuracy_change_se", 2.0 / 3.0),
            ("logp_accuracy_change_p", 1.0),
            ("reward_accuracy_se", 1.0 / 3.0),
            ("reward_accuracy_p", 1.0),
            ("nll_loss_se", 0.519_615_242_270_663_2),
            ("nll_loss_change", -0.4),
            ("nll_loss_change_se", 0.434_050_688_282_795_4),
            // 4.302653 is Student's quantile of two degrees.
            ("nll_loss_change_high", -0.4 + 4.302_653 * 0.434_050_688_282_795_4),
        ] {
            let found = held_out[&format!("held_out_{name}")].as_f64().unwrap();
            assert!((found - expected).abs() < 1e-9, "{name}: {found} is not {expected}");
        }
        assert!(held_out.contains_key("held_out_nll_loss_change_se/b"));
        assert!(!held_out.contains_key("held_out_nll_loss_change_se/a"), "one pair has no error");
    }
}
