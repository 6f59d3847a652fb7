//! `aloe bench`: how fast a local model works on this machine, beside what the machine could do at most.

use crate::cli::BenchArgs;
use crate::commands::{open_engine, or_interrupted};
use crate::failure::Failure;
use aloe_engine::{BenchReport, Engine};
use aloe_record::{Cancel, Progress, atomic};
use serde::Serialize;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Measures, prints a table or JSON, and writes the report where `--out` says; a place that cannot be written is found before.
pub(crate) fn run(args: &BenchArgs, cancel: &Cancel) -> anyhow::Result<()> {
    if args.runs == 0 {
        return Err(Failure::usage("--runs must be at least 1".to_owned()).into());
    }
    let Engine::Local(local) = open_engine(&args.model, cancel)? else {
        return Err(Failure::usage(
            "an endpoint's speed is its server's; bench takes a folder or a .gguf file".to_owned(),
        )
        .into());
    };
    args.out.as_deref().map(make_place).transpose()?;
    let progress = Progress::new("bench", 0, "runs");
    let report = or_interrupted(local.bench(args.runs, args.model.common.seed, &progress, cancel))?;
    progress.finish();
    let date = date_of(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()));
    let dated = Dated { date: &date, report: &report };
    let text = if args.model.common.json { serde_json::to_string(&dated)? + "\n" } else { table(&report) };
    // First of all what was measured is shown: it took minutes, and the file may fail.
    std::io::stdout().write_all(text.as_bytes())?;
    let Some(path) = &args.out else { return Ok(()) };
    let path = file_in(path, &format!("{date}-{}-{}.json", report.model.trim_end_matches(".gguf"), report.dtype));
    Ok(atomic::write(&path, format!("{}\n", serde_json::to_string_pretty(&dated)?).as_bytes())?)
}

/// Whether a path names a folder: one that is there, or any with a `/` at its end.
fn is_folder(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(b"/") || path.is_dir()
}

fn file_in(path: &Path, name: &str) -> PathBuf {
    if is_folder(path) { path.join(name) } else { path.to_path_buf() }
}

/// Makes the folder that the report goes to.
fn make_place(out: &Path) -> anyhow::Result<()> {
    let folder = if is_folder(out) { out } else { out.parent().unwrap_or(Path::new("")) };
    if folder.as_os_str().is_empty() {
        return Ok(());
    }
    let cannot =
        |error| Failure::usage(format!("--out {}: cannot create {}: {error}", out.display(), folder.display()));
    Ok(std::fs::create_dir_all(folder).map_err(cannot)?)
}

/// A report and the day it was made on.
#[derive(Serialize)]
struct Dated<'a> {
    date: &'a str,
    #[serde(flatten)]
    report: &'a BenchReport,
}

/// `YYYY-MM-DD` of seconds since 1970, UTC: whole 400-year cycles of 146,097 days, years that begin in March.
pub(super) fn date_of(unix_s: u64) -> String {
    let days = unix_s / 86_400 + 719_468;
    let day_of_cycle = days % 146_097;
    let year = (day_of_cycle - day_of_cycle / 1460 + day_of_cycle / 36_524 - day_of_cycle / 146_096) / 365;
    let day_of_year = day_of_cycle - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let (day, month) = (day_of_year - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = days / 146_097 * 400 + year + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

fn table(report: &BenchReport) -> String {
    let BenchReport { model, dtype, device, n_runs, .. } = report;
    let mut text = format!(
        "{model}, {dtype}, {device}; medians of {n_runs} runs, each beside probes of products and of memory\n\
         {:<34}{:>12}{:>12}{:>8}{:>12}{:>9}\n",
        "work", "tokens/s", "limit", "share", "Gop/s", "GB/s"
    );
    for row in &report.rows {
        text += &format!(
            "{:<34}{:>12.1}{:>12.1}{:>7.0}%{:>12.0}{:>9.1}\n",
            row.work,
            row.tokens_per_s,
            row.limit_tokens_per_s,
            100.0 * row.share_of_limit,
            row.gops,
            row.gb_per_s
        );
    }
    text += "Gop/s and GB/s are the probes': products of registers of the kinds the work takes, and reading. The limit of scoring counts each shared token once; its tokens/s count \
             every option's whole text.\n";
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use aloe_engine::BenchRow;

    /// Seconds from `date -u -d DATE +%s`.
    #[test]
    fn dates_are_those_of_the_calendar() {
        for (unix_s, date) in [
            (0, "1970-01-01"),
            (951_782_399, "2000-02-28"),
            (951_782_400, "2000-02-29"),
            (1_709_164_800, "2024-02-29"),
            (1_795_392_000, "2026-11-23"),
            (4_107_542_400, "2100-03-01"),
        ] {
            assert_eq!(date_of(unix_s), date);
        }
    }

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
            gops: 900.0,
            gb_per_s: 45.0,
        };
        let (model, dtype, device) = ("m".to_owned(), "bf16".to_owned(), "portable, 1 thread".to_owned());
        let text = table(&BenchReport { model, dtype, device, n_runs: 5, seed: 0, rows: vec![row] });
        assert!(text.contains("prefill, 512 tokens") && text.contains("1024.0      2048.0     50%"), "{text}");
    }
}
