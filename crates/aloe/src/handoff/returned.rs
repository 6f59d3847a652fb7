//! A training stage that a foreign trainer did, as a stage like any other: same fingerprint rule, same folder, same record.
//!
//! In a run folder `aloe run --stage NAME` takes over what lies in `work/NAME`, once it was checked; elsewhere only a stage that is done
//! already is accepted. What decides its result names the trainer and its versions in place of our kernels.

use crate::failure::Failure;
use crate::recipe::checked::Stage;
use crate::stage::{Context, Done, Inputs, Job, execute};
use aloe_handoff::{Trainer, engine};
use std::path::Path;

/// The stage's record, its results taken over where they are not there yet.
pub(crate) fn run(
    stage: &Stage,
    trainer: Trainer,
    inputs: &Inputs,
    out: &Path,
    context: &Context,
) -> anyhow::Result<Done> {
    let mut used = stage.config.used()?;
    used["trainer"] = versions(trainer).into();
    let job = Job {
        kind: stage.config.kind(),
        name: &stage.name,
        written: stage.written.clone(),
        used,
        inputs,
        extra_files: Vec::new(),
        out,
    };
    execute(context, &job, |_, _| {
        let text = format!(
            "it is trained by {}: write a run folder with `aloe plan RECIPE --where slurm|local --cluster cluster.toml --out RUN`, or write \
             trainer = \"aloe\"",
            trainer.name()
        );
        Err(Failure::usage(text).into())
    })
}

/// The trainer with its versions, for what decides a result.
fn versions(trainer: Trainer) -> String {
    let pins = engine::TRL_VERSIONS.iter().map(|(name, version)| format!("{name}=={version}"));
    format!("{}: {}", trainer.name(), pins.collect::<Vec<_>>().join(" "))
}
