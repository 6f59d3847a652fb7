//! The folder of one planned stage: its scripts, digests and, for a foreign trainer, its rows and configuration. Called in the run folder.

use super::rendered::{self, MadeOf};
use super::start::{self, Start};
use super::write::inputs_of;
use crate::commands::rows;
use crate::commands::run::is_address;
use crate::failure::Failure;
use crate::input_digests::{check_input, check_opened};
use crate::recipe::checked::{Input, Recipe, Stage};
use crate::recipe::stage_config::StageConfig;
use aloe_handoff::engine::{self, Rows, RowsInput, Settings, TrainSpec};
use aloe_handoff::verify::{Counts, Expectation, digest_of_template};
use aloe_handoff::{Cluster, Resources, RunPlan, StagePlan, Trainer, sbatch, serving};
use aloe_model::Arch;
use aloe_record::{atomic, digest};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

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
        Trainer::Aloe => own(planned, stage, served_model(recipe, stage, cluster), cluster),
        Trainer::Trl | Trainer::Axolotl if has_rows(stage) => foreign(recipe, stage, planned, cluster)?,
        Trainer::Trl | Trainer::Axolotl => foreign_later(recipe, stage, planned, cluster)?,
    };
    inputs.extend(work.of_site);
    for file in work.files {
        inputs.insert(file.clone(), digest::file(Path::new(&file))?);
    }
    let put = |name: &str, text: String| atomic::write(&folder.join(name), text.as_bytes());
    put("job.sbatch", sbatch::job_script(plan, planned, cluster))?;
    if let (Some(script), Some(path)) = (sbatch::array_script(plan, planned, cluster), planned.array_script()) {
        atomic::write(&path, script.as_bytes())?;
    }
    put("run.sh", sbatch::run_script(planned, &work.before, &work.command))?;
    put("check.sh", sbatch::check_script(planned, &work.checks))?;
    put("inputs.sha256", sbatch::inputs_file(&inputs))?;
    put("env.lock", sbatch::env_lock(&work.pins))?;
    Ok(work.notices)
}

