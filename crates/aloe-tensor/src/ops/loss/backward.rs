//! Gradients of the cross-entropy: `dlogits = dlogp (onehot - softmax)`, chunk by chunk of the vocabulary, and the products with them.
//!
//! Two ways with the same bits: after a forward pass, computing the logits again ([`cross_entropy_backward`]), or together with it, where
//! `dlogps` is known beforehand ([`cross_entropy_at_once`]): there the logits of some rows are held until their gradients are taken.

use super::{CrossEntropy, CrossEntropyInputs, ROWS, Running, VOCABULARY};
use super::{check_targets, chunk_logits, chunks, continue_rows, finished};
use crate::gemm::{Gemm, PANEL};
use crate::linear::Packed;
use crate::ops::matmul::{Lanes, Out, grad_weight_part, multiply};
use crate::ops::rounded::{product, run_all, weight_product};
use crate::ops::rows_of;
use crate::pack::{Panels, PlainRow, RoundRow, Source, with_rows, with_scratch};
use crate::pool::SharedMut;
use crate::rounded::RowsOut;
use crate::simd::{Kernel, LANES, Simd, exp};
use crate::{Device, Dtype, Linear, Rounded, Tensor};
use std::ops::Range;

/// Logits held at once when loss and gradients are computed together: 64 MiB.
const HELD_LOGITS: usize = 16 << 20;

/// The head's gradient `[V, D]` f32, and whether it is to be written, whatever it holds, instead of added to.
pub type HeadGrad<'a> = (&'a mut Tensor, bool);

/// Adds to `dhidden` `[R, D]` and, when given, to the head's gradient. Logits are computed again chunk by chunk; both products round
/// their operands to the head's type.
pub fn cross_entropy_backward(
    device: &Device,
    hidden: &Tensor,
    head: &Linear,
    inputs: &CrossEntropyInputs,
    dhidden: &mut Tensor,
    mut dhead: Option<HeadGrad>,
) {
    let (r, v) = (inputs.targets.len(), head.out_features());
    assert!(r == inputs.lse.len() && r == inputs.dlogps.len(), "{r} targets");
    check(hidden, head, inputs.targets, dhidden, &mut dhead);
    for part in chunks(r, ROWS) {
        let walk = Walk::new(device, hidden, head, part);
        for vocabulary in chunks(v, VOCABULARY) {
            let mut logits = walk.logits(&vocabulary);
            walk.gradients(&vocabulary, &mut logits, inputs, dhidden, &mut dhead);
        }
    }
}

/// [`super::cross_entropy`] and [`cross_entropy_backward`] in one, bit for bit, for gradients `dlogps` `[R]` that do not depend on the
/// loss: one product of four less.
pub fn cross_entropy_at_once(
    device: &Device,
    hidden: &Tensor,
    head: &Linear,
    (targets, dlogps): (&[u32], &[f32]),
    dhidden: &mut Tensor,
    mut dhead: Option<HeadGrad>,
) -> CrossEntropy {
    let (r, v) = (targets.len(), head.out_features());
    assert_eq!(r, dlogps.len(), "targets against gradients");
    check(hidden, head, targets, dhidden, &mut dhead);
    let (mut rows, mut lse) = (vec![Running::START; r], vec![0.0; r]);
    let at_once = (HELD_LOGITS / v.max(1) / PANEL * PANEL).clamp(PANEL, ROWS);
    for part in chunks(r, at_once) {
        let walk = Walk::new(device, hidden, head, part.clone());
        let mut held = Vec::new();
        for vocabulary in chunks(v, VOCABULARY) {
            let logits = walk.logits(&vocabulary);
            continue_rows(device, &mut rows[part.clone()], &logits, &vocabulary, &targets[part.clone()]);
            held.push(logits);
        }
        lse[part.clone()].copy_from_slice(&finished(&rows[part.clone()]).lse);
        let inputs = CrossEntropyInputs { targets, lse: &lse, dlogps };
        for (vocabulary, mut logits) in chunks(v, VOCABULARY).zip(held) {
            walk.gradients(&vocabulary, &mut logits, &inputs, dhidden, &mut dhead);
        }
    }
    finished(&rows)
}

