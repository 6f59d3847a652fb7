//! A decoder's `config.json`: read strictly, kept whole for writing.
//!
//! Reads Llama, Qwen2 and Mistral in the layouts of transformers 4 (`rope_theta`, `rope_scaling`) and 5
//! (`rope_parameters`). Refuses by name whatever would change the numbers and is not implemented: other architectures,
//! activations, RoPE types, sliding windows that cut the context, biases, quantised weights, custom code. Defaults are those of
//! the transformers class.

mod rope;

pub use rope::RopeScaling;

use crate::{Error, Result};
use rope::{rope, scaling_json};
use serde_json::{Map, Value, json};

/// The families of decoders whose forward pass is implemented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// Llama 2, 3, 3.1, SmolLM2.
    Llama,
    /// Qwen2 and Qwen2.5: Llama with biases on q, k and v.
    Qwen2,
    /// Mistral whose sliding window covers the context: Llama under another name.
    Mistral,
}

impl Arch {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Llama, Self::Qwen2, Self::Mistral];

    /// `model_type` in `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Arch::Llama => "llama",
            Arch::Qwen2 => "qwen2",
            Arch::Mistral => "mistral",
        }
    }

    /// The entry of `architectures` in `config.json`.
    pub fn class(self) -> &'static str {
        match self {
            Arch::Llama => "LlamaForCausalLM",
            Arch::Qwen2 => "Qwen2ForCausalLM",
            Arch::Mistral => "MistralForCausalLM",
        }
    }

    fn default_max_position(self) -> usize {
        match self {
            Arch::Llama => 2048,
            Arch::Qwen2 => 32_768,
            Arch::Mistral => 131_072,
        }
    }
}

/// A decoder's hyperparameters, under the names of `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The family.
    pub arch: Arch,
    /// V.
    pub vocab_size: usize,
    /// D.
    pub hidden_size: usize,
    /// F.
    pub intermediate_size: usize,
    /// L.
    pub num_hidden_layers: usize,
    /// H.
    pub num_attention_heads: usize,
    /// K; divides H.
    pub num_key_value_heads: usize,
    /// E, even. H * E need not be D.
    pub head_dim: usize,
    /// Added to the mean square inside RMSNorm.
    pub rms_norm_eps: f32,
    /// The base of the RoPE frequencies.
    pub rope_theta: f64,
    /// Stretching of the RoPE frequencies, if any.
    pub rope_scaling: Option<RopeScaling>,
    /// The longest context in tokens.
    pub max_position_embeddings: usize,
    /// Whether the output head is the embedding matrix.
    pub tie_word_embeddings: bool,
    /// Whether q, k and v have biases (Qwen2).
    pub attention_bias: bool,
    /// The token that begins a text.
    pub bos_token_id: Option<u32>,
    /// The tokens that end generation; empty when the config names none.
    pub eos_token_ids: Vec<u32>,
    /// The source `config.json`, kept so that what we write loses nothing.
    pub raw: Map<String, Value>,
}

impl Config {
    /// Reads a parsed `config.json`.
    pub fn from_json(value: &Value) -> Result<Self> {
        let raw = value.as_object().ok_or_else(|| Error::config("config.json", "is not a JSON object"))?;
        let keys = Keys(raw);
        let arch = arch_of(raw)?;
        refuse_unsupported(raw, arch)?;
        let num_attention_heads = keys.size("num_attention_heads")?;
        let hidden_size = keys.size("hidden_size")?;
        let max_position_embeddings = keys.size_or("max_position_embeddings", arch.default_max_position())?;
        let (rope_theta, rope_scaling) = rope(raw)?;
        let default_kv_heads = if arch == Arch::Mistral { 8 } else { num_attention_heads };
        let config = Config {
            arch,
            vocab_size: keys.size("vocab_size")?,
            hidden_size,
            intermediate_size: keys.size("intermediate_size")?,
            num_hidden_layers: keys.size("num_hidden_layers")?,
            num_attention_heads,
            num_key_value_heads: keys.size_or("num_key_value_heads", default_kv_heads)?,
            head_dim: keys.size_or("head_dim", hidden_size / num_attention_heads)?,
            rms_norm_eps: keys.number_or("rms_norm_eps", 1e-6)? as f32,
            rope_theta,
            rope_scaling,
            max_position_embeddings,
            tie_word_embeddings: keys.flag_or("tie_word_embeddings", false)?,
            attention_bias: arch == Arch::Qwen2,
            bos_token_id: token_ids(raw, "bos_token_id")?.first().copied(),
            eos_token_ids: token_ids(raw, "eos_token_id")?,
            raw: raw.clone(),
        };
        config.check()?;
        Ok(config)
    }

