//! Decoder models of the Llama family: their files, and (beside them) their arithmetic. Sees token ids, never text.
//!
//! Reading order of the files part: `config`, `arch` (the one table of tensors), `float`, `safetensors` and
//! `safetensors_writer`, `gguf`, `checkpoint`, `source` (what every stage opens), `writer` (what every stage writes).

pub mod arch;
mod backward;
pub mod batch;
pub mod checkpoint;
pub mod config;
pub mod decoder;
pub mod encoder;
mod error;
pub mod float;
pub mod forward;
pub mod gguf;
pub mod kv;
pub mod lora;
#[cfg(test)]
mod own_process;
pub mod params;
mod pickle;
mod rounded;
pub mod safetensors;
pub mod safetensors_writer;
pub mod source;
pub mod step;
pub mod testing;
pub mod weight_format;
pub mod weights;
pub mod writer;

pub use arch::{ParamGroup, Part, Role, RowPermute, TensorSpec};
pub use backward::EmbeddingGrad;
pub use batch::{Branches, PackedBatch};
pub use checkpoint::Checkpoint;
pub use config::{Arch, Config, RopeScaling};
pub use decoder::{Decoder, TokenLogps};
pub use encoder::{BertEncoder, BertReranker, Pooling, unit};
pub use error::Error;
pub use forward::{Activations, Keep};
pub use gguf::{Gguf, GgufModel};
pub use kv::{KvCache, KvMeter};
pub use lora::{LoraAdapter, LoraDelta, LoraShape};
pub use params::{Grads, Params};
pub use safetensors::{FileDtype, SafeTensorsFile};
pub use source::ModelSource;
pub use step::{After, Pass, TreePiece};
pub use weight_format::WeightFormat;
pub use weights::Weights;
pub use writer::CheckpointWriter;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
