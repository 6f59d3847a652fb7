//! What a recipe will cost: rows, tokens, memory and time per stage, with the assumptions printed beside them.
//!
//! Rows and tokens are counted by `sizes` where the files are at hand and come from `expect` otherwise; a size that nobody
//! knows is shown as unknown. Time follows from the speed of finished stages in the output folder, else from the constants
//! below, which LOG.md's table of the quickstart was turned into.

use super::checked::{Input, Recipe, Stage};
use super::sizes::{self, Meter, Size};
use super::stage_config::StageConfig;
use crate::weights::{DtypeName, Quantize};
use aloe_model::ModelSource;
use aloe_record::Record;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Sustained arithmetic of training on the reference machine (2 cores, bf16, evaluations and export included), in FLOP/s.
const SFT_FLOPS: f64 = 5.0e11;
/// The same of preference training, whose pairs are short.
const DPO_FLOPS: f64 = 3.5e11;
/// The same of reading prompts.
const READ_FLOPS: f64 = 6.5e11;
/// The same of generating, several answers at a time: bound by memory, not by arithmetic.
const GENERATE_FLOPS: f64 = 3.5e11;
/// 40 % of an H100's dense bf16 peak (989 TFLOP/s), times four: one node of the reference system.
const NODE_FLOPS: f64 = 4.0 * 0.4 * 9.89e14;
/// Generating reaches a tenth of the peak with many answers at a time.
const NODE_GENERATE_FLOPS: f64 = 4.0 * 0.1 * 9.89e14;
/// Opening a model and writing results on the reference machine, in seconds.
const STARTUP_S: f64 = 1.5;
const GIB: f64 = (1u64 << 30) as f64;

/// One row of the plan.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Row {
    pub(crate) stage: String,
    pub(crate) kind: &'static str,
    /// Rows, pairs, questions or prompts.
    pub(crate) rows: Option<u64>,
    /// Tokens trained on over all epochs, or read.
    pub(crate) tokens: Option<u64>,
    /// The most tokens generated.
    pub(crate) generated: Option<u64>,
    /// Peak memory of the stage alone, in bytes.
    pub(crate) memory_bytes: Option<u64>,
    /// Seconds on the local machine; see [`SFT_FLOPS`].
    pub(crate) local_s: Option<f64>,
    /// Seconds on one 4xH100 node.
    pub(crate) node_s: Option<f64>,
    /// Whether the output folder holds a record of the stage. Whether it is still valid shows when it is run.
    pub(crate) has_output: bool,
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
}

/// What is known of a stage while the plan is made.
#[derive(Clone, Default)]
struct Known {
    n_parameters: Option<u64>,
    rows: Option<u64>,
    tokens: Option<u64>,
    generated: Option<u64>,
    record: Option<Record>,
}

/// The plan of every stage; `out` is where finished stages are looked for.
pub(crate) fn plan(recipe: &Recipe, out: &Path) -> Plan {
    let tokenizer = tokenizer_at_hand(recipe, out);
    let text = tokenizer.as_deref().and_then(|path| crate::commands::open_text(path).ok());
    let meter = Meter(text.filter(|text| text.template.is_some()));
    let mut known: Vec<Known> = Vec::new();
    for stage in &recipe.stages {
        let record = Record::read(&out.join(&stage.name)).ok();
        let size = measured(stage, &known, out, record.as_ref(), &meter);
        known.push(Known { record, ..size });
    }
    let speeds = Speeds::of(recipe, &known);
    let rows: Vec<Row> =
        recipe.stages.iter().zip(&known).map(|(stage, known)| row(recipe, stage, known, &speeds)).collect();
    let peak_bytes = peak(&rows);
    let tokenizer = tokenizer.filter(|_| meter.0.is_some());
    Plan { rows, tokenizer, measured_speed: !speeds.0.is_empty(), peak_bytes }
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

fn input<'a>(stage: &'a Stage, key: &str) -> Option<&'a Input> {
    stage.from.iter().find(|(name, _)| name == key).and_then(|(_, inputs)| inputs.first())
}

