//! RMSNorm forward and backward, LayerNorm forward.
//!
//! A row is summed in 16 interleaved chains and a fixed fold, so that it does not depend on its neighbours.

use crate::ops::rows_of;
use crate::pool::SharedMut;
use crate::simd::{Kernel, LANES, Simd, sum_lanes};
use crate::{Device, Rounded, Tensor};

/// Rows of one task.
const ROWS: usize = 16;

/// Columns of one task of the weight's gradient: one cache line per row.
const COLUMNS: usize = 64;

/// `y = x / sqrt(mean(x^2) + eps) * w` over the last axis; returns y and `1 / sqrt(..)` per row `[N]` (Zhang & Sennrich 2019).
pub fn rms_norm(device: &Device, x: &Tensor, w: &Tensor, eps: f32) -> (Tensor, Tensor) {
    let (n, d) = rows_of(x);
    assert_eq!(w.shape(), [d], "weight of a norm over {:?}", x.shape());
    let (mut y, mut rstd) = (vec![0.0; n * d], vec![0.0; n]);
    let (out, out_rstd) = (SharedMut::new(&mut y), SharedMut::new(&mut rstd));
    let (x_data, w) = (x.as_f32(), w.as_f32());
    device.for_each(n.div_ceil(ROWS), &|task| {
        for row in task * ROWS..((task + 1) * ROWS).min(n) {
            let x = x_data[row * d..(row + 1) * d].as_ptr();
            let kernel = RmsNorm { x, w: w.as_ptr(), y: out.ptr().wrapping_add(row * d), d, eps };
            // SAFETY: row `row` of x and y, all of w; each row belongs to one task.
            unsafe { out_rstd.ptr().wrapping_add(row).write(device.isa().run(kernel)) }
        }
    });
    (Tensor::from_f32(x.shape(), y), Tensor::from_f32(&[n], rstd))
}

struct RmsNorm {
    x: *const f32,
    w: *const f32,
    y: *mut f32,
    d: usize,
    eps: f32,
}

impl Kernel for RmsNorm {
    type Out = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        let rstd = reciprocal_rms::<S>(self.x, self.d, self.eps);
        let factor = S::splat(rstd);
        let mut i = 0;
        while i < self.d {
            let n = (self.d - i).min(LANES);
            let x = S::mul(S::load_up_to(self.x.wrapping_add(i), n), factor);
            S::store_up_to(self.y.wrapping_add(i), S::mul(x, S::load_up_to(self.w.wrapping_add(i), n)), n);
            i += LANES;
        }
        rstd
    }
}

/// `1 / sqrt(mean(x^2) + eps)` of d numbers.
#[inline(always)]
pub(super) unsafe fn reciprocal_rms<S: Simd>(x: *const f32, d: usize, eps: f32) -> f32 {
    1.0 / (dot::<S>(x, x, d) / d as f32 + eps).sqrt()
}

#[inline(always)]
unsafe fn dot<S: Simd>(a: *const f32, b: *const f32, d: usize) -> f32 {
    let mut sum = S::splat(0.0);
    let mut i = 0;
    while i < d {
        let n = (d - i).min(LANES);
        sum = S::fma(S::load_up_to(a.wrapping_add(i), n), S::load_up_to(b.wrapping_add(i), n), sum);
        i += LANES;
    }
    sum_lanes::<S>(sum)
}

/// Gradient of [`rms_norm`]: returns dx; adds to `dw` in row order.
pub fn rms_norm_backward(
    device: &Device,
    dy: &Tensor,
    x: &Tensor,
    w: &Tensor,
    rstd: &Tensor,
    dw: &mut Tensor,
) -> Tensor {
    let (n, d) = rows_of(x);
    assert!(dy.shape() == x.shape() && w.shape() == [d] && rstd.shape() == [n] && dw.shape() == [d]);
    let (dy_data, x_data, w, rstd) = (dy.as_f32(), x.as_f32(), w.as_f32(), rstd.as_f32());
    let mut dx = vec![0.0; n * d];
    let out = SharedMut::new(&mut dx);
    device.for_each(n.div_ceil(ROWS), &|task| {
        for row in task * ROWS..((task + 1) * ROWS).min(n) {
            let (dy, x) = (dy_data[row * d..(row + 1) * d].as_ptr(), x_data[row * d..(row + 1) * d].as_ptr());
            let kernel =
                InputGradient { dy, x, w: w.as_ptr(), dx: out.ptr().wrapping_add(row * d), d, rstd: rstd[row] };
            // SAFETY: row `row` of dy, x and dx, all of w; each row belongs to one task.
            unsafe { device.isa().run(kernel) }
        }
    });
    add_weight_gradient(device, dy_data, x_data, rstd, dw);
    Tensor::from_f32(x.shape(), dx)
}

