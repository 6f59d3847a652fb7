//! Memory and time of training stages from a step that is run for the plan: one step for each shape of model and micro-batch. What handing
//! over takes beyond the steps is added as `memory` plans it.

use super::checked::Stage;
use super::memory;
use super::plan::{Known, Row, STARTUP_S};
use super::stage_config::StageConfig;
use aloe_model::ModelSource;
use aloe_tensor::Device;
use aloe_train::{StepCost, StepShape, measure_step};
use std::path::PathBuf;

/// What decides a step's cost.
#[derive(Clone, PartialEq)]
struct Shape {
    checkpoint: PathBuf,
    step: StepShape,
}

/// The steps run so far, with their peak memory in bytes.
pub(super) struct MeasuredSteps<'a> {
    device: &'a Device,
    found: Vec<(Shape, StepCost, u64)>,
}

impl<'a> MeasuredSteps<'a> {
    pub(super) fn new(device: &'a Device) -> Self {
        Self { device, found: Vec::new() }
    }

    /// Puts measured memory and time into a training stage's row, where its sizes are known and a checkpoint is at hand.
    pub(super) fn measure(&mut self, stage: &Stage, known: &Known, row: &mut Row) -> anyhow::Result<()> {
        let Some((shape, n_micro, n_passes)) = shape(stage, known) else { return Ok(()) };
        let (cost, peak_bytes) = self.cost(shape)?;
        let n_steps = known.steps.unwrap_or(0) as f64;
        row.local_s = Some(STARTUP_S + n_steps * cost.update_s + n_micro * n_passes * cost.micro_batch_s);
        let end = memory::of_training(stage, known).map_or(0, |planned| planned.peak() - planned.of_steps());
        row.memory_bytes = Some(peak_bytes + end);
        row.is_measured = true;
        Ok(())
    }

    fn cost(&mut self, shape: Shape) -> anyhow::Result<(StepCost, u64)> {
        if let Some((_, cost, peak_bytes)) = self.found.iter().find(|(found, _, _)| *found == shape) {
            return Ok((*cost, *peak_bytes));
        }
        aloe_tensor::give_back_freed_memory();
        crate::stage::reset_peak_memory();
        let source = ModelSource::open(&shape.checkpoint)?;
        let cost = measure_step(&source, &shape.step, self.device)?;
        let peak_bytes = aloe_record::peak_rss_bytes();
        self.found.push((shape, cost, peak_bytes));
        Ok((cost, peak_bytes))
    }
}

/// The shape of a stage's micro-batch, how many there are, and how many times the work of training each takes: a reference is one
/// forward pass more, a third of forward and backward.
fn shape(stage: &Stage, known: &Known) -> Option<(Shape, f64, f64)> {
    let checkpoint = known.checkpoint.clone()?;
    let mean = (known.epoch_tokens? as f64 / known.rows?.max(1) as f64).ceil().max(2.0) as usize;
    match &stage.config {
        StageConfig::Sft(config) => {
            let room = config.max_len * config.micro_batch_size;
            let len = mean.min(config.max_len);
            let mut lens = vec![len; room / len];
            lens.extend(Some(room % len).filter(|rest| *rest >= 2));
            let n_micro = known.tokens? as f64 / room as f64;
            let lora = config.lora.clone();
            let step = StepShape { dtype: config.dtype, recompute: config.recompute, lora, lens };
            Some((Shape { checkpoint, step }, n_micro, 1.0))
        }
        StageConfig::Dpo(config) => {
            let lens = vec![mean.min(2 * config.max_len); config.micro_batch_size];
            let n_micro = known.tokens? as f64 / (mean * config.micro_batch_size) as f64;
            let lora = config.lora.clone();
            let step = StepShape { dtype: config.dtype, recompute: config.recompute, lora, lens };
            Some((Shape { checkpoint, step }, n_micro, 4.0 / 3.0))
        }
        _ => None,
    }
}
