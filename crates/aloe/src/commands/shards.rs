//! An evaluation in shards: each answers some of the tasks in a process of its own, and a last step makes of their folders the stage that one
//! process would have written, byte for byte, without asking a model.
//!
//! Nodes of an array may have other processors. A shard counts as done on whichever path made it, as under any stage that is done; where they are
//! not all this process's own, the stage's settings name them, so that its record does not say that this processor gave those answers.
//!
//! Shard I of N has every N-th task from the I-th on. It is a finished evaluation of those tasks, without what needs all of them:
//! the comparison with an earlier run and the accuracies that must come out.

use super::stages::{self, Compared};
use crate::failure::Failure;
use crate::handoff::job_share;
use crate::recipe::checked::Stage;
use crate::recipe::stage_config::StageConfig;
use crate::stage::{Context, Done, Inputs, Job, SERVED_BY, execute, made_on};
use aloe_handoff::shard::Shard;
use aloe_record::Record;
use aloe_task::Task;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What is wrong with dividing a stage into `n` parts.
pub(crate) fn mistake(config: &StageConfig, n: u32) -> Option<String> {
    let StageConfig::Eval(stage) = config else {
        return Some(format!("shards are of evaluations, not of {}", config.kind()));
    };
    if stage.is_open() {
        return Some("shards are of evaluations with options, and its tasks are open".to_owned());
    }
    let n_tasks = Task::parse_all(&stage.tasks).map_or(0, |tasks| tasks.len());
    (n as usize > n_tasks)
        .then(|| format!("{n} shards for {n_tasks} tasks: a shard has whole tasks, so write {n_tasks} at most"))
}

/// The settings of one shard.
fn part_of(config: &StageConfig, shard: Shard<'_>) -> anyhow::Result<StageConfig> {
    if let Some(mistake) = mistake(config, shard.n) {
        return Err(Failure::usage(mistake).into());
    }
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
    let config = part_of(&stage.config, shard)?;
    let out = folder.join(shard.suffix());
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
    let StageConfig::Eval(eval) = &stage.config else {
        return Err(Failure::usage(format!("--gather is for evaluations, not for {}", stage.config.kind())).into());
    };
    let mut parts: Vec<PathBuf> = Vec::new();
    let mut served: Option<Value> = None;
    let mut made_by = BTreeSet::new();
    for index in 1..=n {
        let shard = Shard { of: &stage.name, index, n };
        let part = folder.join(shard.suffix());
        let record = Record::read(&part)
            .map_err(|error| Failure::usage(format!("shard {index} of {n}: {error}; run it first")))?;
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
        let Some(isa) = made_on(context, &job)? else {
            let text = format!(
                "{} is not the shard of these settings and inputs, or its files were changed: remove {} and state/{}.{index}-of-{n} and run it again",
                part.display(),
                part.display(),
                stage.name
            );
            return Err(Failure::usage(text).into());
        };
        made_by.insert(isa.name());
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
        let seconds: f64 = parts.iter().filter_map(|part| Record::read(part).ok()).map(|record| record.elapsed_s).sum();
        record.elapsed_s = seconds;
        record.result("shards", parts.len())?;
        job_share::gathered(&parts, record)?;
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
    Ok(Job { kind, name: &stage.name, written: stage.written.clone(), used, inputs, extra_files, out })
}
