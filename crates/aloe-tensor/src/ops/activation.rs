//! Element-wise operations: SwiGLU, GELU, addition, scaling.

use crate::ops::{elementwise, rows_of};
use crate::pool::SharedMut;
use crate::simd::{Kernel, LANES, Simd, exp, sigmoid};
use crate::{Device, Rounded, Tensor};

fn same_shape(a: &Tensor, b: &Tensor) {
    assert_eq!(a.shape(), b.shape(), "operands differ in shape");
}

/// `silu(gate) * up`, element by element (Shazeer 2020, eq. 6).
pub fn swiglu(device: &Device, gate: &Tensor, up: &Tensor) -> Tensor {
    same_shape(gate, up);
    let (g, u) = (gate.as_f32(), up.as_f32());
    let mut h = vec![0.0; g.len()];
    let out = SharedMut::new(&mut h);
    elementwise(device, g.len(), &|from, n| {
        let kernel = Swiglu { gate: g[from..].as_ptr(), up: u[from..].as_ptr(), out: out.ptr().wrapping_add(from), n };
        // SAFETY: n elements from `from` exist in all three; ranges of different tasks do not overlap.
        unsafe { device.isa().run(kernel) }
    });
    Tensor::from_f32(gate.shape(), h)
}

struct Swiglu {
    gate: *const f32,
    up: *const f32,
    out: *mut f32,
    n: usize,
}

impl Kernel for Swiglu {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut i = 0;
        while i < self.n {
            let n = (self.n - i).min(LANES);
            let (g, u) = (S::load_up_to(self.gate.wrapping_add(i), n), S::load_up_to(self.up.wrapping_add(i), n));
            S::store_up_to(self.out.wrapping_add(i), gated::<S>(g, u), n);
            i += LANES;
        }
    }
}

/// `silu(gate) * up` of 16 lanes.
#[inline(always)]
pub(super) unsafe fn gated<S: Simd>(gate: S::V, up: S::V) -> S::V {
    S::mul(S::mul(gate, sigmoid::<S>(gate)), up)
}

/// Gradients of [`swiglu`]: (dgate, dup).
pub fn swiglu_backward(device: &Device, dh: &Tensor, gate: &Tensor, up: &Tensor) -> (Tensor, Tensor) {
    same_shape(gate, up);
    same_shape(gate, dh);
    let (d, g, u) = (dh.as_f32(), gate.as_f32(), up.as_f32());
    let (mut dgate, mut dup) = (vec![0.0; g.len()], vec![0.0; g.len()]);
    let (out_gate, out_up) = (SharedMut::new(&mut dgate), SharedMut::new(&mut dup));
    elementwise(device, g.len(), &|from, n| {
        let kernel = SwigluBackward {
            dh: d[from..].as_ptr(),
            gate: g[from..].as_ptr(),
            up: u[from..].as_ptr(),
            dgate: out_gate.ptr().wrapping_add(from),
            dup: out_up.ptr().wrapping_add(from),
            n,
        };
        // SAFETY: n elements from `from` exist in all five; ranges of different tasks do not overlap.
        unsafe { device.isa().run(kernel) }
    });
    (Tensor::from_f32(gate.shape(), dgate), Tensor::from_f32(gate.shape(), dup))
}

struct SwigluBackward {
    dh: *const f32,
    gate: *const f32,
    up: *const f32,
    dgate: *mut f32,
    dup: *mut f32,
    n: usize,
}

impl Kernel for SwigluBackward {
    type Out = ();

    /// `silu'(g) = s (1 + g (1 - s))`, s the logistic function of g.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let one = S::splat(1.0);
        let mut i = 0;
        while i < self.n {
            let n = (self.n - i).min(LANES);
            let (g, u) = (S::load_up_to(self.gate.wrapping_add(i), n), S::load_up_to(self.up.wrapping_add(i), n));
            let dh = S::load_up_to(self.dh.wrapping_add(i), n);
            let s = sigmoid::<S>(g);
            let slope = S::mul(s, S::fma(g, S::sub(one, s), one));
            S::store_up_to(self.dgate.wrapping_add(i), S::mul(S::mul(dh, u), slope), n);
            S::store_up_to(self.dup.wrapping_add(i), S::mul(dh, S::mul(g, s)), n);
            i += LANES;
        }
    }
}

