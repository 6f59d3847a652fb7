//! Rows as a layer's product wants them, made on the way from what comes before the layer: as they are, RMS-normed, or gated.
//!
//! A row is normed or gated and rounded in one pass, so that what lies between is never written; the numbers are those of the
//! separate operations, bit for bit.

use super::activation::gated;
use super::norm::reciprocal_rms;
use crate::linear::OperandKind;
use crate::pack::{PlainRow, RowSource, Rows, with_made_rows, with_rows};
use crate::quant::{BlockRows, with_block_rows};
use crate::simd::Simd;
use crate::{Device, Linear};

/// Rows of x in the form that a product takes.
pub(crate) enum Operand<'a> {
    Dense(Rows<'a>),
    Blocks(BlockRows),
}

/// What a layer's rows `[N, K]` are made from.
#[derive(Clone, Copy)]
pub(crate) enum Input<'a> {
    /// They are there.
    Plain(&'a [f32]),
    /// RMSNorm of x with weight w, as [`super::rms_norm`].
    Normed { x: &'a [f32], w: &'a [f32], eps: f32 },
    /// `silu(gate) * up`, as [`super::swiglu`].
    Gated { gate: &'a [f32], up: &'a [f32] },
}

impl Input<'_> {
    fn len(&self) -> usize {
        match self {
            Input::Plain(x) | Input::Normed { x, .. } | Input::Gated { gate: x, .. } => x.len(),
        }
    }

    /// N, the number of rows.
    pub(crate) fn n_rows(&self, k: usize) -> usize {
        self.len().checked_div(k).unwrap_or(0)
    }
}

/// Brings the input `[N, K]` into the form that `layer` takes.
pub(crate) fn with_operand<R>(device: &Device, input: Input, layer: &Linear, body: impl FnOnce(Operand) -> R) -> R {
    let (kind, k) = (layer.operand(), layer.in_features());
    let shape = (input.n_rows(k), k);
    assert_eq!(input.len(), shape.0 * k, "an input of {} numbers in rows of {k}", input.len());
    match input {
        Input::Plain(x) => match kind {
            OperandKind::Dense(dtype) => with_rows(device, x, k, dtype, |a| body(Operand::Dense(a))),
            OperandKind::Blocks => made(device, shape, kind, &|row| PlainRow(x[row * k..(row + 1) * k].as_ptr()), body),
        },
        Input::Normed { x, w, eps } => {
            assert_eq!(w.len(), k, "weight of a norm over {k}");
            made(
                device,
                shape,
                kind,
                &|row| NormedRow { x: x[row * k..(row + 1) * k].as_ptr(), w: w.as_ptr(), eps },
                body,
            )
        }
        Input::Gated { gate, up } => {
            assert_eq!(gate.len(), up.len(), "gate against up");
            let row = |row: usize| row * k..(row + 1) * k;
            made(device, shape, kind, &|i| GatedRow { gate: gate[row(i)].as_ptr(), up: up[row(i)].as_ptr() }, body)
        }
    }
}

fn made<T: RowSource, R>(
    device: &Device,
    shape: (usize, usize),
    kind: OperandKind,
    source: &(dyn Fn(usize) -> T + Sync),
    body: impl FnOnce(Operand) -> R,
) -> R {
    match kind {
        OperandKind::Dense(dtype) => with_made_rows(device, shape, dtype, source, |a| body(Operand::Dense(a))),
        OperandKind::Blocks => with_block_rows(device, shape, source, |a| body(Operand::Blocks(a))),
    }
}

#[derive(Clone, Copy)]
struct NormedRow {
    x: *const f32,
    w: *const f32,
    eps: f32,
}

impl RowSource for NormedRow {
    #[inline(always)]
    unsafe fn begin<S: Simd>(self, k: usize) -> f32 {
        reciprocal_rms::<S>(self.x, k, self.eps)
    }

    #[inline(always)]
    unsafe fn lanes<S: Simd>(self, rstd: f32, at: usize, n: usize) -> S::V {
        let x = S::mul(S::load_up_to(self.x.wrapping_add(at), n), S::splat(rstd));
        S::mul(x, S::load_up_to(self.w.wrapping_add(at), n))
    }
}

#[derive(Clone, Copy)]
struct GatedRow {
    gate: *const f32,
    up: *const f32,
}

impl RowSource for GatedRow {
    #[inline(always)]
    unsafe fn lanes<S: Simd>(self, _begun: f32, at: usize, n: usize) -> S::V {
        gated::<S>(S::load_up_to(self.gate.wrapping_add(at), n), S::load_up_to(self.up.wrapping_add(at), n))
    }
}
