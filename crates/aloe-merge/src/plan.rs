//! From a configuration to opened models and the list of tensors with everything that applies to them. All that can be refused is
//! refused here, before a byte is written.
//!
//! Refuses models of another architecture or shape, tied beside untied heads, layers that a model does not have, embeddings with fewer rows
//! than the result's, and tokenizers that give an id two meanings (unless the configuration says whose vocabulary holds).

use crate::config::{BaseUse, MergeConfig, MergeDtype, TensorParameters};
use crate::group::Group;
use crate::inputs::{PlannedModel, check_architecture};
use crate::source::{Rows, Source};
use crate::tile::TILE;
use crate::vocabulary::{self, RowMap, Vocabulary};
use crate::{Error, Mistake, Result, tokenizer};
use aloe_model::{Config, Role, TensorSpec};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Budget where none is given.
pub const DEFAULT_MEMORY: u64 = 1 << 30;
/// What the program, the tokenizers and the plan take beside tiles.
const RESIDENT: u64 = 64 << 20;

/// What the caller decides beside the configuration.
#[derive(Clone, Debug)]
pub struct MergeOptions {
    /// Seed of the random masks.
    pub seed: u64,
    /// Threads, at least 1; no effect on the result.
    pub threads: usize,
    /// Bytes that a merge may hold; fewer threads run where they would need more. No effect on the result.
    pub memory: u64,
    /// Also write `master/` in float32, what the next stage trains from.
    pub write_master: bool,
    /// Read the `master/` of inputs that are stage folders, where there is one, instead of `model/`.
    pub read_master: bool,
    /// Folders of models by their name in the configuration; other names are paths.
    pub folders: BTreeMap<String, PathBuf>,
}

impl Default for MergeOptions {
    fn default() -> Self {
        let folders = BTreeMap::new();
        Self { seed: 0, threads: 1, memory: DEFAULT_MEMORY, write_master: false, read_master: true, folders }
    }
}

/// One tensor of the result.
#[derive(Clone, Debug)]
pub struct PlannedTensor {
    /// Name and shape in the result.
    pub spec: TensorSpec,
    /// The slice it belongs to.
    pub slice: usize,
    /// Its name in each source of the slice.
    pub names: Vec<String>,
    /// What applies to it.
    pub parameters: TensorParameters,
}

/// A merge that is ready to run.
pub struct MergePlan {
    /// The inputs, in the configuration's order.
    pub models: Vec<PlannedModel>,
    /// Index of the base.
    pub base: Option<usize>,
    /// The result's configuration: the base's, or the first model's, with the layers and the vocabulary of the result.
    pub config: Config,
    /// What is computed in.
    pub dtype: MergeDtype,
    /// What `model/` is stored in.
    pub out_dtype: MergeDtype,
    /// Index of the model whose tokenizer files the result gets.
    pub tokenizer: usize,
    /// The tensors, in the order they are written.
    pub tensors: Vec<PlannedTensor>,
    /// What the user should know.
    pub notes: Vec<String>,
    /// Threads that fit the memory budget.
    pub threads: usize,
    pub(crate) vocabulary: Option<Vocabulary>,
    /// The embedding's rows and the head's, where a vocabulary was asked for.
    rows: Option<[Arc<RowMap>; 2]>,
    slices: Vec<(Vec<usize>, Option<usize>)>,
    pub(crate) seed: u64,
    method: crate::config::Method,
}

