//! The folder of one planned stage: its scripts, digests and, for a foreign trainer, its rows and configuration. Called in the run folder.

use super::write::inputs_of;
use crate::commands::rows;
use crate::failure::Failure;
use crate::recipe::checked::{Input, Recipe, Stage};
use crate::recipe::stage_config::StageConfig;
use aloe_handoff::engine::{self, Rows, RowsInput, Settings, TrainSpec};
use aloe_handoff::{Cluster, RunPlan, StagePlan, Trainer, sbatch};
use aloe_record::{atomic, digest};
use std::path::Path;

/// Writes `stages/NN-NAME/` and what it needs; returns what the user must be told.
pub(crate) fn write(
    recipe: &Recipe,
    stage: &Stage,
    planned: &StagePlan,
    plan: &RunPlan,
    cluster: &Cluster,
) -> anyhow::Result<Vec<String>> {
    let folder = Path::new(&planned.folder);
    let mut inputs = inputs_of(stage)?;
    let work = match planned.trainer {
        Trainer::Aloe => own(planned),
        Trainer::Trl | Trainer::Axolotl => foreign(recipe, stage, planned, cluster)?,
    };
    for file in work.files {
        inputs.insert(file.clone(), digest::file(Path::new(&file))?);
    }
    let put = |name: &str, text: String| atomic::write(&folder.join(name), text.as_bytes());
    put("job.sbatch", sbatch::job_script(plan, planned, cluster))?;
    put("run.sh", sbatch::run_script(planned, &work.command))?;
    put("check.sh", sbatch::check_script(planned, &work.checks))?;
    put("inputs.sha256", sbatch::inputs_file(&inputs))?;
    put("env.lock", sbatch::env_lock(&work.pins))?;
    Ok(work.notices)
}

/// What a stage's job runs.
struct Work {
    command: Vec<String>,
    checks: Vec<Vec<String>>,
    /// Files of the run folder that were written for it.
    files: Vec<String>,
    /// Name and version of programs it must have.
    pins: Vec<(&'static str, &'static str)>,
    notices: Vec<String>,
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// A stage of our own.
fn own(planned: &StagePlan) -> Work {
    let name = planned.name.as_str();
    Work {
        command: words(&["aloe", "run", "recipe.toml", "--stage", name, "--out", "out"]),
        checks: vec![words(&["aloe", "collect", ".", "--stage", name])],
        files: Vec::new(),
        pins: vec![("aloe", env!("CARGO_PKG_VERSION"))],
        notices: Vec::new(),
    }
}

/// A training stage of a foreign trainer: rows rendered by us, its configuration, and what comes back checked and taken over.
fn foreign(recipe: &Recipe, stage: &Stage, planned: &StagePlan, cluster: &Cluster) -> anyhow::Result<Work> {
    let name = planned.name.as_str();
    let start = super::start::of(recipe, stage, cluster)?;
    let data = single(stage, "data")?;
    let (settings, rows) = match &stage.config {
        StageConfig::Sft(config) => {
            let rows = rows::conversations(data)?;
            (Settings::Sft(config.clone()), Rows::Sft(rows.train, rows.held_out))
        }
        StageConfig::Dpo(config) => {
            let rows = rows::pairs(data)?;
            (Settings::Dpo(config.clone()), Rows::Dpo(rows.train, rows.held_out))
        }
        other => anyhow::bail!("a stage of kind {} has no foreign trainer", other.kind()),
    };
    let trainer = planned.trainer;
    let input = RowsInput { trainer, settings: &settings, text: &start.text, model: &start.config, rows };
    let folder = Path::new("data").join(name);
    let rendered = engine::render_rows(input, &folder)?;
    let spec = TrainSpec {
        trainer,
        settings,
        arch: start.config.arch,
        context_len: start.config.max_position_embeddings,
        stage: planned.folder.clone(),
        model: start.weights,
        rows: folder.clone(),
        work: Path::new("work").join(name),
        n_steps: rendered.n_steps,
        chunk_steps: rendered.chunk_steps,
        counts: rendered.counts,
        resources: planned.resources,
    };
    let written = engine::write(&spec, &planned.folder)?;
    let expected = planned.folder.join("expected.json");
    let below = |folder: &Path, files: &[String]| -> Vec<String> {
        files.iter().map(|file| folder.join(file).to_string_lossy().into_owned()).collect()
    };
    Ok(Work {
        command: written.command,
        checks: vec![
            words(&["aloe", "verify", &format!("work/{name}"), "--expected", &expected.to_string_lossy()]),
            words(&["aloe", "run", "recipe.toml", "--stage", name, "--out", "out"]),
        ],
        files: [below(&folder, &rendered.files), below(&planned.folder, &written.files)].concat(),
        pins: engine::versions(trainer).to_vec(),
        notices: [rendered.notices, written.notices].concat(),
    })
}

fn single<'a>(stage: &'a Stage, name: &str) -> anyhow::Result<&'a Path> {
    let given = stage.from.iter().find(|(key, _)| key == name).map(|(_, inputs)| inputs.as_slice());
    match given {
        Some([Input::Path(path)]) => Ok(path),
        _ => Err(Failure::usage(format!("{name}: one data stage or file is needed, made before any job")).into()),
    }
}
