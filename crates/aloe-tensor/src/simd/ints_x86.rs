//! Integer vectors on AVX2 and AVX-512, with and without the byte dot product (VNNI).

use super::avx2::Avx2;
use super::avx512::{Avx512, Avx512Bf16};
use super::ints::Vectors;
use std::arch::x86_64::*;

/// `acc + sum of four (u * s)` by way of 16-bit pairs: exact while a pair stays below 2^15, which u up to 128 and s up to 127 do.
#[inline(always)]
unsafe fn dot_by_pairs_256(acc: __m256i, u: __m256i, s: __m256i) -> __m256i {
    _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1)))
}

#[inline(always)]
unsafe fn dot_by_pairs_512(acc: __m512i, u: __m512i, s: __m512i) -> __m512i {
    _mm512_add_epi32(acc, _mm512_madd_epi16(_mm512_maddubs_epi16(u, s), _mm512_set1_epi16(1)))
}

/// The sign of `u - 128` goes to s, its size (up to 128) stays.
#[inline(always)]
unsafe fn dot_offset_by_pairs_512(acc: __m512i, u: __m512i, s: __m512i) -> __m512i {
    let w = _mm512_xor_si512(u, _mm512_set1_epi8(-128));
    let signed = _mm512_mask_sub_epi8(s, _mm512_movepi8_mask(w), _mm512_setzero_si512(), s);
    dot_by_pairs_512(acc, _mm512_abs_epi8(w), signed)
}

#[inline(always)]
unsafe fn dot_vnni(acc: __m512i, u: __m512i, s: __m512i) -> __m512i {
    _mm512_dpbusd_epi32(acc, u, s)
}

macro_rules! vectors_512 {
    ($name:ident, $dot:ident, $dot_offset:ident, $taken:literal) => {
        impl Vectors for $name {
            type V = __m512;
            type I = __m512i;
            const OFFSET_TAKEN: bool = $taken;

            #[inline(always)]
            unsafe fn load_bytes(p: *const u8) -> __m512i {
                _mm512_maskz_loadu_epi32(0xffff, p.cast())
            }
            #[inline(always)]
            unsafe fn splat_i32(x: i32) -> __m512i {
                _mm512_set1_epi32(x)
            }
            #[inline(always)]
            unsafe fn splat_bytes(p: *const i8) -> __m512i {
                _mm512_set1_epi32(p.cast::<i32>().read_unaligned())
            }
            #[inline(always)]
            unsafe fn low_nibbles(x: __m512i) -> __m512i {
                _mm512_and_si512(x, _mm512_set1_epi8(15))
            }
            #[inline(always)]
            unsafe fn high_nibbles(x: __m512i) -> __m512i {
                _mm512_and_si512(_mm512_srli_epi16::<4>(x), _mm512_set1_epi8(15))
            }
            #[inline(always)]
            unsafe fn join_bits(nibbles: __m512i, high: __m512i, part: usize) -> __m512i {
                let moved = match part {
                    0 => _mm512_slli_epi16::<4>(high),
                    1 => _mm512_slli_epi16::<2>(high),
                    2 => high,
                    _ => _mm512_srli_epi16::<2>(high),
                };
                _mm512_or_si512(nibbles, _mm512_and_si512(moved, _mm512_set1_epi8(0x30)))
            }
            #[inline(always)]
            unsafe fn dot(acc: __m512i, u: __m512i, s: __m512i) -> __m512i {
                $dot(acc, u, s)
            }
            #[inline(always)]
            unsafe fn dot_offset(acc: __m512i, u: __m512i, s: __m512i) -> __m512i {
                $dot_offset(acc, u, s)
            }
            #[inline(always)]
            unsafe fn to_f32(x: __m512i) -> __m512 {
                _mm512_cvtepi32_ps(x)
            }
            #[inline(always)]
            unsafe fn load_f16(p: *const u16) -> __m512 {
                _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(0xffff, p.cast()))
            }
            #[inline(always)]
            unsafe fn load_u8(p: *const u8) -> __m512 {
                _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(0xffff, p.cast())))
            }
            #[inline(always)]
            unsafe fn load_i8(p: *const i8) -> __m512 {
                _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(0xffff, p)))
            }
            #[inline(always)]
            unsafe fn store_i8(p: *mut i8, v: __m512) {
                _mm_mask_storeu_epi8(p, 0xffff, _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v)));
            }
            #[inline(always)]
            unsafe fn prefetch(p: *const u8) {
                _mm_prefetch::<_MM_HINT_T0>(p.cast());
            }
        }
    };
}

