//! From checked settings to a stage's spine: one function per kind that opens what the spine needs, calls it and fills
//! the record. `aloe run` and the subcommands both come through here.

use crate::recipe::checked::{MergeStage, PullConfig, StageConfig};
use crate::stage::{Context, Done, Inputs, Job, execute, master_of, model_of, single};
use aloe_engine::{Engine, EngineOptions};
use aloe_merge::MergeConfig;
use aloe_record::{Progress, Record};
use aloe_train::{DpoInputs, SftInputs};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Runs one stage into `out` unless it is done.
pub(crate) fn run(
    config: &StageConfig,
    name: &str,
    written: Value,
    inputs: &Inputs,
    out: &Path,
    context: &Context,
) -> anyhow::Result<Done> {
    let extra_files = extra_files(config);
    let job = Job { kind: config.kind(), name, written, used: config.used()?, inputs, extra_files, out };
    execute(context, &job, |folder, record| match config {
        StageConfig::Pull(config) => pull(config, folder, record, context),
        StageConfig::Data(config) => data(config, folder, record, context),
        StageConfig::Sft(config) => sft(config, inputs, folder, record, context),
        StageConfig::Dpo(config) => dpo(config, inputs, folder, record, context),
        StageConfig::Merge(config) => merge(config, inputs, folder, record, context),
        StageConfig::Eval(config) => eval(config, inputs, folder, record, context),
        StageConfig::Redteam(config) => redteam(config, inputs, folder, record, context),
        StageConfig::Card(config) => crate::card::write(config, inputs, folder, record),
    })
}

/// Files and folders beside the inputs that the settings name.
pub(crate) fn extra_files(config: &StageConfig) -> Vec<PathBuf> {
    match config {
        StageConfig::Data(config) => config.files(),
        StageConfig::Eval(config) => config.files(),
        StageConfig::Redteam(config) => config.files(),
        StageConfig::Pull(_) | StageConfig::Sft(_) | StageConfig::Dpo(_) | StageConfig::Merge(_) | StageConfig::Card(_) => {
            Vec::new()
        }
    }
}

fn pull(config: &PullConfig, folder: &Path, record: &mut Record, context: &Context) -> anyhow::Result<()> {
    let pulled = crate::sources::pull(&config.source, &folder.join("model"), &context.cancel)?;
    record.result("source", &config.source)?;
    record.result("licence", &config.licence)?;
    record.result("source_sha256", &pulled.sha256)?;
    record.result("n_parameters", pulled.n_parameters)?;
    let summary = format!("{:.1} M parameters from {}", pulled.n_parameters as f64 / 1e6, config.source);
    record.result("summary", summary)?;
    Ok(())
}
