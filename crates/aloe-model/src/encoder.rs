//! BERT-type sentence encoders, forward only: all-MiniLM-L6-v2 and its like, for nearest neighbours. `rerank` puts the head of a
//! cross-encoder on the same layers.
//!
//! Post-norm layers, learned positions, exact (erf) GELU, mean pooling over all tokens or the first token's row, as
//! `1_Pooling/config.json` says, then L2 normalisation, in f32. Refuses other poolings, activations and position types by name.
//! Sees ids, `[CLS]` and `[SEP]` included; never text.
//! Must agree with `BertModel` of transformers and the pooling of sentence-transformers.

mod pooling;
mod rerank;

pub use pooling::{Pooling, unit};
pub use rerank::BertReranker;

use crate::batch::{PackedBatch, check_ids};
use crate::safetensors::SafeTensorsFile;
use crate::{Error, Result};
use aloe_tensor::{AttentionPlan, Device, Dtype, Linear, Tensor, ops};
use serde_json::{Map, Value};
use std::path::Path;

/// Rows of one packed forward pass: bounds memory, changes no number.
const ROWS_PER_PASS: usize = 2048;

/// The sizes of an encoder, under the names of its `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderConfig {
    /// V.
    pub vocab_size: usize,
    /// D, the length of an embedding.
    pub hidden_size: usize,
    /// F.
    pub intermediate_size: usize,
    /// L.
    pub num_hidden_layers: usize,
    /// H.
    pub num_attention_heads: usize,
    /// Longest input in tokens.
    pub max_position_embeddings: usize,
    /// Added to the variance inside LayerNorm.
    pub layer_norm_eps: f32,
}

struct Norm {
    weight: Tensor,
    bias: Tensor,
}

struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    output_norm: Norm,
    up: Linear,
    down: Linear,
    final_norm: Norm,
}

/// An encoder ready to run.
pub struct BertEncoder {
    /// Its sizes.
    pub config: EncoderConfig,
    /// Longest input that `embed` takes: the least of the position table and `max_seq_length` of sentence_bert_config.json.
    pub max_len_tokens: usize,
    /// How rows become one embedding.
    pub pooling: Pooling,
    device: Device,
    words: Tensor,
    /// Position row plus the row of a token type, `[types * positions, D]`: those of type 0 first.
    positions: Tensor,
    norm: Norm,
    layers: Vec<Layer>,
}

impl BertEncoder {
    /// Opens a sentence-transformers folder: `config.json`, `model.safetensors`, and where present `1_Pooling/config.json` and
    /// `sentence_bert_config.json`.
    pub fn open(dir: &Path, device: &Device) -> Result<Self> {
        let config = EncoderConfig::read(&dir.join("config.json"))?;
        let file = SafeTensorsFile::open(&dir.join("model.safetensors"))?;
        let pooling = Pooling::read(&dir.join("1_Pooling/config.json"))?.unwrap_or(Pooling::Mean);
        if pooling == Pooling::LastToken {
            let reason =
                "pools the last token, which only a causal model's row can stand for; mean and CLS are implemented";
            return Err(Error::file(&dir.join("1_Pooling/config.json"), reason));
        }
        Self::read(dir, config, &Reader { file: &file }, pooling, device)
    }

    fn read(dir: &Path, config: EncoderConfig, reader: &Reader, pooling: Pooling, device: &Device) -> Result<Self> {
        let max_len_tokens = max_seq_length(&dir.join("sentence_bert_config.json"))?
            .map_or(config.max_position_embeddings, |n| n.min(config.max_position_embeddings));
        let (d, n_positions) = (config.hidden_size, config.max_position_embeddings);
        let words = reader.tensor("embeddings.word_embeddings.weight", &[config.vocab_size, d])?;
        let positions = reader.tensor("embeddings.position_embeddings.weight", &[n_positions, d])?;
        let n_types = reader.rows("embeddings.token_type_embeddings.weight")?;
        let types = reader.tensor("embeddings.token_type_embeddings.weight", &[n_types, d])?;
        let of_type =
            |kind| positions.as_f32().chunks_exact(d).flat_map(move |row| row.iter().zip(kind).map(|(p, t)| p + t));
        let positions = types.as_f32().chunks_exact(d).flat_map(of_type).collect();
        let positions = Tensor::from_f32(&[n_types * n_positions, d], positions);
        let norm = reader.norm("embeddings.LayerNorm", d)?;
        let layers = (0..config.num_hidden_layers).map(|i| reader.layer(i, &config)).collect::<Result<_>>()?;
        Ok(Self { config, max_len_tokens, pooling, device: device.clone(), words, positions, norm, layers })
    }

