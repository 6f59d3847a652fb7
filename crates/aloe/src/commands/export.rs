//! `aloe export`: a finished evaluation in the form of another tool.

use crate::cli::results::{ExportArgs, ExportFormat};
use crate::commands::bench::date_of;
use crate::failure::Failure;
use aloe_eval::export::Exported;
use aloe_eval::open::refuse_open;
use aloe_eval::{EvalResults, export_tree, read_asked, read_samples};
use aloe_record::{Record, atomic};
use std::io::Write as _;

/// Writes the run in the form that was asked for.
pub(crate) fn run(args: &ExportArgs) -> anyhow::Result<()> {
    let path = args.run.join("results.json");
    if !path.is_file() {
        let text = format!("{} is not the output of an evaluation (no results.json)", args.run.display());
        return Err(Failure::usage(text).into());
    }
    refuse_open(&args.run)?;
    let results: EvalResults = atomic::read_json(&path)?;
    let started_unix_s = Record::read(&args.run).map_or(0, |record| record.started_unix_s);
    let model = args.repo.clone().unwrap_or_else(|| results.model.name.clone());
    if args.format == ExportFormat::PromptEngine {
        return write_tree(args, &results);
    }
    let Exported { text, left_out } = match args.format {
        ExportFormat::PromptEngine => return Ok(()),
        ExportFormat::LmEval => results.to_lm_eval(&model, started_unix_s),
        ExportFormat::EvalResults => results.to_eval_results(&date(started_unix_s)),
        ExportFormat::ModelIndex => results.to_model_index(&model),
        ExportFormat::Csv => results.to_csv(),
        ExportFormat::Latex => results.to_latex(),
        ExportFormat::Markdown => results.to_markdown(),
    };
    for (task, reason) in &left_out {
        aloe_record::tell(&format!("note: {task} is left out: {reason}"));
    }
    if text.is_empty() {
        return Err(Failure::usage(
            "no figure of this run is comparable with published ones, so there is nothing to write",
        )
        .into());
    }
    match &args.out {
        Some(out) => Ok(atomic::write(out, text.as_bytes())?),
        None => Ok(std::io::stdout().write_all(text.as_bytes())?),
    }
}

/// Files of prompt_engine's names below `--out`.
fn write_tree(args: &ExportArgs, results: &EvalResults) -> anyhow::Result<()> {
    let out = args.out.as_deref().ok_or_else(|| Failure::usage("--out DIR is missing: this form is a folder"))?;
    let samples = read_samples(&args.run.join("samples.jsonl"))?;
    let written = export_tree::write(results, &samples, &read_asked(&args.run)?, out)?;
    for path in written {
        writeln!(std::io::stdout(), "{}", path.display())?;
    }
    Ok(())
}

/// ISO 8601, in UTC.
fn date(unix_s: u64) -> String {
    let second = unix_s % 86_400;
    format!("{}T{:02}:{:02}:{:02}Z", date_of(unix_s), second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `date -u -d @N +%FT%TZ`.
    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01T00:00:00Z");
        assert_eq!(date(1_796_000_461), "2026-11-30T01:01:01Z");
    }
}
