//! Spherical interpolation between the base `a` (t = 0) and the other model `b` (t = 1), each tensor as one vector:
//! `sin((1-t) theta)/sin(theta) a + sin(t theta)/sin(theta) b`, theta being the angle between them.
//!
//! Source: mergekit 0.1.5, `merge_methods/slerp.py`: norms of at most 1e-8 count as 1; beyond |cos| = 0.9995 (the usual case for two
//! fine-tunes of one base) the interpolation is linear. Products are rounded to f32, the result to the merge dtype.
//!
//! Parameters: `t` (must be given; a gradient gives each layer its own). Base and model are not alike: exchanged, they give `1 - t`.

use super::Kernel;
use crate::Result;
use crate::config::Parameter;
use crate::group::Group;
use crate::scratch::Scratch;
use crate::stats::TileSums;
use crate::tile::{Rounding, with_rounding};
use aloe_tensor::Isa;

const DOT_THRESHOLD: f64 = 0.9995;
const SMALLEST_NORM: f64 = 1e-8;

pub(super) struct Slerp {
    base: usize,
    other: usize,
    of_base: f32,
    of_other: f32,
    /// Square of the base's norm, known before the first tile.
    base_squares: f64,
}

impl Slerp {
    pub(super) fn prepare(group: &Group) -> Result<Self> {
        let base = group.base_index()?;
        let other = group.others()[0];
        let gram = group.gram(|range| Ok(vec![group.read(base, range)?, group.read(other, range)?]))?;
        let norm = |square: f64| Some(square.sqrt()).filter(|norm| *norm > SMALLEST_NORM).unwrap_or(1.0);
        let cosine = gram.first().map_or(0.0, |row| row[1] / (norm(row[0]) * norm(gram[1][1]))).clamp(-1.0, 1.0);
        let (of_base, of_other) = coefficients(group.parameters.number(Parameter::T), cosine);
        let base_squares = gram.first().map_or(0.0, |row| row[0]);
        Ok(Self { base, other, of_base, of_other, base_squares })
    }
}

/// What the base and the other are multiplied by.
fn coefficients(t: f64, cosine: f64) -> (f32, f32) {
    if cosine.abs() > DOT_THRESHOLD {
        return ((1.0 - t) as f32, t as f32);
    }
    let theta = cosine.acos();
    ((((1.0 - t) * theta).sin() / theta.sin()) as f32, ((t * theta).sin() / theta.sin()) as f32)
}

/// The point on the arc, and the other's difference to the base.
fn arc<R: Rounding>(slerp: &Slerp, (base, other): (&[f32], &[f32]), out: &mut [f32], delta: &mut [f32]) {
    Isa::wide(
        #[inline(always)]
        || {
            for (((out, delta), a), b) in out.iter_mut().zip(delta).zip(base).zip(other) {
                *out = R::round(slerp.of_base * a + slerp.of_other * b);
                *delta = b - a;
            }
        },
    );
}

impl Kernel for Slerp {
    fn tile(&self, group: &Group, start: usize, out: &mut [f32]) -> Result<Option<TileSums>> {
        let range = start..start + out.len();
        let (base, other) = (group.read(self.base, &range)?, group.read(self.other, &range)?);
        let mut delta = Scratch::of(out.len());
        with_rounding!(group.dtype, arc(self, (&base, &other), out, &mut delta));
        let mut sums = TileSums::of_deltas(out.len(), &[delta]);
        // The sum over the tensor stands with its first tile: no tile is multiplied with itself twice.
        sums.base_squares = if start == 0 { self.base_squares } else { 0.0 };
        Ok(Some(sums))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A right angle: at t = 1/3 the coefficients are sin 60 and sin 30 degrees; past the threshold they are those of a line.
    #[test]
    fn a_third_of_a_right_angle_is_worked_by_hand() {
        let (a, b) = coefficients(1.0 / 3.0, 0.0);
        assert!((a - 0.866_025_4).abs() < 1e-7 && (b - 0.5).abs() < 1e-7, "{a} {b}");
        assert_eq!(coefficients(0.25, 0.9996), (0.75, 0.25));
        assert_eq!(coefficients(0.25, -1.0), (0.75, 0.25));
    }
}
