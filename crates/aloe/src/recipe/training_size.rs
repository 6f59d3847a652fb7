//! The size of a training stage: exact where its rows are written, encoded and packed as the stage will, which also finds what the stage would
//! refuse; else an estimate.
//!
//! A refusal is a mistake of the recipe where rows, tokenizer, template and settings are those that the run will read. Where one of them is
//! yet to be made, another one stands in for it: then it is a notice, and the size stays the estimate. Rows of more than 32 MiB are not
//! encoded for a plan.

use super::checked::{Input, Recipe, Stage};
use super::plan::{Known, at_hand, input};
use super::stage_config::StageConfig;
use crate::commands::run::inputs_of;
use crate::commands::{open_text, rows, stages};
use crate::stage::{Context, Job, TaskFiles, made_on, model_of};
use aloe_model::{Config, ModelSource};
use aloe_record::Cancel;
use aloe_tensor::Isa;
use aloe_text::TextModel;
use aloe_train::{DpoConfig, DpoInputs, DpoSize, LoraConfig, SftConfig, SftInputs, SftSize, dpo_size, sft_size};
use std::path::{Path, PathBuf};

/// Larger files of rows are not encoded whole.
const LARGEST_BYTES: u64 = 32 << 20;

/// Tokenizer, chat template and sizes of a model.
#[derive(Clone)]
pub(super) struct Rendering {
    text: TextModel,
    model: Config,
    /// Whether a run will find these, and not those of a model that is made by then.
    is_its_own: bool,
}

impl Rendering {
    /// That of a model folder or file; `None` where there is none.
    fn open(path: &Path, is_its_own: bool) -> Option<Self> {
        let text = open_text(path).ok()?;
        let mut model = ModelSource::open(&model_of(path)).ok()?.config().clone();
        if !is_its_own {
            // Its own limits say nothing of the model that it stands in for.
            (model.vocab_size, model.max_position_embeddings) = (usize::MAX, usize::MAX);
        }
        Some(Self { text, model, is_its_own })
    }

    fn with_template(self, name: Option<&str>) -> Result<Self, String> {
        let Some(name) = name else { return Ok(self) };
        let text = self.text.with_template(name).map_err(|error| error.to_string())?;
        Ok(Self { text, ..self })
    }
}

/// What a plan finds that a run would refuse.
#[derive(Clone)]
pub(super) struct Refusal {
    /// What is wrong, in the words of the run.
    pub(super) text: String,
    /// Whether the run will find it too.
    pub(super) is_certain: bool,
}

/// What is known of a training stage before it is run.
pub(super) enum Checked {
    Sft(SftSize),
    Dpo(DpoSize),
    Refused(Refusal),
    /// Its rows or all models like its own are yet to be made, or there are too many rows for a plan.
    Unknown,
}

impl Checked {
    /// What the run would refuse.
    pub(super) fn refusal(self) -> Option<Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }
}

/// How the model that a stage makes renders rows: a local source as it stands, one from elsewhere as it was fetched; training keeps vocabulary
/// and sizes and may change the template. What a merge takes over shows when it is made. `is_done`: whether `folder` holds what the stage as
/// written makes.
pub(super) fn made_by(
    stage: &Stage,
    known: &[Known],
    folder: &Path,
    is_done: bool,
    stand_in: Option<&Path>,
) -> Option<Rendering> {
    match &stage.config {
        StageConfig::Pull(config) => Rendering::open(Path::new(&config.source), true)
            .or_else(|| Rendering::open(folder, true).filter(|_| is_done)),
        StageConfig::Sft(_) | StageConfig::Dpo(_) => {
            start_of(stage, known, stand_in)?.with_template(template_of(stage)).ok()
        }
        _ => None,
    }
}

/// How the model that a training stage starts from renders rows; of one that is yet to be made, a model that is at hand stands in.
fn start_of(stage: &Stage, known: &[Known], stand_in: Option<&Path>) -> Option<Rendering> {
    let start = input(stage, "model")?;
    let own = match start {
        Input::Stage(at) => known.get(*at)?.rendering.clone(),
        Input::Path(path) => Rendering::open(path, true),
    };
    let like_it = || at_hand(start, known).or(stand_in.map(Path::to_path_buf));
    own.or_else(|| Rendering::open(&like_it()?, false))
}

