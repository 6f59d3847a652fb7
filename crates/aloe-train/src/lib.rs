//! Training of the Aloe recipe: supervised fine-tuning and direct preference optimisation, with checkpoints that resume
//! bit for bit.
//!
//! Sees encoded text and calls the decoder; knows no data file and no benchmark. Reading order, a row to a checkpoint:
//! `sft` (spine), `sft_rows` (rows to documents), `sft_data` (documents to batches to a loss), `pack`, `neftune`, `run` (the step
//! loop), `learner` (forward, backward, update), `schedule`, `guard`, `sampler`, `sight` (what a person watches), `state`,
//! `export`, `lora` (which weights are trained, and their hand-over); `timing` times steps, `held_out` draws what is held out. DPO swaps in `dpo`, `dpo_data`, `pairs`,
//! `reference`, `reference_cache`, `preference`, `tally` and `dpo_report`. `statistics` has the errors of held-out figures. `rendered` hands the same batches to other trainers.

mod dpo;
mod dpo_data;
mod dpo_report;
mod error;
mod export;
mod finished;
mod guard;
mod held_out;
mod held_out_rows;
mod learner;
mod lora;
mod measure;
mod memory;
mod metrics;
mod neftune;
mod pack;
mod pairs;
mod preference;
mod reference;
mod reference_cache;
mod rendered;
mod run;
mod sampler;
mod schedule;
mod settings;
mod sft;
mod sft_data;
mod sft_rows;
mod sight;
mod state;
mod statistics;
mod tally;
mod tensorboard;
#[cfg(test)]
mod tests;
mod timing;

pub use dpo::{DpoConfig, DpoInputs, DpoRow, ReferenceAt, dpo};
pub use dpo_report::{DpoReport, PairSourceHeldOut, PairSourceReport};
pub use error::Error;
pub use export::{ExportReport, hand_back};
pub use finished::RESULTS_SINCE;
pub use guard::{OnNonFinite, OnSpike, Spike, first_spike};
pub use lora::{LoraBase, LoraConfig, LoraReport, LoraTarget, hand_back_adapter};
pub use measure::{DpoSize, SftSize, StepCost, StepShape, dpo_size, measure_step, sft_size};
pub use memory::{TrainMemory, TrainShape, about_n_updates};
pub use pairs::Truncate;
pub use preference::PreferenceLoss;
pub use rendered::{DpoBatches, PackedRow, SftBatches};
pub use schedule::{Decay, Schedule};
pub use settings::{Context, TrainDtype, start_weights};
pub use sft::{LongRows, SftConfig, SftInputs, SftReport, SftRow, SourceReport, sft};
pub use sft_rows::trained_rows;
pub use statistics::Estimate;
pub use timing::{StepTimes, StepWork, time_lora_steps, time_steps};

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
