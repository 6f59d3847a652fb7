//! From a configuration to opened models and the list of tensors with everything that applies to them. All that can be refused is
//! refused here, before a byte is written.
//!
//! Refuses models of another architecture or shape, tied beside untied heads, embeddings with fewer rows than the result's, and tokenizers
//! that give an id two meanings.

use crate::config::{MergeConfig, MergeDtype, TensorParameters};
use crate::tile::TensorBytes;
use crate::{Error, Mistake, Result, tokenizer};
use aloe_model::{Checkpoint, Config, FileDtype, Role, TensorSpec};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// What the caller decides beside the configuration.
#[derive(Clone, Debug)]
pub struct MergeOptions {
    /// Seed of the DARE masks.
    pub seed: u64,
    /// Threads, at least 1; no effect on the result.
    pub threads: usize,
    /// Also write `master/` in float32, what the next stage trains from.
    pub write_master: bool,
    /// Read the `master/` of inputs that are stage folders, where there is one, instead of `model/`.
    pub read_master: bool,
    /// Folders of models by their name in the configuration; other names are paths.
    pub folders: BTreeMap<String, PathBuf>,
}

impl Default for MergeOptions {
    fn default() -> Self {
        Self { seed: 0, threads: 1, write_master: false, read_master: true, folders: BTreeMap::new() }
    }
}

/// An opened input.
pub struct PlannedModel {
    /// Its name in the configuration.
    pub name: String,
    /// The folder that is read.
    pub dir: PathBuf,
    checkpoint: Checkpoint,
}

/// One tensor of the result.
#[derive(Clone, Debug)]
pub struct PlannedTensor {
    /// Name and shape in the result.
    pub spec: TensorSpec,
    /// What applies to it.
    pub parameters: TensorParameters,
}

/// A merge that is ready to run.
pub struct MergePlan {
    /// The inputs, in the configuration's order.
    pub models: Vec<PlannedModel>,
    /// Index of the base.
    pub base: Option<usize>,
    /// The result's configuration: the base's, or the first model's.
    pub config: Config,
    /// What is computed in.
    pub dtype: MergeDtype,
    /// What `model/` is stored in.
    pub out_dtype: MergeDtype,
    /// Index of the model whose tokenizer the result gets.
    pub tokenizer: usize,
    /// The tensors, in the order they are written.
    pub tensors: Vec<PlannedTensor>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// Opens the models and resolves the configuration for every tensor.
pub fn plan(config: &MergeConfig, options: &MergeOptions) -> Result<MergePlan> {
    let mut models = Vec::new();
    for model in &config.models {
        let dir = folder_of(&model.name, options)?;
        let checkpoint = Checkpoint::open(&dir)?;
        models.push(PlannedModel { name: model.name.clone(), dir, checkpoint });
    }
    let leader = config.base.unwrap_or(0);
    let out_config = models[leader].checkpoint.config.clone();
    let mut notes = config.notes.clone();
    for model in &models {
        check_architecture(&out_config, &models[leader].name, model, &mut notes)?;
    }
    let n_rows = out_config.vocab_size;
    for model in models.iter().filter(|model| model.checkpoint.config.vocab_size > n_rows) {
        let found = model.checkpoint.config.vocab_size;
        notes.push(format!(
            "the embedding of {} has {found} rows; those after the first {n_rows} are left out",
            model.name
        ));
    }
    let donor = match config.tokenizer_source {
        Some(crate::config::TokenizerSource::Model(index)) => index,
        _ => leader,
    };
    let folders: Vec<(&str, &Path)> = models.iter().map(|model| (model.name.as_str(), model.dir.as_path())).collect();
    tokenizer::compare(&folders, donor, &mut notes)?;
    let tensors = tensors(config, &models, leader)?;
    let dtype = config.dtype.unwrap_or_else(|| widest(&models));
    Ok(MergePlan {
        base: config.base,
        config: out_config,
        dtype,
        out_dtype: config.out_dtype.unwrap_or(dtype),
        tokenizer: donor,
        tensors,
        notes,
        models,
    })
}

impl MergePlan {
    /// The tensor's bytes in every model, in the configuration's order, cut to the rows of the result.
    pub(crate) fn bytes(&self, spec: &TensorSpec) -> Result<Vec<TensorBytes<'_>>> {
        self.models.iter().map(|model| model.bytes(spec)).collect()
    }

