//! From a configuration to opened models and the list of tensors with everything that applies to them. All that can be refused is
//! refused here, before a byte is written.
//!
//! Refuses models of another architecture or shape, tied beside untied heads, embeddings with fewer rows
//! than the result's, and tokenizers that give an id two meanings (unless the configuration says whose vocabulary holds).

use crate::config::{BaseUse, MergeConfig, MergeDtype, TensorParameters};
use crate::group::Group;
use crate::inputs::{Outline, Outlines, PlannedModel, check_architecture};
use crate::layers::{layer_ranges, place, set_layers};
use crate::source::{Rows, Source};
use crate::tokenizer_file::TokenizerFile;
use crate::vocabulary::{self, RowMap, Vocabulary};
use crate::{Error, Mistake, Result, inputs, memory, notes, special_ids, template_tokens, tokenizer};
use aloe_model::{Config, Role, TensorSpec};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

/// Budget where none is given.
pub const DEFAULT_MEMORY: u64 = 1 << 30;

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
    /// Hash the result while it is written, for [`aloe_record::hashed`]: pays where its digest is asked for afterwards.
    pub hashed: bool,
    /// Weight files of inputs, by device and inode, that are hashed while they are read, for [`aloe_record::hashed`].
    pub hash_inputs: BTreeSet<(u64, u64)>,
    /// Bytes of a file of the result at most; no effect on the weights.
    pub max_shard_bytes: u64,
    /// Folders of models by their name in the configuration; other names are paths.
    pub folders: BTreeMap<String, PathBuf>,
}

