//! `aloe parity`: prints how far the ways through the program lie apart on one checkpoint, and fails where they disagree.

use crate::cli::ParityArgs;
use crate::commands::threads_of;
use crate::parity::{Check, Subject, checks};
use crate::weights::DtypeName;
use aloe_record::Cancel;
use std::io::Write as _;

/// Runs every check; a disagreement is exit code 1.
pub(crate) fn run(args: &ParityArgs, cancel: &Cancel) -> anyhow::Result<()> {
    let subject = Subject::open(&args.model, threads_of(args.threads), cancel)?;
    let dtypes = args.dtype.map_or_else(|| vec![DtypeName::F32, DtypeName::Bf16], |dtype| vec![dtype]);
    let found = checks(&subject, &dtypes, args.fixture.as_deref())?;
    let n_wrong = found.iter().filter(|check| check.agrees == Some(false)).count();
    let mut out = std::io::stdout();
    if args.json {
        let value = serde_json::json!({
            "checkpoint": subject.path, "agrees": n_wrong == 0, "n_disagreements": n_wrong, "checks": found,
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&value)?)?;
    } else {
        write!(out, "{}", table(&found))?;
    }
    if n_wrong > 0 {
        anyhow::bail!("{}: {n_wrong} of {} checks disagree", subject.path.display(), found.len());
    }
    Ok(())
}

fn table(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.what.len()).max().unwrap_or(0);
    let mut text = format!(
        "{:<width$} {:<5} {:>9} {:>10} {:>10} {:>17}  \n",
        "what", "type", "values", "mean", "max", "allowed mean/max"
    );
    for check in checks {
        let state = match check.agrees {
            Some(true) => "agrees",
            Some(false) => "DISAGREES",
            None => "not made",
        };
        let allowed = format!("{}/{}", check.tolerance.mean, check.tolerance.max);
        let note = if check.note.is_empty() { String::new() } else { format!(": {}", check.note) };
        text.push_str(&format!(
            "{:<width$} {:<5} {:>9} {:>10.2e} {:>10.2e} {allowed:>17}  {state}{note}\n",
            check.what,
            check.dtype.unwrap_or("-"),
            check.n_values,
            check.mean,
            check.max
        ));
    }
    text
}
