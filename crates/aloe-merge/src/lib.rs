//! Merges checkpoints as mergekit does, from mergekit's own YAML, in mergekit's order of operations and dtype, in bounded memory, with masks
//! that depend on the seed, the tensor and the model alone.
//!
//! Reading order: `yaml` (text -> trees), `config` (trees -> checked configuration), `inputs` (names -> opened models and LoRA adapters),
//! `vocabulary` (whose tokens, which rows; `special_ids`), `plan` (tensors and their parameters; `layers`, `memory`, `notes`, `untrained`; `check`
//! prints it), `merge` (the spine), `source`,
//! `group`, `tile` and `scratch` (how a tensor is read in pieces), `hashing` (digests of what is read and written), `flush`, `method` (one file per method), `sparsify` and `fibres` (what methods share),
//! `figures` (what the record and the card tell), `tokenizer`, `named_template`, `template_tokens`, `card` and `report` (files beside the weights). `search` (its own loop) proposes YAMLs and keeps what they score.

mod beside;
mod card;
mod check;
pub mod config;
mod disk;
mod error;
mod fibres;
mod figures;
mod flush;
mod group;
mod half;
mod hashing;
mod inputs;
mod layers;
mod memory;
mod merge;
mod method;
mod named_template;
mod notes;
mod plan;
mod report;
mod scratch;
pub mod search;
mod source;
mod sparsify;
mod special_ids;
mod stats;
mod template_tokens;
mod tile;
mod tokenizer;
mod tokenizer_file;
mod untrained;
mod vocabulary;
pub mod yaml;

pub use config::MergeConfig;
pub use error::{Error, Mistake};
pub use group::Group;
pub use inputs::{PlannedModel, no_folder};
pub use merge::{MergeReport, merge, merge_folder, merge_tensor, tensor_digest};
pub use method::merge_group;
pub use plan::{DEFAULT_MEMORY, MergeOptions, MergePlan, PlannedTensor, plan};
pub use source::Source;
pub use sparsify::{dare_mask, mask_key, mask_names};
pub use stats::TensorStats;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
