//! A run folder's plan, `run.json`: the stages that run as jobs, in order, with what each needs. Immutable once written, without
//! times, hosts or absolute paths, so that the same recipe gives the same bytes and the folder can move to another site.
//!
//! Layout of a run folder (all paths in the plan are relative to it):
//! `run.json`, `recipe.toml`, `cluster.toml` (the only file with absolute paths), `data/` (rendered rows, message rows, template),
//! `stages/NN-NAME/` (`engine.yaml`, `job.sbatch`, `check.sh`, `env.lock`, `inputs.sha256`), `out/NAME/` (results, as `aloe run`
//! writes them), `work/NAME/` (what an engine writes before it is verified), `state/` (what happened; never part of the plan).

use crate::cluster::Cluster;
use crate::{Error, Result};
use aloe_record::{atomic, digest};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

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

impl Trainer {
    /// The name in recipes, plans and `cluster.toml`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Aloe => "aloe",
            Self::Trl => "trl",
            Self::Axolotl => "axolotl",
        }
    }
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

/// What runs the jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Where {
    /// Child processes of this machine.
    Local,
    /// Slurm.
    Slurm,
}

/// One job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StagePlan {
    /// The stage's name in the recipe, unique.
    pub name: String,
    /// `sft`, `merge`, `dpo`, `eval`, `redteam`, `card` ..., `eval-shard` and `data-shard` of a part.
    pub kind: String,
    /// `stages/NN-NAME`.
    pub folder: PathBuf,
    /// Names of planned stages that must be done first.
    pub after: Vec<String>,
    /// Who does it.
    pub trainer: Trainer,
    /// What it asks for.
    pub resources: Resources,
}

/// `run.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunPlan {
    /// The layout's version: 1.
    pub version: u32,
    /// The recipe's name.
    pub name: String,
    /// What runs the jobs, where the command does not say otherwise.
    #[serde(rename = "where")]
    pub place: Where,
    /// Digest of the recipe as copied.
    pub recipe_sha256: String,
    /// In an order in which every stage follows those it needs.
    pub stages: Vec<StagePlan>,
}

impl RunPlan {
    /// Reads the plan of a run folder and holds it against the recipe beside it.
    pub fn read(run: &Path) -> Result<Self> {
        let path = run.join(PLAN);
        let wrong = |reason: String| Error::Folder { path: path.clone(), reason };
        if !path.is_file() {
            return Err(wrong("there is no plan; write the run folder with `aloe plan RECIPE --where ...`".into()));
        }
        let plan: Self = atomic::read_json(&path)?;
        if plan.version != 1 {
            return Err(wrong(format!("version {} is of another program; this one reads 1", plan.version)));
        }
        if digest::file(&run.join("recipe.toml"))? != plan.recipe_sha256 {
            return Err(wrong("recipe.toml is not the one that was planned; plan the recipe anew".into()));
        }
        plan.check().map_err(wrong)?;
        Ok(plan)
    }

    /// The stage called `name`.
    pub fn stage(&self, name: &str) -> Result<&StagePlan> {
        self.stages.iter().find(|stage| stage.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.stages.iter().map(|stage| stage.name.as_str()).collect();
            let reason = format!("the plan has no such stage; it has {}", names.join(", "));
            Error::State { stage: name.to_owned(), reason }
        })
    }

    /// The plan with what `cluster.toml` asks for now: a site may change time limits and processors of a run folder. How many processes train
    /// together stands in an engine's configuration, and how many shards there are in the stages themselves: those that differ are refused.
    /// Stages that the file says nothing of ask for what was planned.
    pub fn at_site(mut self, cluster: &Cluster, file: &Path) -> Result<Self> {
        let mut mistakes = Vec::new();
        let parts = self.stages.iter().filter_map(|stage| Some(stage.shard()?.of.to_owned()));
        let parts: Vec<String> = parts.collect();
        for stage in &mut self.stages {
            let name = stage.in_recipe().to_owned();
            let Ok(mut asked) = cluster.resources(stage.kind_in_recipe(), &name) else { continue };
            let n_planned = parts.iter().filter(|of| **of == name).count().max(1);
            if stage.shard().is_none() && n_planned > 1 {
                // Whoever gathers asks no model.
                asked.gpus_per_node = 0;
            }
            let mut refuse = |key: &str, planned: u32, found: u32, is_fixed: bool| {
                if planned != found && is_fixed {
                    mistakes.push(format!(
                        "stage {:?} was planned with {key} = {planned}, not {found}: plan it anew, or write {planned}",
                        stage.name
                    ));
                }
            };
            let planned = stage.resources;
            refuse("nodes", planned.n_nodes, asked.n_nodes, true);
            let is_fixed = stage.trainer != Trainer::Aloe || asked.gpus_per_node == 0;
            refuse("gpus_per_node", planned.gpus_per_node, asked.gpus_per_node, is_fixed);
            let n_shards = cluster.shards(stage.kind_in_recipe(), &name);
            refuse("shards", n_planned as u32, n_shards, stage.shard().is_none());
            stage.resources = asked;
        }
        match mistakes.is_empty() {
            true => Ok(self),
            false => Err(Error::Mistakes { path: file.to_path_buf(), mistakes }),
        }
    }

    /// Names are unique and fit to be folders, and each stage follows those it needs.
    fn check(&self) -> Result<(), String> {
        let mut earlier: Vec<&str> = Vec::new();
        for stage in &self.stages {
            let is_plain = |text: &str| {
                !text.is_empty()
                    && !text.starts_with('.')
                    && text.chars().all(|letter| letter.is_ascii_alphanumeric() || "-_.".contains(letter))
            };
            if !is_plain(&stage.name) || stage.resources.n_nodes == 0 {
                return Err(format!("stage {:?} is not one that this program plans", stage.name));
            }
            if stage.is_called_shard() && stage.shard().is_none() {
                return Err(format!("stage {:?} is no part of a stage", stage.name));
            }
            let folder = stage.folder.to_string_lossy();
            if !folder.strip_prefix("stages/").is_some_and(is_plain) || earlier.contains(&stage.name.as_str()) {
                return Err(format!("stage {:?} stands twice or has no folder of its own", stage.name));
            }
            if let Some(missing) = stage.after.iter().find(|name| !earlier.contains(&name.as_str())) {
                return Err(format!("stage {:?} stands before {missing:?}, which it needs", stage.name));
            }
            earlier.push(&stage.name);
        }
        Ok(())
    }
}

