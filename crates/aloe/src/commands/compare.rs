//! `aloe compare`: finished evaluations over the same questions, tested in pairs.

use crate::cli::results::CompareArgs;
use aloe_eval::compare::{Comparisons, compare_many};
use serde_json::{Value, json};
use std::io::Write as _;
use std::path::Path;

/// Compares each run with the base and prints what may be said.
pub(crate) fn run(args: &CompareArgs) -> anyhow::Result<()> {
    let runs: Vec<&Path> = args.runs.iter().map(AsRef::as_ref).collect();
    let found = compare_many(&args.base, &runs, args.seed)?;
    let mut out = std::io::stdout();
    let pairs = args.runs.iter().zip(&found);
    if args.json {
        let all: Vec<Value> = pairs.map(|(run, one)| to_json(run, one)).collect();
        return Ok(writeln!(out, "{}", serde_json::to_string_pretty(&json!({"base": args.base, "runs": all}))?)?);
    }
    for (run, one) in pairs {
        writeln!(out, "{} against {}: {}", run.display(), args.base.display(), one.table())?;
    }
    Ok(())
}

fn to_json(run: &Path, one: &Comparisons) -> Value {
    json!({"run": run, "note": one.note, "tests": one.tests, "rows": one.rows})
}
