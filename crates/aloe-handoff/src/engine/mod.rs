//! A training stage on a foreign trainer: its configuration, its start script and its rows, written into a run folder.
//!
//! [`render_rows`] comes first (it tells the number of steps), then [`write()`]. Both are pure in what they write: the same input gives
//! the same bytes, and every path in them is relative to the run folder, from which jobs are started. Settings that an engine does not
//! have are refused by name, all together; none is dropped. [`check::check_config`] holds a configuration against the keys of the
//! pinned version.

mod asked;
mod axolotl;
pub mod check;
mod rows;
mod template;
mod trl;
mod yaml;

use crate::plan::{Resources, StagePlan, Trainer};
use crate::verify::{Chunk, Counts, Expectation, PlannedStage};
use aloe_model::Arch;
use aloe_train::{DpoConfig, OnSpike, PreferenceLoss, SftConfig};
use check::{Manifest, Program, check_config};
pub use rows::{HELD_OUT, ROWS, Rendered, Rows, RowsInput, render_rows};
use std::path::{Path, PathBuf};

/// The file of an engine's configuration, in the stage's folder.
pub const CONFIG: &str = "engine.yaml";

/// Versions that configurations for TRL are written for and checked against; the start script refuses others.
pub const TRL_VERSIONS: [(&str, &str); 3] = [("trl", "1.16.0"), ("transformers", "5.23.0"), ("accelerate", "1.15.0")];

/// The same for axolotl, with the versions that it asks for itself.
pub const AXOLOTL_VERSIONS: [(&str, &str); 4] =
    [("axolotl", "0.19.0"), ("trl", "1.9.0"), ("transformers", "5.16.1"), ("accelerate", "1.13.0")];

/// The packages that a trainer needs, with their versions; none for ourselves.
pub fn versions(trainer: Trainer) -> &'static [(&'static str, &'static str)] {
    match trainer {
        Trainer::Aloe => &[],
        Trainer::Trl => &TRL_VERSIONS,
        Trainer::Axolotl => &AXOLOTL_VERSIONS,
    }
}

/// What a job must find installed beside the engine: the reader of its rows, and where it trains on GPUs torch as these versions were tried with
/// and the attention kernels that the configuration names. They are no part of what decides a result's identity, as drivers are none.
pub fn pins(spec: &TrainSpec) -> Vec<(&'static str, &'static str)> {
    let mut pins = versions(spec.trainer).to_vec();
    pins.push(("datasets", if spec.trainer == Trainer::Axolotl { "4.8.4" } else { "5.2.0" }));
    if spec.resources.gpus_per_node > 0 {
        pins.push(("torch", if spec.trainer == Trainer::Axolotl { "2.13.0" } else { "2.15.0" }));
    }
    if asked::attention(spec) == "flash_attention_2" {
        pins.push(("flash-attn", "2.8.3"));
    }
    pins
}

/// The start script, the same for every stage: versions, world size, log, stop at non-finite values, then the engine's own program.
const LAUNCHER: &str = include_str!("launcher.py");

/// What is trained, with our settings for it.
#[derive(Clone, Debug, PartialEq)]
pub enum Settings {
    /// Supervised fine-tuning.
    Sft(SftConfig),
    /// Direct preference optimisation.
    Dpo(DpoConfig),
}

/// A stage to hand off.
#[derive(Clone, Debug)]
pub struct TrainSpec {
    /// Who trains; not [`Trainer::Aloe`].
    pub trainer: Trainer,
    /// Our settings, already free of mistakes.
    pub settings: Settings,
    /// The family of the model, which names the layer that is sharded.
    pub arch: Arch,
    /// Positions that the model has.
    pub context_len: usize,
    /// `stages/NN-NAME`, relative to the run folder like all paths here.
    pub stage: PathBuf,
    /// The checkpoint folder that training starts from: f32 masters where there are any.
    pub model: PathBuf,
    /// The folder that [`render_rows`] wrote: `data/NAME`.
    pub rows: PathBuf,
    /// Where the engine writes: `work/NAME`.
    pub work: PathBuf,
    /// Optimizer steps, as [`render_rows`] told.
    pub n_steps: u64,
    /// Optimizer steps of each chunk of pairs, as [`render_rows`] told; none where they are not cut.
    pub chunk_steps: Vec<u64>,
    /// What an epoch holds, as [`render_rows`] told.
    pub counts: Counts,
    /// What the job has.
    pub resources: Resources,
}

