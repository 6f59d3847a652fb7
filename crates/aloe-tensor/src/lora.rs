//! A low-rank update of a frozen linear layer: `y += scale * (x A^T) B^T`.
//!
//! Source: LoRA, arXiv 2106.09685; dropout as PEFT's: of the update's input alone, kept elements scaled by `1 / (1 - share)`. What it
//! computes stands in `ops/lora`; the weight itself is never changed here.

use crate::{Device, Linear, Tensor};
use aloe_record::CounterRng;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The two factors beside a weight `[O, K]`.
#[derive(Clone, Debug)]
pub struct Lora {
    a: Linear,
    b: Linear,
    scale: f32,
    dropout: Option<LoraDropout>,
}

/// Dropout of the update's input. A mask depends on (seed, module, step, row of the step, column) alone.
#[derive(Clone, Debug)]
pub struct LoraDropout {
    /// Share of the elements set to 0, in 0..1.
    pub share: f32,
    /// Seed of all masks.
    pub seed: u64,
    /// Which of the model's modules this is.
    pub module: u64,
    /// Where training stands, shared by all modules.
    pub at: Arc<DropoutAt>,
}

/// Whether a training pass is under way, and where it stands. Without one nothing is dropped.
#[derive(Debug, Default)]
pub struct DropoutAt {
    on: AtomicBool,
    step: AtomicU64,
    first_row: AtomicU64,
}

impl DropoutAt {
    /// Forward or backward of rows `first_row..` of step `step` begins.
    pub fn enter(&self, step: u64, first_row: u64) {
        self.step.store(step, Ordering::Relaxed);
        self.first_row.store(first_row, Ordering::Relaxed);
        self.on.store(true, Ordering::Relaxed);
    }

    /// It has ended.
    pub fn leave(&self) {
        self.on.store(false, Ordering::Relaxed);
    }
}

/// The mask of one pass through one module.
pub(crate) struct Mask {
    share: f32,
    rng: CounterRng,
    first_row: u64,
}

impl Lora {
    /// From A `[rank, K]` and B `[O, rank]`, f32.
    pub fn new(a: &Tensor, b: &Tensor, scale: f32, dropout: Option<LoraDropout>) -> Self {
        assert_eq!(a.shape()[0], b.shape()[1], "factors {:?} and {:?}", a.shape(), b.shape());
        Self { a: Linear::new(a.clone(), None), b: Linear::new(b.clone(), None), scale, dropout }
    }

    /// A `[rank, K]`.
    pub fn a(&self) -> &Linear {
        &self.a
    }

    /// B `[O, rank]`.
    pub fn b(&self) -> &Linear {
        &self.b
    }

    /// `alpha / rank`.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// Takes over a changed master of A.
    pub fn update_a(&mut self, device: &Device, master: &[f32]) {
        self.a.update_from_f32(device, master);
    }

    /// Takes over a changed master of B.
    pub fn update_b(&mut self, device: &Device, master: &[f32]) {
        self.b.update_from_f32(device, master);
    }

    /// Bytes of both factors.
    pub fn nbytes(&self) -> usize {
        self.a.nbytes() + self.b.nbytes()
    }

    /// What is dropped in the pass under way, if anything.
    pub(crate) fn mask(&self) -> Option<Mask> {
        let dropout = self.dropout.as_ref().filter(|dropout| dropout.at.on.load(Ordering::Relaxed))?;
        let step = dropout.at.step.load(Ordering::Relaxed);
        let rng = CounterRng::new(dropout.seed, &format!("lora-dropout/{step}"), dropout.module);
        Some(Mask { share: dropout.share, rng, first_row: dropout.at.first_row.load(Ordering::Relaxed) })
    }
}

impl Mask {
    /// `x` row by row with the dropped elements 0 and the others scaled.
    pub(crate) fn apply(&self, row: usize, x: &mut [f32]) {
        let keep = 1.0 / (1.0 - self.share);
        // 24 bits of the generator against the share, as exact as f32 holds it.
        let threshold = (f64::from(self.share) * f64::from(1u32 << 24)) as u32;
        let blocks_per_row = x.len().div_ceil(4) as u64;
        let first = (self.first_row + row as u64) * blocks_per_row;
        for (block, x) in x.chunks_mut(4).enumerate() {
            let drawn = self.rng.block(first + block as u64);
            x.iter_mut().zip(drawn).for_each(|(x, drawn)| *x = if drawn >> 8 < threshold { 0.0 } else { *x * keep });
        }
    }
}