    /// The config as a `config.json` that transformers 4 and 5, vLLM and mergekit read alike: the source's keys, with the
    /// fields of this struct over them and RoPE in the old layout too, which every reader knows.
    pub fn to_json(&self) -> Value {
        let mut out = self.raw.clone();
        let mut set = |key: &str, value: Value| out.insert(key.to_string(), value);
        set("architectures", json!([self.arch.class()]));
        set("model_type", json!(self.arch.model_type()));
        set("hidden_act", json!("silu"));
        set("vocab_size", json!(self.vocab_size));
        set("hidden_size", json!(self.hidden_size));
        set("intermediate_size", json!(self.intermediate_size));
        set("num_hidden_layers", json!(self.num_hidden_layers));
        set("num_attention_heads", json!(self.num_attention_heads));
        set("num_key_value_heads", json!(self.num_key_value_heads));
        set("head_dim", json!(self.head_dim));
        set("rms_norm_eps", json!(widened(self.rms_norm_eps)));
        set("max_position_embeddings", json!(self.max_position_embeddings));
        set("tie_word_embeddings", json!(self.tie_word_embeddings));
        set("rope_theta", json!(self.rope_theta));
        let scaling = self.rope_scaling.as_ref().map_or(Value::Null, scaling_json);
        set("rope_scaling", scaling.clone());
        set("bos_token_id", json!(self.bos_token_id));
        set("eos_token_id", ids_json(&self.eos_token_ids));
        if self.raw.contains_key("rope_parameters") {
            let mut parameters = scaling.as_object().cloned().unwrap_or_default();
            parameters.entry("rope_type").or_insert(json!("default"));
            parameters.insert("rope_theta".into(), json!(self.rope_theta));
            out.insert("rope_parameters".into(), Value::Object(parameters));
        }
        if self.arch == Arch::Llama {
            out.entry("attention_bias").or_insert(json!(false));
            out.entry("mlp_bias").or_insert(json!(false));
        }
        Value::Object(out)
    }

    /// Elements of all weights; a tied head is counted once.
    pub fn n_parameters(&self) -> usize {
        crate::arch::tensors(self).iter().map(|spec| spec.shape.iter().product::<usize>()).sum()
    }

    /// Refuses sizes that no model has or that contradict each other, before anything is allocated from them.
    fn check(&self) -> Result<()> {
        let divides = |n: usize, by: usize| n.is_multiple_of(by);
        if self.num_hidden_layers > MAX_LAYERS {
            return Err(Error::config(
                "num_hidden_layers",
                format!("{} is above {MAX_LAYERS}", self.num_hidden_layers),
            ));
        }
        if !divides(self.num_attention_heads, self.num_key_value_heads) {
            let reason = format!(
                "{} does not divide num_attention_heads {}",
                self.num_key_value_heads, self.num_attention_heads
            );
            return Err(Error::config("num_key_value_heads", reason));
        }
        if !self.raw.contains_key("head_dim") && !divides(self.hidden_size, self.num_attention_heads) {
            let reason = format!("{} does not divide hidden_size {}", self.num_attention_heads, self.hidden_size);
            return Err(Error::config("num_attention_heads", reason));
        }
        if !divides(self.head_dim, 2) {
            return Err(Error::config("head_dim", format!("is {}, which is odd: RoPE turns pairs", self.head_dim)));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return Err(Error::config("rope_theta", format!("is {}, expected a positive number", self.rope_theta)));
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps >= 0.0) {
            return Err(Error::config(
                "rms_norm_eps",
                format!("is {}, expected a small positive number", self.rms_norm_eps),
            ));
        }
        if let Some(id) =
            self.bos_token_id.iter().chain(&self.eos_token_ids).find(|id| **id as usize >= self.vocab_size)
        {
            return Err(Error::config(
                "bos_token_id, eos_token_id",
                format!("{id} is outside the vocabulary of {}", self.vocab_size),
            ));
        }
        Ok(())
    }
}

/// The f64 whose decimal form is the f32's shortest one: 1e-5f32 becomes 0.00001, not 0.000009999999747378752.
pub(crate) fn widened(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

/// Token ids as `config.json` writes them: none, one number, or a list.
pub(crate) fn ids_json(ids: &[u32]) -> Value {
    match ids {
        [] => Value::Null,
        [one] => json!(one),
        many => json!(many),
    }
}

fn arch_of(raw: &Map<String, Value>) -> Result<Arch> {
    let model_type = raw.get("model_type").and_then(Value::as_str).unwrap_or("");
    let arch = match model_type {
        "llama" => Arch::Llama,
        "qwen2" => Arch::Qwen2,
        "mistral" => Arch::Mistral,
        other => {
            let known = "supported are llama, qwen2 and mistral";
            return Err(Error::config("model_type", format!("\"{other}\" is not supported; {known}")));
        }
    };
    if let Some(class) = raw.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str)
        && class != arch.class()
    {
        return Err(Error::config("architectures", format!("{class} is not supported; expected {}", arch.class())));
    }
    Ok(arch)
}

