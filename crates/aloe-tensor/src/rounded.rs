//! A matrix rounded to bf16 once, kept as the matrix product reads it: what training in bf16 keeps of its activations.
//!
//! Rows are padded to an odd number of cache lines, so that rows do not fall on the same cache sets. The weight's gradient sums over rows
//! and wants two of them in a unit: [`Rounded::paired`] lays them out so, exactly.

use crate::gemm::PANEL;
use crate::pack::{Line, Panels, PlainRow, RoundRow, Rows, ZERO_LINE, padded};
use crate::pool::SharedMut;
use crate::simd::{Kernel, LANES, Simd};
use crate::tensor::f32_from_bf16;
use crate::{Device, Dtype, Tensor};
use std::mem::MaybeUninit;
use std::sync::Arc;

/// Numbers of one unit.
const PER_UNIT: usize = 2;

/// `[N, K]` in bf16; cloning shares the numbers.
#[derive(Clone, Debug)]
pub struct Rounded {
    n: usize,
    k: usize,
    stride: usize, // units
    // Whole lines of padding at a row's end are never written, nor read.
    lines: Arc<Vec<MaybeUninit<Line>>>,
}

/// Where the rows of a [`Rounded`] are written.
#[derive(Clone, Copy)]
pub(crate) struct RowsOut {
    start: SharedMut<u16>,
    stride: usize,
}

impl RowsOut {
    /// Row `i`, writable up to K rounded up to 16 elements, in which the surplus must be made zero.
    pub(crate) fn row(self, i: usize) -> *mut u16 {
        self.start.ptr().wrapping_add(i * self.stride * PER_UNIT)
    }
}

impl Rounded {
    /// A matrix whose rows `write` writes, every one of them.
    pub(crate) fn written(n: usize, k: usize, write: impl FnOnce(RowsOut)) -> Self {
        let [one] = Self::all_written(n, k, |[out]| write(out));
        one
    }

    /// Several matrices of one shape whose rows `write` writes, every one of them.
    pub(crate) fn all_written<const M: usize>(n: usize, k: usize, write: impl FnOnce([RowsOut; M])) -> [Self; M] {
        let stride = padded(k.div_ceil(PER_UNIT));
        let per_row = stride / LANES;
        let mut all = [(); M].map(|()| Vec::<MaybeUninit<Line>>::with_capacity(n * per_row));
        // A line holds 32 numbers: the end of one that is not full is made zero here, whatever the kernels write of it.
        if !k.is_multiple_of(PANEL) {
            for lines in &mut all {
                for row in 0..n {
                    // SAFETY: within the capacity asked for.
                    unsafe { lines.as_mut_ptr().add(row * per_row + k / PANEL).write(MaybeUninit::new(ZERO_LINE)) }
                }
            }
        }
        write(std::array::from_fn(|i| RowsOut {
            start: SharedMut::from_raw(all[i].as_mut_ptr().cast(), n * stride * PER_UNIT),
            stride,
        }));
        all.map(|mut lines| {
            // SAFETY: the capacity; what is not written may stay so.
            unsafe { lines.set_len(n * per_row) };
            Self { n, k, stride, lines: Arc::new(lines) }
        })
    }

    /// The matrix `x` `[N, ...]` rounded, ties to even; axes after the first are one row.
    pub fn new(device: &Device, x: &Tensor) -> Self {
        Self::of_rows(device, x.as_f32(), x.shape()[1..].iter().product())
    }

    /// Rows of `k` numbers rounded.
    pub(crate) fn of_rows(device: &Device, x: &[f32], k: usize) -> Self {
        let n = x.len().checked_div(k).unwrap_or(0);
        Self::written(n, k, |out| {
            let per_task = (16384 / k.max(1)).max(1);
            device.for_each(n.div_ceil(per_task), &|task| {
                for row in task * per_task..((task + 1) * per_task).min(n) {
                    let x = x[row * k..(row + 1) * k].as_ptr();
                    // SAFETY: k numbers to read, a row of this index alone to write.
                    unsafe { device.isa().run(RoundRow { source: PlainRow(x), k, out: out.row(row) }) }
                }
            });
        })
    }

