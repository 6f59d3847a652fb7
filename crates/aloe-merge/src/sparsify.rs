//! Which elements of a task vector are kept, and how the kept ones are scaled up.
//!
//! Source: mergekit 0.1.5, `sparsify.py`. Differences: equal magnitudes at a threshold are kept from the lowest index on (torch's sort leaves
//! it open), and masks come from a counter generator keyed by (seed, model, tensor), so that they do not depend on threads, order or
//! shards. Nothing here holds a task vector: it is computed again for every pass.

mod by_rank;
mod random;
mod top;

pub(crate) use by_rank::RankMask;
pub(crate) use random::Mask;
pub use random::{dare_mask, mask_key, mask_names};
pub(crate) use top::Top;

use crate::Result;
use crate::config::{Parameter, RescaleKind};
use crate::group::Group;
use crate::scratch::Scratch;
use crate::tile::{Rounding, round_to, sum_of_magnitudes, with_rounding};
use std::ops::Range;

/// Below this sum of magnitudes nothing is rescaled (mergekit's `eps`).
const SMALLEST_SUM: f32 = 1e-7;

/// A model's difference to the base, never held whole.
#[derive(Clone, Copy)]
pub(crate) struct TaskVector<'a> {
    pub(crate) group: &'a Group,
    pub(crate) input: usize,
}

impl TaskVector<'_> {
    /// `tuned - base`, each read in the merge dtype, the difference rounded to it.
    pub(crate) fn read(&self, range: &Range<usize>) -> Result<Scratch> {
        let base = self.group.read_base(range)?;
        let (group, input) = (self.group, self.input);
        with_rounding!(group.dtype, delta(group, input, &base, range))
    }
}

fn delta<R: Rounding>(group: &Group, input: usize, base: &[f32], range: &Range<usize>) -> Result<Scratch> {
    group.delta::<R>(input, base, range)
}

/// What is kept of one task vector.
pub(crate) enum Keep {
    /// Everything: density 1.
    All,
    /// Nothing: density 0.
    Nothing,
    /// The largest (TIES).
    Largest(Top),
    /// The largest but for the very largest (Breadcrumbs): those in the first and not in the second.
    Between(Top, Top),
    /// A random sample (DARE).
    Random(Mask),
    /// A random sample by rank in the row (DELLA).
    ByRank(RankMask),
}

impl Keep {
    /// Whether each element of the tile from `start` on is kept; `start` is that of a tile.
    pub(crate) fn fill(&self, vector: &TaskVector<'_>, start: usize, delta: &[f32], kept: &mut [bool]) -> Result<()> {
        match self {
            Self::All => kept.fill(true),
            Self::Nothing => kept.fill(false),
            Self::Random(mask) => mask.fill(start, kept),
            Self::Largest(top) => top.fill(start, delta, kept),
            Self::Between(outer, inner) => {
                outer.fill(start, delta, kept);
                let mut largest = vec![false; kept.len()];
                inner.fill(start, delta, &mut largest);
                kept.iter_mut().zip(largest).for_each(|(kept, largest)| *kept &= !largest);
            }
            Self::ByRank(mask) => mask.fill(vector, start, kept)?,
        }
        Ok(())
    }
}

/// How kept elements are scaled up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scale {
    /// Not at all.
    None,
    /// Divided by the density.
    Divide(f32),
    /// Divided by the element's own probability of being kept.
    DivideByProbability,
    /// Multiplied by the ratio of the sums of magnitudes.
    Multiply(f32),
}

/// The scale of one task vector; L1 takes a pass over it.
pub(crate) fn scale(vector: &TaskVector<'_>, keep: &Keep, rescale: Option<RescaleKind>) -> Result<Scale> {
    let group = vector.group;
    match (keep, rescale) {
        (Keep::All | Keep::Nothing, _) | (_, None) => Ok(Scale::None),
        (Keep::ByRank(_), Some(RescaleKind::Density)) => Ok(Scale::DivideByProbability),
        (_, Some(RescaleKind::Density)) => {
            Ok(Scale::Divide(group.parameters.input(vector.input, Parameter::Density) as f32))
        }
        (_, Some(RescaleKind::L1)) => {
            let sums = group.fold(|range| magnitudes(vector, keep, &range))?;
            let (before, after) = sums.into_iter().fold((0.0, 0.0), |sum, part| (sum.0 + part.0, sum.1 + part.1));
            let (before, after) = (round_to(group.dtype, before as f32), round_to(group.dtype, after as f32));
            if before < SMALLEST_SUM || after < SMALLEST_SUM {
                return Ok(Scale::None);
            }
            Ok(Scale::Multiply(round_to(group.dtype, before / after)))
        }
    }
}

/// Sum of magnitudes of a tile: all, and what is kept.
fn magnitudes(vector: &TaskVector<'_>, keep: &Keep, range: &Range<usize>) -> Result<(f64, f64)> {
    let mut delta = vector.read(range)?;
    let mut kept = vec![false; delta.len()];
    keep.fill(vector, range.start, &delta, &mut kept)?;
    let before = sum_of_magnitudes(&delta);
    delta.iter_mut().zip(kept).for_each(|(value, kept)| *value = if kept { *value } else { 0.0 });
    Ok((before, sum_of_magnitudes(&delta)))
}
