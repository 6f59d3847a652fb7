//! SCE: select the elements whose changes vary most between the models, calculate each model's weight from the energy of what was
//! selected, erase changes against the elected sign.
//!
//! Source: arXiv 2408.07990; mergekit 0.1.5, `merge_methods/sce.py`: `int(select_topk * n)` of the `n` elements of non-zero variance; weights
//! are mean squares over their sum (equal below 1e-6); every operation is rounded to the merge dtype. Elements of equal variance at the
//! threshold are taken from the lowest index on, which torch leaves open.
//!
//! Parameters: `select_topk` (1: all), `int8_mask` (no effect). The order of the models does not matter but to rounding.

use super::Kernel;
use crate::Result;
use crate::config::Parameter;
use crate::group::Group;
use crate::scratch::Scratch;
use crate::sparsify::Top;
use crate::stats::TileSums;
use crate::tile::Rounding;
use std::marker::PhantomData;
use std::ops::Range;

pub(super) struct Sce<R> {
    /// The elements that are merged; none means all.
    selected: Option<Top>,
    weights: Vec<f32>,
    rounding: PhantomData<fn() -> R>,
}

pub(super) fn prepare<R: Rounding>(group: &Group) -> Result<Sce<R>> {
    let share = group.parameters.number(Parameter::SelectTopk);
    let selected = if share < 1.0 { Some(select::<R>(group, share)?) } else { None };
    let mut sce = Sce { selected, weights: Vec::new(), rounding: PhantomData };
    let parts = group.fold(|range| {
        let (_, deltas) = sce.selected_deltas(group, &range)?;
        let square = |delta: &Scratch| delta.iter().map(|value| R::round(value * value)).collect::<Vec<f32>>();
        Ok(deltas.iter().map(|delta| crate::tile::sum(&square(delta))).collect::<Vec<f64>>())
    })?;
    let mut energies = vec![0.0f64; group.others().len()];
    parts.iter().for_each(|part| energies.iter_mut().zip(part).for_each(|(sum, value)| *sum += value));
    let means: Vec<f32> = energies.iter().map(|sum| R::round((sum / group.n_elements() as f64) as f32)).collect();
    sce.weights = weights::<R>(&means);
    Ok(sce)
}

fn weights<R: Rounding>(means: &[f32]) -> Vec<f32> {
    let total = R::round(means.iter().sum::<f32>());
    match total.abs() < 1e-6 {
        true => vec![R::round(1.0 / means.len() as f32); means.len()],
        false => means.iter().map(|mean| R::round(mean / total)).collect(),
    }
}

fn deltas<R: Rounding>(group: &Group, range: &Range<usize>) -> Result<(Scratch, Vec<Scratch>)> {
    let base = group.read_base(range)?;
    let deltas = group.others().into_iter().map(|input| group.delta::<R>(input, &base, range));
    let deltas = deltas.collect::<Result<Vec<_>>>()?;
    Ok((base, deltas))
}

/// The variance between the models, per element.
fn variances<R: Rounding>(deltas: &[Scratch]) -> Scratch {
    let n = deltas.len() as f64;
    (0..deltas.first().map_or(0, |delta| delta.len()))
        .map(|at| {
            let mean = deltas.iter().map(|delta| f64::from(delta[at])).sum::<f64>() / n;
            let square = |delta: &Scratch| (f64::from(delta[at]) - mean).powi(2);
            R::round((deltas.iter().map(square).sum::<f64>() / n) as f32)
        })
        .collect()
}

fn select<R: Rounding>(group: &Group, share: f64) -> Result<Top> {
    let read = |range: &Range<usize>| Ok(variances::<R>(&deltas::<R>(group, range)?.1));
    let nonzero = group.fold(|range| Ok(read(&range)?.iter().filter(|v| **v != 0.0).count()))?;
    // The count is an integer tensor there, and its product with a number is float32.
    let k = (nonzero.iter().sum::<usize>() as f32 * share as f32) as usize;
    Top::of(group, k, read)
}

impl<R: Rounding> Sce<R> {
    /// The base and the changes, zero where not selected.
    fn selected_deltas(&self, group: &Group, range: &Range<usize>) -> Result<(Scratch, Vec<Scratch>)> {
        let (base, mut deltas) = deltas::<R>(group, range)?;
        if let Some(top) = &self.selected {
            let mut kept = vec![false; range.len()];
            top.fill(range.start, &variances::<R>(&deltas), &mut kept);
            for delta in &mut deltas {
                delta.iter_mut().zip(&kept).filter(|(_, kept)| !**kept).for_each(|(value, _)| *value = 0.0);
            }
        }
        Ok((base, deltas))
    }
}

impl<R: Rounding> Kernel for Sce<R> {
    fn tile(&self, group: &Group, start: usize, out: &mut [f32]) -> Result<Option<TileSums>> {
        let range = start..start + out.len();
        let (base, selected) = self.selected_deltas(group, &range)?;
        for (at, out) in out.iter_mut().enumerate() {
            let vote = R::round(selected.iter().map(|delta| delta[at]).sum::<f32>());
            let (mut merged, mut divisor) = (0.0f32, 0.0f32);
            for (delta, weight) in selected.iter().zip(&self.weights) {
                if delta[at] != 0.0 && (delta[at] > 0.0) == (vote >= 0.0) {
                    merged += R::round(delta[at] * weight);
                    divisor += weight;
                }
            }
            let change = R::round(R::round(merged) / R::round(divisor).max(R::round(1e-6)));
            *out = R::round(base[at] + change);
        }
        let (_, whole) = deltas::<R>(group, &range)?;
        let mut sums = TileSums::of(&base, &whole);
        (sums.n_contested, sums.n_agreeing) = (0, 0);
        sums.compare(selected.iter().map(|delta| &delta[..]), base.len());
        for (kept, delta) in sums.n_kept.iter_mut().zip(&selected) {
            *kept = delta.iter().filter(|value| **value != 0.0).count() as u64;
        }
        Ok(Some(sums))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tile::InF32;

    /// Changes (1, 3) and (1, -1): variances 0 and 4. Mean squares 3 and 1 weigh 3/4 and 1/4; where all is zero both weigh 1/2.
    #[test]
    fn variances_and_weights_by_hand() {
        let deltas = [[1.0, 3.0], [1.0, -1.0]].map(Scratch::from_iter);
        assert_eq!(variances::<InF32>(&deltas)[..], [0.0, 4.0]);
        assert_eq!(weights::<InF32>(&[3.0, 1.0]), [0.75, 0.25]);
        assert_eq!(weights::<InF32>(&[0.0, 0.0]), [0.5, 0.5]);
    }
}
