//! The 16 lanes as an array: what the compiler makes of plain loops on any processor. No fused multiply-add.

use super::{Kernel, LANES, Simd, bf16_from_f32, bf16_pair};

#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn map2(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Portable {
    const TILE_ROWS: usize = 2;
    const BLOCK_ROWS: usize = 2;
    type Kept = [bool; LANES];

    unsafe fn call<K: Kernel>(kernel: K) -> K::Out {
        kernel.run::<Self>()
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        p.cast::<Self::V>().read_unaligned()
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        p.cast::<Self::V>().write_unaligned(v);
    }
    #[inline(always)]
    unsafe fn load_n(p: *const f32, n: usize) -> Self::V {
        let mut v = [0.0; LANES];
        for (i, lane) in v.iter_mut().enumerate().take(n) {
            *lane = p.wrapping_add(i).read_unaligned();
        }
        v
    }
    #[inline(always)]
    unsafe fn store_n(p: *mut f32, v: Self::V, n: usize) {
        for (i, lane) in v.iter().enumerate().take(n) {
            p.wrapping_add(i).write_unaligned(*lane);
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        map2(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        map2(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        map2(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        map2(a, b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn sqrt(a: Self::V) -> Self::V {
        a.map(f32::sqrt)
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        map2(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        map2(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn round(a: Self::V) -> Self::V {
        a.map(|a| {
            // Adding and taking away 1.5 * 2^23 rounds to an integer, ties to even, for the sizes met here.
            const SHIFT: f32 = 12_582_912.0;
            if a.abs() < 4_194_304.0 { (a + SHIFT) - SHIFT } else { a }
        })
    }
    #[inline(always)]
    unsafe fn power_of_two(a: Self::V) -> Self::V {
        a.map(|a| f32::from_bits(((a as i32 + 127) << 23) as u32))
    }
    #[inline(always)]
    unsafe fn not_below(x: Self::V, limit: Self::V) -> Self::Kept {
        std::array::from_fn(|i| !matches!(x[i].partial_cmp(&limit[i]), Some(std::cmp::Ordering::Less)))
    }
    #[inline(always)]
    unsafe fn zero_others(kept: Self::Kept, y: Self::V) -> Self::V {
        std::array::from_fn(|i| if kept[i] { y[i] } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn upper_bf16(bits: Self::V) -> Self::V {
        bits.map(|unit| bf16_pair(unit.to_bits()).1)
    }
    #[inline(always)]
    unsafe fn lower_bf16(bits: Self::V) -> Self::V {
        bits.map(|unit| bf16_pair(unit.to_bits()).0)
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut u16, v: Self::V) {
        p.cast::<[u16; LANES]>().write_unaligned(v.map(bf16_from_f32));
    }
    #[inline(always)]
    unsafe fn pair_bf16(low: Self::V, high: Self::V) -> Self::V {
        std::array::from_fn(|i| f32::from_bits(bf16_from_f32(low[i]) as u32 | (bf16_from_f32(high[i]) as u32) << 16))
    }
}
