//! The models a configuration names: folders found, checkpoints and adapters opened, weight files ready to be read by position. A model
//! that an earlier document of the same file makes is known by its outline before it is merged.
//!
//! Refuses GGUF files, pickles, and models that cannot be merged with the leading one.

use crate::beside::Beside;
use crate::config::MergeConfig;
use crate::plan::{MergeOptions, MergePlan};
use crate::source::{Opened, Source, Stored};
use crate::{Error, Result};
use aloe_model::checkpoint::TensorFiles;
use aloe_model::{Checkpoint, Config, FileDtype, LoraAdapter, ModelSource, Role, SafeTensorsFile, TensorSpec};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

/// An opened input.
pub struct PlannedModel {
    /// Its name in the configuration.
    pub name: String,
    /// The folder that is read; the document's name where the model is not merged yet.
    pub dir: PathBuf,
    /// Its configuration.
    pub(crate) config: Config,
    /// The files beside its weights.
    pub(crate) beside: Beside,
    /// The LoRA adapter on top.
    pub(crate) adapter: Option<LoraAdapter>,
    /// Bytes of the adapter's factors A and B of one tensor in f32, the largest over its tensors.
    pub(crate) update_bytes: u64,
    weights: Weights,
}

/// Where the bytes of a model's tensors are.
enum Weights {
    Files(Box<Files>),
    Outline(Box<Outline>),
    /// Not looked at: the model's tokenizer alone is used.
    Unused,
}

/// An opened checkpoint, its weight files ready to be read by position.
struct Files {
    checkpoint: Checkpoint,
    files: TensorFiles,
    opened: HashMap<PathBuf, Arc<Opened>>,
}

/// What an earlier document will give: enough to check everything that uses it.
#[derive(Clone)]
pub(crate) struct Outline {
    config: Config,
    dtype: FileDtype,
    specs: Arc<Vec<TensorSpec>>,
    files: Arc<Vec<(String, Vec<u8>)>>,
}

/// Outlines by the documents' names.
pub(crate) type Outlines = BTreeMap<String, Outline>;

impl Outline {
    /// What `plan` will write.
    pub(crate) fn of(plan: &MergePlan) -> Self {
        let specs = plan.tensors.iter().map(|tensor| tensor.spec.clone()).collect();
        Self {
            config: plan.config.clone(),
            dtype: plan.out_dtype.stored(),
            specs: Arc::new(specs),
            files: Arc::new(plan.files.clone()),
        }
    }
}

/// All models of a configuration, in its order; of one that no slice merges the tokenizer alone.
pub(crate) fn open_all(config: &MergeConfig, options: &MergeOptions, outlines: &Outlines) -> Result<Vec<PlannedModel>> {
    let mut models: Vec<PlannedModel> = Vec::new();
    // What is not merged stands last, so the leading model is there by then.
    for model in &config.models {
        models.push(match models.get(config.base.unwrap_or(0)) {
            Some(leader) if model.gives_tokenizer_only && !outlines.contains_key(&model.name) => {
                PlannedModel::tokenizer_only(&model.name, options, &leader.config)?
            }
            _ => PlannedModel::open(&model.name, options, outlines)?,
        });
    }
    Ok(models)
}

impl PlannedModel {
    /// Opens `model` or `model+adapter`.
    pub(crate) fn open(name: &str, options: &MergeOptions, outlines: &Outlines) -> Result<Self> {
        let is_whole = options.folders.contains_key(name) || outlines.contains_key(name);
        let (model, adapter) = match (is_whole, &crate::config::split_adapter(name)[..]) {
            (false, [model, adapter]) => ((*model).to_owned(), Some((*adapter).to_owned())),
            _ => (name.to_owned(), None),
        };
        let mut opened = match outlines.get(&model) {
            Some(outline) => Self::planned(name, &model, outline),
            None => Self::in_folder(name, folder_of(&model, options)?)?,
        };
        if let Some(adapter) = adapter {
            let adapter = LoraAdapter::open(&folder_of(&adapter, options)?)?;
            adapter.check(opened.specs())?;
            opened.update_bytes = update_bytes(&adapter)?;
            opened.adapter = Some(adapter);
        }
        Ok(opened)
    }

