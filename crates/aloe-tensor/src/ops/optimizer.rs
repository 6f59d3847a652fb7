//! AdamW and the norm of gradients.

use crate::ops::elementwise;
use crate::pool::SharedMut;
use crate::simd::{Kernel, LANES, Simd};
use crate::{Device, Tensor};

/// Settings of one step (Loshchilov & Hutter 2019; PyTorch's `torch.optim.AdamW`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added outside the square root.
    pub eps: f32,
    /// Decoupled: the parameter is multiplied by `1 - lr * weight_decay`.
    pub weight_decay: f32,
    /// 1 for the first step.
    pub step: u64,
    /// The gradient is multiplied by this first (clipping, averaging).
    pub grad_scale: f32,
}

/// One step on f32 masters: updates `param`, `m` and `v` from `grad`.
pub fn adamw_step(
    device: &Device,
    param: &mut Tensor,
    m: &mut Tensor,
    v: &mut Tensor,
    grad: &Tensor,
    settings: &AdamW,
) {
    assert!(settings.step >= 1, "the first step is 1");
    assert!(
        param.shape() == m.shape() && param.shape() == v.shape() && param.shape() == grad.shape(),
        "parameter {:?}, gradient {:?}",
        param.shape(),
        grad.shape()
    );
    let correction = |beta: f32| 1.0 - (beta as f64).powf(settings.step as f64);
    let g = grad.as_f32();
    let (p, m, v) =
        (SharedMut::new(param.as_f32_mut()), SharedMut::new(m.as_f32_mut()), SharedMut::new(v.as_f32_mut()));
    elementwise(device, g.len(), &|from, n| {
        let kernel = Step {
            param: p.ptr().wrapping_add(from),
            m: m.ptr().wrapping_add(from),
            v: v.ptr().wrapping_add(from),
            grad: g[from..].as_ptr(),
            n,
            keep: (1.0 - settings.lr as f64 * settings.weight_decay as f64) as f32,
            step_size: (settings.lr as f64 / correction(settings.beta1)) as f32,
            rescale_root: (1.0 / correction(settings.beta2).sqrt()) as f32,
            settings: *settings,
        };
        // SAFETY: n elements from `from` exist in all four; ranges of different tasks do not overlap.
        unsafe { device.isa().run(kernel) }
    });
}

struct Step {
    param: *mut f32,
    m: *mut f32,
    v: *mut f32,
    grad: *const f32,
    n: usize,
    keep: f32,
    step_size: f32,
    rescale_root: f32,
    settings: AdamW,
}

impl Kernel for Step {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let AdamW { beta1, beta2, eps, grad_scale, .. } = self.settings;
        let (b1, rest1) = (S::splat(beta1), S::splat(1.0 - beta1));
        let (b2, rest2) = (S::splat(beta2), S::splat(1.0 - beta2));
        let mut i = 0;
        while i < self.n {
            let n = (self.n - i).min(LANES);
            let g = S::mul(S::load_up_to(self.grad.wrapping_add(i), n), S::splat(grad_scale));
            let m = S::fma(S::load_up_to(self.m.wrapping_add(i), n), b1, S::mul(g, rest1));
            let v = S::fma(S::load_up_to(self.v.wrapping_add(i), n), b2, S::mul(S::mul(g, g), rest2));
            let root = S::fma(S::sqrt(v), S::splat(self.rescale_root), S::splat(eps));
            let p = S::mul(S::load_up_to(self.param.wrapping_add(i), n), S::splat(self.keep));
            let p = S::sub(p, S::div(S::mul(m, S::splat(self.step_size)), root));
            S::store_up_to(self.m.wrapping_add(i), m, n);
            S::store_up_to(self.v.wrapping_add(i), v, n);
            S::store_up_to(self.param.wrapping_add(i), p, n);
            i += LANES;
        }
    }
}

/// Sum of the squares of all elements in f64: eight interleaved chains per 16 Ki elements, parts added in order.
pub fn sum_of_squares(device: &Device, x: &Tensor) -> f64 {
    const PART: usize = 16384;
    let data = x.as_f32();
    let mut parts = vec![0.0f64; data.len().div_ceil(PART)];
    let out = SharedMut::new(&mut parts);
    device.for_each(data.len().div_ceil(PART), &|part| {
        let data = &data[part * PART..((part + 1) * PART).min(data.len())];
        let mut chains = [0.0f64; 8];
        for chunk in data.chunks(8) {
            for (chain, &v) in chains.iter_mut().zip(chunk) {
                *chain += v as f64 * v as f64;
            }
        }
        // SAFETY: each index has its own part.
        let sum = unsafe { out.slice(part, 1) };
        sum[0] = chains.iter().sum();
    });
    parts.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;
    use crate::testing::{close, devices, normal, same_bits};

    const SETTINGS: AdamW =
        AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: 3, grad_scale: 0.5 };

    fn state(n: usize) -> [Tensor; 4] {
        let v: Vec<f32> = normal("v", &[n]).as_f32().iter().map(|v| v * v).collect();
        [normal("p", &[n]), normal("m", &[n]), Tensor::from_f32(&[n], v), normal("g", &[n])]
    }

    #[test]
    fn adamw_agrees_with_the_plain_loops() {
        for device in devices() {
            for n in [1, 15, 40_001] {
                let [mut p, mut m, mut v, g] = state(n);
                let mut e = [p.to_f32_vec(), m.to_f32_vec(), v.to_f32_vec()];
                adamw_step(&device, &mut p, &mut m, &mut v, &g, &SETTINGS);
                let [ep, em, ev] = &mut e;
                reference::adamw((ep, em, ev), g.as_f32(), &SETTINGS);
                close(p.as_f32(), ep, 1e-6, "parameter");
                close(m.as_f32(), em, 1e-6, "first moment");
                close(v.as_f32(), ev, 1e-6, "second moment");
            }
        }
    }

    #[test]
    fn the_first_step_moves_by_the_learning_rate_against_the_sign() {
        // By hand: m/c1 = g and sqrt(v/c2) = |g|, so p moves by lr * g / |g|; decay takes 2 * (1 - 0.01 * 0.1) first.
        let one = |x: f32| Tensor::from_f32(&[1], vec![x]);
        let (mut p, mut m, mut v) = (one(2.0), one(0.0), one(0.0));
        let settings = AdamW { step: 1, grad_scale: 1.0, ..SETTINGS };
        adamw_step(&Device::cpu(1), &mut p, &mut m, &mut v, &one(-0.3), &settings);
        close(p.as_f32(), &[2.0 * 0.999 + 0.01], 1e-6, "p");
    }

    #[test]
    fn sums_and_steps_do_not_depend_on_the_threads() {
        let run = |threads| {
            let device = Device::cpu(threads);
            let [mut p, mut m, mut v, g] = state(100_003);
            adamw_step(&device, &mut p, &mut m, &mut v, &g, &SETTINGS);
            (p, sum_of_squares(&device, &g).to_bits())
        };
        let ((p1, s1), (p2, s2)) = (run(1), run(2));
        same_bits(p1.as_f32(), p2.as_f32(), "step");
        assert_eq!(s1, s2);
        let x = Tensor::from_f32(&[3], vec![1.0, 2.0, -3.0]);
        assert_eq!(sum_of_squares(&Device::cpu(1), &x), 14.0);
    }
}
