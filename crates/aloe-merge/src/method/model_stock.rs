//! Model Stock: between the base and the mean of the models, at the place that the angle between their task vectors says:
//! `t = N cos / (1 + (N - 1) cos)`, result `t mean + (1 - t) base`. `filter_wise` gives each row its own angle.
//!
//! Source: arXiv 2403.19522; mergekit 0.1.5, `merge_methods/model_stock.py`: `cos` is the mean over pairs, products of norms count as at
//! least 1e-6, a denominator below 1e-6 keeps the base; every operation is rounded to the merge dtype.
//!
//! Parameters: `filter_wise` (off). The order of the models does not matter but to rounding.

use super::Kernel;
use crate::Result;
use crate::config::Parameter;
use crate::fibres::{Fibres, sums};
use crate::group::Group;
use crate::scratch::Scratch;
use crate::stats::TileSums;
use crate::tile::Rounding;
use std::marker::PhantomData;

pub(super) struct ModelStock<R> {
    fibres: Fibres,
    /// The interpolation's place per fibre.
    places: Vec<f32>,
    rounding: PhantomData<fn() -> R>,
}

pub(super) fn prepare<R: Rounding>(group: &Group) -> Result<ModelStock<R>> {
    let by_row = group.parameters.flag(Parameter::FilterWise) && group.shape.len() > 1;
    let fibres = if by_row { Fibres::Rows(group.n_cols()) } else { Fibres::Whole };
    let inputs = group.others();
    let n = inputs.len();
    // Squares of all offsets, then products of all pairs.
    let totals = sums(group, fibres, |range| {
        let base = group.read_base(range)?;
        let offsets = inputs.iter().map(|&input| group.delta::<R>(input, &base, range));
        let offsets = offsets.collect::<Result<Vec<_>>>()?;
        let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| R::round(a * b)).collect::<Vec<f32>>();
        let mut values: Vec<Vec<f32>> =
            offsets.iter().map(|offset| offset.iter().map(|value| value * value).collect()).collect();
        for (first, a) in offsets.iter().enumerate() {
            values.extend(offsets[first + 1..].iter().map(|b| product(a, b)));
        }
        Ok(values)
    })?;
    let n_fibres = totals.first().map_or(0, Vec::len);
    let places = (0..n_fibres)
        .map(|fibre| {
            let norms: Vec<f32> = totals[..n].iter().map(|sums| R::round(sums[fibre].sqrt() as f32)).collect();
            let products: Vec<f32> = totals[n..].iter().map(|sums| R::round(sums[fibre] as f32)).collect();
            place::<R>(&norms, &products)
        })
        .collect();
    Ok(ModelStock { fibres, places, rounding: PhantomData })
}

/// `t` from the norms of the offsets and the products of all pairs.
fn place<R: Rounding>(norms: &[f32], products: &[f32]) -> f32 {
    let mut cosines = Vec::with_capacity(products.len());
    for (first, a) in norms.iter().enumerate() {
        for b in &norms[first + 1..] {
            let scale = R::round(a * b).max(R::round(1e-6));
            cosines.push(R::round(products[cosines.len()] / scale).clamp(-1.0, 1.0));
        }
    }
    let cosine = R::round(cosines.iter().sum::<f32>() / cosines.len() as f32);
    let n = norms.len() as f32;
    let denominator = R::round(1.0 + R::round((n - 1.0) * cosine));
    if denominator.abs() < 1e-6 { 0.0 } else { R::round(R::round(n * cosine) / denominator) }
}

impl<R: Rounding> Kernel for ModelStock<R> {
    fn tile(&self, group: &Group, start: usize, out: &mut [f32]) -> Result<Option<TileSums>> {
        let range = start..start + out.len();
        let base = group.read_base(&range)?;
        let inputs = group.others();
        let models = inputs.iter().map(|&input| group.read(input, &range)).collect::<Result<Vec<_>>>()?;
        for (at, out) in out.iter_mut().enumerate() {
            let t = self.places[self.fibres.of(start + at)];
            let sum = models.iter().fold(0.0, |sum, model| R::round(sum + model[at]));
            let average = R::round(sum / models.len() as f32);
            *out = R::round(R::round(t * average) + R::round(R::round(1.0 - t) * base[at]));
        }
        let deltas: Vec<Scratch> =
            models.iter().map(|model| model.iter().zip(&base).map(|(x, base)| x - base).collect()).collect();
        Ok(Some(TileSums::of(&base, &deltas)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tile::InF32;

    /// Equal task vectors (cos 1): the mean, t = 1. At right angles: the base, t = 0. Two at 60 degrees: 2 (1/2) / (1 + 1/2) = 2/3. Three
    /// with mean cosine 1/2: 3 (1/2) / (1 + 2/2) = 3/4. Two opposed (cos -1): no estimate, the base.
    #[test]
    fn the_place_follows_the_angle() {
        assert_eq!(place::<InF32>(&[2.0, 2.0], &[4.0]), 1.0);
        assert_eq!(place::<InF32>(&[2.0, 1.0], &[0.0]), 0.0);
        assert!((place::<InF32>(&[2.0, 1.0], &[1.0]) - 2.0 / 3.0).abs() < 1e-7);
        assert_eq!(place::<InF32>(&[1.0, 1.0, 1.0], &[0.25, 0.5, 0.75]), 0.75);
        assert_eq!(place::<InF32>(&[1.0, 1.0], &[-1.0]), 0.0);
    }
}
