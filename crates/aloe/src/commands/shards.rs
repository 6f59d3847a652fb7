//! Stages in shards. A data stage's are in `data_shards.rs`; of an evaluation each answers some of the tasks in a process of its own, and a last
//! step makes of their folders the stage that one process would have written, byte for byte, without asking a model.
//!
//! Nodes of an array may have other processors. A shard counts as done on whichever path made it, as under any stage that is done; where they are
//! not all this process's own, the stage's settings name them, so that its record does not say that this processor gave those answers.
//!
//! Shard I of N has every N-th task from the I-th on. It is a finished evaluation of those tasks, without what needs all of them:
//! the comparison with an earlier run and the accuracies that must come out.

use super::data_shards;
use super::stages::{self, Compared};
use crate::failure::Failure;
use crate::handoff::job_share;
use crate::lineage;
use crate::recipe::checked::Stage;
use crate::recipe::eval_stage::EvalStage;
use crate::recipe::stage_config::StageConfig;
use crate::stage::{Context, Done, Inputs, Job, SERVED_BY, execute, made_on};
use aloe_handoff::shard::{self, Shard};
use aloe_record::Record;
use aloe_task::Task;
use aloe_tensor::Isa;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What is wrong with dividing a stage into `n` parts.
pub(crate) fn mistake(config: &StageConfig, n: u32) -> Option<String> {
    let stage = match config {
        StageConfig::Eval(stage) => stage,
        StageConfig::Data(stage) => return data_shards::mistake(stage),
        other => return Some(format!("shards are of evaluations and data, not of {}", other.kind())),
    };
    if stage.is_open() {
        return Some("shards are of evaluations with options, and its tasks are open".to_owned());
    }
    let n_tasks = Task::parse_all(&stage.tasks).map_or(0, |tasks| tasks.len());
    (n as usize > n_tasks)
        .then(|| format!("{n} shards for {n_tasks} tasks: a shard has whole tasks, so write {n_tasks} at most"))
}

fn refuse_mistake(config: &StageConfig, n: u32) -> anyhow::Result<()> {
    mistake(config, n).map_or(Ok(()), |mistake| Err(Failure::usage(mistake).into()))
}

/// The settings of one shard of an evaluation.
fn part_of(config: &StageConfig, shard: Shard<'_>) -> anyhow::Result<StageConfig> {
    let StageConfig::Eval(stage) = config else { return Err(Failure::usage("no evaluation").into()) };
    let mut part = stage.clone();
    let tasks = Task::parse_all(&stage.tasks)?;
    let own = tasks.iter().skip(shard.index as usize - 1).step_by(shard.n as usize);
    part.tasks = own.map(|task| task.name()).collect();
    part.expect_accuracy.clear();
    Ok(StageConfig::Eval(part))
}

fn inputs_of_part(inputs: &Inputs) -> Inputs {
    let mut inputs = inputs.clone();
    inputs.remove("compare");
    inputs
}

/// Runs one shard into `folder/I-of-N`.
pub(crate) fn run(
    stage: &Stage,
    inputs: &Inputs,
    shard: Shard<'_>,
    folder: &Path,
    context: &Context,
) -> anyhow::Result<Done> {
    refuse_mistake(&stage.config, shard.n)?;
    let out = folder.join(shard.suffix());
    if let StageConfig::Data(config) = &stage.config {
        let inputs = data_shards::inputs_of_part(inputs);
        let job = data_shards::job_of_part(&stage.config, stage, shard, &inputs, &out)?;
        return data_shards::sign(config, shard, &job, context);
    }
    let config = part_of(&stage.config, shard)?;
    stages::run(&config, &stage.name, stage.written.clone(), &inputs_of_part(inputs), &out, context)
}

/// Makes the stage of `n` finished shards in `folder`.
pub(crate) fn gather(
    stage: &Stage,
    inputs: &Inputs,
    n: u32,
    folder: &Path,
    out: &Path,
    context: &Context,
) -> anyhow::Result<Done> {
    refuse_mistake(&stage.config, n)?;
    match &stage.config {
        StageConfig::Data(config) => gather_data(config, stage, inputs, n, folder, out, context),
        StageConfig::Eval(config) => gather_answers(config, stage, inputs, n, folder, out, context),
        other => Err(Failure::usage(format!("--gather is not for {}", other.kind())).into()),
    }
}

