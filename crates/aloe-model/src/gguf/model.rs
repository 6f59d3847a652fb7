//! A decoder in a GGUF file: its config from the metadata, its tensors under Hugging Face names and row order.
//!
//! Knows the `llama` (Llama, Mistral, SmolLM2) and `qwen2` architectures. Llama 3.1's RoPE scaling is stored as a tensor of
//! divisors; it is recognised when it equals a published setting, and refused otherwise. YaRN and experts are refused by name.

use super::Gguf;
use crate::arch::{self, RowPermute, TensorSpec};
use crate::config::ids_json;
use crate::{Config, Error, Result};
use serde_json::{Map, Value, json};
use std::path::Path;

const ROPE_FREQS: &str = "rope_freqs.weight";

/// An opened decoder in a GGUF file.
pub struct GgufModel {
    /// The config as `config.json` would say it.
    pub config: Config,
    /// The file.
    pub gguf: Gguf,
    table: Vec<TensorSpec>,
}

impl GgufModel {
    /// Opens the file, builds the config and checks names and shapes against the table.
    pub fn open(path: &Path) -> Result<Self> {
        let gguf = Gguf::open(path)?;
        let config = Config::from_json(&config_json(&gguf)?)?;
        let table = arch::tensors(&config);
        let model = Self { config, gguf, table };
        model.check_names()?;
        Ok(model)
    }

    /// The table's tensors: what a model of this config consists of.
    pub fn specs(&self) -> &[TensorSpec] {
        &self.table
    }

    /// The tensor with the Hugging Face name `name`, dequantised to f32, rows in Hugging Face order.
    pub fn load_f32(&self, name: &str) -> Result<Vec<f32>> {
        let spec = self.spec(name)?;
        let values = self.gguf.load_f32(&spec.gguf_name)?;
        Ok(match spec.permute {
            RowPermute::None => values,
            RowPermute::RopeHeads(n_heads) => unpermuted(&values, spec.shape[0], n_heads),
        })
    }

    /// Type name and bytes of a tensor as stored.
    pub fn stored(&self, name: &str) -> Result<(&'static str, &[u8])> {
        let spec = self.spec(name)?;
        let ggml_type = self.gguf.tensor(&spec.gguf_name).map_or("?", |tensor| tensor.ggml_type.name());
        Ok((ggml_type, self.gguf.bytes(&spec.gguf_name)?))
    }

    /// Lets the pages of a tensor go that were read.
    pub(crate) fn release(&self, name: &str) -> Result<()> {
        self.gguf.release(&self.spec(name)?.gguf_name)
    }

    fn spec(&self, name: &str) -> Result<&TensorSpec> {
        let found = self.table.iter().find(|spec| spec.hf_name == name);
        found.ok_or_else(|| Error::tensor(self.gguf.path(), name, "is not a tensor of this model"))
    }

    fn check_names(&self) -> Result<()> {
        let path = self.gguf.path();
        for spec in &self.table {
            let Some(tensor) = self.gguf.tensor(&spec.gguf_name) else {
                return Err(Error::tensor(path, &spec.gguf_name, "is missing"));
            };
            if tensor.shape != spec.shape {
                let reason = format!("has shape {:?}, the metadata expect {:?}", tensor.shape, spec.shape);
                return Err(Error::tensor(path, &spec.gguf_name, reason));
            }
        }
        let expected: std::collections::HashSet<&str> = self.table.iter().map(|spec| spec.gguf_name.as_str()).collect();
        match self.gguf.names().iter().find(|name| !expected.contains(name.as_str()) && *name != ROPE_FREQS) {
            Some(name) => Err(Error::tensor(path, name, "does not belong to a model of these metadata")),
            None => Ok(()),
        }
    }
}

