//! BERT-type cross-encoders with one label: how well a text answers a query, both read together.
//!
//! The first token's row goes through the pooler (a linear layer and tanh) and the classifier, in f32. Refuses more than one
//! label. Must agree with `BertForSequenceClassification` of transformers; the logit is returned as it is, since what
//! sentence-transformers does after it (a sigmoid) changes no order.

use super::{BertEncoder, EncoderConfig, Pooling, Reader, read_object};
use crate::safetensors::SafeTensorsFile;
use crate::{Error, Result};
use aloe_tensor::{Device, Linear, Tensor, ops};
use serde_json::{Map, Value};
use std::path::Path;

/// The entry of `architectures` in `config.json`.
const CLASS: &str = "BertForSequenceClassification";

/// A cross-encoder ready to run.
pub struct BertReranker {
    encoder: BertEncoder,
    pooler: Linear,
    classifier: Linear,
}

impl BertReranker {
    /// Opens a folder with `config.json` and `model.safetensors` of a `BertForSequenceClassification` with one label.
    pub fn open(dir: &Path, device: &Device) -> Result<Self> {
        let path = dir.join("config.json");
        let map = read_object(&path)?;
        check_architecture(&path, &map)?;
        let of_labels = map.get("id2label").and_then(|labels| labels.as_object()).map(|labels| labels.len() as u64);
        let n_labels = of_labels.or_else(|| map.get("num_labels").and_then(Value::as_u64)).unwrap_or(2);
        if n_labels != 1 {
            return Err(Error::file(&path, format!("has {n_labels} labels; a cross-encoder for ranking has 1")));
        }
        let config = EncoderConfig::read(&path)?;
        let file = SafeTensorsFile::open(&dir.join("model.safetensors"))?;
        let reader = Reader { file: &file };
        let encoder = BertEncoder::read(dir, config, &reader, Pooling::Cls, device)?;
        let d = encoder.config.hidden_size;
        let pooler = reader.linear("pooler.dense", d, d)?;
        Ok(Self { encoder, pooler, classifier: reader.linear("classifier", 1, d)? })
    }

    /// Longest pair in tokens.
    pub fn max_len_tokens(&self) -> usize {
        self.encoder.max_len_tokens
    }

    /// One logit per pair. `ids` are `[CLS] query [SEP] text [SEP]`, `types` 0 up to the first `[SEP]` and 1 after it.
    pub fn score(&self, ids: &[&[u32]], types: &[&[u32]]) -> Result<Vec<f32>> {
        for (i, (ids, types)) in ids.iter().zip(types).enumerate() {
            if ids.len() != types.len() || types.iter().any(|kind| *kind > 1) {
                return Err(Error::Input(format!("pair {i}: {} ids, {} types of 0 and 1", ids.len(), types.len())));
            }
        }
        let (d, dev) = (self.encoder.config.hidden_size, &self.encoder.device);
        let rows = self.encoder.pooled(ids, Some(types), |_, rows| rows[..d].to_vec())?;
        let first = Tensor::from_f32(&[rows.len(), d], rows.concat());
        let mut pooled = ops::linear(dev, &first, &self.pooler);
        pooled.as_f32_mut().iter_mut().for_each(|v| *v = v.tanh());
        Ok(ops::linear(dev, &pooled, &self.classifier).as_f32().to_vec())
    }
}

/// Refuses another model than a BERT with a classifier, before any of its weights is looked for. A config without `architectures` is judged
/// by its tensors.
fn check_architecture(path: &Path, config: &Map<String, Value>) -> Result<()> {
    let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let class = config.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str).unwrap_or(CLASS);
    let (key, found) = match (model_type, class) {
        ("bert", CLASS) => return Ok(()),
        ("bert", class) => ("architectures", class),
        (other, _) => ("model_type", other),
    };
    let found = crate::error::shortened(found);
    let reason =
        format!("{key}: \"{found}\" is not supported; a reranker is a {CLASS} (model_type \"bert\") with one label");
    Err(Error::file(path, reason))
}