/// Opens the models and resolves the configuration for every tensor.
pub fn plan(config: &MergeConfig, options: &MergeOptions) -> Result<MergePlan> {
    let models: Vec<PlannedModel> =
        config.models.iter().map(|model| PlannedModel::open(&model.name, options)).collect::<Result<_>>()?;
    let leader = config.base.unwrap_or(0);
    let mut out_config = models[leader].checkpoint.config.clone();
    let mut notes = config.notes.clone();
    for model in &models {
        check_architecture(&out_config, &models[leader].name, model, &mut notes)?;
        notes.extend(model.base_note()?);
    }
    let listed: Vec<(&str, &Path, &Config)> =
        models.iter().map(|model| (model.name.as_str(), model.dir.as_path(), &model.checkpoint.config)).collect();
    let vocabulary = vocabulary::build(config, &listed)?;
    match &vocabulary {
        Some(vocabulary) => set_vocabulary(&mut out_config, vocabulary, &models, leader, &mut notes),
        None => compare_vocabularies(&models, leader, out_config.vocab_size, &mut notes)?,
    }
    let ranges = layer_ranges(config, &models)?;
    set_layers(&mut out_config, ranges.iter().map(|slice| slice[0].1 - slice[0].0).sum());
    let tensors = tensors(config, &models, &out_config, &ranges)?;
    let rows = vocabulary.as_ref().map(|vocabulary| row_maps(config, vocabulary)).transpose()?;
    let dtype = config.dtype.unwrap_or_else(|| widest(&models));
    let uses_base = config.method.base_use() != BaseUse::Ignored;
    let slices = config
        .slices
        .iter()
        .map(|slice| (slice.sources.iter().map(|source| source.model).collect(), slice.base.filter(|_| uses_base)));
    let mut plan = MergePlan {
        base: config.base,
        dtype,
        out_dtype: config.out_dtype.unwrap_or(dtype),
        tokenizer: vocabulary.as_ref().map_or(leader, |vocabulary| vocabulary.donor),
        tensors,
        notes,
        threads: 1,
        vocabulary,
        rows,
        slices: slices.collect(),
        seed: options.seed,
        method: config.method,
        config: out_config,
        models,
    };
    plan.threads = plan.fit(options)?;
    Ok(plan)
}

fn set_vocabulary(
    out: &mut Config,
    vocabulary: &Vocabulary,
    models: &[PlannedModel],
    leader: usize,
    notes: &mut Vec<String>,
) {
    if out.vocab_size != vocabulary.n_rows {
        notes.push(format!(
            "the embedding has {} rows for the tokens of the chosen tokenizer; that of {} has {}",
            vocabulary.n_rows, models[leader].name, out.vocab_size
        ));
    }
    for (index, model) in models.iter().enumerate() {
        let lacking = vocabulary.lacking(index);
        if let Some(first) = lacking.first() {
            notes.push(format!(
                "{} has no row for {} tokens of the result ({first:?}, ...), which it takes from other models",
                model.name,
                lacking.len()
            ));
        }
    }
    out.vocab_size = vocabulary.n_rows;
}

/// Without a chosen vocabulary, rows stay where they are: extra rows at the end are left out, and ids must mean the same.
fn compare_vocabularies(models: &[PlannedModel], leader: usize, n_rows: usize, notes: &mut Vec<String>) -> Result<()> {
    for model in models.iter().filter(|model| model.checkpoint.config.vocab_size > n_rows) {
        let found = model.checkpoint.config.vocab_size;
        notes.push(format!(
            "the embedding of {} has {found} rows; those after the first {n_rows} are left out",
            model.name
        ));
    }
    let folders: Vec<(&str, &Path)> = models.iter().map(|model| (model.name.as_str(), model.dir.as_path())).collect();
    tokenizer::compare(&folders, leader, notes)
}

fn row_maps(config: &MergeConfig, vocabulary: &Vocabulary) -> Result<[Arc<RowMap>; 2]> {
    let of = |index: usize| {
        let slice = &config.slices[index];
        let sources: Vec<usize> = slice.sources.iter().map(|source| source.model).collect();
        let rows = vocabulary.rows(config, &sources, slice.base);
        rows.map_err(|mistake| Error::Config { path: config.path.clone(), mistakes: vec![mistake] })
    };
    Ok([of(0)?, of(config.slices.len() - 1)?])
}

/// First layer and end per source of every slice; all layers where the configuration says nothing.
fn layer_ranges(config: &MergeConfig, models: &[PlannedModel]) -> Result<Vec<Vec<(usize, usize)>>> {
    let mut mistakes = Vec::new();
    let mut ranges = Vec::new();
    for slice in &config.slices {
        let mut of_slice = Vec::new();
        for source in &slice.sources {
            let model = &models[source.model];
            let n_layers = model.checkpoint.config.num_hidden_layers;
            let (first, end) = source.layers.unwrap_or((0, n_layers));
            if end > n_layers {
                let text = format!("layer_range [{first}, {end}] of {}, which has {n_layers} layers", model.name);
                mistakes.push(Mistake { line: source.line, text });
            }
            of_slice.push((first, end));
        }
        let odd = of_slice.iter().zip(&slice.sources).find(|(r, _)| r.1 - r.0 != of_slice[0].1 - of_slice[0].0);
        if let Some((range, source)) = odd {
            let (found, expected) = (range.1 - range.0, of_slice[0].1 - of_slice[0].0);
            let (name, first) = (&models[source.model].name, &models[slice.sources[0].model].name);
            let text = format!("num_hidden_layers of {name} is {found}, that of {first} is {expected}: use slices");
            mistakes.push(Mistake { line: source.line, text });
        }
        ranges.push(of_slice);
    }
    if mistakes.is_empty() { Ok(ranges) } else { Err(Error::Config { path: config.path.clone(), mistakes }) }
}

