//! `aloe plan RECIPE --where slurm|local --cluster cluster.toml --out RUN`: the recipe as a run folder that holds all it needs.
//!
//! What needs no cluster is made here and now in `out/`: models that the site does not have, and data. The rest become jobs. The plan's
//! files are the same bytes for the same recipe and site; only `out/*/record.json` bears times. A run that has begun is not planned over.

use super::rewrite::{Rewritten, made_here, rewrite, trainer_of};
use super::scripts;
use crate::commands::run::{enter_root, is_address, run_stage};
use crate::commands::{shards, threads_of};
use crate::failure::Failure;
use crate::recipe::at_site::{self, Site};
use crate::recipe::checked::{Input, Recipe, Stage, shown};
use crate::recipe::compared;
use crate::recipe::plan::{Row, plan};
use crate::recipe::stage_config::StageConfig;
use crate::stage::Context;
use aloe_handoff::lock::StageLock;
use aloe_handoff::plan::{PLAN, SET_ASIDE, is_run_folder, is_set_aside};
use aloe_handoff::{Cluster, Resources, RunPlan, StagePlan, Trainer, Where, shard, state};
use aloe_record::{Cancel, atomic, digest};
use anyhow::Context as _;
use std::path::{Path, PathBuf};

/// Folders of a run folder that a plan writes anew.
const WRITTEN: [&str; 3] = ["stages", "data", "files"];

/// What was planned, for the table and for scripts.
pub(crate) struct Planned {
    /// The plan.
    pub(crate) plan: RunPlan,
    /// Stages that were made at once.
    pub(crate) made: Vec<String>,
    /// What the user must be told.
    pub(crate) notices: Vec<String>,
}

/// Writes the run folder `run`, an absolute path.
pub(crate) fn write(
    recipe_path: &Path,
    cluster_path: &Path,
    run: &Path,
    place: Where,
    threads: usize,
    cancel: &Cancel,
) -> anyhow::Result<Planned> {
    let text = std::fs::read_to_string(recipe_path)
        .map_err(|error| Failure::usage(format!("cannot read the recipe {}: {error}", recipe_path.display())))?;
    let cluster_path = std::path::absolute(cluster_path)?;
    let recipe = Recipe::read(recipe_path)?;
    let cluster = Cluster::read(&cluster_path)?;
    refuse_relative(&cluster_path)?;
    let default = cluster.usual_trainer(place);
    refuse_begun(run)?;
    check_stages(&recipe, &cluster, default, place)?;
    enter_root(&recipe)?;
    let planned = plan(&recipe, &run.join("out"), None)?;
    if !planned.mistakes.is_empty() {
        return Err(Failure::usage(shown(recipe_path, &planned.mistakes)).into());
    }
    let of_servers = check_memory(&recipe, &planned.rows, &cluster, default)?;
    let rewritten = rewrite(&recipe, &text, &cluster, default).map_err(|mistakes| {
        Failure::usage(format!("the recipe cannot leave this machine\n  {}", mistakes.join("\n  ")))
    })?;
    check_files(&recipe, &rewritten)?;
    refuse_own(run, &rewritten)?;
    let made = make_here(&recipe, &cluster, run, threads, cancel)?;
    set_aside(run)?;
    for folder in WRITTEN.map(|name| run.join(name)) {
        atomic::remove_folder(&folder)?;
    }
    for (from, to) in &rewritten.files {
        copy(from, &run.join(to))?;
    }
    atomic::write(&run.join("recipe.toml"), rewritten.text.as_bytes())?;
    copy(&cluster_path, &run.join("cluster.toml"))?;
    std::env::set_current_dir(run).with_context(|| format!("cannot enter {}", run.display()))?;
    let copied = Recipe::parse(Path::new("recipe.toml"), &rewritten.text)
        .context("the recipe as copied has mistakes that the one it was made from has not")?;
    let plan = plan_of(&copied, &rewritten.text, &cluster, place)?;
    let mut notices = idle_gpus(&copied, &plan, &cluster)?;
    notices.extend(of_servers);
    notices.extend(compared::notices(&copied, Path::new("out")));
    for planned in &plan.stages {
        let stage = &copied.stages[copied.position(planned.in_recipe())?];
        let written = scripts::write(&copied, stage, planned, &plan, &cluster);
        notices.extend(written.with_context(|| format!("stage {:?}", planned.name))?);
    }
    // Last: a folder with a plan is whole.
    atomic::write_json(&run.join(PLAN), &plan)?;
    remove_if_there(&run.join(SET_ASIDE))?;
    Ok(Planned { plan, made, notices })
}