    /// A model, or a folder without weights, whose tokenizer the result gets; without a `config.json` its ids of special tokens are `leader`'s.
    pub(crate) fn tokenizer_only(name: &str, options: &MergeOptions, leader: &Config) -> Result<Self> {
        let dir = folder_of(name, options)?;
        let beside = Beside::Folder(dir.clone());
        let config = match beside.read_json::<serde_json::Value>("config.json")? {
            Some(json) => Config::from_json(&json).map_err(|error| named(name, error))?,
            None => leader.clone(),
        };
        let weights = Weights::Unused;
        Ok(Self { name: name.to_owned(), dir, config, beside, adapter: None, update_bytes: 0, weights })
    }

    /// Whether no slice merges it.
    pub(crate) fn gives_tokenizer_only(&self) -> bool {
        matches!(self.weights, Weights::Unused)
    }

    fn planned(name: &str, document: &str, outline: &Outline) -> Self {
        Self {
            name: name.to_owned(),
            dir: document.into(),
            config: outline.config.clone(),
            beside: Beside::Planned(outline.files.clone()),
            adapter: None,
            update_bytes: 0,
            weights: Weights::Outline(Box::new(outline.clone())),
        }
    }

    fn in_folder(name: &str, dir: PathBuf) -> Result<Self> {
        if !dir.join("config.json").is_file() {
            let reason = match dir.join("adapter_config.json").is_file() {
                true => format!("it is a LoRA adapter: write the model that it changes before it, `MODEL+{name}`"),
                false => format!("{} holds no model (no config.json)", dir.display()),
            };
            return Err(Error::model(name, reason));
        }
        let checkpoint = Checkpoint::open(&dir).map_err(|error| named(name, error))?;
        let files = TensorFiles::open(&dir)?;
        let mut opened = HashMap::new();
        for spec in checkpoint.specs() {
            let path = files.file_of(&spec.hf_name)?.path();
            if !opened.contains_key(path) {
                opened.insert(path.to_path_buf(), Arc::new(Opened::open(path)?));
            }
        }
        let config = checkpoint.config.clone();
        let beside = Beside::Folder(dir.clone());
        let weights = Weights::Files(Box::new(Files { checkpoint, files, opened }));
        Ok(Self { name: name.to_owned(), dir, config, beside, adapter: None, update_bytes: 0, weights })
    }

    /// Its tensors.
    pub(crate) fn specs(&self) -> &[TensorSpec] {
        match &self.weights {
            Weights::Files(opened) => opened.checkpoint.specs(),
            Weights::Outline(outline) => &outline.specs,
            Weights::Unused => &[],
        }
    }

    /// Type of a tensor as stored.
    pub(crate) fn file_dtype(&self, name: &str) -> Option<FileDtype> {
        match &self.weights {
            Weights::Files(opened) => opened.checkpoint.file_dtype(name),
            Weights::Outline(outline) => Some(outline.dtype),
            Weights::Unused => None,
        }
    }

    /// Whether its weights can be read, or are yet to be merged.
    pub(crate) fn is_merged(&self) -> bool {
        matches!(self.weights, Weights::Files(_))
    }

    /// Its weight files, where they are there.
    pub(crate) fn opened(&self) -> impl Iterator<Item = &Arc<Opened>> {
        let files = match &self.weights {
            Weights::Files(files) => Some(files),
            Weights::Outline(_) | Weights::Unused => None,
        };
        files.into_iter().flat_map(|files| files.opened.values())
    }

    /// A note when the adapter says that it was trained on other weights than it is added to here.
    pub(crate) fn base_note(&self) -> Result<Option<String>> {
        let Some(expected) = self.adapter.as_ref().and_then(LoraAdapter::base_digest) else { return Ok(None) };
        if !self.is_merged() {
            return Ok(None);
        }
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
        let found = self.specs().iter().find(|spec| spec.hf_name == name);
        found.ok_or_else(|| Error::tensor(name, &self.name, "is missing"))
    }

