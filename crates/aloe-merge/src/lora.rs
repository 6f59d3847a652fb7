//! LoRA adapters as inputs (`model+adapter`): PEFT folders of `adapter_config.json` and `adapter_model.safetensors`.
//!
//! The tensor a method sees is `W + scale * B A`, computed in f32 and rounded to the type of `W`, as PEFT's `merge_and_unload` leaves it
//! (LoRA: arXiv 2106.09685; `scale` is `alpha / r`, or `alpha / sqrt(r)` with `use_rslora`). Refuses pickles, other kinds of adapters, DoRA,
//! biases, and tensors that no weight of the model takes.

use crate::{Error, Result};
use aloe_model::{SafeTensorsFile, TensorSpec};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const PREFIX: &str = "base_model.model.";

/// An opened adapter.
pub(crate) struct Adapter {
    name: String,
    /// Its folder.
    pub(crate) dir: PathBuf,
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
    /// Adds the update to the elements from `start` on.
    pub(crate) fn add(&self, start: usize, out: &mut [f32]) -> Result<()> {
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
        Ok(())
    }
}

impl Adapter {
    /// Opens a folder and refuses what would be merged wrongly.
    pub(crate) fn open(name: &str, dir: &Path) -> Result<Self> {
        let weights = dir.join("adapter_model.safetensors");
        if !weights.is_file() {
            let reason = match dir.join("adapter_model.bin").is_file() {
                true => {
                    "adapter_model.bin is a pickle, which can run code when it is read: save the adapter as safetensors"
                }
                false => "holds no adapter_model.safetensors",
            };
            return Err(Error::model(name, reason));
        }
        let config: Value = aloe_record::atomic::read_json(&dir.join("adapter_config.json"))?;
        let adapter =
            Self { name: name.to_owned(), dir: dir.to_path_buf(), config, file: SafeTensorsFile::open(&weights)? };
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
        Error::model(&self.name, reason)
    }

    /// Checks that the model takes every tensor of the adapter, in its shape.
    pub(crate) fn check(&self, specs: &[TensorSpec]) -> Result<()> {
        let names = |spec: &TensorSpec| {
            let module = spec.hf_name.strip_suffix(".weight").unwrap_or(&spec.hf_name);
            let part = |end: &str| format!("{PREFIX}{module}.{end}.weight");
            (part("lora_A"), part("lora_B"), format!("{PREFIX}{}", spec.hf_name))
        };
        let mut known = std::collections::BTreeSet::new();
        for spec in specs {
            let (a, b, whole) = names(spec);
            if self.file.info(&a).is_some() || self.file.info(&b).is_some() {
                self.shapes(spec, &a, &b)?;
            }
            known.extend([a, b, whole]);
        }
        match self.file.names().iter().find(|name| !known.contains(*name)) {
            None => Ok(()),
            Some(name) => {
                Err(Error::tensor(name, &self.name, "belongs to no weight of the model that LoRA can change"))
            }
        }
    }

    fn shapes(&self, spec: &TensorSpec, a: &str, b: &str) -> Result<usize> {
        let shape = |name: &str| self.file.info(name).map(|info| info.shape.clone()).unwrap_or_default();
        let (of_a, of_b) = (shape(a), shape(b));
        let fits = of_a.len() == 2 && of_b.len() == 2 && spec.shape == [of_b[0], of_a[1]] && of_a[0] == of_b[1];
        match fits && of_a[0] > 0 {
            true => Ok(of_a[0]),
            false => {
                let reason = format!("lora_A {of_a:?} and lora_B {of_b:?} do not make an update of {:?}", spec.shape);
                Err(Error::tensor(&spec.hf_name, &self.name, reason))
            }
        }
    }

    /// The update of one weight, if the adapter has one.
    pub(crate) fn delta(&self, spec: &TensorSpec) -> Result<Option<Arc<LoraDelta>>> {
        let Some(module) = spec.hf_name.strip_suffix(".weight") else { return Ok(None) };
        let (a, b) = (format!("{PREFIX}{module}.lora_A.weight"), format!("{PREFIX}{module}.lora_B.weight"));
        if self.file.info(&a).is_none() {
            return Ok(None);
        }
        let rank = self.shapes(spec, &a, &b)?;
        let (a, b) = (self.file.load_f32(&a)?, self.file.load_f32(&b)?);
        let scale = self.scale(module, rank)?;
        Ok(Some(Arc::new(LoraDelta { a, b, rank, n_cols: spec.shape[1], scale })))
    }

    /// A weight that was trained whole (`modules_to_save`), as its file and name.
    pub(crate) fn replacement(&self, spec: &TensorSpec) -> Option<(&Path, String, aloe_model::FileDtype)> {
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
        let alpha = alpha.ok_or_else(|| self.refused("adapter_config.json has no lora_alpha"))?;
        let divisor = match self.config["use_rslora"].as_bool() {
            Some(true) => (rank as f64).sqrt(),
            _ => rank as f64,
        };
        Ok((alpha / divisor) as f32)
    }
}
