//! Helpers over rows of logits `[R, V]`.

use crate::ops::distribution::{log_sum_exp, subtract_lse};
use crate::ops::rows_of;
use crate::pool::SharedMut;
use crate::simd::{Kernel, LANES, Simd, exp, max_lanes};
use crate::{Device, Tensor};

/// `ln(sum(exp(row)))` of `n >= 1` numbers: the maximum, then exponentials summed in 16 chains of f64-folded parts.
pub(crate) struct LogSumExp {
    pub(crate) row: *const f32,
    pub(crate) n: usize,
}

impl Kernel for LogSumExp {
    /// (maximum, sum of `exp(x - maximum)`)
    type Out = (f32, f64);

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> (f32, f64) {
        let largest = Largest { row: self.row, n: self.n }.run::<S>();
        let (mut total, mut i) = (0.0f64, 0);
        // A row of 150,000 loses nothing by its length.
        while i < self.n {
            let n = (self.n - i).min(PART);
            total += ExpSum { row: self.row.wrapping_add(i), n, largest }.run::<S>();
            i += n;
        }
        (largest, total)
    }
}

/// The largest of `n` numbers.
pub(crate) struct Largest {
    pub(crate) row: *const f32,
    pub(crate) n: usize,
}

impl Kernel for Largest {
    type Out = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        let mut max = S::splat(f32::NEG_INFINITY);
        let mut i = 0;
        while i + LANES <= self.n {
            max = S::max(max, S::load(self.row.wrapping_add(i)));
            i += LANES;
        }
        let mut largest = max_lanes::<S>(max);
        while i < self.n {
            let x = self.row.wrapping_add(i).read();
            largest = if x > largest { x } else { largest };
            i += 1;
        }
        largest
    }
}

/// Numbers of a part of a row whose exponentials are summed in f32: chains of at most 64 terms, folded into f64.
pub(crate) const PART: usize = 64 * LANES;

/// Sum of `exp(x - largest)` over at most [`PART`] numbers.
pub(crate) struct ExpSum {
    pub(crate) row: *const f32,
    pub(crate) n: usize,
    pub(crate) largest: f32,
}

impl Kernel for ExpSum {
    type Out = f64;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f64 {
        let (shift, mut sum, mut i) = (S::splat(self.largest), S::splat(0.0), 0);
        while i + LANES <= self.n {
            sum = S::add(sum, exp::<S>(S::sub(S::load(self.row.wrapping_add(i)), shift)));
            i += LANES;
        }
        if i < self.n {
            let x = S::load_n(self.row.wrapping_add(i), self.n - i);
            let mut lanes = [0.0f32; LANES];
            S::store(lanes.as_mut_ptr(), exp::<S>(S::sub(x, shift)));
            lanes[self.n - i..].fill(0.0);
            sum = S::add(sum, S::load(lanes.as_ptr()));
        }
        crate::simd::sum_lanes::<S>(sum) as f64
    }
}

/// Log-softmax of each row, in place.
pub fn log_softmax_rows(device: &Device, logits: &mut Tensor) {
    let (n, v) = rows_of(logits);
    let out = SharedMut::new(logits.as_f32_mut());
    device.for_each(n, &|row| {
        // SAFETY: each index has its own row.
        let row = unsafe { out.slice(row * v, v) };
        let lse = log_sum_exp(device, row);
        subtract_lse(device, row, lse);
    });
}

/// Index of the largest logit of each row, the first of equals.
pub fn argmax_rows(device: &Device, logits: &Tensor) -> Vec<u32> {
    let (n, v) = rows_of(logits);
    let data = logits.as_f32();
    let mut best = vec![0; n];
    let out = SharedMut::new(&mut best);
    device.for_each(n, &|row| {
        // SAFETY: each index has its own element.
        let best = unsafe { out.slice(row, 1) };
        best[0] = argmax(&data[row * v..(row + 1) * v]);
    });
    best
}

/// The first of the largest.
pub(crate) fn argmax(row: &[f32]) -> u32 {
    let largest = row.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
    row.iter().position(|&x| x == largest).unwrap_or(0) as u32
}