/// Adds `sum over rows of dy x rstd` to dw `[d]`, in row order.
fn add_weight_gradient(device: &Device, dy: &[f32], x: &[f32], rstd: &[f32], dw: &mut Tensor) {
    let d = dw.len();
    let sums = SharedMut::new(dw.as_f32_mut());
    device.for_each(d.div_ceil(COLUMNS), &|task| {
        let (from, width) = (task * COLUMNS, COLUMNS.min(d - task * COLUMNS));
        // SAFETY: each index has its own columns.
        let dw = unsafe { sums.slice(from, width) };
        for (row, &rstd) in rstd.iter().enumerate() {
            let (dy, x) = (&dy[row * d + from..][..width], &x[row * d + from..][..width]);
            for i in 0..width {
                dw[i] += dy[i] * (x[i] * rstd);
            }
        }
    });
}

/// [`rms_norm`] with y rounded to bf16.
pub fn rms_norm_rounded(device: &Device, x: &Tensor, w: &Tensor, eps: f32) -> (Rounded, Tensor) {
    let (n, d) = rows_of(x);
    assert_eq!(w.shape(), [d], "weight of a norm over {:?}", x.shape());
    let mut rstd = vec![0.0; n];
    let out_rstd = SharedMut::new(&mut rstd);
    let (x_data, w) = (x.as_f32(), w.as_f32());
    let y = Rounded::written(n, d, |out| {
        device.for_each(n.div_ceil(ROWS), &|task| {
            for row in task * ROWS..((task + 1) * ROWS).min(n) {
                let x = x_data[row * d..(row + 1) * d].as_ptr();
                let kernel = RmsNormRounded { x, w: w.as_ptr(), y: out.row(row), d, eps };
                // SAFETY: row `row` of x and y, all of w; each row belongs to one task.
                unsafe { out_rstd.ptr().wrapping_add(row).write(device.isa().run(kernel)) }
            }
        });
    });
    (y, Tensor::from_f32(&[n], rstd))
}

struct RmsNormRounded {
    x: *const f32,
    w: *const f32,
    y: *mut u16,
    d: usize,
    eps: f32,
}

impl Kernel for RmsNormRounded {
    type Out = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        let squares = dot::<S>(self.x, self.x, self.d);
        let rstd = 1.0 / (squares / self.d as f32 + self.eps).sqrt();
        let factor = S::splat(rstd);
        let mut i = 0;
        while i < self.d {
            let n = (self.d - i).min(LANES);
            let x = S::mul(S::load_up_to(self.x.wrapping_add(i), n), factor);
            S::store_bf16(self.y.wrapping_add(i), S::mul(x, S::load_up_to(self.w.wrapping_add(i), n)));
            i += LANES;
        }
        rstd
    }
}

/// [`rms_norm_backward`] of a norm that stands beside a residual connection: adds the gradient through the norm to `dx`, which holds that
/// around it, and gives the sum rounded to bf16 too.
pub fn rms_norm_backward_onto(
    device: &Device,
    dy: &Tensor,
    (x, w, rstd): (&Tensor, &Tensor, &Tensor),
    dw: &mut Tensor,
    dx: &mut Tensor,
) -> Rounded {
    let (n, d) = rows_of(x);
    assert!(dy.shape() == x.shape() && w.shape() == [d] && rstd.shape() == [n] && dw.shape() == [d]);
    assert_eq!(dx.shape(), x.shape());
    let (dy_data, x_data, w, rstd) = (dy.as_f32(), x.as_f32(), w.as_f32(), rstd.as_f32());
    let sum = SharedMut::new(dx.as_f32_mut());
    let rounded = Rounded::written(n, d, |out| {
        device.for_each(n.div_ceil(ROWS), &|task| {
            let mut through = vec![0.0; d];
            for row in task * ROWS..((task + 1) * ROWS).min(n) {
                let (dy, x) = (dy_data[row * d..(row + 1) * d].as_ptr(), x_data[row * d..(row + 1) * d].as_ptr());
                let gradient = InputGradient { dy, x, w: w.as_ptr(), dx: through.as_mut_ptr(), d, rstd: rstd[row] };
                // SAFETY: row `row` of dy and x, all of w; each row belongs to one task.
                unsafe { device.isa().run(gradient) };
                let sum = sum.ptr().wrapping_add(row * d);
                // SAFETY: this row of dx and of the rounded sum.
                unsafe { device.isa().run(AddRounded { add: through.as_ptr(), sum, out: out.row(row), d }) };
            }
        });
    });
    add_weight_gradient(device, dy_data, x_data, rstd, dw);
    rounded
}

