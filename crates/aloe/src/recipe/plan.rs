//! What a recipe will cost: rows, tokens, memory and time per stage, with the assumptions printed beside them.
//!
//! Rows and tokens are counted by `sizes` where the files are at hand and come from `expect` otherwise; a size that nobody
//! knows is shown as unknown. Time follows from the speed of finished stages in the output folder, else from the constants
//! below, which LOG.md's table of the quickstart was turned into.

use super::at_site::Shape;
use super::checked::{Input, Recipe, Stage};
use super::eval_stage::EvalStage;
use super::measured_steps::MeasuredSteps;
use super::memory;
use super::raw::Mistake;
use super::sizes::{self, Meter, Size};
use super::stage_config::StageConfig;
use super::training_size::{self, Refusal, Rendering};
use crate::commands::run::is_address;
use aloe_eval::Strategy;
use aloe_model::ModelSource;
use aloe_record::Record;
use aloe_tensor::Device;
use aloe_train::about_n_updates;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Sustained arithmetic of training on the reference machine (2 cores, bf16, evaluations and export included), in FLOP/s.
pub(super) const SFT_FLOPS: f64 = 5.0e11;
/// The same of preference training, whose pairs are short.
pub(super) const DPO_FLOPS: f64 = 3.5e11;
/// The same of reading prompts.
pub(super) const READ_FLOPS: f64 = 6.5e11;
/// The same of generating, several answers at a time: bound by memory, not by arithmetic.
pub(super) const GENERATE_FLOPS: f64 = 3.5e11;
/// 40 % of an H100's dense bf16 peak (989 TFLOP/s), times four: one node of the reference system.
pub(super) const NODE_FLOPS: f64 = 4.0 * 0.4 * 9.89e14;
/// Generating reaches a tenth of the peak with many answers at a time.
pub(super) const NODE_GENERATE_FLOPS: f64 = 4.0 * 0.1 * 9.89e14;
/// Opening a model and writing results on the reference machine, in seconds.
pub(super) const STARTUP_S: f64 = 1.5;
pub(super) const GIB: f64 = (1u64 << 30) as f64;

/// One row of the plan.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Row {
    pub(crate) stage: String,
    pub(crate) kind: &'static str,
    /// Rows, pairs, questions or prompts.
    pub(crate) rows: Option<u64>,
    /// Optimizer steps.
    pub(crate) steps: Option<u64>,
    /// Tokens trained on over all epochs, or read.
    pub(crate) tokens: Option<u64>,
    /// The most tokens generated.
    pub(crate) generated: Option<u64>,
    /// Tokens that a server draws in the place of letters that are scored here: one a question.
    #[serde(skip)]
    pub(crate) letters_if_served: Option<u64>,
    /// Peak memory of the stage alone, in bytes.
    pub(crate) memory_bytes: Option<u64>,
    /// Parameters of the model that is trained or asked.
    pub(crate) n_parameters: Option<u64>,
    /// Tokens of a training stage's longest row.
    pub(crate) max_len: Option<u64>,
    /// Tokens that one process of a training stage takes at once: rows, or both answers of pairs, at their longest.
    #[serde(skip)]
    pub(crate) tokens_at_once: Option<u64>,
    /// Whether a training stage computes its activations again instead of keeping them.
    #[serde(skip)]
    pub(crate) recompute: bool,
    /// Weights that are trained beside frozen ones, about; none where all are trained.
    #[serde(skip)]
    pub(crate) n_updates: Option<u64>,
    /// The model's sizes, where a checkpoint is at hand.
    #[serde(skip)]
    pub(crate) shape: Option<Shape>,
    /// Whether memory and time come from a step that was run for this plan.
    pub(crate) is_measured: bool,
    /// Seconds on the local machine; see [`SFT_FLOPS`].
    pub(crate) local_s: Option<f64>,
    /// Seconds on one 4xH100 node.
    pub(crate) node_s: Option<f64>,
    /// Whether the output folder holds a record of the stage. Whether it is still valid shows when it is run.
    pub(crate) has_output: bool,
    /// Whether that output is of other settings, or of an input that is yet to be made anew: it will be replaced.
    pub(crate) is_outdated: bool,
}

/// The rows of a plan and where its figures come from.
pub(crate) struct Plan {
    pub(crate) rows: Vec<Row>,
    /// Whether a tokenizer at hand counted the tokens.
    pub(crate) tokenizer: Option<PathBuf>,
    /// Whether finished stages gave their speed.
    pub(crate) measured_speed: bool,
    /// Peak memory of one `aloe run`, in bytes.
    pub(crate) peak_bytes: Option<u64>,
    /// What the run will refuse, by what is at hand already; then nothing was measured.
    pub(crate) mistakes: Vec<Mistake>,
    /// What it may refuse.
    pub(crate) notices: Vec<String>,
}

