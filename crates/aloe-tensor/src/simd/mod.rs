//! Vectors of 16 f32 on every instruction set, and the one place where an instruction set is chosen.
//!
//! Kernels are written once, generic over [`Simd`], as a [`Kernel`] struct; `Isa::run` enters the function compiled for the
//! device's instruction set. Everything a kernel calls is `inline(always)`, so that it is compiled with those instructions.
//! All widths do the same operations in the same order; only fused multiply-add (absent in `portable`) and the bf16 dot
//! product round differently.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod ints;
#[cfg(target_arch = "x86_64")]
mod ints_x86;
mod math;
mod portable;

pub(crate) use ints::Vectors;
pub(crate) use math::{Exp, exp, exp_all, max_lanes, sigmoid, sum_lanes};

use crate::device::Isa;
use crate::narrow::byte_of;
use crate::tensor::{bf16_from_f32, f32_from_bf16};

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// A piece of work compiled once per instruction set.
pub(crate) trait Kernel {
    type Out;

    /// # Safety
    /// The instruction set of `S` is available, and the kernel's pointers are valid as its type says.
    unsafe fn run<S: Simd>(self) -> Self::Out;
}

/// Sixteen f32 lanes. Pointers need no alignment.
///
/// # Safety of all functions
/// The instruction set is available; pointers are valid for the lanes read or written.
pub(crate) trait Simd: Vectors {
    /// Rows of the matrix tile that fit the registers when it is 2 vectors wide.
    const TILE_ROWS: usize;

    /// Rows of the tile over block formats, whose sums take two registers each.
    const BLOCK_ROWS: usize;

    /// Whether pairs of bf16 are multiplied by one instruction; otherwise their halves are widened and multiplied as f32.
    const PAIRS_BF16: bool = false;

    /// Runs a kernel in a function of its own, compiled for this instruction set.
    unsafe fn call<K: Kernel>(kernel: K) -> K::Out;

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    /// The first `n < 16` lanes from memory, the others zero.
    unsafe fn load_n(p: *const f32, n: usize) -> Self::V;
    /// Writes the first `n < 16` lanes only.
    unsafe fn store_n(p: *mut f32, v: Self::V, n: usize);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sqrt(a: Self::V) -> Self::V;
    /// `a * b + c`.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger; b when either is NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; b when either is NaN.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// To the nearest integer, ties to even.
    unsafe fn round(a: Self::V) -> Self::V;
    /// `2^a` for integers a in -126..=127.
    unsafe fn power_of_two(a: Self::V) -> Self::V;
    /// `x * 2^a`, as [`Self::power_of_two`] has it.
    #[inline(always)]
    unsafe fn times_power_of_two(x: Self::V, a: Self::V) -> Self::V {
        Self::mul(x, Self::power_of_two(a))
    }
    /// Which lanes of a vector are kept.
    type Kept: Copy;
    /// All but those where `x < limit`.
    unsafe fn not_below(x: Self::V, limit: Self::V) -> Self::Kept;
    /// y, but 0 in lanes that are not kept.
    unsafe fn zero_others(kept: Self::Kept, y: Self::V) -> Self::V;
    /// y, but 0 in lanes where `x < limit`.
    #[inline(always)]
    unsafe fn zero_below(x: Self::V, limit: Self::V, y: Self::V) -> Self::V {
        Self::zero_others(Self::not_below(x, limit), y)
    }
    /// The bf16 in the upper halves of the lanes' bits, as f32.
    unsafe fn upper_bf16(bits: Self::V) -> Self::V;
    /// The bf16 in the lower halves.
    unsafe fn lower_bf16(bits: Self::V) -> Self::V;
    /// Writes the lanes rounded to bf16.
    unsafe fn store_bf16(p: *mut u16, v: Self::V);
    /// Sixteen bf16, widened.
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::V {
        let mut wide = [0u32; LANES];
        let mut i = 0;
        while i < LANES {
            wide[i] = (p.wrapping_add(i).read_unaligned() as u32) << 16;
            i += 1;
        }
        Self::load(wide.as_ptr().cast())
    }
    /// Both rounded to bf16 as one unit per lane: `low` in the low half.
    unsafe fn pair_bf16(low: Self::V, high: Self::V) -> Self::V;

    /// Two rows of 32 bf16 as 32 units, one per element, `low` in the low half: elements 0..16 and 16..32.
    #[inline(always)]
    unsafe fn interleave_bf16(low: Self::V, high: Self::V) -> (Self::V, Self::V) {
        let (mut l, mut h, mut units) = ([0u16; 32], [0u16; 32], [0u32; 32]);
        Self::store(l.as_mut_ptr().cast(), low);
        Self::store(h.as_mut_ptr().cast(), high);
        let mut i = 0;
        while i < 32 {
            units[i] = l[i] as u32 | (h[i] as u32) << 16;
            i += 1;
        }
        (Self::load(units.as_ptr().cast()), Self::load(units.as_ptr().wrapping_add(16).cast()))
    }

