//! `aloe score`: log-probabilities of given continuations, one JSON line a request.

use crate::cli::ScoreArgs;
use crate::commands::{open_engine, or_interrupted, requests, write_lines};
use aloe_engine::{ScoreRequest, ScoreResult};
use aloe_record::{Cancel, Progress};
use serde_json::json;

/// Reads the requests, scores them and writes the answers.
pub(crate) fn run(args: &ScoreArgs, cancel: &Cancel) -> anyhow::Result<()> {
    let rows = requests::read(&args.requests, |row| {
        Ok(ScoreRequest { id: row.id.clone(), prompt: row.prompt()?, continuations: row.continuations()? })
    })?;
    let engine = open_engine(&args.model)?;
    let progress = Progress::new("score", rows.len() as u64, "requests");
    let results = or_interrupted(engine.score(&rows, &progress, cancel))?;
    progress.finish();
    write_lines(args.out.as_deref(), &args.model.common, results.iter().map(to_json))
}

fn to_json(result: &ScoreResult) -> serde_json::Value {
    let continuations: Vec<_> = result
        .continuations
        .iter()
        .map(|scored| {
            json!({"ids": scored.ids, "logps": scored.logps, "sum": scored.sum(), "is_greedy": scored.is_greedy})
        })
        .collect();
    json!({"id": result.id, "prompt_ids": result.prompt_ids, "continuations": continuations})
}
