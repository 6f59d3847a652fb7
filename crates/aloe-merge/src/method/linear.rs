//! The weighted mean over all models: `sum(w_i x_i) / sum(w_i)`, undivided with `normalize: false`.
//!
//! Source: arXiv 2203.05482; mergekit 0.1.5, `merge_methods/linear.py`: the inputs are read in the merge dtype, multiplied and added in f32
//! in the order of the configuration, divided by the sum of the weights, and rounded once. Where the configuration names a base model, the
//! figures are those of all models against it; no number of the result depends on that.

use super::Kernel;
use crate::Result;
use crate::config::Parameter;
use crate::group::Group;
use crate::stats::TileSums;
use crate::tile::round_to;

pub(super) struct Linear {
    weights: Vec<f32>,
    /// The sum of the weights, where it divides.
    total: Option<f32>,
}

impl Linear {
    pub(super) fn prepare(group: &Group) -> Self {
        let weights: Vec<f32> =
            (0..group.sources.len()).map(|input| group.parameters.input(input, Parameter::Weight) as f32).collect();
        let total = group.parameters.flag(Parameter::Normalize).then(|| weights.iter().sum());
        Self { weights, total }
    }
}

impl Kernel for Linear {
    fn tile(&self, group: &Group, start: usize, out: &mut [f32]) -> Result<Option<TileSums>> {
        let range = start..start + out.len();
        let mut values = vec![0.0f32; out.len()];
        let base = group.reference.map(|base| group.read(base, &range)).transpose()?;
        let mut deltas = Vec::new();
        out.fill(0.0);
        for (source, weight) in group.sources.iter().zip(&self.weights) {
            source.read(start, group.dtype, &mut values)?;
            // torch's addcmul is compiled to a fused multiply-add; the product is exact in f64, so this rounds once as well.
            let weight = f64::from(*weight);
            out.iter_mut()
                .zip(&values)
                .for_each(|(sum, value)| *sum = (f64::from(*sum) + weight * f64::from(*value)) as f32);
            let delta = |base: &Vec<f32>| values.iter().zip(base).map(|(value, base)| value - base).collect();
            deltas.extend(base.as_ref().map(delta));
        }
        for value in out.iter_mut() {
            *value = round_to(group.dtype, self.total.map_or(*value, |total| *value / total));
        }
        Ok(base.map(|base| TileSums::of(&base, &deltas)))
    }
}
