//! `aloe rescore`: a finished evaluation scored again from its stored answers.

use crate::cli::results::RescoreArgs;
use crate::failure::Failure;
use crate::lineage;
use aloe_eval::rescore::rescore;
use aloe_eval::{EvalResults, read_asked, read_samples};
use aloe_record::{Cancel, atomic, digest};
use aloe_task::{AnswerRule, Protocol};
use serde_json::{Value, json};
use std::io::Write as _;

/// Reads the answers again and writes what they say now into another folder.
pub(crate) fn run(args: &RescoreArgs, cancel: &Cancel) -> anyhow::Result<()> {
    let samples_path = args.run.join("samples.jsonl");
    for name in ["results.json", "samples.jsonl", "questions.jsonl"] {
        if !args.run.join(name).is_file() {
            let text = format!("{} is not the output of an evaluation (no {name})", args.run.display());
            return Err(Failure::usage(text).into());
        }
    }
    if args.out.exists() {
        return Err(
            Failure::usage(format!("--out {} exists already; choose another folder", args.out.display())).into()
        );
    }
    let results: EvalResults = atomic::read_json(&args.run.join("results.json"))?;
    let protocol = results.settings.get("protocol").and_then(|name| Protocol::parse(name.as_str()?));
    let rule = match args.rule.as_deref() {
        None => protocol.map_or(AnswerRule::Aloe, Protocol::answer_rule),
        Some("aloe") => AnswerRule::Aloe,
        Some("prompt-engine") => AnswerRule::PromptEngine,
        Some(other) => return Err(Failure::usage(format!("--rule {other}: there are aloe, prompt-engine")).into()),
    };
    let samples = read_samples(&samples_path)?;
    let mut trained_on = Value::Null;
    let asked = read_asked(&args.run)?;
    let mut found = rescore(&results, &samples, &asked, rule)?;
    if !args.trained_on.is_empty() {
        let files: Vec<_> = args.trained_on.iter().map(|path| lineage::rows_of(path)).collect();
        found.trained_on(&asked, &files, cancel)?;
        let digests = files.iter().map(|path| digest::file(path)).collect::<Result<Vec<_>, _>>()?;
        trained_on = json!(digests);
    }
    if !args.expect.is_empty() {
        found.expect(&args.expect)?;
    }
    let from = digest::file(&samples_path)?;
    found.results.settings.insert("rescored".into(), json!({"rule": rule, "samples_sha256": from}));
    if !trained_on.is_null() {
        found.results.settings["rescored"]["trained_on_sha256"] = trained_on;
    }
    std::fs::create_dir_all(&args.out).map_err(aloe_record::Error::io("create", &args.out))?;
    atomic::write_with(&args.out.join("samples.jsonl"), |out| {
        for sample in &found.samples {
            writeln!(out, "{}", serde_json::to_string(sample)?)?;
        }
        Ok::<(), anyhow::Error>(())
    })?;
    std::fs::copy(args.run.join("questions.jsonl"), args.out.join("questions.jsonl"))?;
    atomic::write_json(&args.out.join("results.json"), &found.results)?;
    let changed =
        json!({"n_answers_changed": found.n_answers_changed, "n_predictions_changed": found.n_predictions_changed});
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
