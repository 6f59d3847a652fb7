//! `aloe score`: log-probabilities of given continuations, one JSON line a request.

use crate::cli::ScoreArgs;
use crate::commands::requests::{self, Row};
use crate::commands::{open_cached, or_interrupted, write_answers};
use aloe_engine::{ScoreRequest, ScoreResult};
use aloe_record::{Cancel, Progress};
use serde_json::json;

/// Reads the requests, scores them and writes the answers.
pub(crate) fn run(args: &ScoreArgs, cancel: &Cancel) -> anyhow::Result<()> {
    let rows = requests::read(&args.file.requests, |row: Row| {
        Ok(ScoreRequest { id: row.id.clone(), prompt: row.prompt()?, continuations: row.continuations()? })
    })?;
    let engine = open_cached(&args.model, &args.file, cancel)?;
    let progress = Progress::new("score", rows.len() as u64, "requests");
    let results = or_interrupted(engine.score_each(&rows, &progress, cancel))?;
    progress.finish();
    let answers = rows.iter().map(|row| row.id.as_str()).zip(results).collect();
    write_answers(&args.file, &args.model.common, &engine, answers, |result| Ok(to_json(result)))
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
