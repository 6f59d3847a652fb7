//! What training will take, before it is run: the size of a supervised stage's data, and the time of one step on this machine.

use crate::Result;
use crate::learner::Targets;
use crate::lora::{LoraConfig, open_learner};
use crate::pack::first_fit_decreasing;
use crate::settings::{LoopSettings, TrainDtype};
use crate::sft::{SftConfig, SftReport, SftRow};
use crate::sft_rows::{encode, keep_usable, set_apart};
use aloe_model::{ModelSource, PackedBatch};
use aloe_record::CounterRng;
use aloe_tensor::Device;
use aloe_text::TextModel;
use std::time::Instant;

/// Size of a supervised stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SftSize {
    /// Rows trained on, pieces of cut rows counted each.
    pub n_rows: u64,
    /// Tokens of one epoch.
    pub n_tokens: u64,
    /// Optimizer steps over all epochs.
    pub n_steps: u64,
    /// Tokens over all steps.
    pub n_trained: u64,
}

/// Encodes and packs the rows as the stage will; its steps and, for whole epochs, its tokens are exact.
pub fn sft_size(config: &SftConfig, mut rows: Vec<SftRow>, has_held_out: bool, text: &TextModel) -> Result<SftSize> {
    if !has_held_out {
        set_apart(&mut rows, config.held_out_share, config.seed);
    }
    let (mut documents, _) = encode(&rows, text, config)?;
    keep_usable(&mut documents, config.max_len, &mut SftReport::default());
    let lens: Vec<usize> = documents.iter().map(|document| document.ids.len()).collect();
    let packing = first_fit_decreasing(&lens, &(0..lens.len()).collect::<Vec<_>>(), config.max_len);
    let per_epoch = packing.rows.len().div_ceil(config.batch_size.max(1)) as u64;
    let n_tokens: u64 = lens.iter().map(|&len| len as u64).sum();
    let by_epochs = config.epochs.map(|epochs| epochs * per_epoch);
    let n_steps = [by_epochs, config.max_steps].into_iter().flatten().min().unwrap_or(0);
    let n_trained = n_tokens * n_steps / per_epoch.max(1);
    Ok(SftSize { n_rows: documents.len() as u64, n_tokens, n_steps, n_trained })
}

/// What one step of training took here.
#[derive(Clone, Copy, Debug)]
pub struct StepCost {
    /// Tokens of the micro-batch.
    pub n_tokens: usize,
    /// Seconds of its forward and backward passes.
    pub micro_batch_s: f64,
    /// Seconds of the gradient's norm and the update.
    pub update_s: f64,
}

/// Loads the model and trains it twice on a micro-batch of random documents of `lens` tokens, of which the last three fifths are
/// trained on; the second time counts. Nothing is written.
pub fn measure_step(
    source: &ModelSource,
    dtype: TrainDtype,
    lora: Option<&LoraConfig>,
    lens: &[usize],
    device: &Device,
) -> Result<StepCost> {
    let mut learner = open_learner(source, lora, 0, dtype, device)?;
    let vocab_size = source.config().vocab_size;
    let document = |(at, &len): (usize, &usize)| {
        let mut rng = CounterRng::new(0, "measure", at as u64);
        (0..len.clamp(2, source.config().max_position_embeddings)).map(|_| rng.below(vocab_size) as u32).collect()
    };
    let documents: Vec<Vec<u32>> = lens.iter().enumerate().map(document).collect();
    let slices: Vec<&[u32]> = documents.iter().map(Vec::as_slice).collect();
    let mut cost = StepCost { n_tokens: 0, micro_batch_s: 0.0, update_s: 0.0 };
    for n_updates in 1..=2 {
        let batch = PackedBatch::from_documents(&slices);
        let mut targets = Targets::default();
        for (piece, document) in batch.pieces.iter().zip(&documents) {
            (2 * document.len() / 5..document.len() - 1)
                .for_each(|at| targets.push(piece.start + at, document[at + 1]));
        }
        cost.n_tokens = batch.len();
        let dlogps = vec![-1.0 / targets.rows.len() as f32; targets.rows.len()];
        let began = Instant::now();
        learner.begin_step(n_updates);
        let forward = learner.forward(batch, targets)?;
        learner.backward(forward, &dlogps);
        cost.micro_batch_s = began.elapsed().as_secs_f64();
        let began = Instant::now();
        let grad_norm = learner.grad_norm();
        learner.update(1e-8, grad_norm, n_updates, &LoopSettings::default());
        cost.update_s = began.elapsed().as_secs_f64();
    }
    Ok(cost)
}
