//! The k elements of largest magnitude, found without sorting: the trim of TIES, both cuts of Breadcrumbs, the selection of SCE.

use crate::Result;
use crate::group::Group;
use crate::scratch::Scratch;
use crate::tile::{TILE, run, tiles};
use std::ops::Range;

/// What lies above a magnitude, and of those equal to it as many per tile as stand here: the lowest indices first.
#[derive(Debug, PartialEq)]
pub(crate) struct Top {
    /// Bits of the threshold magnitude.
    threshold: u32,
    /// Of the elements equal to the threshold, how many each tile takes.
    ties: Vec<usize>,
}

impl Top {
    /// The `k` largest of the values that `read` gives by tiles.
    ///
    /// The bits of a non-negative f32 order as its value does: a histogram of their upper 16 bits finds the bucket of the k-th largest, one
    /// of the lower 15 bits inside it finds the exact threshold. Three passes, no sort, 0.5 MB a thread.
    pub(crate) fn of(group: &Group, k: usize, read: impl Fn(&Range<usize>) -> Result<Scratch> + Sync) -> Result<Self> {
        if k == 0 {
            return Ok(Self { threshold: u32::MAX, ties: vec![0; tiles(group.n_elements()).len()] });
        }
        let upper = histogram(group, &read, 1 << 16, |bits| Some((bits >> 15) as usize))?;
        let (bucket, above) = bucket_of(&upper, k);
        let inside = |bits: u32| (bits >> 15 == bucket as u32).then_some((bits & 0x7fff) as usize);
        let lower = histogram(group, &read, 1 << 15, inside)?;
        let (low, above_low) = bucket_of(&lower, k - above);
        let threshold = ((bucket as u32) << 15) | low as u32;
        let counts = group.fold(|range| Ok(read(&range)?.iter().filter(|v| v.abs().to_bits() == threshold).count()))?;
        let mut left = k - above - above_low;
        let ties = counts.into_iter().map(|count| {
            let taken = count.min(left);
            left -= taken;
            taken
        });
        Ok(Self { threshold, ties: ties.collect() })
    }

    /// Whether each value of the tile that begins at `start` is among the k.
    pub(crate) fn fill(&self, start: usize, values: &[f32], kept: &mut [bool]) {
        let mut left = self.ties[start / TILE];
        if left == 0 {
            kept.iter_mut().zip(values).for_each(|(kept, value)| *kept = value.abs().to_bits() > self.threshold);
            return;
        }
        for (kept, value) in kept.iter_mut().zip(values) {
            let magnitude = value.abs().to_bits();
            let takes_tie = magnitude == self.threshold && left > 0;
            left -= usize::from(takes_tie);
            *kept = magnitude > self.threshold || takes_tie;
        }
    }
}

fn histogram(
    group: &Group,
    read: &(impl Fn(&Range<usize>) -> Result<Scratch> + Sync),
    n_buckets: usize,
    bucket: impl Fn(u32) -> Option<usize> + Sync,
) -> Result<Vec<u64>> {
    // Whole stretches of tiles per thread: one histogram each, not one per tile. Sums of counts have no order.
    let tiles = tiles(group.n_elements());
    let stretches: Vec<_> = tiles.chunks(tiles.len().div_ceil(group.threads.max(1))).collect();
    let parts = run(group.threads, stretches, |stretch| {
        let mut counts = vec![0u64; n_buckets];
        for range in stretch {
            for value in &read(range)? {
                if let Some(bucket) = bucket(value.abs().to_bits()) {
                    counts[bucket] += 1;
                }
            }
        }
        Ok(counts)
    })?;
    let mut total = vec![0u64; n_buckets];
    for part in parts {
        total.iter_mut().zip(part).for_each(|(sum, count)| *sum += count);
    }
    Ok(total)
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
