//! From questions to scores: protocols, strategies, voting, statistics, and the red-team run.
//!
//! Reading order: `config`, `eval` (the spine), `strategy/*` (prompts and answers), `vote`, `score` (one question's
//! record), `noise` (what an endpoint's answers vary by), `metrics` (accuracy with its standard error, groups), `report` (files and
//! table); `stats` and `compare` for
//! intervals and paired tests; `redteam` (its own spine) with `redteam_sample`, `redteam_log`, `redteam_report`, `redteam_rates`,
//! `redteam_success` (by a judge's verdicts), `redteam_compare` and `judge`.

mod answers;
pub mod compare;
mod config;
mod error;
mod eval;
pub mod judge;
pub mod metrics;
pub mod neighbors;
pub mod noise;
pub mod redteam;
pub mod redteam_compare;
mod redteam_log;
pub mod redteam_rates;
pub mod redteam_report;
pub mod redteam_sample;
pub mod redteam_success;
pub mod report;
mod score;
pub mod stats;
mod strategy;
pub mod vote;

pub use config::{EvalConfig, MedpromptConfig, Strategy};
pub use error::Error;
pub use eval::{Encoders, eval};
pub use redteam::{RedTeamConfig, redteam};
pub use report::EvalResults;
pub use score::{Sample, ScoredChoice, Vote, read_samples};

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
