//! LoRA for both stages: its settings, the base it runs over, what it refuses, and the adapter and merged model that it hands over.
//!
//! Only the updates (and, if asked for, embedding and head) have masters, moments and gradients. They are merged in f32 into the base
//! as it was trained on, 8-bit weights dequantised, and rounded once; how far the merged bf16 model's logits lie from those of base and
//! adapter is measured and reported.

use crate::export::{ExportReport, write_folders};
use crate::learner::Learner;
use crate::settings::{TrainDtype, is_positive};
use crate::{Error, Result};
use aloe_model::lora::{LORA_TARGETS, untrained_rows, write_adapter};
use aloe_model::{
    Config, Decoder, LoraShape, ModelSource, PackedBatch, Params, Part, Role, TensorSpec, WeightFormat, arch,
};
use aloe_record::atomic::OutputDir;
use aloe_tensor::{Device, DropoutAt, Dtype, LoraDropout, Tensor};
use aloe_text::TextModel;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

/// A matrix that gets an update in every layer, by PEFT's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names are the checkpoint's own")]
pub enum LoraTarget {
    QProj,
    KProj,
    VProj,
    OProj,
    GateProj,
    UpProj,
    DownProj,
}

/// How the frozen weights are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoraBase {
    /// In the stage's dtype.
    #[default]
    Dense,
    /// Rounded to 8-bit blocks (Q8_0) on load; activations enter their products as int8 blocks, gradients flow in bf16.
    Q8,
}

/// Settings of LoRA; absent ones have the values of `Default`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// Inner size of the updates.
    pub rank: usize,
    /// Updates are scaled by `alpha / rank`.
    pub alpha: f64,
    /// Matrices of each layer that get one.
    pub targets: Vec<LoraTarget>,
    /// Share of an update's inputs dropped while training.
    pub dropout: f32,
    /// How the frozen weights are held.
    pub base: LoraBase,
    /// Whether embedding and head are trained too, whole (PEFT's `modules_to_save`).
    pub train_embeddings: bool,
}

impl Default for LoraConfig {
    fn default() -> Self {
        use LoraTarget::*;
        let targets = vec![QProj, KProj, VProj, OProj, GateProj, UpProj, DownProj];
        Self { rank: 16, alpha: 32.0, targets, dropout: 0.0, base: LoraBase::Dense, train_embeddings: false }
    }
}

impl LoraTarget {
    fn part(self) -> Part {
        LORA_TARGETS[self as usize].1
    }

    fn name(self) -> &'static str {
        LORA_TARGETS[self as usize].0
    }
}

/// More than any matrix has rows or columns, and little enough to be counted with before the model is known.
const MOST_RANK: usize = 1 << 16;

impl LoraConfig {
    /// All mistakes, each with the field's name.
    pub(crate) fn mistakes(&self, dtype: TrainDtype) -> Vec<String> {
        let mut mistakes = Vec::new();
        let mut need = |holds: bool, text: &str| {
            if !holds {
                mistakes.push(text.to_owned());
            }
        };
        need(
            (1..=MOST_RANK).contains(&self.rank),
            "lora.rank must be 1 to 65536, at most the smaller side of each matrix of lora.targets",
        );
        need(is_positive(self.alpha), "lora.alpha must be above 0, as a number of f32 too");
        need(!self.targets.is_empty(), "lora.targets must name a matrix, such as \"q_proj\"");
        let repeated = self.targets.iter().enumerate().any(|(at, target)| self.targets[..at].contains(target));
        need(!repeated, "lora.targets names a matrix twice");
        need((0.0..1.0).contains(&self.dropout), "lora.dropout must be in 0..1");
        let fits = self.base == LoraBase::Dense || dtype == TrainDtype::Bf16;
        need(fits, "lora.base = \"q8\" computes in bf16 and 8 bits: it cannot be combined with dtype = \"f32\"");
        mistakes
    }

    /// What is wrong with the rank for a model of these sizes: updates of more dimensions than a matrix has hold nothing that the matrix
    /// itself could not.
    pub fn rank_mistake(&self, model: &Config) -> Option<String> {
        let table = arch::tensors(model);
        let of_target = |target: &LoraTarget| {
            let is_target = |spec: &&TensorSpec| matches!(spec.role, Role::Layer(0, part) if part == target.part());
            table.iter().find(is_target).map(|spec| (*target, spec))
        };
        let side = |spec: &TensorSpec| spec.shape.iter().copied().min().unwrap_or(0);
        let (target, spec) = self.targets.iter().filter_map(of_target).min_by_key(|(_, spec)| side(spec))?;
        let (rank, name, side) = (self.rank, target.name(), side(spec));
        (rank > side).then(|| {
            format!(
                "lora.rank = {rank} is larger than the smaller side of {} ({} x {}): set it to {side} or less, or leave {name} out of \
                 lora.targets",
                spec.hf_name, spec.shape[0], spec.shape[1]
            )
        })
    }

