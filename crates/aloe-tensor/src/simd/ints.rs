//! Integer vectors: sixteen i32 lanes, or the same 512 bits as 64 bytes. What block formats need: nibbles, byte dot products
//! with exact i32 sums, and scales widened to f32. Every instruction set gives the same integers.

/// Types of the vectors, and the integer operations.
///
/// # Safety of all functions
/// The instruction set is available; pointers are valid for the bytes read or written. They need no alignment.
pub(crate) trait Vectors: Copy + 'static {
    /// Sixteen f32.
    type V: Copy;
    /// Sixteen i32, or 64 bytes.
    type I: Copy;
    /// Whether [`Self::dot_offset`] subtracts 128 from its bytes.
    const OFFSET_TAKEN: bool;

    /// 64 bytes.
    unsafe fn load_bytes(p: *const u8) -> Self::I;
    unsafe fn splat_i32(x: i32) -> Self::I;
    /// The same four bytes from memory in every lane.
    unsafe fn splat_bytes(p: *const i8) -> Self::I;
    /// The low four bits of each byte.
    unsafe fn low_nibbles(x: Self::I) -> Self::I;
    /// The high four bits of each byte.
    unsafe fn high_nibbles(x: Self::I) -> Self::I;
    /// `nibbles` with bits `2 part` and `2 part + 1` of each byte of `high` as bits 4 and 5; part is 0 to 3.
    unsafe fn join_bits(nibbles: Self::I, high: Self::I, part: usize) -> Self::I;
    /// Lane by lane `acc + sum of four u * s`: u bytes up to 127 without sign, s from -127 to 127.
    unsafe fn dot(acc: Self::I, u: Self::I, s: Self::I) -> Self::I;
    /// The same with any bytes u. Where [`Self::OFFSET_TAKEN`], `u - 128` stands in place of u; elsewhere the caller takes
    /// away 128 times the sum of s.
    unsafe fn dot_offset(acc: Self::I, u: Self::I, s: Self::I) -> Self::I;
    unsafe fn to_f32(x: Self::I) -> Self::V;
    /// Sixteen IEEE halves.
    unsafe fn load_f16(p: *const u16) -> Self::V;
    /// Sixteen bytes without sign.
    unsafe fn load_u8(p: *const u8) -> Self::V;
    /// Sixteen signed bytes.
    unsafe fn load_i8(p: *const i8) -> Self::V;
    /// Writes integers of -127..=127 as signed bytes.
    unsafe fn store_i8(p: *mut i8, v: Self::V);
    /// Brings the cache line at `p` nearer; any address is fine.
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        let _ = p;
    }
}

impl Vectors for super::portable::Portable {
    type V = [f32; 16];
    type I = [[u8; 4]; 16];
    const OFFSET_TAKEN: bool = true;

    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::I {
        p.cast::<Self::I>().read_unaligned()
    }
    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> Self::I {
        [x.to_le_bytes(); 16]
    }
    #[inline(always)]
    unsafe fn splat_bytes(p: *const i8) -> Self::I {
        [p.cast::<[u8; 4]>().read_unaligned(); 16]
    }
    #[inline(always)]
    unsafe fn low_nibbles(x: Self::I) -> Self::I {
        x.map(|lane| lane.map(|b| b & 15))
    }
    #[inline(always)]
    unsafe fn high_nibbles(x: Self::I) -> Self::I {
        x.map(|lane| lane.map(|b| b >> 4))
    }
    #[inline(always)]
    unsafe fn join_bits(nibbles: Self::I, high: Self::I, part: usize) -> Self::I {
        std::array::from_fn(|l| std::array::from_fn(|i| nibbles[l][i] | (high[l][i] >> (2 * part) & 3) << 4))
    }
    #[inline(always)]
    unsafe fn dot(acc: Self::I, u: Self::I, s: Self::I) -> Self::I {
        std::array::from_fn(|l| {
            let sum: i32 = (0..4).map(|i| i32::from(u[l][i]) * i32::from(s[l][i] as i8)).sum();
            (i32::from_le_bytes(acc[l]) + sum).to_le_bytes()
        })
    }
    #[inline(always)]
    unsafe fn dot_offset(acc: Self::I, u: Self::I, s: Self::I) -> Self::I {
        std::array::from_fn(|l| {
            let sum: i32 = (0..4).map(|i| (i32::from(u[l][i]) - 128) * i32::from(s[l][i] as i8)).sum();
            (i32::from_le_bytes(acc[l]) + sum).to_le_bytes()
        })
    }
    #[inline(always)]
    unsafe fn to_f32(x: Self::I) -> Self::V {
        x.map(|lane| i32::from_le_bytes(lane) as f32)
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::V {
        p.cast::<[u16; 16]>().read_unaligned().map(crate::quant::f16_to_f32)
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::V {
        p.cast::<[u8; 16]>().read_unaligned().map(f32::from)
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self::V {
        p.cast::<[i8; 16]>().read_unaligned().map(f32::from)
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, v: Self::V) {
        p.cast::<[i8; 16]>().write_unaligned(v.map(|x| x as i8));
    }
}
