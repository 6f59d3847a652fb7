//! `task_arithmetic`: `base + lambda sum(w_i (x_i - base))`, over `sum(w_i)` with `normalize`. And the frame of its kin, `ties`, `dare`,
//! `breadcrumbs` and `della`: differences to the base, of which a part is kept ([`Keep`]) and rescaled, weighted, summed; with an election,
//! only what agrees with the elected sign. Parameters: `weight` per model; `normalize` (off), `lambda` (1); `density` per model, `rescale`
//! and `int8_mask` are accepted without effect, as in mergekit. The order of the models does not matter but to the rounding of sums.
//!
//! Source: arXiv 2212.04089; mergekit 0.1.5, `generalized_task_arithmetic.py`, whose order of operations and rounding this follows: every
//! call of `round` is one torch operation in the merge dtype; sums over models run in f32 and are rounded once.

use super::Kernel;
use crate::Result;
use crate::config::Parameter;
use crate::group::Group;
use crate::scratch::Scratch;
use crate::sparsify::{self, Keep, Scale, TaskVector};
use crate::stats::TileSums;
use crate::tile::{Rounding, dot, round_to, with_rounding};
use aloe_tensor::Isa;
use std::ops::Range;

pub(super) struct TaskArithmetic {
    elects: bool,
    normalize: bool,
    lambda: f64,
    models: Vec<Prepared>,
}

/// One model with what was decided about it for the whole tensor.
struct Prepared {
    input: usize,
    keep: Keep,
    scale: Scale,
    weight: f32,
}

/// Everything is kept and summed, whatever the density.
pub(super) fn prepare(group: &Group) -> Result<TaskArithmetic> {
    TaskArithmetic::keeping(group, false, |_| Ok(Keep::All))
}