/// `sum += add`, and the sum rounded.
struct AddRounded {
    add: *const f32,
    sum: *mut f32,
    out: *mut u16,
    d: usize,
}

impl Kernel for AddRounded {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut i = 0;
        while i < self.d {
            let n = (self.d - i).min(LANES);
            let to = self.sum.wrapping_add(i);
            let sum = S::add(S::load_up_to(to, n), S::load_up_to(self.add.wrapping_add(i), n));
            S::store_up_to(to, sum, n);
            S::store_bf16(self.out.wrapping_add(i), sum);
            i += LANES;
        }
    }
}

/// `dx = r (dy w - x r^2 mean(dy w x))`.
struct InputGradient {
    dy: *const f32,
    x: *const f32,
    w: *const f32,
    dx: *mut f32,
    d: usize,
    rstd: f32,
}

impl Kernel for InputGradient {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut sum = S::splat(0.0);
        let mut i = 0;
        while i < self.d {
            let n = (self.d - i).min(LANES);
            let (dy, w) = (S::load_up_to(self.dy.wrapping_add(i), n), S::load_up_to(self.w.wrapping_add(i), n));
            sum = S::fma(S::mul(dy, w), S::load_up_to(self.x.wrapping_add(i), n), sum);
            i += LANES;
        }
        let r = self.rstd;
        let pull = S::splat(-(sum_lanes::<S>(sum) / self.d as f32 * r * r));
        let factor = S::splat(r);
        i = 0;
        while i < self.d {
            let n = (self.d - i).min(LANES);
            let (dy, w) = (S::load_up_to(self.dy.wrapping_add(i), n), S::load_up_to(self.w.wrapping_add(i), n));
            let inner = S::fma(S::load_up_to(self.x.wrapping_add(i), n), pull, S::mul(dy, w));
            S::store_up_to(self.dx.wrapping_add(i), S::mul(factor, inner), n);
            i += LANES;
        }
    }
}