/// Takes an earlier plan and its state out of the way. Under its own name it would look whole when this one comes to no end, and train until
/// a command is not found; removed, nobody would know the folder as one of ours: it gets another name until the new one stands.
fn set_aside(run: &Path) -> anyhow::Result<()> {
    if is_run_folder(run) {
        let client = StageLock::of_client(run)?;
        let _client = client.map_err(|who| {
            Failure::usage(format!("{who} is submitting the run {}; it is not planned over", run.display()))
        })?;
        // It may have been started since the first check, while data was made.
        refuse_begun(run)?;
        let (from, to) = (run.join(PLAN), run.join(SET_ASIDE));
        std::fs::rename(&from, &to).with_context(|| format!("cannot rename {}", from.display()))?;
    }
    // With the lock let go, whose file NFS would keep in the folder: without a plan no client begins. After a plan that came to no end, again.
    if is_set_aside(run) {
        atomic::remove_folder(&run.join("state"))?;
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// A run folder's copy of the file would look for a path that begins with `./` in the run folder.
fn refuse_relative(cluster: &Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(cluster).with_context(|| format!("cannot read {}", cluster.display()))?;
    match Cluster::relative_path(&text) {
        Some(path) => {
            let text = format!(
                "{} names {}, a path of the folder it lies in; plan with absolute paths",
                cluster.display(),
                path.display()
            );
            Err(Failure::usage(text).into())
        }
        None => Ok(()),
    }
}

/// A folder of something else, or a run that has begun, is not written over.
fn refuse_begun(run: &Path) -> anyhow::Result<()> {
    if is_run_folder(run) {
        let plan = RunPlan::read(run)?;
        for stage in &plan.stages {
            let phase = state::read(run, &stage.name)?.phase;
            if phase != state::Phase::Planned {
                let text = format!(
                    "{} holds a run that has begun (stage {:?} is {}); nothing was written. Choose another --out",
                    run.display(),
                    stage.name,
                    phase.name()
                );
                return Err(Failure::usage(text).into());
            }
            // `aloe resume` makes a stage planned again whose work still lies here: another plan would go on from it.
            let has_worked = |entry: &state::Entry| matches!(entry.event, state::Event::Started { .. });
            let holds =
                |folder: &str| std::fs::read_dir(run.join(folder)).is_ok_and(|mut found| found.next().is_some());
            if state::entries(run, &stage.name)?.iter().any(has_worked) || holds("work") {
                let text = format!(
                    "{} holds work of stage {:?} or another one; nothing was written. Go on with `aloe resume`, or choose another --out",
                    run.display(),
                    stage.name
                );
                return Err(Failure::usage(text).into());
            }
        }
        return Ok(());
    }
    // A plan over it came to no end.
    if is_set_aside(run) {
        return Ok(());
    }
    let is_ours =
        |name: &str| matches!(name, "out" | "stages" | "data" | "files" | "recipe.toml" | "cluster.toml" | "models");
    let entries = std::fs::read_dir(run).into_iter().flatten().flatten();
    let foreign = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).find(|name| !is_ours(name));
    match foreign {
        Some(name) => {
            let text = format!(
                "{} holds {name:?} and is no run folder; nothing was written. Choose another --out",
                run.display()
            );
            Err(Failure::usage(text).into())
        }
        None => Ok(()),
    }
}

/// A recipe of the run folder itself names files in it, which would be removed before they are copied.
fn refuse_own(run: &Path, rewritten: &Rewritten) -> anyhow::Result<()> {
    let run = run.canonicalize().unwrap_or_else(|_| run.to_path_buf());
    let is_own = |path: &&PathBuf| WRITTEN.iter().any(|name| path.starts_with(run.join(name)));
    match rewritten.files.iter().map(|(from, _)| from).find(is_own) {
        Some(path) => {
            let text = format!(
                "{} lies in the run folder that is to be written; nothing was written. Plan from the recipe that it was made from, or choose \
                 another --out",
                path.display()
            );
            Err(Failure::usage(text).into())
        }
        None => Ok(()),
    }
}

/// Resources of every job, engines that the site has, stages that `cluster.toml` names: all mistakes together.
fn check_stages(recipe: &Recipe, cluster: &Cluster, default: Trainer, place: Where) -> anyhow::Result<()> {
    let mut mistakes = Vec::new();
    let is_made = made_here(recipe, cluster);
    for (stage, _) in recipe.stages.iter().zip(&is_made).filter(|(_, made)| !**made) {
        let trainer = trainer_of(recipe, stage, default);
        match cluster.resources(stage.config.kind(), &stage.name) {
            Ok(asked) if trainer == Trainer::Aloe && asked.n_nodes > 1 => mistakes
                .push(format!("stage {:?} is run by aloe, on one node; it asks for {}", stage.name, asked.n_nodes)),
            Ok(asked) if scripts::served_model(recipe, stage, cluster).is_some() => {
                let serving = cluster.serving.as_ref();
                mistakes.extend(serving.and_then(|serving| serving.mistake(&stage.name, asked.gpus_per_node)));
            }
            Ok(asked) if trainer != Trainer::Aloe => {
                let refused = scripts::refused_settings(stage, trainer, asked)?;
                mistakes.extend(refused.into_iter().map(|mistake| format!("stage {:?}: {mistake}", stage.name)));
            }
            Ok(_) => {}
            Err(mistake) => mistakes.push(mistake),
        }
        let checkpoint_every = match &stage.config {
            StageConfig::Sft(config) => config.checkpoint_every,
            StageConfig::Dpo(config) => config.checkpoint_every,
            _ => 1,
        };
        if trainer != Trainer::Aloe && place == Where::Slurm && checkpoint_every == 0 {
            mistakes.push(format!(
                "stage {:?}: checkpoint_every = 0 with {} under Slurm: a session that ends before the training does would be lost whole",
                stage.name,
                trainer.name()
            ));
        }
        if trainer != Trainer::Aloe && !cluster.engines.contains_key(trainer.name()) {
            let name = trainer.name();
            mistakes.push(format!(
                "stage {:?} is trained by {name}: cluster.toml names no environment of it; write {name} = \"/path\" under [engines], or \
                 trainer = \"aloe\" in the recipe",
                stage.name
            ));
        }
    }
    for (stage, _) in recipe.stages.iter().zip(&is_made).filter(|(_, made)| !**made) {
        let n_shards = cluster.shards(stage.config.kind(), &stage.name);
        let mistake = shards::mistake(&stage.config, n_shards).filter(|_| n_shards > 1);
        mistakes.extend(mistake.map(|mistake| format!("stage {:?}: {mistake}", stage.name)));
    }
    for name in cluster.named_stages() {
        if !recipe.stages.iter().any(|stage| stage.name == name) {
            mistakes.push(format!("[stages.{name}] of cluster.toml is no stage of the recipe"));
        }
    }
    match mistakes.is_empty() {
        true => Ok(()),
        false => Err(Failure::usage(format!("nothing was planned\n  {}", mistakes.join("\n  "))).into()),
    }
}

/// Our own engine computes on processors: GPUs that its jobs ask for, without servers on them, are billed for nothing.
fn idle_gpus(recipe: &Recipe, plan: &RunPlan, cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let mut idle: Vec<(u32, &str)> = Vec::new();
    let mut can_be_served = false;
    for planned in plan.stages.iter().filter(|planned| planned.trainer == Trainer::Aloe) {
        let stage = &recipe.stages[recipe.position(planned.in_recipe())?];
        let n_gpus = planned.resources.gpus_per_node;
        let has_gpus = cluster.serving.as_ref().is_some_and(|serving| serving.gpus > 0);
        let is_served = has_gpus && scripts::served_model(recipe, stage, cluster).is_some();
        if n_gpus > 0 && !is_served {
            can_be_served |=
                matches!(stage.config, StageConfig::Eval(_) | StageConfig::Redteam(_) | StageConfig::Synthesis(_));
            idle.push((n_gpus, &planned.name));
        }
    }
    if idle.is_empty() {
        return Ok(Vec::new());
    }
    let names: Vec<String> = idle.iter().map(|(n_gpus, name)| format!("{name} ({n_gpus} a node)")).collect();
    let serve = if can_be_served { "write a [serving] table, so that their model is served on them, or " } else { "" };
    Ok(vec![format!(
        "GPUs of {} would stand idle, billed, while aloe computes on processors: {serve}write gpus_per_node = 0 for them in cluster.toml",
        names.join(", ")
    )])
}

/// A stage whose estimated memory its machines do not have would end by being killed. On GPUs it is the estimate of `aloe plan --cluster`
/// that decides; on processors that of this machine. What cannot be estimated, or has no stated limit, is not checked.
fn check_memory(recipe: &Recipe, rows: &[Row], cluster: &Cluster, default: Trainer) -> anyhow::Result<Vec<String>> {
    let site = Site::of(cluster);
    let (mut mistakes, mut notices) = (Vec::new(), Vec::new());
    let is_made = made_here(recipe, cluster);
    for ((stage, row), _) in recipe.stages.iter().zip(rows).zip(&is_made).filter(|(_, made)| !**made) {
        let asked = cluster.resources(stage.config.kind(), &stage.name).map_err(Failure::usage)?;
        let is_own = trainer_of(recipe, stage, default) == Trainer::Aloe;
        let is_served = scripts::served_model(recipe, stage, cluster).is_some();
        let is_on_gpus = is_served && cluster.serving.as_ref().is_some_and(|serving| serving.gpus > 0);
        if (!is_own || is_on_gpus) && asked.gpus_per_node > 0 {
            let estimate = at_site::estimate(row, asked, &site);
            let too_large = estimate.iter().flat_map(|estimate| estimate.too_large());
            let too_large = too_large.map(|text| format!("stage {:?} {text}", stage.name));
            match is_own {
                // The server's command may hold the weights in fewer bits than the two bytes that are counted.
                true => notices.extend(too_large.map(|text| format!("{text}, if its server holds bf16 weights"))),
                false => mistakes.extend(too_large),
            }
            continue;
        }
        let share_gb = row.memory_bytes.map(|bytes| bytes as f64 / 1e9);
        if let (Some(share_gb), Some(limit)) = (share_gb, cluster.node.memory_gb)
            && share_gb > limit
        {
            let way_out = match stage.config {
                StageConfig::Sft(_) | StageConfig::Dpo(_) => "train it with trl or axolotl on GPUs",
                StageConfig::Eval(_) | StageConfig::Redteam(_) | StageConfig::Synthesis(_) if !is_served => {
                    "serve its model, see [serving] in aloe plan --help"
                }
                _ => "give it a node with more",
            };
            mistakes.push(format!(
                "stage {:?} needs about {share_gb:.0} GB of a node with {limit} GB; {way_out}",
                stage.name
            ));
        }
    }
    match mistakes.is_empty() {
        true => Ok(notices),
        false => Err(Failure::usage(format!("nothing was planned\n  {}", mistakes.join("\n  "))).into()),
    }
}

/// Everything that is copied is there and of a size that one copies.
fn check_files(recipe: &Recipe, rewritten: &Rewritten) -> anyhow::Result<()> {
    /// Above this a model is named in `cluster.toml`, where it lies already.
    const MOST_BYTES: u64 = 8 << 30;
    let mut mistakes = Vec::new();
    let mut n_bytes = 0;
    for (from, _) in &rewritten.files {
        match size(from) {
            Ok(found) => n_bytes += found,
            Err(error) => mistakes.push(format!("{}: {error}", from.display())),
        }
    }
    if n_bytes > MOST_BYTES {
        mistakes.push(format!(
            "{:.1} GiB would be copied into the run folder of {:?}; name models under [models] of cluster.toml by the path that the recipe has",
            n_bytes as f64 / (1u64 << 30) as f64,
            recipe.name
        ));
    }
    match mistakes.is_empty() {
        true => Ok(()),
        false => Err(Failure::usage(format!("nothing was planned\n  {}", mistakes.join("\n  "))).into()),
    }
}

fn size(path: &Path) -> std::io::Result<u64> {
    if !path.is_dir() {
        return Ok(path.metadata()?.len());
    }
    std::fs::read_dir(path)?.map(|entry| size(&entry?.path())).sum()
}

/// Copies a file, or a folder with all in it; links are followed.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    if from.is_dir() {
        std::fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
        for entry in std::fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))? {
            let path = entry?.path();
            copy(&path, &to.join(path.file_name().unwrap_or_default()))?;
        }
        return Ok(());
    }
    if from == to {
        return Ok(());
    }
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    }
    std::fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// Runs the stages that need no cluster, as `aloe run` does: one that is done is not run again.