vectors_512!(Avx512, dot_by_pairs_512, dot_offset_by_pairs_512, true);
vectors_512!(Avx512Bf16, dot_vnni, dot_vnni, false);

impl Vectors for Avx2 {
    type V = [__m256; 2];
    type I = [__m256i; 2];
    const OFFSET_TAKEN: bool = true;

    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::I {
        [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.wrapping_add(32).cast())]
    }
    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> Self::I {
        [_mm256_set1_epi32(x); 2]
    }
    #[inline(always)]
    unsafe fn splat_bytes(p: *const i8) -> Self::I {
        [_mm256_set1_epi32(p.cast::<i32>().read_unaligned()); 2]
    }
    #[inline(always)]
    unsafe fn low_nibbles(x: Self::I) -> Self::I {
        let mask = _mm256_set1_epi8(15);
        [_mm256_and_si256(x[0], mask), _mm256_and_si256(x[1], mask)]
    }
    #[inline(always)]
    unsafe fn high_nibbles(x: Self::I) -> Self::I {
        Self::low_nibbles([_mm256_srli_epi16::<4>(x[0]), _mm256_srli_epi16::<4>(x[1])])
    }
    #[inline(always)]
    unsafe fn join_bits(nibbles: Self::I, high: Self::I, part: usize) -> Self::I {
        let mask = _mm256_set1_epi8(0x30);
        let mut out = nibbles;
        let mut i = 0;
        while i < 2 {
            let moved = match part {
                0 => _mm256_slli_epi16::<4>(high[i]),
                1 => _mm256_slli_epi16::<2>(high[i]),
                2 => high[i],
                _ => _mm256_srli_epi16::<2>(high[i]),
            };
            out[i] = _mm256_or_si256(nibbles[i], _mm256_and_si256(moved, mask));
            i += 1;
        }
        out
    }
    #[inline(always)]
    unsafe fn dot(acc: Self::I, u: Self::I, s: Self::I) -> Self::I {
        [dot_by_pairs_256(acc[0], u[0], s[0]), dot_by_pairs_256(acc[1], u[1], s[1])]
    }
    #[inline(always)]
    unsafe fn dot_offset(acc: Self::I, u: Self::I, s: Self::I) -> Self::I {
        let flip = _mm256_set1_epi8(-128);
        let mut out = acc;
        let mut i = 0;
        while i < 2 {
            let w = _mm256_xor_si256(u[i], flip);
            out[i] = dot_by_pairs_256(acc[i], _mm256_abs_epi8(w), _mm256_sign_epi8(s[i], w));
            i += 1;
        }
        out
    }
    #[inline(always)]
    unsafe fn to_f32(x: Self::I) -> Self::V {
        [_mm256_cvtepi32_ps(x[0]), _mm256_cvtepi32_ps(x[1])]
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::V {
        let half = |p: *const u16| p.cast::<__m128i>();
        [_mm256_cvtph_ps(_mm_loadu_si128(half(p))), _mm256_cvtph_ps(_mm_loadu_si128(half(p.wrapping_add(8))))]
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::V {
        let low = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()));
        let high = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.wrapping_add(8).cast()));
        Self::to_f32([low, high])
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self::V {
        let low = _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()));
        let high = _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.wrapping_add(8).cast()));
        Self::to_f32([low, high])
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, v: Self::V) {
        // Packing works in 128-bit halves: the halves are put together before the second step.
        let words = _mm256_packs_epi32(_mm256_cvtps_epi32(v[0]), _mm256_cvtps_epi32(v[1]));
        let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
        let (low, high) = (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
        _mm_storeu_si128(p.cast(), _mm_packs_epi16(low, high));
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        _mm_prefetch::<_MM_HINT_T0>(p.cast());
    }
}
