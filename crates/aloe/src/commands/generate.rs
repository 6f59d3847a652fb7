//! `aloe generate`: answers to requests from a file, one JSON line a request.

use crate::cli::GenerateArgs;
use crate::commands::requests::{self, Row};
use crate::commands::{open_cached, or_interrupted, write_answers};
use aloe_engine::{GenerateRequest, MAX_SAMPLES};
use aloe_record::{Cancel, Progress};
use std::cell::RefCell;
use std::collections::HashSet;

/// Reads the requests, generates and writes the answers.
pub(crate) fn run(args: &GenerateArgs, cancel: &Cancel) -> anyhow::Result<()> {
    let seed = args.model.common.seed;
    let drawn = RefCell::new(HashSet::new());
    let rows = requests::read(&args.file.requests, |row: Row| {
        if row.continuations.is_some() {
            return Err("`continuations` belongs to `aloe score`".to_owned());
        }
        let n = row.n.unwrap_or(1);
        if !(1..=MAX_SAMPLES).contains(&n) {
            return Err(format!("`n` must be at least 1 and at most {MAX_SAMPLES}, found {n}"));
        }
        let sampling = row.sampling(seed)?;
        // Draws are those of (seed, id, sample): two rows with one id would draw the same.
        if sampling.temperature > 0.0 && !drawn.borrow_mut().insert(row.id.clone()) {
            return Err(format!(
                "the id {:?} is that of an earlier row, whose random draws these would repeat",
                row.id
            ));
        }
        Ok(GenerateRequest { id: row.id.clone(), prompt: row.prompt()?, n, sampling })
    })?;
    let engine = open_cached(&args.model, &args.file, cancel)?;
    let progress = Progress::new("generate", rows.iter().map(|row| row.n as u64).sum(), "answers");
    let results = or_interrupted(engine.generate_each(&rows, &progress, cancel))?;
    progress.finish();
    let answers = rows.iter().map(|row| row.id.as_str()).zip(results).collect();
    write_answers(&args.file, &args.model.common, &engine, answers, |result| serde_json::to_value(result))
}