fn make_here(
    recipe: &Recipe,
    cluster: &Cluster,
    run: &Path,
    threads: usize,
    cancel: &Cancel,
) -> anyhow::Result<Vec<String>> {
    let threads = threads_of(if threads == 0 { recipe.threads } else { threads });
    let context = Context { seed: recipe.seed, threads, dtype: recipe.dtype, servers: None, cancel: cancel.clone() };
    let mut made = Vec::new();
    for (stage, _) in recipe.stages.iter().zip(made_here(recipe, cluster)).filter(|(_, made)| *made) {
        cancel.check()?;
        aloe_record::tell(&format!("{} ({}) is made here", stage.name, stage.config.kind()));
        run_stage(recipe, stage, &run.join("out"), &context)
            .with_context(|| format!("stage {:?} ({})", stage.name, stage.config.kind()))?;
        made.push(stage.name.clone());
    }
    Ok(made)
}

fn plan_of(recipe: &Recipe, text: &str, cluster: &Cluster, place: Where) -> anyhow::Result<RunPlan> {
    let mut stages = Vec::new();
    for (at, stage) in recipe.stages.iter().enumerate() {
        let whole = stage_plan(recipe, at, cluster)?;
        let n_shards = cluster.shards(stage.config.kind(), &stage.name);
        if n_shards == 1 {
            stages.push(whole);
            continue;
        }
        let kind = shard::kind_of_shards(stage.config.kind());
        let kind = kind.ok_or_else(|| Failure::usage(format!("stage {:?} cannot be divided", stage.name)))?;
        let shard = |index: u32| {
            let name = shard::name_of(&stage.name, index, n_shards);
            let folder = whole.folder.with_file_name(format!("{:02}-{name}", 10 * (at + 1)));
            StagePlan { name, kind: kind.to_owned(), folder, ..whole.clone() }
        };
        let shards: Vec<StagePlan> = (1..=n_shards).map(shard).collect();
        let after = whole.after.iter().cloned().chain(shards.iter().map(|shard| shard.name.clone())).collect();
        stages.extend(shards);
        // Whoever gathers asks no model.
        let resources = Resources { gpus_per_node: 0, ..whole.resources };
        stages.push(StagePlan { after, resources, ..whole });
    }
    let recipe_sha256 = digest::bytes(text.as_bytes());
    Ok(RunPlan { version: 1, name: recipe.name.clone(), place, recipe_sha256, stages })
}

