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
    /// The mask of `tensor` for the model of this [`mask_key`].
    pub(crate) fn new(seed: u64, tensor: &str, model: &str, density: f64) -> Self {
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

/// Who a model is to its masks: its name as the configuration writes it (no two inputs of a slice have one name), and the name of the
/// document in a file of several. Not its place: models may change places, and two merges share a mask only for a model of one name. Not
/// its folder: the masks are the same on every machine. The length stands before the document, so that no two keys are equal.
pub fn mask_key(document: Option<&str>, model: &str) -> String {
    let document = document.unwrap_or("");
    format!("{}:{document}/{model}", document.len())
}

/// The DARE mask that merging with `seed` uses for elements `range` of `tensor`, for the model of this [`mask_key`]: anyone can check one
/// tensor without merging.
pub fn dare_mask(seed: u64, tensor: &str, model: &str, density: f64, range: Range<usize>) -> Vec<bool> {
    let mut kept = vec![true; range.len()];
    if density < 1.0 {
        Mask::new(seed, tensor, model, density).fill(range.start, &mut kept);
    }
    kept
}