fn check(hidden: &Tensor, head: &Linear, targets: &[u32], dhidden: &Tensor, dhead: &mut Option<HeadGrad>) {
    let ((r, d), v) = (rows_of(hidden), head.out_features());
    assert!(r == targets.len() && d == head.in_features(), "hidden {:?}, {} targets", hidden.shape(), targets.len());
    assert_eq!(dhidden.shape(), hidden.shape());
    check_targets(targets, head);
    if let Some((tensor, fresh)) = dhead {
        assert_eq!(tensor.shape(), [v, d], "gradient of a head");
        if *fresh && r == 0 {
            tensor.as_f32_mut().fill(0.0);
        }
    }
}

/// Hidden states as the products take them.
enum Hidden<'a> {
    /// Rounded once, to a plain bf16 head without bias.
    Rounded(Rounded),
    /// Rounded by each product, if at all.
    Plain(&'a [f32]),
}

/// Some rows on their way over the vocabulary.
struct Walk<'a> {
    device: &'a Device,
    head: &'a Linear,
    part: Range<usize>,
    x: Hidden<'a>,
    /// Lanes D, units over the rows.
    columns: Panels,
}

impl<'a> Walk<'a> {
    fn new(device: &'a Device, hidden: &'a Tensor, head: &'a Linear, part: Range<usize>) -> Self {
        let d = head.in_features();
        let x = &hidden.as_f32()[part.start * d..part.end * d];
        if matches!(head.packed(), Packed::Dense(panels) if panels.dtype == Dtype::Bf16) && head.bias().is_none() {
            let x = Rounded::of_rows(device, x, d);
            let columns = x.paired(device);
            return Self { device, head, part, x: Hidden::Rounded(x), columns };
        }
        let mut columns = Panels::new(head.dtype(), d, part.len());
        columns.fill_from_columns(device, Source::F32(x), part.len());
        Self { device, head, part, x: Hidden::Plain(x), columns }
    }

    /// Logits `[rows, vocabulary]`.
    fn logits(&self, vocabulary: &Range<usize>) -> Vec<f32> {
        let n = vocabulary.len();
        match (&self.x, self.head.packed()) {
            (Hidden::Rounded(x), Packed::Dense(panels)) => {
                let mut logits = Vec::with_capacity(x.rows() * n);
                let first = vocabulary.start / PANEL * panels.panel_stride();
                let all = product(x, panels, logits.as_mut_ptr());
                // SAFETY: chunks start at multiples of 32 and end within the head's lanes; the product writes all of the logits.
                unsafe {
                    run_all(self.device, &[Gemm { n, b: all.b.wrapping_add(first), c_stride: n, ..all }]);
                    logits.set_len(x.rows() * n);
                }
                logits
            }
            (Hidden::Plain(x), _) => {
                let mut logits = vec![0.0; self.part.len() * n];
                chunk_logits(self.device, x, self.head, vocabulary, &mut logits);
                logits
            }
            (Hidden::Rounded(_), Packed::Blocks(_)) => unreachable!("rounded for a dense head alone"),
        }
    }