/// What is known of a stage while the plan is made.
#[derive(Clone, Default)]
pub(super) struct Known {
    pub(super) n_parameters: Option<u64>,
    pub(super) rows: Option<u64>,
    pub(super) steps: Option<u64>,
    /// Tokens of a training stage's epoch.
    pub(super) epoch_tokens: Option<u64>,
    pub(super) tokens: Option<u64>,
    pub(super) generated: Option<u64>,
    /// Tokens of a preference stage's largest micro-batch, where its pairs are written.
    pub(super) largest: Option<u64>,
    /// Bytes of the file that a training stage reads its start weights from.
    pub(super) start_bytes: Option<u64>,
    pub(super) record: Option<Record>,
    /// A checkpoint of this stage's model, or of the one it starts from, that is at hand.
    pub(super) checkpoint: Option<PathBuf>,
    /// How the model that this stage makes renders rows.
    pub(super) rendering: Option<Rendering>,
    /// What the stage would refuse.
    pub(super) refusal: Option<Refusal>,
}

/// The plan of every stage; `out` is where finished stages are looked for. With a device, a step of each kind of training is run on it.
pub(crate) fn plan(recipe: &Recipe, out: &Path, measure_on: Option<&Device>) -> anyhow::Result<Plan> {
    let tokenizer = tokenizer_at_hand(recipe, out);
    let text = tokenizer.as_deref().and_then(|path| crate::commands::open_text(path).ok());
    let meter = Meter(text.filter(|text| text.template.is_some()));
    let mut known: Vec<Known> = Vec::new();
    for stage in &recipe.stages {
        let folder = out.join(&stage.name);
        let record = Record::read(&folder).ok();
        let size = measured(recipe, stage, &known, out, record.as_ref(), (&meter, tokenizer.as_deref()));
        let checkpoint = checkpoint(stage, &known, &folder, record.is_some());
        let start_bytes = memory::start_bytes(recipe, stage, &known, size.n_parameters);
        let is_done = record.as_ref().is_some_and(|record| record.config_written == stage.written);
        let rendering = training_size::made_by(stage, &known, &folder, is_done, tokenizer.as_deref());
        known.push(Known { record, checkpoint, start_bytes, rendering, ..size });
    }
    let speeds = Speeds::of(recipe, &known);
    let mut rows: Vec<Row> =
        recipe.stages.iter().zip(&known).map(|(stage, known)| row(recipe, stage, known, &speeds)).collect();
    mark_outdated(recipe, &known, &mut rows);
    let (mistakes, notices) = refusals(recipe, &known);
    if let Some(device) = measure_on.filter(|_| mistakes.is_empty()) {
        let mut steps = MeasuredSteps::new(device);
        for ((stage, known), row) in recipe.stages.iter().zip(&known).zip(&mut rows) {
            steps.measure(stage, known, row)?;
        }
    }
    // One process runs all stages: what a stage frees is given back before the next.
    let peak_bytes = rows.iter().filter_map(|row| row.memory_bytes).max();
    let tokenizer = tokenizer.filter(|_| meter.0.is_some());
    Ok(Plan { rows, tokenizer, measured_speed: !speeds.0.is_empty(), peak_bytes, mistakes, notices })
}

/// What a run will refuse of its training stages, by what is at hand already; nothing else of the plan is looked at.
pub(crate) fn mistakes(recipe: &Recipe, out: &Path) -> Vec<Mistake> {
    let tokenizer = tokenizer_at_hand(recipe, out);
    let mut known: Vec<Known> = Vec::new();
    for stage in &recipe.stages {
        let folder = out.join(&stage.name);
        let record = Record::read(&folder).ok();
        let checkpoint = checkpoint(stage, &known, &folder, record.is_some());
        let is_done = record.as_ref().is_some_and(|record| record.config_written == stage.written);
        let rendering = training_size::made_by(stage, &known, &folder, is_done, tokenizer.as_deref());
        let refusal = match &stage.config {
            // The rows of a finished stage are not encoded again, only to begin nothing.
            StageConfig::Sft(_) | StageConfig::Dpo(_) if !is_done => {
                let written = rows_at_hand(recipe, stage, &known, out);
                let tokenizer = tokenizer.as_deref();
                training_size::checked(recipe, stage, &known, tokenizer, written.as_deref(), out).refusal()
            }
            _ => None,
        };
        known.push(Known { record, checkpoint, rendering, refusal, ..Known::default() });
    }
    refusals(recipe, &known).0
}

