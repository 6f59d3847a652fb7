//! The 16 lanes as one AVX-512 register, with and without the bf16 dot product.
//!
//! Whole vectors are moved by the masked instructions with all lanes on, which compile to plain moves: `_mm512_loadu_ps`
//! carries the checks of `read_unaligned` into builds with debug assertions, and the inner loop with it.

use super::avx2::{max_256, sum_256};
use super::{Kernel, Simd};
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub(crate) struct Avx512;

#[derive(Clone, Copy)]
pub(crate) struct Avx512Bf16;

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn enter<K: Kernel>(kernel: K) -> K::Out {
    kernel.run::<Avx512>()
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni")]
unsafe fn enter_bf16<K: Kernel>(kernel: K) -> K::Out {
    kernel.run::<Avx512Bf16>()
}

#[inline(always)]
unsafe fn dot_widened(acc: __m512, a: __m512, b: __m512) -> __m512 {
    let upper = _mm512_fmadd_ps(upper_bf16(a), upper_bf16(b), acc);
    _mm512_fmadd_ps(lower_bf16(a), lower_bf16(b), upper)
}

#[inline(always)]
unsafe fn upper_bf16(bits: __m512) -> __m512 {
    let upper = _mm512_set1_epi32(0xffff_0000u32 as i32);
    _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(bits), upper))
}

#[inline(always)]
unsafe fn lower_bf16(bits: __m512) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(bits)))
}

#[inline(always)]
unsafe fn dot_native(acc: __m512, a: __m512, b: __m512) -> __m512 {
    _mm512_dpbf16_ps(acc, std::mem::transmute::<__m512, __m512bh>(a), std::mem::transmute::<__m512, __m512bh>(b))
}

/// Rounded to bf16 in the upper half of each lane, ties to even; NaN keeps its top bits, with the quiet bit set.
#[inline(always)]
unsafe fn rounded(v: __m512) -> __m512i {
    let bits = _mm512_castps_si512(v);
    let even = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(even, _mm512_set1_epi32(0x7fff)));
    let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
    _mm512_mask_blend_epi32(_mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v), rounded, quiet)
}

/// The same by the instruction, but that a number below the least normal one becomes zero, as which the dot product takes it anyway.
#[inline(always)]
unsafe fn store_native(p: *mut u16, v: __m512) {
    let bits = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(v));
    _mm256_mask_storeu_epi16(p.cast(), 0xffff, bits);
}

#[inline(always)]
unsafe fn pair_native(low: __m512, high: __m512) -> __m512 {
    const ORDER: [i16; 32] = order(0, 16);
    let order = std::mem::transmute::<[i16; 32], __m512i>(ORDER);
    let rows = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
    _mm512_castsi512_ps(_mm512_permutexvar_epi16(order, rows))
}

/// Elements `first..first + 16`, each followed by the one `apart` behind it.
const fn order(first: i16, apart: i16) -> [i16; 32] {
    let mut order = [0; 32];
    let mut i = 0;
    while i < 32 {
        order[i] = first + i as i16 / 2 + if i % 2 == 1 { apart } else { 0 };
        i += 1;
    }
    order
}

#[inline(always)]
unsafe fn store_rounded(p: *mut u16, v: __m512) {
    _mm256_mask_storeu_epi16(p.cast(), 0xffff, _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded(v))));
}

#[inline(always)]
unsafe fn pair(low: __m512, high: __m512) -> __m512 {
    let top = _mm512_set1_epi32(0xffff_0000u32 as i32);
    let high = _mm512_and_si512(rounded(high), top);
    _mm512_castsi512_ps(_mm512_or_si512(_mm512_srli_epi32::<16>(rounded(low)), high))
}

#[inline(always)]
unsafe fn interleave(low: __m512, high: __m512) -> (__m512, __m512) {
    const ORDERS: [[i16; 32]; 2] = [order(0, 32), order(16, 32)];
    let (low, high) = (_mm512_castps_si512(low), _mm512_castps_si512(high));
    let [first, second] = std::mem::transmute::<[[i16; 32]; 2], [__m512i; 2]>(ORDERS);
    (
        _mm512_castsi512_ps(_mm512_permutex2var_epi16(low, first, high)),
        _mm512_castsi512_ps(_mm512_permutex2var_epi16(low, second, high)),
    )
}

