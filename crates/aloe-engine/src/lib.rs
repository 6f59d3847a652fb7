//! The seam all consumers of a model use: score given continuations, generate, embed. A model is a local folder, a
//! `.gguf` file or an OpenAI-compatible endpoint; callers cannot tell which, except through [`EngineIdentity`].
//!
//! Reading order: `request` (what is asked and answered), `encode` (to ids), `engine` (opening a model, the three calls), `tree` and
//! `walk` (what requests share), `prefixes` (what calls share), `score`, `generate` and `schedule` (the local scheduler), `sequence` and
//! `sample` (logits to a token), `queue` and `serve` (requests that come one by one), `endpoint` (the same calls over HTTP), `cache` (answers kept on disk), `embed`.

mod bench;
mod cache;
mod counts;
mod embed;
mod encode;
mod endpoint;
mod engine;
mod error;
mod generate;
mod http;
mod local;
mod memory;
mod prefixes;
mod queue;
mod request;
mod rerank;
mod sample;
mod schedule;
mod score;
mod sequence;
mod serve;
mod tree;
mod walk;

pub use aloe_model::WeightFormat;
pub use bench::{BenchReport, BenchRow, peak_flops};
pub use cache::{ANSWERS_SINCE, CacheCounts, Cached};
pub use counts::EngineCounts;
pub use embed::{Embedder, Embedding, EndpointEmbedder, LocalEmbedder};
pub use endpoint::announced;
pub use endpoint::{CanaryAnswers, Endpoint, listed};
pub use engine::{Call, Engine, EngineIdentity, EngineOptions, Take, handed};
pub use error::Error;
pub use local::Local;
pub use queue::{Ask, Job, NotTaken, Queue, Told};
pub use request::{
    Completion, Continuation, FinishReason, GenerateRequest, GenerateResult, MAX_SAMPLES, NextRequest, NextResult,
    NextTold, Prompt, Sampling, ScoreRequest, ScoreResult, Scored,
};
pub use rerank::{RankScore, Reranker};
pub use score::ScoredPrompt;
pub use sequence::Gained;
pub use serve::SERVED_ID;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[cfg(test)]
mod cache_tests;

#[cfg(test)]
mod tests;

#[cfg(test)]
mod prefix_tests;

#[cfg(test)]
mod serve_tests;
