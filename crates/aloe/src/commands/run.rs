//! `aloe run`: every stage of a recipe that is not done, in the order of the graph, then a table of what each did.

use crate::cli::RunArgs;
use crate::cli::jobs::StatusArgs;
use crate::commands::{jobs, shards, stages, threads_of};
use crate::failure::Failure;
use crate::handoff::returned;
use crate::handoff::rewrite::trainer_of;
use crate::recipe::checked::{Input, Recipe, Stage, shown};
use crate::recipe::stage_config::StageConfig;
use crate::recipe::{compared, plan, quarantines};
use crate::stage::{Context, Done, Inputs};
use aloe_handoff::plan::is_run_folder;
use aloe_handoff::{Trainer, Where};
use aloe_record::{Cancel, Record};
use anyhow::Context as _;
use serde_json::json;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Runs the recipe, or one stage of it.
pub(crate) fn run(args: &RunArgs, cancel: &Cancel) -> anyhow::Result<()> {
    if is_run_folder(&args.recipe) {
        return run_folder(args, cancel);
    }
    if args.place.is_some() || args.waits.wait {
        let text = "--where and --wait go with a run folder; write one with `aloe plan RECIPE --where ... --cluster cluster.toml --out RUN`";
        return Err(Failure::usage(text).into());
    }
    let mut recipe = Recipe::read(&args.recipe)?;
    if recipe.place == Some(Where::Slurm) && args.stage.is_none() {
        let text = "the recipe says where = \"slurm\": write a run folder with `aloe plan RECIPE --cluster cluster.toml --out RUN` and run that, or \
                    name one stage with --stage to run it here";
        return Err(Failure::usage(text).into());
    }
    recipe.set_seed(args.seed.unwrap_or(recipe.seed));
    let out = output_folder(&recipe, args.out.as_deref())?;
    let only = args.stage.as_deref().map(|name| recipe.position(name)).transpose()?;
    let part = part_of(args)?;
    let servers = args.servers.as_deref().map(std::path::absolute).transpose()?;
    enter_root(&recipe)?;
    let threads = threads_of(if args.threads == 0 { recipe.threads } else { args.threads });
    let context = Context { seed: recipe.seed, threads, dtype: recipe.dtype, servers, cancel: cancel.clone() };
    check_inputs(&recipe, only)?;
    quarantines::refuse_in_folders(&recipe, &recipe.stages, &out)?;
    if only.is_none() {
        // Before the first stage runs for hours, what a later one is sure to refuse.
        let mistakes = plan::mistakes(&recipe, &out);
        if !mistakes.is_empty() {
            return Err(Failure::usage(shown(&args.recipe, &mistakes)).into());
        }
        stages::tell(&compared::notices(&recipe, &out));
    }
    let mut rows = Vec::new();
    for (at, stage) in recipe.stages.iter().enumerate() {
        if only.is_some_and(|only| only != at) {
            continue;
        }
        cancel.check()?;
        announce(at, &recipe, stage);
        let done = run_part(&recipe, stage, &out, &part, &context)
            .with_context(|| format!("stage {:?} ({})", stage.name, stage.config.kind()))?;
        rows.push((stage, done));
    }
    match args.json {
        true => print_json(&rows, &out)?,
        false => print_table(&rows, &out)?,
    }
    rows.iter().try_for_each(|(stage, done)| stages::check_expected(&stage.name, &done.record))
}

fn run_folder(args: &RunArgs, cancel: &Cancel) -> anyhow::Result<()> {
    let flags = [
        ("--out", args.out.is_some()),
        ("--stage", args.stage.is_some()),
        ("--servers", args.servers.is_some()),
        ("--shards", args.shards.is_some()),
        ("--threads", args.threads != 0),
        ("--seed", args.seed.is_some()),
    ];
    if let Some((flag, _)) = flags.into_iter().find(|(_, is_given)| *is_given) {
        let text = format!("{flag} does not go with a run folder, whose plan says it; leave it out");
        return Err(Failure::usage(text).into());
    }
    let of = StatusArgs { run: args.recipe.clone(), place: args.place, json: args.json };
    jobs::run(&of, args.waits, cancel)
}

/// What of a stage is run.
enum Part {
    Whole,
    /// A shard, into a folder below this one.
    Shard(aloe_data::Shard, PathBuf),
    /// What so many shards below this folder make together.
    Gathered(u32, PathBuf),
}

fn part_of(args: &RunArgs) -> anyhow::Result<Part> {
    let Some(folder) = args.shards.as_deref().map(std::path::absolute).transpose()? else { return Ok(Part::Whole) };
    match (args.shard, args.gather) {
        (Some(shard), _) => Ok(Part::Shard(shard, folder)),
        (None, Some(n)) => Ok(Part::Gathered(n, folder)),
        (None, None) => Err(Failure::usage("--shards goes with --shard I/N or --gather N").into()),
    }
}

fn run_part(recipe: &Recipe, stage: &Stage, out: &Path, part: &Part, context: &Context) -> anyhow::Result<Done> {
    match part {
        Part::Whole => run_stage(recipe, stage, out, context),
        Part::Shard(shard, folder) => {
            let (index, n) = (u32::try_from(shard.index)?, u32::try_from(shard.n)?);
            let shard = aloe_handoff::shard::Shard { of: &stage.name, index, n };
            shards::run(stage, &inputs_of(recipe, stage, out)?, shard, folder, context)
        }
        Part::Gathered(n, folder) => {
            let inputs = inputs_of(recipe, stage, out)?;
            shards::gather(stage, &inputs, *n, folder, &out.join(&stage.name), context)
        }
    }
}

