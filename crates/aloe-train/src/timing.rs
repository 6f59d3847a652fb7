//! Full training steps on random tokens, timed: what a plan's hours and the figures in LOG.md rest on.
//!
//! The steps are those of the step loop (`run`): forward, loss, backward, norm of the gradients, update. Weights change meanwhile, so
//! the learner is made here and thrown away.

use crate::Result;
use crate::learner::{Learner, Targets};
use crate::lora::{LoraConfig, open_learner};
use crate::settings::{LoopSettings, TrainDtype};
use aloe_model::{Config, Keep, ModelSource, PackedBatch, Params};
use aloe_record::CounterRng;
use aloe_tensor::{Device, lap, start_laps, take_laps};
use std::time::{Duration, Instant};

/// A step's form.
#[derive(Clone, Copy, Debug)]
pub struct StepWork {
    /// Type of the compute copies.
    pub dtype: TrainDtype,
    /// How much of the activations is kept.
    pub keep: Keep,
    /// Documents of a forward pass.
    pub rows: usize,
    /// Tokens of each.
    pub tokens: usize,
    /// Steps before the timed ones.
    pub warmup: usize,
    /// Timed steps.
    pub steps: usize,
}

/// What the timed steps took.
#[derive(Clone, Debug)]
pub struct StepTimes {
    /// Of each timed step.
    pub seconds: Vec<f64>,
    /// Seconds of each part, mean over the timed steps.
    pub parts: Vec<(&'static str, f64)>,
    /// Mean loss of each timed step.
    pub losses: Vec<f64>,
}

impl StepWork {
    /// Floating point operations of a step's products: 6 for each parameter of a matrix and token (a tied head counts once, a table that is
    /// only looked up not at all), and those of the lower triangle of attention, 6 x layers x (heads x head size) x tokens. What is computed
    /// a second time to save memory does not count.
    pub fn flop(&self, config: &Config) -> f64 {
        let (d, f) = (config.hidden_size as f64, config.intermediate_size as f64);
        let heads = (config.num_attention_heads * config.head_dim) as f64;
        let key_heads = (config.num_key_value_heads * config.head_dim) as f64;
        let layer = d * (2.0 * heads + 2.0 * key_heads) + 3.0 * d * f;
        let (layers, tokens) = (config.num_hidden_layers as f64, self.tokens as f64);
        let matrices = layers * layer + config.vocab_size as f64 * d;
        6.0 * (matrices + layers * heads * tokens) * tokens * self.rows as f64
    }
}

/// Runs and times steps from the given masters.
pub fn time_steps(params: Params, work: &StepWork, device: &Device) -> Result<StepTimes> {
    run_steps(Learner::new(params, work.dtype.tensor(), device), work)
}

/// The same of LoRA beside the weights of `source`.
pub fn time_lora_steps(source: &ModelSource, lora: &LoraConfig, work: &StepWork, device: &Device) -> Result<StepTimes> {
    run_steps(open_learner(source, Some(lora), 0, work.dtype, device)?, work)
}

fn run_steps(learner: Learner, work: &StepWork) -> Result<StepTimes> {
    let vocab_size = learner.params().config.vocab_size;
    let mut learner = learner.keeping(work.keep);
    let mut found = StepTimes { seconds: Vec::new(), parts: Vec::new(), losses: Vec::new() };
    for step in 0..work.warmup + work.steps {
        if step == work.warmup {
            start_laps();
        }
        let documents = random_documents(&vec![work.tokens; work.rows], vocab_size, step as u64);
        let took = one_step(&mut learner, &documents, 0.0, step as u64 + 1)?;
        if step >= work.warmup {
            found.seconds.push(took.micro_batch_s + took.update_s);
            found.losses.push(took.loss);
        }
    }
    let mean = |spent: Duration| spent.as_secs_f64() / work.steps as f64;
    found.parts = take_laps().into_iter().map(|(part, spent)| (part, mean(spent))).collect();
    Ok(found)
}

/// Documents of these numbers of tokens, of random ids.
pub(crate) fn random_documents(lens: &[usize], vocab_size: usize, item: u64) -> Vec<Vec<u32>> {
    let mut rng = CounterRng::new(0, "measured steps", item);
    lens.iter().map(|&len| (0..len).map(|_| rng.below(vocab_size) as u32).collect()).collect()
}

/// What one step took.
pub(crate) struct OneStep {
    /// Seconds of the forward and backward pass.
    pub(crate) micro_batch_s: f64,
    /// Seconds of the gradient's norm and the update.
    pub(crate) update_s: f64,
    /// Mean loss.
    pub(crate) loss: f64,
}

/// A step on one micro-batch, of each document of which the first `prompt_share` is not trained on.
pub(crate) fn one_step(
    learner: &mut Learner,
    documents: &[Vec<u32>],
    prompt_share: f64,
    n_updates: u64,
) -> Result<OneStep> {
    let batch = PackedBatch::from_documents(&documents.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let mut targets = Targets::default();
    for (piece, document) in batch.pieces.iter().zip(documents) {
        let first = (prompt_share * document.len() as f64) as usize;
        (first..document.len() - 1).for_each(|at| targets.push(piece.start + at, document[at + 1]));
    }
    let began = Instant::now();
    learner.begin_step(n_updates);
    let n = targets.rows.len();
    let logps = learner.forward_backward(batch, targets, &vec![-1.0 / n as f32; n])?;
    let loss = -logps.iter().map(|&logp| f64::from(logp)).sum::<f64>() / n as f64;
    lap("embedding");
    let micro_batch_s = began.elapsed().as_secs_f64();
    let began = Instant::now();
    let grad_norm = learner.grad_norm();
    lap("norm of the gradients");
    learner.update(1e-6, grad_norm, n_updates, &LoopSettings::default());
    Ok(OneStep { micro_batch_s, update_s: began.elapsed().as_secs_f64(), loss })
}