/// Name of the plan in a run folder.
pub const PLAN: &str = "run.json";

/// What the plan is called from when another one is written over it until that one stands: nothing can be run then, and the folder is still
/// known as one of ours in which nothing had begun.
pub const SET_ASIDE: &str = ".run.json.old";

/// The folder below `models/` that stands for a model of `cluster.toml`: its name with what paths do not take as `-`.
pub fn model_folder(name: &str) -> String {
    let plain = |letter: char| if letter.is_ascii_alphanumeric() || "_.".contains(letter) { letter } else { '-' };
    name.chars().map(plain).collect()
}

/// Whether `path` is a run folder.
pub fn is_run_folder(path: &Path) -> bool {
    path.join(PLAN).is_file()
}

/// Whether the plan of `path` was set aside for another one that does not stand yet.
pub fn is_set_aside(path: &Path) -> bool {
    !is_run_folder(path) && path.join(SET_ASIDE).is_file()
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

    #[test]
    fn a_site_changes_time_and_processors_of_a_plan_and_not_what_its_configurations_hold() {
        let stage = |name: &str, kind: &str, trainer, gpus_per_node| StagePlan {
            name: name.into(),
            kind: kind.into(),
            folder: format!("stages/01-{name}").into(),
            after: vec![],
            trainer,
            resources: Resources { n_nodes: 1, gpus_per_node, cpus_per_node: 4, time_limit_s: 600 },
        };
        let stages = vec![
            stage("a", "sft", Trainer::Trl, 4),
            stage("b.1-of-2", crate::shard::EVAL_SHARD, Trainer::Aloe, 1),
            stage("b.2-of-2", crate::shard::EVAL_SHARD, Trainer::Aloe, 1),
            stage("b", "eval", Trainer::Aloe, 0),
        ];
        let plan = RunPlan { version: 1, name: "r".into(), place: Where::Slurm, recipe_sha256: String::new(), stages };
        let at = |sft: &str, eval: &str| {
            let text = format!(
                "name = \"s\"\naloe = \"/a\"\n[resources.default]\nnodes = 1\n[resources.sft]\n{sft}\n[resources.eval]\n{eval}\n"
            );
            plan.clone().at_site(&Cluster::parse(&text).unwrap(), Path::new("cluster.toml"))
        };
        let sft = "gpus_per_node = 4\ncpus_per_node = 8\ntime = \"1:00:00\"";
        let eval = "gpus_per_node = 2\ncpus_per_node = 4\ntime = 600\nshards = 2";
        let found = at(sft, eval).unwrap();
        let of = |at: usize| {
            let Resources { gpus_per_node, cpus_per_node, time_limit_s, .. } = found.stages[at].resources;
            (gpus_per_node, cpus_per_node, time_limit_s)
        };
        assert_eq!([of(0), of(1), of(3)], [(4, 8, 3600), (2, 4, 600), (0, 4, 600)]);
        let said =
            at(&sft.replace("gpus_per_node = 4", "gpus_per_node = 2"), &eval.replace("shards = 2", "shards = 3"));
        let said = said.unwrap_err().to_string();
        for part in
            ["stage \"a\" was planned with gpus_per_node = 4, not 2", "stage \"b\" was planned with shards = 2, not 3"]
        {
            assert!(said.contains(part) && said.contains("2 mistakes"), "{said}");
        }
        assert!(at(&format!("nodes = 2\n{sft}"), eval).unwrap_err().to_string().contains("nodes = 1, not 2"));
        // Nothing is said of it.
        assert_eq!(at("cpus_per_node = 9", eval).unwrap().stages[0], plan.stages[0]);
    }

    #[test]
    fn a_plan_that_was_edited_into_a_loop_or_out_of_its_folder_is_refused() {
        let stage = |name: &str, after: &[&str]| StagePlan {
            name: name.into(),
            kind: "merge".into(),
            folder: format!("stages/01-{name}").into(),
            after: after.iter().map(|name| (*name).to_owned()).collect(),
            trainer: Trainer::Aloe,
            resources: Resources { n_nodes: 1, gpus_per_node: 0, cpus_per_node: 1, time_limit_s: 60 },
        };
        let check = |stages: Vec<StagePlan>| {
            RunPlan { version: 1, name: "x".into(), place: Where::Local, recipe_sha256: String::new(), stages }.check()
        };
        check(vec![stage("a", &[]), stage("b", &["a"])]).unwrap();
        assert!(check(vec![stage("a", &["b"]), stage("b", &[])]).is_err());
        assert!(check(vec![stage("a", &[]), stage("a", &[])]).is_err());
        assert!(check(vec![stage("../a", &[])]).is_err());
        let outside = StagePlan { folder: "stages/../../a".into(), ..stage("a", &[]) };
        assert!(check(vec![outside]).is_err());
    }
}