fn gather_data(
    data: &aloe_data::DataConfig,
    stage: &Stage,
    inputs: &Inputs,
    n: u32,
    folder: &Path,
    out: &Path,
    context: &Context,
) -> anyhow::Result<Done> {
    let of_part = data_shards::inputs_of_part(inputs);
    let mut parts: Vec<PathBuf> = Vec::new();
    for index in 1..=n {
        let shard = Shard { of: &stage.name, index, n };
        let part = folder.join(shard.suffix());
        record_of(&part, shard)?;
        // Signatures are the same on every processor.
        let _ = maker_of(shard, &data_shards::job_of_part(&stage.config, stage, shard, &of_part, &part)?, context)?;
        parts.push(part);
    }
    let job = job_of(&stage.config, stage, inputs, out, &None)?;
    execute(context, &job, |written, record| {
        note_parts(&parts, record)?;
        data_shards::gather(data, inputs, &parts, &folder.join("merged"), written, record, context)
    })
}

/// Time and cost of the shards, for the record of what they make together.
fn note_parts(parts: &[PathBuf], record: &mut Record) -> anyhow::Result<()> {
    record.elapsed_s = parts.iter().filter_map(|part| Record::read(part).ok()).map(|record| record.elapsed_s).sum();
    record.result("shards", parts.len())?;
    job_share::gathered(parts, record)
}

fn record_of(part: &Path, shard: Shard<'_>) -> anyhow::Result<Record> {
    let (index, n) = (shard.index, shard.n);
    Record::read(part).map_err(|error| Failure::usage(format!("shard {index} of {n}: {error}; run it first")).into())
}

/// The processor that made a finished shard; it must be that of these settings and inputs.
fn maker_of(shard: Shard<'_>, job: &Job<'_>, context: &Context) -> anyhow::Result<Isa> {
    let what = "is not the shard of these settings and inputs, or its files were changed";
    made_on(context, job)?.ok_or_else(|| run_again(shard, job.out, what))
}

/// Why a finished shard is not gathered, and what to do.
fn run_again(shard: Shard<'_>, part: &Path, what: &str) -> anyhow::Error {
    let (part, state) = (part.display(), shard::name_of(shard.of, shard.index, shard.n));
    Failure::usage(format!("{part} {what}: remove {part} and state/{state} and run it again")).into()
}

fn gather_answers(
    eval: &EvalStage,
    stage: &Stage,
    inputs: &Inputs,
    n: u32,
    folder: &Path,
    out: &Path,
    context: &Context,
) -> anyhow::Result<Done> {
    let mut parts: Vec<PathBuf> = Vec::new();
    let mut served: Option<Value> = None;
    let mut made_by = BTreeSet::new();
    for index in 1..=n {
        let shard = Shard { of: &stage.name, index, n };
        let part = folder.join(shard.suffix());
        let record = record_of(&part, shard)?;
        let config = part_of(&stage.config, shard)?;
        // How its servers were started stands in its record alone: they are gone.
        let by = record.config_used.get(SERVED_BY).cloned();
        if index > 1 && by != served {
            let text = format!("{}: its model was served otherwise than the first shard's", part.display());
            return Err(Failure::usage(text).into());
        }
        served = by;
        let inputs = inputs_of_part(inputs);
        let job = job_of(&config, stage, &inputs, &part, &served)?;
        made_by.insert(maker_of(shard, &job, context)?.name());
        // The marks of questions that were trained on stand in its samples.
        if lineage::has_changed(&record, &inputs) {
            let what = "was held against other training rows than its model has now";
            return Err(run_again(shard, &part, what));
        }
        parts.push(part);
    }
    let mut job = job_of(&stage.config, stage, inputs, out, &served)?;
    let own = context.device().isa().name();
    if made_by.iter().any(|name| *name != own) {
        let names: Vec<&str> = made_by.into_iter().collect();
        aloe_record::tell(&format!(
            "note: the shards of {} were made on processors with {}",
            stage.name,
            names.join(", ")
        ));
        job.used["processors"] = names.into();
    }
    execute(context, &job, |folder, record| {
        let (config, compared) = Compared::of(eval, inputs)?;
        let results = aloe_eval::gather(&parts, &config, folder)?;
        note_parts(&parts, record)?;
        compared.conclude(results, &config, folder, record)
    })
}

fn job_of<'a>(
    config: &StageConfig,
    stage: &'a Stage,
    inputs: &'a Inputs,
    out: &'a Path,
    served: &Option<Value>,
) -> anyhow::Result<Job<'a>> {
    let mut used = config.used()?;
    if let Some(by) = served {
        used[SERVED_BY] = by.clone();
    }
    let (kind, extra_files) = (stage.config.kind(), stages::extra_files(config));
    let (written, task_files) = (stage.written.clone(), stages::task_files(config));
    Ok(Job { kind, name: &stage.name, written, used, inputs, extra_files, task_files, out })
}
