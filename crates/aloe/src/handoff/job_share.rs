//! What the job of a run folder cost its site: machines, GPUs and their hours, for the record of the stage that it makes. Only a process that
//! `aloe job` started has one; by hand a stage costs this machine's seconds alone, which its record has anyway.

use aloe_handoff::job::STAGE_VARIABLE;
use aloe_handoff::plan::is_run_folder;
use aloe_handoff::{Cluster, RunPlan, StagePlan, state};
use aloe_record::Record;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The entry of a record's results.
pub(crate) const JOB: &str = "job";

/// The job of `planned` so far. GPUs are billed while the job has them, whether they compute or not: its seconds are those of all its
/// sessions of work, with the loading of servers.
pub(crate) fn of(run: &Path, planned: &StagePlan) -> anyhow::Result<Value> {
    let asked = planned.resources;
    let n_gpus = asked.n_nodes * asked.gpus_per_node;
    let worked_s = state::read(run, &planned.name)?.worked_s(state::now_unix_s()) as f64;
    Ok(json!({
        "n_nodes": asked.n_nodes, "n_gpus": n_gpus, "worked_s": worked_s, "gpu_hours": f64::from(n_gpus) * worked_s / 3600.0,
        "gpu_watts": Cluster::read(&run.join("cluster.toml"))?.node.gpu_watts,
    }))
}

/// Puts the share of this process's job into the record of the stage that it makes; nothing where no job runs it.
pub(crate) fn note(record: &mut Record) -> anyhow::Result<()> {
    let Some(name) = std::env::var(STAGE_VARIABLE).ok().filter(|name| !name.is_empty()) else { return Ok(()) };
    let run = Path::new(".");
    if record.results.contains_key(JOB) || !is_run_folder(run) {
        return Ok(());
    }
    let plan = RunPlan::read(run)?;
    match plan.stages.iter().find(|stage| stage.name == name && stage.in_recipe() == record.name) {
        // Finished work is not given up for a figure about it.
        Some(planned) => match of(run, planned) {
            Ok(share) => Ok(record.result(JOB, share)?),
            Err(error) => {
                aloe_record::tell(&format!("note: the job's GPU hours are not in the record: {error:#}"));
                Ok(())
            }
        },
        None => Ok(()),
    }
}

/// The sum over the shards of a stage; nothing where none has a share.
pub(crate) fn gathered(parts: &[PathBuf], record: &mut Record) -> anyhow::Result<()> {
    let shares = parts.iter().filter_map(|part| Record::read(part).ok()?.results.get(JOB).cloned());
    let shares: Vec<Value> = shares.collect();
    let Some(first) = shares.first() else { return Ok(()) };
    let count = |key: &str| shares.iter().filter_map(|share| share[key].as_u64()).sum::<u64>();
    let sum = |key: &str| shares.iter().filter_map(|share| share[key].as_f64()).sum::<f64>();
    let share = json!({
        "n_nodes": count("n_nodes"), "n_gpus": count("n_gpus"), "worked_s": sum("worked_s"), "gpu_hours": sum("gpu_hours"),
        "gpu_watts": first["gpu_watts"],
    });
    Ok(record.result(JOB, share)?)
}