    /// Which tensors are trained.
    pub fn shape(&self) -> LoraShape {
        let targets = self.targets.iter().map(|target| target.part()).collect();
        LoraShape { rank: self.rank, alpha: self.alpha, targets, embeddings: self.train_embeddings }
    }

    /// What tells the start model as it computes here from the same weights in the stage's dtype.
    pub(crate) fn start_name(&self) -> String {
        match self.base {
            LoraBase::Dense => "copies ".into(),
            LoraBase::Q8 if self.train_embeddings => "q8 layers ".into(),
            LoraBase::Q8 => "q8 ".into(),
        }
    }

    /// How the base is loaded.
    pub(crate) fn format(&self, dtype: TrainDtype) -> WeightFormat {
        match self.base {
            LoraBase::Dense => WeightFormat::Dense(dtype.tensor()),
            LoraBase::Q8 => WeightFormat::Q8,
        }
    }
}

/// The decoder that a stage starts from: what its learner computes with before the first step.
pub(crate) fn start_decoder(
    source: &ModelSource,
    lora: Option<&LoraConfig>,
    seed: u64,
    dtype: TrainDtype,
    device: &Device,
) -> Result<Decoder> {
    match lora {
        None => Ok(Decoder::from_params(&Params::load(source)?, dtype.tensor(), device)),
        Some(_) => Ok(open_learner(source, lora, seed, dtype, device)?.decoder().clone()),
    }
}

/// The learner of a stage: of all weights, or of what LoRA trains.
pub(crate) fn open_learner(
    source: &ModelSource,
    lora: Option<&LoraConfig>,
    seed: u64,
    dtype: TrainDtype,
    device: &Device,
) -> Result<Learner> {
    let Some(config) = lora else { return Learner::load(source, dtype.tensor(), device) };
    let masters = config.shape().start(source, seed)?;
    let base = Decoder::open_to_train(source, config.format(dtype), device)?;
    Ok(with_updates(base, masters, config, seed))
}

/// A learner of `masters` beside the weights of `base`.
pub(crate) fn with_updates(mut base: Decoder, masters: Params, config: &LoraConfig, seed: u64) -> Learner {
    let at = Arc::new(DropoutAt::default());
    let dropout = |module: u64| {
        let drops = config.dropout > 0.0;
        drops.then(|| LoraDropout { share: config.dropout, seed, module, at: at.clone() })
    };
    base.attach_lora(&config.shape(), &masters, &dropout);
    Learner::over(masters, base, Some(at))
}

/// Control tokens of the training rows: all of them, and those that are trained on.
#[derive(Default)]
pub(crate) struct ControlIds {
    read: BTreeSet<u32>,
    trained: BTreeSet<u32>,
}

impl ControlIds {
    /// Notes the control tokens among `ids`.
    pub(crate) fn add(&mut self, text: &TextModel, ids: impl IntoIterator<Item = u32>, trained: bool) {
        let control = ids.into_iter().filter(|&id| text.tokenizer.is_control(id));
        match trained {
            true => self.trained.extend(control),
            false => self.read.extend(control),
        }
    }
}

/// Refuses LoRA with a frozen embedding whose rows for the chat template's tokens no training has touched.
pub(crate) fn refuse_untrained(
    lora: Option<&LoraConfig>,
    source: &ModelSource,
    text: &TextModel,
    ids: &ControlIds,
) -> Result<()> {
    if lora.is_none_or(|lora| lora.train_embeddings) {
        return Ok(());
    }
    let found = untrained_rows(source, &ids.read, &ids.trained)?;
    if found.is_empty() {
        return Ok(());
    }
    let shown: Vec<String> = found
        .iter()
        .map(|row| {
            let token = text.tokenizer.token(row.id).unwrap_or_default();
            format!("{token} ({}) in {}: {}", row.id, row.tensor, row.reason)
        })
        .collect();
    let reason = format!(
        "the start model has untrained rows for tokens of the chat template, which LoRA leaves as they are: {}; set \
         lora.train_embeddings = true, or name a chat_template whose tokens the model knows, or start from a model that was trained \
         with this template",
        shown.join("; ")
    );
    Err(Error::Data { what: source.path.display().to_string(), reason })
}

/// What LoRA trained, and what merging its updates changes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LoraReport {
    /// Weights trained.
    pub n_trained: u64,
    /// Weights of the model.
    pub n_model: u64,
    /// How the base was held: f32, bf16 or q8.
    pub base: String,
    /// Mean difference of a logit between the bf16 export and base with adapter, without sign.
    pub logit_difference_mean: f64,
    /// The largest such difference.
    pub logit_difference_max: f64,
    /// Mean size of the logits compared, without sign.
    pub logit_size_mean: f64,
    /// Share of the compared positions whose most probable token is the same.
    pub same_argmax_share: f64,
    /// Positions compared, over the whole vocabulary each.
    pub n_positions: usize,
}

