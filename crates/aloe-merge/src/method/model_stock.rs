//! Model Stock: between the base and the mean of the models, at the place that the angle between their task vectors says:
//! `t = N cos / (1 + (N - 1) cos)`, result `t mean + (1 - t) base`. `filter_wise` gives each row its own angle.
//!
//! Source: arXiv 2403.19522; mergekit 0.1.5, `merge_methods/model_stock.py`: `cos` is the mean over pairs, products of norms count as at
//! least 1e-6, a denominator below 1e-6 keeps the base; every operation is rounded to the merge dtype. In float32 ours is rounded at the end
//! alone: where `t` lies outside of 0 to 1 the terms are larger than their sum, and two results with an error each are 1e-6 apart.
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
    places: Vec<f64>,
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
            let norms: Vec<f64> = totals[..n].iter().map(|sums| R::round_wide(sums[fibre].sqrt())).collect();
            let products: Vec<f64> = totals[n..].iter().map(|sums| R::round_wide(sums[fibre])).collect();
            place::<R>(&norms, &products)
        })
        .collect();
    Ok(ModelStock { fibres, places, rounding: PhantomData })
}

/// `t` from the norms of the offsets and the products of all pairs.
fn place<R: Rounding>(norms: &[f64], products: &[f64]) -> f64 {
    let round = R::round_wide;
    let mut cosines = Vec::with_capacity(products.len());
    for (first, a) in norms.iter().enumerate() {
        for b in &norms[first + 1..] {
            let scale = round(a * b).max(round(f64::from(1e-6f32)));
            cosines.push(round(products[cosines.len()] / scale).clamp(-1.0, 1.0));
        }
    }
    let cosine = round(cosines.iter().sum::<f64>() / cosines.len() as f64);
    let n = norms.len() as f64;
    let denominator = round(1.0 + round((n - 1.0) * cosine));
    if denominator.abs() < 1e-6 { 0.0 } else { round(round(n * cosine) / denominator) }
}

impl<R: Rounding> Kernel for ModelStock<R> {
    fn tile(&self, group: &Group, start: usize, out: &mut [f32]) -> Result<Option<TileSums>> {
        let range = start..start + out.len();
        let base = group.read_base(&range)?;
        let round = R::round_wide;
        let inputs = group.others();
        let models = inputs.iter().map(|&input| group.read(input, &range)).collect::<Result<Vec<_>>>()?;
        for (at, out) in out.iter_mut().enumerate() {
            let t = self.places[self.fibres.of(start + at)];
            let sum = models.iter().fold(0.0, |sum, model| round(sum + f64::from(model[at])));
            let average = round(sum / models.len() as f64);
            *out = round(round(t * average) + round(round(1.0 - t) * f64::from(base[at]))) as f32;
        }
        let deltas: Vec<Scratch> =
            models.iter().map(|model| model.iter().zip(&base).map(|(x, base)| x - base).collect()).collect();
        Ok(Some(TileSums::of(&base, &deltas)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Method;
    use crate::merge_group;
    use crate::method::tests::group_of;
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

    /// Task vectors that point apart: `t` is about -2, and the terms of the sum are several times the result. Against the formula in float64.
    #[test]
    fn in_float32_nothing_is_lost_where_the_models_point_apart() {
        let n = 512;
        let noise = |seed: u64| {
            let rng = aloe_record::CounterRng::new(seed, "model_stock", 0);
            (0..n).map(|at| rng.at(at as u64) as f32 / u32::MAX as f32 - 0.5).collect::<Vec<f32>>()
        };
        let (base, one, two) = (noise(0), noise(1), noise(2));
        let model = |change: &dyn Fn(usize) -> f32| (0..n).map(|at| base[at] + 0.1 * change(at)).collect::<Vec<f32>>();
        let models = [model(&|at| one[at]), model(&|at| two[at]), model(&|at| -0.5 * (one[at] + two[at]))];
        let group = group_of(Method::ModelStock, &[&base, &models[0], &models[1], &models[2]], vec![n], &[]);
        let found = merge_group(Method::ModelStock, &group).unwrap().0;
        let wide = |values: &[f32]| values.iter().map(|value| f64::from(*value)).collect::<Vec<f64>>();
        let (base, models) = (wide(&base), models.map(|model| wide(&model)));
        let offset = |model: usize| models[model].iter().zip(&base).map(|(x, base)| x - base).collect::<Vec<f64>>();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let cosine = |a: usize, b: usize| {
            let (a, b) = (offset(a), offset(b));
            dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt()
        };
        let mean = (cosine(0, 1) + cosine(0, 2) + cosine(1, 2)) / 3.0;
        let t = 3.0 * mean / (1.0 + 2.0 * mean);
        assert!(t < -2.0, "{t}");
        let size = (dot(&base, &base) / n as f64).sqrt();
        for (at, found) in found.iter().enumerate() {
            let exact = t * (models[0][at] + models[1][at] + models[2][at]) / 3.0 + (1.0 - t) * base[at];
            let far = (f64::from(*found) - exact).abs() / exact.abs().max(size);
            assert!(far < 1.2e-7, "{at}: {far:.2e}");
        }
    }
}
