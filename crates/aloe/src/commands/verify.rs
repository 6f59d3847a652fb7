//! `aloe verify`: what a foreign trainer left, checked and, if asked, taken over as a stage like our own.
//!
//! The checks are `aloe_handoff::verify`. A folder with a finding is never taken over. The taken-over stage's record has the fingerprint
//! that `aloe run` would give it, and names engine, versions, devices and hours.

use crate::cli::VerifyArgs;
use crate::failure::Failure;
use crate::handoff::returned::{self, machines, processes};
use crate::stage::{Context, Inputs, Job, execute};
use aloe_handoff::Trainer;
use aloe_handoff::verify::{self, Expectation, Verdict};
use aloe_record::{Cancel, Record, atomic};
use aloe_text::TextModel;
use std::io::Write as _;
use std::path::Path;

/// Checks a folder, or finds its newest whole checkpoint.
pub(crate) fn run(args: &VerifyArgs, cancel: &Cancel) -> anyhow::Result<()> {
    if !args.folder.is_dir() {
        return Err(Failure::usage(format!("{} is no folder", args.folder.display())).into());
    }
    let Some(path) = &args.expected else { return newest(&args.folder) };
    let mut expected: Expectation = atomic::read_json(path)?;
    expected.start = args.run.join(&expected.start);
    let verdict = verify::check(&args.folder, &expected);
    report(&verdict, args)?;
    if !verdict.is_good() {
        let n = verdict.findings.len();
        let findings = if n == 1 { "1 finding".to_owned() } else { format!("{n} findings") };
        anyhow::bail!("{} is not what the plan asks for: {findings}; nothing was taken over", args.folder.display());
    }
    verify::seal(&args.folder, verdict.facts.n_steps)?;
    match &args.out {
        Some(out) => take_over(args, &expected, &verdict, out, cancel),
        None => Ok(()),
    }
}

/// Prints the newest checkpoint that is whole; why a newer one is not goes to the terminal.
fn newest(folder: &Path) -> anyhow::Result<()> {
    let newest = verify::newest_checkpoint(folder);
    newest.passed_over.iter().for_each(|reason| aloe_record::tell(&format!("note: passed over {reason}")));
    if let Some((path, _)) = newest.found {
        writeln!(std::io::stdout(), "{}", path.display())?;
    }
    Ok(())
}

fn report(verdict: &Verdict, args: &VerifyArgs) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(verdict)?)?;
        return Ok(());
    }
    for finding in &verdict.findings {
        writeln!(out, "{finding}")?;
    }
    verdict.notices.iter().for_each(|notice| aloe_record::tell(&format!("note: {notice}")));
    let facts = &verdict.facts;
    if verdict.is_good() {
        writeln!(
            out,
            "{}: {} steps on {} of {}, {} tensors, all finite and moved (|dW|/|W| {:.2e}), ids and template unchanged",
            args.folder.display(),
            facts.n_steps,
            processes(facts.world_size),
            machines(facts.n_hosts),
            facts.n_tensors,
            facts.moved
        )?;
    }
    Ok(())
}

fn take_over(
    args: &VerifyArgs,
    expected: &Expectation,
    verdict: &Verdict,
    out: &Path,
    cancel: &Cancel,
) -> anyhow::Result<()> {
    let stage = &expected.stage;
    let inputs: Inputs = [("model", &args.model), ("data", &args.data)]
        .into_iter()
        .filter_map(|(name, path)| Some((name.to_owned(), vec![path.clone()?])))
        .collect();
    // As `aloe run` says it: who trained, and with which versions, decides the result.
    let mut used = stage.config.clone();
    let trainer = if expected.versions.contains_key("axolotl") { Trainer::Axolotl } else { Trainer::Trl };
    used["trainer"] = returned::versions(trainer).into();
    let job = Job {
        kind: &stage.kind,
        name: &stage.name,
        written: stage.config.clone(),
        used,
        inputs: &inputs,
        extra_files: Vec::new(),
        task_files: crate::stage::TaskFiles::new(),
        out,
    };
    let seed = stage.config["seed"].as_u64().unwrap_or(0);
    let context = Context { seed, threads: super::threads_of(0), dtype: None, servers: None, cancel: cancel.clone() };
    let done = execute(&context, &job, |folder, record| import(args, expected, verdict, folder, record))?;
    let said = if done.was_done { "was taken over before" } else { "taken over" };
    aloe_record::tell(&format!("{}: {said} into {}", args.folder.display(), out.display()));
    Ok(())
}

fn import(
    args: &VerifyArgs,
    expected: &Expectation,
    verdict: &Verdict,
    folder: &Path,
    record: &mut Record,
) -> anyhow::Result<()> {
    let stage = &expected.stage;
    let mut text = TextModel::open(&expected.start)?;
    if let Some(name) = stage.config["chat_template"].as_str() {
        text = text.with_template(name)?;
    }
    let report = verify::import(&args.folder, expected, verdict, &text, folder)?;
    returned::figures(stage, verdict, &report, record)
}