/// What [`swiglu_rounded`] gives: all `[N, F]`.
#[derive(Clone, Debug)]
pub struct SwigluRounded {
    /// [`swiglu`], rounded.
    pub product: Rounded,
    /// The rounded gate.
    pub gate: Rounded,
    /// The rounded other input.
    pub up: Rounded,
}

/// [`swiglu`] of `[N, F]` rounded to bf16, and its inputs rounded for the backward pass.
pub fn swiglu_rounded(device: &Device, gate: &Tensor, up: &Tensor) -> SwigluRounded {
    same_shape(gate, up);
    let (n, f) = rows_of(gate);
    let (g, u) = (gate.as_f32(), up.as_f32());
    let [product, gate, up] = Rounded::all_written(n, f, |out| {
        for_rows(device, n, f, &|row| {
            let kernel = SwigluRow {
                gate: g[row * f..(row + 1) * f].as_ptr(),
                up: u[row * f..(row + 1) * f].as_ptr(),
                out: out.map(|out| out.row(row)),
                n: f,
            };
            // SAFETY: a row of both inputs, and this index's own rows of the results.
            unsafe { device.isa().run(kernel) }
        });
    });
    SwigluRounded { product, gate, up }
}

fn for_rows(device: &Device, n: usize, width: usize, body: &(dyn Fn(usize) + Sync)) {
    let per_task = (8192 / width.max(1)).max(1);
    device.for_each(n.div_ceil(per_task), &|task| (task * per_task..((task + 1) * per_task).min(n)).for_each(body));
}

struct SwigluRow {
    gate: *const f32,
    up: *const f32,
    out: [*mut u16; 3],
    n: usize,
}

impl Kernel for SwigluRow {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut i = 0;
        while i < self.n {
            let n = (self.n - i).min(LANES);
            let (g, u) = (S::load_up_to(self.gate.wrapping_add(i), n), S::load_up_to(self.up.wrapping_add(i), n));
            S::store_bf16(self.out[0].wrapping_add(i), gated::<S>(g, u));
            S::store_bf16(self.out[1].wrapping_add(i), g);
            S::store_bf16(self.out[2].wrapping_add(i), u);
            i += LANES;
        }
    }
}

/// Gradients of [`swiglu_rounded`] at its rounded inputs, rounded to bf16, and the product of those inputs: dgate, dup, product.
pub fn swiglu_rounded_backward(device: &Device, dh: &Tensor, gate: &Rounded, up: &Rounded) -> [Rounded; 3] {
    let (n, f) = rows_of(dh);
    assert!([gate, up].iter().all(|x| (x.rows(), x.width()) == (n, f)), "a gradient {:?} of another shape", dh.shape());
    let d = dh.as_f32();
    Rounded::all_written(n, f, |out| {
        for_rows(device, n, f, &|row| {
            let kernel = SwigluRowBackward {
                dh: d[row * f..(row + 1) * f].as_ptr(),
                gate: gate.row(row),
                up: up.row(row),
                out: out.map(|out| out.row(row)),
                n: f,
            };
            // SAFETY: a row of the inputs, padded to whole vectors where it is bf16, and this index's own rows of the results.
            unsafe { device.isa().run(kernel) }
        });
    })
}

struct SwigluRowBackward {
    dh: *const f32,
    gate: *const u16,
    up: *const u16,
    out: [*mut u16; 3],
    n: usize,
}

