//! A run folder's plan, `run.json`: the stages that run as jobs, in order, with what each needs. Immutable once written, without
//! times, hosts or absolute paths, so that the same recipe gives the same bytes and the folder can move to another site.
//!
//! Layout of a run folder (all paths in the plan are relative to it):
//! `run.json`, `recipe.toml`, `cluster.toml` (the only file with absolute paths), `data/` (rendered rows, message rows, template),
//! `stages/NN-NAME/` (`engine.yaml`, `job.sbatch`, `check.sh`, `env.lock`, `inputs.sha256`), `out/NAME/` (results, as `aloe run`
//! writes them), `work/NAME/` (what an engine writes before it is verified), `state/` (what happened; never part of the plan).

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Who does a stage's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trainer {
    /// This program.
    Aloe,
    /// TRL under torchrun.
    Trl,
    /// axolotl under torchrun.
    Axolotl,
}

/// What a job asks the scheduler for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Machines.
    pub n_nodes: u32,
    /// GPUs of each; 0 runs on processors.
    pub gpus_per_node: u32,
    /// Processors of each.
    pub cpus_per_node: u32,
    /// Seconds until the scheduler ends the job.
    pub time_limit_s: u64,
}

impl Resources {
    /// Processes that a trainer must report: one a GPU, or one a machine without them.
    pub fn world_size(&self) -> u32 {
        self.n_nodes * self.gpus_per_node.max(1)
    }
}

/// One job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StagePlan {
    /// The stage's name in the recipe, unique.
    pub name: String,
    /// `sft`, `merge`, `dpo`, `eval`, `redteam`, `card` ...
    pub kind: String,
    /// `stages/NN-NAME`.
    pub folder: PathBuf,
    /// Names of planned stages that must be done first.
    pub after: Vec<String>,
    /// Who does it.
    pub trainer: Trainer,
    /// What it asks for.
    pub resources: Resources,
    /// How many array tasks share the work; 1 is an ordinary job.
    pub n_shards: u32,
}

/// `run.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunPlan {
    /// The layout's version: 1.
    pub version: u32,
    /// The recipe's name.
    pub name: String,
    /// Digest of the recipe as copied.
    pub recipe_sha256: String,
    /// In an order in which every stage follows those it needs.
    pub stages: Vec<StagePlan>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_without_gpus_has_one_process_a_machine() {
        let resources =
            |n_nodes, gpus_per_node| Resources { n_nodes, gpus_per_node, cpus_per_node: 1, time_limit_s: 60 };
        assert_eq!(resources(2, 4).world_size(), 8);
        assert_eq!(resources(2, 0).world_size(), 2);
    }
}
