//! A training stage that a foreign trainer did, as a stage like any other: same fingerprint rule, same folder, same record.
//!
//! In a run folder `aloe run --stage NAME` takes over what lies in `work/NAME`, once it is checked; elsewhere only a stage that is done
//! already is accepted. What decides its result names the trainer and its versions in place of our kernels. Its seconds are those of the
//! job, and `results.handoff` tells engine, versions, devices and their hours.

use crate::failure::Failure;
use crate::handoff::{job_share, rendered};
use crate::recipe::checked::Stage;
use crate::recipe::stage_config::StageConfig;
use crate::stage::{Context, Done, Inputs, Job, execute, single};
use aloe_handoff::plan::is_run_folder;
use aloe_handoff::verify::{self, Expectation, ImportReport, PlannedStage, Verdict};
use aloe_handoff::{RunPlan, Trainer, engine, state};
use aloe_record::{Record, atomic};
use aloe_text::TextModel;
use anyhow::Context as _;
use serde_json::json;
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
        task_files: crate::stage::TaskFiles::new(),
        out,
    };
    execute(context, &job, |folder, record| take_over(stage, trainer, inputs, folder, record))
}

/// Checks what the trainer left in `work/NAME` of the run folder that is the current one, and writes it as our own trainer would.
fn take_over(
    stage: &Stage,
    trainer: Trainer,
    inputs: &Inputs,
    folder: &Path,
    record: &mut Record,
) -> anyhow::Result<()> {
    let run = Path::new(".");
    if !is_run_folder(run) {
        let text = format!(
            "it is trained by {}: write a run folder with `aloe plan RECIPE --where slurm|local --cluster cluster.toml --out RUN`, or write \
             trainer = \"aloe\"",
            trainer.name()
        );
        return Err(Failure::usage(text).into());
    }
    let plan = RunPlan::read(run)?;
    let planned = plan.stage(&stage.name)?;
    rendered::refuse_others(planned, single(inputs, "data", &planned.kind)?)?;
    // Before the check and the import, whose time is this record's own.
    let trained_s = state::read(run, &stage.name)?.worked_s(state::now_unix_s()) as f64;
    let expected: Expectation = atomic::read_json(&planned.folder.join("expected.json"))?;
    let work = Path::new("work").join(&stage.name);
    let verdict = verify::check(&work, &expected);
    if !verdict.is_good() {
        let findings: Vec<String> = verdict.findings.iter().map(|finding| format!("  {finding}")).collect();
        anyhow::bail!("{} is not what was planned\n{}", work.display(), findings.join("\n"));
    }
    let text =
        TextModel::open(&expected.start).with_context(|| format!("the tokenizer of {}", expected.start.display()))?;
    let template = match &stage.config {
        StageConfig::Sft(config) => config.chat_template.as_deref(),
        StageConfig::Dpo(config) => config.chat_template.as_deref(),
        _ => None,
    };
    let text = match template {
        Some(name) => text.with_template(name)?,
        None => text,
    };
    let mut report = verify::import(&work, &expected, &verdict, &text, folder)?;
    // The engine's own seconds lack the sessions that were killed.
    report.device_hours = report.device_hours.max(f64::from(report.world_size) * trained_s / 3600.0);
    record.elapsed_s = trained_s.max(report.seconds);
    record.device =
        format!("{} by {}, {}", report.devices.join(" and "), versions(trainer), processes(report.world_size));
    figures(&expected.stage, &verdict, &report, record)?;
    Ok(record.result(job_share::JOB, job_share::of(run, planned)?)?)
}

/// What the record of a stage says that another program trained: what our own trainer's would, as far as it is known, and how it was made.
pub(crate) fn figures(
    stage: &PlannedStage,
    verdict: &Verdict,
    report: &ImportReport,
    record: &mut Record,
) -> anyhow::Result<()> {
    let devices = report.devices.join(" and ");
    let summary = format!(
        "{} steps by {}, loss {:.3} -> {:.3}, {} on {devices}",
        report.n_steps,
        report.engine,
        report.loss_first_tenth,
        report.loss_last_tenth,
        processes(report.world_size)
    );
    record.result("summary", summary)?;
    let versions: Vec<String> = report.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    let how = format!(
        "trained by {} ({}) by {} on {} ({devices}), {:.3} device-hours",
        report.engine,
        versions.join(", "),
        processes(report.world_size),
        machines(report.n_hosts),
        report.device_hours
    );
    let counts = &stage.counts;
    let held_out = verdict.facts.held_out.as_ref();
    let planned = report.n_planned_steps;
    let told = held_out.map_or_else(Vec::new, |held_out| held_out.notices(planned));
    let vanished = report.export.notice();
    let notices: Vec<&String> = std::iter::once(&how).chain(&told).chain(&verdict.notices).chain(&vanished).collect();
    let mut figures = json!({
        "n_rows": counts.n_rows, "n_pairs": counts.n_rows, "n_tokens": counts.n_tokens, "n_targets": counts.n_targets,
        "n_held_out": counts.n_held_out, "stopped_early": report.n_steps < planned,
        "n_steps": report.n_steps, "loss_first_tenth": report.loss_first_tenth, "loss_last_tenth": report.loss_last_tenth,
        "export": report.export, "notices": notices,
    });
    if let (Some(figures), Some(held_out)) = (figures.as_object_mut(), held_out) {
        figures.extend(held_out.report(&stage.kind, counts.n_held_out));
    }
    record.result(&stage.kind, figures)?;
    Ok(record.result("handoff", report)?)
}

pub(crate) fn machines(n: u32) -> String {
    if n == 1 { "1 machine".to_owned() } else { format!("{n} machines") }
}

pub(crate) fn processes(n: u32) -> String {
    if n == 1 { "1 process".to_owned() } else { format!("{n} processes") }
}

/// The trainer with its versions, for what decides a result.
pub(crate) fn versions(trainer: Trainer) -> String {
    let pins = engine::versions(trainer).iter().map(|(name, version)| format!("{name}=={version}"));
    format!("{}: {}", trainer.name(), pins.collect::<Vec<_>>().join(" "))
}
