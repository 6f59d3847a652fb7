//! `aloe plan`: checks a recipe and prints what it will do and cost, without running it.

use crate::cli::PlanArgs;
use crate::commands::run::{enter_root, is_address, output_folder};
use crate::commands::{stages, threads_of};
use crate::recipe::checked::{Input, Recipe};
use crate::recipe::{plan, plan_table};
use aloe_tensor::Device;
use std::io::Write as _;

/// Prints the plan.
pub(crate) fn run(args: &PlanArgs) -> anyhow::Result<()> {
    let recipe = Recipe::read(&args.recipe)?;
    let out = output_folder(&recipe, args.out.as_deref())?;
    enter_root(&recipe)?;
    let threads = threads_of(if args.threads == 0 { recipe.threads } else { args.threads });
    let device = args.measure.then(|| Device::cpu(threads));
    let plan = plan::plan(&recipe, &out, device.as_ref())?;
    let missing = missing_files(&recipe);
    let mut output = std::io::stdout();
    if args.json {
        let value = serde_json::json!({
            "recipe": recipe.name, "out": out, "stages": plan.rows, "peak_bytes": plan.peak_bytes,
            "tokenizer": plan.tokenizer, "measured_speed": plan.measured_speed, "missing_files": missing,
        });
        writeln!(output, "{}", serde_json::to_string_pretty(&value)?)?;
        return Ok(());
    }
    writeln!(
        output,
        "recipe {:?}: {} stages, no mistakes; output {}\n",
        recipe.name,
        recipe.stages.len(),
        out.display()
    )?;
    writeln!(output, "{}", plan_table::table(&plan))?;
    if !missing.is_empty() {
        writeln!(output, "Not at hand (aloe run would refuse to start):\n  {}", missing.join("\n  "))?;
    }
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