/// The stage at `at` as one job.
fn stage_plan(recipe: &Recipe, at: usize, cluster: &Cluster) -> anyhow::Result<StagePlan> {
    let stage = &recipe.stages[at];
    let resources = cluster.resources(stage.config.kind(), &stage.name).map_err(Failure::usage)?;
    let mut after: Vec<String> = Vec::new();
    for (_, inputs) in &stage.from {
        for input in inputs {
            if let Input::Stage(at) = input {
                after.push(recipe.stages[*at].name.clone());
            }
        }
    }
    after.sort();
    after.dedup();
    Ok(StagePlan {
        name: stage.name.clone(),
        kind: stage.config.kind().to_owned(),
        folder: PathBuf::from(format!("stages/{:02}-{}", 10 * (at + 1), stage.name)),
        after,
        trainer: trainer_of(recipe, stage, Trainer::Aloe),
        resources,
    })
}

/// Files of the run folder that a stage reads and that are there before any job, each with its digest: the recipe, copies, and what was
/// made here, without what bears times.
pub(super) fn inputs_of(stage: &Stage) -> anyhow::Result<std::collections::BTreeMap<String, String>> {
    let mut found = std::collections::BTreeMap::new();
    let mut open = vec![PathBuf::from("recipe.toml")];
    open.extend(crate::commands::stages::extra_files(&stage.config));
    for (_, inputs) in &stage.from {
        open.extend(inputs.iter().filter_map(|input| match input {
            Input::Path(path) if !is_address(path) => Some(path.clone()),
            _ => None,
        }));
    }
    while let Some(path) = open.pop() {
        let path: PathBuf = path.components().filter(|part| *part != std::path::Component::CurDir).collect();
        // Models of the site are links that its jobs make.
        let is_site = path.starts_with("models");
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        if is_site || digest::bears_time(&name) {
            continue;
        }
        if path.is_dir() {
            let entries = std::fs::read_dir(&path).with_context(|| format!("cannot list {}", path.display()))?;
            open.extend(entries.flatten().map(|entry| entry.path()));
        } else if path.is_file() {
            found.insert(path.to_string_lossy().into_owned(), digest::file(&path)?);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_began_while_data_was_made_is_kept_and_a_plan_that_came_to_no_end_is_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path();
        let stage = StagePlan {
            name: "a".into(),
            kind: "merge".into(),
            folder: "stages/a".into(),
            after: vec![],
            trainer: Trainer::Aloe,
            resources: Resources { n_nodes: 1, gpus_per_node: 0, cpus_per_node: 1, time_limit_s: 60 },
        };
        std::fs::write(run.join("recipe.toml"), "").unwrap();
        let (name, recipe_sha256) = ("r".into(), digest::bytes(b""));
        let plan = RunPlan { version: 1, name, place: Where::Local, recipe_sha256, stages: vec![stage] };
        atomic::write_json(&run.join(PLAN), &plan).unwrap();
        std::fs::write(run.join("notes.txt"), "somebody's").unwrap();
        // The earlier check was before it was submitted.
        refuse_begun(run).unwrap();
        state::update(run, "a", |_| Ok(Some(state::Event::Submitting { name: "x".into() }))).unwrap();
        let said = set_aside(run).unwrap_err().to_string();
        assert!(said.contains("a run that has begun (stage \"a\" is submitting)"), "{said}");
        assert!(is_run_folder(run) && state::read(run, "a").unwrap().phase == state::Phase::Submitting);
        let reason = "sbatch".to_owned();
        state::update(run, "a", |_| Ok(Some(state::Event::NotSubmitted { reason }))).unwrap();
        // Twice: the first came to no end.
        for _ in 0..2 {
            refuse_begun(run).unwrap();
            set_aside(run).unwrap();
            assert!(!is_run_folder(run) && !run.join("state").exists());
        }
        std::fs::remove_file(run.join(SET_ASIDE)).unwrap();
        assert!(refuse_begun(run).unwrap_err().to_string().contains("is no run folder"));
    }
}