impl TrainSpec {
    /// What the checker of the stage's output is to be told. Its `start` is relative to the run folder.
    pub fn expectation(&self) -> Expectation {
        let (kind, config) = match &self.settings {
            Settings::Sft(config) => ("sft", serde_json::to_value(config)),
            Settings::Dpo(config) => ("dpo", serde_json::to_value(config)),
        };
        let config = config.expect("settings are plain values");
        let folder = self.stage.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let name = folder.split_once('-').map_or(folder.clone(), |(_, name)| name.to_owned());
        let (stops_at_spikes, loss_may_be_zero) = match &self.settings {
            Settings::Sft(config) => (config.on_spike == OnSpike::Stop, false),
            Settings::Dpo(config) => (config.on_spike == OnSpike::Stop, config.loss == PreferenceLoss::Hinge),
        };
        Expectation {
            start: self.model.clone(),
            start_sha256: Default::default(),
            template_sha256: None,
            rows_sha256: None,
            n_steps: self.n_steps,
            world_size: self.resources.world_size(),
            n_nodes: self.resources.n_nodes,
            versions: versions(self.trainer)
                .iter()
                .map(|&(name, version)| (name.to_owned(), version.to_owned()))
                .collect(),
            stops_at_spikes,
            loss_may_be_zero,
            evaluates_held_out: asked::evaluation(self).is_some(),
            tells_loaded: true,
            chunks: self.chunks(),
            stage: PlannedStage { kind: kind.to_owned(), name, config, counts: self.counts },
        }
    }

    /// Steps and warm-up of each chunk.
    fn chunks(&self) -> Vec<Chunk> {
        let common = asked::loop_of(&self.settings);
        let chunk = |&n_steps: &u64| Chunk { n_steps, warmup_steps: asked::warmup_steps(&common, n_steps) };
        self.chunk_steps.iter().map(chunk).collect()
    }
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The command of each node, started in the run folder; the caller adds rendezvous flags behind its first word, and at the end
    /// `--resume_from_checkpoint FOLDER` to go on.
    pub command: Vec<String>,
    /// Names of the files written into the stage's folder.
    pub files: Vec<String>,
    /// What the user must be told.
    pub notices: Vec<String>,
}