impl TaskArithmetic {
    /// The frame with what `keep` decides for a task vector that is not kept whole, and with or without an election.
    pub(super) fn with(
        group: &Group,
        elects: bool,
        keep: impl Fn(&TaskVector<'_>, f64) -> Result<Keep>,
    ) -> Result<Self> {
        Self::keeping(group, elects, |vector| match group.parameters.input(vector.input, Parameter::Density) {
            density if group.n_elements() == 0 || density >= 1.0 => Ok(Keep::All),
            density if density <= 0.0 => Ok(Keep::Nothing),
            density => keep(vector, density),
        })
    }

    /// The frame with what `keep` decides for any task vector.
    fn keeping(group: &Group, elects: bool, keep: impl Fn(&TaskVector<'_>) -> Result<Keep>) -> Result<Self> {
        let mut models = Vec::new();
        for input in group.others() {
            let vector = TaskVector { group, input };
            let keep = keep(&vector)?;
            let scale = sparsify::scale(&vector, &keep, group.parameters.rescale())?;
            let weight = round_to(group.dtype, group.parameters.input(input, Parameter::Weight) as f32);
            models.push(Prepared { input, keep, scale, weight });
        }
        let parameters = &group.parameters;
        Ok(Self {
            elects,
            normalize: parameters.flag(Parameter::Normalize),
            lambda: parameters.number(Parameter::Lambda),
            models,
        })
    }
}

impl Kernel for TaskArithmetic {
    fn tile(&self, group: &Group, start: usize, out: &mut [f32]) -> Result<Option<TileSums>> {
        with_rounding!(group.dtype, wide(self, group, start, out)).map(Some)
    }
}

fn wide<R: Rounding>(method: &TaskArithmetic, group: &Group, start: usize, out: &mut [f32]) -> Result<TileSums> {
    Isa::wide(
        #[inline(always)]
        || mix::<R>(method, group, start, out),
    )
}

/// Elements that are mixed at a time: a few vectors of them lie in the first-level cache together.
const BLOCK: usize = 256;

#[inline(always)]
fn mix<R: Rounding>(method: &TaskArithmetic, group: &Group, start: usize, out: &mut [f32]) -> Result<TileSums> {
    let range = start..start + out.len();
    let mut sums = TileSums::new(method.models.len());
    let base = group.read_base(&range)?;
    sums.base_squares = dot(&base, &base);
    let mut changes = Vec::with_capacity(method.models.len());
    for (place, model) in method.models.iter().enumerate() {
        let change = Change::read::<R>(model, group, &range, &base)?;
        sums.squares[place] = change.squares;
        sums.n_kept[place] = count(&change.kept);
        changes.push(change);
    }
    for at in (0..out.len()).step_by(BLOCK) {
        let block = at..(at + BLOCK).min(out.len());
        let (mut mixed, mut divisor) = ([0.0f32; BLOCK], [0.0f32; BLOCK]);
        for change in &mut changes {
            change.weigh::<R>(&block);
        }
        sums.compare(changes.iter().map(|change| &change.delta[block.clone()]), block.len());
        match method.elects {
            true => elected::<R>(&changes, &block, &mut mixed, &mut divisor),
            false => summed::<R>(method, &changes, &block, &mut mixed, &mut divisor),
        }
        add_change::<R>(method, &base[block.clone()], &mut mixed, &divisor, &mut out[block]);
    }
    Ok(sums)
}

/// The base and the mixed change, normalised and scaled.
#[inline(always)]
fn add_change<R: Rounding>(method: &TaskArithmetic, base: &[f32], mixed: &mut [f32], divisor: &[f32], out: &mut [f32]) {
    mixed.iter_mut().for_each(|mixed| *mixed = R::round(*mixed));
    if method.normalize {
        mixed.iter_mut().zip(divisor).for_each(|(mixed, divisor)| *mixed = R::round(*mixed / divisor));
    }
    if method.lambda != 1.0 {
        let lambda = method.lambda as f32;
        mixed.iter_mut().for_each(|mixed| *mixed = R::round(*mixed * lambda));
    }
    out.iter_mut().zip(base).zip(mixed).for_each(|((out, base), mixed)| *out = R::round(base + *mixed));
}

/// The sum of what agrees with the elected sign, and the sum of its weights. A vote of exactly zero counts as positive, in mergekit and
/// here (the TIES paper asks the whole tensor); a change of zero never agrees.
#[inline(always)]
fn elected<R: Rounding>(
    changes: &[Change<'_>],
    block: &Range<usize>,
    mixed: &mut [f32; BLOCK],
    divisor: &mut [f32; BLOCK],
) {
    let mut votes = [0.0f32; BLOCK];
    for change in changes {
        votes.iter_mut().zip(&change.delta[block.clone()]).for_each(|(vote, delta)| *vote += delta);
    }
    votes.iter_mut().for_each(|vote| *vote = R::round(*vote));
    for change in changes {
        let weight = change.model.weight.to_bits();
        let sums = mixed.iter_mut().zip(divisor.iter_mut());
        for ((mixed, divisor), (delta, vote)) in sums.zip(change.delta[block.clone()].iter().zip(&votes)) {
            // Masks of bits: a branch that half the elements take would cost more than both sides.
            let agrees = ((*delta > 0.0) & (*vote >= 0.0)) | ((*delta < 0.0) & (*vote < 0.0));
            let mask = u32::from(agrees).wrapping_neg();
            *mixed += f32::from_bits(delta.to_bits() & mask);
            *divisor += f32::from_bits(weight & mask);
        }
    }
    for divisor in divisor {
        let sum = R::round(*divisor);
        *divisor = if sum == 0.0 { 1.0 } else { sum };
    }
}

/// The sum of everything, and that of the weights.
#[inline(always)]
fn summed<R: Rounding>(
    method: &TaskArithmetic,
    changes: &[Change<'_>],
    block: &Range<usize>,
    mixed: &mut [f32; BLOCK],
    divisor: &mut [f32; BLOCK],
) {
    for change in changes {
        mixed.iter_mut().zip(&change.delta[block.clone()]).for_each(|(sum, delta)| *sum += delta);
    }
    let total = R::round(method.models.iter().map(|model| model.weight).sum::<f32>());
    divisor.fill(if total.abs() < 1e-8 { 1.0 } else { total });
}

/// A tile of one model's task vector.
struct Change<'a> {
    model: &'a Prepared,
    /// The difference to the base; where [`Self::weigh`] was, what is kept of it, rescaled and weighted.
    delta: Scratch,
    kept: Vec<bool>,
    /// Of each element, where the method draws by them.
    probabilities: Option<Vec<f64>>,
    /// The sum of the squares before anything is dropped.
    squares: f64,
}

impl<'a> Change<'a> {
    #[inline(always)]
    fn read<R: Rounding>(model: &'a Prepared, group: &Group, range: &Range<usize>, base: &[f32]) -> Result<Self> {
        let vector = TaskVector { group, input: model.input };
        let delta = group.delta::<R>(model.input, base, range)?;
        let squares = dot(&delta, &delta);
        let mut kept = vec![true; base.len()];
        model.keep.fill(&vector, range.start, &delta, &mut kept)?;
        let probabilities = match (model.scale, &model.keep) {
            (Scale::DivideByProbability, Keep::ByRank(mask)) => {
                Some(mask.probabilities(&vector, range.start, range.len())?)
            }
            _ => None,
        };
        Ok(Self { model, delta, kept, probabilities, squares })
    }

    /// Drops, rescales and weights a block, in place.
    #[inline(always)]
    fn weigh<R: Rounding>(&mut self, block: &Range<usize>) {
        let delta = &mut self.delta[block.clone()];
        for (delta, kept) in delta.iter_mut().zip(&self.kept[block.clone()]) {
            *delta = if *kept { *delta } else { 0.0 };
        }
        match (self.model.scale, &self.probabilities) {
            (Scale::Divide(density), _) => delta.iter_mut().for_each(|delta| *delta = R::round(*delta / density)),
            (Scale::Multiply(ratio), _) => delta.iter_mut().for_each(|delta| *delta = R::round(*delta * ratio)),
            (Scale::DivideByProbability, Some(probabilities)) => {
                let probabilities = &probabilities[block.clone()];
                delta.iter_mut().zip(probabilities).for_each(|(delta, p)| *delta = R::round(*delta / *p as f32));
            }
            (Scale::None | Scale::DivideByProbability, _) => {}
        }
        let weight = self.model.weight;
        delta.iter_mut().for_each(|delta| *delta = R::round(*delta * weight));
    }
}

/// How many are true.
#[inline(always)]
fn count(kept: &[bool]) -> u64 {
    // Sums of bytes, which 128 of them cannot overflow, fill vectors.
    kept.chunks(128).map(|part| u64::from(part.iter().map(|&kept| u8::from(kept)).sum::<u8>())).sum()
}

#[cfg(test)]
pub(super) mod tests;