/// Sets the number of layers, also in lists of the source's config.json that have one entry per layer.
fn set_layers(config: &mut Config, n_layers: usize) {
    let before = config.num_hidden_layers;
    config.num_hidden_layers = n_layers;
    if n_layers == before {
        return;
    }
    if let Some(types) = config.raw.get_mut("layer_types").and_then(serde_json::Value::as_array_mut) {
        let last = types.last().cloned().unwrap_or_else(|| "full_attention".into());
        types.resize(n_layers, last);
    }
}

fn tensors(
    config: &MergeConfig,
    models: &[PlannedModel],
    out: &Config,
    ranges: &[Vec<(usize, usize)>],
) -> Result<Vec<PlannedTensor>> {
    let has_vocabulary = config.tokenizer.is_some();
    let mut planned = Vec::new();
    let mut mistakes: Vec<Mistake> = Vec::new();
    for spec in aloe_model::arch::tensors(out) {
        let place = place(spec.role, ranges);
        let sources = &config.slices[place.slice].sources;
        let names: Vec<String> = (0..sources.len())
            .map(|input| match spec.role {
                Role::Layer(index, _) => {
                    let layer = ranges[place.slice][input].0 + place.offset;
                    spec.hf_name.replacen(&format!("layers.{index}."), &format!("layers.{layer}."), 1)
                }
                _ => spec.hf_name.clone(),
            })
            .collect();
        for (source, name) in sources.iter().zip(&names) {
            models[source.model].check_shape(&spec, name, has_vocabulary)?;
        }
        match config.tensor_parameters(place.slice, &spec.hf_name, &names, place.t) {
            Ok(parameters) => planned.push(PlannedTensor { spec, slice: place.slice, names, parameters }),
            // One example per line is enough: filters miss whole groups of tensors.
            Err(mistake) if mistakes.iter().all(|known| known.line != mistake.line) => mistakes.push(mistake),
            Err(_) => {}
        }
    }
    if mistakes.is_empty() { Ok(planned) } else { Err(Error::Config { path: config.path.clone(), mistakes }) }
}

/// Where a tensor stands: its slice, its layer within, and the place `t` of gradients.
struct Place {
    slice: usize,
    offset: usize,
    t: f64,
}

/// `t` runs from 0 to 1 over the layers of a slice, is 1 in a slice of one layer, and 0 before and after the layers (mergekit, `plan.py`).
fn place(role: Role, ranges: &[Vec<(usize, usize)>]) -> Place {
    match role {
        Role::Embed => Place { slice: 0, offset: 0, t: 0.0 },
        Role::FinalNorm | Role::Head => Place { slice: ranges.len() - 1, offset: 0, t: 0.0 },
        Role::Layer(index, _) | Role::LoraA(index, _) | Role::LoraB(index, _) => {
            let mut offset = index;
            for (slice, sources) in ranges.iter().enumerate() {
                let n = sources[0].1 - sources[0].0;
                if offset < n {
                    let t = if n == 1 { 1.0 } else { offset as f64 / (n - 1) as f64 };
                    return Place { slice, offset, t };
                }
                offset -= n;
            }
            unreachable!("the result has as many layers as its slices")
        }
    }
}

/// torch's promotion over all inputs: a half type only if every tensor has it.
fn widest(models: &[PlannedModel]) -> MergeDtype {
    use aloe_model::FileDtype;
    let all = |wanted: FileDtype| {
        models.iter().all(|model| {
            let specs = model.checkpoint.specs();
            specs.iter().all(|spec| model.checkpoint.file_dtype(&spec.hf_name) == Some(wanted))
        })
    };
    match (all(FileDtype::BF16), all(FileDtype::F16)) {
        (true, _) => MergeDtype::Bfloat16,
        (_, true) => MergeDtype::Float16,
        _ => MergeDtype::Float32,
    }
}

