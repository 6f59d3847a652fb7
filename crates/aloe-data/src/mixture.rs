//! Which rows train and in which order: hold-out, caps, weights and order, all decided by (seed, purpose, row), so that adding a
//! source moves no other source's rows across a split and keeps their order among themselves.

use crate::{DataConfig, Item};
use aloe_record::CounterRng;
use std::collections::HashMap;
use xxhash_rust::xxh64::xxh64;

/// Indices of the rows to write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mixture {
    /// In training order; a row may stand several times.
    pub(crate) train: Vec<usize>,
    /// In file order.
    pub(crate) held_out: Vec<usize>,
    /// Left out by a source's `max_rows`.
    pub(crate) over_cap: Vec<usize>,
    /// Left out by a weight below 1.
    pub(crate) weighted_out: Vec<usize>,
}

/// What rows draw for one purpose, each by its text.
struct Draw(CounterRng);

impl Draw {
    fn of(seed: u64, purpose: &str) -> Draw {
        Draw(CounterRng::new(seed, purpose, 0))
    }

    fn key(&self, text: &str) -> u64 {
        let block = self.0.of_item(xxh64(text.as_bytes(), 0)).block(0);
        (u64::from(block[0]) << 32) | u64::from(block[1])
    }

    /// In `[0, 1)`.
    fn share(&self, text: &str) -> f64 {
        (self.key(text) >> 11) as f64 / 9_007_199_254_740_992.0
    }
}

/// Chooses and orders.
pub(crate) fn mix(items: &[Item], config: &DataConfig) -> Mixture {
    let mut mixture = Mixture::default();
    let [hold_out, cap, weight, order] =
        ["data/hold-out", "data/cap", "data/weight", "data/order"].map(|purpose| Draw::of(config.seed, purpose));
    let mut by_source: HashMap<usize, Vec<usize>> = HashMap::new();
    for (index, item) in items.iter().enumerate() {
        // As it is: without their numbers all of a set's question ids would be one.
        if config.hold_out > 0.0 && hold_out.share(&item.group_key()) < config.hold_out {
            mixture.held_out.push(index);
        } else {
            by_source.entry(item.source).or_default().push(index);
        }
    }
    let mut copies: Vec<(u64, u64, usize)> = Vec::new();
    for (source, mut rows) in by_source {
        let settings = &config.sources[source];
        if let Some(max_rows) = settings.max_rows {
            rows.sort_by_key(|&row| (cap.key(&items[row].id), row));
            mixture.over_cap.extend(rows.drain(max_rows.min(rows.len())..));
        }
        for row in rows {
            let id = &items[row].id;
            let whole = settings.weight.floor();
            let extra = settings.weight > whole && weight.share(id) < settings.weight - whole;
            let n_copies = whole as u64 + u64::from(extra);
            if n_copies == 0 {
                mixture.weighted_out.push(row);
            }
            for copy in 0..n_copies {
                copies.push((order.key(&format!("{id}\n{copy}")), copy, row));
            }
        }
    }
    copies.sort_unstable();
    mixture.train = copies.into_iter().map(|(_, _, row)| row).collect();
    mixture
}
