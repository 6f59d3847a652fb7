//! One row of logits as a distribution, on the calling thread: rows run in parallel by the caller's loop.

use super::rows::LogSumExp;
use crate::Device;
use crate::simd::{Kernel, LANES, Simd, exp, sum_lanes};

/// `ln(sum(exp(row)))` of a row that is not empty.
pub fn log_sum_exp(device: &Device, row: &[f32]) -> f64 {
    assert!(!row.is_empty(), "the logarithm of an empty sum");
    // SAFETY: all numbers of the row.
    let (max, sum) = unsafe { device.isa().run(LogSumExp { row: row.as_ptr(), n: row.len() }) };
    max as f64 + sum.ln()
}

/// Log-probabilities of a row, in place: `row - lse`.
pub fn subtract_lse(device: &Device, row: &mut [f32], lse: f64) {
    // SAFETY: the slice is valid by itself.
    unsafe { device.isa().run(SubtractLse { row, lse }) }
}

/// In f64, which loses nothing of a large logit.
struct SubtractLse<'a> {
    row: &'a mut [f32],
    lse: f64,
}

impl Kernel for SubtractLse<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for logit in self.row {
            *logit = (*logit as f64 - self.lse) as f32;
        }
    }
}

/// Number of the floors of [`masses`].
pub const FLOORS: usize = 16;

/// The floors of [`masses`]: `top - width`, `top - 2 width`, ..., the last minus infinity.
pub fn floors(top: f32, width: f32) -> [f32; FLOORS] {
    std::array::from_fn(|j| if j + 1 == FLOORS { f32::NEG_INFINITY } else { top - (j + 1) as f32 * width })
}

/// Sums of `exp(logp)` over the log-probabilities at or above each floor: descending floors give rising sums.
pub fn masses(device: &Device, logps: &[f32], floors: &[f32; FLOORS]) -> [f64; FLOORS] {
    // SAFETY: all numbers of the slice.
    unsafe { device.isa().run(Masses { logps: logps.as_ptr(), n: logps.len(), floors }) }
}

struct Masses<'a> {
    logps: *const f32,
    n: usize,
    floors: &'a [f32; FLOORS],
}

impl Kernel for Masses<'_> {
    type Out = [f64; FLOORS];

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> [f64; FLOORS] {
        let mut total = [0.0f64; FLOORS];
        let mut i = 0;
        // Chains of at most 64 terms in f32, folded into f64, as in `LogSumExp`.
        while i < self.n {
            let end = (i + 64 * LANES).min(self.n);
            let mut sums = [S::splat(0.0); FLOORS];
            while i < end {
                let n = (end - i).min(LANES);
                let x = S::load_up_to(self.logps.wrapping_add(i), n);
                let mut p = exp::<S>(x);
                if n < LANES {
                    let mut lanes = [0.0f32; LANES];
                    S::store(lanes.as_mut_ptr(), p);
                    lanes[n..].fill(0.0);
                    p = S::load(lanes.as_ptr());
                }
                let mut j = 0;
                while j < FLOORS {
                    sums[j] = S::add(sums[j], S::zero_below(x, S::splat(self.floors[j]), p));
                    j += 1;
                }
                i += LANES;
            }
            let mut j = 0;
            while j < FLOORS {
                total[j] += sum_lanes::<S>(sums[j]) as f64;
                j += 1;
            }
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{devices, normal};

    #[test]
    fn masses_are_the_sums_of_the_plain_exponentials_above_each_floor() {
        for device in devices() {
            for n in [1, 15, 16, 1000, 5003] {
                let row = normal("row", &[n]).to_f32_vec().iter().map(|x| 4.0 * x).collect::<Vec<f32>>();
                let lse = log_sum_exp(&device, &row);
                let expected = row.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
                assert!((lse - expected).abs() < 1e-6, "{device:?}: {lse} for {expected}");
                let mut logps = row.clone();
                subtract_lse(&device, &mut logps, lse);
                let floors = floors(logps.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b)), 0.7);
                for (mass, floor) in masses(&device, &logps, &floors).iter().zip(floors) {
                    let expected: f64 = row
                        .iter()
                        .zip(&logps)
                        .filter(|(_, l)| **l >= floor)
                        .map(|(x, _)| (f64::from(*x) - lse).exp())
                        .sum();
                    assert!((mass - expected).abs() < 2e-6, "{device:?}, {n} above {floor}: {mass} for {expected}");
                }
            }
        }
    }
}
