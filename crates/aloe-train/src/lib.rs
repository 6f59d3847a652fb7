//! Training of the Aloe recipe: supervised fine-tuning and direct preference optimisation, with checkpoints that resume
//! bit for bit.
//!
//! Sees encoded text and calls the decoder; knows no data file and no benchmark. Reading order, a row to a checkpoint:
//! `sft` (spine), `sft_data` (rows to batches to a loss), `pack`, `run` (the step loop), `learner` (forward, backward,
//! update), `schedule`, `guard`, `state`, `export`. DPO swaps in `dpo`, `dpo_data`, `pairs`, `preference` and `reference`.

mod dpo;
mod dpo_data;
mod error;
mod export;
mod finished;
mod guard;
mod learner;
mod metrics;
mod pack;
mod pairs;
mod preference;
mod reference;
mod run;
mod schedule;
mod settings;
mod sft;
mod sft_data;
mod state;
#[cfg(test)]
mod tests;

pub use dpo::{DpoConfig, DpoInputs, DpoReport, DpoRow, ReferenceAt, dpo};
pub use error::Error;
pub use export::ExportReport;
pub use guard::{OnNonFinite, OnSpike};
pub use preference::PreferenceLoss;
pub use schedule::Decay;
pub use settings::{Context, TrainDtype, start_weights};
pub use sft::{SftConfig, SftInputs, SftReport, SftRow, sft};

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