/// Sixteen bytes, four times.
#[inline(always)]
unsafe fn upper_bytes(p: *const u8) -> __m512 {
    _mm512_castsi512_ps(_mm512_broadcast_i32x4(_mm_maskz_loadu_epi32(0xf, p.cast())))
}

#[inline(always)]
unsafe fn widen_pair(upper_bytes: __m512, p: *const u32) -> [[__m512; 2]; 2] {
    let (even, odd) = (_mm512_maskz_loadu_epi32(0xffff, p.cast()), _mm512_maskz_loadu_epi32(0xffff, p.add(16).cast()));
    let (table, codes) = (_mm512_castps_si512(upper_bytes), _mm512_maskz_loadu_epi32(0xffff, p.add(32).cast()));
    let four_bits = _mm512_set1_epi8(0xf);
    let even_upper = _mm512_shuffle_epi8(table, _mm512_and_si512(codes, four_bits));
    let odd_upper = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16::<4>(codes), four_bits));
    [interleaved(even, even_upper), interleaved(odd, odd_upper)]
}

/// Words of the bytes of both: those of the lower half of each 16, and of the upper half.
#[inline(always)]
unsafe fn interleaved(lower: __m512i, upper: __m512i) -> [__m512; 2] {
    let (first, second) = (_mm512_unpacklo_epi8(lower, upper), _mm512_unpackhi_epi8(lower, upper));
    [_mm512_castsi512_ps(first), _mm512_castsi512_ps(second)]
}

#[inline(always)]
unsafe fn transpose(r: &mut [__m512; 16]) {
    let mut t = *r;
    let mut i = 0;
    while i < 16 {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
        i += 2;
    }
    i = 0;
    while i < 16 {
        r[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(t[i]), _mm512_castps_pd(t[i + 2])));
        r[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(t[i]), _mm512_castps_pd(t[i + 2])));
        r[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(t[i + 1]), _mm512_castps_pd(t[i + 3])));
        r[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(t[i + 1]), _mm512_castps_pd(t[i + 3])));
        i += 4;
    }
    // r[4g + c] holds, in its 128-bit quarter q, column 4q + c of rows 4g..4g+4.
    i = 0;
    while i < 4 {
        let (low, high) = (_mm512_shuffle_f32x4::<0x88>(r[i], r[i + 4]), _mm512_shuffle_f32x4::<0xdd>(r[i], r[i + 4]));
        let (low2, high2) =
            (_mm512_shuffle_f32x4::<0x88>(r[i + 8], r[i + 12]), _mm512_shuffle_f32x4::<0xdd>(r[i + 8], r[i + 12]));
        t[i] = _mm512_shuffle_f32x4::<0x88>(low, low2);
        t[i + 8] = _mm512_shuffle_f32x4::<0xdd>(low, low2);
        t[i + 4] = _mm512_shuffle_f32x4::<0x88>(high, high2);
        t[i + 12] = _mm512_shuffle_f32x4::<0xdd>(high, high2);
        i += 1;
    }
    *r = t;
}

