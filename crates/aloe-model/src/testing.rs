//! Tiny decoders for tests, here and in the crates above: weights from an integer formula that any language can repeat.
//!
//! Not for training from scratch: nothing here is a sensible initialisation. `oracles/decoder_grads.py` holds the twin of `fill`.

use crate::arch::{Role, TensorSpec};
use crate::config::Config;
use crate::params::Params;
use aloe_tensor::Tensor;
use serde_json::json;

/// Which tiny decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tiny {
    /// D 64, 4 query and 2 key/value heads, Llama 3.1 RoPE scaling, its own head.
    Llama,
    /// D 32, 4 query and 2 key/value heads, biases on q, k and v, tied head.
    Qwen2,
}

/// The config of a tiny decoder: 2 layers, vocabulary 64, context 64.
pub fn tiny_config(kind: Tiny) -> Config {
    let value = match kind {
        Tiny::Llama => json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 64, "hidden_size": 64,
            "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
            "rms_norm_eps": 1e-5, "max_position_embeddings": 64, "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2,
            "rope_theta": 10000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
        }),
        Tiny::Qwen2 => json!({
            "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 64, "hidden_size": 32,
            "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6, "max_position_embeddings": 64, "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2,
            "rope_theta": 1000000.0
        }),
    };
    Config::from_json(&value).expect("the tiny configs are complete")
}

/// `n` values in [-1, 1), each a multiple of 2^-15, decided by the name: a 32-bit hash of (FNV-1a of the name, index).
pub fn fill(name: &str, n: usize) -> Vec<f32> {
    let seed = name.bytes().fold(2_166_136_261_u32, |h, byte| (h ^ u32::from(byte)).wrapping_mul(16_777_619));
    let value = |i: usize| {
        let mut h = (i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed);
        h ^= h >> 15;
        h = h.wrapping_mul(2_246_822_519);
        h ^= h >> 13;
        h = h.wrapping_mul(3_266_489_917);
        h ^= h >> 16;
        ((h >> 16) as f32 - 32_768.0) / 32_768.0
    };
    (0..n).map(value).collect()
}

/// Formula weights for any config. Seed 0 gives the weights of the golden files; other seeds give other weights.
pub fn formula_params(config: &Config, seed: u64) -> Params {
    Params::from_fn(config, |spec| {
        let name = if seed == 0 { spec.hf_name.clone() } else { format!("{seed} {}", spec.hf_name) };
        let values = fill(&name, spec.n_elements());
        Tensor::from_f32(&spec.shape, values.into_iter().map(|v| scaled(spec, v)).collect())
    })
}

/// A tiny decoder's masters with weights of the seed.
pub fn tiny_random(kind: Tiny, seed: u64) -> Params {
    formula_params(&tiny_config(kind), seed)
}

fn scaled(spec: &TensorSpec, value: f32) -> f32 {
    if spec.hf_name.contains("norm") {
        1.0 + 0.25 * value
    } else if spec.hf_name.ends_with("bias") {
        0.125 * value
    } else if spec.role == Role::Embed {
        value
    } else {
        0.25 * value
    }
}
