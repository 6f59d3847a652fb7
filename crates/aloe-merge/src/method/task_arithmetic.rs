//! Task arithmetic and its kin on one tensor: differences to the base, sparsified and rescaled, weighted, summed; with an election, only
//! what agrees with the elected sign. `task_arithmetic` (arXiv 2212.04089), `ties` (2306.01708), `dare_*` (2311.03099), `breadcrumbs*`
//! (2312.06795), `della*` (2406.11617) differ in what they keep (`sparsify`) and whether they elect.
//!
//! Source: mergekit 0.1.5, `generalized_task_arithmetic.py`, whose order of operations and rounding this follows: every call of `round` is
//! one torch operation in the merge dtype; sums over models run in f32 and are rounded once.

use super::Kernel;
use crate::Result;
use crate::config::{Method, Parameter};
use crate::group::Group;
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

impl TaskArithmetic {
    pub(super) fn prepare(method: Method, group: &Group) -> Result<Self> {
        let mut models = Vec::new();
        for input in group.others() {
            let vector = TaskVector { group, input };
            let keep = Keep::decide(method.sparsification(), &vector)?;
            let scale = sparsify::scale(&vector, &keep, group.parameters.rescale())?;
            let weight = round_to(group.dtype, group.parameters.input(input, Parameter::Weight) as f32);
            models.push(Prepared { input, keep, scale, weight });
        }
        let parameters = &group.parameters;
        Ok(Self {
            elects: method.elects(),
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

#[inline(always)]
fn mix<R: Rounding>(method: &TaskArithmetic, group: &Group, start: usize, out: &mut [f32]) -> Result<TileSums> {
    let range = start..start + out.len();
    let mut sums = TileSums::new(method.models.len());
    let base = group.read_base(&range)?;
    sums.base_squares = dot(&base, &base);
    let mut weighted: Vec<Vec<f32>> = Vec::with_capacity(method.models.len());
    for (place, model) in method.models.iter().enumerate() {
        weighted.push(weighted_delta::<R>(model, group, &range, &base, &mut sums, place)?);
    }
    sums.compare(&weighted);
    let (mixed, divisor) = if method.elects { elected::<R>(method, &weighted) } else { summed::<R>(method, &weighted) };
    let lambda = method.lambda as f32;
    for (((out, base), mixed), divisor) in out.iter_mut().zip(&base).zip(mixed).zip(divisor) {
        let mut change = R::round(mixed);
        if method.normalize {
            change = R::round(change / divisor);
        }
        if method.lambda != 1.0 {
            change = R::round(change * lambda);
        }
        *out = R::round(base + change);
    }
    Ok(sums)
}

/// The sum of what agrees with the elected sign, and the sum of its weights. A vote of exactly zero counts as positive, in mergekit and
/// here (the TIES paper asks the whole tensor); a change of zero never agrees.
#[inline(always)]
fn elected<R: Rounding>(method: &TaskArithmetic, weighted: &[Vec<f32>]) -> (Vec<f32>, Vec<f32>) {
    let n = weighted.first().map_or(0, Vec::len);
    let mut votes = vec![0.0f32; n];
    for delta in weighted {
        votes.iter_mut().zip(delta).for_each(|(vote, delta)| *vote += delta);
    }
    votes.iter_mut().for_each(|vote| *vote = R::round(*vote));
    let (mut mixed, mut divisor) = (vec![0.0f32; n], vec![0.0f32; n]);
    for (model, delta) in method.models.iter().zip(weighted) {
        let weight = model.weight.to_bits();
        let sums = mixed.iter_mut().zip(&mut divisor);
        for ((mixed, divisor), (delta, vote)) in sums.zip(delta.iter().zip(&votes)) {
            // Masks of bits: a branch that half the elements take would cost more than both sides.
            let agrees = ((*delta > 0.0) & (*vote >= 0.0)) | ((*delta < 0.0) & (*vote < 0.0));
            let mask = u32::from(agrees).wrapping_neg();
            *mixed += f32::from_bits(delta.to_bits() & mask);
            *divisor += f32::from_bits(weight & mask);
        }
    }
    for divisor in &mut divisor {
        let sum = R::round(*divisor);
        *divisor = if sum == 0.0 { 1.0 } else { sum };
    }
    (mixed, divisor)
}

/// The sum of everything, and that of the weights.
#[inline(always)]
fn summed<R: Rounding>(method: &TaskArithmetic, weighted: &[Vec<f32>]) -> (Vec<f32>, Vec<f32>) {
    let n = weighted.first().map_or(0, Vec::len);
    let mut mixed = vec![0.0f32; n];
    for delta in weighted {
        mixed.iter_mut().zip(delta).for_each(|(sum, delta)| *sum += delta);
    }
    let total = R::round(method.models.iter().map(|model| model.weight).sum::<f32>());
    (mixed, vec![if total.abs() < 1e-8 { 1.0 } else { total }; n])
}

/// Difference, sparsify and rescale, weight.
#[inline(always)]
fn weighted_delta<R: Rounding>(
    model: &Prepared,
    group: &Group,
    range: &Range<usize>,
    base: &[f32],
    sums: &mut TileSums,
    place: usize,
) -> Result<Vec<f32>> {
    let vector = TaskVector { group, input: model.input };
    let mut delta = group.delta::<R>(model.input, base, range)?;
    sums.squares[place] = dot(&delta, &delta);
    let mut kept = vec![true; base.len()];
    model.keep.fill(&vector, range.start, &delta, &mut kept)?;
    sums.n_kept[place] = kept.iter().map(|&kept| u64::from(kept)).sum();
    delta.iter_mut().zip(&kept).for_each(|(delta, kept)| *delta = if *kept { *delta } else { 0.0 });
    match (model.scale, &model.keep) {
        (Scale::Divide(density), _) => delta.iter_mut().for_each(|delta| *delta = R::round(*delta / density)),
        (Scale::Multiply(ratio), _) => delta.iter_mut().for_each(|delta| *delta = R::round(*delta * ratio)),
        (Scale::DivideByProbability, Keep::ByRank(mask)) => {
            let probabilities = mask.probabilities(&vector, range.start, range.len())?;
            delta.iter_mut().zip(probabilities).for_each(|(delta, p)| *delta = R::round(*delta / p as f32));
        }
        (Scale::None | Scale::DivideByProbability, _) => {}
    }
    delta.iter_mut().for_each(|delta| *delta = R::round(*delta * model.weight));
    Ok(delta)
}

#[cfg(test)]
mod tests;
