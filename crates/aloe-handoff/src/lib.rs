//! Hand-off: the same recipe on foreign trainers and schedulers. Writes a run folder that another site can run, drives it under
//! Slurm or on this machine, and takes results back only after checking them. Trains nothing itself.
//!
//! Reading order: [`plan`] (what a run folder holds: the seam of all other files), `shard` (parts of a stage), `engine`
//! (configurations for TRL and axolotl, and their check), `verify` (what comes back), `cluster` (a site), `sbatch` (scripts), `state`, `lock` and `home` (what
//! happened, and to which folder), `job` (one job), `serving` (servers beside its work), `scheduler` and `drive` (where and in which order jobs run), `bundle`
//! (a run folder as one file).

pub mod bundle;
pub mod cluster;
pub mod drive;
pub mod engine;
mod error;
mod home;
pub mod job;
pub mod lock;
pub mod plan;
mod pulse;
pub mod resume;
pub mod sbatch;
pub mod scheduler;
pub mod serving;
pub mod shard;
mod slurm_time;
pub mod state;
pub mod verify;

pub use cluster::Cluster;
pub use error::{Error, Result};
pub use plan::{Resources, RunPlan, StagePlan, Trainer, Where};
