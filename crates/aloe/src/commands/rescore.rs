//! `aloe rescore`: a finished evaluation scored again from its stored answers.

use crate::cli::results::RescoreArgs;
use crate::failure::Failure;
use aloe_eval::rescore::rescore;
use aloe_eval::{EvalResults, read_asked, read_samples};
use aloe_record::{atomic, digest};
use aloe_task::{AnswerRule, Protocol};
use serde_json::json;
use std::io::Write as _;

/// Reads the answers again and writes what they say now into another folder.
pub(crate) fn run(args: &RescoreArgs) -> anyhow::Result<()> {
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
    let mut found = rescore(&results, &samples, &read_asked(&args.run)?, rule)?;
    let from = digest::file(&samples_path)?;
    found.results.settings.insert("rescored".into(), json!({"rule": rule, "samples_sha256": from}));
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
        return Ok(writeln!(out, "{changed}")?);
    }
    writeln!(
        out,
        "{}{} answers are read otherwise, {} predictions are others\nfiles: {}",
        found.results.table(),
        found.n_answers_changed,
        found.n_predictions_changed,
        args.out.display()
    )?;
    Ok(())
}