impl Kernel for SwigluRowBackward {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let one = S::splat(1.0);
        let mut i = 0;
        while i < self.n {
            let dh = S::load_up_to(self.dh.wrapping_add(i), (self.n - i).min(LANES));
            let (g, u) = (S::load_bf16(self.gate.wrapping_add(i)), S::load_bf16(self.up.wrapping_add(i)));
            let s = sigmoid::<S>(g);
            let silu = S::mul(g, s);
            let slope = S::mul(s, S::fma(g, S::sub(one, s), one));
            S::store_bf16(self.out[0].wrapping_add(i), S::mul(S::mul(dh, u), slope));
            S::store_bf16(self.out[1].wrapping_add(i), S::mul(dh, silu));
            S::store_bf16(self.out[2].wrapping_add(i), S::mul(silu, u));
            i += LANES;
        }
    }
}

/// GELU with the exact error function, as BERT has it; absolute error below 1e-6 for |x| < 10.
pub fn gelu(device: &Device, x: &Tensor) -> Tensor {
    let data = x.as_f32();
    let mut y = vec![0.0; data.len()];
    let out = SharedMut::new(&mut y);
    elementwise(device, data.len(), &|from, n| {
        let kernel = Gelu { x: data[from..].as_ptr(), y: out.ptr().wrapping_add(from), n };
        // SAFETY: n elements from `from` exist in both; ranges of different tasks do not overlap.
        unsafe { device.isa().run(kernel) }
    });
    Tensor::from_f32(x.shape(), y)
}

struct Gelu {
    x: *const f32,
    y: *mut f32,
    n: usize,
}

impl Kernel for Gelu {
    type Out = ();

    /// `max(x, 0) - |x| erfc(|x| / sqrt 2) / 2`, which equals `x (1 + erf(x / sqrt 2)) / 2` and cancels nowhere. erfc by the
    /// Chebyshev fit of Numerical Recipes (`erfcc`), relative error 1.2e-7.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        const C: [f32; 10] = [
            -1.265_512_2,
            1.000_023_7,
            0.374_091_96,
            0.096_784_18,
            -0.186_288_06,
            0.278_868_07,
            -1.135_204,
            1.488_515_9,
            -0.822_152_2,
            0.170_872_77,
        ];
        let (zero, one) = (S::splat(0.0), S::splat(1.0));
        let mut i = 0;
        while i < self.n {
            let n = (self.n - i).min(LANES);
            let x = S::load_up_to(self.x.wrapping_add(i), n);
            let size = S::max(S::sub(zero, x), x);
            let z = S::mul(size, S::splat(std::f32::consts::FRAC_1_SQRT_2));
            let t = S::div(one, S::fma(z, S::splat(0.5), one));
            let mut exponent = S::splat(C[9]);
            let mut c = 9;
            while c > 0 {
                c -= 1;
                exponent = S::fma(exponent, t, S::splat(C[c]));
            }
            let erfc = S::mul(t, exp::<S>(S::sub(exponent, S::mul(z, z))));
            let y = S::sub(S::max(zero, x), S::mul(S::mul(size, S::splat(0.5)), erfc));
            S::store_up_to(self.y.wrapping_add(i), y, n);
            i += LANES;
        }
    }
}

/// `a += b`.
pub fn add_in_place(device: &Device, a: &mut Tensor, b: &Tensor) {
    same_shape(a, b);
    let b = b.as_f32();
    let out = SharedMut::new(a.as_f32_mut());
    elementwise(device, b.len(), &|from, n| {
        // SAFETY: ranges of different tasks do not overlap.
        let a = unsafe { out.slice(from, n) };
        a.iter_mut().zip(&b[from..from + n]).for_each(|(a, b)| *a += b);
    });
}