fn template_of(stage: &Stage) -> Option<&str> {
    match &stage.config {
        StageConfig::Sft(config) => config.chat_template.as_deref(),
        StageConfig::Dpo(config) => config.chat_template.as_deref(),
        _ => None,
    }
}

fn lora_of(stage: &Stage) -> Option<&LoraConfig> {
    match &stage.config {
        StageConfig::Sft(config) => config.lora.as_ref(),
        StageConfig::Dpo(config) => config.lora.as_ref(),
        _ => None,
    }
}

/// The size of a training stage over the rows in `written`, or why it would not begin; a finished one that is not made anew is not refused.
/// `out` is where finished stages lie, `stand_in` a model that renders rows in the place of one that is yet to be made.
pub(super) fn checked(
    recipe: &Recipe,
    stage: &Stage,
    known: &[Known],
    stand_in: Option<&Path>,
    written: Option<&Path>,
    out: &Path,
) -> Checked {
    // What a stage trains is rendered with the template of the model it starts from, which may be one that an earlier stage was given.
    let Some(start) = start_of(stage, known, stand_in) else { return Checked::Unknown };
    let is_its_own = start.is_its_own;
    match sized(stage, start, written) {
        Ok(size) => size,
        Err(_) if is_current(recipe, stage, out) => Checked::Unknown,
        Err((text, is_of_rows)) => {
            let is_certain = is_its_own && (!is_of_rows || are_final(recipe, stage, out));
            Checked::Refused(Refusal { text, is_certain })
        }
    }
}

/// The size, or what is wrong and whether rows decide it.
fn sized(stage: &Stage, start: Rendering, written: Option<&Path>) -> Result<Checked, (String, bool)> {
    let of_model = |text: String| (text, false);
    let rank = lora_of(stage).filter(|_| start.is_its_own).and_then(|lora| lora.rank_mistake(&start.model));
    rank.map_or(Ok(()), |mistake| Err(of_model(mistake)))?;
    let start = start.with_template(template_of(stage)).map_err(of_model)?;
    start.text.check_end_of_turn().map_err(|error| of_model(error.to_string()))?;
    let Some(path) = written.filter(|path| is_small(path)) else { return Ok(Checked::Unknown) };
    let size = match &stage.config {
        StageConfig::Sft(config) => packed(config, path, &start).map(Checked::Sft),
        StageConfig::Dpo(config) => paired(config, path, &start).map(Checked::Dpo),
        _ => return Ok(Checked::Unknown),
    };
    size.map_err(|error| (format!("{error:#}"), true))
}

/// Whether rows are there and few enough to be encoded whole. A folder without rows is looked at: the run refuses it.
fn is_small(path: &Path) -> bool {
    let file = if path.is_dir() { path.join("train.jsonl") } else { path.to_path_buf() };
    path.exists() && file.metadata().map_or(true, |file| file.len() <= LARGEST_BYTES)
}

fn packed(config: &SftConfig, path: &Path, start: &Rendering) -> anyhow::Result<SftSize> {
    let rows = rows::conversations(path)?;
    let inputs = SftInputs { start: PathBuf::new(), rows: rows.train, held_out: rows.held_out };
    Ok(sft_size(config, inputs, &start.text, &start.model)?)
}

fn paired(config: &DpoConfig, path: &Path, start: &Rendering) -> anyhow::Result<DpoSize> {
    let rows = rows::pairs(path)?;
    let inputs = DpoInputs { start: PathBuf::new(), rows: rows.train, held_out: rows.held_out };
    Ok(dpo_size(config, inputs, &start.text, &start.model)?)
}

/// Whether a run reads the rows as they stand: a file's, or those of a data stage that is not made anew (its sources are hashed for that).
fn are_final(recipe: &Recipe, stage: &Stage, out: &Path) -> bool {
    match input(stage, "data") {
        Some(Input::Path(_)) => true,
        Some(Input::Stage(at)) => is_current(recipe, &recipe.stages[*at], out),
        None => false,
    }
}

