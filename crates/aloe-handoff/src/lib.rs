//! Hand-off: the same recipe on foreign trainers and schedulers. Writes a run folder that another site can run, drives it under
//! Slurm or on this machine, and takes results back only after checking them. Trains nothing itself.
//!
//! Reading order: [`plan`] (what a run folder holds: the seam of all other files), `engine` (configurations for TRL and axolotl, and
//! their check), `verify` (what comes back), `cluster` and `scheduler` (where and how jobs run).

pub mod engine;
pub mod plan;
pub mod verify;

pub use plan::{Resources, RunPlan, StagePlan, Trainer};
