//! Merges checkpoints as mergekit does, from mergekit's own YAML: `dare_ties`, `ties` and `linear`, in mergekit's order of
//! operations and dtype, with masks that depend on the seed, the tensor and the model alone.
//!
//! Reading order: `yaml` (text -> tree), `config` (tree -> checked configuration), `plan` (configuration -> opened models, tensors
//! and their parameters), `merge` (the spine), `tile`, `consensus`, `sparsify`, `linear` (the arithmetic), `tokenizer`, `card` and
//! `report` (files beside the weights).

mod card;
pub mod config;
mod consensus;
mod error;
mod linear;
mod merge;
mod plan;
mod report;
mod sparsify;
mod tile;
mod tokenizer;
pub mod yaml;

pub use config::MergeConfig;
pub use consensus::{Consensus, TensorStats, consensus};
pub use error::{Error, Mistake};
pub use linear::linear;
pub use merge::{MergeReport, merge, merge_folder, merge_tensor};
pub use plan::{MergeOptions, MergePlan, PlannedModel, PlannedTensor, plan};
pub use sparsify::dare_mask;
pub use tile::TensorBytes;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
