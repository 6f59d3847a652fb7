//! A data stage in shards: each signs some of the rows in a process of its own, and a last step finds the duplicates among all of them and
//! writes the stage that one process would have written, byte for byte.
//!
//! Shard I of N has every N-th row from the I-th on; it reads all of them, for only so does it know their numbers. Decontamination, models and
//! the mixture are the last step's, which reads the rows once more.

use super::data_stage;
use crate::recipe::checked::{ROWS, Stage};
use crate::recipe::stage_config::StageConfig;
use crate::stage::{Context, Done, Inputs, Job, execute};
use aloe_data::DataConfig;
use aloe_handoff::shard::Shard;
use aloe_record::{Progress, Record};
use std::path::{Path, PathBuf};

/// What is wrong with dividing a data stage.
pub(super) fn mistake(config: &DataConfig) -> Option<String> {
    let path = config.duplicates.as_ref()?;
    Some(format!(
        "shards find its duplicates, and `duplicates` = {} has found them: leave one of both out",
        path.display()
    ))
}

/// Earlier stages' rows: a signature depends on no model.
pub(super) fn inputs_of_part(inputs: &Inputs) -> Inputs {
    inputs.iter().filter(|(name, _)| *name == ROWS).map(|(name, paths)| (name.clone(), paths.clone())).collect()
}

/// What signs one share of the rows into `out`.
pub(super) fn job_of_part<'a>(
    config: &StageConfig,
    stage: &'a Stage,
    shard: Shard<'_>,
    inputs: &'a Inputs,
    out: &'a Path,
) -> anyhow::Result<Job<'a>> {
    let mut used = config.used()?;
    used["signs"] = shard.suffix().into();
    let extra_files = super::stages::extra_files(config);
    let (kind, written, task_files) = (config.kind(), stage.written.clone(), crate::stage::TaskFiles::new());
    Ok(Job { kind, name: &stage.name, written, used, inputs, extra_files, task_files, out })
}

/// Runs one shard.
pub(super) fn sign(config: &DataConfig, shard: Shard<'_>, job: &Job<'_>, context: &Context) -> anyhow::Result<Done> {
    execute(context, job, |folder, record| {
        let config = config.with_stages(job.inputs.get(ROWS).map(Vec::as_slice).unwrap_or_default())?;
        let share = aloe_data::Shard { index: shard.index as usize, n: shard.n as usize };
        let progress = Progress::new("signing", 0, "rows");
        let report = aloe_data::sign_shard(&config, share, folder, context.threads, &progress, &context.cancel)?;
        progress.finish();
        record.result("summary", format!("{} of {} rows signed", report.n_signed, report.n_rows))?;
        Ok(())
    })
}

/// Finds the duplicates among the rows of all shards, in `merged`, and writes the stage into `folder`.
pub(super) fn gather(
    config: &DataConfig,
    inputs: &Inputs,
    parts: &[PathBuf],
    merged: &Path,
    folder: &Path,
    record: &mut Record,
    context: &Context,
) -> anyhow::Result<()> {
    aloe_data::merge_shards(parts, merged)?;
    let config = DataConfig { duplicates: Some(merged.to_path_buf()), ..config.clone() };
    data_stage::run(&config, inputs, folder, record, context)
}