    /// Sum of lanes as pairs of bf16: `acc + a.hi * b.hi + a.lo * b.lo`, the operands' bits being two bf16 per lane.
    #[inline(always)]
    unsafe fn dot_bf16(acc: Self::V, a: Self::V, b: Self::V) -> Self::V {
        let upper = Self::fma(Self::upper_bf16(a), Self::upper_bf16(b), acc);
        Self::fma(Self::lower_bf16(a), Self::lower_bf16(b), upper)
    }

    /// The table of sixteen upper bytes of a narrow panel (`narrow.rs`), for [`Self::widen_pair`].
    #[inline(always)]
    unsafe fn upper_bytes(p: *const u8) -> Self::V {
        Self::load_n(p.cast(), 4)
    }

    /// A pair of units of a narrow panel, escapes apart, as a plain panel has them: halves of the even unit, then of the odd one.
    #[inline(always)]
    unsafe fn widen_pair(upper_bytes: Self::V, p: *const u32) -> [[Self::V; 2]; 2] {
        let (mut table, mut units) = ([0u8; 64], [[[0u16; 32]; 2]; 2]);
        Self::store(table.as_mut_ptr().cast(), upper_bytes);
        let byte = |line: usize, at: usize| p.wrapping_add(line * LANES).cast::<u8>().wrapping_add(at).read();
        for (odd, halves) in units.iter_mut().enumerate() {
            for (second, half) in halves.iter_mut().enumerate() {
                for (word, bits) in half.iter_mut().enumerate() {
                    let at = byte_of(32 * second + word);
                    let code = byte(2, at) >> (4 * odd) & 0xf;
                    *bits = u16::from_le_bytes([byte(odd, at), table[usize::from(code)]]);
                }
            }
        }
        let load = |half: &[u16; 32]| Self::load(half.as_ptr().cast());
        [[load(&units[0][0]), load(&units[0][1])], [load(&units[1][0]), load(&units[1][1])]]
    }

    /// Sum of the lanes, halves added until one is left.
    #[inline(always)]
    unsafe fn sum_lanes(v: Self::V) -> f32 {
        math::fold::<Self>(v, |a, b| a + b)
    }

    /// Largest lane, by the same folding.
    #[inline(always)]
    unsafe fn max_lanes(v: Self::V) -> f32 {
        math::fold::<Self>(v, |a, b| if a > b { a } else { b })
    }

    /// The same 32 bits from memory in every lane.
    #[inline(always)]
    unsafe fn splat_at(p: *const u32) -> Self::V {
        Self::splat(f32::from_bits(p.read_unaligned()))
    }

    /// Rows to columns of a 16 x 16 block.
    #[inline(always)]
    unsafe fn transpose(rows: &mut [Self::V; 16]) {
        let (mut from, mut to) = ([0.0f32; 256], [0.0f32; 256]);
        for (i, row) in rows.iter().enumerate() {
            Self::store(from.as_mut_ptr().wrapping_add(i * 16), *row);
        }
        for i in 0..16 {
            for j in 0..16 {
                to[j * 16 + i] = from[i * 16 + j];
            }
        }
        for (i, row) in rows.iter_mut().enumerate() {
            *row = Self::load(to.as_ptr().wrapping_add(i * 16));
        }
    }

    /// `n <= 16` lanes.
    #[inline(always)]
    unsafe fn load_up_to(p: *const f32, n: usize) -> Self::V {
        if n >= LANES { Self::load(p) } else { Self::load_n(p, n) }
    }

    /// `n <= 16` lanes.
    #[inline(always)]
    unsafe fn store_up_to(p: *mut f32, v: Self::V, n: usize) {
        if n >= LANES { Self::store(p, v) } else { Self::store_n(p, v, n) }
    }
}

impl Isa {
    /// Whether pairs of bf16 are multiplied by one instruction, vectors of them or tiles.
    pub fn pairs_bf16(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx | Isa::Avx512Bf16 => avx512::Avx512Bf16::PAIRS_BF16,
            _ => false,
        }
    }

    /// Runs `kernel` with this instruction set.
    ///
    /// # Safety
    /// The kernel's pointers are valid as its type says.
    #[inline]
    pub(crate) unsafe fn run<K: Kernel>(self, kernel: K) -> K::Out {
        // A `Device` exists only for an available instruction set, and `Isa` reaches kernels only through one.
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx | Isa::Avx512Bf16 => avx512::Avx512Bf16::call(kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => avx512::Avx512::call(kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::Avx2::call(kernel),
            _ => portable::Portable::call(kernel),
        }
    }
}

/// Brings a cache line into the second-level cache where the processor can; any address is fine.
#[inline(always)]
pub(crate) fn prefetch_near(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint of the baseline instruction set, which never faults.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// The two bf16 of a lane's bits, widened: (low, high).
#[inline(always)]
fn bf16_pair(bits: u32) -> (f32, f32) {
    (f32_from_bf16(bits as u16), f32_from_bf16((bits >> 16) as u16))
}
