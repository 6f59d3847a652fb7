//! Writes a checkpoint folder that transformers, vLLM and mergekit load: safetensors (in shards above 5 GB), `config.json`,
//! `generation_config.json`, and the files the caller brings along (tokenizer, template, licence).
//!
//! Tensors come one at a time, in any order. [`CheckpointWriter::create`] makes a folder that appears whole or not at all;
//! [`CheckpointWriter::create_in`] fills a folder inside a stage's own partial folder, which the stage commits.

use crate::config::ids_json;
use crate::safetensors::FileDtype;
use crate::safetensors_writer::{SafeTensorsWriter, stored};
use crate::{Config, Error, Result, TensorSpec, arch};
use aloe_record::atomic::{OutputDir, write, write_json};
use aloe_tensor::Dtype;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

pub use crate::safetensors_writer::TensorSlot;

/// transformers' default shard size.
pub const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// Where a tensor stands in the folder that is written.
#[derive(Clone, Debug)]
pub struct TensorPlace {
    /// Its name.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
    /// Its bytes in the file.
    pub bytes: Range<u64>,
}

/// A checkpoint folder being written.
pub struct CheckpointWriter {
    config: Config,
    dtype: FileDtype,
    folder: PathBuf,
    output: Option<OutputDir>,
    shards: Vec<SafeTensorsWriter>,
    /// Tensor name to the position in `shards`.
    place: HashMap<String, usize>,
    /// Tensor names in table order, and the bytes of all.
    names: Vec<String>,
    total_bytes: u64,
}

impl CheckpointWriter {
    /// Starts the folder `target`; nothing is visible there before [`Self::finish`], and an older one stays until then.
    pub fn create(target: &Path, config: &Config, dtype: Dtype) -> Result<Self> {
        let output = OutputDir::fresh(target)?;
        let folder = output.path().to_path_buf();
        Self::start(folder, Some(output), config, stored(dtype), MAX_SHARD_BYTES)
    }

    /// Starts to write straight into `folder`, made if need be; the caller makes it appear as a whole.
    pub fn create_in(folder: &Path, config: &Config, dtype: Dtype) -> Result<Self> {
        Self::create_stored(folder, config, stored(dtype))
    }

    /// [`Self::create_in`] for any type of weights, F16 too, which is written through [`Self::slot`] alone.
    pub fn create_stored(folder: &Path, config: &Config, dtype: FileDtype) -> Result<Self> {
        Self::create_sharded(folder, config, dtype, MAX_SHARD_BYTES)
    }

