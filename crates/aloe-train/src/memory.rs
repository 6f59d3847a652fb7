//! The memory that a training stage takes, term by term: what `aloe plan` shows before the stage is run.
//!
//! The terms that are buffers are held against the real ones by the tests below, their sum against the peaks of real stages by a test of the
//! binary (`it/planned_memory.rs`) and by `oracles/plan_memory.py`. The program's allocator keeps what is freed for the next operation
//! (`aloe_tensor::Heap`): when the weights are handed over, what a step took is still resident, free or not.

use crate::lora::{LoraBase, LoraConfig};
use crate::settings::{TrainDtype, keep};
use aloe_model::{Activations, Config, Keep, Role, TensorSpec, arch};
use aloe_tensor::Dtype;

/// Code and rows, and each token of the vocabulary with its merge: measured with vocabularies of 49,152 and 151,936, see LOG.md.
const PROCESS_BYTES: u64 = 60 << 20;
const TOKEN_BYTES: u64 = 720;
/// The most logits that head and loss hold at once.
const LOGITS_BYTES: u64 = 64 << 20;
/// Values a token that one layer's backward pass holds beside the kept ones, in widths of the hidden and of the feed-forward state. Of
/// all weights: measured.
const BACKWARD_WIDTHS: (u64, u64) = (8, 5);
/// With LoRA: the gradients of the hidden states and of the layer's output; of the SwiGLU product, gate and up.
const LORA_BACKWARD_WIDTHS: (u64, u64) = (2, 3);
/// Matrices in f32 that are held while a table is written: as it was loaded, and before and after training as the export rounds it. After
/// training it is the master's or, where it is frozen, the loaded one's own memory.
const EXPORTED_MATRICES: u64 = 3;
/// A vocabulary of which nothing is known.
const ABOUT_TOKENS: u64 = 64 << 10;
/// Bytes a number of f32.
const F32: u64 = 4;
/// Master, both moments and gradient of a trained number, f32 each.
const TRAINED: u64 = 4 * F32;

/// What decides how much memory a stage takes, besides the model's sizes.
#[derive(Clone, Copy, Debug)]
pub struct TrainShape<'a> {
    /// Type of the compute copies; with LoRA of a dense base.
    pub dtype: TrainDtype,
    /// The updates that are trained; without them all weights are.
    pub lora: Option<&'a LoraConfig>,
    /// Whether activations are computed again in the backward pass.
    pub recompute: bool,
    /// Tokens of the largest micro-batch.
    pub n_tokens: u64,
    /// Bytes of the start weights as their file holds them.
    pub file_bytes: u64,
}

/// Resident bytes of a training stage, by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrainMemory {
    /// Code, tokenizer and encoded rows.
    pub process: u64,
    /// The weights as products read them: copies of the masters, or the frozen base in f32, bf16 or 8-bit blocks.
    pub weights: u64,
    /// Masters, moments and gradients of what is trained, and the copies of LoRA's factors that products read.
    pub trained: u64,
    /// Pages of the start weights' file that stay from their reading on. None with LoRA, whose base lets go of each matrix once it is packed.
    pub file: u64,
    /// What the forward pass keeps for the backward pass.
    pub activations: u64,
    /// What head and loss, or one layer's backward pass, hold beside it, whichever is more.
    pub passing: u64,
    /// The largest matrix on its way into `model/` and `master/`.
    pub exported: u64,
    /// Pages of the start weights' file that LoRA reads to merge its updates; matrices in 8-bit blocks are merged from the blocks.
    pub merged_from: u64,
    /// The merged model, opened in the base's place to be compared with it.
    pub merged: u64,
}

impl TrainMemory {
    /// Of a stage that trains a model of `config`.
    pub fn of(config: &Config, shape: &TrainShape) -> Self {
        let table = arch::tensors(config);
        let n_parameters = config.n_parameters() as u64;
        let per_token = |keep| Activations::bytes_per_token(config, shape.activations(), keep) as u64;
        let passing = shape.passing_bytes(config, per_token(Keep::All));
        let largest = table.iter().map(|spec| spec.n_elements() as u64).max().unwrap_or(0);
        let read_again: u64 =
            table.iter().filter(|spec| !shape.is_in_blocks(config, spec)).map(|spec| spec.n_elements() as u64).sum();
        let file_again = (shape.file_bytes as f64 * read_again as f64 / n_parameters.max(1) as f64) as u64;
        Self {
            process: PROCESS_BYTES + TOKEN_BYTES * config.vocab_size as u64,
            weights: table.iter().map(|spec| shape.weight_bytes(config, spec)).sum(),
            trained: shape.trained_bytes(config),
            activations: per_token(keep(shape.recompute)) * shape.n_tokens,
            passing,
            exported: EXPORTED_MATRICES * F32 * largest,
            ..Self::of_files(shape, n_parameters, file_again)
        }
    }

