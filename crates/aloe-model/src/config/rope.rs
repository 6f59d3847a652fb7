//! RoPE's base and its stretching, in the layouts of transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`).
//!
//! Refuses by name every kind whose frequencies are not implemented (dynamic, YaRN, LongRoPE).

use super::Keys;
use crate::{Error, Result};
use serde_json::{Map, Value, json};

/// How RoPE frequencies are stretched beyond the trained context.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// All positions are divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies are divided by `factor`, high ones kept, those between interpolated.
    /// Source: `_compute_llama3_parameters` of transformers.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are high frequencies.
        high_freq_factor: f64,
        /// The context length before stretching.
        original_max_position_embeddings: usize,
    },
}

/// Base and stretching, from either layout; two layouts that contradict each other are refused.
pub(super) fn rope(raw: &Map<String, Value>) -> Result<(f64, Option<RopeScaling>)> {
    let object = |key: &'static str| match raw.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(map)) => Ok(Some(map)),
        Some(_) => Err(Error::config(key, "is not an object")),
    };
    let parameters = object("rope_parameters")?;
    let scaling = object("rope_scaling")?.or(parameters);
    let theta_of = |map: &Map<String, Value>, key: &str| match map.get("rope_theta") {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_f64().map(Some).ok_or_else(|| Error::config(key, "rope_theta is not a number")),
    };
    let inner = parameters.map_or(Ok(None), |map| theta_of(map, "rope_parameters"))?;
    let outer = theta_of(raw, "rope_theta")?;
    if let (Some(a), Some(b)) = (inner, outer)
        && a != b
    {
        return Err(Error::config("rope_theta", format!("is {b}, but rope_parameters says {a}")));
    }
    let theta = inner.or(outer).unwrap_or(10_000.0);
    let Some(scaling) = scaling else { return Ok((theta, None)) };
    let keys = Keys(scaling);
    if scaling.get("partial_rotary_factor").and_then(Value::as_f64).is_some_and(|part| part != 1.0) {
        return Err(Error::config("rope_parameters", "partial_rotary_factor is not supported"));
    }
    let kind = scaling.get("rope_type").or_else(|| scaling.get("type")).and_then(Value::as_str).unwrap_or("default");
    let scaling = match kind {
        "default" => None,
        "linear" => Some(RopeScaling::Linear { factor: keys.positive("factor")? }),
        "llama3" => Some(RopeScaling::Llama3 {
            factor: keys.positive("factor")?,
            low_freq_factor: keys.positive("low_freq_factor")?,
            high_freq_factor: keys.positive("high_freq_factor")?,
            original_max_position_embeddings: keys.size("original_max_position_embeddings")?,
        }),
        other => {
            return Err(Error::config(
                "rope_type",
                format!("\"{other}\" is not supported; known are default, linear and llama3"),
            ));
        }
    };
    if let Some(RopeScaling::Llama3 { low_freq_factor, high_freq_factor, .. }) = &scaling
        && high_freq_factor <= low_freq_factor
    {
        return Err(Error::config("rope_scaling", "high_freq_factor must be above low_freq_factor"));
    }
    Ok((theta, scaling))
}

/// The stretching as transformers 4 and 5 write it.
pub(super) fn scaling_json(scaling: &RopeScaling) -> Value {
    match scaling {
        RopeScaling::Linear { factor } => json!({"rope_type": "linear", "type": "linear", "factor": factor}),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_position_embeddings,
        }),
    }
}