/// What a stage's job runs.
struct Work {
    /// What comes before it in the same job.
    before: Vec<Vec<String>>,
    command: Vec<String>,
    checks: Vec<Vec<String>>,
    /// Files of the run folder that were written for it.
    files: Vec<String>,
    /// Digests of files that only its jobs see under their names in the run folder: tokenizer and configuration of a model of the site.
    of_site: BTreeMap<String, String>,
    /// Name and version of programs it must have.
    pins: Vec<(&'static str, &'static str)>,
    notices: Vec<String>,
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// The folder of the model that a stage asks, where the site starts servers for it.
pub(crate) fn served_model(recipe: &Recipe, stage: &Stage, cluster: &Cluster) -> Option<PathBuf> {
    let asks = matches!(stage.config, StageConfig::Eval(_) | StageConfig::Redteam(_) | StageConfig::Synthesis(_));
    let given = stage.from.iter().find(|(key, _)| key == "model").filter(|_| asks && cluster.serving.is_some())?;
    match given.1.as_slice() {
        [Input::Stage(at)] => Some(Path::new("out").join(&recipe.stages[*at].name)),
        [Input::Path(path)] if !is_address(path) => Some(path.clone()),
        _ => None,
    }
}

/// A stage of our own; of a served model beside its servers.
fn own(planned: &StagePlan, stage: &Stage, served: Option<PathBuf>, cluster: &Cluster) -> Work {
    let name = planned.name.as_str();
    let mut command = words(&["aloe", "run", "recipe.toml", "--stage", planned.in_recipe(), "--out", "out"]);
    let shards = format!("work/{}", planned.in_recipe());
    let n_shards = cluster.shards(stage.config.kind(), &stage.name);
    if let Some(shard) = planned.shard() {
        command.extend(words(&["--shards", &shards, "--shard", &format!("{}/{}", shard.index, shard.n)]));
    } else if n_shards > 1 {
        command.extend(words(&["--shards", &shards, "--gather", &n_shards.to_string()]));
    }
    // The shards have asked by then.
    let served = served.filter(|_| planned.shard().is_some() || n_shards == 1);
    if let Some(model) = served {
        let (model, servers) = (model.to_string_lossy(), serving::folder_of(planned));
        let servers = servers.to_string_lossy();
        let beside = words(&["aloe", "with-servers", "--model", &model, "--servers", &servers, "--"]);
        command = [beside, command, words(&["--servers", &servers])].concat();
    }
    Work {
        before: Vec::new(),
        command,
        checks: vec![words(&["aloe", "collect", ".", "--stage", name])],
        files: Vec::new(),
        of_site: BTreeMap::new(),
        pins: vec![("aloe", env!("CARGO_PKG_VERSION"))],
        notices: Vec::new(),
    }
}

/// What must hold of a foreign trainer's work before it is a stage's: checked, and taken over.
fn checks(planned: &StagePlan) -> Vec<Vec<String>> {
    let (name, expected) = (planned.name.as_str(), planned.folder.join("expected.json"));
    vec![
        words(&["aloe", "verify", &format!("work/{name}"), "--expected", &expected.to_string_lossy()]),
        words(&["aloe", "run", "recipe.toml", "--stage", name, "--out", "out"]),
    ]
}

/// What comes before an engine: its start and its other inputs are still those of the plan and of the stages that made them, and the rows are
/// rendered where an earlier job made them.
fn made_ready(name: &str) -> Vec<Vec<String>> {
    vec![words(&["aloe", "job", ".", name, "--render"])]
}

/// Whether a training stage's rows are there before any job.
fn has_rows(stage: &Stage) -> bool {
    let is_made = |input: &Input| matches!(input, Input::Stage(_));
    !stage.from.iter().any(|(key, inputs)| key == "data" && inputs.iter().any(is_made))
}

/// A training stage of a foreign trainer whose rows an earlier job makes: its own job renders them first. What the engine would refuse is
/// refused now.
fn foreign_later(recipe: &Recipe, stage: &Stage, planned: &StagePlan, cluster: &Cluster) -> anyhow::Result<Work> {
    let (name, trainer) = (planned.name.as_str(), planned.trainer);
    let start = start::of(recipe, stage, cluster)?;
    let spec = spec(planned, settings_of(stage)?, &start);
    let written = engine::refuse_settings(&spec)?;
    let noted = note_start(planned, &start)?;
    let mut notices = written.notices;
    notices.push(format!(
        "the rows of {name} are made by a job: its own job renders them and writes the configuration of {}, which is then not in the plan",
        trainer.name()
    ));
    Ok(Work {
        before: made_ready(name),
        command: written.command,
        checks: checks(planned),
        files: noted,
        of_site: start.of_site,
        pins: engine::pins(&spec),
        notices,
    })
}

/// In a job: refuses a start and other inputs that are not what they were, before an engine has used its hours. For a stage whose rows an
/// earlier job made it writes what [`write()`] writes for others, but the scripts; what an earlier session wrote of the same rows stays.
///
/// What earlier stages made is read and hashed in every session, of a model what the engine opens: a store of what is known already does not
/// vouch for what a stage wrote. Large files of a model of the site are read again only where they changed.
pub(crate) fn render(
    recipe: &Recipe,
    stage: &Stage,
    planned: &StagePlan,
    cluster: &Cluster,
) -> anyhow::Result<Vec<String>> {
    let opened = start::weights(recipe, stage, cluster)?;
    for (key, inputs) in &stage.from {
        for input in inputs {
            if let Input::Stage(at) = input {
                let folder = Path::new("out").join(&recipe.stages[*at].name);
                match key.as_str() {
                    "model" => check_opened(&folder, &opened)?,
                    _ => check_input(&folder)?,
                }
            }
        }
    }
    let noted = planned.folder.join(START);
    if noted.is_file() {
        start::refuse_other(&opened, &atomic::read_json(&noted)?)?;
    }
    if has_rows(stage) {
        return Ok(Vec::new());
    }
    let text = start::of(recipe, stage, cluster)?.text;
    let made_of = MadeOf::of(planned, &single(recipe, stage, "data")?, &text)?;
    if rendered::is_there(planned, &made_of) {
        return Ok(vec![format!("the rows of {} are those of an earlier session", planned.name)]);
    }
    let work = foreign(recipe, stage, planned, cluster)?;
    rendered::note(planned, made_of, &work.files)?;
    Ok(work.notices)
}

/// The configuration that the job of a stage will write whose rows are not there yet, with a number of steps made up; `None` of others.
pub(crate) fn pretended_config(
    recipe: &Recipe,
    stage: &Stage,
    planned: &StagePlan,
    cluster: &Cluster,
) -> anyhow::Result<Option<String>> {
    if has_rows(stage) {
        return Ok(None);
    }
    let spec = spec(planned, settings_of(stage)?, &start::of(recipe, stage, cluster)?);
    Ok(Some(engine::pretended_config(&spec)?))
}

/// What a foreign trainer would refuse of a stage's settings, before anything of the plan is made: whatever model and rows it will have.
pub(super) fn refused_settings(stage: &Stage, trainer: Trainer, resources: Resources) -> anyhow::Result<Vec<String>> {
    let spec = TrainSpec {
        trainer,
        settings: settings_of(stage)?,
        arch: Arch::Llama,
        context_len: usize::MAX,
        stage: PathBuf::from("stages/stage"),
        model: PathBuf::from("model"),
        rows: PathBuf::from("rows"),
        work: PathBuf::from("work"),
        n_steps: 0,
        chunk_steps: Vec::new(),
        counts: Counts::default(),
        resources,
    };
    match engine::refuse_settings(&spec) {
        Ok(_) => Ok(Vec::new()),
        Err(engine::Error::Settings { mistakes }) => Ok(mistakes),
        Err(error) => Err(error.into()),
    }
}

/// The file of a stage's folder with the digests of the start's files, where it is a model of the site.
const START: &str = "start.json";

fn note_start(planned: &StagePlan, start: &Start) -> anyhow::Result<Vec<String>> {
    if start.digests.is_empty() {
        return Ok(Vec::new());
    }
    let path = planned.folder.join(START);
    atomic::write_json(&path, &start.digests)?;
    Ok(vec![path.to_string_lossy().into_owned()])
}

fn settings_of(stage: &Stage) -> anyhow::Result<Settings> {
    Ok(match &stage.config {
        StageConfig::Sft(config) => Settings::Sft(config.clone()),
        StageConfig::Dpo(config) => Settings::Dpo(config.clone()),
        other => anyhow::bail!("a stage of kind {} has no foreign trainer", other.kind()),
    })
}

/// What an engine is to do, before its rows are counted.
fn spec(planned: &StagePlan, settings: Settings, start: &Start) -> TrainSpec {
    TrainSpec {
        trainer: planned.trainer,
        settings,
        arch: start.config.arch,
        context_len: start.config.max_position_embeddings,
        stage: planned.folder.clone(),
        model: start.weights.clone(),
        rows: Path::new("data").join(&planned.name),
        work: Path::new("work").join(&planned.name),
        n_steps: 0,
        chunk_steps: Vec::new(),
        counts: Counts::default(),
        resources: planned.resources,
    }
}

/// A training stage of a foreign trainer: rows rendered by us, its configuration, and what comes back checked and taken over.
fn foreign(recipe: &Recipe, stage: &Stage, planned: &StagePlan, cluster: &Cluster) -> anyhow::Result<Work> {
    let start = start::of(recipe, stage, cluster)?;
    let data = &single(recipe, stage, "data")?;
    let mut spec = spec(planned, settings_of(stage)?, &start);
    let rows = match &spec.settings {
        Settings::Sft(_) => {
            let rows = rows::conversations(data)?;
            Rows::Sft(rows.train, rows.held_out)
        }
        Settings::Dpo(_) => {
            let rows = rows::pairs(data)?;
            Rows::Dpo(rows.train, rows.held_out)
        }
    };
    let trainer = planned.trainer;
    let mut notices = Vec::new();
    let input = RowsInput { trainer, settings: &spec.settings, text: &start.text, model: &start.config, rows };
    let folder = spec.rows.clone();
    let rendered = engine::render_rows(input, &folder)?;
    spec.n_steps = rendered.n_steps;
    spec.chunk_steps = rendered.chunk_steps;
    spec.counts = rendered.counts;
    let pins = engine::pins(&spec);
    let written = engine::write(&spec, &planned.folder)?;
    let expected = planned.folder.join("expected.json");
    // The rows were rendered with this tokenizer: what stands under the link at another site must be the same.
    let mut expectation: Expectation = atomic::read_json(&expected)?;
    let noted = if has_rows(stage) { note_start(planned, &start)? } else { Vec::new() };
    expectation.start_sha256 = start.digests;
    let of_start = start.text.template.as_ref().filter(|_| start::template_of(stage).is_none());
    expectation.template_sha256 = of_start.map(|template| digest_of_template(template.source()));
    let rows = folder.join(engine::ROWS);
    expectation.rows_sha256 = Some(digest::file(&rows)?);
    atomic::write_json(&expected, &expectation)?;
    // Weights are held by the job's first command, which reads them again only where they changed since they were hashed here.
    let of_start = expectation.start_sha256.iter().filter(|(name, _)| !name.contains(".safetensors"));
    let of_site =
        of_start.map(|(name, digest)| (expectation.start.join(name).to_string_lossy().into_owned(), digest.clone()));
    notices.extend([rendered.notices, written.notices].concat());
    let below = |folder: &Path, files: &[String]| -> Vec<String> {
        files.iter().map(|file| folder.join(file).to_string_lossy().into_owned()).collect()
    };
    Ok(Work {
        before: made_ready(&planned.name),
        command: written.command,
        checks: checks(planned),
        files: [below(&folder, &rendered.files), below(&planned.folder, &written.files), noted].concat(),
        of_site: of_site.chain(start.of_site).collect(),
        pins,
        notices,
    })
}

fn single(recipe: &Recipe, stage: &Stage, name: &str) -> anyhow::Result<PathBuf> {
    let given = stage.from.iter().find(|(key, _)| key == name).map(|(_, inputs)| inputs.as_slice());
    match given {
        Some([Input::Path(path)]) => Ok(path.clone()),
        Some([Input::Stage(at)]) => Ok(Path::new("out").join(&recipe.stages[*at].name)),
        _ => Err(Failure::usage(format!("{name}: one data stage or file is needed")).into()),
    }
}
