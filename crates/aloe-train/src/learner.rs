//! A model being trained: f32 masters, AdamW's moments, gradients, and the compute copies that forward and backward use.
//!
//! The only file of the crate that calls the decoder and the optimizer's kernel. A step's gradients accumulate over its
//! micro-batches in row order, so that in f32 a split into other micro-batches changes no bit; for that the gradients of embedded tokens
//! are kept until the step's end and added then, after all of a tied head's.

use crate::settings::LoopSettings;
use crate::{Error, Result};
use aloe_model::{
    Activations, Decoder, EmbeddingGrad, Grads, Keep, ModelSource, PackedBatch, ParamGroup, Params, Role, TokenLogps,
};
use aloe_tensor::{AdamW, Device, DropoutAt, Dtype, Tensor, lap, ops};
use std::collections::HashMap;
use std::sync::Arc;

/// Which hidden rows predict which tokens.
#[derive(Clone, Debug, Default)]
pub(crate) struct Targets {
    /// Rows of the packed batch `[R]`; a row may occur more than once (the end of a shared prompt).
    pub(crate) rows: Vec<usize>,
    /// The token each row is to predict `[R]`.
    pub(crate) ids: Vec<u32>,
}

impl Targets {
    pub(crate) fn push(&mut self, row: usize, id: u32) {
        self.rows.push(row);
        self.ids.push(id);
    }
}

/// One micro-batch between forward and backward.
pub(crate) struct Forward {
    activations: Activations,
    found: TokenLogps,
    /// The batch's first row, counted over the step.
    first_row: u64,
}

impl Forward {
    /// Log-probability of each target `[R]`.
    pub(crate) fn logps(&self) -> &[f32] {
        &self.found.logps
    }

    /// Bytes held for the backward pass.
    #[cfg(test)]
    pub(crate) fn nbytes(&self) -> usize {
        self.activations.nbytes()
    }
}

/// Gradients of embedded tokens, summed by id in the order of a step's rows, however they are split: no more rows than ids that occur.
#[derive(Default)]
struct EmbeddedSums {
    ids: Vec<u32>,
    /// `[ids, D]`.
    rows: Vec<f32>,
    place: HashMap<u32, usize>,
}

impl EmbeddedSums {
    fn add(&mut self, part: &EmbeddingGrad) {
        let d = part.dx.shape()[1];
        for (&id, dx) in part.ids.iter().zip(part.dx.as_f32().chunks_exact(d)) {
            let place = *self.place.entry(id).or_insert_with(|| {
                self.ids.push(id);
                self.rows.resize(self.rows.len() + d, 0.0);
                self.ids.len() - 1
            });
            self.rows[place * d..][..d].iter_mut().zip(dx).for_each(|(sum, dx)| *sum += dx);
        }
    }
}

/// A model with everything AdamW needs: all of its weights, or with LoRA those that are trained.
pub(crate) struct Learner {
    params: Params,
    moments1: Vec<Tensor>,
    moments2: Vec<Tensor>,
    grads: Grads,
    /// Gradients of embedded tokens that are not yet in `grads`.
    embedded: EmbeddedSums,
    keep: Keep,
    decoder: Decoder,
    /// Tells the updates' dropout where training stands.
    dropout: Option<Arc<DropoutAt>>,
    step: u64,
    /// Rows passed forward in this step.
    n_rows: u64,
}

impl Learner {
    /// Masters and compute copies of the model in `source`, moments and gradients 0.
    pub(crate) fn load(source: &ModelSource, dtype: Dtype, device: &Device) -> Result<Self> {
        Ok(Self::new(Params::load(source)?, dtype, device))
    }

    /// The same for masters in memory.
    pub(crate) fn new(params: Params, dtype: Dtype, device: &Device) -> Self {
        let decoder = Decoder::from_params(&params, dtype, device);
        Self::over(params, decoder, None)
    }

    /// For masters of which `decoder` holds the compute copies.
    pub(crate) fn over(params: Params, decoder: Decoder, dropout: Option<Arc<DropoutAt>>) -> Self {
        let zeros = || params.tensors().iter().map(|master| Tensor::zeros(master.shape(), Dtype::F32)).collect();
        let (moments1, moments2) = (zeros(), zeros());
        let grads = Grads::of(&params);
        let (embedded, keep) = (EmbeddedSums::default(), Keep::All);
        Self { moments1, moments2, grads, embedded, keep, decoder, params, dropout, step: 0, n_rows: 0 }
    }

    /// The same learner with this much of its activations kept; changes no bit.
    pub(crate) fn keeping(self, keep: Keep) -> Self {
        Self { keep, ..self }
    }

    pub(crate) fn params(&self) -> &Params {
        &self.params
    }