macro_rules! avx512 {
    ($name:ident, $enter:ident, $dot:ident, $store:ident, $pair:ident, $pairs:literal) => {
        impl Simd for $name {
            const TILE_ROWS: usize = 12;
            const BLOCK_ROWS: usize = 6;
            const PAIRS_BF16: bool = $pairs;
            type Kept = __mmask16;

            #[inline(always)]
            unsafe fn call<K: Kernel>(kernel: K) -> K::Out {
                $enter(kernel)
            }
            #[inline(always)]
            unsafe fn splat(x: f32) -> __m512 {
                _mm512_set1_ps(x)
            }
            #[inline(always)]
            unsafe fn load(p: *const f32) -> __m512 {
                _mm512_maskz_loadu_ps(0xffff, p)
            }
            #[inline(always)]
            unsafe fn store(p: *mut f32, v: __m512) {
                _mm512_mask_storeu_ps(p, 0xffff, v);
            }
            #[inline(always)]
            unsafe fn load_n(p: *const f32, n: usize) -> __m512 {
                _mm512_maskz_loadu_ps(((1u32 << n) - 1) as u16, p)
            }
            #[inline(always)]
            unsafe fn store_n(p: *mut f32, v: __m512, n: usize) {
                _mm512_mask_storeu_ps(p, ((1u32 << n) - 1) as u16, v);
            }
            #[inline(always)]
            unsafe fn add(a: __m512, b: __m512) -> __m512 {
                _mm512_add_ps(a, b)
            }
            #[inline(always)]
            unsafe fn sub(a: __m512, b: __m512) -> __m512 {
                _mm512_sub_ps(a, b)
            }
            #[inline(always)]
            unsafe fn mul(a: __m512, b: __m512) -> __m512 {
                _mm512_mul_ps(a, b)
            }
            #[inline(always)]
            unsafe fn div(a: __m512, b: __m512) -> __m512 {
                _mm512_div_ps(a, b)
            }
            #[inline(always)]
            unsafe fn sqrt(a: __m512) -> __m512 {
                _mm512_sqrt_ps(a)
            }
            #[inline(always)]
            unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
                _mm512_fmadd_ps(a, b, c)
            }
            #[inline(always)]
            unsafe fn max(a: __m512, b: __m512) -> __m512 {
                _mm512_max_ps(a, b)
            }
            #[inline(always)]
            unsafe fn min(a: __m512, b: __m512) -> __m512 {
                _mm512_min_ps(a, b)
            }
            #[inline(always)]
            unsafe fn round(a: __m512) -> __m512 {
                _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a)
            }
            #[inline(always)]
            unsafe fn power_of_two(a: __m512) -> __m512 {
                let exponent = _mm512_add_epi32(_mm512_cvtps_epi32(a), _mm512_set1_epi32(127));
                _mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent))
            }
            #[inline(always)]
            unsafe fn times_power_of_two(x: __m512, a: __m512) -> __m512 {
                _mm512_scalef_ps(x, a)
            }
            #[inline(always)]
            unsafe fn not_below(x: __m512, limit: __m512) -> __mmask16 {
                _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, limit)
            }
            #[inline(always)]
            unsafe fn zero_others(kept: __mmask16, y: __m512) -> __m512 {
                _mm512_maskz_mov_ps(kept, y)
            }
            #[inline(always)]
            unsafe fn dot_bf16(acc: __m512, a: __m512, b: __m512) -> __m512 {
                $dot(acc, a, b)
            }
            #[inline(always)]
            unsafe fn upper_bf16(bits: __m512) -> __m512 {
                upper_bf16(bits)
            }
            #[inline(always)]
            unsafe fn lower_bf16(bits: __m512) -> __m512 {
                lower_bf16(bits)
            }
            #[inline(always)]
            unsafe fn store_bf16(p: *mut u16, v: __m512) {
                $store(p, v);
            }
            #[inline(always)]
            unsafe fn pair_bf16(low: __m512, high: __m512) -> __m512 {
                $pair(low, high)
            }
            #[inline(always)]
            unsafe fn load_bf16(p: *const u16) -> __m512 {
                let bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(0xffff, p.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
            }
            #[inline(always)]
            unsafe fn interleave_bf16(low: __m512, high: __m512) -> (__m512, __m512) {
                interleave(low, high)
            }
            #[inline(always)]
            unsafe fn upper_bytes(p: *const u8) -> __m512 {
                upper_bytes(p)
            }
            #[inline(always)]
            unsafe fn widen_pair(upper_bytes: __m512, p: *const u32) -> [[__m512; 2]; 2] {
                widen_pair(upper_bytes, p)
            }
            #[inline(always)]
            unsafe fn sum_lanes(v: __m512) -> f32 {
                sum_256(_mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v)))
            }
            #[inline(always)]
            unsafe fn max_lanes(v: __m512) -> f32 {
                max_256(_mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v)))
            }
            #[inline(always)]
            unsafe fn splat_at(p: *const u32) -> __m512 {
                _mm512_broadcastss_ps(_mm_load_ss(p.cast()))
            }
            #[inline(always)]
            unsafe fn transpose(rows: &mut [__m512; 16]) {
                transpose(rows);
            }
        }
    };
}

avx512!(Avx512, enter, dot_widened, store_rounded, pair, false);
avx512!(Avx512Bf16, enter_bf16, dot_native, store_native, pair_native, true);