/// Whether a stage is done and would not be made anew.
fn is_current(recipe: &Recipe, stage: &Stage, out: &Path) -> bool {
    let folder = out.join(&stage.name);
    let isa = || -> anyhow::Result<Option<Isa>> {
        let context =
            Context { seed: recipe.seed, threads: 1, dtype: recipe.dtype, servers: None, cancel: Cancel::default() };
        let job = Job {
            kind: stage.config.kind(),
            name: &stage.name,
            written: stage.written.clone(),
            used: stage.config.used()?,
            inputs: &inputs_of(recipe, stage, out)?,
            extra_files: stages::extra_files(&stage.config),
            // Data and training stages read no benchmarks by task.
            task_files: TaskFiles::new(),
            out: &folder,
        };
        made_on(&context, &job)
    };
    folder.join("record.json").is_file() && isa().is_ok_and(|isa| isa.is_some())
}

/// A preference stage of about `rows` pairs, yet to be made, that has more chunks than that.
fn too_few(config: &DpoConfig, rows: u64) -> Option<Refusal> {
    let text = format!("about {rows} pairs for {} chunks: a chunk without a pair is refused", config.chunks);
    (rows < config.chunks as u64).then_some(Refusal { text, is_certain: false })
}

/// A supervised stage's steps and tokens: exact where its rows were encoded.
pub(super) fn of_sft(config: &SftConfig, known: Known, checked: Checked) -> Known {
    match checked {
        Checked::Sft(size) => Known {
            rows: Some(size.n_rows),
            steps: Some(size.n_steps),
            epoch_tokens: Some(size.n_tokens),
            tokens: Some(size.n_trained),
            ..known
        },
        other => {
            let (steps, trained) = known.tokens.map(|tokens| trained(config, tokens)).unzip();
            Known { steps, epoch_tokens: known.tokens, tokens: trained, refusal: other.refusal(), ..known }
        }
    }
}

/// The same of a preference stage.
pub(super) fn of_dpo(config: &DpoConfig, known: Known, checked: Checked) -> Known {
    match checked {
        Checked::Dpo(size) => Known {
            rows: Some(size.n_pairs),
            steps: Some(size.n_steps),
            epoch_tokens: Some(size.n_tokens),
            tokens: Some(size.n_trained),
            largest: Some(size.n_largest),
            ..known
        },
        other => {
            let steps = known.rows.map(|rows| preference_steps(config, rows));
            let trained = known.tokens.zip(known.rows).map(|(tokens, rows)| aligned(config, tokens, rows));
            let few = known.rows.and_then(|rows| too_few(config, rows));
            let refusal = other.refusal().or(few);
            Known { steps, epoch_tokens: known.tokens, tokens: trained, refusal, ..known }
        }
    }
}

/// Share of a packed row that first-fit-decreasing fills where rows are much shorter than it.
const FILL: f64 = 0.98;

/// Steps and tokens of a supervised stage of `tokens` an epoch: all epochs, or as many steps as `max_steps` allows.
fn trained(config: &SftConfig, tokens: u64) -> (u64, u64) {
    let packed_rows = (tokens as f64 / (FILL * config.max_len as f64)).ceil() as u64;
    let per_epoch = packed_rows.div_ceil(config.batch_size.max(1) as u64).max(1);
    let by_epochs = config.epochs.map(|epochs| epochs.saturating_mul(per_epoch));
    let steps = [by_epochs, config.max_steps].into_iter().flatten().min().unwrap_or(per_epoch);
    (steps, tokens.saturating_mul(steps) / per_epoch)
}

/// Optimizer steps of a preference stage over `rows` pairs.
fn preference_steps(config: &DpoConfig, rows: u64) -> u64 {
    let chunks = config.chunks.max(1) as u64;
    let bound = |chunk: u64| rows * chunk / chunks;
    let of_chunk = |chunk: u64| (bound(chunk + 1) - bound(chunk)).div_ceil(config.batch_size.max(1) as u64);
    let steps = config.epochs.saturating_mul((0..chunks).map(of_chunk).sum());
    config.max_steps.map_or(steps, |most| most.min(steps))
}

/// Tokens of a preference stage: prompt and both answers of each pair, or of the pairs that `max_steps` allows.
fn aligned(config: &DpoConfig, tokens: u64, rows: u64) -> u64 {
    let by_epochs = config.epochs.saturating_mul(tokens);
    let per_step = (config.batch_size as u64).saturating_mul(tokens / rows.max(1));
    let by_steps = config.max_steps.map(|steps| steps.saturating_mul(per_step));
    by_steps.map_or(by_epochs, |by_steps| by_steps.min(by_epochs))
}
