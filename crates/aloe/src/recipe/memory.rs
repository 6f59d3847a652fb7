//! Peak memory of each stage on its own; LOG.md has the measurements behind it. Training's terms are `aloe_train::TrainMemory`'s.

use super::checked::{Input, Recipe, Stage};
use super::plan::{GIB, Known, at_hand, input};
use super::stage_config::StageConfig;
use crate::weights::{DtypeName, Quantize};
use aloe_model::ModelSource;
use aloe_train::{TrainMemory, TrainShape};
use std::path::Path;

/// In bytes; `None` for a stage without a model, and for one of which too little is known.
pub(super) fn of_stage(recipe: &Recipe, stage: &Stage, known: &Known) -> Option<u64> {
    let parameters = known.n_parameters? as f64;
    let bytes = match &stage.config {
        StageConfig::Sft(_) | StageConfig::Dpo(_) => return Some(of_training(stage, known)?.peak()),
        // A few tiles a thread, whatever the size of the models.
        StageConfig::Merge(_) => 0.0625 * GIB,
        StageConfig::Eval(_) | StageConfig::Redteam(_) | StageConfig::Synthesis(_) | StageConfig::MergeSearch(_) => {
            let weights = match (stage.config.quantize(), recipe.dtype) {
                // A block of 32 weights and its 16-bit scale; heads and small models take a little more.
                (Some(Quantize::Q8), _) => 34.0 / 32.0 * parameters,
                (Some(Quantize::Q4), _) => 18.0 / 32.0 * parameters,
                (None, Some(DtypeName::F32)) => 4.0 * parameters,
                (None, None) => stored_bytes(stage).unwrap_or(2.0 * parameters),
                // At most: a processor that multiplies bf16 holds 1.5 (narrow.rs of aloe-tensor), and the plan may be made on another one.
                (None, _) => 2.0 * parameters,
            };
            let generates = known.generated.unwrap_or(0) > 0;
            weights + if generates { 0.27 * GIB } else { 0.13 * GIB }
        }
        _ => return None,
    };
    Some(bytes as u64)
}

/// The terms of a training stage, from its model's sizes where a checkpoint is at hand.
pub(super) fn of_training(stage: &Stage, known: &Known) -> Option<TrainMemory> {
    let n_parameters = known.n_parameters?;
    let (dtype, lora, recompute, n_tokens) = match &stage.config {
        StageConfig::Sft(config) => {
            let n_tokens = (config.max_len * config.micro_batch_size) as u64;
            (config.dtype, config.lora.as_ref(), config.recompute, n_tokens)
        }
        StageConfig::Dpo(config) => {
            // The largest micro-batch decides; where the pairs are still to be written, twice the mean stands for it.
            let mean = known.epoch_tokens? as f64 / known.rows?.max(1) as f64;
            let expected = (2.0 * mean).min(2.0 * config.max_len as f64) * config.micro_batch_size as f64;
            (config.dtype, config.lora.as_ref(), config.recompute, known.largest.unwrap_or(expected as u64))
        }
        _ => return None,
    };
    let file_bytes = known.start_bytes.unwrap_or(2 * n_parameters);
    let shape = TrainShape { dtype, lora, recompute, n_tokens, file_bytes };
    let source = known.checkpoint.as_deref().and_then(|path| ModelSource::open(path).ok());
    Some(match source {
        Some(source) => TrainMemory::of(source.config(), &shape),
        None => TrainMemory::about(n_parameters, &shape),
    })
}

/// Bytes of the file that a training stage reads its start weights from: of one that is there as it is, else f32 masters of a stage
/// that trains, and bf16 of any other.
pub(super) fn start_bytes(recipe: &Recipe, stage: &Stage, known: &[Known], n_parameters: Option<u64>) -> Option<u64> {
    let start = input(stage, "model").filter(|_| is_training(stage))?;
    let stored = |path: &Path| ModelSource::open(&aloe_train::start_weights(path)).ok()?.stored_bytes().ok();
    let (is_there, width) = match start {
        Input::Path(_) => (true, 2),
        // What is at hand for a stage that is still to be run is another stage's model.
        Input::Stage(at) => (known.get(*at)?.record.is_some(), if is_training(&recipe.stages[*at]) { 4 } else { 2 }),
    };
    let found = at_hand(start, known).filter(|_| is_there).and_then(|path| stored(&path));
    found.or(n_parameters.map(|n_parameters| width * n_parameters))
}

fn is_training(stage: &Stage) -> bool {
    matches!(stage.config, StageConfig::Sft(_) | StageConfig::Dpo(_))
}

/// Bytes of a `.gguf` model, which runs in its own blocks where no dtype is named.
fn stored_bytes(stage: &Stage) -> Option<f64> {
    let (_, models) = stage.from.iter().find(|(name, _)| *name == "model")?;
    let [Input::Path(path)] = models.as_slice() else { return None };
    let is_gguf = path.extension().is_some_and(|extension| extension == "gguf");
    is_gguf.then(|| path.metadata().ok()).flatten().map(|file| file.len() as f64)
}
