//! The random masks of DARE: each element is kept with probability `density`, whatever its neighbours, threads or shards.

use aloe_record::CounterRng;
use std::ops::Range;

/// The random mask of one tensor of one model.
#[derive(Debug)]
pub(crate) struct Mask {
    rng: CounterRng,
    /// Kept where the 32 random bits lie below it.
    bound: u64,
}

/// What 32 random bits must lie below to happen with this probability.
pub(crate) fn bound(probability: f64) -> u64 {
    (probability * 4_294_967_296.0).round() as u64
}

impl Mask {
    /// The mask of `tensor` for the `model`-th model other than the base, from 0.
    pub(crate) fn new(seed: u64, tensor: &str, model: usize, density: f64) -> Self {
        Self { rng: CounterRng::new(seed, &format!("dare-mask/{tensor}/{model}"), 0), bound: bound(density) }
    }

    /// Whether each element from `start` on is kept; element i looks at value i of the stream.
    pub(crate) fn fill(&self, start: usize, kept: &mut [bool]) {
        let mut index = start;
        let mut rest = kept;
        while !rest.is_empty() {
            let block = self.rng.block(index as u64 / 4);
            let (now, later) = rest.split_at_mut(rest.len().min(4 - index % 4));
            for (kept, value) in now.iter_mut().zip(&block[index % 4..]) {
                *kept = u64::from(*value) < self.bound;
            }
            index += now.len();
            rest = later;
        }
    }
}

/// The DARE mask that merging with `seed` uses for elements `range` of `tensor`, for the `model`-th model other than the base (from 0
/// in the order of the slice): anyone can check one tensor without merging.
pub fn dare_mask(seed: u64, tensor: &str, model: usize, density: f64, range: Range<usize>) -> Vec<bool> {
    let mut kept = vec![true; range.len()];
    if density < 1.0 {
        Mask::new(seed, tensor, model, density).fill(range.start, &mut kept);
    }
    kept
}
