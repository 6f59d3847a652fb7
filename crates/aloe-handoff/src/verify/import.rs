//! A checked folder as a stage's output: `master/` (f32, as it came back) and `model/` (its bf16 export), as our own trainer writes them,
//! with the start's tokenizer and template. Of low-rank updates `adapter/`, and the others with the updates merged in.

use super::{Expectation, Verdict};
use crate::engine::Error;
use aloe_text::TextModel;
use aloe_train::ExportReport;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// What a record says of a stage that another program trained: `results.handoff`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ImportReport {
    /// `trl` or `axolotl`.
    pub engine: String,
    /// Versions of its packages.
    pub versions: BTreeMap<String, String>,
    /// Digest of the rows that it trained on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows_sha256: Option<String>,
    /// Names of the devices it ran on.
    pub devices: Vec<String>,
    /// Processes.
    pub world_size: u32,
    /// Machines.
    pub n_hosts: u32,
    /// Seconds of training, and the same times the processes, in hours.
    pub seconds: f64,
    /// Hours of all devices together.
    pub device_hours: f64,
    /// Times it was started.
    pub n_sessions: usize,
    /// Optimizer steps.
    pub n_steps: u64,
    /// Those that were planned: more, where patience ended the training before.
    pub n_planned_steps: u64,
    /// Mean loss over the first tenth of the steps.
    pub loss_first_tenth: f64,
    /// Mean loss over the last tenth of the steps.
    pub loss_last_tenth: f64,
    /// The update and what the bf16 export keeps of it.
    pub export: ExportReport,
}

/// Writes `out/master` and `out/model` from a folder that [`super::check`] found good. `text` is the start's tokenizer with the stage's
/// template.
pub fn import(
    folder: &Path,
    expected: &Expectation,
    verdict: &Verdict,
    text: &TextModel,
    out: &Path,
) -> Result<ImportReport, Error> {
    if !verdict.is_good() {
        return Err(Error::Unverified { findings: verdict.findings.iter().map(ToString::to_string).collect() });
    }
    let export = match expected.lora() {
        Some(lora) => aloe_train::hand_back_adapter(&expected.start, folder, &lora, text, out)?,
        None => aloe_train::hand_back(&expected.start, folder, text, out)?,
    };
    let facts = &verdict.facts;
    let engine = if facts.versions.contains_key("axolotl") { "axolotl" } else { "trl" };
    let tenth = (facts.losses.len() / 10).max(1).min(facts.losses.len());
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len().max(1) as f64;
    Ok(ImportReport {
        engine: engine.to_owned(),
        versions: facts.versions.clone(),
        rows_sha256: expected.rows_sha256.clone(),
        devices: facts.devices.clone(),
        world_size: facts.world_size,
        n_hosts: facts.n_hosts,
        seconds: facts.seconds,
        device_hours: facts.seconds * f64::from(facts.world_size) / 3600.0,
        n_sessions: facts.n_sessions,
        n_steps: facts.n_steps,
        n_planned_steps: expected.n_steps,
        loss_first_tenth: mean(&facts.losses[..tenth]),
        loss_last_tenth: mean(&facts.losses[facts.losses.len() - tenth..]),
        export,
    })
}