impl MergePlan {
    /// The inputs of a tensor, opened.
    pub fn group(&self, tensor: &PlannedTensor) -> Result<Group> {
        let (models, base) = &self.slices[tensor.slice];
        let stored = models.iter().zip(&tensor.names).map(|(model, name)| self.models[*model].source(name));
        let sources = self.in_vocabulary(&tensor.spec, stored.collect::<Result<Vec<Source>>>()?, models)?;
        Ok(Group {
            name: tensor.spec.hf_name.clone(),
            shape: tensor.spec.shape.clone(),
            dtype: self.dtype,
            sources,
            base: *base,
            parameters: tensor.parameters.clone(),
            seed: self.seed,
            threads: self.threads,
        })
    }

    /// Rows of the embedding and the head in the order of the result's vocabulary.
    fn in_vocabulary(&self, spec: &TensorSpec, sources: Vec<Source>, models: &[usize]) -> Result<Vec<Source>> {
        let map = match (spec.role, &self.rows) {
            (Role::Embed, Some([first, _])) => first,
            (Role::Head, Some([_, last])) => last,
            _ => return Ok(sources),
        };
        let n_rows = |model: usize| self.models[model].checkpoint.config.vocab_size;
        if (0..sources.len()).all(|input| map.is_identity(input, n_rows(models[input]))) {
            return Ok(sources);
        }
        let n_cols = spec.shape[1];
        let moved = (0..sources.len()).map(|own| {
            let mut rows = Rows { inputs: sources.clone(), own, n_cols, map: map.clone(), padding: vec![0.0; n_cols] };
            if map.needs_padding() {
                rows.padding = rows.mean(self.dtype)?;
            }
            Ok(Source::Rows(Arc::new(rows)))
        });
        moved.collect()
    }

    /// The models that contribute to a tensor, in the order of its group.
    pub(crate) fn sources_of(&self, tensor: &PlannedTensor) -> impl Iterator<Item = &PlannedModel> {
        self.slices[tensor.slice].0.iter().map(|model| &self.models[*model])
    }

    /// Elements of the result.
    pub fn n_parameters(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.spec.n_elements() as u64).sum()
    }

    /// Bytes of the result's weights in `model/`.
    pub fn model_bytes(&self) -> u64 {
        self.n_parameters() * if self.out_dtype == MergeDtype::Float32 { 4 } else { 2 }
    }

    /// Bytes that a merge with so many threads holds: tiles of every input and a few more per thread, and what methods note per row.
    pub fn memory_bytes(&self, threads: usize) -> u64 {
        let n_inputs = self.slices.iter().map(|(models, _)| models.len()).max().unwrap_or(1) as u64;
        let (mut n_rows, mut n_cols) = (0, 0);
        for shape in self.tensors.iter().map(|tensor| &tensor.spec.shape) {
            n_rows = n_rows.max(shape[0] as u64);
            n_cols = n_cols.max(shape.last().copied().unwrap_or(0) as u64);
        }
        let tile = (TILE as u64).max(n_cols) * 4;
        let per_thread = tile * (3 * n_inputs + 8) + (3 << 20) + 40 * n_cols;
        let per_row = 8 * n_rows * (n_inputs * n_inputs + 4);
        RESIDENT + per_row + threads as u64 * per_thread
    }

    /// The threads that the budget allows.
    fn fit(&self, options: &MergeOptions) -> Result<usize> {
        let wanted = options.threads.max(1);
        match (1..=wanted).rev().find(|threads| self.memory_bytes(*threads) <= options.memory) {
            Some(threads) => Ok(threads),
            None => Err(Error::Memory { budget: options.memory, needed: self.memory_bytes(1) }),
        }
    }

    /// Bytes of the weights that will be written.
    pub(crate) fn disk_bytes(&self, options: &MergeOptions) -> u64 {
        self.model_bytes() + if options.write_master { 4 * self.n_parameters() } else { 0 }
    }

    /// Stretches of layers that the result is made of.
    pub(crate) fn n_slices(&self) -> usize {
        self.slices.len()
    }

    /// The method's name, for the table.
    pub(crate) fn method_name(&self) -> &'static str {
        self.method.name()
    }
}

/// Folders of the inputs by name, for what copies files from them.
pub(crate) fn folders(models: &[PlannedModel]) -> Vec<(&str, &Path)> {
    models.iter().map(|model| (model.name.as_str(), model.dir.as_path())).collect()
}