impl Default for MergeOptions {
    fn default() -> Self {
        let folders = BTreeMap::new();
        Self {
            seed: 0,
            threads: 1,
            memory: DEFAULT_MEMORY,
            write_master: false,
            read_master: true,
            hashed: false,
            hash_inputs: BTreeSet::new(),
            max_shard_bytes: aloe_model::writer::MAX_SHARD_BYTES,
            folders,
        }
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
    /// The plans of earlier documents whose results are not there yet, in the order they are merged.
    pub earlier: Vec<MergePlan>,
    /// The tokenizer's files of the result, by name.
    pub(crate) files: Vec<(String, Vec<u8>)>,
    /// What tokenizers take while the plan is made.
    pub(crate) tokenizer_bytes: u64,
    /// The embedding's rows and the head's, where a vocabulary was asked for.
    pub(crate) rows: Option<[Arc<RowMap>; 2]>,
    pub(crate) slices: Vec<PlannedSlice>,
    /// The names of the models to their masks; of one that is not merged, as written.
    pub(crate) mask_names: Vec<String>,
    /// The name of the document, part of what keys the masks.
    pub(crate) document: Option<String>,
    pub(crate) seed: u64,
    pub(crate) method: crate::config::Method,
}

/// The inputs of a slice.
pub(crate) struct PlannedSlice {
    /// Indices of [`MergePlan::models`].
    pub(crate) models: Vec<usize>,
    /// Which of them differences are taken to, where the method does so.
    pub(crate) base: Option<usize>,
    /// Which of them is the base model, whatever the method does with it.
    pub(crate) reference: Option<usize>,
}

/// Opens the models and resolves the configuration for every tensor, of earlier documents first: what uses their results is checked
/// against what they will be.
pub fn plan(config: &MergeConfig, options: &MergeOptions) -> Result<MergePlan> {
    let (mut earlier, mut outlines) = (Vec::new(), Outlines::new());
    for document in &config.earlier {
        let name = document.name.clone().unwrap_or_default();
        if !options.folders.contains_key(&name) {
            let planned = of_document(document, options, &outlines)?;
            outlines.insert(name, Outline::of(&planned));
            earlier.push(planned);
        }
    }
    let mut planned = of_document(config, options, &outlines)?;
    planned.earlier = earlier;
    Ok(planned)
}

/// The plan of one document.
fn of_document(config: &MergeConfig, options: &MergeOptions, outlines: &Outlines) -> Result<MergePlan> {
    let models = inputs::open_all(config, options, outlines)?;
    let leader = config.base.unwrap_or(0);
    let mut out_config = models[leader].config.clone();
    let mut notes = config.notes.clone();
    for model in models.iter().filter(|model| !model.gives_tokenizer_only()) {
        check_architecture(&out_config, &models[leader].name, model, &mut notes)?;
        notes.extend(model.base_note()?);
    }
    let vocabulary = vocabulary::build(config, &models, &mut notes)?;
    let shortened = match &vocabulary {
        Some(vocabulary) => {
            set_vocabulary(&mut out_config, vocabulary, &models, leader, &mut notes)?;
            None
        }
        None => compare_vocabularies(&models, leader, out_config.vocab_size, &mut notes)?,
    };
    let ranges = layer_ranges(config, &models)?;
    set_layers(&mut out_config, ranges.iter().map(|slice| slice[0].1 - slice[0].0).sum());
    let tensors = tensors(config, &models, &out_config, &ranges)?;
    let rows = vocabulary.as_ref().map(|vocabulary| row_maps(config, vocabulary)).transpose()?;
    if let (Some(vocabulary), Some(maps)) = (&vocabulary, &rows) {
        notes.extend(vocabulary.row_notes(config, maps, out_config.tie_word_embeddings));
    }
    let dtype = config.dtype.unwrap_or_else(|| widest(&models));
    let tokenizer = vocabulary.as_ref().map_or(leader, |vocabulary| vocabulary.donor);
    let mut files = tokenizer::files(&models, tokenizer, config, &mut notes)?;
    if let Some(file) = &shortened {
        tokenizer::put_vocabulary(&mut files, file, &mut notes)?;
    }
    if let Some(vocabulary) = &vocabulary {
        tokenizer::put_vocabulary(&mut files, &vocabulary.file, &mut notes)?;
        special_ids::in_generation_config(&mut files, vocabulary, leader)?;
        if tokenizer != leader {
            special_ids::end_in_generation_config(&mut files, &out_config.eos_token_ids)?;
        }
    }
    if config.chat_template.is_some() {
        template_tokens::settle(&mut files, &mut out_config, &mut notes)?;
    }
    let uses_base = config.method.base_use() != BaseUse::Ignored;
    let slices = config.slices.iter().map(|slice| PlannedSlice {
        models: slice.sources.iter().map(|source| source.model).collect(),
        base: slice.base.filter(|_| uses_base),
        reference: slice.base,
    });
    let tokenizer_bytes = match &vocabulary {
        Some(vocabulary) => memory::tokenizer_bytes(&models, vocabulary),
        None => memory::compared_bytes(&models, leader, shortened.is_some()),
    };
    let mut plan = MergePlan {
        base: config.base,
        dtype,
        out_dtype: config.out_dtype.unwrap_or(dtype),
        tokenizer,
        tensors,
        notes,
        threads: 1,
        earlier: Vec::new(),
        files,
        tokenizer_bytes,
        rows,
        slices: slices.collect(),
        mask_names: config.mask_names(),
        document: config.name.clone(),
        seed: options.seed,
        method: config.method,
        config: out_config,
        models,
    };
    plan.threads = plan.fit(options)?;
    let more = notes::of_plan(config, &plan)?;
    plan.notes.extend(more);
    Ok(plan)
}

fn set_vocabulary(
    out: &mut Config,
    vocabulary: &Vocabulary,
    models: &[PlannedModel],
    leader: usize,
    notes: &mut Vec<String>,
) -> Result<()> {
    if out.vocab_size != vocabulary.n_rows {
        notes.push(format!(
            "the embedding has {} rows for the tokens of the chosen tokenizer; that of {} has {}",
            vocabulary.n_rows, models[leader].name, out.vocab_size
        ));
    }
    out.vocab_size = vocabulary.n_rows;
    special_ids::in_config(out, vocabulary, models, leader, notes)
}

/// Without a chosen vocabulary, rows stay where they are: extra rows at the end are left out, and ids must mean the same.
fn compare_vocabularies(
    models: &[PlannedModel],
    leader: usize,
    n_rows: usize,
    notes: &mut Vec<String>,
) -> Result<Option<TokenizerFile>> {
    for model in models.iter().filter(|model| model.config.vocab_size > n_rows) {
        let found = model.config.vocab_size;
        notes.push(format!(
            "the embedding of {} has {found} rows; those after the first {n_rows} are left out",
            model.name
        ));
    }
    tokenizer::compare(models, leader, notes)
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

/// The tensors of the result with what applies to each.
pub(crate) fn tensors(
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

/// torch's promotion over all inputs: a half type only if every tensor has it.
fn widest(models: &[PlannedModel]) -> MergeDtype {
    use aloe_model::FileDtype;
    let all = |wanted: FileDtype| {
        models.iter().all(|model| {
            let specs = model.specs();
            specs.iter().all(|spec| model.file_dtype(&spec.hf_name) == Some(wanted))
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
        let slice = &self.slices[tensor.slice];
        let padded = self.sources(tensor)?.into_iter().map(|source| source.padded(self.dtype));
        let sources = padded.collect::<Result<Vec<Source>>>()?;
        Ok(Group {
            name: tensor.spec.hf_name.clone(),
            shape: tensor.spec.shape.clone(),
            dtype: self.dtype,
            sources,
            base: slice.base,
            reference: slice.reference,
            parameters: tensor.parameters.clone(),
            seed: self.seed,
            mask_keys: self.mask_keys(slice),
            threads: self.threads,
        })
    }

    /// Who each input of a slice is to its masks.
    fn mask_keys(&self, slice: &PlannedSlice) -> Vec<String> {
        let key = |model: &usize| crate::mask_key(self.document.as_deref(), &self.mask_names[*model]);
        slice.models.iter().map(key).collect()
    }

    /// The inputs of a tensor, opened; rows that pad the vocabulary are zeros.
    pub(crate) fn sources(&self, tensor: &PlannedTensor) -> Result<Vec<Source>> {
        let models = &self.slices[tensor.slice].models;
        let stored = models.iter().zip(&tensor.names).map(|(model, name)| self.models[*model].source(name));
        Ok(self.in_vocabulary(&tensor.spec, stored.collect::<Result<Vec<Source>>>()?, models))
    }

    /// Where the rows of the embedding or the head come from, where a vocabulary was asked for.
    pub(crate) fn row_map(&self, spec: &TensorSpec) -> Option<&Arc<RowMap>> {
        match (spec.role, &self.rows) {
            (Role::Embed, Some([first, _])) => Some(first),
            (Role::Head, Some([_, last])) => Some(last),
            _ => None,
        }
    }

    /// Rows of the embedding and the head in the order of the result's vocabulary.
    fn in_vocabulary(&self, spec: &TensorSpec, sources: Vec<Source>, models: &[usize]) -> Vec<Source> {
        let Some(map) = self.row_map(spec) else { return sources };
        let n_rows = |model: usize| self.models[model].config.vocab_size;
        if (0..sources.len()).all(|input| map.is_identity(input, n_rows(models[input]))) {
            return sources;
        }
        let n_cols = spec.shape[1];
        let moved = (0..sources.len()).map(|own| {
            let rows = Rows { inputs: sources.clone(), own, n_cols, map: map.clone(), padding: vec![0.0; n_cols] };
            Source::Rows(Arc::new(rows))
        });
        moved.collect()
    }

    /// The models that contribute to a tensor, in the order of its group.
    pub(crate) fn sources_of(&self, tensor: &PlannedTensor) -> impl Iterator<Item = &PlannedModel> {
        self.slices[tensor.slice].models.iter().map(|model| &self.models[*model])
    }

    /// Elements of the result.
    pub fn n_parameters(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.spec.n_elements() as u64).sum()
    }

    /// Bytes of the result's weights in `model/`.
    pub fn model_bytes(&self) -> u64 {
        self.n_parameters() * if self.out_dtype == MergeDtype::Float32 { 4 } else { 2 }
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