/// Keys that may only stand at the value that changes nothing. Anything else of `config.json` is bookkeeping.
fn refuse_unsupported(raw: &Map<String, Value>, arch: Arch) -> Result<()> {
    let refuse = |key: &str, why: &str| {
        let found = raw.get(key).map_or_else(String::new, |value| crate::error::shortened(&value.to_string()));
        Err(Error::config(key, format!("{found} is not supported: {why}")))
    };
    let is_set = |key: &str| raw.get(key).is_some_and(|value| !value.is_null());
    for key in ["num_local_experts", "num_experts", "n_routed_experts", "num_experts_per_tok"] {
        if is_set(key) {
            return refuse(key, "mixtures of experts are not implemented");
        }
    }
    if is_set("quantization_config") {
        return refuse("quantization_config", "take the unquantised weights, or a GGUF file");
    }
    if is_set("auto_map") {
        return refuse("auto_map", "code from a model repository is never run");
    }
    for (key, default) in [("hidden_act", "silu"), ("hidden_activation", "silu")] {
        if is_set(key) && raw[key].as_str() != Some(default) {
            return refuse(key, "only silu is implemented");
        }
    }
    for key in ["mlp_bias", "attention_bias", "use_bias"] {
        if is_set(key) && raw[key].as_bool() != Some(false) && !(key == "attention_bias" && arch == Arch::Qwen2) {
            return refuse(key, "only Qwen2's biases on q, k and v are implemented");
        }
    }
    if is_set("partial_rotary_factor") && raw["partial_rotary_factor"].as_f64() != Some(1.0) {
        return refuse("partial_rotary_factor", "RoPE over a part of each head is not implemented");
    }
    if is_set("attention_dropout") && raw["attention_dropout"].as_f64() != Some(0.0) {
        return refuse("attention_dropout", "training here uses no dropout, so the result would not be the asked one");
    }
    if let Some(types) = raw.get("layer_types").and_then(Value::as_array)
        && types.iter().any(|kind| kind.as_str() != Some("full_attention"))
    {
        return refuse("layer_types", "only full attention is implemented");
    }
    refuse_short_window(raw, arch)
}

fn refuse_short_window(raw: &Map<String, Value>, arch: Arch) -> Result<()> {
    let used = match arch {
        Arch::Mistral => true,
        Arch::Qwen2 => raw.get("use_sliding_window").and_then(Value::as_bool).unwrap_or(false),
        Arch::Llama => false,
    };
    // Mistral's class fills an absent key with 4096; its published files always carry the key.
    let window = match raw.get("sliding_window") {
        None if arch == Arch::Mistral => Some(4096),
        None | Some(Value::Null) => None,
        Some(value) => Some(value.as_u64().ok_or_else(|| Error::config("sliding_window", "is not a whole number"))?),
    };
    let context =
        raw.get("max_position_embeddings").and_then(Value::as_u64).unwrap_or(arch.default_max_position() as u64);
    match window {
        Some(window) if used && window < context => {
            let reason = format!(
                "{window} is shorter than max_position_embeddings {context}: sliding-window attention is not implemented"
            );
            Err(Error::config("sliding_window", reason))
        }
        _ => Ok(()),
    }
}

fn token_ids(raw: &Map<String, Value>, key: &str) -> Result<Vec<u32>> {
    let one = |value: &Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| Error::config(key, format!("{value} is not a token id")))
    };
    match raw.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(one).collect(),
        Some(value) => Ok(vec![one(value)?]),
    }
}

/// The table of tensors grows with the layers, so a lying config must not choose their number freely.
const MAX_LAYERS: usize = 4096;

/// Typed access to the keys of one JSON object.
struct Keys<'a>(&'a Map<String, Value>);

/// No dimension of a supported model is larger; below it products of two fit in a u64 with room.
const MAX_SIZE: u64 = 1 << 26;

impl Keys<'_> {
    fn size(&self, key: &str) -> Result<usize> {
        match self.0.get(key) {
            None | Some(Value::Null) => Err(Error::config(key, "is missing")),
            Some(value) => match value.as_u64() {
                Some(n) if (1..=MAX_SIZE).contains(&n) => Ok(n as usize),
                _ => Err(Error::config(key, format!("{value} is not a whole number in 1..={MAX_SIZE}"))),
            },
        }
    }

    fn size_or(&self, key: &str, default: usize) -> Result<usize> {
        if matches!(self.0.get(key), None | Some(Value::Null)) { Ok(default) } else { self.size(key) }
    }

    fn number_or(&self, key: &str, default: f64) -> Result<f64> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value.as_f64().ok_or_else(|| Error::config(key, format!("{value} is not a number"))),
        }
    }

    fn positive(&self, key: &str) -> Result<f64> {
        let value = self.number_or(key, f64::NAN)?;
        if value.is_finite() && value > 0.0 {
            return Ok(value);
        }
        Err(Error::config(&format!("rope_scaling.{key}"), "is missing or not a positive number"))
    }

    fn flag_or(&self, key: &str, default: bool) -> Result<bool> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| Error::config(key, format!("{value} is not true or false"))),
        }
    }
}

#[cfg(test)]
mod tests;
