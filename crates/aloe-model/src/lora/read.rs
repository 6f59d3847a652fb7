//! Adapter folders of PEFT, read: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! The weight that an adapter makes is `W + scale * B A`, where `scale` is `alpha / r`, or `alpha / sqrt(r)` with `use_rslora`. Refuses
//! pickles, other kinds of adapters, DoRA, biases, and tensors that no weight of the model takes.

use super::module;
use crate::arch::{EMBED, HEAD};
use crate::{Error, FileDtype, Result, SafeTensorsFile, TensorSpec};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// What PEFT puts before the names of a model's tensors.
pub(super) const PREFIX: &str = "base_model.model.";
/// The file of an adapter's settings.
pub const CONFIG: &str = "adapter_config.json";
/// The file of an adapter's tensors.
pub const WEIGHTS: &str = "adapter_model.safetensors";
/// Key of the tensor file's metadata for the digest of the base's weights.
pub(super) const BASE_DIGEST: &str = "base_sha256";

/// What an adapter's file calls a tensor: of a model, or of [`super::LoraShape::tensors`].
pub fn name_in_adapter(hf_name: &str) -> String {
    format!("{PREFIX}{hf_name}")
}

/// An opened adapter.
pub struct LoraAdapter {
    /// Its folder.
    pub dir: PathBuf,
    config: Value,
    file: SafeTensorsFile,
}

/// One weight's update: `scale * B A`.
pub struct LoraDelta {
    /// `[rank, n_cols]`, row-major.
    a: Vec<f32>,
    /// `[n_rows, rank]`, row-major.
    b: Vec<f32>,
    rank: usize,
    n_cols: usize,
    scale: f32,
}

impl LoraDelta {
    /// From A `[rank, n_cols]` and B `[n_rows, rank]`, row-major.
    pub fn new(a: Vec<f32>, b: Vec<f32>, rank: usize, scale: f32) -> Self {
        assert!(rank > 0 && a.len().is_multiple_of(rank) && b.len().is_multiple_of(rank), "factors of rank {rank}");
        Self { n_cols: a.len() / rank, a, b, rank, scale }
    }

    /// Adds the update to the elements from `start` on, in f32.
    pub fn add(&self, start: usize, out: &mut [f32]) {
        let n = self.n_cols;
        let mut line = vec![0.0f32; n];
        for row in start / n..(start + out.len()).div_ceil(n) {
            line.fill(0.0);
            for (factor, a) in self.b[row * self.rank..(row + 1) * self.rank].iter().zip(self.a.chunks_exact(n)) {
                line.iter_mut().zip(a).for_each(|(sum, a)| *sum += factor * a);
            }
            let (from, to) = ((row * n).max(start), ((row + 1) * n).min(start + out.len()));
            let part = &line[from - row * n..to - row * n];
            out[from - start..to - start].iter_mut().zip(part).for_each(|(value, sum)| *value += self.scale * sum);
        }
    }
}

impl LoraAdapter {
    /// Opens a folder and refuses what would be merged wrongly.
    pub fn open(dir: &Path) -> Result<Self> {
        let weights = dir.join(WEIGHTS);
        if !weights.is_file() {
            let pickle = dir.join("adapter_model.bin");
            if pickle.is_file() {
                let reason = "is a pickle, which can run code when it is read: save the adapter as safetensors";
                return Err(Error::file(&pickle, reason));
            }
            return Err(Error::file(dir, format!("holds no {WEIGHTS}")));
        }
        let config: Value = aloe_record::atomic::read_json(&dir.join(CONFIG))?;
        let adapter = Self { dir: dir.to_path_buf(), config, file: SafeTensorsFile::open(&weights)? };
        adapter.check_config()?;
        Ok(adapter)
    }

    fn check_config(&self) -> Result<()> {
        let is_set = |key: &str| match &self.config[key] {
            Value::Null | Value::Bool(false) => false,
            Value::Object(map) => !map.is_empty(),
            Value::Array(list) => !list.is_empty(),
            _ => true,
        };
        let kind = self.config["peft_type"].as_str().unwrap_or("LORA");
        if kind != "LORA" {
            return Err(self.refused(format!("is a {kind} adapter; LORA alone can be merged")));
        }
        for key in ["use_dora", "fan_in_fan_out", "layer_replication", "megatron_config", "lora_bias"] {
            if is_set(key) {
                return Err(self.refused(format!("{key} is set, which cannot be merged")));
            }
        }
        match self.config["bias"].as_str().unwrap_or("none") {
            "none" => Ok(()),
            bias => Err(self.refused(format!("bias is {bias}; none alone can be merged"))),
        }
    }

    fn refused(&self, reason: impl Into<String>) -> Error {
        Error::file(&self.dir.join(CONFIG), reason)
    }

