//! `aloe bundle`: flags and their help.

use super::jobs::place;
use aloe_handoff::Where;
use clap::Args;
use std::path::PathBuf;

/// Help of `aloe bundle`.
pub(crate) const BUNDLE_HELP: &str = "Examples:\n  \
    aloe bundle /scratch/runs/aloe-8b --with-weights base --out aloe-8b.tar\n  \
    aloe bundle recipe.toml --where slurm --cluster cluster.toml --out aloe-8b.tar\n  \
    aloe bundle --check aloe-8b.tar\n  \
    tar xf aloe-8b.tar && cd aloe-8b && bin/aloe bundle --check . && bin/aloe run .\n\n\
    The file holds one folder: the run folder with its rows, tokenizers, templates, configurations and scripts, this program as bin/aloe, SHA256SUMS, \
    BUNDLE.json and README.txt (the commands, what the site must have, licences). It is a run folder where it is unpacked, under any path, without \
    network. Weights (.safetensors, .gguf) are packed where --with-weights names them: a stage made beforehand, a copy in files/, or a model of \
    cluster.toml by its name there; those left out are listed with place, size and digest. The same run folder gives the same bytes.\n\n\
    --check holds a file, or an unpacked folder before or after its run, to the digests: the exit code is 0 where all hold and all weights are in \
    place, 1 otherwise, with a line for each finding. cluster.toml may be changed. With --json: of a bundle name, out, n_files, n_bytes, sha256 and \
    left_out (name, path, n_bytes, sha256 each); of a check findings, notes and n_good.";

#[derive(Args)]
pub(crate) struct BundleArgs {
    /// Run folder, or recipe; with --check a bundle's file or the folder it was unpacked to
    pub(crate) what: PathBuf,
    /// File to write, NAME.tar
    #[arg(long, value_name = "FILE.tar", required_unless_present = "check")]
    pub(crate) out: Option<PathBuf>,
    /// Pack these weights; may be given more than once
    #[arg(long, value_name = "NAME")]
    pub(crate) with_weights: Vec<String>,
    /// Of a recipe: what runs its jobs, slurm or local; default the recipe's `where`
    #[arg(long = "where", value_name = "WHERE", value_parser = place)]
    pub(crate) place: Option<Where>,
    /// Of a recipe: what is particular to the site it goes to
    #[arg(long, value_name = "cluster.toml")]
    pub(crate) cluster: Option<PathBuf>,
    /// Check every digest instead. Writes nothing
    #[arg(long, conflicts_with_all = ["out", "with_weights", "place", "cluster"])]
    pub(crate) check: bool,
    /// Print what was written or found as one JSON object on standard output
    #[arg(long)]
    pub(crate) json: bool,
}
