//! `aloe bench`: how fast a local model works on this machine, beside what the machine could do at most.

use crate::cli::BenchArgs;
use crate::commands::{open_engine, or_interrupted};
use crate::failure::Failure;
use aloe_engine::{BenchReport, Engine};
use aloe_record::{Cancel, Progress, atomic};
use std::io::Write as _;

/// Measures, prints a table or JSON, and writes the report where `--out` says.
pub(crate) fn run(args: &BenchArgs, cancel: &Cancel) -> anyhow::Result<()> {
    if args.runs == 0 {
        return Err(Failure::usage("--runs must be at least 1".to_owned()).into());
    }
    let Engine::Local(local) = open_engine(&args.model)? else {
        return Err(Failure::usage(
            "an endpoint's speed is its server's; bench takes a folder or a .gguf file".to_owned(),
        )
        .into());
    };
    let progress = Progress::new("bench", 0, "runs");
    let report = or_interrupted(local.bench(args.runs, &progress, cancel))?;
    progress.finish();
    if let Some(path) = &args.out {
        atomic::write(path, format!("{}\n", serde_json::to_string_pretty(&report)?).as_bytes())?;
    }
    let text = if args.model.common.json { serde_json::to_string(&report)? + "\n" } else { table(&report) };
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

fn table(report: &BenchReport) -> String {
    let BenchReport { model, dtype, device, n_runs, .. } = report;
    let mut text = format!(
        "{model}, {dtype}, {device}; medians of {n_runs} runs, each beside a probe of products and of memory\n\
         {:<34}{:>12}{:>12}{:>8}{:>12}{:>9}\n",
        "work", "tokens/s", "limit", "share", "GFLOP/s", "GB/s"
    );
    for row in &report.rows {
        text += &format!(
            "{:<34}{:>12.1}{:>12.1}{:>7.0}%{:>12.0}{:>9.1}\n",
            row.work,
            row.tokens_per_s,
            row.limit_tokens_per_s,
            100.0 * row.share_of_limit,
            row.gflops,
            row.gb_per_s
        );
    }
    text += "GFLOP/s and GB/s are the probes' figures. The limit of scoring counts each shared token once; its tokens/s count \
             every option's whole text.\n";
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use aloe_engine::BenchRow;

    #[test]
    fn the_table_prints_each_work_beside_its_limit() {
        let row = BenchRow {
            work: "prefill, 512 tokens".into(),
            n_tokens: 512,
            seconds: 0.5,
            tokens_per_s: 1024.0,
            n_computed_tokens: 512,
            limit_tokens_per_s: 2048.0,
            share_of_limit: 0.5,
            gflops: 900.0,
            gb_per_s: 45.0,
        };
        let (model, dtype, device) = ("m".to_owned(), "bf16".to_owned(), "portable, 1 thread".to_owned());
        let text = table(&BenchReport { model, dtype, device, n_runs: 5, rows: vec![row] });
        assert!(text.contains("prefill, 512 tokens") && text.contains("1024.0      2048.0     50%"), "{text}");
    }
}
