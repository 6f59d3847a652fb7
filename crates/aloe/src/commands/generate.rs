//! `aloe generate`: answers to requests from a file, one JSON line a request.

use crate::cli::GenerateArgs;
use crate::commands::{open_engine, or_interrupted, requests, write_lines};
use aloe_engine::GenerateRequest;
use aloe_record::{Cancel, Progress};

/// Reads the requests, generates and writes the answers.
pub(crate) fn run(args: &GenerateArgs, cancel: &Cancel) -> anyhow::Result<()> {
    let seed = args.model.common.seed;
    let rows = requests::read(&args.requests, |row| {
        if row.continuations.is_some() {
            return Err("`continuations` belongs to `aloe score`".to_owned());
        }
        let n = row.n.unwrap_or(1);
        if n == 0 {
            return Err("`n` must be at least 1".to_owned());
        }
        Ok(GenerateRequest { id: row.id.clone(), prompt: row.prompt()?, n, sampling: row.sampling(seed)? })
    })?;
    let engine = open_engine(&args.model)?;
    let progress = Progress::new("generate", rows.iter().map(|row| row.n as u64).sum(), "answers");
    let results = or_interrupted(engine.generate(&rows, &progress, cancel))?;
    progress.finish();
    let lines: Vec<_> = results.iter().map(serde_json::to_value).collect::<Result<_, _>>()?;
    write_lines(args.out.as_deref(), &args.model.common, lines.into_iter())
}
