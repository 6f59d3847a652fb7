//! The weighted mean over all models: `sum(w_i x_i) / sum(w_i)`, undivided with `normalize: false`.
//!
//! Source: arXiv 2203.05482; mergekit 0.1.5, `merge_methods/linear.py`: the inputs are read in the merge dtype, multiplied and added in f32
//! in the order of the configuration, divided by the sum of the weights, and rounded once. Where the configuration names a base model, the
//! figures are those of all models against it; no number of the result depends on that.
//!
//! Parameters: `weight` per model (must be given), `normalize` (on). The order of the models does not matter but to rounding.

use super::Kernel;
use crate::Result;
use crate::config::Parameter;
use crate::group::Group;
use crate::scratch::Scratch;
use crate::stats::TileSums;
use crate::tile::{Rounding, with_rounding};
use aloe_tensor::Isa;

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
        let mut values = Scratch::of(out.len());
        let base = group.reference.map(|base| group.read(base, &range)).transpose()?;
        let mut deltas = Vec::new();
        out.fill(0.0);
        for (source, weight) in group.sources.iter().zip(&self.weights) {
            source.read(start, group.dtype, &mut values)?;
            // torch's addcmul is compiled to a fused multiply-add.
            Isa::wide(
                #[inline(always)]
                || out.iter_mut().zip(&values[..]).for_each(|(sum, value)| *sum = weight.mul_add(*value, *sum)),
            );
            if let Some(base) = &base {
                let mut delta = Scratch::of(out.len());
                delta
                    .iter_mut()
                    .zip(&values[..])
                    .zip(&base[..])
                    .for_each(|((delta, value), base)| *delta = value - base);
                deltas.push(delta);
            }
        }
        with_rounding!(group.dtype, divide(out, self.total));
        Ok(base.map(|base| TileSums::of(&base, &deltas)))
    }
}

fn divide<R: Rounding>(values: &mut [f32], total: Option<f32>) {
    // Division by one changes nothing.
    let total = total.unwrap_or(1.0);
    Isa::wide(
        #[inline(always)]
        || values.iter_mut().for_each(|value| *value = R::round(*value / total)),
    );
}
