//! Decoder models of the Llama family: their files, and (beside them) their arithmetic. Sees token ids, never text.
//!
//! Reading order of the files part: `config`, `arch` (the one table of tensors), `float`, `safetensors` and
//! `safetensors_writer`, `gguf`, `checkpoint`, `source` (what every stage opens), `writer` (what every stage writes).

pub mod arch;
pub mod checkpoint;
pub mod config;
mod error;
pub mod float;
mod pickle;
pub mod safetensors;
pub mod source;

pub use arch::{ParamGroup, Part, Role, RowPermute, TensorSpec};
pub use checkpoint::Checkpoint;
pub use config::{Arch, Config, RopeScaling};
pub use error::Error;
pub use safetensors::{FileDtype, SafeTensorsFile};
pub use source::ModelSource;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
