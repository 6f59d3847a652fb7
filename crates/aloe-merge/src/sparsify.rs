//! Which elements of a task vector are kept: the largest (TIES) or a random sample (DARE), and how the kept ones are scaled up.
//!
//! Source: mergekit 0.1.5, `sparsify.py` (`magnitude`, `bernoulli`, `rescaled_masked_tensor`). Differences: equal magnitudes at the
//! threshold are kept from the lowest index on (torch's sort leaves it open), and masks come from a counter generator keyed by
//! (seed, tensor, model), so that they do not depend on threads, order or shards.

use crate::config::{MergeDtype, RescaleKind};
use crate::tile::{TILE, TensorBytes, round_to, run, tiles};
use aloe_record::CounterRng;
use std::ops::Range;

/// Below this sum of magnitudes nothing is rescaled (mergekit's `eps`).
const SMALLEST_SUM: f32 = 1e-7;

/// A model's difference to the base, never held whole.
#[derive(Clone, Copy)]
pub(crate) struct TaskVector<'a> {
    pub(crate) base: TensorBytes<'a>,
    pub(crate) tuned: TensorBytes<'a>,
    pub(crate) dtype: MergeDtype,
    pub(crate) n_elements: usize,
}

impl TaskVector<'_> {
    /// `tuned - base`, each read in the merge dtype, the difference rounded to it; `base` holds the base's tile.
    pub(crate) fn delta(&self, start: usize, base: &[f32], delta: &mut [f32]) {
        self.tuned.read(start, self.dtype, delta);
        for (delta, base) in delta.iter_mut().zip(base) {
            *delta = round_to(self.dtype, *delta - *base);
        }
    }

    fn tile(&self, range: &Range<usize>) -> Vec<f32> {
        let (mut base, mut delta) = (vec![0.0; range.len()], vec![0.0; range.len()]);
        self.base.read(range.start, self.dtype, &mut base);
        self.delta(range.start, &base, &mut delta);
        delta
    }
}

/// What is kept of one task vector.
#[derive(Debug, PartialEq)]
pub(crate) enum Keep {
    /// Everything: density 1.
    All,
    /// What lies above a magnitude, and of those equal to it as many per tile as stand here.
    Largest {
        /// Bits of the threshold magnitude.
        threshold: u32,
        /// Of the elements equal to the threshold, how many each tile keeps.
        ties: Vec<usize>,
    },
    /// A random sample.
    Random(Mask),
}

/// The random mask of one tensor of one model.
#[derive(Debug)]
pub(crate) struct Mask {
    rng: CounterRng,
    /// Kept where the 32 random bits lie below it.
    bound: u64,
}

impl PartialEq for Mask {
    fn eq(&self, other: &Self) -> bool {
        self.bound == other.bound && self.rng.block(0) == other.rng.block(0)
    }
}

impl Mask {
    /// The mask of `tensor` for the `model`-th model other than the base, from 0.
    pub(crate) fn new(seed: u64, tensor: &str, model: usize, density: f64) -> Self {
        let rng = CounterRng::new(seed, &format!("dare-mask/{tensor}/{model}"), 0);
        Self { rng, bound: (density * 4_294_967_296.0).round() as u64 }
    }

