//! `aloe data`: the stage itself, its deduplication in shards, and the page on which a person judges its hits.

use super::{settings, single, threads_of};
use crate::cli::{DataCommand, DedupArgs};
use crate::failure::Failure;
use aloe_data::DataConfig;
use aloe_record::{Cancel, Progress};
use std::io::Write as _;
use toml::{Table, Value};

pub(crate) fn run(command: DataCommand, cancel: &Cancel) -> anyhow::Result<()> {
    match command {
        DataCommand::Run(args) => single::data(args, cancel),
        DataCommand::Review { data, out } => {
            let n_hits = aloe_data::review(&data, &out)?;
            let shown = out.display();
            writeln!(
                std::io::stdout(),
                "{n_hits} hits in {shown}/review.html; write `keep` into {shown}/verdicts.jsonl where one is none"
            )?;
            Ok(())
        }
        DataCommand::Dedup(args) => dedup(&args, cancel),
    }
}

fn dedup(args: &DedupArgs, cancel: &Cancel) -> anyhow::Result<()> {
    if !args.merge.is_empty() {
        let report = aloe_data::merge_shards(&args.merge, &args.out)?;
        let (n_exact, n_near) = (report.n_exact_duplicates, report.n_near_duplicates);
        let shown = args.out.display();
        writeln!(
            std::io::stdout(),
            "{} rows, {n_exact} exact duplicates, {n_near} near duplicates: {shown}",
            report.n_rows
        )?;
        return Ok(());
    }
    let mut table = match &args.config {
        Some(path) => single::read_table(path)?,
        None => Table::new(),
    };
    settings::set_all(&mut table, &args.set)?;
    let config: DataConfig =
        Value::Table(table).try_into().map_err(|error: toml::de::Error| Failure::usage(error.message().to_owned()))?;
    let progress = Progress::new("signing", 0, "rows");
    let report = aloe_data::sign_shard(&config, args.shard, &args.out, threads_of(args.threads), &progress, cancel)?;
    progress.finish();
    let (n_signed, shown) = (report.n_signed, args.out.display());
    writeln!(std::io::stdout(), "{n_signed} of {} rows signed: {shown}", report.n_rows)?;
    Ok(())
}
