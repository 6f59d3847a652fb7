//! bf16 copies of f32 weights that are being trained: each number is rounded up or down by a threshold of its own.
//!
//! Rounding to nearest would hide the training from the forward pass: a step of AdamW moves a weight by about the learning rate, a bf16
//! number of size 0.1 lies 5e-4 from the next, so at 2e-5 hardly any copy changes for dozens of steps while the masters move. Here the
//! share of weights rounded up equals the share of the gap that the masters have covered, so that sums over a row follow the masters from
//! the first step on. A number that bf16 holds exactly stays itself: a model that starts from bf16 weights starts with their very numbers.
//!
//! The thresholds are fixed (a golden-ratio sequence over the tensor's elements), not drawn anew: a copy depends on the master and its
//! place alone, so that a resumed run has the same copies, and does not flicker from step to step. What PyTorch's autocast does
//! (to nearest, each step) has the dead zone; stochastic rounding as of Gupta et al. 2015 (arXiv 1502.02551) draws anew.

use crate::simd::{Kernel, Simd};

/// `value` rounded to bf16, up where the part of the gap above it that it covers exceeds the threshold of place `index`.
#[inline(always)]
pub(crate) fn dithered(value: f32, index: u32) -> f32 {
    // 2^32 / golden ratio: its multiples fill the circle evenly; the upper half is a threshold in 0..2^16.
    let threshold = index.wrapping_mul(0x9e37_79b9) >> 16;
    match value.is_finite() {
        true => f32::from_bits(value.to_bits().wrapping_add(threshold) & 0xffff_0000),
        false => value,
    }
}

/// A trained tensor's values as a bf16 copy has them: what an export in bf16 holds.
pub fn rounded_by_place(values: &[f32]) -> Vec<f32> {
    values.iter().enumerate().map(|(i, &value)| dithered(value, i as u32)).collect()
}

/// Rounds `values`, which begin at place `first` of their tensor, into `out`.
pub(crate) struct DitherRow<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) first: usize,
    pub(crate) out: &'a mut [f32],
}

impl Kernel for DitherRow<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (i, (out, &value)) in self.out.iter_mut().zip(self.values).enumerate() {
            *out = dithered(value, (self.first + i) as u32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_bf16_stays_itself_and_others_go_to_a_neighbour() {
        for index in 0..4096 {
            for value in [0.0, -0.0, 1.0, -0.15625, 3.0e-5, f32::from_bits(0x7f7f_0000)] {
                let exact = f32::from_bits(value.to_bits() & 0xffff_0000);
                assert_eq!(dithered(exact, index).to_bits(), exact.to_bits());
            }
            // Between 1 and its upper neighbour 1 + 2^-7, and mirrored.
            for sign in [1.0, -1.0] {
                let found = dithered(sign * (1.0 + 0.3 / 128.0), index);
                assert!(found == sign || found == sign * (1.0 + 1.0 / 128.0), "{found}");
            }
        }
    }

    #[test]
    fn what_is_not_a_number_stays_so() {
        for bits in [0x7f80_0000u32, 0xff80_0000, 0x7fc0_0000, 0x7fff_ffff, 0xffff_ffff, 0x7f80_0001] {
            for index in [0, 1, 77, 4095] {
                let found = dithered(f32::from_bits(bits), index);
                assert_eq!((found.is_nan(), found.is_infinite()), (bits & 0x7f_ffff != 0, bits & 0x7f_ffff == 0));
            }
        }
    }

    #[test]
    fn the_mean_over_a_row_follows_the_masters_where_rounding_to_nearest_stands_still() {
        // 576 weights moved by a tenth of the gap to the next bf16 number: the nearest is the old one for all of them.
        for (row, share) in [(0, 0.1), (7, 0.1), (48_000, 0.25), (3, 0.5)] {
            let moved = 1.0 + share / 128.0;
            let sum: f32 = (0..576).map(|i| (dithered(moved, row * 576 + i) - 1.0) * 128.0).sum();
            assert!((sum / 576.0 - share).abs() < 0.01, "row {row}: {} of {share}", sum / 576.0);
        }
    }
}