    /// Whether each element from `start` on is kept; element i looks at value i of the stream.
    fn fill(&self, start: usize, kept: &mut [bool]) {
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
/// in the order of the configuration): anyone can check one tensor without merging.
pub fn dare_mask(seed: u64, tensor: &str, model: usize, density: f64, range: Range<usize>) -> Vec<bool> {
    let mut kept = vec![true; range.len()];
    if density < 1.0 {
        Mask::new(seed, tensor, model, density).fill(range.start, &mut kept);
    }
    kept
}

impl Keep {
    /// Whether each element of the tile from `start` on is kept.
    pub(crate) fn fill(&self, start: usize, delta: &[f32], kept: &mut [bool]) {
        match self {
            Self::All => kept.fill(true),
            Self::Random(mask) => mask.fill(start, kept),
            Self::Largest { threshold, ties } => {
                let mut left = ties[start / TILE];
                for (kept, delta) in kept.iter_mut().zip(delta) {
                    let magnitude = delta.abs().to_bits();
                    let takes_tie = magnitude == *threshold && left > 0;
                    left -= usize::from(takes_tie);
                    *kept = magnitude > *threshold || takes_tie;
                }
            }
        }
    }
}

/// Keeps `max(1, floor(density * n))` elements of the largest magnitude.
///
/// The bits of a non-negative f32 order as its value does: a histogram of their upper 16 bits finds the bucket of the k-th largest, one
/// of the lower 15 bits inside it finds the exact threshold. Three passes over the inputs, no sort, 0.5 MB a thread.
pub(crate) fn largest(threads: usize, vector: &TaskVector<'_>, density: f64) -> Keep {
    if vector.n_elements == 0 {
        return Keep::All;
    }
    let k = ((density * vector.n_elements as f64) as usize).max(1);
    let upper = histogram(threads, vector, 1 << 16, |bits| Some((bits >> 15) as usize));
    let (bucket, above) = bucket_of(&upper, k);
    let lower =
        histogram(threads, vector, 1 << 15, |bits| (bits >> 15 == bucket as u32).then_some((bits & 0x7fff) as usize));
    let (low, above_low) = bucket_of(&lower, k - above);
    let threshold = ((bucket as u32) << 15) | low as u32;
    let counts = run(threads, tiles(vector.n_elements), |range| {
        vector.tile(&range).iter().filter(|delta| delta.abs().to_bits() == threshold).count()
    });
    let mut left = k - above - above_low;
    let ties = counts
        .into_iter()
        .map(|count| {
            let taken = count.min(left);
            left -= taken;
            taken
        })
        .collect();
    Keep::Largest { threshold, ties }
}

fn histogram(
    threads: usize,
    vector: &TaskVector<'_>,
    n_buckets: usize,
    bucket: impl Fn(u32) -> Option<usize> + Sync,
) -> Vec<u64> {
    // Whole stretches of tiles per thread: one histogram each, not one per tile. Sums of counts have no order.
    let tiles = tiles(vector.n_elements);
    let stretches: Vec<_> = tiles.chunks(tiles.len().div_ceil(threads.max(1))).collect();
    let parts = run(threads, stretches, |stretch| {
        let mut counts = vec![0u64; n_buckets];
        for range in stretch {
            for delta in vector.tile(range) {
                if let Some(bucket) = bucket(delta.abs().to_bits()) {
                    counts[bucket] += 1;
                }
            }
        }
        counts
    });
    let mut total = vec![0u64; n_buckets];
    for part in parts {
        total.iter_mut().zip(part).for_each(|(sum, count)| *sum += count);
    }
    total
}

/// The bucket of the k-th largest (k from 1) and how many lie in the buckets above.
fn bucket_of(counts: &[u64], k: usize) -> (usize, usize) {
    let mut above = 0;
    for (bucket, &count) in counts.iter().enumerate().rev() {
        if above + count as usize >= k {
            return (bucket, above);
        }
        above += count as usize;
    }
    (0, above)
}

/// How kept elements are scaled up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scale {
    /// Not at all.
    None,
    /// Divided by the density.
    Divide(f32),
    /// Multiplied by the ratio of the sums of magnitudes.
    Multiply(f32),
}

/// The scale of one task vector; L1 takes a pass over it.
pub(crate) fn scale(
    threads: usize,
    vector: &TaskVector<'_>,
    keep: &Keep,
    rescale: Option<RescaleKind>,
    density: f64,
) -> Scale {
    match rescale {
        _ if *keep == Keep::All => Scale::None,
        None => Scale::None,
        Some(RescaleKind::Density) => Scale::Divide(density as f32),
        Some(RescaleKind::L1) => {
            let sums = run(threads, tiles(vector.n_elements), |range| magnitudes(vector, keep, &range));
            let (before, after) = sums.into_iter().fold((0.0, 0.0), |sum, part| (sum.0 + part.0, sum.1 + part.1));
            let (before, after) = (round_to(vector.dtype, before as f32), round_to(vector.dtype, after as f32));
            if before < SMALLEST_SUM || after < SMALLEST_SUM {
                return Scale::None;
            }
            Scale::Multiply(round_to(vector.dtype, before / after))
        }
    }
}

/// Sum of magnitudes of a tile: all, and what is kept.
fn magnitudes(vector: &TaskVector<'_>, keep: &Keep, range: &Range<usize>) -> (f64, f64) {
    let delta = vector.tile(range);
    let mut kept = vec![false; delta.len()];
    keep.fill(range.start, &delta, &mut kept);
    delta.iter().zip(kept).fold((0.0, 0.0), |(before, after), (delta, kept)| {
        let magnitude = f64::from(delta.abs());
        (before + magnitude, if kept { after + magnitude } else { after })
    })
}
