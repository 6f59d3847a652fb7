//! The order in which a question's options are shown, and the way back.
//!
//! An order lists original indices by shown position: `[2, 0, 1]` shows option C first. Answers are letters of shown
//! positions; [`ChoiceOrder::original`] maps them back.

use aloe_record::CounterRng;

/// A permutation of a question's options.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct ChoiceOrder(Vec<usize>);

/// What to do when more orders are wanted than there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exhausted {
    /// Start over with the orders already drawn, in the same sequence: every order is used equally often, within one.
    Repeat,
    /// Use the natural order from then on, as prompt_engine does (three options: from the seventh sample).
    Natural,
}

impl ChoiceOrder {
    /// Options as the source has them.
    pub fn natural(n_choices: usize) -> Self {
        Self((0..n_choices).collect())
    }

    /// An order from original indices by shown position; `None` when it is no permutation.
    pub fn from_indices(indices: Vec<usize>) -> Option<Self> {
        let mut seen = vec![false; indices.len()];
        for &index in &indices {
            if std::mem::replace(seen.get_mut(index)?, true) {
                return None;
            }
        }
        Some(Self(indices))
    }

    /// `n_orders` orders for one question, distinct as long as there are any left. Drawn from `rng` alone.
    pub fn draw(n_choices: usize, n_orders: usize, rng: &mut CounterRng, exhausted: Exhausted) -> Vec<Self> {
        let n_distinct = n_orders.min((1..=n_choices).fold(1usize, usize::saturating_mul));
        let mut orders: Vec<Self> = Vec::with_capacity(n_orders);
        while orders.len() < n_distinct {
            let mut indices: Vec<usize> = (0..n_choices).collect();
            rng.shuffle(&mut indices);
            let order = Self(indices);
            if !orders.contains(&order) {
                orders.push(order);
            }
        }
        for extra in 0..n_orders - n_distinct {
            orders.push(match exhausted {
                Exhausted::Repeat => orders[extra % n_distinct].clone(),
                Exhausted::Natural => Self::natural(n_choices),
            });
        }
        orders
    }

    /// Number of options.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no options, which no question has.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The original index of the option shown at `position`.
    pub fn original(&self, position: usize) -> usize {
        self.0[position]
    }

    /// The position at which original option `index` is shown.
    pub fn shown(&self, index: usize) -> usize {
        self.0.iter().position(|&original| original == index).expect("a ChoiceOrder is a permutation")
    }

    /// The options as shown.
    pub fn apply<'a>(&self, choices: &'a [String]) -> Vec<&'a str> {
        self.0.iter().map(|&original| choices[original].as_str()).collect()
    }

    /// Original indices by shown position.
    pub fn indices(&self) -> &[usize] {
        &self.0
    }

    /// prompt_engine's form: original letters by shown position, `CABD`.
    pub fn letters(&self) -> String {
        self.0.iter().map(|&original| crate::question::letter(original)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shuffling_and_mapping_back_is_the_identity() {
        let choices: Vec<String> = ["a", "b", "c", "d", "e"].map(String::from).to_vec();
        for order in ChoiceOrder::draw(5, 120, &mut CounterRng::new(1, "order", 0), Exhausted::Natural) {
            let shown = order.apply(&choices);
            for (index, choice) in choices.iter().enumerate() {
                assert_eq!(order.original(order.shown(index)), index);
                assert_eq!(shown[order.shown(index)], choice);
            }
        }
    }

    #[test]
    fn orders_are_distinct_until_none_is_left_then_follow_the_named_rule() {
        let draw = |rule| ChoiceOrder::draw(3, 8, &mut CounterRng::new(1, "order", 7), rule);
        let natural = draw(Exhausted::Natural);
        for i in 0..6 {
            assert!(!natural[..i].contains(&natural[i]));
        }
        assert_eq!(natural[6..], [ChoiceOrder::natural(3), ChoiceOrder::natural(3)]);
        let repeated = draw(Exhausted::Repeat);
        assert_eq!(repeated[..6], natural[..6]);
        assert_eq!(repeated[6..], natural[..2]);
    }

    #[test]
    fn all_orders_of_three_options_are_drawn_evenly_within_five_sigma() {
        let mut counts = std::collections::BTreeMap::new();
        for item in 0..6000 {
            let order = ChoiceOrder::draw(3, 1, &mut CounterRng::new(3, "order", item), Exhausted::Repeat);
            *counts.entry(order[0].letters()).or_insert(0.0) += 1.0;
        }
        let sigma = (6000.0f64 / 6.0 * 5.0 / 6.0).sqrt();
        assert_eq!(counts.len(), 6);
        assert!(counts.values().all(|count: &f64| (count - 1000.0).abs() < 5.0 * sigma), "{counts:?}");
    }

    #[test]
    fn a_list_that_is_no_permutation_is_no_order() {
        assert_eq!(ChoiceOrder::from_indices(vec![0, 0]), None);
        assert_eq!(ChoiceOrder::from_indices(vec![0, 2]), None);
        assert_eq!(ChoiceOrder::from_indices(vec![1, 0]).unwrap().letters(), "BA");
    }
}
