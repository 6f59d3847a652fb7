//! The models a configuration names: folders found, checkpoints and adapters opened, weight files ready to be read by position.
//!
//! Refuses GGUF files, pickles, and models that cannot be merged with the leading one.

use crate::plan::MergeOptions;
use crate::source::{Opened, Source, Stored};
use crate::{Error, Result};
use aloe_model::checkpoint::TensorFiles;
use aloe_model::{Checkpoint, Config, FileDtype, LoraAdapter, ModelSource, Role, TensorSpec};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

/// An opened input.
pub struct PlannedModel {
    /// Its name in the configuration.
    pub name: String,
    /// The folder that is read.
    pub dir: PathBuf,
    /// Its configuration and tensors.
    pub(crate) checkpoint: Checkpoint,
    /// The LoRA adapter on top.
    pub(crate) adapter: Option<LoraAdapter>,
    /// Where each tensor's bytes are.
    files: TensorFiles,
    opened: HashMap<PathBuf, Arc<Opened>>,
}

impl PlannedModel {
    /// Opens `model` or `model+adapter`.
    pub(crate) fn open(name: &str, options: &MergeOptions) -> Result<Self> {
        let (model, adapter) = match (options.folders.contains_key(name), &crate::config::split_adapter(name)[..]) {
            (false, [model, adapter]) => ((*model).to_owned(), Some((*adapter).to_owned())),
            _ => (name.to_owned(), None),
        };
        let dir = folder_of(&model, options)?;
        let checkpoint = Checkpoint::open(&dir)?;
        let files = TensorFiles::open(&dir)?;
        let mut opened = HashMap::new();
        for spec in checkpoint.specs() {
            let path = files.file_of(&spec.hf_name)?.path();
            if !opened.contains_key(path) {
                opened.insert(path.to_path_buf(), Arc::new(Opened::open(path)?));
            }
        }
        let adapter = match adapter {
            Some(adapter) => {
                let adapter = LoraAdapter::open(&folder_of(&adapter, options)?)?;
                adapter.check(checkpoint.specs())?;
                Some(adapter)
            }
            None => None,
        };
        Ok(Self { name: name.to_owned(), dir, checkpoint, adapter, files, opened })
    }

    /// A note when the adapter says that it was trained on other weights than it is added to here.
    pub(crate) fn base_note(&self) -> Result<Option<String>> {
        let Some(expected) = self.adapter.as_ref().and_then(LoraAdapter::base_digest) else { return Ok(None) };
        let found = ModelSource::open(&self.dir)?.digest()?;
        Ok((found != expected).then(|| {
            format!(
                "{}: the adapter was trained on weights with sha256 {expected}, those of {} have {found}: the result is exact only \
                 if they are the same model in another precision",
                self.name,
                self.dir.display()
            )
        }))
    }

    fn spec(&self, name: &str) -> Result<&TensorSpec> {
        let found = self.checkpoint.specs().iter().find(|spec| spec.hf_name == name);
        found.ok_or_else(|| Error::tensor(name, &self.name, "is missing"))
    }

    /// A tensor as it is read.
    pub(crate) fn source(&self, name: &str) -> Result<Source> {
        let spec = self.spec(name)?;
        let adapter = self.adapter.as_ref();
        if let Some((path, name, dtype)) = adapter.and_then(|adapter| adapter.replacement(spec)) {
            return Ok(Source::Stored(Stored::in_file(&Arc::new(Opened::open(path)?), &name, dtype)?));
        }
        let file = &self.opened[self.files.file_of(name)?.path()];
        let stored = Stored::in_file(file, name, self.checkpoint.file_dtype(name).unwrap_or(FileDtype::F32))?;
        Ok(match adapter.map(|adapter| adapter.delta(spec)).transpose()?.flatten() {
            Some(delta) => Source::Adapted(stored, Arc::new(delta)),
            None => Source::Stored(stored),
        })
    }

    /// Whether the tensor `name` fits the result's `spec`: equal, or with more rows of the vocabulary than are used.
    pub(crate) fn check_shape(&self, spec: &TensorSpec, name: &str, has_vocabulary: bool) -> Result<()> {
        let shape = &self.spec(name)?.shape;
        let is_vocabulary = matches!(spec.role, Role::Embed | Role::Head);
        let fits = shape == &spec.shape
            || (is_vocabulary && shape[1] == spec.shape[1] && (has_vocabulary || shape[0] > spec.shape[0]));
        if fits {
            return Ok(());
        }
        let hint = match is_vocabulary {
            true => "; only extra rows at the end can be left out, or choose a vocabulary with tokenizer_source",
            false => "",
        };
        Err(Error::tensor(name, &self.name, format!("has shape {shape:?}, expected {:?}{hint}", spec.shape)))
    }
}

/// The checkpoint folder that a name means: given by the caller, a checkpoint, or a stage folder with `model/` and `master/`.
pub(crate) fn folder_of(name: &str, options: &MergeOptions) -> Result<PathBuf> {
    let path = options.folders.get(name).cloned().unwrap_or_else(|| PathBuf::from(name));
    let inner: &[&str] = if options.read_master { &["master", "model"] } else { &["model", "master"] };
    if !path.join("config.json").is_file() {
        for inner in inner {
            if path.join(inner).join("config.json").is_file() {
                return Ok(path.join(inner));
            }
        }
    }
    if path.is_dir() {
        return Ok(path);
    }
    let reason = match path.extension().and_then(|extension| extension.to_str()) {
        Some("gguf") => "a GGUF file cannot be merged; turn it into a folder with `aloe pull` first".to_owned(),
        _ => format!(
            "there is no folder {}; pull it first (`aloe pull hf:{name} --out DIR`) and write its path",
            path.display()
        ),
    };
    Err(Error::model(name, reason))
}

/// Refuses a model whose tensors do not have the leading model's shapes. Numbers of layers are compared by slice.
pub(crate) fn check_architecture(
    expected: &Config,
    leader: &str,
    model: &PlannedModel,
    notes: &mut Vec<String>,
) -> Result<()> {
    let found = &model.checkpoint.config;
    let pairs = [
        ("model_type", expected.arch.model_type().to_owned(), found.arch.model_type().to_owned()),
        ("hidden_size", expected.hidden_size.to_string(), found.hidden_size.to_string()),
        ("intermediate_size", expected.intermediate_size.to_string(), found.intermediate_size.to_string()),
        ("num_attention_heads", expected.num_attention_heads.to_string(), found.num_attention_heads.to_string()),
        ("num_key_value_heads", expected.num_key_value_heads.to_string(), found.num_key_value_heads.to_string()),
        ("head_dim", expected.head_dim.to_string(), found.head_dim.to_string()),
        ("attention_bias", expected.attention_bias.to_string(), found.attention_bias.to_string()),
        ("tie_word_embeddings", expected.tie_word_embeddings.to_string(), found.tie_word_embeddings.to_string()),
    ];
    let wrong: Vec<String> = pairs
        .into_iter()
        .filter(|(_, expected, found)| expected != found)
        .map(|(key, expected, found)| format!("{key} is {found}, that of {leader} is {expected}"))
        .collect();
    if !wrong.is_empty() {
        return Err(Error::model(&model.name, format!("is of another architecture: {}", wrong.join("; "))));
    }
    if expected.rope_theta != found.rope_theta || expected.rope_scaling != found.rope_scaling {
        notes.push(format!("{} has other RoPE settings than {leader}, whose settings the result gets", model.name));
    }
    Ok(())
}
