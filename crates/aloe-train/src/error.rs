//! Every way a training stage can fail.

use std::path::PathBuf;

/// A refused input, a run that must stop, or a failure of a crate below.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting that cannot be, each on its own line.
    #[error("{}", mistakes.join("\n"))]
    Config {
        /// All mistakes found, with the field's name.
        mistakes: Vec<String>,
    },
    /// Data that cannot be trained on: empty, all or nothing trained, everything too long.
    #[error("{what}: {reason}")]
    Data {
        /// Which input: `training rows`, `preference pairs`, or a row's source.
        what: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A loss, gradient or weight that is not finite (exit code 3). Nothing was saved from this step on; the state before it was, where all
    /// of that is finite.
    #[error("{}", non_finite(*step, what, rows, goes_on))]
    NonFinite {
        /// The optimizer step, counted from 1 (0 before the first).
        step: u64,
        /// `loss`, `gradient` or `weight NAME`.
        what: String,
        /// Sources of the rows concerned: those with a non-finite log-probability, or all rows of the step; none for a weight.
        rows: Vec<String>,
        /// What was saved and what to do now; empty where nothing was.
        goes_on: String,
    },
    /// A loss or gradient norm far above the recent ones (exit code 3). The state before this step was saved.
    #[error(
        "step {step}: the {what} is {value:.4}, more than six standard deviations above the last steps (limit {limit:.4}); rows of this step: \
         {rows}. The state before it is saved: look at these rows, then go on with on_spike = \"skip\" (leave the step out) or \"keep\" (make it)",
        rows = listed(rows)
    )]
    Spike {
        /// The optimizer step, counted from 1.
        step: u64,
        /// `loss` or `gradient norm`.
        what: String,
        /// Its value.
        value: f64,
        /// The most that the recent steps let pass.
        limit: f64,
        /// Sources of the step's rows.
        rows: Vec<String>,
    },
    /// An unfinished run in the output folder that was started with other settings or inputs.
    #[error(
        "{path}: holds an unfinished run with other settings or inputs (fingerprint {found}, now {expected}); \
         remove that folder to start over, or restore the settings to resume",
        path = path.display()
    )]
    OtherRun {
        /// The state folder.
        path: PathBuf,
        /// Fingerprint of the unfinished run.
        found: String,
        /// Fingerprint of this one.
        expected: String,
    },
    /// A damaged file of the training state.
    #[error("{path}: {reason}", path = path.display())]
    State {
        /// The file or checkpoint folder.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Storage, a damaged record, or an interruption.
    #[error(transparent)]
    Record(#[from] aloe_record::Error),
    /// Tokenizer or template.
    #[error(transparent)]
    Text(#[from] aloe_text::Error),
    /// Answers of the model in training to given prompts.
    #[error("sample_prompts: {0}")]
    Sample(aloe_engine::Error),
    /// Model files or compute.
    #[error(transparent)]
    Model(#[from] aloe_model::Error),
}

impl From<aloe_engine::Error> for Error {
    /// An interruption or a full disk stays what it is.
    fn from(error: aloe_engine::Error) -> Self {
        match error {
            aloe_engine::Error::Record(error) => Self::Record(error),
            error => Self::Sample(error),
        }
    }
}

fn non_finite(step: u64, what: &str, rows: &[String], goes_on: &str) -> String {
    let rows = if rows.is_empty() { String::new() } else { format!("; rows of this step: {}", listed(rows)) };
    let goes_on = if goes_on.is_empty() { String::new() } else { format!(". {goes_on}") };
    format!("step {step}: {what} is not finite{rows}{goes_on}")
}

/// The first rows, and how many more there are.
fn listed(rows: &[String]) -> String {
    const SHOWN: usize = 12;
    let shown = rows.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match rows.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
