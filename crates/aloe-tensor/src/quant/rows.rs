//! Activations as int8 blocks: 32 elements share the step `largest / 127`.
//!
//! A row is rounded on its own, so its numbers do not depend on its neighbours. A NaN or infinity makes its block's step NaN,
//! and with it everything the row gives: nothing non-finite becomes a plausible number.

use super::BLOCK;
use crate::Device;
use crate::pack::{RowSource, with_scratch};
use crate::pool::SharedMut;
use crate::simd::{Kernel, LANES, Simd, max_lanes, sum_lanes};

/// Up to this the inverse of a step overflows.
const SMALLEST: f32 = 127.0 / f32::MAX;

/// What the product needs of a block besides its bytes.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
pub(crate) struct BlockScale {
    pub(crate) step: f32,
    /// `step` times the sum of the bytes.
    pub(crate) sum: f32,
    /// Minus 8 times the sum of the bytes.
    pub(crate) minus_8: i32,
    /// Minus 128 times it.
    pub(crate) minus_128: i32,
    /// Minus 32 times the sums of the first and the second 16 bytes.
    pub(crate) minus_32: [i32; 2],
}

/// Rows of x as blocks.
#[derive(Clone, Copy)]
pub(crate) struct BlockRows {
    /// `[m, k]`.
    pub(crate) bytes: *const i8,
    /// Bytes of a row, k rounded up to an odd number of cache lines.
    pub(crate) stride: usize,
    /// `[m, blocks]`.
    pub(crate) scales: *const BlockScale,
    pub(crate) m: usize,
    pub(crate) blocks: usize,
}

/// Rounds rows `[m, k]`, each from its source, and hands them on; a last block that is not full ends in zeros.
pub(crate) fn with_block_rows<T: RowSource, R>(
    device: &Device,
    (m, k): (usize, usize),
    source: &(dyn Fn(usize) -> T + Sync),
    body: impl FnOnce(BlockRows) -> R,
) -> R {
    let blocks = k.div_ceil(BLOCK);
    let stride = (k.div_ceil(64) | 1) * 64;
    let scale_lines = (m * blocks).div_ceil(2);
    with_scratch(scale_lines + m * stride / 64, |lines| {
        let start = lines.as_mut_ptr();
        let scales = start.cast::<BlockScale>();
        let bytes = start.wrapping_add(scale_lines).cast::<i8>();
        let (rows, isa) = ((16384 / k.max(1)).max(1), device.isa());
        let (scales_out, bytes_out) = (SharedMut::from_raw(scales, m * blocks), SharedMut::from_raw(bytes, m * stride));
        device.for_each(m.div_ceil(rows), &|task| {
            for row in task * rows..((task + 1) * rows).min(m) {
                let kernel = RoundBlocks {
                    source: source(row),
                    k,
                    bytes: bytes_out.ptr().wrapping_add(row * stride),
                    scales: scales_out.ptr().wrapping_add(row * blocks),
                };
                // SAFETY: the row's k numbers, which its source borrows, its bytes and scales; each row belongs to one task.
                unsafe { isa.run(kernel) }
            }
        });
        body(BlockRows { bytes, stride, scales, m, blocks })
    })
}

struct RoundBlocks<T> {
    source: T,
    k: usize,
    bytes: *mut i8,
    scales: *mut BlockScale,
}

impl<T: RowSource> Kernel for RoundBlocks<T> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let zero = S::splat(0.0);
        let begun = self.source.begin::<S>(self.k);
        for block in 0..self.k.div_ceil(BLOCK) {
            let at = block * BLOCK;
            let n = self.k - at;
            let low = self.source.lanes::<S>(begun, at, n.min(LANES));
            let high = self.source.lanes::<S>(begun, at + LANES, n.saturating_sub(LANES).min(LANES));
            let x = [low, high];
            let size = [S::max(S::sub(zero, x[0]), x[0]), S::max(S::sub(zero, x[1]), x[1])];
            let largest = max_lanes::<S>(S::max(size[0], size[1]));
            // Zero for finite numbers, NaN otherwise.
            let tainted = sum_lanes::<S>(S::fma(x[0], zero, S::mul(x[1], zero)));
            // Numbers so small that 127 / largest would be infinite are zeros.
            let largest = if largest <= SMALLEST { 0.0 } else { largest };
            let inverse = S::splat(if largest > 0.0 { 127.0 / largest } else { 0.0 });
            let rounded = [S::round(S::mul(x[0], inverse)), S::round(S::mul(x[1], inverse))];
            S::store_i8(self.bytes.wrapping_add(at), rounded[0]);
            S::store_i8(self.bytes.wrapping_add(at + LANES), rounded[1]);
            let (low, high) = (sum_lanes::<S>(rounded[0]), sum_lanes::<S>(rounded[1]));
            let step = largest / 127.0 + tainted;
            let (low_sum, high_sum) = (low as i32, high as i32);
            self.scales.wrapping_add(block).write(BlockScale {
                step,
                sum: step * (low + high),
                minus_8: -8 * (low_sum + high_sum),
                minus_128: -128 * (low_sum + high_sum),
                minus_32: [-32 * low_sum, -32 * high_sum],
            });
        }
    }
}