    /// One embedding `[D]` of length 1 per input. An input longer than `max_len_tokens`, or empty, is refused: cutting is the
    /// caller's decision.
    pub fn embed(&self, inputs: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        let d = self.config.hidden_size;
        let pool = |_: usize, rows: &[f32]| match self.pooling {
            Pooling::Mean => unit(&mean(rows, d)),
            Pooling::Cls | Pooling::LastToken => unit(&rows[..d].iter().map(|v| f64::from(*v)).collect::<Vec<_>>()),
        };
        self.pooled(inputs, None, pool)
    }

    /// `pool` of each input's place and rows `[n, D]`. `types` are token types, all 0 where absent.
    fn pooled<T>(
        &self,
        inputs: &[&[u32]],
        types: Option<&[&[u32]]>,
        pool: impl Fn(usize, &[f32]) -> T,
    ) -> Result<Vec<T>> {
        for (i, ids) in inputs.iter().enumerate() {
            if ids.is_empty() || ids.len() > self.max_len_tokens {
                let reason = format!("input {i} has {} tokens, expected 1 to {}", ids.len(), self.max_len_tokens);
                return Err(Error::Input(reason));
            }
            check_ids(ids, self.config.vocab_size)?;
        }
        let d = self.config.hidden_size;
        let mut out = Vec::with_capacity(inputs.len());
        let mut start = 0;
        while start < inputs.len() {
            let mut end = start;
            let mut rows = 0;
            while end < inputs.len() && (end == start || rows + inputs[end].len() <= ROWS_PER_PASS) {
                rows += inputs[end].len();
                end += 1;
            }
            let batch = PackedBatch::from_documents(&inputs[start..end]);
            let mut positions = batch.positions.clone();
            for (position, kind) in positions.iter_mut().zip(types.iter().flat_map(|t| t[start..end].concat())) {
                *position += kind * self.config.max_position_embeddings as u32;
            }
            let x = self.hidden(&batch, &positions);
            let pieces = batch.pieces.iter().enumerate();
            out.extend(pieces.map(|(i, rows)| pool(start + i, &x.as_f32()[rows.start * d..rows.end * d])));
            start = end;
        }
        Ok(out)
    }

    /// Rows of the last layer, `[N, D]`.
    fn hidden(&self, batch: &PackedBatch, positions: &[u32]) -> Tensor {
        let dev = &self.device;
        let mut x = ops::embedding(dev, &self.words, &batch.ids);
        ops::add_in_place(dev, &mut x, &ops::embedding(dev, &self.positions, positions));
        let mut x = self.layer_norm(&x, &self.norm);
        let plan = AttentionPlan { blocks: batch.plan.blocks.clone(), causal: false };
        for layer in &self.layers {
            x = self.layer(layer, x, &plan);
        }
        x
    }

    fn layer(&self, layer: &Layer, x: Tensor, plan: &AttentionPlan) -> Tensor {
        let dev = &self.device;
        let (n, d, h) = (x.shape()[0], self.config.hidden_size, self.config.num_attention_heads);
        let heads = |t: Tensor| t.reshape(&[n, h, d / h]);
        let (q, k) = (heads(ops::linear(dev, &x, &layer.query)), heads(ops::linear(dev, &x, &layer.key)));
        let v = heads(ops::linear(dev, &x, &layer.value));
        let scale = 1.0 / ((d / h) as f32).sqrt();
        let (o, _) = ops::attention(dev, &q, &k, &v, plan, scale);
        let mut y = ops::linear(dev, &o.reshape(&[n, d]), &layer.output);
        ops::add_in_place(dev, &mut y, &x);
        let y = self.layer_norm(&y, &layer.output_norm);
        let mut z = ops::linear(dev, &ops::gelu(dev, &ops::linear(dev, &y, &layer.up)), &layer.down);
        ops::add_in_place(dev, &mut z, &y);
        self.layer_norm(&z, &layer.final_norm)
    }

    fn layer_norm(&self, x: &Tensor, norm: &Norm) -> Tensor {
        ops::layer_norm(&self.device, x, &norm.weight, &norm.bias, self.config.layer_norm_eps)
    }
}

/// Mean over the rows of `[n, d]`, in f64.
fn mean(rows: &[f32], d: usize) -> Vec<f64> {
    let mut mean = vec![0.0_f64; d];
    for row in rows.chunks_exact(d) {
        mean.iter_mut().zip(row).for_each(|(m, v)| *m += f64::from(*v));
    }
    let n = (rows.len() / d) as f64;
    mean.iter_mut().for_each(|m| *m /= n);
    mean
}

