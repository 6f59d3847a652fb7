//! `aloe plan --validate`: the configurations of a run folder, read by the engines' own parsers where their environments are here. Our own
//! check has passed by then; this is the second opinion.

use crate::failure::Failure;
use aloe_handoff::{Cluster, RunPlan, Trainer};
use anyhow::Context as _;
use std::path::Path;
use std::process::Command;

/// What is given to the environment's Python: TRL's parser, and axolotl's validation.
const TRL: &str = include_str!("validate.py");
const AXOLOTL: &str = include_str!("validate_axolotl.py");

/// Asks the parser of every foreign stage's trainer; all refusals together.
pub(crate) fn all(run: &Path, plan: &RunPlan, cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let (mut mistakes, mut accepted) = (Vec::new(), Vec::new());
    for stage in plan.stages.iter().filter(|stage| stage.trainer != Trainer::Aloe) {
        // A stage whose rows a job makes has its configuration from there.
        let is_later =
            std::fs::read_to_string(run.join(&stage.folder).join("run.sh")).is_ok_and(|text| text.contains("--render"));
        if is_later {
            accepted.push(format!("{}: its configuration is written in its job, and not validated here", stage.name));
            continue;
        }
        let python = cluster.engines[stage.trainer.name()].join("bin/python");
        let config = run.join(&stage.folder).join("engine.yaml").to_string_lossy().into_owned();
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
            true => accepted.push(format!("{}: accepted by {}'s own parser", stage.name, stage.trainer.name())),
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