    /// From logits, which are used up, to the gradients of hidden states and head.
    fn gradients(
        &self,
        vocabulary: &Range<usize>,
        logits: &mut [f32],
        inputs: &CrossEntropyInputs,
        dhidden: &mut Tensor,
        dhead: &mut Option<HeadGrad>,
    ) {
        let (device, d, n, v) = (self.device, self.head.in_features(), self.part.len(), vocabulary.len());
        let weight = self.head.backward(device, vocabulary.clone());
        let mut dw = dhead.as_mut().map(|(tensor, fresh)| {
            (&mut tensor.as_f32_mut()[vocabulary.start * d..vocabulary.end * d], *fresh && self.part.start == 0)
        });
        // One chain over the whole vocabulary would lose what its thousands of small terms add up to: each chunk is
        // summed on its own. Measured on SmolLM2: 6e-5 of dhidden against 1e-6.
        let mut partial: Vec<f32> = Vec::with_capacity(n * d);
        if let Hidden::Rounded(_) = self.x {
            let dlogits = Rounded::written(n, v, |out| self.each_row(vocabulary, logits, inputs, Some(out)));
            // SAFETY: rows, panels and outputs fit each other (asserted where the products are made); the first writes all of `partial`.
            unsafe {
                run_all(device, &[product(&dlogits, &weight, partial.as_mut_ptr())]);
                partial.set_len(n * d);
                if let Some((dw, fresh)) = &mut dw {
                    let rows = dlogits.paired(device);
                    run_all(device, &[weight_product(&rows, &self.columns, dw.as_mut_ptr(), *fresh)]);
                }
            }
        } else {
            self.each_row(vocabulary, logits, inputs, None);
            partial.resize(n * d, 0.0);
            with_rows(device, logits, v, self.head.dtype(), |a| {
                multiply(device, &a, &weight, Lanes::all(&weight), Out::over(&mut partial, d));
            });
            if let Some((dw, fresh)) = &mut dw {
                if *fresh {
                    dw.fill(0.0);
                }
                grad_weight_part(device, logits, v, &self.columns, dw);
            }
        }
        let sum = SharedMut::new(&mut dhidden.as_f32_mut()[self.part.start * d..self.part.end * d]);
        crate::ops::elementwise(device, n * d, &|from, n| {
            // SAFETY: ranges of different tasks do not overlap.
            let sum = unsafe { sum.slice(from, n) };
            sum.iter_mut().zip(&partial[from..from + n]).for_each(|(sum, add)| *sum += add);
        });
    }

    /// Logits to their gradients, in place or, when there is an output, rounded into it.
    fn each_row(
        &self,
        vocabulary: &Range<usize>,
        logits: &mut [f32],
        inputs: &CrossEntropyInputs,
        rounded: Option<RowsOut>,
    ) {
        let n = vocabulary.len();
        let out = SharedMut::new(logits);
        self.device.for_each(self.part.len(), &|row| {
            let at = self.part.start + row;
            let target = (inputs.targets[at] as usize).checked_sub(vocabulary.start).filter(|&target| target < n);
            let gradients = |to: *mut f32| {
                let (lse, dlogp, row) = (inputs.lse[at], inputs.dlogps[at], out.ptr().wrapping_add(row * n));
                // SAFETY: the n logits of this index's own row, and as many gradients to write.
                unsafe {
                    self.device.isa().run(MinusSoftmax { row, to, n, lse, factor: -dlogp });
                    if let Some(target) = target {
                        *to.wrapping_add(target) += dlogp;
                    }
                }
            };
            let Some(rounded) = rounded else { return gradients(out.ptr().wrapping_add(row * n)) };
            with_scratch(n.div_ceil(LANES), |lines| {
                let to = lines.as_mut_ptr().cast::<f32>();
                gradients(to);
                // SAFETY: n numbers to read, a row of this index alone to write.
                unsafe { self.device.isa().run(RoundRow { source: PlainRow(to), k: n, out: rounded.row(row) }) }
            });
        });
    }
}

/// `factor * exp(row - lse)`; `to` may be the row itself.
struct MinusSoftmax {
    row: *const f32,
    to: *mut f32,
    n: usize,
    lse: f32,
    factor: f32,
}

impl Kernel for MinusSoftmax {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut i = 0;
        while i < self.n {
            let n = (self.n - i).min(LANES);
            let p = exp::<S>(S::sub(S::load_up_to(self.row.wrapping_add(i), n), S::splat(self.lse)));
            S::store_up_to(self.to.wrapping_add(i), S::mul(p, S::splat(self.factor)), n);
            i += LANES;
        }
    }
}
