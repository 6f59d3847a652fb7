//! One row of logits as a distribution, on all threads that have nothing else to do: where a caller's loop runs the rows in parallel,
//! each stays on its thread. Sums are of fixed parts, folded in order: the threads change no bit.

use super::rows::{ExpSum, Largest, PART};
use crate::Device;
use crate::pool::SharedMut;
use crate::simd::{Kernel, LANES, Simd, exp, sum_lanes};

/// Parts of one task.
const PARTS: usize = 8;

/// What `of` says of each part of a row, in order; `of` is given its first number and how many there are.
fn of_parts<T: Copy + Default + Send + Sync>(
    device: &Device,
    n: usize,
    of: &(dyn Fn(usize, usize) -> T + Sync),
) -> Vec<T> {
    let mut found = vec![T::default(); n.div_ceil(PART)];
    let (n_parts, out) = (found.len(), SharedMut::new(&mut found));
    device.for_each(n_parts.div_ceil(PARTS), &|task| {
        for part in task * PARTS..((task + 1) * PARTS).min(n_parts) {
            // SAFETY: each index has its own parts.
            unsafe { out.slice(part, 1)[0] = of(part * PART, (n - part * PART).min(PART)) };
        }
    });
    found
}

/// `ln(sum(exp(row)))` of a row that is not empty.
pub fn log_sum_exp(device: &Device, row: &[f32]) -> f64 {
    assert!(!row.is_empty(), "the logarithm of an empty sum");
    let isa = device.isa();
    // SAFETY: the numbers of a part of the row.
    let largest =
        of_parts(device, row.len(), &|from, n| unsafe { isa.run(Largest { row: row[from..][..n].as_ptr(), n }) });
    let largest = largest.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
    let sums = of_parts(device, row.len(), &|from, n| {
        // SAFETY: as above, and no more than a part.
        unsafe { isa.run(ExpSum { row: row[from..][..n].as_ptr(), n, largest }) }
    });
    largest as f64 + sums.iter().sum::<f64>().ln()
}

/// Log-probabilities of a row, in place: `row - lse`.
pub fn subtract_lse(device: &Device, row: &mut [f32], lse: f64) {
    let (n, row) = (row.len(), SharedMut::new(row));
    super::elementwise(device, n, &|from, n| {
        // SAFETY: each index has its own numbers.
        unsafe { device.isa().run(SubtractLse { row: row.slice(from, n), lse }) }
    });
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
    let parts = of_parts(device, logps.len(), &|from, n| {
        // SAFETY: the numbers of a part.
        unsafe { device.isa().run(Masses { logps: logps[from..][..n].as_ptr(), n, floors }) }
    });
    std::array::from_fn(|j| parts.iter().map(|sums| sums[j] as f64).sum())
}

/// [`masses`] of at most [`PART`] numbers.
struct Masses<'a> {
    logps: *const f32,
    n: usize,
    floors: &'a [f32; FLOORS],
}

impl Kernel for Masses<'_> {
    type Out = [f32; FLOORS];

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> [f32; FLOORS] {
        let mut sums = [S::splat(0.0); FLOORS];
        let mut i = 0;
        while i < self.n {
            let n = (self.n - i).min(LANES);
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
        let mut total = [0.0f32; FLOORS];
        let mut j = 0;
        while j < FLOORS {
            total[j] = sum_lanes::<S>(sums[j]);
            j += 1;
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