/// `a *= factor`.
pub fn scale(device: &Device, a: &mut Tensor, factor: f32) {
    let n = a.len();
    let out = SharedMut::new(a.as_f32_mut());
    elementwise(device, n, &|from, n| {
        // SAFETY: ranges of different tasks do not overlap.
        unsafe { out.slice(from, n) }.iter_mut().for_each(|a| *a *= factor);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;
    use crate::testing::{close, devices, normal, same_bits};

    fn wide(name: &str, n: usize) -> Tensor {
        let mut x = normal(name, &[n]);
        scale(&Device::cpu(1), &mut x, 4.0);
        x
    }

    #[test]
    fn activations_agree_with_the_plain_loops_at_every_length() {
        for device in devices() {
            for n in [1, 7, 16, 100, 20_001] {
                let (g, u, dh) = (wide("g", n), wide("u", n), wide("dh", n));
                let what = format!("{device:?} {n}");
                let expected = reference::swiglu(g.as_f32(), u.as_f32());
                close(swiglu(&device, &g, &u).as_f32(), &expected, 1e-6, &what);
                let (dg, du) = swiglu_backward(&device, &dh, &g, &u);
                let expected = reference::swiglu_backward(dh.as_f32(), g.as_f32(), u.as_f32());
                // 1 + g (1 - s) cancels near g = -1.28: the error is relative to the terms, up to 100 here.
                close(dg.as_f32(), &expected.0, 2e-5, &what);
                close(du.as_f32(), &expected.1, 1e-6, &what);
                close(gelu(&device, &g).as_f32(), &reference::gelu(g.as_f32()), 1e-6, &what);
                let mut sum = g.clone();
                add_in_place(&device, &mut sum, &u);
                let expected: Vec<f32> = g.as_f32().iter().zip(u.as_f32()).map(|(a, b)| a + b).collect();
                same_bits(sum.as_f32(), &expected, &what);
            }
        }
    }

    #[test]
    fn rounded_activations_are_the_plain_ones_within_half_a_step_of_bf16() {
        for device in devices() {
            for (n, f) in [(1, 1), (3, 40), (7, 65), (40, 700)] {
                let what = format!("{device:?} {n}x{f}");
                let matrix = |name| wide(name, n * f).reshape(&[n, f]);
                let (g, u, dh) = (matrix("g"), matrix("u"), matrix("dh"));
                let found = swiglu_rounded(&device, &g, &u);
                let expected = swiglu(&device, &g, &u).cast(crate::Dtype::Bf16);
                same_bits(found.product.to_tensor().as_f32(), &expected.to_f32_vec(), &what);
                let (g, u) = (g.cast(crate::Dtype::Bf16).to_f32_vec(), u.cast(crate::Dtype::Bf16).to_f32_vec());
                same_bits(found.gate.to_tensor().as_f32(), &g, &what);
                same_bits(found.up.to_tensor().as_f32(), &u, &what);
                let [dg, du, product] = swiglu_rounded_backward(&device, &dh, &found.gate, &found.up);
                let expected = reference::swiglu_backward(dh.as_f32(), &g, &u);
                close(product.to_tensor().as_f32(), &reference::swiglu(&g, &u), 4e-3, &what);
                close(dg.to_tensor().as_f32(), &expected.0, 4e-3, &what);
                close(du.to_tensor().as_f32(), &expected.1, 4e-3, &what);
            }
        }
    }

    #[test]
    fn the_plain_swiglu_gradient_is_the_finite_difference() {
        let (g, u) = ([-3.0, -1.28, 0.0, 0.5, 4.0f32], [1.0, -2.0, 0.7, 3.0, 0.1f32]);
        let (dg, du) = reference::swiglu_backward(&[1.0; 5], &g, &u);
        let h = 1.0 / 256.0;
        for i in 0..5 {
            let at = |dg: f32, du: f32| reference::swiglu(&[g[i] + dg], &[u[i] + du])[0];
            close(&[dg[i]], &[(at(h, 0.0) - at(-h, 0.0)) / (2.0 * h)], 2e-4, "gate");
            close(&[du[i]], &[(at(0.0, h) - at(0.0, -h)) / (2.0 * h)], 2e-4, "up");
        }
    }

    #[test]
    fn swiglu_of_huge_gates_is_finite() {
        let g = Tensor::from_f32(&[4], vec![-1e4, -90.0, 90.0, 1e4]);
        let h = swiglu(&Device::cpu(1), &g, &Tensor::from_f32(&[4], vec![1.0; 4]));
        close(h.as_f32(), &[0.0, 0.0, 90.0, 1e4], 1e-6, "silu");
    }
}