/// What the run will refuse, and what it may, each with its stage.
fn refusals(recipe: &Recipe, known: &[Known]) -> (Vec<Mistake>, Vec<String>) {
    let (mut mistakes, mut notices) = (Vec::new(), Vec::new());
    for (stage, known) in recipe.stages.iter().zip(known) {
        let Some(Refusal { text, is_certain }) = &known.refusal else { continue };
        let text = format!("stage {:?}: {text}", stage.name);
        match is_certain {
            true => mistakes.push(Mistake { line: stage.line, text }),
            false => notices.push(format!(
                "{text}. Its model or rows are yet to be made: the run may refuse it then. Its size above is an estimate"
            )),
        }
    }
    (mistakes, notices)
}

/// The folder or file of a stage's model where it is there, else that of the model it starts from: the same shape.
fn checkpoint(stage: &Stage, known: &[Known], folder: &Path, is_done: bool) -> Option<PathBuf> {
    let own = match &stage.config {
        StageConfig::Pull(config) => {
            [folder.to_path_buf(), PathBuf::from(&config.source)].into_iter().find(|path| path.exists())
        }
        StageConfig::Sft(_) | StageConfig::Dpo(_) | StageConfig::Merge(_) | StageConfig::MergeSearch(_) if is_done => {
            Some(crate::stage::model_of(folder))
        }
        _ => None,
    };
    own.or_else(|| at_hand(input(stage, "model").or_else(|| input(stage, "base"))?, known))
}

pub(super) fn at_hand(model: &Input, known: &[Known]) -> Option<PathBuf> {
    match model {
        Input::Stage(at) => known.get(*at)?.checkpoint.clone(),
        Input::Path(path) => path.exists().then(|| crate::stage::model_of(path)),
    }
}

/// The first model of the recipe that is at hand: fetched by an earlier run, or a path.
fn tokenizer_at_hand(recipe: &Recipe, out: &Path) -> Option<PathBuf> {
    recipe.stages.iter().find_map(|stage| match &stage.config {
        StageConfig::Pull(config) => {
            let fetched = out.join(&stage.name);
            let local = PathBuf::from(&config.source);
            [fetched, local].into_iter().find(|path| path.join("tokenizer.json").exists() || path.is_file())
        }
        _ => None,
    })
}

pub(super) fn input<'a>(stage: &'a Stage, key: &str) -> Option<&'a Input> {
    stage.from.iter().find(|(name, _)| name == key).and_then(|(_, inputs)| inputs.first())
}

/// The file or folder of rows that a training stage reads, where it is there.
fn rows_at_hand(recipe: &Recipe, stage: &Stage, known: &[Known], out: &Path) -> Option<PathBuf> {
    match input(stage, "data")? {
        Input::Path(path) => Some(path.clone()),
        Input::Stage(at) => {
            let made = known.get(*at).and_then(|known| known.record.as_ref());
            let is_done = made.is_some_and(|record| record.config_written == recipe.stages[*at].written);
            is_done.then(|| out.join(&recipe.stages[*at].name))
        }
    }
}

