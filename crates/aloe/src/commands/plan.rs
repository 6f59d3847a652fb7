//! `aloe plan`: checks a recipe and prints what it will do and cost, here and at a site, without running it; or writes a run folder.

use crate::cli::PlanArgs;
use crate::commands::run::{enter_root, is_address, output_folder};
use crate::commands::{stages, threads_of};
use crate::failure::Failure;
use crate::recipe::checked::{Input, Recipe, shown};
use crate::recipe::{at_site, compared, plan, plan_table};
use aloe_handoff::{Cluster, Where};
use aloe_record::Cancel;
use aloe_tensor::Device;
use anyhow::Context as _;
use std::io::Write as _;
use std::path::Path;

/// Prints the plan, or writes a run folder.
pub(crate) fn run(args: &PlanArgs, cancel: &Cancel) -> anyhow::Result<()> {
    let recipe = Recipe::read(&args.recipe)?;
    // A recipe that names its place is costed without --out and written with it.
    let place = args.place.or(recipe.place.filter(|_| args.out.is_some()));
    match (place, &args.cluster) {
        (Some(place), Some(cluster)) => return write_run_folder(args, place, cluster, cancel),
        _ if args.place.is_some() || args.validate => {
            return Err(
                Failure::usage("a run folder is written with --where slurm|local and --cluster cluster.toml").into()
            );
        }
        _ => {}
    }
    let cluster = args.cluster.as_deref().map(Cluster::read).transpose()?;
    let out = output_folder(&recipe, args.out.as_deref())?;
    enter_root(&recipe)?;
    let threads = threads_of(if args.threads == 0 { recipe.threads } else { args.threads });
    let device = args.measure.then(|| Device::cpu(threads));
    let plan = plan::plan(&recipe, &out, device.as_ref())?;
    if !plan.mistakes.is_empty() {
        return Err(Failure::usage(shown(&args.recipe, &plan.mistakes)).into());
    }
    let missing = missing_files(&recipe);
    let mut notices = compared::notices(&recipe, &out);
    notices.extend(plan.notices.iter().cloned());
    let at_site = cluster.as_ref().map(|cluster| at_site::stages(&plan.rows, cluster)).transpose()?;
    let mut output = std::io::stdout();
    if args.json {
        let value = serde_json::json!({
            "recipe": recipe.name, "out": out, "stages": plan.rows, "peak_bytes": plan.peak_bytes,
            "tokenizer": plan.tokenizer, "measured_speed": plan.measured_speed, "missing_files": missing,
            "at_site": at_site, "notices": notices,
        });
        writeln!(output, "{}", serde_json::to_string_pretty(&value)?)?;
        return Ok(());
    }
    writeln!(
        output,
        "recipe {:?}: {} stage{}, no mistakes; output {}\n",
        recipe.name,
        recipe.stages.len(),
        if recipe.stages.len() == 1 { "" } else { "s" },
        out.display()
    )?;
    writeln!(output, "{}", plan_table::table(&plan))?;
    if let (Some(stages), Some(cluster)) = (&at_site, &cluster) {
        writeln!(output, "{}", at_site::table(&cluster.name, stages))?;
    }
    for notice in &notices {
        writeln!(output, "Note: {notice}")?;
    }
    if !missing.is_empty() {
        writeln!(output, "Not at hand (aloe run would refuse to start):\n  {}", missing.join("\n  "))?;
    }
    Ok(())
}

fn write_run_folder(args: &PlanArgs, place: Where, cluster: &Path, cancel: &Cancel) -> anyhow::Result<()> {
    if args.measure {
        return Err(Failure::usage("--measure goes with a recipe on this machine; leave it or --where out").into());
    }
    let Some(out) = &args.out else {
        return Err(Failure::usage("a run folder needs --out RUN").into());
    };
    let run = std::path::absolute(out).with_context(|| format!("cannot resolve {}", out.display()))?;
    let mut planned = crate::handoff::write::write(&args.recipe, cluster, &run, place, args.threads, cancel)?;
    if args.validate {
        let cluster = Cluster::read(&run.join("cluster.toml"))?;
        planned.notices.extend(crate::handoff::validate::all(&run, &planned.plan, &cluster)?);
    }
    stages::tell(&planned.notices);
    let mut output = std::io::stdout();
    if args.json {
        let value =
            serde_json::json!({"run": run, "made": planned.made, "plan": planned.plan, "notices": planned.notices});
        writeln!(output, "{}", serde_json::to_string_pretty(&value)?)?;
        return Ok(());
    }
    let width = planned.plan.stages.iter().map(|stage| stage.name.chars().count()).max().unwrap_or(0).max(18);
    writeln!(
        output,
        "{:<width$} {:<12} {:<8} {:>5} {:>5} {:>5} {:>10}  after",
        "stage", "kind", "trainer", "nodes", "GPUs", "CPUs", "limit h"
    )?;
    for stage in &planned.plan.stages {
        let asked = &stage.resources;
        let hours = asked.time_limit_s as f64 / 3600.0;
        let after = if stage.after.is_empty() { "-".to_owned() } else { stage.after.join(", ") };
        let (trainer, nodes, gpus, cpus) =
            (stage.trainer.name(), asked.n_nodes, asked.gpus_per_node, asked.cpus_per_node);
        writeln!(
            output,
            "{:<width$} {:<12} {trainer:<8} {nodes:>5} {gpus:>5} {cpus:>5} {hours:>10.2}  {after}",
            stage.name, stage.kind
        )?;
    }
    writeln!(output, "\nWritten to {0}; submit with: aloe run {0}", run.display())?;
    Ok(())
}

fn missing_files(recipe: &Recipe) -> Vec<String> {
    let outside = recipe.stages.iter().flat_map(|stage| {
        let inputs = stage.from.iter().flat_map(|(_, inputs)| inputs).filter_map(|input| match input {
            Input::Path(path) if !is_address(path) => Some(path.clone()),
            _ => None,
        });
        inputs.chain(stages::extra_files(&stage.config))
    });
    let mut missing: Vec<String> =
        outside.filter(|path| !path.exists()).map(|path| path.display().to_string()).collect();
    missing.sort();
    missing.dedup();
    missing
}
