//! What training will take, before it is run: the size of a stage's data, and the time of one step on this machine.

use crate::Result;
use crate::dpo::{DpoConfig, DpoInputs};
use crate::dpo_data::DpoData;
use crate::lora::{LoraConfig, open_learner};
use crate::settings::{TrainDtype, keep};
use crate::sft::{SftConfig, SftInputs};
use crate::sft_data::SftData;
use crate::timing::{OneStep, one_step, random_documents};
use aloe_model::{Config, ModelSource};
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

/// Encodes and packs the rows as the stage will and refuses what it refuses of rows, settings and the model's sizes; its steps and, for whole
/// epochs, its tokens are exact. The start of `inputs` is not opened.
pub fn sft_size(config: &SftConfig, inputs: SftInputs, text: &TextModel, model: &Config) -> Result<SftSize> {
    let (data, report) = SftData::prepare(config, inputs, text, model)?;
    let n_steps = data.schedule(config).total_steps;
    let n_trained = data.total_tokens(n_steps);
    Ok(SftSize { n_rows: report.n_rows as u64, n_tokens: report.n_tokens, n_steps, n_trained })
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

/// Encodes, drops and orders the pairs as the stage will and refuses what it refuses; all its numbers are exact.
pub fn dpo_size(config: &DpoConfig, inputs: DpoInputs, text: &TextModel, model: &Config) -> Result<DpoSize> {
    let (data, report) = DpoData::prepare(config, inputs, text, model)?;
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
