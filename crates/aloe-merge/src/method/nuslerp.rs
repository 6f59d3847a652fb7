//! Spherical interpolation of two models, or of their task vectors where there is a base, at `t = w_2 / (w_1 + w_2)`: the tensor as one
//! vector, or (with `nuslerp_flatten: false`) row by row, or column by column with `nuslerp_row_wise`, mergekit's name for columns.
//!
//! Source: mergekit 0.1.5, `merge_methods/nuslerp.py`: every operation is rounded to the merge dtype; vectors whose cosine is 1 in that dtype
//! are interpolated on the line. Weights that sum to less than 1e-6 mean t = 1/2.
//!
//! Parameters: `weight` per model (must be given); `nuslerp_flatten` (on), `nuslerp_row_wise` (off; without effect on a flattened tensor).
//! The order of the models does not matter but to rounding.

use super::Kernel;
use crate::Result;
use crate::config::Parameter;
use crate::fibres::{Fibres, sums};
use crate::group::Group;
use crate::scratch::Scratch;
use crate::stats::TileSums;
use crate::tile::Rounding;
use std::marker::PhantomData;

pub(super) struct Nuslerp<R> {
    inputs: [usize; 2],
    fibres: Fibres,
    t: f64,
    /// Per fibre: the factors of both vectors and what their sum is divided by.
    arcs: Vec<Arc>,
    rounding: PhantomData<fn() -> R>,
}

#[derive(Clone, Copy)]
enum Arc {
    Line,
    Circle { first: f32, second: f32, sine: f32 },
}

pub(super) fn prepare<R: Rounding>(group: &Group) -> Result<Nuslerp<R>> {
    let others = group.others();
    let inputs = [others[0], others[1]];
    let parameters = &group.parameters;
    let weights = inputs.map(|input| parameters.input(input, Parameter::Weight));
    let total = weights[0] + weights[1];
    let t = if total.abs() < 1e-6 { 0.5 } else { weights[1] / total };
    let fibres = match (parameters.flag(Parameter::NuslerpFlatten), parameters.flag(Parameter::NuslerpRowWise)) {
        (true, _) => Fibres::Whole,
        (false, _) if group.shape.len() < 2 => Fibres::Whole,
        (false, false) => Fibres::Rows(group.n_cols()),
        (false, true) => Fibres::Columns(group.n_cols()),
    };
    let vectors = |range: &std::ops::Range<usize>| -> Result<[Scratch; 2]> {
        let base = group.read_base(range)?;
        Ok([group.delta::<R>(inputs[0], &base, range)?, group.delta::<R>(inputs[1], &base, range)?])
    };
    let squares = sums::<f32>(group, fibres, |range| {
        let square = |values: Scratch| values.iter().map(|value| value * value).collect();
        Ok(vectors(range)?.map(square).into())
    })?;
    let norm = |square: f64| R::round(square.sqrt() as f32).max(R::round(1e-7));
    let norms: Vec<Vec<f32>> = squares.iter().map(|fibres| fibres.iter().map(|s| norm(*s)).collect()).collect();
    let cosines = sums::<f32>(group, fibres, |range| {
        let [first, second] = vectors(range)?;
        let products = range.clone().zip(first.iter().zip(&second)).map(|(element, (a, b))| {
            let fibre = fibres.of(element);
            R::round(R::round(a / norms[0][fibre]) * R::round(b / norms[1][fibre]))
        });
        Ok(vec![products.collect()])
    })?;
    let arcs = cosines.first().map_or(Vec::new(), |all| all.iter().map(|cosine| arc::<R>(t, *cosine)).collect());
    Ok(Nuslerp { inputs, fibres, t, arcs, rounding: PhantomData })
}

fn arc<R: Rounding>(t: f64, cosine: f64) -> Arc {
    let cosine = R::round(cosine as f32).clamp(-1.0, 1.0);
    if f64::from(R::round(1.0 - R::round(cosine * cosine))) <= 1e-16 {
        return Arc::Line;
    }
    let theta = R::round(cosine.acos());
    let part = |share: f64| R::round(R::round(share as f32 * theta).sin());
    Arc::Circle { first: part(1.0 - t), second: part(t), sine: R::round(theta.sin()) }
}

impl<R: Rounding> Kernel for Nuslerp<R> {
    fn tile(&self, group: &Group, start: usize, out: &mut [f32]) -> Result<Option<TileSums>> {
        let range = start..start + out.len();
        let base = group.read_base(&range)?;
        let deltas = self.inputs.iter().map(|&input| group.delta::<R>(input, &base, &range));
        let deltas = deltas.collect::<Result<Vec<_>>>()?;
        for (at, out) in out.iter_mut().enumerate() {
            let (a, b) = (deltas[0][at], deltas[1][at]);
            let value = match self.arcs[self.fibres.of(start + at)] {
                Arc::Line => R::round(R::round((1.0 - self.t) as f32 * a) + R::round(self.t as f32 * b)),
                Arc::Circle { first, second, sine } => {
                    R::round(R::round(R::round(first * a) + R::round(second * b)) / sine)
                }
            };
            *out = if group.base.is_some() { R::round(base[at] + value) } else { value };
        }
        Ok(group.base.map(|_| TileSums::of(&base, &deltas)))
    }
}
