//! A Hugging Face checkpoint folder, opened for reading: `config.json` and one or many safetensors files, each tensor checked
//! against the table of [`crate::arch`] before anything is loaded.
//!
//! Refuses missing, unexpected and wrongly shaped tensors by name, shards that are absent or lie outside the folder, and folders
//! that hold only pickles.

use crate::arch::{self, EMBED, HEAD, TensorSpec};
use crate::safetensors::{FileDtype, SafeTensorsFile};
use crate::{Config, Error, Result, pickle};
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};
use std::path::{Component, Path, PathBuf};

/// The weight files of a folder, whatever model they hold: tensor names to shards.
pub struct TensorFiles {
    dir: PathBuf,
    files: Vec<SafeTensorsFile>,
    /// Tensor name to the position in `files`.
    place: HashMap<String, usize>,
}

impl TensorFiles {
    /// Opens `model.safetensors`, or the shards of `model.safetensors.index.json`, of a folder.
    pub fn open(dir: &Path) -> Result<Self> {
        let single = dir.join("model.safetensors");
        let index = dir.join("model.safetensors.index.json");
        let opened = if single.is_file() {
            let file = SafeTensorsFile::open(&single)?;
            let place = file.names().iter().map(|name| (name.clone(), 0)).collect();
            Self { dir: dir.to_path_buf(), files: vec![file], place }
        } else if index.is_file() {
            Self::open_shards(dir, &index)?
        } else {
            pickle::refuse_any_in(dir)?;
            let reason = "holds no model.safetensors and no model.safetensors.index.json";
            return Err(Error::file(dir, reason));
        };
        Ok(opened)
    }

    fn open_shards(dir: &Path, index: &Path) -> Result<Self> {
        let parsed: Value = aloe_record::atomic::read_json(index)?;
        let bad = |reason: String| Error::file(index, reason);
        let map = parsed.get("weight_map").and_then(Value::as_object).ok_or_else(|| bad("has no weight_map".into()))?;
        let mut shards = BTreeSet::new();
        for (name, shard) in map {
            let shard = shard.as_str().ok_or_else(|| bad(format!("the shard of {name} is not a string")))?;
            if !is_plain_name(shard) {
                return Err(bad(format!(
                    "shard \"{}\" is not a file name of this folder",
                    crate::error::shortened(shard)
                )));
            }
            shards.insert(shard.to_string());
        }
        let mut files = Vec::new();
        let mut place = HashMap::new();
        for shard in &shards {
            let path = dir.join(shard);
            if !path.is_file() {
                return Err(Error::file(&path, format!("is missing: {} of {} shards", shard, shards.len())));
            }
            let file = SafeTensorsFile::open(&path)?;
            for name in file.names() {
                match map.get(name).and_then(Value::as_str) {
                    Some(listed) if listed == shard => {}
                    Some(listed) => {
                        return Err(Error::tensor(&path, name, format!("the index places it in {listed}")));
                    }
                    None => return Err(Error::tensor(&path, name, "is not in the index")),
                }
                place.insert(name.clone(), files.len());
            }
            files.push(file);
        }
        if let Some((name, shard)) = map.iter().find(|(name, _)| !place.contains_key(*name)) {
            return Err(Error::tensor(
                index,
                name,
                format!("is listed, but {} does not hold it", shard.as_str().unwrap_or("?")),
            ));
        }
        Ok(Self { dir: dir.to_path_buf(), files, place })
    }

    /// All tensor names, sorted.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.place.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// The file that holds `name`.
    pub fn file_of(&self, name: &str) -> Result<&SafeTensorsFile> {
        let place = self.place.get(name).ok_or_else(|| Error::tensor(&self.dir, name, "is missing"))?;
        Ok(&self.files[*place])
    }

    /// Shape and type of `name`, if it is there.
    pub fn shape(&self, name: &str) -> Option<(&[usize], FileDtype)> {
        let info = self.files[*self.place.get(name)?].info(name)?;
        Some((&info.shape, info.dtype))
    }
}

/// A decoder's checkpoint folder.
pub struct Checkpoint {
    /// The checked config.
    pub config: Config,
    /// The folder.
    pub dir: PathBuf,
    table: Vec<TensorSpec>,
    files: TensorFiles,
}

