//! How the rows of a text become one embedding: what sentence-transformers writes into `1_Pooling/config.json`.

use super::read_object;
use crate::{Error, Result};
use serde_json::Value;
use std::path::Path;

/// Which rows stand for a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The mean of all rows.
    Mean,
    /// The first token's row (`[CLS]`).
    Cls,
    /// The last token's row, for causal models.
    LastToken,
}

impl Pooling {
    const ALL: [(&'static str, &'static str, Self); 3] = [
        ("pooling_mode_mean_tokens", "mean", Self::Mean),
        ("pooling_mode_cls_token", "cls", Self::Cls),
        ("pooling_mode_lasttoken", "lasttoken", Self::LastToken),
    ];

    /// Reads the file; `None` where there is none. Modes that are not implemented, and several at once, change the embedding
    /// and are refused.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        if !path.exists() {
            return Ok(None);
        }
        let map = read_object(path)?;
        let mut found = Vec::new();
        if let Some(mode) = map.get("pooling_mode") {
            found.push(mode.as_str().unwrap_or_default().to_owned());
        }
        let is_set =
            |(key, value): &(&String, &Value)| key.starts_with("pooling_mode_") && value.as_bool() != Some(false);
        found.extend(map.iter().filter(is_set).map(|(key, _)| key.clone()));
        let known = |name: &str| Self::ALL.iter().find(|(key, short, _)| *key == name || *short == name);
        match found.as_slice() {
            [one] if let Some((_, _, pooling)) = known(one) => Ok(Some(*pooling)),
            _ => {
                let reason =
                    format!("pools by {:?}; one of mean, cls and lasttoken alone is implemented", found.join(" + "));
                Err(Error::file(path, reason))
            }
        }
    }
}

/// The vector divided by its norm (sentence-transformers' Normalize: at least 1e-12).
pub fn unit(vector: &[f64]) -> Vec<f32> {
    let norm = vector.iter().map(|v| v * v).sum::<f64>().sqrt().max(1e-12);
    vector.iter().map(|v| (v / norm) as f32).collect()
}
