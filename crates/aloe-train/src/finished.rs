//! The end of a stage: its report kept in the partial folder, so that a kill between training and the commit costs nothing.

use crate::Result;
use crate::run::Run;
use crate::settings::Context;
use aloe_record::{Error, atomic};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::path::Path;

/// The name begins with a dot: it holds speeds, and folder digests leave it out.
const REPORT: &str = ".finished.json";

/// The report of a run of this fingerprint that has already ended in `out`.
pub(crate) fn read<T: DeserializeOwned>(out: &Path, fingerprint: &str) -> Result<Option<T>> {
    let path = out.join(REPORT);
    if !path.exists() {
        return Ok(None);
    }
    let value: Value = atomic::read_json(&path)?;
    if value["fingerprint"] != fingerprint {
        return Ok(None);
    }
    let report = serde_json::from_value(value["report"].clone());
    let report = report.map_err(|error| Error::Json { path, reason: error.to_string() })?;
    // The run may have been killed between its report and this.
    remove_state(out)?;
    Ok(Some(report))
}

/// Keeps the report and removes the checkpoints, which are not needed any more.
pub(crate) fn write(out: &Path, fingerprint: &str, report: &impl Serialize) -> Result<()> {
    let value = serde_json::json!({"fingerprint": fingerprint, "report": report});
    atomic::write_json(&out.join(REPORT), &value)?;
    remove_state(out)
}

fn remove_state(out: &Path) -> Result<()> {
    Ok(atomic::remove_folder(&out.join("state"))?)
}

/// The version since which training and references give the same bits: part of every fingerprint, so that numbers of other kernels are
/// never taken for today's.
pub const RESULTS_SINCE: &str = "0.1.0+2";

/// What decides bits beside weights, data and settings: the CPU path without the number of threads, and [`RESULTS_SINCE`].
pub(crate) fn compute(context: &Context) -> String {
    let name = context.device.name();
    format!("{} {RESULTS_SINCE}", name.split(',').next().unwrap_or_default())
}

/// What the held-out numbers said about the end of the training: an early stop, older weights written, and where `values` before and
/// after are given, no gain over the start.
pub(crate) fn held_out_notice(run: &Run<'_>, values: Option<(f64, f64)>) -> Vec<String> {
    let mut notices = Vec::new();
    let (step, exported) = (run.cursor.step, run.exported_step());
    if run.cursor.held_out.has_stopped {
        notices.push(format!(
            "stopped after step {step}: the held-out evaluations did not get better any more (patience)"
        ));
    }
    if exported != step {
        notices.push(format!(
            "the weights of step {exported} are written, which had the best held-out evaluation (keep_best)"
        ));
    }
    if let Some((before, after)) = values.filter(|(before, after)| after > before) {
        notices.push(format!(
            "held-out rows got worse: {before:.4} before training, {after:.4} under the weights that are written"
        ));
    }
    notices
}

/// The first three places in brackets, for rows that somebody should look at.
pub(crate) fn first_named(places: &[String], n: usize) -> String {
    let named = places[..places.len().min(3)].join(", ");
    match n {
        0 => String::new(),
        1..=3 => format!(" ({named})"),
        _ => format!(" ({named} and {} more)", n - 3),
    }
}

/// A line on rows with an empty answer, which a preference stage refuses.
pub(crate) fn empty_answers_notice(places: &[String]) -> Option<String> {
    let n = places.len();
    (n > 0).then(|| {
        format!("{n} rows have an empty answer and teach the model to end its turn at once{}", first_named(places, n))
    })
}

/// A line on the rows that were left out, so that nobody takes the rest for the whole.
pub(crate) fn dropped_notice(
    unit: &str,
    n_kept: usize,
    n_too_long: usize,
    n_other: usize,
    why: &str,
) -> Option<String> {
    let n_all = n_kept + n_too_long + n_other;
    (n_kept < n_all).then(|| {
        format!("{} of {n_all} {unit} dropped: {n_too_long} longer than max_len, {n_other} {why}", n_all - n_kept)
    })
}

/// Means over the first and the last tenth, of at least one value each.
pub(crate) fn tenths(values: &[f64]) -> (f64, f64) {
    let n = values.len().div_ceil(10);
    let mean = |values: &[f64]| if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 };
    (mean(&values[..n]), mean(&values[values.len() - n..]))
}