/// Where a stage's weights come from.
pub(crate) struct Start<'a> {
    pub(crate) source: &'a ModelSource,
    pub(crate) digest: &'a str,
    pub(crate) text: &'a TextModel,
    /// The folder as the user named it.
    pub(crate) named: &'a Path,
}

/// Writes `out/model`, `out/master` and with LoRA `out/adapter`; `probe` is the row whose logits are compared. Where that fails, nothing of
/// them stays: a part of a model is of no use to the next try, and the room that it takes may be what was missing.
pub(crate) fn hand_over(
    learner: Learner,
    lora: Option<(&LoraConfig, TrainDtype)>,
    start: &Start<'_>,
    probe: &[u32],
    out: &Path,
) -> Result<(ExportReport, Option<LoraReport>)> {
    let done = write_all(learner, lora, start, probe, out);
    if done.is_err() {
        for name in ["model", "master", "adapter"] {
            let target = out.join(name);
            let _ = std::fs::remove_dir_all(&target);
            let _ = OutputDir::discard(&target);
        }
    }
    done
}

fn write_all(
    learner: Learner,
    lora: Option<(&LoraConfig, TrainDtype)>,
    start: &Start<'_>,
    probe: &[u32],
    out: &Path,
) -> Result<(ExportReport, Option<LoraReport>)> {
    let config = &learner.params().config;
    let Some((settings, dtype)) = lora else {
        let export = write_folders(config, start.text, out, &mut |spec| {
            let end = learner.params().role(spec.role).expect("every weight is trained").clone();
            Ok((start.source.load(&spec.hf_name, Dtype::F32)?, end))
        })?;
        return Ok((export, None));
    };
    let (shape, masters, decoder) = (settings.shape(), learner.params(), learner.decoder());
    let adapter = out.join("adapter");
    write_adapter(&adapter, &shape, settings.dropout, masters, &base_name(start.named), start.digest)?;
    let before = probe_logits(decoder, probe)?;
    let export = write_folders(config, start.text, out, &mut |spec| {
        let base = base_weight(settings, decoder, start.source, spec)?;
        Ok((base.clone(), shape.merged(masters, spec, base)?))
    })?;
    let mut report = LoraReport {
        n_trained: masters.tensors().iter().map(|tensor| tensor.len() as u64).sum(),
        n_model: config.n_parameters() as u64,
        base: settings.format(dtype).name().to_owned(),
        ..LoraReport::default()
    };
    let device = decoder.device.clone();
    // An 8B model fits beside no second one.
    drop(learner);
    let merged = Decoder::open(&ModelSource::open(&out.join("model"))?, dtype.tensor(), &device)?;
    report.compare(&before, &probe_logits(&merged, probe)?);
    Ok((export, Some(report)))
}

/// Writes `out/adapter`, `out/model` and `out/master` of a stage whose updates another program trained beside the f32 weights in `start`;
/// `trained` holds them as PEFT's adapter. The caller has checked both. `text` is written beside the weights.
pub fn hand_back_adapter(
    start: &Path,
    trained: &Path,
    settings: &LoraConfig,
    text: &TextModel,
    out: &Path,
) -> Result<ExportReport> {
    let (source, shape) = (ModelSource::open(start)?, settings.shape());
    let masters = shape.read(source.config(), trained)?;
    let adapter = out.join("adapter");
    write_adapter(&adapter, &shape, settings.dropout, &masters, &base_name(start), &source.digest()?)?;
    write_folders(source.config(), text, out, &mut |spec| {
        let base = source.load(&spec.hf_name, Dtype::F32)?;
        Ok((base.clone(), shape.merged(&masters, spec, base)?))
    })
}

/// A weight of the base as it was trained on, in f32: 8-bit blocks dequantised, others as the start model has them.
fn base_weight(settings: &LoraConfig, decoder: &Decoder, source: &ModelSource, spec: &TensorSpec) -> Result<Tensor> {
    let is_kept_whole = settings.train_embeddings && matches!(spec.role, Role::Embed | Role::Head);
    match decoder.weights.matrix(spec.role) {
        Some(linear) if linear.block_format().is_some() && !is_kept_whole => Ok(linear.weight()),
        _ => Ok(source.load(&spec.hf_name, Dtype::F32)?),
    }
}

/// The last folder of a path that is not the `model` or `master` inside a stage's folder.
fn base_name(start: &Path) -> String {
    let is_part = |name: &std::ffi::OsStr| name == "model" || name == "master";
    let named = start.ancestors().filter_map(Path::file_name).find(|name| !is_part(name));
    named.or(start.file_name()).unwrap_or_default().to_string_lossy().into_owned()
}