/// The k largest of each row, largest first, the first of equals first.
pub fn top_k_rows(_device: &Device, logits: &Tensor, k: usize) -> Vec<Vec<(u32, f32)>> {
    let (_, v) = rows_of(logits);
    logits.as_f32().chunks(v).map(|row| top_k(row, k)).collect()
}

fn top_k(row: &[f32], k: usize) -> Vec<(u32, f32)> {
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let mut all: Vec<(u32, f32)> = row.iter().enumerate().map(|(i, &l)| (i as u32, l)).collect();
    let k = k.min(all.len());
    if k > 0 && k < all.len() {
        all.select_nth_unstable_by(k - 1, order);
    }
    all.truncate(k);
    all.sort_by(order);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;
    use crate::testing::{close, devices, normal};

    #[test]
    fn log_softmax_agrees_with_the_plain_loops() {
        for device in devices() {
            for (n, v) in [(1, 1), (3, 17), (2, 5000), (4, 1024)] {
                let mut x = normal("x", &[n, v]);
                crate::ops::scale(&device, &mut x, 5.0);
                let expected = reference::log_softmax(x.as_f32(), v);
                log_softmax_rows(&device, &mut x);
                close(x.as_f32(), &expected, 1e-6, "log softmax");
            }
        }
    }

    #[test]
    fn forbidden_tokens_at_minus_infinity_are_no_obstacle() {
        let mut x = Tensor::from_f32(&[1, 3], vec![f32::NEG_INFINITY, 0.0, 0.0]);
        log_softmax_rows(&Device::cpu(1), &mut x);
        assert_eq!(x.as_f32()[0], f32::NEG_INFINITY);
        close(&x.as_f32()[1..], &[-std::f32::consts::LN_2; 2], 1e-6, "two equal tokens");
    }

    #[test]
    fn the_first_of_equal_logits_wins() {
        let device = Device::cpu(1);
        let x = Tensor::from_f32(&[2, 4], vec![1.0, 3.0, 3.0, 2.0, 5.0, 4.0, 5.0, 5.0]);
        assert_eq!(argmax_rows(&device, &x), [1, 0]);
        assert_eq!(top_k_rows(&device, &x, 2), [vec![(1, 3.0), (2, 3.0)], vec![(0, 5.0), (2, 5.0)]]);
        assert_eq!(top_k_rows(&device, &x, 9)[0].len(), 4);
    }

    #[test]
    fn the_vector_exponential_is_within_two_units_in_the_last_place() {
        struct Exp<'a>(&'a mut [f32]);
        impl Kernel for Exp<'_> {
            type Out = ();
            #[inline(always)]
            unsafe fn run<S: Simd>(self) {
                for chunk in self.0.chunks_exact_mut(LANES) {
                    S::store(chunk.as_mut_ptr(), exp::<S>(S::load(chunk.as_ptr())));
                }
            }
        }
        for device in devices() {
            let x: Vec<f32> = (0..160_000).map(|i| -87.3 + i as f32 * (175.6 / 160_000.0)).collect();
            let mut y = x.clone();
            // SAFETY: whole chunks of 16 numbers.
            unsafe { device.isa().run(Exp(&mut y)) };
            for (x, y) in x.iter().zip(&y) {
                let expected = (*x as f64).exp();
                assert!((*y as f64 - expected).abs() <= expected * 2.0 * 1.2e-7, "{device:?}: exp({x}) is {y}");
            }
            let mut edge = [f32::NEG_INFINITY, -1e9, -100.0, 0.0, 1e9, f32::INFINITY, f32::NAN].to_vec();
            edge.resize(LANES, 0.0);
            // SAFETY: one chunk of 16 numbers.
            unsafe { device.isa().run(Exp(&mut edge)) };
            assert_eq!(edge[..4], [0.0, 0.0, 0.0, 1.0]);
            assert!(edge[4] > 2e38 && edge[5] > 2e38 && edge[6].is_nan());
        }
    }
}