impl Checkpoint {
    /// Opens a folder: reads the config, maps the weights and compares names, shapes and types with the table.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        if dir.is_dir() && !path.is_file() {
            pickle::refuse_any_in(dir)?;
        }
        let config = Config::from_json(&aloe_record::atomic::read_json::<Value>(&path)?)?;
        let files = TensorFiles::open(dir)?;
        let table = arch::tensors(&config);
        let checkpoint = Self { config, dir: dir.to_path_buf(), table, files };
        checkpoint.check_names()?;
        Ok(checkpoint)
    }

    /// The table's tensors: what a model of this config consists of.
    pub fn specs(&self) -> &[TensorSpec] {
        &self.table
    }

    /// Type of `name` in its file.
    pub fn file_dtype(&self, name: &str) -> Option<FileDtype> {
        self.files.shape(name).map(|(_, dtype)| dtype)
    }

    /// The tensor as f32, row-major.
    pub fn load_f32(&self, name: &str) -> Result<Vec<f32>> {
        self.files.file_of(name)?.load_f32(name)
    }

    /// The tensor as bfloat16 bits, rounded to nearest even where the file holds more.
    pub fn load_bf16(&self, name: &str) -> Result<Vec<u16>> {
        self.files.file_of(name)?.load_bf16(name)
    }

    /// The tensor's bytes as stored.
    pub fn bytes(&self, name: &str) -> Result<&[u8]> {
        self.files.file_of(name)?.bytes(name)
    }

    /// Lets the pages of a tensor go that were read.
    pub(crate) fn release(&self, name: &str) -> Result<()> {
        self.files.file_of(name)?.release(name)
    }

    fn check_names(&self) -> Result<()> {
        let expected: HashMap<&str, &TensorSpec> =
            self.table.iter().map(|spec| (spec.hf_name.as_str(), spec)).collect();
        let missing: Vec<&str> = self
            .table
            .iter()
            .map(|spec| spec.hf_name.as_str())
            .filter(|name| self.files.shape(name).is_none())
            .collect();
        if !missing.is_empty() {
            return Err(Error::file(
                &self.dir,
                format!("{} of {} tensors are missing: {}", missing.len(), self.table.len(), first_few(&missing)),
            ));
        }
        let mut unexpected = Vec::new();
        for name in self.files.names() {
            match expected.get(name) {
                Some(spec) => self.check_tensor(spec)?,
                None if name == HEAD => self.check_tied_head()?,
                // Old conversions store RoPE's frequencies, which follow from the config.
                None if name.ends_with(".rotary_emb.inv_freq") => {}
                None => unexpected.push(name),
            }
        }
        if unexpected.is_empty() {
            return Ok(());
        }
        let model = self.config.arch.model_type();
        let reason = format!(
            "{} tensors do not belong to a {model} of this config: {}",
            unexpected.len(),
            first_few(&unexpected)
        );
        Err(Error::file(&self.dir, reason))
    }

    fn check_tensor(&self, spec: &TensorSpec) -> Result<()> {
        let name = &spec.hf_name;
        let file = self.files.file_of(name)?;
        let Some((shape, dtype)) = self.files.shape(name) else { return Ok(()) };
        if shape != spec.shape {
            return Err(Error::tensor(
                file.path(),
                name,
                format!("has shape {shape:?}, the config expects {:?}", spec.shape),
            ));
        }
        if !matches!(dtype, FileDtype::F32 | FileDtype::F16 | FileDtype::BF16) {
            let reason = format!("dtype {} is not supported for weights; expected F32, F16 or BF16", dtype.name());
            return Err(Error::tensor(file.path(), name, reason));
        }
        Ok(())
    }

    /// A folder that says "tied" and stores a head all the same: fine when it is the embedding, a contradiction otherwise.
    fn check_tied_head(&self) -> Result<()> {
        if self.files.shape(HEAD) == self.files.shape(EMBED) && self.bytes(HEAD)? == self.bytes(EMBED)? {
            return Ok(());
        }
        let reason = "differs from model.embed_tokens.weight although config.json says tie_word_embeddings = true; \
                      set it to false if the head is meant";
        Err(Error::tensor(&self.dir, HEAD, reason))
    }
}

fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) && !name.contains(['/', '\\', '\0'])
}

fn first_few(names: &[&str]) -> String {
    let shown: Vec<String> = names.iter().take(5).map(|name| crate::error::shortened(name)).collect();
    let more = if names.len() > 5 { ", ..." } else { "" };
    format!("{}{more}", shown.join(", "))
}

#[cfg(test)]
mod tests;