/// Rows and tokens of a stage: counted where the files are at hand, else what the recipe expects.
fn measured(stage: &Stage, known: &[Known], out: &Path, record: Option<&Record>, meter: &Meter) -> Known {
    let finished = record.filter(|record| record.config_written == stage.written);
    let counted: Option<Size> = match &stage.config {
        StageConfig::Data(config) => finished
            .and_then(|_| sizes::written_data(&out.join(&stage.name), meter))
            .or_else(|| sizes::data(config, meter)),
        StageConfig::Sft(_) | StageConfig::Dpo(_) => match input(stage, "data") {
            Some(Input::Path(path)) => sizes::written_data(path, meter),
            _ => None,
        },
        StageConfig::Eval(config) => config.checked().ok().and_then(|config| sizes::eval(&config, meter)),
        StageConfig::Redteam(config) => sizes::redteam(config, meter),
        StageConfig::Pull(_) | StageConfig::Merge(_) | StageConfig::Card(_) => None,
    };
    let from_data = match (&stage.config, input(stage, "data")) {
        (StageConfig::Sft(_) | StageConfig::Dpo(_), Some(Input::Stage(at))) => known.get(*at),
        _ => None,
    };
    let n_parameters = stage.expect.parameters.or_else(|| parameters(stage, known, record));
    let rows = counted.map(|size| size.rows).or(from_data.and_then(|data| data.rows)).or(stage.expect.rows);
    let tokens = counted.map(|size| size.tokens).or(from_data.and_then(|data| data.tokens)).or(stage.expect.tokens);
    let generated = counted.map(|size| size.generated).or_else(|| rows.and_then(|rows| generated(stage, rows)));
    let (tokens, generated) = match &stage.config {
        StageConfig::Sft(config) => (tokens.map(|tokens| trained(config, tokens)), None),
        StageConfig::Dpo(config) => (tokens.zip(rows).map(|(tokens, rows)| aligned(config, tokens, rows)), None),
        StageConfig::Eval(_) | StageConfig::Redteam(_) => (tokens, generated),
        _ => (tokens, None),
    };
    Known { n_parameters, rows, tokens, generated, record: None }
}

/// Tokens of a supervised stage: all epochs, or as many packed rows as `max_steps` allows.
fn trained(config: &aloe_train::SftConfig, tokens: u64) -> u64 {
    let by_epochs = config.epochs.map(|epochs| epochs * tokens);
    let by_steps = config.max_steps.map(|steps| steps * (config.batch_size * config.max_len) as u64);
    [by_epochs, by_steps].into_iter().flatten().min().unwrap_or(tokens)
}

/// Tokens of a preference stage: prompt and both answers of each pair, or of the pairs that `max_steps` allows.
fn aligned(config: &aloe_train::DpoConfig, tokens: u64, rows: u64) -> u64 {
    let by_epochs = config.epochs * tokens;
    let by_steps = config.max_steps.map(|steps| steps * config.batch_size as u64 * (tokens / rows.max(1)));
    by_steps.map_or(by_epochs, |by_steps| by_steps.min(by_epochs))
}

/// The most tokens generated for `rows` questions that are not at hand.
fn generated(stage: &Stage, rows: u64) -> Option<u64> {
    match &stage.config {
        StageConfig::Redteam(config) => Some(rows * config.max_new_tokens as u64),
        StageConfig::Eval(config) => {
            let config = config.checked().ok()?;
            let scored = config.strategy == aloe_eval::Strategy::Loglikelihood;
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
        (StageConfig::Merge(_), None) => stage.from.iter().find_map(|(_, inputs)| match inputs.first()? {
            Input::Stage(at) => known.get(*at)?.n_parameters,
            Input::Path(path) => of_path(path),
        }),
        _ => None,
    })
}

