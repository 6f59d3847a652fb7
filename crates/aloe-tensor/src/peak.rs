//! What the arithmetic units of this machine can do at most: products of registers, for the limits that `aloe bench` prints.
//!
//! No kernel of ours is timed: nothing is packed, widened, scaled or written. As many sums stand in registers as hide an instruction's
//! latency; each step multiplies a vector from a line that stays in the nearest cache (so that no step can be left out) by one that
//! is held. What was done is counted by its result: every operand is one.

use crate::Device;
use crate::pool::SharedMut;
use crate::simd::{Kernel, LANES, Simd};

/// A kind of product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProductKind {
    /// f32, fused with the sum where the path has that.
    F32,
    /// Pairs of bf16 summed in f32, in tiles where the path has them; as [`ProductKind::F32`] on a path that has to widen them.
    Bf16,
    /// Bytes summed exactly in i32, four a lane.
    Int8,
}

impl ProductKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::Int8];
}

/// The most rounds of a run: f32 counts the products of a lane up to 2^24.
const MAX_ROUNDS: usize = 1 << 17;

/// Runs `rounds` steps of products four times on every thread, and returns the operations done: two for each product and its sum.
pub fn run_products(device: &Device, kind: ProductKind, rounds: usize) -> f64 {
    assert!(rounds <= MAX_ROUNDS, "{rounds} rounds");
    let n = 4 * device.threads();
    let mut found = vec![0.0f64; n];
    let out = SharedMut::new(&mut found);
    let one: u32 = match kind {
        ProductKind::F32 => 1.0f32.to_bits(),
        ProductKind::Bf16 if device.isa().pairs_bf16() => 0x3f80_3f80,
        ProductKind::Bf16 => 1.0f32.to_bits(),
        ProductKind::Int8 => 0x0101_0101,
    };
    let ones = [one; LANES * 16];
    device.for_each(n, &|at| {
        // SAFETY: the operands outlive the loop.
        let products = unsafe {
            match (device.isa(), kind) {
                #[cfg(target_arch = "x86_64")]
                (crate::Isa::Amx, ProductKind::Bf16) => crate::gemm::amx::peak(rounds),
                (isa, _) => isa.run(Peak { kind, ones: ones.as_ptr(), rounds }),
            }
        };
        // SAFETY: each index has its own place.
        unsafe { out.slice(at, 1)[0] = products };
    });
    2.0 * found.iter().sum::<f64>()
}

/// The products of one run; `ones` are 16 vectors.
struct Peak {
    kind: ProductKind,
    ones: *const u32,
    rounds: usize,
}

impl Kernel for Peak {
    type Out = f64;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f64 {
        // Registers: 32 of one vector each, 16 of half a one, 16 of a quarter.
        match S::TILE_ROWS {
            8.. => self.products::<S, 12>(),
            4.. => self.products::<S, 5>(),
            _ => self.products::<S, 3>(),
        }
    }
}

impl Peak {
    #[inline(always)]
    unsafe fn products<S: Simd, const N: usize>(self) -> f64 {
        match self.kind {
            ProductKind::Int8 => self.bytes::<S, N>(),
            ProductKind::Bf16 if S::PAIRS_BF16 => self.floats::<S, true, N>(),
            ProductKind::F32 | ProductKind::Bf16 => self.floats::<S, false, N>(),
        }
    }

    #[inline(always)]
    unsafe fn floats<S: Simd, const PAIRS: bool, const N: usize>(self) -> f64 {
        let (mut held, mut sums) = ([S::splat(0.0); N], [S::splat(0.0); N]);
        let mut i = 0;
        while i < N {
            held[i] = S::load(self.ones.wrapping_add(i * LANES).cast());
            i += 1;
        }
        let mut left = self.rounds;
        while left > 0 {
            let read = S::load(self.ones.wrapping_add(left % 4 * LANES).cast());
            let mut i = 0;
            while i < N {
                sums[i] = if PAIRS { S::dot_bf16(sums[i], read, held[i]) } else { S::fma(read, held[i], sums[i]) };
                i += 1;
            }
            left -= 1;
        }
        // By index, and no closure: an array that leaves its registers once is stored in every round.
        let (mut total, mut i) = (0.0, 0);
        while i < N {
            total += f64::from(S::sum_lanes(sums[i]));
            i += 1;
        }
        total
    }

    #[inline(always)]
    unsafe fn bytes<S: Simd, const N: usize>(self) -> f64 {
        let (mut held, mut sums) = ([S::splat_i32(0); N], [S::splat_i32(0); N]);
        let mut i = 0;
        while i < N {
            held[i] = S::load_bytes(self.ones.wrapping_add(i * LANES).cast());
            i += 1;
        }
        let mut left = self.rounds;
        while left > 0 {
            let read = S::load_bytes(self.ones.wrapping_add(left % 4 * LANES).cast());
            let mut i = 0;
            while i < N {
                sums[i] = S::dot(sums[i], read, held[i]);
                i += 1;
            }
            left -= 1;
        }
        // By index, and no closure: an array that leaves its registers once is stored in every round.
        let (mut total, mut i) = (0.0, 0);
        while i < N {
            total += f64::from(S::sum_lanes(S::to_f32(sums[i])));
            i += 1;
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::devices;

    /// By hand for a round: 16 lanes, 12 sums where 32 registers hold a vector each, 5 on AVX2, 3 in plain Rust; two products a lane of
    /// bf16 pairs, four of bytes. Four runs a thread, two threads, two operations a product.
    #[test]
    fn every_operation_that_is_claimed_was_done() {
        for device in devices() {
            let name = device.isa().name();
            let n_sums = if name.starts_with("avx512") || name == "amx-bf16" {
                12
            } else if name == "avx2" {
                5
            } else {
                3
            };
            for (kind, a_lane) in [
                (ProductKind::F32, 1),
                (ProductKind::Bf16, if name == "avx512-bf16" { 2 } else { 1 }),
                (ProductKind::Int8, 4),
            ] {
                let by_vectors = 1001 * 16 * n_sums * a_lane * 4 * 2 * 2;
                // Four products of 16 x 16 x 32 in tiles.
                let by_tiles = name == "amx-bf16" && kind == ProductKind::Bf16;
                let expected = if by_tiles { 1001 * 4 * 16 * 16 * 32 * 4 * 2 * 2 } else { by_vectors };
                assert_eq!(run_products(&device, kind, 1001), f64::from(expected), "{name} {kind:?}");
            }
        }
    }
}
