//! Arguments of `aloe merge` and `aloe merge-search`.

use super::EntryArgs;
use crate::weights::DtypeName;
use clap::Args;
use std::path::PathBuf;

pub(super) const MERGE_HELP: &str = "Examples:
  aloe merge merge.yml --check                                 what will be merged how, sizes, memory; writes nothing
  aloe merge merge.yml runs/merged --seed 7                    the merge
  aloe merge merge.yml --tensor model.embed_tokens.weight      one tensor's digest and figures

merge.yml is what mergekit-yaml reads, unchanged; models are folders, or names on the Hub that the Hugging Face cache holds:
  merge_method: dare_ties
  base_model: models/base
  models:
  - model: models/medical
    parameters: {weight: 0.6, density: 0.5}
  - model: models/general+adapters/tone        # with a LoRA adapter
    parameters: {weight: 0.4, density: 0.5}
  dtype: bfloat16

Methods: linear, slerp, nuslerp, multislerp, karcher, passthrough, nearswap, model_stock, sce, task_arithmetic, ties, dare_ties, dare_linear,
breadcrumbs, breadcrumbs_ties, della, della_linear. Writes a Hugging Face folder with README.md, mergekit_config.yml, report.html (plots by
layer), merge.json (figures per tensor) and record.json (who the inputs were). A folder with files that no merge wrote is never replaced.

The random masks of dare_* and della* depend on --seed, the tensor and a model's name, the last component of its path: models/medical,
./models/medical/ and owner/medical have one mask, at one seed in every merge. Of runs/a/model, runs/a/master and runs/a/adapter, as stages call what they
write, the name is a. Models of one merge never share a mask: those of one name are told apart by as many more components as that takes. Models of one
name in two merges have one mask, unless the seeds differ. The result's README.md lists the names where they are not the paths.";

#[derive(Args)]
pub(crate) struct MergeArgs {
    /// mergekit's YAML
    #[arg(required_unless_present = "recipe", conflicts_with = "recipe")]
    pub(crate) config: Option<PathBuf>,
    /// Folder to write
    #[arg(required_unless_present_any = ["check", "tensor", "recipe"], conflicts_with = "recipe")]
    pub(crate) out: Option<PathBuf>,
    /// Resolve everything and print the plan of every document: parameters per group of tensors, sizes, memory, files; with a folder
    /// to write, whether the result may be written there and fits on its disk. With --json for scripts, every tensor named with what applies to it. Writes nothing
    #[arg(long, conflicts_with = "recipe")]
    pub(crate) check: bool,
    /// Merge this tensor alone and print its figures and the SHA-256 of its bytes as the result's file will hold them. Writes nothing
    #[arg(long, value_name = "NAME", conflicts_with_all = ["out", "check", "recipe"])]
    pub(crate) tensor: Option<String>,
    /// Memory budget in MiB; fewer threads run where they would need more. Results do not depend on it
    #[arg(long, value_name = "MIB", default_value_t = aloe_merge::DEFAULT_MEMORY >> 20, conflicts_with = "recipe")]
    pub(crate) memory: u64,
    /// With --recipe, folder of the whole run
    #[arg(long = "out", value_name = "DIR", requires = "recipe")]
    pub(crate) run_folder: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) entry: EntryArgs,
}

/// A merge search by a settings file, or by its recipe entry.
#[derive(Args)]
pub(crate) struct MergeSearchArgs {
    /// Settings, a TOML file
    #[arg(required_unless_present = "recipe", conflicts_with = "recipe")]
    pub(crate) config: Option<PathBuf>,
    /// Folder to write
    #[arg(required_unless_present = "recipe", conflicts_with = "recipe")]
    pub(crate) out: Option<PathBuf>,
    /// One setting, KEY=VALUE with a TOML value; may be given more than once
    #[arg(long = "set", value_name = "KEY=VALUE", conflicts_with = "recipe")]
    pub(crate) set: Vec<String>,
    /// Type of the weights when a merge is asked; with --recipe the recipe's, bf16 otherwise
    #[arg(long, value_enum, conflicts_with = "recipe")]
    pub(crate) dtype: Option<DtypeName>,
    /// With --recipe, folder of the whole run
    #[arg(long = "out", value_name = "DIR", requires = "recipe")]
    pub(crate) run_folder: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) entry: EntryArgs,
}