/// Arithmetic of a stage in FLOP: what it trains or reads, and what it generates.
fn work(stage: &Stage, known: &Known) -> Option<(f64, f64)> {
    let per_token = match &stage.config {
        StageConfig::Sft(_) => 6.0,
        // Forward and backward of both answers, and the reference's forward pass.
        StageConfig::Dpo(_) => 8.0,
        StageConfig::Eval(_) | StageConfig::Redteam(_) => 2.0,
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

/// Peak memory of a stage on its own, in bytes; LOG.md has the measurements behind it.
fn memory(recipe: &Recipe, stage: &Stage, known: &Known) -> Option<u64> {
    let parameters = known.n_parameters? as f64;
    // Values kept for the backward pass: 3.5 P^(2/3) bytes a token fits 135M to 8B decoders.
    let kept = |n_tokens: f64| 3.5 * parameters.powf(2.0 / 3.0) * n_tokens + 0.5 * GIB;
    let bytes = match &stage.config {
        StageConfig::Sft(config) => 18.0 * parameters + kept((config.max_len * config.micro_batch_size) as f64),
        StageConfig::Dpo(config) => {
            let mean = known.tokens? as f64 / (config.epochs * known.rows?.max(1)) as f64;
            18.0 * parameters + kept((2.0 * mean).min(2.0 * config.max_len as f64) * config.micro_batch_size as f64)
        }
        // A few tiles a thread, whatever the size of the models.
        StageConfig::Merge(_) => 0.0625 * GIB,
        StageConfig::Eval(_) | StageConfig::Redteam(_) => {
            let weights = match (stage.config.quantize(), recipe.dtype) {
                // A block of 32 weights and its 16-bit scale; heads and small models take a little more.
                (Some(Quantize::Q8), _) => 34.0 / 32.0 * parameters,
                (Some(Quantize::Q4), _) => 18.0 / 32.0 * parameters,
                (None, Some(DtypeName::F32)) => 4.0 * parameters,
                (None, None) => stored_bytes(stage).unwrap_or(2.0 * parameters),
                (None, _) => 2.0 * parameters,
            };
            let generates = known.generated.unwrap_or(0) > 0;
            weights + if generates { 0.27 * GIB } else { 0.13 * GIB }
        }
        _ => return None,
    };
    Some(bytes as u64)
}

/// Bytes of a `.gguf` model, which runs in its own blocks where no dtype is named.
fn stored_bytes(stage: &Stage) -> Option<f64> {
    let (_, models) = stage.from.iter().find(|(name, _)| *name == "model")?;
    let [Input::Path(path)] = models.as_slice() else { return None };
    let is_gguf = path.extension().is_some_and(|extension| extension == "gguf");
    is_gguf.then(|| path.metadata().ok()).flatten().map(|file| file.len() as f64)
}

/// Peak of one process that runs all stages: what a stage frees is given back before the next.
fn peak(rows: &[Row]) -> Option<u64> {
    rows.iter().filter_map(|row| row.memory_bytes).max()
}

fn row(recipe: &Recipe, stage: &Stage, known: &Known, speeds: &Speeds) -> Row {
    let node_s = work(stage, known).map(|(read, made)| read / NODE_FLOPS + made / NODE_GENERATE_FLOPS);
    Row {
        stage: stage.name.clone(),
        kind: stage.config.kind(),
        rows: known.rows,
        tokens: known.tokens,
        generated: known.generated,
        memory_bytes: memory(recipe, stage, known),
        local_s: reference_s(stage, known).map(|seconds| seconds * speeds.factor(stage, known)),
        node_s,
        has_output: known.record.is_some(),
    }
}

/// The plan as a table with its assumptions.
pub(crate) fn table(plan: &Plan) -> String {
    let mut text = line(["stage", "kind", "rows", "tokens", "generated", "memory", "2 CPU cores", "4xH100 node"], "");
    for row in &plan.rows {
        let computes = matches!(row.kind, "sft" | "dpo" | "eval" | "redteam");
        let count = |number: Option<u64>, expected: bool| match number {
            Some(number) => number.to_string(),
            None if expected => "unknown".to_owned(),
            None => "-".to_owned(),
        };
        let cells = [
            row.stage.as_str(),
            row.kind,
            &count(row.rows, computes || row.kind == "data"),
            &count(row.tokens, computes || row.kind == "data"),
            &row.generated.filter(|&number| number > 0).map_or_else(|| "-".to_owned(), |number| format!("<= {number}")),
            &row.memory_bytes.map_or_else(|| "-".to_owned(), gib),
            &row.local_s.map_or_else(|| "-".to_owned(), duration),
            &row.node_s.map_or_else(|| "-".to_owned(), duration),
        ];
        text.push_str(&line(cells, if row.has_output { "  has output" } else { "" }));
    }
    text.push_str(&total(plan));
    text.push_str(&footnote(plan));
    text
}

fn line(cells: [&str; 8], note: &str) -> String {
    let [stage, kind, rest @ ..] = cells;
    let rest: Vec<String> =
        rest.iter().zip([9, 11, 12, 9, 12, 12]).map(|(cell, width)| format!("{cell:>width$}")).collect();
    format!("{stage:<20} {kind:<8} {}{note}\n", rest.join(" "))
}

/// Sums over the stages that compute; `+` where a size is unknown.
fn total(plan: &Plan) -> String {
    let computing: Vec<&Row> =
        plan.rows.iter().filter(|row| matches!(row.kind, "sft" | "dpo" | "eval" | "redteam")).collect();
    let more = if computing.iter().any(|row| row.tokens.is_none()) { "+" } else { "" };
    let tokens: u64 = computing.iter().filter_map(|row| row.tokens).sum();
    let made: u64 = computing.iter().filter_map(|row| row.generated).sum();
    let local: f64 = computing.iter().filter_map(|row| row.local_s).sum();
    let node: f64 = computing.iter().filter_map(|row| row.node_s).sum();
    let cells = [
        "total",
        "",
        "",
        &format!("{tokens}{more}"),
        &format!("<= {made}{more}"),
        &plan.peak_bytes.map_or_else(|| "-".to_owned(), gib),
        &format!("{}{more}", duration(local)),
        &format!("{}{more}", duration(node)),
    ];
    line(cells, "")
}

fn footnote(plan: &Plan) -> String {
    let speed = if plan.measured_speed {
        "as fast as the finished stages of each kind in the output folder were (the others as the reference machine)"
            .to_owned()
    } else {
        format!(
            "as the reference machine (2 cores, bf16): {:.0} GFLOP/s in SFT, {:.0} in DPO, {:.0} in reading, {:.0} in generating",
            SFT_FLOPS / 1e9,
            DPO_FLOPS / 1e9,
            READ_FLOPS / 1e9,
            GENERATE_FLOPS / 1e9
        )
    };
    let tokens = match &plan.tokenizer {
        Some(path) => format!("counted on a sample with the tokenizer of {}", path.display()),
        None => format!("{} characters of text a token", sizes::CHARS_PER_TOKEN),
    };
    format!(
        "\nAll of this is an estimate, not a measurement. rows: before cleaning, duplicates and overlaps, after caps and hold-out; of a \
         finished data stage as it wrote them.\ntokens: {tokens}, where the files are at hand; else the recipe's `expect`. All epochs of \
         training; prompts, examples and options of an evaluation. generated: at most, every\nanswer at its full length.\ntime: {speed};\n6 FLOP \
         a parameter and token for SFT, 8 for DPO (with its reference), 2 otherwise. A 4xH100 node: {:.0} TFLOP/s (40 % of peak), {:.0} in \
         generating.\nmemory: 18 bytes a parameter and the activations of a micro-batch for training; for evaluation 2 a parameter (f32: 4, q8: 1.1, \
         q4: 0.6, a .gguf its file); merging\ntakes a few tiles, whatever the size of the models. The total line has the largest stage.\n",
        NODE_FLOPS / 1e12,
        NODE_GENERATE_FLOPS / 1e12
    )
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / GIB)
}

/// Seconds in the unit a person would use.
pub(crate) fn duration(seconds: f64) -> String {
    match seconds {
        s if s > 0.0 && s < 1.0 => "< 1 s".to_owned(),
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s if s < 365.0 * 86_400.0 => format!("{:.0} days", s / 86_400.0),
        s => format!("{:.0} years", s / (365.0 * 86_400.0)),
    }
}
