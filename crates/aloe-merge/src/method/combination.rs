//! Methods whose result is a linear combination of the inputs (or of their differences to the base) with coefficients that depend on dot
//! products alone: one pass for the products, a little algebra in f64, one pass to combine. `multislerp` and `karcher` are such.

use super::Kernel;
use crate::Result;
use crate::group::Group;
use crate::stats::TileSums;
use crate::tile::{InF32, round_to};

/// `base + sum(c_i x_i)`, rounded once.
pub(super) struct Combination {
    pub(super) inputs: Vec<usize>,
    pub(super) coefficients: Vec<f64>,
}

/// The dot products of the inputs, less the base where there is one, in f32.
pub(super) fn products(group: &Group, inputs: &[usize]) -> Result<Vec<Vec<f64>>> {
    group.gram(|range| {
        let base = group.read_base(range)?;
        inputs.iter().map(|&input| group.delta::<InF32>(input, &base, range)).collect()
    })
}

/// `x^T G y`: the dot product of two combinations.
pub(super) fn inner(gram: &[Vec<f64>], x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(gram).map(|(x, row)| x * row.iter().zip(y).map(|(g, y)| g * y).sum::<f64>()).sum()
}

impl Kernel for Combination {
    fn tile(&self, group: &Group, start: usize, out: &mut [f32]) -> Result<Option<TileSums>> {
        let range = start..start + out.len();
        let base = group.read_base(&range)?;
        let mut deltas = Vec::with_capacity(self.inputs.len());
        for &input in &self.inputs {
            deltas.push(group.delta::<InF32>(input, &base, &range)?);
        }
        for (at, out) in out.iter_mut().enumerate() {
            let sum: f64 = self.coefficients.iter().zip(&deltas).map(|(c, delta)| c * f64::from(delta[at])).sum();
            *out = round_to(group.dtype, (f64::from(base[at]) + sum) as f32);
        }
        Ok(group.base.map(|_| TileSums::of(&base, &deltas)))
    }
}