/// Undoes llama.cpp's permutation: file row `2 i + s` of a head is row `s * E/2 + i` in Hugging Face order.
fn unpermuted(values: &[f32], n_rows: usize, n_heads: usize) -> Vec<f32> {
    let width = values.len() / n_rows;
    let head_dim = n_rows / n_heads;
    let mut out = Vec::with_capacity(values.len());
    for head in 0..n_heads {
        for half in 0..2 {
            for i in 0..head_dim / 2 {
                let row = head * head_dim + 2 * i + half;
                out.extend_from_slice(&values[row * width..(row + 1) * width]);
            }
        }
    }
    out
}

/// The `config.json` that the metadata stand for.
fn config_json(gguf: &Gguf) -> Result<Value> {
    let metadata = gguf.metadata();
    let arch = metadata.get("general.architecture").and_then(Value::as_str).unwrap_or("");
    let (model_type, class) = match arch {
        "llama" => ("llama", "LlamaForCausalLM"),
        "qwen2" => ("qwen2", "Qwen2ForCausalLM"),
        other => {
            let reason =
                format!("\"{}\" is not supported; supported are llama and qwen2", crate::error::shortened(other));
            return Err(Error::config("general.architecture", reason));
        }
    };
    let keys = ArchKeys { metadata, arch };
    keys.refuse_unsupported()?;
    let embed = gguf
        .tensor("token_embd.weight")
        .ok_or_else(|| Error::tensor(gguf.path(), "token_embd.weight", "is missing"))?;
    let hidden_size = keys.size("embedding_length")?;
    let n_heads = keys.size("attention.head_count")?;
    let head_dim = keys.optional("attention.key_length")?.unwrap_or(hidden_size / n_heads);
    keys.must_equal("attention.value_length", head_dim)?;
    keys.must_equal("rope.dimension_count", head_dim)?;
    let theta = keys.number("rope.freq_base")?.unwrap_or(10_000.0);
    let context = keys.size("context_length")?;
    let eps = keys.number("attention.layer_norm_rms_epsilon")?;
    let eps = eps.ok_or_else(|| Error::config(&keys.name("attention.layer_norm_rms_epsilon"), "is missing"))?;
    let mut config = json!({
        "architectures": [class],
        "model_type": model_type,
        "vocab_size": embed.shape[0],
        "hidden_size": hidden_size,
        "intermediate_size": keys.size("feed_forward_length")?,
        "num_hidden_layers": keys.size("block_count")?,
        "num_attention_heads": n_heads,
        "num_key_value_heads": keys.optional("attention.head_count_kv")?.unwrap_or(n_heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": context,
        "rms_norm_eps": eps,
        "rope_theta": theta,
        "rope_scaling": rope_scaling(gguf, &keys, head_dim, theta)?,
        "tie_word_embeddings": gguf.tensor("output.weight").is_none(),
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": true,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id").cloned().unwrap_or(Value::Null),
        "eos_token_id": ids_json(&end_tokens(metadata)?),
    });
    if let Some(pad) = metadata.get("tokenizer.ggml.padding_token_id") {
        config["pad_token_id"] = pad.clone();
    }
    if arch == "qwen2" {
        config["use_sliding_window"] = json!(false);
    }
    Ok(config)
}

/// The end-of-text token and, where the file names another one, the end-of-turn token.
fn end_tokens(metadata: &Map<String, Value>) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"] {
        let Some(value) = metadata.get(key) else { continue };
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        let id = id.ok_or_else(|| Error::config(key, format!("{value} is not a token id")))?;
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    Ok(ids)
}

