//! The seam all consumers of a model use: score given continuations, generate, embed. A model is a local folder, a
//! `.gguf` file or an OpenAI-compatible endpoint; callers cannot tell which, except through [`EngineIdentity`].
//!
//! Reading order: `request` (what is asked and answered), `engine` (opening a model, the three calls), `score` and
//! `generate` (the local scheduler), `sample` (logits to a token), `endpoint` (the same calls over HTTP), `embed`.

mod embed;
mod endpoint;
mod engine;
mod error;
mod generate;
mod http;
mod local;
mod request;
mod sample;
mod score;
mod sequence;

pub use embed::Embedder;
pub use endpoint::Endpoint;
pub use engine::{Engine, EngineIdentity, EngineOptions};
pub use error::Error;
pub use local::Local;
pub use request::{
    Completion, Continuation, FinishReason, GenerateRequest, GenerateResult, Prompt, Sampling, ScoreRequest,
    ScoreResult, Scored,
};
pub use sample::sample_token;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[cfg(test)]
mod tests;

#[cfg(test)]
mod endpoint_tests;
