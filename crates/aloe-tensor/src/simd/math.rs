//! Functions of a vector: exp, the logistic function, and reductions over lanes in a fixed order.

use super::{LANES, Simd};

/// `e^x` within 2 ulp; 0 below -87.33 (no denormals), about 2.4e38 above 88.37, NaN for NaN.
///
/// Method of Cephes' expf (Moshier): `x = n ln 2 + r`, a polynomial of degree 5 in r.
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    exp_all::<S, 1>([x])[0]
}

/// [`exp`] of several vectors step by step, so that one's step is done while another's is awaited.
#[inline(always)]
pub(crate) unsafe fn exp_all<S: Simd, const N: usize>(x: [S::V; N]) -> [S::V; N] {
    let mut all = [Exp::<S>::of(x[0]); N];
    let mut i = 0;
    while i < N {
        all[i] = Exp::of(x[i]);
        all[i].r = S::min(S::splat(88.37), all[i].r);
        i += 1;
    }
    let mut step = 0;
    while step < Exp::<S>::STEPS {
        i = 0;
        while i < N {
            all[i].step(step);
            i += 1;
        }
        step += 1;
    }
    let mut found = x;
    i = 0;
    while i < N {
        found[i] = all[i].p;
        i += 1;
    }
    found
}

/// An exponential under way: a chain of dependent steps, which a caller may lay between other work. Without the bound from above that
/// [`exp`] has, for numbers of which none is above 0: the bits are the same there.
#[derive(Clone, Copy)]
pub(crate) struct Exp<S: Simd> {
    kept: S::Kept,
    r: S::V,
    n: S::V,
    p: S::V,
}

impl<S: Simd> Exp<S> {
    pub(crate) const STEPS: usize = 5;

    #[inline(always)]
    pub(crate) unsafe fn of(x: S::V) -> Self {
        let least = S::splat(-87.336_54);
        Self { kept: S::not_below(x, least), r: S::max(least, x), n: x, p: x }
    }

    /// Step number `at`, each once and in order.
    #[inline(always)]
    pub(crate) unsafe fn step(&mut self, at: usize) {
        const COEFFICIENTS: [f32; 6] =
            [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
        match at {
            0 => {
                self.n = S::round(S::mul(self.r, S::splat(std::f32::consts::LOG2_E)));
                // ln 2 in two parts: n * 0.693359375 is exact, so that r keeps all its bits.
                self.r = S::fma(self.n, S::splat(-0.693_359_4), self.r);
            }
            1 => {
                self.r = S::fma(self.n, S::splat(2.121_944_4e-4), self.r);
                self.p = S::fma(S::splat(COEFFICIENTS[0]), self.r, S::splat(COEFFICIENTS[1]));
            }
            2 => {
                self.p = S::fma(self.p, self.r, S::splat(COEFFICIENTS[2]));
                self.p = S::fma(self.p, self.r, S::splat(COEFFICIENTS[3]));
            }
            3 => {
                self.p = S::fma(self.p, self.r, S::splat(COEFFICIENTS[4]));
                self.p = S::fma(self.p, self.r, S::splat(COEFFICIENTS[5]));
            }
            _ => {
                let e = S::add(S::fma(self.p, S::mul(self.r, self.r), self.r), S::splat(1.0));
                self.p = S::zero_others(self.kept, S::times_power_of_two(e, self.n));
            }
        }
    }

    /// The result, after all steps.
    #[inline(always)]
    pub(crate) fn found(&self) -> S::V {
        self.p
    }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) unsafe fn sigmoid<S: Simd>(x: S::V) -> S::V {
    let one = S::splat(1.0);
    S::div(one, S::add(one, exp::<S>(S::sub(S::splat(0.0), x))))
}

/// Sum of the lanes: halves are added until one is left, the same on every instruction set.
#[inline(always)]
pub(crate) unsafe fn sum_lanes<S: Simd>(v: S::V) -> f32 {
    S::sum_lanes(v)
}

/// Largest lane; lanes are not NaN.
#[inline(always)]
pub(crate) unsafe fn max_lanes<S: Simd>(v: S::V) -> f32 {
    S::max_lanes(v)
}

/// Lanes folded in halves by plain code: what every instruction set must give.
#[inline(always)]
pub(crate) unsafe fn fold<S: Simd>(v: S::V, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    S::store(lanes.as_mut_ptr(), v);
    let mut half = LANES / 2;
    while half > 0 {
        let mut i = 0;
        while i < half {
            lanes[i] = f(lanes[i], lanes[i + half]);
            i += 1;
        }
        half /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Kernel;
    use crate::testing::{devices, normal};

    struct Folds(Vec<f32>);

    impl Kernel for Folds {
        type Out = [f32; 4];

        #[inline(always)]
        unsafe fn run<S: Simd>(self) -> [f32; 4] {
            let v = S::load(self.0.as_ptr());
            let max = |a, b| if a > b { a } else { b };
            [sum_lanes::<S>(v), fold::<S>(v, |a, b| a + b), max_lanes::<S>(v), fold::<S>(v, max)]
        }
    }

    #[test]
    fn sums_and_maxima_over_lanes_are_the_plain_folds_bit_for_bit() {
        for device in devices() {
            for chunk in normal("lanes", &[64, LANES]).as_f32().chunks_exact(LANES) {
                // SAFETY: sixteen numbers.
                let [sum, plain_sum, max, plain_max] = unsafe { device.isa().run(Folds(chunk.to_vec())) };
                assert_eq!((sum.to_bits(), max.to_bits()), (plain_sum.to_bits(), plain_max.to_bits()), "{device:?}");
            }
        }
    }
}