    /// Elements of the result.
    pub fn n_parameters(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.spec.n_elements() as u64).sum()
    }

    /// Bytes of the largest tensor in f32: what a merge holds of the result at once.
    pub fn largest_tensor_bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| 4 * tensor.spec.n_elements() as u64).max().unwrap_or(0)
    }

    /// The plan as text: models, sizes, and the tensors grouped by equal parameters.
    pub fn table(&self) -> String {
        let mut text = String::new();
        for (index, model) in self.models.iter().enumerate() {
            let role = if self.base == Some(index) { "base " } else { "model" };
            let _ = writeln!(text, "{role}  {}  ({})", model.name, model.dir.display());
        }
        let n = self.n_parameters();
        let bytes = n * if self.out_dtype == MergeDtype::Float32 { 4 } else { 2 };
        let _ = writeln!(
            text,
            "{} tensors, {n} parameters, computed in {}, written in {} ({:.1} MB), largest tensor {:.1} MB in f32",
            self.tensors.len(),
            self.dtype.name(),
            self.out_dtype.name(),
            bytes as f64 / 1e6,
            self.largest_tensor_bytes() as f64 / 1e6
        );
        let mut groups: Vec<(&TensorParameters, Vec<&TensorSpec>)> = Vec::new();
        for tensor in &self.tensors {
            match groups.iter_mut().find(|(parameters, _)| **parameters == tensor.parameters) {
                Some((_, specs)) => specs.push(&tensor.spec),
                None => groups.push((&tensor.parameters, vec![&tensor.spec])),
            }
        }
        for (parameters, specs) in groups {
            let n: usize = specs.iter().map(|spec| spec.n_elements()).sum();
            let _ =
                writeln!(text, "{} tensors from {} on, {n} parameters: {parameters:?}", specs.len(), specs[0].hf_name);
        }
        self.notes.iter().for_each(|note| text += &format!("note: {note}\n"));
        text
    }
}

impl PlannedModel {
    fn bytes(&self, spec: &TensorSpec) -> Result<TensorBytes<'_>> {
        let dtype = self.checkpoint.file_dtype(&spec.hf_name).unwrap_or(FileDtype::F32);
        let bytes = self.checkpoint.bytes(&spec.hf_name)?;
        // Leading rows are leading bytes: only the embedding and the head may have more rows than the result.
        Ok(TensorBytes { dtype, bytes: &bytes[..spec.n_elements() * dtype.size_bytes()] })
    }
}

/// The checkpoint folder that a name means: given by the caller, a checkpoint, or a stage folder with `model/` and `master/`.
fn folder_of(name: &str, options: &MergeOptions) -> Result<PathBuf> {
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

fn check_architecture(expected: &Config, leader: &str, model: &PlannedModel, notes: &mut Vec<String>) -> Result<()> {
    let found = &model.checkpoint.config;
    let pairs = [
        ("model_type", expected.arch.model_type().to_owned(), found.arch.model_type().to_owned()),
        ("hidden_size", expected.hidden_size.to_string(), found.hidden_size.to_string()),
        ("intermediate_size", expected.intermediate_size.to_string(), found.intermediate_size.to_string()),
        ("num_hidden_layers", expected.num_hidden_layers.to_string(), found.num_hidden_layers.to_string()),
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

fn tensors(config: &MergeConfig, models: &[PlannedModel], leader: usize) -> Result<Vec<PlannedTensor>> {
    let specs = models[leader].checkpoint.specs();
    let n_layers = models[leader].checkpoint.config.num_hidden_layers;
    let mut planned = Vec::with_capacity(specs.len());
    let mut mistakes: Vec<Mistake> = Vec::new();
    for spec in specs {
        for model in models {
            check_shape(spec, &models[leader].name, model)?;
        }
        match config.tensor_parameters(&spec.hf_name, place(spec.role, n_layers)) {
            Ok(parameters) => planned.push(PlannedTensor { spec: spec.clone(), parameters }),
            // One example per line is enough: filters miss whole groups of tensors.
            Err(mistake) if mistakes.iter().all(|known| known.line != mistake.line) => mistakes.push(mistake),
            Err(_) => {}
        }
    }
    if mistakes.is_empty() { Ok(planned) } else { Err(Error::Config { path: config.path.clone(), mistakes }) }
}

/// A layer's place from 0 to 1; 0 before and after the layers; 1 in a model of one layer (mergekit, `plan.py`).
fn place(role: Role, n_layers: usize) -> f64 {
    match role {
        Role::Layer(_, _) if n_layers == 1 => 1.0,
        Role::Layer(index, _) => index as f64 / (n_layers - 1) as f64,
        Role::Embed | Role::FinalNorm | Role::Head => 0.0,
    }
}

fn check_shape(spec: &TensorSpec, leader: &str, model: &PlannedModel) -> Result<()> {
    let found = model.checkpoint.specs().iter().find(|found| found.hf_name == spec.hf_name);
    let shape = found.map_or(&[][..], |found| &found.shape);
    let is_vocabulary = matches!(spec.role, Role::Embed | Role::Head);
    let fits = shape == spec.shape
        || (is_vocabulary && shape.len() == 2 && shape[1] == spec.shape[1] && shape[0] > spec.shape[0]);
    if fits {
        return Ok(());
    }
    let hint = if is_vocabulary { "; only extra rows at the end can be left out" } else { "" };
    let reason = format!("has shape {shape:?}, that of {leader} is {:?}{hint}", spec.shape);
    Err(Error::tensor(&spec.hf_name, &model.name, reason))
}

/// torch's promotion over all inputs: bfloat16 only if every tensor is.
fn widest(models: &[PlannedModel]) -> MergeDtype {
    let is_bf16 = |model: &PlannedModel| {
        let specs = model.checkpoint.specs();
        specs.iter().all(|spec| model.checkpoint.file_dtype(&spec.hf_name) == Some(FileDtype::BF16))
    };
    if models.iter().all(is_bf16) { MergeDtype::Bfloat16 } else { MergeDtype::Float32 }
}
