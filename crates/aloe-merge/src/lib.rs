//! Merges checkpoints as mergekit does, from mergekit's own YAML: `dare_ties`, `ties` and `linear`, in mergekit's order of
//! operations and dtype, with masks that depend on the seed, the tensor and the model alone.
//!
//! Reading order: `yaml` (text -> tree), `config` (tree -> checked configuration), `plan` (configuration -> tensors and
//! their parameters), `merge` (the spine), `tile`, `sparsify`, `consensus`, `linear` (the arithmetic), `output` (files beside
//! the weights).

pub mod config;
mod error;
pub mod yaml;

pub use config::MergeConfig;
pub use error::{Error, Mistake};

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