    pub(crate) fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Forward pass with everything kept that the backward pass needs.
    pub(crate) fn forward(&mut self, batch: PackedBatch, targets: Targets) -> Result<Forward> {
        let first_row = self.enter_rows(batch.len());
        let activations = self.in_pass(first_row, |learner| learner.decoder.forward_train(batch, learner.keep))?;
        let found = self.decoder.token_logps(&activations.hidden, targets.rows, targets.ids);
        Ok(Forward { activations, found, first_row })
    }

    /// Adds the gradients of a loss whose derivative by each target's log-probability is `dlogps` `[R]`.
    pub(crate) fn backward(&mut self, forward: Forward, dlogps: &[f32]) {
        let Forward { activations, found, first_row } = forward;
        let dhidden = self.decoder.token_logps_backward(&activations.hidden, &found, dlogps, &mut self.grads);
        lap("head and loss");
        self.backward_layers(first_row, activations, &dhidden);
    }

    fn backward_layers(&mut self, first_row: u64, activations: Activations, dhidden: &Tensor) {
        let embedded = self
            .in_pass(first_row, |learner| learner.decoder.backward_layers(activations, dhidden, &mut learner.grads));
        if self.params.role(Role::Embed).is_some() {
            self.embedded.add(&embedded);
        }
    }

    /// Counts the rows of a batch; returns how many of the step came before.
    fn enter_rows(&mut self, n: usize) -> u64 {
        self.n_rows += n as u64;
        self.n_rows - n as u64
    }

    /// Runs a pass with the dropout of LoRA's updates on, where there is one.
    fn in_pass<T>(&mut self, first_row: u64, pass: impl FnOnce(&mut Self) -> T) -> T {
        if let Some(dropout) = &self.dropout {
            dropout.enter(self.step, first_row);
        }
        let found = pass(self);
        if let Some(dropout) = &self.dropout {
            dropout.leave();
        }
        found
    }

    /// Floating point operations of a step's products: 6 a weight and token (2 forward, 4 backward; 4 in all for a frozen weight, LoRA's
    /// updates not counted), the head's for trained tokens alone, and 12 a value of a head for each pair of query and key. Computing
    /// activations again is not counted.
    pub(crate) fn flops(&self, n_tokens: u64, n_targets: u64, n_attended: u64) -> f64 {
        let config = &self.params.config;
        let head = (config.vocab_size * config.hidden_size) as f64;
        let n_tables = if config.tie_word_embeddings { 1.0 } else { 2.0 };
        let layers = config.n_parameters() as f64 - n_tables * head;
        let attention = (config.num_hidden_layers * config.num_attention_heads * config.head_dim) as f64;
        let each = |role: Role| if self.params.role(role).is_some() { 6.0 } else { 4.0 };
        let (of_layers, of_head) = (each(Role::FinalNorm), each(Role::Embed));
        of_layers * layers * n_tokens as f64 + of_head * head * n_targets as f64 + 12.0 * attention * n_attended as f64
    }

    /// [`Self::forward`] and [`Self::backward`] in one, bit for bit, for `dlogps` that do not depend on the log-probabilities, which are
    /// returned: saves a product over the vocabulary.
    pub(crate) fn forward_backward(
        &mut self,
        batch: PackedBatch,
        targets: Targets,
        dlogps: &[f32],
    ) -> Result<Vec<f32>> {
        let first_row = self.enter_rows(batch.len());
        let activations = self.in_pass(first_row, |learner| learner.decoder.forward_train(batch, learner.keep))?;
        let (found, dhidden) =
            self.decoder.token_logps_at_once(&activations.hidden, (targets.rows, targets.ids), dlogps, &mut self.grads);
        lap("head and loss");
        self.backward_layers(first_row, activations, &dhidden);
        Ok(found.logps)
    }

    /// Gradients 0, for optimizer step `step`.
    pub(crate) fn begin_step(&mut self, step: u64) {
        (self.step, self.n_rows) = (step, 0);
        self.grads.zero();
        self.embedded = EmbeddedSums::default();
    }

    /// Brings all gradients of the step together, and returns their norm. Call once per step.
    pub(crate) fn grad_norm(&mut self) -> f64 {
        self.join_embedded();
        self.grads.settle();
        self.grads.sum_of_squares(&self.decoder.device).sqrt()
    }

    fn join_embedded(&mut self) {
        let sums = std::mem::take(&mut self.embedded);
        let rows = Tensor::from_f32(&[sums.ids.len(), self.params.config.hidden_size], sums.rows);
        self.grads.add_embedded(&self.decoder.device, &[(&sums.ids, &rows)]);
    }