fn rope_scaling(gguf: &Gguf, keys: &ArchKeys, head_dim: usize, theta: f64) -> Result<Value> {
    let key = keys.name("rope.scaling.type");
    match keys.metadata.get(&key).and_then(Value::as_str) {
        None | Some("none") => {}
        Some("linear") => {
            let factor = keys.number("rope.scaling.factor")?.unwrap_or(1.0);
            return Ok(json!({"rope_type": "linear", "factor": factor}));
        }
        Some(other) => {
            return Err(Error::config(&key, format!("\"{other}\" is not supported; known are none and linear")));
        }
    }
    let Some(tensor) = gguf.tensor(ROPE_FREQS) else { return Ok(Value::Null) };
    if tensor.shape != [head_dim / 2] {
        let reason = format!("has shape {:?}, expected [{}]", tensor.shape, head_dim / 2);
        return Err(Error::tensor(gguf.path(), ROPE_FREQS, reason));
    }
    let found = gguf.load_f32(ROPE_FREQS)?;
    if found.iter().all(|divisor| *divisor == 1.0) {
        return Ok(Value::Null);
    }
    // Llama 3.1 (factor 8) and 3.2 (factor 32); the other three values are the same in every published config.
    for factor in [8.0, 32.0, 16.0, 4.0, 2.0] {
        let expected = llama3_divisors(head_dim, theta, factor);
        if found.iter().zip(&expected).all(|(a, b)| (f64::from(*a) - b).abs() <= 1e-4 * b) {
            return Ok(
                json!({"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 8192}),
            );
        }
    }
    Err(Error::tensor(gguf.path(), ROPE_FREQS, "holds RoPE divisors of no known setting (Llama 3.1 or 3.2 expected)"))
}

/// What convert_hf_to_gguf.py (`LlamaModel.generate_extra_tensors`) stores for Llama 3.1: how much each frequency is divided.
fn llama3_divisors(head_dim: usize, theta: f64, factor: f64) -> Vec<f64> {
    let (low, high, original) = (1.0, 4.0, 8192.0);
    let divisor = |i: usize| {
        let wavelength = 2.0 * std::f64::consts::PI * theta.powf(2.0 * i as f64 / head_dim as f64);
        if wavelength < original / high {
            1.0
        } else if wavelength > original / low {
            factor
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    (0..head_dim / 2).map(divisor).collect()
}

/// Keys with the architecture's prefix.
struct ArchKeys<'a> {
    metadata: &'a Map<String, Value>,
    arch: &'a str,
}

impl ArchKeys<'_> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }

    fn optional(&self, key: &str) -> Result<Option<usize>> {
        let name = self.name(key);
        let Some(value) = self.metadata.get(&name) else { return Ok(None) };
        match value.as_u64() {
            Some(n) if (1..=1 << 26).contains(&n) => Ok(Some(n as usize)),
            _ => Err(Error::config(
                &name,
                format!("{} is not a supported size", crate::error::shortened(&value.to_string())),
            )),
        }
    }

    fn size(&self, key: &str) -> Result<usize> {
        self.optional(key)?.ok_or_else(|| Error::config(&self.name(key), "is missing"))
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        let name = self.name(key);
        let Some(value) = self.metadata.get(&name) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| Error::config(&name, "is not a number"))
    }

    fn must_equal(&self, key: &str, expected: usize) -> Result<()> {
        match self.optional(key)? {
            Some(found) if found != expected => {
                let reason =
                    format!("is {found}, but the head size is {expected}: a part of each head is not supported");
                Err(Error::config(&self.name(key), reason))
            }
            _ => Ok(()),
        }
    }

    fn refuse_unsupported(&self) -> Result<()> {
        for key in ["expert_count", "expert_used_count"] {
            if self.metadata.get(&self.name(key)).and_then(Value::as_u64).is_some_and(|n| n > 0) {
                return Err(Error::config(&self.name(key), "mixtures of experts are not implemented"));
            }
        }
        let window = self.optional("attention.sliding_window")?;
        if let Some(window) = window
            && window < self.size("context_length")?
        {
            return Err(Error::config(&self.name("attention.sliding_window"), format!("{window} cuts the context")));
        }
        for key in ["logit_scale", "residual_scale", "embedding_scale", "attention.scale"] {
            if self.number(key)?.is_some_and(|scale| scale != 1.0 && scale != 0.0) {
                return Err(Error::config(&self.name(key), "scaled variants are not implemented"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
