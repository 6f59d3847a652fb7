//! A feed-forward block over many rows in bf16: SwiGLU is taken of its two products panel by panel, while they are in the cache.
//!
//! The f32 products of gate and up, the largest numbers of a forward pass, are never written to memory. Bits are those of the separate
//! operations: each sum is one chain whatever is computed beside it, and the product is rounded once as a layer's input is.

use super::activation::gated;
use super::norm::rms_norm_rounded;
use super::rounded::{dense, linear_rounded_onto, product};
use crate::gemm::{FEW_ROWS, Gemm, PANEL};
use crate::pack::{Panels, with_scratch};
use crate::rounded::RowsOut;
use crate::simd::{Kernel, LANES, Simd};
use crate::{Device, Isa, Linear, Rounded, Tensor};
use std::ops::Range;

/// `x + swiglu(norm(x) Wgate^T, norm(x) Wup^T) Wdown^T` for x `[N, D]` and a norm of weight w `[D]`; `None` where rows are few or a layer is
/// not plain bf16 (in blocks, f32, with a bias or a low-rank update): [`super::norm_linears`] and [`super::swiglu_linear_add`] serve those.
pub fn norm_swiglu_linear_add(
    device: &Device,
    x: &Tensor,
    (w, eps): (&Tensor, f32),
    [gate, up, down]: [&Linear; 3],
) -> Option<Tensor> {
    let is_plain = |layer: &Linear| dense(layer).is_some() && layer.bias().is_none() && layer.lora().is_none();
    if x.shape()[0] <= FEW_ROWS || ![gate, up, down].into_iter().all(is_plain) {
        return None;
    }
    let (normed, _) = rms_norm_rounded(device, x, w, eps);
    let product = swiglu_of(device, &normed, gate, up)?;
    Some(linear_rounded_onto(device, &product, down, x))
}

/// `swiglu(x Wgate^T, x Wup^T)` rounded, `[N, F]`.
fn swiglu_of(device: &Device, x: &Rounded, gate: &Linear, up: &Linear) -> Option<Rounded> {
    let (n, f) = (x.rows(), gate.out_features());
    assert_eq!(up.out_features(), f, "gate against up");
    let wide = [gate, up].map(|layer| layer.widened_for(device, n));
    let of = |layer, wide: &Option<Panels>| Some(product(x, wide.as_ref().or(dense(layer))?, std::ptr::null_mut()));
    let [gate, up] = [of(gate, &wide[0])?, of(up, &wide[1])?];
    let tasks = gate.tasks(device, 1);
    Some(Rounded::written(n, f, |out| {
        device.for_each(tasks.n, &|task| {
            let (rows, lanes) = gate.extent(tasks, task);
            with_scratch(2 * rows.len() * PANEL / LANES, |lines| {
                let panels = lanes.start / PANEL..lanes.end.div_ceil(PANEL);
                let isa = device.isa();
                let part = Part { gate, up, rows, panels, sums: lines.as_mut_ptr().cast(), isa, out };
                // SAFETY: both products are of these rows and lanes and write to the scratch; rows of the result hold F numbers rounded up
                // to whole vectors, and each task has its own rows and panels of them.
                unsafe { isa.run(part) }
            });
        });
    }))
}

/// Some rows and panels of both products.
struct Part {
    gate: Gemm,
    up: Gemm,
    rows: Range<usize>,
    panels: Range<usize>,
    sums: *mut f32, // [2, rows, 32]
    isa: Isa,
    out: RowsOut,
}

impl Kernel for Part {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let n_rows = self.rows.len();
        let (gate, up) = (self.sums, self.sums.wrapping_add(n_rows * PANEL));
        let mut panel = self.panels.start;
        while panel < self.panels.end {
            self.gate.panel_into(self.rows.clone(), panel, gate).run_here(self.isa);
            self.up.panel_into(self.rows.clone(), panel, up).run_here(self.isa);
            let n_lanes = (self.gate.n - panel * PANEL).min(PANEL);
            let mut row = 0;
            while row < n_rows {
                let to = self.out.row(self.rows.start + row).wrapping_add(panel * PANEL);
                let mut lane = 0;
                while lane < n_lanes {
                    let (at, n) = (row * PANEL + lane, (n_lanes - lane).min(LANES));
                    let (g, u) = (S::load_up_to(gate.wrapping_add(at), n), S::load_up_to(up.wrapping_add(at), n));
                    S::store_bf16(to.wrapping_add(lane), gated::<S>(g, u));
                    lane += LANES;
                }
                row += 1;
            }
            panel += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dtype;
    use crate::ops::{norm_linears, swiglu_linear_add};
    use crate::testing::{devices, normal, same_bits};

    #[test]
    fn the_block_is_its_operations_one_by_one_bit_for_bit() {
        let threads = [1, 3].map(|threads| Device::cpu_with(Isa::best(), threads));
        for device in devices().into_iter().chain(threads) {
            for (n, d, f) in [(49, 32, 64), (61, 33, 97), (130, 576, 200), (251, 40, 1030)] {
                let what = format!("{device:?} {n}x{d}x{f}");
                let layer = |name, o, k| Linear::new(normal(name, &[o, k]).cast(Dtype::Bf16), None);
                let (gate, up, down) = (layer("gate", f, d), layer("up", f, d), layer("down", d, f));
                let (x, w) = (normal("x", &[n, d]), normal("w", &[d]));
                let both = norm_linears(&device, &x, &w, 1e-5, &[&gate, &up]);
                let expected = swiglu_linear_add(&device, &both[0], &both[1], &down, &x);
                let found = norm_swiglu_linear_add(&device, &x, (&w, 1e-5), [&gate, &up, &down]).unwrap();
                same_bits(found.as_f32(), expected.as_f32(), &what);
            }
        }
    }

    #[test]
    fn few_rows_and_layers_that_are_not_plain_bf16_are_left_to_the_separate_operations() {
        let device = Device::cpu(1);
        let (bf16, f32) = (normal("w", &[8, 8]).cast(Dtype::Bf16), normal("w", &[8, 8]));
        let [plain, wide] = [bf16.clone(), f32].map(|w| Linear::new(w, None));
        let biased = Linear::new(bf16, Some(normal("b", &[8])));
        let w = normal("norm", &[8]);
        let is_there = |n: usize, layers: [&Linear; 3]| {
            norm_swiglu_linear_add(&device, &normal("x", &[n, 8]), (&w, 1e-5), layers).is_some()
        };
        assert!(is_there(49, [&plain; 3]) && !is_there(48, [&plain; 3]));
        for at in 0..3 {
            for other in [&wide, &biased] {
                let mut layers = [&plain; 3];
                layers[at] = other;
                assert!(!is_there(49, layers), "layer {at}");
            }
        }
    }
}