    /// One AdamW step with gradients clipped to the norm `settings.clip` as `torch.nn.utils.clip_grad_norm_` does;
    /// `n_updates` counts from 1. Norm weights and biases do not decay.
    pub(crate) fn update(&mut self, lr: f64, grad_norm: f64, n_updates: u64, settings: &LoopSettings) {
        let grad_scale = if settings.clip > 0.0 { (settings.clip / (grad_norm + 1e-6)).min(1.0) } else { 1.0 };
        for (at, spec) in self.grads.specs().iter().enumerate() {
            let decays = spec.group == ParamGroup::Decay;
            let step = AdamW {
                lr: lr as f32,
                beta1: settings.betas[0] as f32,
                beta2: settings.betas[1] as f32,
                eps: settings.eps as f32,
                weight_decay: if decays { settings.weight_decay as f32 } else { 0.0 },
                step: n_updates,
                grad_scale: grad_scale as f32,
            };
            ops::adamw_step(
                &self.decoder.device,
                &mut self.params.tensors_mut()[at],
                &mut self.moments1[at],
                &mut self.moments2[at],
                &self.grads.tensors()[at],
                &step,
            );
            // While the new numbers are in the caches.
            self.decoder.refresh_at(&self.params, at);
        }
        lap("update");
    }

    /// Both moments to 0: the start of a span with a fresh optimizer.
    pub(crate) fn reset_moments(&mut self) {
        for moment in self.moments1.iter_mut().chain(&mut self.moments2) {
            moment.as_f32_mut().fill(0.0);
        }
    }

    /// Refuses a non-finite weight or moment by name, and a weight whose square is not finite: no training makes one of 10^19, a
    /// flipped bit of memory does.
    pub(crate) fn check_finite(&self, step: u64) -> Result<()> {
        type Fits = fn(f32) -> bool;
        let groups: [(&str, &[Tensor], Fits); 4] = [
            ("weight", self.params.tensors(), f32::is_finite),
            ("the square of weight", self.params.tensors(), |value| (value * value).is_finite()),
            ("the first moment of", &self.moments1, f32::is_finite),
            ("the second moment of", &self.moments2, f32::is_finite),
        ];
        for (group, tensors, fits) in groups {
            for (spec, tensor) in self.params.specs().iter().zip(tensors) {
                if !tensor.as_f32().iter().all(|&value| fits(value)) {
                    let (what, rows) = (format!("{group} {}", spec.hf_name), Vec::new());
                    return Err(Error::NonFinite { step, what, rows, goes_on: String::new() });
                }
            }
        }
        Ok(())
    }

    /// Multiplies all gradients: what a fault of a step looks like.
    #[cfg(test)]
    pub(crate) fn scale_grads(&mut self, factor: f32) {
        self.join_embedded();
        self.grads.settle();
        for value in self.grads.tensors_mut().iter_mut().flat_map(|tensor| tensor.as_f32_mut()) {
            *value *= factor;
        }
    }

    /// Flips bit `bit` of one weight, in the master and in the copy that is computed with: what a fault of memory looks like.
    #[cfg(test)]
    pub(crate) fn flip_bit(&mut self, tensor: usize, at: usize, bit: u32) {
        let value = &mut self.params.tensors_mut()[tensor].as_f32_mut()[at];
        *value = f32::from_bits(value.to_bits() ^ (1 << bit));
        self.decoder.refresh(&self.params);
    }

    /// Bytes held between steps.
    #[cfg(test)]
    pub(crate) fn nbytes(&self) -> usize {
        let of = |tensors: &[Tensor]| tensors.iter().map(Tensor::nbytes).sum::<usize>();
        let groups = [self.params.tensors(), &self.moments1, &self.moments2, self.grads.tensors()];
        groups.into_iter().map(of).sum::<usize>() + self.decoder.weights.nbytes()
    }

    /// What a checkpoint holds, for [`crate::state::save`].
    pub(crate) fn arrays(&self) -> [(&'static str, Vec<&[f32]>); 3] {
        [
            ("weights", self.params.tensors().iter().map(Tensor::as_f32).collect()),
            ("moment1", self.moments1.iter().map(Tensor::as_f32).collect()),
            ("moment2", self.moments2.iter().map(Tensor::as_f32).collect()),
        ]
    }

    /// Names and lengths of [`Self::arrays`].
    pub(crate) fn layout(&self) -> Vec<(&'static str, Vec<usize>)> {
        self.arrays().into_iter().map(|(name, parts)| (name, parts.iter().map(|part| part.len()).collect())).collect()
    }

    /// Takes over the arrays of a checkpoint, in the order of [`Self::layout`].
    pub(crate) fn restore(&mut self, arrays: Vec<Vec<Vec<f32>>>) {
        let groups = [self.params.tensors_mut(), &mut self.moments1, &mut self.moments2];
        for (tensors, values) in groups.into_iter().zip(arrays) {
            for (tensor, values) in tensors.iter_mut().zip(values) {
                *tensor = Tensor::from_f32(tensor.shape(), values);
            }
        }
        self.decoder.refresh(&self.params);
    }
}

/// Log-probabilities of `targets` with nothing kept for a backward pass.
pub(crate) fn target_logps(decoder: &Decoder, batch: &PackedBatch, targets: Targets) -> Result<Vec<f32>> {
    let hidden = decoder.hidden(batch)?;
    Ok(decoder.token_logps(&hidden, targets.rows, targets.ids).logps)
}