/// The inputs of a stage, which must be there.
pub(crate) fn inputs_of(recipe: &Recipe, stage: &Stage, out: &Path) -> anyhow::Result<Inputs> {
    let mut inputs = Inputs::new();
    for (key, given) in &stage.from {
        let paths = given.iter().map(|input| match input {
            Input::Stage(at) => out.join(&recipe.stages[*at].name),
            Input::Path(path) => path.clone(),
        });
        inputs.insert(key.clone(), paths.collect());
    }
    for paths in inputs.values() {
        for path in paths {
            if !path.exists() && !is_address(path) {
                return Err(Failure::usage(format!(
                    "{} does not exist; run the stage that makes it first, or fetch a model with `aloe pull`",
                    path.display()
                ))
                .into());
            }
        }
    }
    Ok(inputs)
}

/// Runs one stage of a recipe into `out/NAME`.
pub(crate) fn run_stage(recipe: &Recipe, stage: &Stage, out: &Path, context: &Context) -> anyhow::Result<Done> {
    quarantines::refuse_in_folders(recipe, [stage], out)?;
    let inputs = inputs_of(recipe, stage, out)?;
    let target = out.join(&stage.name);
    let default = if recipe.place == Some(Where::Slurm) { Trainer::Trl } else { Trainer::Aloe };
    let trainer = trainer_of(recipe, stage, default);
    if trainer != Trainer::Aloe {
        return returned::run(stage, trainer, &inputs, &target, context);
    }
    stages::run(&stage.config, &stage.name, stage.written.clone(), &inputs, &target, context)
}

/// Whether an input is an endpoint's address and not a path.
pub(crate) fn is_address(path: &Path) -> bool {
    let text = path.to_string_lossy();
    text.starts_with("http://") || text.starts_with("https://")
}

/// Where the stages' folders go: `--out`, or `runs/NAME` under the current folder. Absolute, since relative paths of the
/// recipe start elsewhere.
pub(crate) fn output_folder(recipe: &Recipe, asked: Option<&Path>) -> anyhow::Result<PathBuf> {
    let folder = asked.map_or_else(|| Path::new("runs").join(&recipe.name), Path::to_path_buf);
    std::path::absolute(&folder).with_context(|| format!("cannot resolve {}", folder.display()))
}

/// Makes the recipe's root the current folder, so that its relative paths mean what the file says.
pub(crate) fn enter_root(recipe: &Recipe) -> anyhow::Result<()> {
    std::env::set_current_dir(&recipe.root)
        .map_err(|error| Failure::usage(format!("the recipe's root {}: {error}", recipe.root.display())).into())
}

/// Every file that the stages asked for will read exists before the first one runs.
fn check_inputs(recipe: &Recipe, only: Option<usize>) -> anyhow::Result<()> {
    let mut missing = Vec::new();
    let is_asked = |at: usize| only.is_none_or(|only| only == at);
    for (_, stage) in recipe.stages.iter().enumerate().filter(|(at, _)| is_asked(*at)) {
        let outside = stage.from.iter().flat_map(|(_, inputs)| inputs).filter_map(|input| match input {
            Input::Path(path) if !is_address(path) => Some(path.clone()),
            _ => None,
        });
        for path in outside.chain(stages::extra_files(&stage.config)) {
            if !path.exists() && !is_address(&path) {
                let what = match &stage.config {
                    StageConfig::Merge(_) => aloe_merge::no_folder(&path.to_string_lossy()),
                    _ => format!("{} does not exist", path.display()),
                };
                missing.push(format!("  stage {:?}: {what}", stage.name));
            }
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(Failure::usage(format!("files are missing; nothing was run\n{}", missing.join("\n"))).into())
}

fn announce(at: usize, recipe: &Recipe, stage: &Stage) {
    let (n, kind) = (recipe.stages.len(), stage.config.kind());
    aloe_record::tell(&format!("[{}/{n}] {} ({kind})", at + 1, stage.name));
}

fn summary(record: &Record) -> &str {
    record.results.get("summary").and_then(|value| value.as_str()).unwrap_or_default()
}

fn print_table(rows: &[(&Stage, Done)], out: &Path) -> anyhow::Result<()> {
    let mut text = format!("\n{:<18} {:<12} {:>8} {:>9}  result\n", "stage", "kind", "seconds", "peak MiB");
    for (stage, done) in rows {
        let time = if done.was_done { "done".to_owned() } else { format!("{:.1}", done.record.elapsed_s) };
        let peak_mib = done.record.peak_rss_bytes >> 20;
        let line = format!(
            "{:<18} {:<12} {:>8} {:>9}  {}\n",
            stage.name,
            stage.config.kind(),
            time,
            peak_mib,
            summary(&done.record)
        );
        text.push_str(&line);
    }
    text.push_str(&format!("\nEach stage's files and record.json are in {}/STAGE\n", out.display()));
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

fn print_json(rows: &[(&Stage, Done)], out: &Path) -> anyhow::Result<()> {
    let rows: Vec<_> = rows
        .iter()
        .map(|(stage, done)| {
            json!({"stage": stage.name, "kind": stage.config.kind(), "was_done": done.was_done,
                   "elapsed_s": done.record.elapsed_s, "peak_rss_bytes": done.record.peak_rss_bytes,
                   "results": done.record.results, "folder": out.join(&stage.name)})
        })
        .collect();
    writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&rows)?)?;
    Ok(())
}
