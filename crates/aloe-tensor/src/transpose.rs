//! A packed weight turned over: from lanes over its rows to lanes over its columns, as the gradient of a layer's input wants it.

use crate::gemm::{PANEL, units_of};
use crate::pack::Panels;
use crate::simd::{Kernel, LANES, Simd};
use crate::{Device, Dtype};
use std::ops::Range;

/// Lanes `part` of `from` (rows of a weight with `k` columns) as panels of k lanes whose units run over the part; exact. The part
/// starts at a multiple of 32, and ends at one or at the last lane.
pub(crate) fn transposed(device: &Device, from: &Panels, part: Range<usize>, k: usize) -> Panels {
    assert!(part.start.is_multiple_of(PANEL) && part.end <= from.lanes, "lanes {part:?} of {}", from.lanes);
    assert!(part.end == from.lanes || part.end.is_multiple_of(PANEL), "lanes {part:?} of {}", from.lanes);
    assert_eq!(from.units, units_of(from.dtype, k), "a weight with {k} columns");
    let wide = from.is_narrow().then(|| from.widened(device));
    let from = wide.as_ref().unwrap_or(from);
    // SAFETY: each index writes all units of its panel.
    unsafe {
        Panels::written(from.dtype, k, part.len(), |out, size| {
            device.for_each(k.div_ceil(PANEL), &|panel| {
                device.isa().run(Turn {
                    from: from.as_ptr().wrapping_add(part.start / PANEL * from.panel_stride()),
                    dtype: from.dtype,
                    units: from.units,
                    lanes: part.len(),
                    panel,
                    out: out.ptr().wrapping_add(panel * size),
                });
            });
        })
    }
}

/// One panel of the result.
struct Turn {
    from: *const u32,
    dtype: Dtype,
    /// Of `from`.
    units: usize,
    /// Of `from`: what the result's units run over.
    lanes: usize,
    panel: usize,
    out: *mut u32,
}

impl Kernel for Turn {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut lane = 0;
        while lane < self.lanes {
            match self.dtype {
                Dtype::Bf16 => {
                    let rows = self.block::<S>(self.panel * PANEL / 2, lane);
                    let mut i = 0;
                    while i < LANES && lane + i < self.lanes {
                        let (first, second) = S::interleave_bf16(rows[i], rows[i + 1]);
                        let to = self.out.wrapping_add((lane + i) / 2 * PANEL);
                        S::store(to.cast(), first);
                        S::store(to.wrapping_add(LANES).cast(), second);
                        i += 2;
                    }
                }
                Dtype::F32 => {
                    let mut half = 0;
                    while half < PANEL {
                        let rows = self.block::<S>(self.panel * PANEL + half, lane);
                        let mut i = 0;
                        while i < LANES && lane + i < self.lanes {
                            S::store(self.out.wrapping_add((lane + i) * PANEL + half).cast(), rows[i]);
                            i += 1;
                        }
                        half += LANES;
                    }
                }
            }
            lane += LANES;
        }
    }
}

impl Turn {
    /// Units `unit..unit + 16` of lanes `lane..lane + 16`, a vector a lane; zero past the last unit and the last lane.
    #[inline(always)]
    unsafe fn block<S: Simd>(&self, unit: usize, lane: usize) -> [S::V; LANES] {
        let start = self.from.wrapping_add(lane / PANEL * self.units * PANEL + lane % PANEL);
        let mut block = [S::splat(0.0); LANES];
        let mut i = 0;
        while i < LANES && unit + i < self.units {
            block[i] = S::load(start.wrapping_add((unit + i) * PANEL).cast());
            i += 1;
        }
        S::transpose(&mut block);
        block
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::Source;
    use crate::testing::{devices, normal};

    #[test]
    fn a_turned_part_holds_the_columns_of_the_weights_rows() {
        for device in devices() {
            for dtype in [Dtype::F32, Dtype::Bf16] {
                for (o, k) in [(1, 1), (33, 7), (64, 50), (100, 129), (96, 64)] {
                    let w = normal("w", &[o, k]);
                    let mut forward = Panels::new(dtype, o, k);
                    forward.fill_from_rows(&device, Source::F32(w.as_f32()), k);
                    for part in [0..o, 32.min(o) / 32 * 32..o, 0..o.min(32)] {
                        let found = transposed(&device, &forward, part.clone(), k);
                        let rows = w.slice_rows(part.start, part.end);
                        let mut expected = Panels::new(dtype, k, part.len());
                        expected.fill_from_columns(&device, Source::F32(rows.as_f32()), part.len());
                        for lane in 0..k {
                            let bits = |panels: &Panels| panels.lane_units(lane).collect::<Vec<u32>>();
                            assert_eq!(bits(&found), bits(&expected), "{device:?} {dtype:?} {o}x{k} {part:?} {lane}");
                        }
                    }
                }
            }
        }
    }
}