    /// A tensor as it is read.
    pub(crate) fn source(&self, name: &str) -> Result<Source> {
        let spec = self.spec(name)?;
        let Weights::Files(weights) = &self.weights else {
            let document = self.dir.display();
            let reason = format!(
                "is made by an earlier document of this file, which is not merged yet: merge {document} by itself first, in a file of its \
                 own, and name its folder in place of {document}; or merge the whole file"
            );
            return Err(Error::tensor(name, &self.name, reason));
        };
        let adapter = self.adapter.as_ref();
        if let Some((path, name, dtype)) = adapter.and_then(|adapter| adapter.replacement(spec)) {
            return Ok(Source::Stored(Stored::in_file(&Arc::new(Opened::open(path)?), &name, dtype)?));
        }
        let file = &weights.opened[weights.files.file_of(name)?.path()];
        let stored = Stored::in_file(file, name, weights.checkpoint.file_dtype(name).unwrap_or(FileDtype::F32))?;
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

/// A refusal of a configuration names no file: the model says whose it is.
fn named(model: &str, error: aloe_model::Error) -> Error {
    match error {
        aloe_model::Error::Config { .. } => Error::model(model, error.to_string()),
        other => other.into(),
    }
}

fn update_bytes(adapter: &LoraAdapter) -> Result<u64> {
    let file = SafeTensorsFile::open(&adapter.dir.join("adapter_model.safetensors"))?;
    let n_elements = |name: &str| file.info(name).map_or(0, |info| info.shape.iter().product::<usize>());
    let of_pair = |name: &String| match name.contains(".lora_A.") {
        true => 4 * (n_elements(name) + n_elements(&name.replace(".lora_A.", ".lora_B."))) as u64,
        false => 0,
    };
    Ok(file.names().iter().map(of_pair).max().unwrap_or(0))
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
        _ => no_folder(&path.to_string_lossy()),
    };
    Err(Error::model(name, reason))
}

/// That a model is not there, where it was looked for, and what to do: where its name may be one of the Hub's, `owner/name`, pull it.
pub fn no_folder(name: &str) -> String {
    let is_path = name.starts_with(['/', '.', '~']) || name.matches('/').count() != 1;
    let text = match is_path {
        true => format!("there is no folder {name}"),
        false => format!(
            "there is no folder {name}; pull it first (`aloe pull hf:{name} --out DIR`) and write its path; the Hugging Face cache \
             holds no snapshot of it"
        ),
    };
    match std::env::current_dir() {
        Ok(here) if !name.starts_with(['/', '~']) => format!("{text}; relative paths start at {}", here.display()),
        _ => text,
    }
}

/// Refuses a model whose tensors do not have the leading model's shapes. Numbers of layers are compared by slice.
pub(crate) fn check_architecture(
    expected: &Config,
    leader: &str,
    model: &PlannedModel,
    notes: &mut Vec<String>,
) -> Result<()> {
    let found = &model.config;
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
    let of = |config: &Config, key: &str| config.raw.get(key).cloned().unwrap_or_default();
    let window = |config: &Config| match of(config, "use_sliding_window") {
        serde_json::Value::Bool(false) => serde_json::Value::Null,
        _ => of(config, "sliding_window"),
    };
    let softer = [
        ("rms_norm_eps", expected.rms_norm_eps.to_string(), found.rms_norm_eps.to_string()),
        ("sliding_window", window(expected).to_string(), window(found).to_string()),
        (
            "max_position_embeddings",
            expected.max_position_embeddings.to_string(),
            found.max_position_embeddings.to_string(),
        ),
    ];
    for (key, expected, found) in softer.into_iter().filter(|(_, expected, found)| expected != found) {
        notes.push(format!("{key} of {} is {found}; the result gets that of {leader}, {expected}", model.name));
    }
    if expected.rope_theta != found.rope_theta || expected.rope_scaling != found.rope_scaling {
        notes.push(format!("{} has other RoPE settings than {leader}, whose settings the result gets", model.name));
    }
    Ok(())
}