/// Rows and tokens of a stage: counted where the files are at hand, else what the recipe expects.
fn measured(
    recipe: &Recipe,
    stage: &Stage,
    known: &[Known],
    out: &Path,
    record: Option<&Record>,
    (meter, tokenizer): (&Meter, Option<&Path>),
) -> Known {
    let finished = record.filter(|record| record.config_written == stage.written);
    let written = rows_at_hand(recipe, stage, known, out);
    let counted: Option<Size> = match &stage.config {
        StageConfig::Data(config) => finished
            .and_then(|_| sizes::written_data(&out.join(&stage.name), meter))
            .or_else(|| sizes::data(config, meter)),
        StageConfig::Sft(_) | StageConfig::Dpo(_) => written.as_ref().and_then(|path| sizes::written_data(path, meter)),
        StageConfig::Eval(config) if config.is_open() => config.open_size(meter),
        StageConfig::Eval(config) => config.checked().ok().and_then(|config| sizes::eval(&config, meter)),
        StageConfig::Redteam(config) => sizes::redteam(config, meter),
        StageConfig::Synthesis(config) => config.size(meter),
        StageConfig::MergeSearch(config) => {
            let size = config.eval.checked().ok().and_then(|config| sizes::eval(&config, meter));
            size.zip(config.n_asked()).map(|(size, n_asked)| size.times(n_asked as u64))
        }
        StageConfig::Pull(_) | StageConfig::Merge(_) | StageConfig::Rejudge(_) | StageConfig::Card(_) => None,
    };
    let from_data = match (&stage.config, input(stage, "data")) {
        (StageConfig::Sft(_) | StageConfig::Dpo(_), Some(Input::Stage(at))) => known.get(*at),
        _ => None,
    };
    let n_parameters = stage.expect.parameters.or_else(|| parameters(stage, known, record));
    let rows = counted.map(|size| size.rows).or(from_data.and_then(|data| data.rows)).or(stage.expect.rows);
    let tokens = counted.map(|size| size.tokens).or(from_data.and_then(|data| data.tokens)).or(stage.expect.tokens);
    let generated = match draws_letters(stage) {
        true => rows,
        false => counted.map(|size| size.generated).or_else(|| rows.and_then(|rows| generated(stage, rows))),
    };
    let size = Known { n_parameters, rows, tokens, ..Known::default() };
    let check = || training_size::checked(recipe, stage, known, tokenizer, written.as_deref(), out);
    let known = size;
    match &stage.config {
        StageConfig::Sft(config) => training_size::of_sft(config, known, check()),
        StageConfig::Dpo(config) => training_size::of_dpo(config, known, check()),
        StageConfig::Eval(_) | StageConfig::Redteam(_) | StageConfig::Synthesis(_) | StageConfig::MergeSearch(_) => {
            Known { generated, ..known }
        }
        _ => known,
    }
}

/// Whether a server is asked for next letters: one token a question, unless it turns out that it can be scored.
fn draws_letters(stage: &Stage) -> bool {
    asks_letters(stage) && matches!(input(stage, "model"), Some(Input::Path(path)) if is_address(path))
}

/// Whether an evaluation asks for next letters. Weights at hand are scored, and nothing is drawn.
fn asks_letters(stage: &Stage) -> bool {
    let asks = |config: &EvalStage| config.checked().is_ok_and(|config| config.strategy == Strategy::NextLetter);
    matches!(&stage.config, StageConfig::Eval(config) if !config.is_open() && asks(config))
}

/// The most tokens generated for `rows` questions that are not at hand.
fn generated(stage: &Stage, rows: u64) -> Option<u64> {
    match &stage.config {
        StageConfig::Redteam(config) => Some(rows * config.max_new_tokens as u64),
        StageConfig::Synthesis(config) => Some(rows * (config.attempts * config.max_new_tokens) as u64),
        StageConfig::Eval(config) => {
            let config = config.checked().ok()?;
            let scored = config.strategy.weighs_options();
            Some(if scored { 0 } else { rows * (config.n_samples * config.sampling.max_new_tokens) as u64 })
        }
        _ => None,
    }
}

/// Parameters of the model a stage makes or asks.
fn parameters(stage: &Stage, known: &[Known], record: Option<&Record>) -> Option<u64> {
    let recorded = record.and_then(|record| record.results.get("n_parameters")?.as_u64());
    let of_path = |path: &Path| {
        let source = ModelSource::open(&crate::stage::model_of(path)).ok()?;
        Some(source.config().n_parameters() as u64)
    };
    recorded.or_else(|| match (&stage.config, input(stage, "model").or_else(|| input(stage, "base"))) {
        (StageConfig::Pull(config), _) => of_path(Path::new(&config.source)),
        (_, Some(Input::Stage(at))) => known.get(*at)?.n_parameters,
        (_, Some(Input::Path(path))) => of_path(path),
        (StageConfig::Merge(_) | StageConfig::MergeSearch(_), None) => {
            stage.from.iter().find_map(|(_, inputs)| match inputs.first()? {
                Input::Stage(at) => known.get(*at)?.n_parameters,
                Input::Path(path) => of_path(path),
            })
        }
        _ => None,
    })
}

/// Arithmetic of a stage in FLOP: what it trains or reads, and what it generates.
fn work(stage: &Stage, known: &Known) -> Option<(f64, f64)> {
    let per_token = match &stage.config {
        // Frozen weights have no gradient of their own: a third of the arithmetic less.
        StageConfig::Sft(config) => {
            if config.lora.is_some() {
                4.0
            } else {
                6.0
            }
        }
        // Forward and backward of both answers, and the reference's forward pass.
        StageConfig::Dpo(config) => {
            if config.lora.is_some() {
                6.0
            } else {
                8.0
            }
        }
        StageConfig::Eval(_) | StageConfig::Redteam(_) | StageConfig::Synthesis(_) | StageConfig::MergeSearch(_) => 2.0,
        _ => return None,
    };
    let parameters = known.n_parameters? as f64;
    Some((per_token * parameters * known.tokens? as f64, 2.0 * parameters * known.generated.unwrap_or(0) as f64))
}

