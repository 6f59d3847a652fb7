//! The memory that training takes, from the sizes of what it holds: one formula for the plan, held against the real buffers by a test.

use crate::settings::{TrainDtype, keep};
use aloe_model::{Activations, Config};

/// Buffers that operations free and the process keeps for the next one, code and tokenizer: measured, see LOG.md.
const KEPT_BYTES: u64 = 320 << 20;
/// Values a token that one layer's backward pass holds beside the kept ones, in widths of the hidden and of the feed-forward state.
const BACKWARD_WIDTHS: (u64, u64) = (8, 5);

/// Peak resident bytes of a full training stage whose micro-batch has `n_tokens` tokens: masters, both moments and gradients in f32,
/// compute copies, the pages of the start weights' file, and the activations.
pub fn peak_bytes(config: &Config, dtype: TrainDtype, recompute: bool, n_tokens: u64) -> u64 {
    held_bytes(config, dtype) + working_bytes(config, dtype, recompute, n_tokens)
}

/// The part of it that comes beside what is held between steps: the file's pages, the activations, and what operations leave. Beside
/// LoRA's updates activations are f32 whatever the weights are: `activations` is the type they have.
pub fn working_bytes(config: &Config, activations: TrainDtype, recompute: bool, n_tokens: u64) -> u64 {
    let (d, f) = (config.hidden_size as u64, config.intermediate_size as u64);
    let file = 2 * config.n_parameters() as u64;
    let kept = Activations::bytes_per_token(config, activations.tensor(), keep(recompute)) as u64;
    let backward = 4 * (BACKWARD_WIDTHS.0 * d + BACKWARD_WIDTHS.1 * f);
    file + (kept + backward) * n_tokens + KEPT_BYTES
}

/// What a learner holds between steps.
fn held_bytes(config: &Config, dtype: TrainDtype) -> u64 {
    let copy = if dtype == TrainDtype::F32 { 4 } else { 2 };
    (4 * 4 + copy) * config.n_parameters() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learner::{Learner, Targets};
    use aloe_model::PackedBatch;
    use aloe_model::testing::{Tiny, tiny_random};
    use aloe_tensor::Device;

    /// Norms and biases are f32 in both types and few; alignment of the copies adds a little.
    #[test]
    fn the_formula_is_the_size_of_the_buffers() {
        for kind in [Tiny::Llama, Tiny::Qwen2] {
            for dtype in [TrainDtype::F32, TrainDtype::Bf16] {
                let params = tiny_random(kind, 0);
                let config = params.config.clone();
                let mut learner = Learner::new(params, dtype.tensor(), &Device::cpu(1));
                let (found, expected) = (learner.nbytes() as f64, held_bytes(&config, dtype) as f64);
                assert!((found / expected - 1.0).abs() < 0.05, "{kind:?} {dtype:?}: {found} for {expected}");
                let ids: Vec<u32> = (0..20).collect();
                let forward = learner.forward(PackedBatch::from_documents(&[&ids]), Targets::default()).unwrap();
                let per_token = Activations::bytes_per_token(&config, dtype.tensor(), keep(false));
                let (found, expected) = (forward.nbytes() as f64, 20.0 * per_token as f64);
                assert!((found / expected - 1.0).abs() < 0.02, "{kind:?} {dtype:?}: {found} for {expected}");
            }
        }
    }
}
