//! `README.txt` of a bundle: three commands, what the site must have, and what is under which licence.

use super::{Bundle, Packing};
use crate::cluster::Cluster;
use crate::plan::{RunPlan, StagePlan, Trainer};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// The text; `moved` are the models that were packed.
pub(super) fn text(
    bundle: &Bundle,
    plan: &RunPlan,
    cluster: &Cluster,
    moved: &BTreeMap<String, String>,
    packing: &Packing<'_>,
) -> String {
    let name = &bundle.name;
    let mut text = format!(
        "{name}: a run of aloe {version}, packed for a site without internet.

    tar xf {name}.tar && cd {name}
    bin/aloe bundle --check .
    bin/aloe run .

The first unpacks (the file may have been given another name); under Slurm, to storage that all nodes see. The second holds every file to its
digest and names weights that are still to be put in place; `sha256sum --check SHA256SUMS` does the first half by the system's own means. The
third starts the stages, {place}; `aloe run --help` and `aloe status --help` say more. Nothing asks the network.

cluster.toml is yours to change: partition, account, time limits, processors, engines, models. Nodes, GPUs of a training and shards are part of
the plan: others need a plan of their own, and `aloe run` says so. `aloe = \"./bin/aloe\"` is the packed program ({arch} Linux, glibc 2.28 or
newer); paths that begin with ./ start at this folder.

Stages
",
        version = bundle.aloe,
        arch = std::env::consts::ARCH,
        place = match plan.place {
            crate::Where::Slurm => "as jobs of Slurm (here and now instead: --where local)",
            crate::Where::Local => "here and now (as jobs of Slurm instead: --where slurm)",
        },
    );
    for StagePlan { name, kind, trainer, after, .. } in &plan.stages {
        let after = if after.is_empty() { String::new() } else { format!(", after {}", after.join(", ")) };
        let _ = writeln!(text, "    {name}: {kind} by {}{after}", trainer.name());
    }
    let mut sections =
        vec![("Engines that the site must have, with the versions of stages/*/env.lock", engines(plan, cluster))];
    sections.push(("Weights to be put in place before the run", left_out(bundle)));
    let models = cluster.models.iter().filter(|(name, _)| !moved.contains_key(*name));
    let models = models.map(|(name, folder)| format!("{name}: {}", folder.display())).collect();
    sections.push(("Models that lie at the site, by cluster.toml", models));
    let packed = moved.iter().map(|(name, place)| format!("{name}: {place}")).collect();
    sections.push(("Models that are packed", packed));
    sections.push(("Licences, as the recipe states them", packing.licences.to_vec()));
    for (title, lines) in sections.into_iter().filter(|(_, lines)| !lines.is_empty()) {
        let _ = writeln!(text, "\n{title}");
        lines.iter().for_each(|line| {
            let _ = writeln!(text, "    {line}");
        });
    }
    text
}

fn engines(plan: &RunPlan, cluster: &Cluster) -> Vec<String> {
    let asked = |trainer: Trainer| plan.stages.iter().any(|stage| stage.trainer == trainer);
    let of = |trainer: Trainer| {
        let folder = cluster.engines.get(trainer.name()).map(|folder| folder.display().to_string());
        format!("{}: {}", trainer.name(), folder.unwrap_or_else(|| "name its folder under [engines]".to_owned()))
    };
    [Trainer::Trl, Trainer::Axolotl].into_iter().filter(|trainer| asked(*trainer)).map(of).collect()
}

fn left_out(bundle: &Bundle) -> Vec<String> {
    bundle.left_out.iter().map(|left| format!("{}  {}  {} bytes", left.sha256, left.path, left.n_bytes)).collect()
}
