//! What training will take, before it is run: the size of a stage's data, and the time of one step on this machine.

use crate::Result;
use crate::dpo::{DpoConfig, DpoRow};
use crate::dpo_data::DpoData;
use crate::lora::{LoraConfig, open_learner};
use crate::pack::first_fit_decreasing;
use crate::pairs;
use crate::settings::{TrainDtype, keep};
use crate::sft::{SftConfig, SftReport, SftRow};
use crate::sft_rows::{encode, keep_usable, set_apart};
use crate::timing::{OneStep, one_step, random_documents};
use aloe_model::ModelSource;
use aloe_tensor::Device;
use aloe_text::TextModel;

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
        set_apart(&mut rows, config.held_out_share, config.seed)?;
    }
    let (mut documents, _) = encode(&rows, text, config)?;
    keep_usable(&mut documents, config.max_len, &mut SftReport::default());
    let lens: Vec<usize> = documents.iter().map(|document| document.ids.len()).collect();
    let packing = first_fit_decreasing(&lens, &(0..lens.len()).collect::<Vec<_>>(), config.max_len);
    let per_epoch = packing.rows.len().div_ceil(config.batch_size.max(1)) as u64;
    let n_tokens: u64 = lens.iter().map(|&len| len as u64).sum();
    let by_epochs = config.epochs.map(|epochs| epochs.saturating_mul(per_epoch));
    let n_steps = [by_epochs, config.max_steps].into_iter().flatten().min().unwrap_or(0);
    let n_trained = n_tokens.saturating_mul(n_steps) / per_epoch.max(1);
    Ok(SftSize { n_rows: documents.len() as u64, n_tokens, n_steps, n_trained })
}

/// Size of a preference stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DpoSize {
    /// Pairs trained on.
    pub n_pairs: u64,
    /// Tokens of one epoch, prompts once.
    pub n_tokens: u64,
    /// Optimizer steps over all chunks and epochs.
    pub n_steps: u64,
    /// Tokens over all steps.
    pub n_trained: u64,
    /// Tokens of the largest micro-batch: what decides the peak memory.
    pub n_largest: u64,
}

/// Encodes, drops and orders the pairs as the stage will; all its numbers are exact.
pub fn dpo_size(config: &DpoConfig, rows: &[DpoRow], held_out: &[DpoRow], text: &TextModel) -> Result<DpoSize> {
    let limits = pairs::Limits { max_len: config.max_len, truncate: config.truncate, vocab_size: usize::MAX };
    let encoded = |rows: &[DpoRow]| pairs::encode(rows, text, &limits);
    let (data, report) = DpoData::from_pairs(config, encoded(rows)?, encoded(held_out)?)?;
    let mut size = DpoSize { n_pairs: report.n_pairs as u64, n_tokens: report.n_tokens, ..DpoSize::default() };
    for (chunk, n_steps) in data.steps_per_chunk().into_iter().enumerate() {
        let mut left = n_steps as usize;
        for epoch in 0..config.epochs {
            let order = data.ordered(chunk, epoch);
            for batch in order.chunks(config.batch_size).take(left) {
                for micro in batch.chunks(config.micro_batch_size) {
                    let n_tokens = micro
                        .iter()
                        .map(|pair| (pair.prompt_ids.len() + pair.chosen_ids.len() + pair.rejected_ids.len()) as u64);
                    let n_tokens: u64 = n_tokens.sum();
                    size.n_trained += n_tokens;
                    size.n_largest = size.n_largest.max(n_tokens);
                }
            }
            left = left.saturating_sub(order.len().div_ceil(config.batch_size));
        }
        size.n_steps += n_steps;
    }
    Ok(size)
}

/// What decides what a step takes.
#[derive(Clone, Debug, PartialEq)]
pub struct StepShape {
    /// Type of the compute copies.
    pub dtype: TrainDtype,
    /// Whether activations are computed again in the backward pass.
    pub recompute: bool,
    /// The updates that are trained; without them all weights are.
    pub lora: Option<LoraConfig>,
    /// Tokens of each document of a micro-batch.
    pub lens: Vec<usize>,
}

/// What one step of training took here.
#[derive(Clone, Copy, Debug)]
pub struct StepCost {
    /// Seconds of the micro-batch's forward and backward passes.
    pub micro_batch_s: f64,
    /// Seconds of the gradient's norm and the update.
    pub update_s: f64,
}

/// Loads the model and trains it twice on a micro-batch of random documents, of which the last three fifths are trained on; the
/// second time counts. Nothing is written.
pub fn measure_step(source: &ModelSource, shape: &StepShape, device: &Device) -> Result<StepCost> {
    let mut learner = open_learner(source, shape.lora.as_ref(), 0, shape.dtype, device)?.keeping(keep(shape.recompute));
    let config = source.config();
    let lens: Vec<usize> = shape.lens.iter().map(|&len| len.clamp(2, config.max_position_embeddings)).collect();
    let documents = random_documents(&lens, config.vocab_size, 0);
    one_step(&mut learner, &documents, 0.4, 1)?;
    let OneStep { micro_batch_s, update_s, .. } = one_step(&mut learner, &documents, 0.4, 2)?;
    Ok(StepCost { micro_batch_s, update_s })
}