    /// [`Self::create_stored`] in files of at most so many bytes, or of one tensor where that is larger.
    pub fn create_sharded(folder: &Path, config: &Config, dtype: FileDtype, max_shard_bytes: u64) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        Self::start(folder.to_path_buf(), None, config, dtype, max_shard_bytes)
    }

    fn start(
        folder: PathBuf,
        output: Option<OutputDir>,
        config: &Config,
        dtype: FileDtype,
        max_shard: u64,
    ) -> Result<Self> {
        let table = arch::tensors(config);
        let groups = shard(&table, dtype, max_shard);
        let mut shards = Vec::new();
        let mut place = HashMap::new();
        for (i, group) in groups.iter().enumerate() {
            let tensors: Vec<_> = group.iter().map(|spec| (spec.hf_name.clone(), spec.shape.clone())).collect();
            shards.push(SafeTensorsWriter::create_stored(&folder.join(shard_name(i, groups.len())), &tensors, dtype)?);
            place.extend(group.iter().map(|spec| (spec.hf_name.clone(), i)));
        }
        let total_bytes = table.iter().map(|spec| size_bytes(spec, dtype)).sum();
        let names = table.into_iter().map(|spec| spec.hf_name).collect();
        Ok(Self { config: config.clone(), dtype, folder, output, shards, place, names, total_bytes })
    }

    /// The names still to be written are those of the table, in this order.
    pub fn tensor_names(&self) -> &[String] {
        &self.names
    }

    /// Writes one tensor, row-major in Hugging Face row order, rounding to the folder's type (to nearest even).
    /// NaN, infinity and what overflows the type are refused: non-finite weights are never saved.
    pub fn add(&mut self, name: &str, values: &[f32]) -> Result<()> {
        self.shard_of(name)?.add(name, values)
    }

    /// The place of a tensor that is written in pieces, from any thread; see [`TensorSlot::write_at`].
    pub fn slot(&mut self, name: &str) -> Result<TensorSlot> {
        self.shard_of(name)?.slot(name)
    }

    /// Where the tensors stand, in table order.
    pub fn places(&self) -> Vec<TensorPlace> {
        let place = |name: &String| {
            let shard = &self.shards[self.place[name]];
            let bytes = shard.bytes_of(name)?;
            Some(TensorPlace { name: name.clone(), path: shard.path().to_path_buf(), bytes })
        };
        self.names.iter().filter_map(place).collect()
    }

    /// Writes one tensor given as bfloat16 bits.
    pub fn add_bf16(&mut self, name: &str, bits: &[u16]) -> Result<()> {
        self.shard_of(name)?.add_bf16(name, bits)
    }

    /// Writes index, configs and `extra` files (name, content), and lets the folder appear. `extra` may replace
    /// `generation_config.json`, not the other files written here.
    pub fn finish(self, extra: &[(String, Vec<u8>)]) -> Result<()> {
        let n_shards = self.shards.len();
        for shard in self.shards {
            shard.finish()?;
        }
        if n_shards > 1 {
            let weight_map: Map<String, Value> =
                self.names.iter().map(|name| (name.clone(), json!(shard_name(self.place[name], n_shards)))).collect();
            let index = json!({"metadata": {"total_size": self.total_bytes}, "weight_map": weight_map});
            write_json(&self.folder.join("model.safetensors.index.json"), &index)?;
        }
        write_json(&self.folder.join("config.json"), &config_json(&self.config, self.dtype))?;
        write_json(&self.folder.join("generation_config.json"), &generation_json(&self.config))?;
        for (name, content) in extra {
            write_extra(&self.folder, name, content)?;
        }
        match self.output {
            Some(output) => Ok(output.commit()?),
            None => Ok(()),
        }
    }

    fn shard_of(&mut self, name: &str) -> Result<&mut SafeTensorsWriter> {
        match self.place.get(name) {
            Some(shard) => Ok(&mut self.shards[*shard]),
            None => Err(Error::tensor(&self.folder, name, "is not a tensor of this config")),
        }
    }
}

fn size_bytes(spec: &TensorSpec, dtype: FileDtype) -> u64 {
    (spec.n_elements() * dtype.size_bytes()) as u64
}

/// Consecutive groups of the table, each below `max_bytes` unless a single tensor is larger.
fn shard(table: &[TensorSpec], dtype: FileDtype, max_bytes: u64) -> Vec<Vec<&TensorSpec>> {
    let mut groups: Vec<Vec<&TensorSpec>> = vec![Vec::new()];
    let mut filled = 0u64;
    for spec in table {
        let size = size_bytes(spec, dtype);
        if filled > 0 && filled + size > max_bytes {
            groups.push(Vec::new());
            filled = 0;
        }
        filled += size;
        if let Some(group) = groups.last_mut() {
            group.push(spec);
        }
    }
    groups
}

fn shard_name(i: usize, n_shards: usize) -> String {
    match n_shards {
        1 => "model.safetensors".into(),
        n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
    }
}

/// The config with the written type under the key of transformers 4, and of 5 where the source used it.
fn config_json(config: &Config, dtype: FileDtype) -> Value {
    let name = match dtype {
        FileDtype::F16 => "float16",
        FileDtype::BF16 => "bfloat16",
        _ => "float32",
    };
    let mut out = config.to_json();
    out["torch_dtype"] = json!(name);
    if config.raw.contains_key("dtype") {
        out["dtype"] = json!(name);
    }
    out
}

fn generation_json(config: &Config) -> Value {
    let mut out = json!({
        "_from_model_config": true,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": ids_json(&config.eos_token_ids),
    });
    if let Some(pad) = config.raw.get("pad_token_id").filter(|pad| !pad.is_null()) {
        out["pad_token_id"] = pad.clone();
    }
    out
}

fn write_extra(folder: &Path, name: &str, content: &[u8]) -> Result<()> {
    let plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_))) && !name.is_empty();
    let ours = name == "config.json" || name.starts_with("model.safetensors") || name.ends_with(".safetensors");
    if !plain || ours {
        return Err(Error::file(&folder.join("?"), format!("\"{name}\" cannot be written as an extra file")));
    }
    Ok(write(&folder.join(name), content)?)
}

#[cfg(test)]
pub(crate) mod tests;