/// Seconds on two cores of the reference machine.
fn reference_s(stage: &Stage, known: &Known) -> Option<f64> {
    let (read, generated) = work(stage, known)?;
    let speed = match stage.config {
        StageConfig::Sft(_) => SFT_FLOPS,
        StageConfig::Dpo(_) => DPO_FLOPS,
        _ => READ_FLOPS,
    };
    Some(STARTUP_S + read / speed + generated / GENERATE_FLOPS)
}

/// How much slower or faster than the reference machine finished stages were, by kind and whether they generate.
struct Speeds(Vec<((&'static str, bool), f64)>);

impl Speeds {
    fn key(stage: &Stage, known: &Known) -> (&'static str, bool) {
        (stage.config.kind(), known.generated.unwrap_or(0) > 0)
    }

    fn of(recipe: &Recipe, known: &[Known]) -> Self {
        let mut sums: Vec<((&'static str, bool), f64, f64)> = Vec::new();
        for (stage, known) in recipe.stages.iter().zip(known) {
            let finished = known.record.as_ref().filter(|record| record.config_written == stage.written);
            let (Some(record), Some(expected_s)) = (finished, reference_s(stage, known)) else { continue };
            let key = Self::key(stage, known);
            match sums.iter_mut().find(|sum| sum.0 == key) {
                Some(sum) => (sum.1, sum.2) = (sum.1 + record.elapsed_s, sum.2 + expected_s),
                None => sums.push((key, record.elapsed_s, expected_s)),
            }
        }
        Self(sums.into_iter().map(|(key, took_s, expected_s)| (key, took_s / expected_s)).collect())
    }

    fn factor(&self, stage: &Stage, known: &Known) -> f64 {
        let key = Self::key(stage, known);
        self.0.iter().find(|(found, _)| *found == key).map_or(1.0, |(_, factor)| *factor)
    }
}

fn row(recipe: &Recipe, stage: &Stage, known: &Known, speeds: &Speeds) -> Row {
    let node_s = work(stage, known).map(|(read, made)| read / NODE_FLOPS + made / NODE_GENERATE_FLOPS);
    let (max_len, tokens_at_once, recompute) = match &stage.config {
        StageConfig::Sft(config) => {
            (Some(config.max_len as u64), Some((config.max_len * config.micro_batch_size) as u64), config.recompute)
        }
        StageConfig::Dpo(config) => {
            (Some(config.max_len as u64), Some((2 * config.max_len * config.micro_batch_size) as u64), config.recompute)
        }
        _ => (None, None, false),
    };
    let lora = match &stage.config {
        StageConfig::Sft(config) => config.lora.as_ref(),
        StageConfig::Dpo(config) => config.lora.as_ref(),
        _ => None,
    };
    Row {
        stage: stage.name.clone(),
        kind: stage.config.kind(),
        rows: known.rows,
        steps: known.steps,
        tokens: known.tokens,
        generated: known.generated,
        letters_if_served: known.rows.filter(|_| asks_letters(stage)),
        memory_bytes: memory::of_stage(recipe, stage, known),
        local_s: reference_s(stage, known).map(|seconds| seconds * speeds.factor(stage, known)),
        node_s,
        n_parameters: known.n_parameters,
        max_len,
        tokens_at_once,
        recompute,
        n_updates: lora.zip(known.n_parameters).map(|(lora, n)| about_n_updates(n, lora)),
        shape: known.checkpoint.as_deref().and_then(Shape::of_checkpoint),
        is_measured: false,
        has_output: known.record.is_some(),
        is_outdated: false,
    }
}

/// Marks the outputs that a run is sure to replace: made with other settings, or from a stage that has no output or such a one.
fn mark_outdated(recipe: &Recipe, known: &[Known], rows: &mut [Row]) {
    let mut is_current = Vec::new();
    for ((stage, known), row) in recipe.stages.iter().zip(known).zip(rows) {
        let is_as_written = known.record.as_ref().is_some_and(|record| record.config_written == stage.written);
        let mut made_of = stage.from.iter().flat_map(|(_, inputs)| inputs).filter_map(|input| match input {
            Input::Stage(at) => is_current.get(*at).copied(),
            Input::Path(_) => None,
        });
        let is_like_its_inputs = made_of.all(|is_current: bool| is_current);
        is_current.push(is_as_written && is_like_its_inputs);
        row.is_outdated = row.has_output && !(is_as_written && is_like_its_inputs);
    }
}
