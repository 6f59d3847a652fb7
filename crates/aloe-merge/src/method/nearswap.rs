//! Steps from the base `a` towards the other model `b` by at most about `t` per element: `w b + (1 - w) a` with
//! `w = min(1, t / |a - b|)`, so that elements closer than `t` are swapped.
//!
//! Source: mergekit 0.1.5, `merge_methods/nearswap.py` (the recipe of QuartetAnemoi-70B): differences below 1e-6 count as 1e-6; every
//! operation is rounded to the merge dtype.
//!
//! Parameters: `t` (must be given). Base and model are not alike.

use super::Kernel;
use crate::Result;
use crate::config::Parameter;
use crate::group::Group;
use crate::stats::TileSums;
use crate::tile::{Rounding, with_rounding};

const SMALLEST: f32 = 1e-6;

pub(super) struct Nearswap;

impl Kernel for Nearswap {
    fn tile(&self, group: &Group, start: usize, out: &mut [f32]) -> Result<Option<TileSums>> {
        let range = start..start + out.len();
        let (base, other) = (group.read(group.base_index()?, &range)?, group.read(group.others()[0], &range)?);
        with_rounding!(group.dtype, step(group.parameters.number(Parameter::T) as f32, &base, &other, out));
        let delta = other.iter().zip(&base).map(|(b, a)| b - a).collect();
        Ok(Some(TileSums::of(&base, &[delta])))
    }
}

fn step<R: Rounding>(t: f32, base: &[f32], other: &[f32], out: &mut [f32]) {
    for ((out, a), b) in out.iter_mut().zip(base).zip(other) {
        let distance = R::round(a - b).abs().max(R::round(SMALLEST));
        // torch divides a number by a tensor as the tensor's reciprocal times the number.
        let weight = R::round(R::round(1.0 / distance) * t).clamp(0.0, 1.0);
        *out = R::round(R::round(weight * b) + R::round(R::round(1.0 - weight) * a));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tile::InF32;

    /// t = 1/2: 1 and 3 are 2 apart, a quarter of the way is 1.5; 1 and 1.25 are near, so swapped; equal stays equal.
    #[test]
    fn far_elements_step_by_t_and_near_ones_are_swapped() {
        let mut out = [0.0; 4];
        step::<InF32>(0.5, &[1.0, 1.0, -2.0, 7.0], &[3.0, 1.25, -6.0, 7.0], &mut out);
        assert_eq!(out, [1.5, 1.25, -2.5, 7.0]);
    }

    /// The nearest f32 to 1/41 times 41 is 1 - 2^-24, where 41/41 is 1: torch (CPU, 2.15) gives 0.99999994 for `41.0 / tensor([41.0])`.
    #[test]
    fn the_weight_is_a_reciprocal_times_t_as_in_torch() {
        let mut out = [0.0];
        step::<InF32>(41.0, &[0.0], &[41.0], &mut out);
        assert_eq!(out, [0.999_999_94f32 * 41.0]);
        assert_ne!(out, [41.0]);
    }
}
