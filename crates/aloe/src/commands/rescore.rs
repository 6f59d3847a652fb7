//! `aloe rescore`: a finished evaluation scored again from its stored answers.

use crate::cli::results::RescoreArgs;
use crate::failure::Failure;
use crate::{lineage, outputs};
use aloe_eval::rescore::{Rescored, rescore};
use aloe_eval::{EvalResults, read_asked, read_samples};
use aloe_record::{Cancel, Record, atomic, digest};
use aloe_task::{AnswerRule, Protocol};
use serde_json::{Map, Value, json};
use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

/// What is read of a run and written of the rescored one.
const FILES: [&str; 3] = ["results.json", "samples.jsonl", "questions.jsonl"];

/// Reads the answers again and writes what they say now into another folder.
pub(crate) fn run(args: &RescoreArgs, cancel: &Cancel) -> anyhow::Result<()> {
    let (started, mut record) = (Instant::now(), Record::start("rescore", &name_of(&args.out)));
    check_run(&args.run)?;
    if args.out.exists() {
        return Err(
            Failure::usage(format!("--out {} exists already; choose another folder", args.out.display())).into()
        );
    }
    let results: EvalResults = atomic::read_json(&args.run.join("results.json"))?;
    let rule = rule(args, &results)?;
    let samples_path = args.run.join("samples.jsonl");
    let asked = read_asked(&args.run)?;
    let mut found = rescore(&results, &read_samples(&samples_path)?, &asked, rule)?;
    let trained_on: Vec<_> = args.trained_on.iter().map(|path| lineage::rows_of(path)).collect();
    if !trained_on.is_empty() {
        found.trained_on(&asked, &trained_on, cancel)?;
    }
    if !args.expect.is_empty() {
        found.expect(&args.expect)?;
    }
    let from = digest::file(&samples_path)?;
    found.results.settings.insert("rescored".into(), json!({"rule": rule, "samples_sha256": from}));
    if !trained_on.is_empty() {
        let digests = trained_on.iter().map(|path| digest::file(path)).collect::<Result<Vec<_>, _>>()?;
        found.results.settings["rescored"]["trained_on_sha256"] = json!(digests);
    }
    write(args, &found)?;
    record.config_used = json!({"rule": rule});
    record.config_written = json!({"rule": args.rule});
    record.inputs = Map::from_iter([("samples.jsonl".to_owned(), Value::from(from))]);
    record.outputs = outputs::digests(&args.out)?;
    let changed =
        json!({"n_answers_changed": found.n_answers_changed, "n_predictions_changed": found.n_predictions_changed});
    record.result("rescored", &changed)?;
    record.finish(&args.out, started, 0.0)?;
    let mut out = std::io::stdout();
    if args.json {
        writeln!(out, "{changed}")?;
        return check_expected(args, &found.results);
    }
    writeln!(
        out,
        "{}{} answers are read otherwise, {} predictions are others\nfiles: {}",
        found.results.table(),
        found.n_answers_changed,
        found.n_predictions_changed,
        args.out.display()
    )?;
    check_expected(args, &found.results)
}

/// What was to come out and did not; the files are written, and the exit code is 1. An expectation of the run itself was told by the run.
fn check_expected(args: &RescoreArgs, results: &EvalResults) -> anyhow::Result<()> {
    let is_asked = |name: &str| args.expect.iter().any(|(asked, ..)| asked == name);
    let unmet = results.expected.iter().filter(|one| !one.passed && is_asked(&one.name));
    let lines: Vec<String> = unmet.map(|one| one.words()).collect();
    match lines.is_empty() {
        true => Ok(()),
        false => anyhow::bail!("{}: what was expected did not come out\n{}", args.out.display(), lines.join("\n")),
    }
}

/// Refuses a folder that is no finished evaluation, or of whose files one is not what its record says.
fn check_run(run: &Path) -> anyhow::Result<()> {
    if let Some(name) = FILES.into_iter().find(|name| !run.join(name).is_file()) {
        let text = format!("{} is not the output of an evaluation (no {name})", run.display());
        return Err(Failure::usage(text).into());
    }
    let Ok(record) = Record::read(run) else { return Ok(()) };
    let is_other = |name: &&str| outputs::check_one(run, &record, name).is_err();
    match FILES.into_iter().find(is_other) {
        None => Ok(()),
        Some(name) => Err(Failure::usage(format!(
            "{} is not what the evaluation wrote (its record.json is of other bytes); put the file back or evaluate again",
            run.join(name).display()
        ))
        .into()),
    }
}

/// The rule that was asked for, or that of the run's protocol.
fn rule(args: &RescoreArgs, results: &EvalResults) -> anyhow::Result<AnswerRule> {
    let protocol = results.settings.get("protocol").and_then(|name| Protocol::parse(name.as_str()?));
    match args.rule.as_deref() {
        None => Ok(protocol.map_or(AnswerRule::Aloe, Protocol::answer_rule)),
        Some("aloe") => Ok(AnswerRule::Aloe),
        Some("prompt-engine") => Ok(AnswerRule::PromptEngine),
        Some(other) => Err(Failure::usage(format!("--rule {other}: there are aloe, prompt-engine")).into()),
    }
}

fn write(args: &RescoreArgs, found: &Rescored) -> anyhow::Result<()> {
    std::fs::create_dir_all(&args.out).map_err(aloe_record::Error::io("create", &args.out))?;
    atomic::write_with(&args.out.join("samples.jsonl"), |out| {
        for sample in &found.samples {
            writeln!(out, "{}", serde_json::to_string(sample)?)?;
        }
        Ok::<(), anyhow::Error>(())
    })?;
    std::fs::copy(args.run.join("questions.jsonl"), args.out.join("questions.jsonl"))?;
    Ok(atomic::write_json(&args.out.join("results.json"), &found.results)?)
}

fn name_of(folder: &Path) -> String {
    folder.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}