    /// The same where the number of weights is all that is known of the model. Activations are within a quarter for Llama-like decoders
    /// from 135M (30 layers of 576) to 70B.
    pub fn about(n_parameters: u64, shape: &TrainShape) -> Self {
        let (weights, size) = (n_parameters as f64, (n_parameters as f64).powf(0.6));
        // A layer's input, with bf16 also its attention's output, is this share of what it keeps.
        let (kept, share) = if shape.activations() == Dtype::Bf16 { (5.0, 0.25) } else { (8.5, 0.1) };
        let kept = kept * size * if shape.recompute { share } else { 1.0 };
        let backward = if shape.lora.is_some() { 0.3 } else { 0.6 };
        let n_tokens = shape.n_tokens as f64;
        let table = 120.0 * weights.powf(2.0 / 3.0);
        let in_blocks = shape.lora.is_some_and(|lora| lora.base == LoraBase::Q8);
        let trained = match shape.lora {
            None => TRAINED * n_parameters,
            Some(lora) => (TRAINED + F32) * about_n_updates(n_parameters, lora),
        };
        Self {
            process: PROCESS_BYTES + TOKEN_BYTES * ABOUT_TOKENS,
            weights: if in_blocks { blocks_bytes(&[n_parameters as usize]) } else { shape.width() * n_parameters },
            trained,
            activations: (kept * n_tokens) as u64,
            passing: LOGITS_BYTES.max((backward * size * n_tokens) as u64),
            exported: (EXPORTED_MATRICES * F32) * table as u64,
            ..Self::of_files(shape, n_parameters, if in_blocks { 0 } else { shape.file_bytes })
        }
    }

    /// The terms of the start weights' file and of the merged model.
    fn of_files(shape: &TrainShape, n_parameters: u64, file_again: u64) -> Self {
        match shape.lora {
            None => Self { file: shape.file_bytes, ..Self::default() },
            Some(_) => Self { merged_from: file_again, merged: shape.width() * n_parameters, ..Self::default() },
        }
    }

    /// The peak of the steps: what one step that is run on its own takes.
    pub fn of_steps(&self) -> u64 {
        self.process + self.weights + self.trained + self.file + self.activations + self.passing
    }

    /// The peak of the whole stage. A matrix that is written has room in what the steps have freed, if that is large enough; the merged
    /// model has not, as weights lie in memory of their own.
    pub fn peak(&self) -> u64 {
        let buffers = self.trained + (self.activations + self.passing).max(self.exported);
        self.process + self.weights.max(self.merged) + self.file + self.merged_from + buffers
    }
}

impl TrainShape<'_> {
    /// Bytes a number of a dense weight.
    fn width(&self) -> u64 {
        if self.dtype == TrainDtype::F32 { 4 } else { 2 }
    }

    /// Beside LoRA's updates activations are f32 whatever the weights are.
    fn activations(&self) -> Dtype {
        if self.lora.is_some() { Dtype::F32 } else { self.dtype.tensor() }
    }

    /// Whether a tensor of the table is frozen and held in 8-bit blocks: no vector, no table that is only looked up, and none that is trained.
    fn is_in_blocks(&self, config: &Config, spec: &TensorSpec) -> bool {
        let Some(lora) = self.lora.filter(|lora| lora.base == LoraBase::Q8) else { return false };
        let is_plain_table = match spec.role {
            Role::Embed => lora.train_embeddings || !config.tie_word_embeddings,
            Role::Head => lora.train_embeddings,
            _ => false,
        };
        spec.shape.len() > 1 && !is_plain_table
    }

    /// A tensor as the products read it; vectors are f32.
    fn weight_bytes(&self, config: &Config, spec: &TensorSpec) -> u64 {
        match spec.shape.len() {
            0 | 1 => F32 * spec.n_elements() as u64,
            _ if self.is_in_blocks(config, spec) => blocks_bytes(&spec.shape),
            _ => self.width() * panel_elements(&spec.shape),
        }
    }

    fn trained_bytes(&self, config: &Config) -> u64 {
        let Some(lora) = self.lora else { return TRAINED * config.n_parameters() as u64 };
        let copy = |spec: &TensorSpec| match spec.role {
            Role::LoraA(..) | Role::LoraB(..) => F32 * panel_elements(&spec.shape),
            // Among the weights.
            _ => 0,
        };
        lora.shape().tensors(config).iter().map(|spec| TRAINED * spec.n_elements() as u64 + copy(spec)).sum()
    }

    /// `kept` is what a token keeps where nothing is computed again.
    fn passing_bytes(&self, config: &Config, kept: u64) -> u64 {
        let (d, f) = (config.hidden_size as u64, config.intermediate_size as u64);
        let again = if self.recompute { kept / config.num_hidden_layers.max(1) as u64 } else { 0 };
        let widths = if self.lora.is_some() { LORA_BACKWARD_WIDTHS } else { BACKWARD_WIDTHS };
        let backward = F32 * (widths.0 * d + widths.1 * f) + again;
        let logits = LOGITS_BYTES.min(F32 * config.vocab_size as u64 * self.n_tokens);
        logits.max(backward * self.n_tokens)
    }
}

/// Weights that LoRA trains, about: all seven targets have about P^(2/3) elements a rank, embedding and head about a fifth of the model.
pub fn about_n_updates(n_parameters: u64, lora: &LoraConfig) -> u64 {
    let n_parameters = n_parameters as f64;
    let updates = lora.rank as f64 * n_parameters.powf(2.0 / 3.0) * lora.targets.len() as f64 / 7.0;
    let whole = if lora.train_embeddings { 0.2 * n_parameters } else { 0.0 };
    (updates + whole) as u64
}

/// Elements of a matrix in panels of 32 rows.
fn panel_elements(shape: &[usize]) -> u64 {
    shape.iter().skip(1).map(|&width| width as u64).product::<u64>() * shape[0].next_multiple_of(32) as u64
}

/// Blocks of 32 numbers in 34 bytes (Q8_0), in whole panels of 32 rows.
fn blocks_bytes(shape: &[usize]) -> u64 {
    shape.iter().map(|&width| width.next_multiple_of(32) as u64).product::<u64>() / 32 * 34
}

#[cfg(test)]
mod tests;
