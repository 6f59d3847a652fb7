//! The 16 lanes as two AVX2 registers, with FMA.

use super::{Kernel, Simd};
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub(crate) struct Avx2;

type V = [__m256; 2];

/// Lanes below `n` all ones, from a sliding window over ones and zeros.
#[inline(always)]
unsafe fn mask(n: usize) -> [__m256i; 2] {
    const WINDOW: [i32; 32] = {
        let mut w = [0; 32];
        let mut i = 0;
        while i < 16 {
            w[i] = -1;
            i += 1;
        }
        w
    };
    let p = WINDOW.as_ptr().wrapping_add(16 - n);
    [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.wrapping_add(8).cast())]
}

/// Rounded to bf16 in the upper half of each lane, ties to even; NaN stays NaN.
#[inline(always)]
unsafe fn rounded(v: __m256) -> __m256i {
    let bits = _mm256_castps_si256(v);
    let even = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
    let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(even, _mm256_set1_epi32(0x7fff)));
    let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
    _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v)))
}

/// The sum of eight lanes, halves added until one is left.
#[inline(always)]
pub(super) unsafe fn sum_256(v: __m256) -> f32 {
    let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps::<1>(v, v)))
}

/// The largest of eight lanes, by the same folding.
#[inline(always)]
pub(super) unsafe fn max_256(v: __m256) -> f32 {
    let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_max_ss(v, _mm_shuffle_ps::<1>(v, v)))
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn enter<K: Kernel>(kernel: K) -> K::Out {
    kernel.run::<Avx2>()
}

impl Simd for Avx2 {
    const TILE_ROWS: usize = 4;
    const BLOCK_ROWS: usize = 2;
    type Kept = V;

    #[inline(always)]
    unsafe fn call<K: Kernel>(kernel: K) -> K::Out {
        enter(kernel)
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> V {
        [_mm256_set1_ps(x); 2]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> V {
        [_mm256_loadu_ps(p), _mm256_loadu_ps(p.wrapping_add(8))]
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: V) {
        _mm256_storeu_ps(p, v[0]);
        _mm256_storeu_ps(p.wrapping_add(8), v[1]);
    }
    #[inline(always)]
    unsafe fn load_n(p: *const f32, n: usize) -> V {
        let m = mask(n);
        [_mm256_maskload_ps(p, m[0]), _mm256_maskload_ps(p.wrapping_add(8), m[1])]
    }
    #[inline(always)]
    unsafe fn store_n(p: *mut f32, v: V, n: usize) {
        let m = mask(n);
        _mm256_maskstore_ps(p, m[0], v[0]);
        _mm256_maskstore_ps(p.wrapping_add(8), m[1], v[1]);
    }
    #[inline(always)]
    unsafe fn sum_lanes(v: V) -> f32 {
        sum_256(_mm256_add_ps(v[0], v[1]))
    }
    #[inline(always)]
    unsafe fn max_lanes(v: V) -> f32 {
        max_256(_mm256_max_ps(v[0], v[1]))
    }
    #[inline(always)]
    unsafe fn splat_at(p: *const u32) -> V {
        [_mm256_broadcast_ss(&*p.cast()); 2]
    }
    #[inline(always)]
    unsafe fn add(a: V, b: V) -> V {
        [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn sub(a: V, b: V) -> V {
        [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn mul(a: V, b: V) -> V {
        [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn div(a: V, b: V) -> V {
        [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn sqrt(a: V) -> V {
        [_mm256_sqrt_ps(a[0]), _mm256_sqrt_ps(a[1])]
    }
    #[inline(always)]
    unsafe fn fma(a: V, b: V, c: V) -> V {
        [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])]
    }
    #[inline(always)]
    unsafe fn max(a: V, b: V) -> V {
        [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn min(a: V, b: V) -> V {
        [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn round(a: V) -> V {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        [_mm256_round_ps::<NEAREST>(a[0]), _mm256_round_ps::<NEAREST>(a[1])]
    }
    #[inline(always)]
    unsafe fn power_of_two(a: V) -> V {
        let bias = _mm256_set1_epi32(127);
        [
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(a[0]), bias))),
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(a[1]), bias))),
        ]
    }
    #[inline(always)]
    unsafe fn not_below(x: V, limit: V) -> V {
        [_mm256_cmp_ps::<_CMP_NLT_UQ>(x[0], limit[0]), _mm256_cmp_ps::<_CMP_NLT_UQ>(x[1], limit[1])]
    }
    #[inline(always)]
    unsafe fn zero_others(kept: V, y: V) -> V {
        [_mm256_and_ps(kept[0], y[0]), _mm256_and_ps(kept[1], y[1])]
    }
    #[inline(always)]
    unsafe fn upper_bf16(bits: V) -> V {
        let upper = _mm256_castsi256_ps(_mm256_set1_epi32(0xffff_0000u32 as i32));
        [_mm256_and_ps(bits[0], upper), _mm256_and_ps(bits[1], upper)]
    }
    #[inline(always)]
    unsafe fn lower_bf16(bits: V) -> V {
        [
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(bits[0]))),
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(bits[1]))),
        ]
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut u16, v: V) {
        // Packing works in 128-bit halves: the permutation puts the quarters back in order.
        let (a, b) = (_mm256_srli_epi32::<16>(rounded(v[0])), _mm256_srli_epi32::<16>(rounded(v[1])));
        _mm256_storeu_si256(p.cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(a, b)));
    }
    #[inline(always)]
    unsafe fn pair_bf16(low: V, high: V) -> V {
        let top = _mm256_set1_epi32(0xffff_0000u32 as i32);
        let mut out = low;
        let mut i = 0;
        while i < 2 {
            let (l, h) = (_mm256_srli_epi32::<16>(rounded(low[i])), _mm256_and_si256(rounded(high[i]), top));
            out[i] = _mm256_castsi256_ps(_mm256_or_si256(l, h));
            i += 1;
        }
        out
    }
}