/// `(x - mean) / sqrt(var + eps) * w + b` over the last axis, var the mean squared deviation (Ba et al. 2016).
pub fn layer_norm(device: &Device, x: &Tensor, w: &Tensor, b: &Tensor, eps: f32) -> Tensor {
    let (n, d) = rows_of(x);
    assert!(w.shape() == [d] && b.shape() == [d], "weight {:?} of a norm over {:?}", w.shape(), x.shape());
    let (x_data, w, b) = (x.as_f32(), w.as_f32(), b.as_f32());
    let mut y = vec![0.0; n * d];
    let out = SharedMut::new(&mut y);
    device.for_each(n, &|row| {
        let x = &x_data[row * d..(row + 1) * d];
        // SAFETY: each index has its own row.
        let y = unsafe { out.slice(row * d, d) };
        let mean = x.iter().map(|&v| v as f64).sum::<f64>() / d as f64;
        let variance = x.iter().map(|&v| (v as f64 - mean).powi(2)).sum::<f64>() / d as f64;
        let rstd = (1.0 / (variance + eps as f64).sqrt()) as f32;
        for i in 0..d {
            y[i] = (x[i] - mean as f32) * rstd * w[i] + b[i];
        }
    });
    Tensor::from_f32(x.shape(), y)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{close, devices, normal, same_bits};
    use crate::{Dtype, Isa, reference};

    #[test]
    fn norms_agree_with_the_plain_loops_and_rows_do_not_depend_on_each_other() {
        for device in devices() {
            for (n, d) in [(1, 1), (3, 7), (40, 33), (5, 576), (70, 130)] {
                let (x, w, b) = (normal("x", &[n, d]), normal("w", &[d]), normal("b", &[d]));
                let (y, rstd) = rms_norm(&device, &x, &w, 1e-5);
                let expected = reference::rms_norm(x.as_f32(), w.as_f32(), 1e-5);
                close(y.as_f32(), &expected.0, 2e-6, "y");
                close(rstd.as_f32(), &expected.1, 2e-6, "rstd");
                let alone = rms_norm(&device, &x.slice_rows(n - 1, n), &w, 1e-5).0;
                same_bits(alone.as_f32(), y.slice_rows(n - 1, n).as_f32(), "a row alone");

                let (dy, mut dw) = (normal("dy", &[n, d]), Tensor::zeros(&[d], Dtype::F32));
                let dx = rms_norm_backward(&device, &dy, &x, &w, &rstd, &mut dw);
                let expected = reference::rms_norm_backward(dy.as_f32(), x.as_f32(), w.as_f32(), rstd.as_f32());
                close(dx.as_f32(), &expected.0, 1e-5, "dx");
                close(dw.as_f32(), &expected.1, 1e-5, "dw");

                let (rounded, rounded_rstd) = rms_norm_rounded(&device, &x, &w, 1e-5);
                let whole = y.cast(Dtype::Bf16).to_f32_vec();
                same_bits(rounded.to_tensor().as_f32(), &whole, "rounded");
                same_bits(rounded_rstd.as_f32(), rstd.as_f32(), "rstd of the rounded");
                let (mut sum, mut dw_again) = (normal("dx", &[n, d]), Tensor::zeros(&[d], Dtype::F32));
                let mut around = sum.clone();
                let found = rms_norm_backward_onto(&device, &dy, (&x, &w, &rstd), &mut dw_again, &mut sum);
                crate::ops::add_in_place(&device, &mut around, &dx);
                same_bits(sum.as_f32(), around.as_f32(), "dx onto what goes around");
                same_bits(found.to_tensor().as_f32(), &sum.cast(Dtype::Bf16).to_f32_vec(), "its rounded form");
                same_bits(dw_again.as_f32(), dw.as_f32(), "dw");

                let y = layer_norm(&device, &x, &w, &b, 1e-12);
                close(
                    y.as_f32(),
                    &reference::layer_norm(x.as_f32(), w.as_f32(), b.as_f32(), 1e-12),
                    1e-5,
                    "layer norm",
                );
            }
        }
    }

    #[test]
    fn the_plain_rms_norm_gradient_is_the_finite_difference() {
        let (n, d) = (2, 5);
        let (x, w, dy) = (normal("x", &[n, d]), normal("w", &[d]), normal("dy", &[n, d]));
        let loss = |x: &[f32], w: &[f32]| -> f64 {
            reference::rms_norm(x, w, 1e-5).0.iter().zip(dy.as_f32()).map(|(y, g)| *y as f64 * *g as f64).sum()
        };
        let rstd = reference::rms_norm(x.as_f32(), w.as_f32(), 1e-5).1;
        let (dx, dw) = reference::rms_norm_backward(dy.as_f32(), x.as_f32(), w.as_f32(), &rstd);
        let h = 1.0 / 256.0;
        let shifted = |v: &[f32], i: usize, by: f32| -> Vec<f32> {
            v.iter().enumerate().map(|(j, x)| if i == j { x + by } else { *x }).collect()
        };
        for (i, dx) in dx.iter().enumerate() {
            let at = |by| loss(&shifted(x.as_f32(), i, by), w.as_f32());
            close(&[*dx], &[((at(h) - at(-h)) / (2.0 * h as f64)) as f32], 5e-4, "dx");
        }
        for (i, dw) in dw.iter().enumerate() {
            let at = |by| loss(x.as_f32(), &shifted(w.as_f32(), i, by));
            close(&[*dw], &[((at(h) - at(-h)) / (2.0 * h as f64)) as f32], 5e-4, "dw");
        }
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let (n, d) = (70, 130);
        let (x, w, dy) = (normal("x", &[n, d]), normal("w", &[d]), normal("dy", &[n, d]));
        let run = |threads| {
            let device = Device::cpu_with(Isa::best(), threads);
            let (y, rstd) = rms_norm(&device, &x, &w, 1e-5);
            let mut dw = Tensor::zeros(&[d], Dtype::F32);
            let dx = rms_norm_backward(&device, &dy, &x, &w, &rstd, &mut dw);
            [y, dx, dw]
        };
        for (a, b) in run(1).iter().zip(&run(2)) {
            same_bits(a.as_f32(), b.as_f32(), "threads");
        }
    }
}