    /// N.
    pub fn rows(&self) -> usize {
        self.n
    }

    /// K.
    pub fn width(&self) -> usize {
        self.k
    }

    /// Bytes that a row of `k` numbers takes, padding included.
    pub fn row_bytes(k: usize) -> usize {
        size_of::<u32>() * padded(k.div_ceil(PER_UNIT))
    }

    /// Bytes held, padding included.
    pub fn nbytes(&self) -> usize {
        self.lines.len() * size_of::<Line>()
    }

    /// The numbers as f32, `[N, K]`.
    pub fn to_tensor(&self) -> Tensor {
        let mut values = Vec::with_capacity(self.n * self.k);
        for row in 0..self.n {
            // SAFETY: K elements of a row.
            let bits = unsafe { std::slice::from_raw_parts(self.row(row), self.k) };
            values.extend(bits.iter().map(|&bits| f32_from_bf16(bits)));
        }
        Tensor::from_f32(&[self.n, self.k], values)
    }

    /// Bits of row `i`.
    pub(crate) fn row(&self, i: usize) -> *const u16 {
        self.lines.as_ptr().cast::<u16>().wrapping_add(i * self.stride * PER_UNIT)
    }

    /// Units from one row to the next.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// The rows as operand A.
    pub(crate) fn operand(&self) -> Rows<'_> {
        Rows::new(self.lines.as_ptr().cast(), self.stride, self.k.div_ceil(PER_UNIT))
    }

    /// Lanes over K, units of two rows each: both operands of a weight's gradient.
    pub(crate) fn paired(&self, device: &Device) -> Panels {
        let (n, k) = (self.n, self.k);
        // SAFETY: the loop below writes all units of all lanes of all panels.
        unsafe {
            Panels::written(Dtype::Bf16, k, n, |out, size| {
                let panels = k.div_ceil(PANEL);
                device.for_each(panels.div_ceil(PANELS), &|task| {
                    let first = task * PANELS;
                    let panels = first..panels.min(first + PANELS);
                    device.isa().run(Pair { from: self, panels, out: out.ptr().wrapping_add(first * size), size });
                });
            })
        }
    }
}

/// Panels of a task: two cache lines of each row.
const PANELS: usize = 2;

/// Some panels of [`Rounded::paired`], `size` units apart.
struct Pair<'a> {
    from: &'a Rounded,
    panels: std::ops::Range<usize>,
    out: *mut u32,
    size: usize,
}

impl Kernel for Pair<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut row = 0;
        while row < self.from.n {
            let mut panel = self.panels.start;
            while panel < self.panels.end {
                // A row's padding is zero up to whole lines, which are panels.
                let low = S::load(self.from.row(row).wrapping_add(panel * PANEL).cast());
                let high = if row + 1 < self.from.n {
                    S::load(self.from.row(row + 1).wrapping_add(panel * PANEL).cast())
                } else {
                    S::splat(0.0)
                };
                let (first, second) = S::interleave_bf16(low, high);
                let to = self.out.wrapping_add((panel - self.panels.start) * self.size + row / 2 * PANEL);
                S::store(to.cast(), first);
                S::store(to.wrapping_add(LANES).cast(), second);
                panel += 1;
            }
            row += 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::Source;
    use crate::testing::{devices, normal, same_bits};

    #[test]
    fn rounding_once_and_pairing_rows_gives_the_panels_packed_from_the_numbers() {
        for device in devices() {
            for (n, k) in [(1, 1), (2, 33), (7, 64), (33, 100), (40, 576)] {
                let x = normal("x", &[n, k]);
                let rounded = Rounded::new(&device, &x);
                same_bits(rounded.to_tensor().as_f32(), &x.cast(Dtype::Bf16).to_f32_vec(), "rows");
                let mut expected = Panels::new(Dtype::Bf16, k, n);
                expected.fill_from_columns(&device, Source::F32(x.as_f32()), n);
                let found = rounded.paired(&device);
                for lane in 0..k {
                    let bits = |panels: &Panels| panels.lane_units(lane).collect::<Vec<u32>>();
                    assert_eq!(bits(&found), bits(&expected), "{device:?} {n}x{k}, lane {lane}");
                }
            }
        }
    }
}