impl EncoderConfig {
    fn read(path: &Path) -> Result<Self> {
        let map = read_object(path)?;
        let text = |key: &str, default: &str| map.get(key).and_then(Value::as_str).unwrap_or(default).to_string();
        for (key, expected) in [("model_type", "bert"), ("hidden_act", "gelu"), ("position_embedding_type", "absolute")]
        {
            let found = text(key, if key == "model_type" { "" } else { expected });
            if found != expected {
                return Err(Error::file(path, format!("{key} is \"{found}\"; only \"{expected}\" is implemented")));
            }
        }
        let size = |key: &str| match map.get(key).and_then(Value::as_u64) {
            Some(n) if (1..=1 << 26).contains(&n) => Ok(n as usize),
            _ => Err(Error::file(path, format!("{key} is missing or not a positive whole number"))),
        };
        let config = Self {
            vocab_size: size("vocab_size")?,
            hidden_size: size("hidden_size")?,
            intermediate_size: size("intermediate_size")?,
            num_hidden_layers: size("num_hidden_layers")?,
            num_attention_heads: size("num_attention_heads")?,
            max_position_embeddings: size("max_position_embeddings")?,
            layer_norm_eps: map.get("layer_norm_eps").and_then(Value::as_f64).unwrap_or(1e-12) as f32,
        };
        if !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            return Err(Error::file(path, "num_attention_heads does not divide hidden_size"));
        }
        Ok(config)
    }
}

fn read_object(path: &Path) -> Result<Map<String, Value>> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    serde_json::from_slice(&bytes).map_err(|error| Error::file(path, format!("is not a JSON object: {error}")))
}

fn max_seq_length(path: &Path) -> Result<Option<usize>> {
    if !path.exists() {
        return Ok(None);
    }
    Ok(read_object(path)?.get("max_seq_length").and_then(Value::as_u64).map(|n| n as usize))
}

struct Reader<'a> {
    file: &'a SafeTensorsFile,
}

impl Reader<'_> {
    /// The name as stored: checkpoints saved from a task model carry the prefix `bert.`.
    fn stored(&self, name: &str) -> Result<String> {
        let prefixed = format!("bert.{name}");
        [name, prefixed.as_str()]
            .into_iter()
            .find(|name| self.file.info(name).is_some())
            .map(str::to_string)
            .ok_or_else(|| Error::tensor(self.file.path(), name, "is missing"))
    }

    fn rows(&self, name: &str) -> Result<usize> {
        let stored = self.stored(name)?;
        Ok(self.file.info(&stored).and_then(|info| info.shape.first().copied()).unwrap_or(0))
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let stored = self.stored(name)?;
        let found = self.file.info(&stored).map(|info| info.shape.clone()).unwrap_or_default();
        if found != shape {
            return Err(Error::tensor(self.file.path(), name, format!("has shape {found:?}, expected {shape:?}")));
        }
        Ok(Tensor::from_f32(shape, self.file.load_f32(&stored)?))
    }

    fn linear(&self, name: &str, rows: usize, columns: usize) -> Result<Linear> {
        let weight = self.tensor(&format!("{name}.weight"), &[rows, columns])?;
        debug_assert_eq!(weight.dtype(), Dtype::F32);
        Ok(Linear::new(weight, Some(self.tensor(&format!("{name}.bias"), &[rows])?)))
    }

    fn norm(&self, name: &str, d: usize) -> Result<Norm> {
        Ok(Norm {
            weight: self.tensor(&format!("{name}.weight"), &[d])?,
            bias: self.tensor(&format!("{name}.bias"), &[d])?,
        })
    }

    fn layer(&self, i: usize, config: &EncoderConfig) -> Result<Layer> {
        let (d, f) = (config.hidden_size, config.intermediate_size);
        let name = |part: &str| format!("encoder.layer.{i}.{part}");
        Ok(Layer {
            query: self.linear(&name("attention.self.query"), d, d)?,
            key: self.linear(&name("attention.self.key"), d, d)?,
            value: self.linear(&name("attention.self.value"), d, d)?,
            output: self.linear(&name("attention.output.dense"), d, d)?,
            output_norm: self.norm(&name("attention.output.LayerNorm"), d)?,
            up: self.linear(&name("intermediate.dense"), f, d)?,
            down: self.linear(&name("output.dense"), d, f)?,
            final_norm: self.norm(&name("output.LayerNorm"), d)?,
        })
    }
}
