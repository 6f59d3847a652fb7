//! What a recipe will cost: tokens, memory and time per stage, with the assumptions printed beside them.
//!
//! Nothing here is measured on the recipe itself. Sizes come from `expect`, from finished stages, or from the bytes of
//! data files that are at hand; a size that nobody knows is shown as unknown.

use super::checked::{Input, Recipe, Stage};
use super::stage_config::StageConfig;
use aloe_record::Record;
use serde::Serialize;
use std::path::Path;

/// Sustained arithmetic of a training step on the reference machine (2 cores, bf16), in FLOP/s.
pub(crate) const LOCAL_FLOPS: f64 = 2.4e11;
/// 40 % of an H100's dense bf16 peak (989 TFLOP/s), times four: one node of the reference system.
pub(crate) const NODE_FLOPS: f64 = 4.0 * 0.4 * 9.89e14;
/// Bytes of UTF-8 text per token, for data that was not tokenised yet.
const BYTES_PER_TOKEN: f64 = 4.2;

/// One row of the plan.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) stage: String,
    pub(crate) kind: &'static str,
    /// Rows, pairs or questions.
    pub(crate) rows: Option<u64>,
    /// Tokens that go through the model, all epochs.
    pub(crate) tokens: Option<u64>,
    /// Peak memory in bytes.
    pub(crate) memory_bytes: Option<u64>,
    /// Seconds on two cores of the reference machine; see [`LOCAL_FLOPS`].
    pub(crate) local_s: Option<f64>,
    /// Seconds on one 4xH100 node at 40 % of peak.
    pub(crate) node_s: Option<f64>,
    /// Whether the output folder holds a record of the stage. Whether it is still valid shows when it is run.
    pub(crate) has_output: bool,
}

/// The plan of every stage; `out` is where finished stages are looked for.
pub(crate) fn rows(recipe: &Recipe, out: &Path) -> Vec<Row> {
    let mut parameters: Vec<Option<u64>> = Vec::new();
    let mut data_tokens: Vec<Option<u64>> = Vec::new();
    let mut planned = Vec::new();
    for stage in &recipe.stages {
        let record = Record::read(&out.join(&stage.name)).ok();
        let model = input(stage, "model").or_else(|| input(stage, "base")).and_then(|at| parameters[at]);
        let n_parameters = stage.expect.parameters.or_else(|| parameters_of(record.as_ref())).or(model);
        let tokens = stage.expect.tokens.or_else(|| match &stage.config {
            StageConfig::Data(config) => text_tokens(config),
            _ => input(stage, "data").and_then(|at| data_tokens[at]),
        });
        let row = row(stage, n_parameters, tokens, record.is_some());
        parameters.push(n_parameters);
        data_tokens.push(tokens);
        planned.push(row);
    }
    planned
}

fn input(stage: &Stage, key: &str) -> Option<usize> {
    stage.from.iter().find(|(name, _)| name == key).and_then(|(_, inputs)| match inputs.first() {
        Some(Input::Stage(at)) => Some(*at),
        _ => None,
    })
}

fn parameters_of(record: Option<&Record>) -> Option<u64> {
    record?.results.get("n_parameters")?.as_u64()
}

fn text_tokens(config: &aloe_data::DataConfig) -> Option<u64> {
    let mut n_bytes = 0;
    for source in &config.sources {
        n_bytes += source.path.metadata().ok().filter(std::fs::Metadata::is_file)?.len();
    }
    Some((n_bytes as f64 / BYTES_PER_TOKEN) as u64)
}

fn row(stage: &Stage, n_parameters: Option<u64>, tokens: Option<u64>, has_output: bool) -> Row {
    let (passes, flops_per_parameter, bytes_per_parameter) = match &stage.config {
        StageConfig::Sft(config) => (config.epochs.unwrap_or(1), 6.0, 18),
        // Chosen and rejected are both in the data's tokens; the reference adds one forward pass of 2.
        StageConfig::Dpo(config) => (config.epochs, 8.0, 18),
        StageConfig::Merge(_) => (0, 0.0, 0),
        StageConfig::Eval(_) | StageConfig::Redteam(_) => (1, 2.0, 2),
        StageConfig::Pull(_) | StageConfig::Data(_) | StageConfig::Card(_) => (0, 0.0, 0),
    };
    let computes = flops_per_parameter > 0.0;
    let all_tokens = if computes { tokens.map(|tokens| tokens * passes) } else { tokens };
    let flops = match (all_tokens, n_parameters) {
        (Some(tokens), Some(parameters)) if computes => Some(flops_per_parameter * tokens as f64 * parameters as f64),
        _ => None,
    };
    let memory_bytes = match (&stage.config, n_parameters) {
        // Streamed: the largest tensor in f32 (the embedding, at most a tenth of a small model) and tiles.
        (StageConfig::Merge(_), Some(parameters)) => Some((4 * parameters / 10).max(256 << 20)),
        (_, Some(parameters)) if computes => Some(bytes_per_parameter * parameters + (1 << 30)),
        _ => None,
    };
    Row {
        stage: stage.name.clone(),
        kind: stage.config.kind(),
        rows: stage.expect.rows,
        tokens: all_tokens,
        memory_bytes,
        local_s: flops.map(|flops| flops / LOCAL_FLOPS),
        node_s: flops.map(|flops| flops / NODE_FLOPS),
        has_output,
    }
}

/// The plan as a table with its assumptions.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<20} {:<8} {:>10} {:>14} {:>10} {:>14} {:>14}\n",
        "stage", "kind", "rows", "tokens", "memory", "2 CPU cores", "4xH100 node"
    );
    for row in rows {
        let unknown = || "unknown".to_owned();
        let kind_computes = matches!(row.kind, "sft" | "dpo" | "eval" | "redteam");
        let tokens = row.tokens.map_or_else(|| if kind_computes { unknown() } else { "-".into() }, |n| n.to_string());
        let memory =
            row.memory_bytes.map_or_else(|| "-".to_owned(), |n| format!("{:.1} GiB", n as f64 / (1u64 << 30) as f64));
        let line = format!(
            "{:<20} {:<8} {:>10} {:>14} {:>10} {:>14} {:>14}{}\n",
            row.stage,
            row.kind,
            row.rows.map_or_else(|| "-".to_owned(), |n| n.to_string()),
            tokens,
            memory,
            row.local_s.map_or_else(|| "-".to_owned(), duration),
            row.node_s.map_or_else(|| "-".to_owned(), duration),
            if row.has_output { "  has output" } else { "" }
        );
        text.push_str(&line);
    }
    text.push_str(&format!(
        "\nEstimates, not measurements. Time: 6 FLOP a parameter and token for SFT, 8 for DPO (with its reference), 2 for \
         reading; two cores of the reference machine {:.0} GFLOP/s,\na 4xH100 node {:.0} TFLOP/s (40 % of peak). Memory: 18 bytes a parameter for \
         training (bf16 copy, f32 master, two moments, gradient), 2 for reading, plus 1 GiB;\nmerging streams. Tokens: \
         `expect` of the recipe, else {BYTES_PER_TOKEN} bytes of the data files a token. Generated tokens are not \
         counted.\n",
        LOCAL_FLOPS / 1e9,
        NODE_FLOPS / 1e12
    ));
    text
}

/// Seconds in the unit a person would use.
pub(crate) fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s if s < 365.0 * 86_400.0 => format!("{:.0} days", s / 86_400.0),
        s => format!("{:.0} years", s / (365.0 * 86_400.0)),
    }
}
