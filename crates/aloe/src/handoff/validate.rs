//! `aloe plan --validate`: the configurations of a run folder, read by the engines' own parsers where their environments are here. Our own
//! check has passed by then; this is the second opinion.

use super::scripts;
use crate::failure::Failure;
use crate::recipe::checked::Recipe;
use aloe_handoff::{Cluster, RunPlan, StagePlan, Trainer};
use anyhow::Context as _;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is given to the environment's Python: TRL's parser, and axolotl's validation.
const TRL: &str = include_str!("validate.py");
const AXOLOTL: &str = include_str!("validate_axolotl.py");

/// Asks the parser of every foreign stage's trainer; all refusals together. Called in the run folder.
pub(crate) fn all(run: &Path, plan: &RunPlan, cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let (mut mistakes, mut accepted) = (Vec::new(), Vec::new());
    let recipe = Recipe::read(Path::new("recipe.toml"))?;
    for stage in plan.stages.iter().filter(|stage| stage.trainer != Trainer::Aloe) {
        // A stage whose rows a job makes has its configuration from there; but for the number of steps it is known now.
        let pretended = pretended(&recipe, stage, cluster)?;
        let python = cluster.engines[stage.trainer.name()].join("bin/python");
        let config = match &pretended {
            Some(file) => file.0.clone(),
            None => run.join(&stage.folder).join("engine.yaml"),
        };
        let config = config.to_string_lossy().into_owned();
        let asked = stage.resources;
        let words = match stage.trainer {
            Trainer::Axolotl => {
                vec![AXOLOTL.to_owned(), config, asked.gpus_per_node.to_string(), asked.n_nodes.to_string()]
            }
            _ => vec![TRL.to_owned(), stage.kind.clone(), config],
        };
        let output = Command::new(&python)
            .arg("-c")
            .args(words)
            .current_dir(run)
            .env("HF_HUB_OFFLINE", "1")
            .output()
            .with_context(|| format!("--validate: cannot run {}", python.display()))?;
        match output.status.success() {
            true => {
                let how =
                    if pretended.is_some() { ", with a number of steps made up: a job makes its rows" } else { "" };
                accepted.push(format!("{}: accepted by {}'s own parser{how}", stage.name, stage.trainer.name()));
            }
            false => {
                let said = String::from_utf8_lossy(&output.stderr);
                let last: Vec<&str> = said.trim().lines().rev().take(3).collect();
                let last: Vec<&str> = last.into_iter().rev().collect();
                mistakes.push(format!("stage {:?}: {}", stage.name, last.join(" ")));
            }
        }
    }
    match mistakes.is_empty() {
        true => Ok(accepted),
        false => Err(Failure::usage(format!("refused by the engine's own parser\n  {}", mistakes.join("\n  "))).into()),
    }
}

/// A file for the time of a question.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // What is left in the folder for such files costs nobody anything.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The configuration of a stage whose rows a job makes, in a file of its own.
fn pretended(recipe: &Recipe, stage: &StagePlan, cluster: &Cluster) -> anyhow::Result<Option<Temporary>> {
    let in_recipe = &recipe.stages[recipe.position(&stage.name)?];
    let Some(text) = scripts::pretended_config(recipe, in_recipe, stage, cluster)? else { return Ok(None) };
    let path = std::env::temp_dir().join(format!("aloe-validate-{}-{}.yaml", std::process::id(), stage.name));
    let mut file = File::create_new(&path).with_context(|| format!("cannot create {}", path.display()))?;
    let file_of = Temporary(path);
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", file_of.0.display()))?;
    Ok(Some(file_of))
}