    fn bad(&self, name: &str, reason: impl Into<String>) -> Error {
        Error::tensor(&self.dir.join(WEIGHTS), name, reason)
    }

    /// The digest of the weights it was trained on (see [`crate::ModelSource::digest`]), where the file says so.
    pub fn base_digest(&self) -> Option<&str> {
        self.file.metadata().get(BASE_DIGEST).map(String::as_str)
    }

    /// Checks that the model takes every tensor of the adapter, in its shape.
    pub fn check(&self, specs: &[TensorSpec]) -> Result<()> {
        let names = |spec: &TensorSpec| {
            let part = |end: &str| format!("{PREFIX}{}.{end}.weight", module(&spec.hf_name));
            (part("lora_A"), part("lora_B"), format!("{PREFIX}{}", spec.hf_name))
        };
        let mut known = std::collections::BTreeSet::new();
        for spec in specs {
            let (a, b, whole) = names(spec);
            if self.file.info(&a).is_some() || self.file.info(&b).is_some() {
                self.rank_of(spec, &a, &b)?;
            }
            if let Some(info) = self.file.info(&whole).filter(|info| info.shape != spec.shape) {
                return Err(self.bad(&whole, format!("has shape {:?}, the model's is {:?}", info.shape, spec.shape)));
            }
            known.extend([a, b, whole]);
        }
        let unknown = self.file.names().iter().find(|name| !known.contains(*name) && !self.is_tied_head(name));
        match unknown {
            None => Ok(()),
            Some(name) => {
                let is_of = |part: &str| name.split('.').any(|known| known == part);
                let text = match is_of("embed_tokens") || is_of("lm_head") {
                    true => {
                        "this part of LoRA on the embedding or the head is not supported; merge the adapter into its model with PEFT \
                         (merge_and_unload, then save_pretrained) and name that folder instead"
                    }
                    false => "belongs to no weight of the model that LoRA can change",
                };
                Err(self.bad(name, text))
            }
        }
    }

    /// The head of a model without one: PEFT stores both uses of a tied matrix.
    fn is_tied_head(&self, name: &str) -> bool {
        let bytes = |name: &str| self.file.bytes(name).ok();
        name.strip_prefix(PREFIX) == Some(HEAD) && bytes(name) == bytes(&format!("{PREFIX}{EMBED}"))
    }

    fn rank_of(&self, spec: &TensorSpec, a: &str, b: &str) -> Result<usize> {
        let shape = |name: &str| self.file.info(name).map(|info| info.shape.clone()).unwrap_or_default();
        let (of_a, of_b) = (shape(a), shape(b));
        let fits = of_a.len() == 2 && of_b.len() == 2 && spec.shape == [of_b[0], of_a[1]] && of_a[0] == of_b[1];
        match fits && of_a[0] > 0 {
            true => Ok(of_a[0]),
            false => {
                let reason = format!("lora_A {of_a:?} and lora_B {of_b:?} do not make an update of {:?}", spec.shape);
                Err(self.bad(&spec.hf_name, reason))
            }
        }
    }

    /// The update of one weight, if the adapter has one.
    pub fn delta(&self, spec: &TensorSpec) -> Result<Option<LoraDelta>> {
        let Some(module) = spec.hf_name.strip_suffix(".weight") else { return Ok(None) };
        let (a, b) = (format!("{PREFIX}{module}.lora_A.weight"), format!("{PREFIX}{module}.lora_B.weight"));
        if self.file.info(&a).is_none() {
            return Ok(None);
        }
        let rank = self.rank_of(spec, &a, &b)?;
        Ok(Some(LoraDelta::new(self.file.load_f32(&a)?, self.file.load_f32(&b)?, rank, self.scale(module, rank)?)))
    }

    /// A weight that was trained whole (`modules_to_save`), as its file and name.
    pub fn replacement(&self, spec: &TensorSpec) -> Option<(&Path, String, FileDtype)> {
        let name = format!("{PREFIX}{}", spec.hf_name);
        let info = self.file.info(&name).filter(|info| info.shape == spec.shape)?;
        Some((self.file.path(), name, info.dtype))
    }

    fn scale(&self, module: &str, rank: usize) -> Result<f32> {
        let patterns = self.config["alpha_pattern"].as_object();
        let matching = patterns
            .into_iter()
            .flatten()
            .find(|(key, _)| module == key.as_str() || module.ends_with(&format!(".{key}")));
        let alpha = matching.map_or(&self.config["lora_alpha"], |(_, alpha)| alpha).as_f64();
        let alpha = alpha.ok_or_else(|| self.refused("has no lora_alpha"))?;
        let divisor = match self.config["use_rslora"].as_bool() {
            Some(true) => (rank as f64).sqrt(),
            _ => rank as f64,
        };
        Ok((alpha / divisor) as f32)
    }
}