/// Positions whose logits are compared.
const PROBED: usize = 64;

/// Logits `[R, V]` at the last positions of a row, with the vocabulary's size.
fn probe_logits(decoder: &Decoder, ids: &[u32]) -> Result<(Vec<f32>, usize)> {
    let hidden = decoder.hidden(&PackedBatch::from_documents(&[ids]))?;
    let rows: Vec<usize> = (ids.len().saturating_sub(PROBED)..ids.len()).collect();
    Ok((decoder.logits(&hidden.gather_rows(&rows)).to_f32_vec(), decoder.config.vocab_size))
}

impl LoraReport {
    fn compare(&mut self, (before, vocab_size): &(Vec<f32>, usize), (after, _): &(Vec<f32>, usize)) {
        let differences = || before.iter().zip(after).map(|(a, b)| f64::from((a - b).abs()));
        let n = before.len().max(1) as f64;
        self.logit_difference_mean = differences().sum::<f64>() / n;
        self.logit_difference_max = differences().fold(0.0, f64::max);
        self.logit_size_mean = before.iter().map(|value| f64::from(value.abs())).sum::<f64>() / n;
        self.n_positions = before.len() / vocab_size;
        let argmax = |row: &[f32]| row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(at, _)| at);
        let rows = before.chunks(*vocab_size).zip(after.chunks(*vocab_size));
        let n_same = rows.filter(|(a, b)| argmax(a) == argmax(b)).count();
        self.same_argmax_share = n_same as f64 / self.n_positions.max(1) as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_is_named_by_its_stage_and_not_by_the_part_of_it_that_was_read() {
        for (path, name) in [("runs/x/sft/master", "sft"), ("models/smollm2", "smollm2"), ("a/b.gguf", "b.gguf")] {
            assert_eq!(base_name(Path::new(path)), name);
        }
    }

    #[test]
    fn targets_are_named_as_peft_names_them_and_mistakes_are_all_found() {
        for (at, target) in LoraConfig::default().targets.iter().enumerate() {
            assert_eq!(serde_json::to_value(target).unwrap(), LORA_TARGETS[at].0);
        }
        let wrong = LoraConfig {
            rank: 0,
            alpha: f64::NAN,
            targets: vec![LoraTarget::QProj, LoraTarget::QProj],
            dropout: 1.0,
            base: LoraBase::Q8,
            train_embeddings: false,
        };
        assert_eq!(wrong.mistakes(TrainDtype::F32).len(), 5);
        assert!(LoraConfig::default().mistakes(TrainDtype::F32).is_empty());
        let endless = LoraConfig { rank: usize::MAX, ..LoraConfig::default() };
        assert_eq!(endless.mistakes(TrainDtype::F32).len(), 1);
    }

    /// The tiny Llama: hidden 64, 2 key/value heads of 16, so k_proj and v_proj are 32 x 64 and all others 64 or 96 wide.
    #[test]
    fn a_rank_above_the_smaller_side_of_a_target_is_refused_by_the_matrix_and_its_size() {
        use LoraTarget::*;
        let model = aloe_model::testing::tiny_random(aloe_model::testing::Tiny::Llama, 0).config;
        let of = |rank, targets: Vec<LoraTarget>| LoraConfig { rank, targets, ..LoraConfig::default() };
        assert_eq!(of(32, vec![QProj, KProj, DownProj]).rank_mistake(&model), None);
        assert_eq!(of(64, vec![QProj, DownProj]).rank_mistake(&model), None);
        let told = of(33, vec![QProj, KProj, DownProj]).rank_mistake(&model).unwrap();
        let expected = "lora.rank = 33 is larger than the smaller side of model.layers.0.self_attn.k_proj.weight (32 x 64): set it to 32 or less";
        assert!(told.starts_with(expected), "{told}");
        assert!(of(65, vec![DownProj]).rank_mistake(&model).unwrap().contains("down_proj.weight (64 x 96)"));
    }

    #[test]
    fn logit_differences_are_as_worked_by_hand() {
        let mut report = LoraReport::default();
        // Differences 0.5, 0, 1, 0.5: mean 0.5; sizes 1, 2, 3, 0: mean 1.5; the second row's largest moves.
        report.compare(&(vec![1.0, 2.0, 3.0, 0.0], 2), &(vec![1.5, 2.0, -2.0 + 4.0, 2.5 - 3.0 + 1.0], 2));
        assert_eq!((report.logit_difference_mean, report.logit_difference_max), (0.5, 1.0));
        assert_eq!((report.logit_size_mean, report.n_positions, report.same_argmax_share), (1.5, 2, 1.0));
    }
}
