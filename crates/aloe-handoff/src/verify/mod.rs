//! What comes back from a foreign trainer, checked before anybody uses it: `aloe verify FOLDER`, which `check.sh` calls.
//!
//! An engine that ends with exit code 0 has not shown that it trained: a NaN is logged as loss 0, a lost optimizer starts its schedule
//! again, two processes that never met each report success. [`check`] reads the log, the weights, the tokenizer and the digests,
//! and gives all findings, each with file, tensor or key, what was expected and what was found. It changes nothing; [`seal`] writes the
//! digests of a folder that passed, and [`fn@import`] makes a stage's output of it.

mod adapter;
mod curve;
mod held_out;
mod import;
mod log;
mod manifest;
mod text;
mod weights;

use aloe_train::LoraConfig;
use curve::Curve;
pub use import::{ImportReport, import};
pub use manifest::{NewestCheckpoint, TrainedWith, newest_checkpoint, newest_checkpoint_of, seal, unseal};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
pub use text::digest_of_template;

/// What a stage's output must be, written when the run is planned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expectation {
    /// The checkpoint that training started from: shapes, tokenizer and template are its own, and every tensor must have left it.
    pub start: PathBuf,
    /// Digests of files of that folder, where it is a model of the site and no stage's output: the rows were rendered with its tokenizer, and it
    /// is its weights that every tensor must have left.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub start_sha256: BTreeMap<String, String>,
    /// Digest of the chat template that the rows were rendered with, where it is the start's own: it must still be the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_sha256: Option<String>,
    /// Digest of the rows that the engine trains on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows_sha256: Option<String>,
    /// Optimizer steps.
    pub n_steps: u64,
    /// Processes that must have trained together.
    pub world_size: u32,
    /// Machines.
    pub n_nodes: u32,
    /// Packages and versions that the configuration was checked for.
    pub versions: BTreeMap<String, String>,
    /// Whether a spike of the loss fails the stage (`on_spike = "stop"`).
    pub stops_at_spikes: bool,
    /// Whether a loss of exactly 0 can be true: of the hinge loss alone.
    pub loss_may_be_zero: bool,
    /// Whether the engine was given held-out rows to evaluate; not in a plan of an earlier version.
    #[serde(default)]
    pub evaluates_held_out: bool,
    /// Whether the start script says which checkpoint's weights it wrote at the end (`keep_best`); not in a plan of an earlier version.
    #[serde(default)]
    pub tells_loaded: bool,
    /// Chunks of pairs, one after the other: with each the learning rate's curve and AdamW's moments start anew. None where the pairs
    /// are not cut.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chunks: Vec<Chunk>,
    /// What the record of the taken-over stage says beside what was found.
    pub stage: PlannedStage,
}

impl Expectation {
    /// Settings of the low-rank updates that come back in place of weights, where the stage trains those.
    pub(crate) fn lora(&self) -> Option<LoraConfig> {
        serde_json::from_value(self.stage.config["lora"].clone()).ok()
    }
}

/// A chunk of a preference stage's pairs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chunk {
    /// Its optimizer steps.
    pub n_steps: u64,
    /// Those of its warm-up.
    pub warmup_steps: u64,
}

/// The stage as it was planned.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedStage {
    /// `sft` or `dpo`.
    pub kind: String,
    /// Its name in the recipe.
    pub name: String,
    /// Its settings with their defaults.
    pub config: serde_json::Value,
    /// What an epoch holds.
    pub counts: Counts,
}

/// Rows and tokens of an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// Rows or pairs trained on.
    pub n_rows: u64,
    /// Their tokens.
    pub n_tokens: u64,
    /// Those that are predicted.
    pub n_targets: u64,
    /// Rows or pairs that are held out: not trained on, evaluated while the engine trains.
    #[serde(default)]
    pub n_held_out: u64,
    /// Tokens of held-out rows that are predicted; 0 of pairs.
    #[serde(default)]
    pub n_held_out_targets: u64,
}

/// One thing that is not as it must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The file, relative to the folder.
    pub file: String,
    /// The tensor, key or step.
    pub what: String,
    /// What it must be.
    pub expected: String,
    /// What it is.
    pub found: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: expected {}, found {}", self.file, self.what, self.expected, self.found)
    }
}

/// What the engine's own log says of the run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Facts {
    /// Optimizer steps done.
    pub n_steps: u64,
    /// Processes.
    pub world_size: u32,
    /// Machines.
    pub n_hosts: u32,
    /// Names of the devices.
    pub devices: Vec<String>,
    /// Versions of the engine's packages.
    pub versions: BTreeMap<String, String>,
    /// Times it was started: more than one after an interruption.
    pub n_sessions: usize,
    /// Seconds of training, over all sessions that ended by themselves.
    pub seconds: f64,
    /// Loss of each step, in their order.
    #[serde(skip)]
    pub losses: Vec<f64>,
    /// What held-out rows said, where there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_out: Option<HeldOut>,
    /// Tensors of the model.
    pub n_tensors: usize,
    /// |W - W0| / |W0| over all weights.
    pub moved: f64,
}

/// Held-out figures of a training by another program: `loss`, of rows per predicted token with `targets`, of pairs with the rewards.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HeldOut {
    /// Before the first step.
    pub before: serde_json::Map<String, serde_json::Value>,
    /// Under the weights that are written.
    pub after: serde_json::Map<String, serde_json::Value>,
    /// The step of those weights.
    pub exported_step: u64,
    /// The last step that was made.
    pub last_step: u64,
}

/// The outcome of a check.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Verdict {
    /// Everything that is wrong; empty where the folder can be used.
    pub findings: Vec<Finding>,
    /// What is as it may be and must be known.
    pub notices: Vec<String>,
    /// What the run was.
    pub facts: Facts,
}

impl Verdict {
    /// Whether the folder can be used.
    pub fn is_good(&self) -> bool {
        self.findings.is_empty()
    }
}

/// Collects findings about one folder.
struct Findings<'a> {
    folder: &'a Path,
    list: Vec<Finding>,
    notices: Vec<String>,
}

impl Findings<'_> {
    fn add(&mut self, file: &str, what: impl ToString, expected: impl ToString, found: impl ToString) {
        self.list.push(Finding {
            file: file.to_owned(),
            what: what.to_string(),
            expected: expected.to_string(),
            found: found.to_string(),
        });
    }

    /// An error of a reader, without the folder's own path in it.
    fn error(&mut self, file: &str, what: &str, error: &impl ToString) {
        let folder = format!("{}/", self.folder.display());
        self.add(file, what, "a whole file", error.to_string().replace(&folder, ""));
    }
}

/// Checks the folder that an engine wrote (`work/NAME`).
pub fn check(folder: &Path, expected: &Expectation) -> Verdict {
    let mut findings = Findings { folder, list: Vec::new(), notices: Vec::new() };
    let mut facts = Facts::default();
    let curve = Curve::of(expected);
    log::check(&mut findings, &mut facts, expected, curve.as_ref());
    text::check(&mut findings, expected);
    match expected.lora() {
        Some(lora) => adapter::check(&mut findings, &mut facts, expected, &lora),
        None => weights::check(&mut findings, &mut facts, expected, curve.as_ref()),
    }
    manifest::check(&mut findings);
    Verdict { findings: findings.list, notices: findings.notices, facts }
}

#[cfg(test)]
mod tests;
