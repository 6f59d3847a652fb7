//! The flags of `aloe data`: the stage itself, its deduplication in shards, and the review of its hits.

use super::{DEDUP_HELP, SEE_HELP, StageArgs, threads};
use crate::recipe::keys;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Subcommands of `aloe data`.
#[derive(Subcommand)]
pub(crate) enum DataCommand {
    /// Read, clean, deduplicate, decontaminate and mix sources
    #[command(after_help = SEE_HELP, after_long_help = keys::data())]
    Run(DataRunArgs),
    /// Write the hits of a data stage as a page with both texts side by side, and a file of verdicts for the next run
    Review {
        /// Folder of a finished data stage
        data: PathBuf,
        /// Folder for review.html and verdicts.jsonl
        #[arg(long)]
        out: PathBuf,
    },
    /// Find duplicates in shards, on as many machines, and merge what they found for the next run
    #[command(after_help = DEDUP_HELP)]
    Dedup(DedupArgs),
}

/// `aloe data dedup`.
#[derive(Args)]
pub(crate) struct DedupArgs {
    /// Settings of the data stage, as for `aloe data run`
    #[arg(long, required_unless_present = "merge", conflicts_with = "merge")]
    pub(crate) config: Option<PathBuf>,
    /// One setting, KEY=VALUE with a TOML value; may be given more than once
    #[arg(long = "set", value_name = "KEY=VALUE", conflicts_with = "merge")]
    pub(crate) set: Vec<String>,
    /// The share of the rows to sign: i/N, from 1/N to N/N
    #[arg(long, value_name = "I/N", default_value = "1/1", conflicts_with = "merge")]
    pub(crate) shard: aloe_data::Shard,
    /// Folders of all shards, to be merged
    #[arg(long, num_args = 1.., value_name = "DIR")]
    pub(crate) merge: Vec<PathBuf>,
    /// Folder to write
    #[arg(long)]
    pub(crate) out: PathBuf,
    /// Threads; 0 takes all cores. Results do not depend on it
    #[arg(long, default_value_t = 0, value_parser = threads)]
    pub(crate) threads: usize,
}

/// `aloe data run`: a stage with two settings that are also flags.
#[derive(Args)]
pub(crate) struct DataRunArgs {
    #[command(flatten)]
    pub(crate) stage: StageArgs,
    /// Also write the rows' ids and labels by `tokenizer`, for other trainers: the same as --set rendered=true
    #[arg(long, conflicts_with = "recipe")]
    pub(crate) rendered: bool,
    /// Write broken rows to this file and go on: the same as --set quarantine='"FILE"'
    #[arg(long, value_name = "FILE", conflicts_with = "recipe")]
    pub(crate) quarantine: Option<PathBuf>,
}
