//! `aloe verify`: flags and their help.

use clap::Args;
use std::path::PathBuf;

/// What stands under the flags of `aloe verify --help`.
pub(crate) const VERIFY_HELP: &str = "Examples, in a run folder:\n  \
    aloe verify work/sft --expected stages/10-sft/expected.json\n  \
    aloe verify work/sft --newest\n  \
    aloe verify work/sft --expected stages/10-sft/expected.json --out out/sft --model out/base --data out/data\n\n\
    The exit code is 0 where nothing is wrong and 1 otherwise; each finding is a line: file, tensor or key, what was expected, what was found. A \
    folder that passes gets MANIFEST.json with the digests of its files, and later checks hold it to them. --newest prints the newest checkpoint whose \
    manifest holds (nothing where there is none), for --resume_from_checkpoint. A note is what may be so and must be known: a tokenizer that \
    transformers 5 built anew from the same vocabulary.";

#[derive(Args)]
pub(crate) struct VerifyArgs {
    /// Folder that the engine wrote: work/NAME
    pub(crate) folder: PathBuf,
    /// What it must be: expected.json of the stage
    #[arg(long, value_name = "FILE", required_unless_present = "newest", conflicts_with = "newest")]
    pub(crate) expected: Option<PathBuf>,
    /// Run folder that the paths in expected.json start at
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) run: PathBuf,
    /// Print the newest whole checkpoint of the folder instead
    #[arg(long)]
    pub(crate) newest: bool,
    /// Take the model over: write this stage folder as `aloe sft` or `aloe dpo` would
    #[arg(long, value_name = "DIR", requires_all = ["model", "data"])]
    pub(crate) out: Option<PathBuf>,
    /// With --out: the stage or folder that training started from
    #[arg(long, requires = "out")]
    pub(crate) model: Option<PathBuf>,
    /// With --out: the data stage or file of its rows
    #[arg(long, requires = "out")]
    pub(crate) data: Option<PathBuf>,
    /// Print the findings and facts as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}