/// Every way a hand-off can fail.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Settings that the engine cannot honour, each on its own line.
    #[error("{}", mistakes.join("\n"))]
    Settings {
        /// All of them, each with its name and what can be done.
        mistakes: Vec<String>,
    },
    /// The configuration that we wrote is not one that the engine takes: our mistake.
    #[error("the configuration for {engine} is wrong: {}", mistakes.join("; "))]
    Generated {
        /// The engine.
        engine: &'static str,
        /// What is wrong.
        mistakes: Vec<String>,
    },
    /// A returned folder that is not what it must be.
    #[error("{}", findings.join("\n"))]
    Unverified {
        /// What is wrong with it.
        findings: Vec<String>,
    },
    /// Rows that cannot be trained on.
    #[error(transparent)]
    Train(#[from] aloe_train::Error),
    /// A template or tokenizer that fails.
    #[error(transparent)]
    Text(#[from] aloe_text::Error),
    /// Reading or writing failed.
    #[error(transparent)]
    Record(#[from] aloe_record::Error),
}

/// Writes `engine.yaml`, `engine.py` and `expected.json` (an [`Expectation`], whose chunks the start script reads too) into the folder of a
/// stage on disk (`RUN/stages/NN-NAME`).
pub fn write(spec: &TrainSpec, folder: &Path) -> Result<Written, Error> {
    let config = config(spec)?;
    let io = |error| aloe_record::Error::io("create", folder)(error);
    std::fs::create_dir_all(folder).map_err(io)?;
    aloe_record::atomic::write(&folder.join(CONFIG), config.as_bytes())?;
    aloe_record::atomic::write(&folder.join("engine.py"), LAUNCHER.as_bytes())?;
    aloe_record::atomic::write_json(&folder.join("expected.json"), &spec.expectation())?;
    Ok(Written {
        command: command(spec),
        files: [CONFIG, "engine.py", "expected.json"].map(str::to_owned).to_vec(),
        notices: asked::notices(spec),
    })
}

/// The text of `engine.yaml`, checked against the keys of the pinned version.
pub fn config(spec: &TrainSpec) -> Result<String, Error> {
    let mistakes = match spec.trainer {
        Trainer::Trl => trl::refused(spec),
        Trainer::Axolotl => axolotl::refused(spec),
        Trainer::Aloe => vec!["trainer: aloe trains here and needs no configuration of another".to_owned()],
    };
    if !mistakes.is_empty() {
        return Err(Error::Settings { mistakes });
    }
    let (entries, manifest) = match spec.trainer {
        Trainer::Axolotl => (axolotl::config(spec), Manifest::axolotl()),
        _ => (trl::config(spec), Manifest::trl()),
    };
    let text = yaml::emit(&entries);
    let program = if matches!(spec.settings, Settings::Sft(_)) { Program::Sft } else { Program::Dpo };
    let mistakes = check_config(&text, &manifest, program);
    if mistakes.is_empty() { Ok(text) } else { Err(Error::Generated { engine: spec.trainer.name(), mistakes }) }
}

/// What is wrong with the configuration that lies in a stage's folder of a run folder, each `FILE: ...`: it is not there, or its bytes are not
/// those of the plan, and then also each key and value that its engine does not take. None of a stage of our own, or of one whose own
/// job writes its configuration, which `inputs.sha256` does not name.
pub fn mistakes_of_written(run: &Path, stage: &StagePlan) -> crate::Result<Vec<String>> {
    let manifest = match stage.trainer {
        Trainer::Aloe => return Ok(Vec::new()),
        Trainer::Trl => Manifest::trl(),
        Trainer::Axolotl => Manifest::axolotl(),
    };
    let read = |path: &Path| match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some).map_err(aloe_record::Error::io("read", path)),
    };
    let (name, inputs) = (stage.folder.join(CONFIG), stage.folder.join("inputs.sha256"));
    let missing = |name: &Path| vec![format!("{}: it is missing; plan anew", name.display())];
    let Some(digests) = read(&run.join(&inputs))? else { return Ok(missing(&inputs)) };
    let digests = String::from_utf8_lossy(&digests);
    let ending = format!("  {}", name.display());
    let Some(planned) = digests.lines().find_map(|line| line.strip_suffix(&ending)) else { return Ok(Vec::new()) };
    let Some(bytes) = read(&run.join(&name))? else { return Ok(missing(&name)) };
    if planned == aloe_record::digest::bytes(&bytes) {
        return Ok(Vec::new());
    }
    let program = if stage.kind == "dpo" { Program::Dpo } else { Program::Sft };
    let mut mistakes = vec!["it was changed since it was planned; change the recipe, and plan anew".to_owned()];
    mistakes.extend(check_config(&String::from_utf8_lossy(&bytes), &manifest, program));
    Ok(mistakes.into_iter().map(|mistake| format!("{}: {mistake}", name.display())).collect())
}

/// The program that `engine.py` runs.
fn module(spec: &TrainSpec) -> &'static str {
    match (spec.trainer, &spec.settings) {
        (Trainer::Axolotl, _) => "axolotl.cli.train",
        (_, Settings::Sft(_)) => "trl.scripts.sft",
        (_, Settings::Dpo(_)) => "trl.scripts.dpo",
    }
}

/// Refuses what the engine cannot do of the settings before the rows are there: whatever their number.
pub fn refuse_settings(spec: &TrainSpec) -> Result<Written, Error> {
    pretended_config(spec)?;
    Ok(Written { command: command(spec), files: Vec::new(), notices: asked::notices(spec) })
}

/// The configuration of a stage whose rows are not there yet, with a number of steps made up.
pub fn pretended_config(spec: &TrainSpec) -> Result<String, Error> {
    let n_chunks = match &spec.settings {
        Settings::Sft(_) => 0,
        Settings::Dpo(config) => config.chunks,
    };
    let common = asked::loop_of(&spec.settings);
    // So many that a share of them is a warm-up that every engine takes.
    let n_steps = common.warmup_steps.max(1 << 20);
    let chunk_steps = if n_chunks > 1 { vec![n_steps; n_chunks] } else { Vec::new() };
    let n_held_out = u64::from(asked::asks_for_held_out(&spec.settings));
    let counts = Counts { n_held_out, ..spec.counts };
    config(&TrainSpec { n_steps, chunk_steps, counts, ..spec.clone() })
}

/// `torchrun --nproc-per-node=N stages/NN-NAME/engine.py MODULE --config stages/NN-NAME/engine.yaml`.
fn command(spec: &TrainSpec) -> Vec<String> {
    let of_stage = |name: &str| spec.stage.join(name).display().to_string();
    vec![
        "torchrun".to_owned(),
        format!("--nproc-per-node={}", spec.resources.gpus_per_node.max(1)),
        of_stage("engine.py"),
        module(spec).to_owned(),
        "--config".to_owned(),
        of_stage(CONFIG),
    ]
}

#[cfg(test)]
mod tests;
