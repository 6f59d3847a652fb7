//! From questions to scores: protocols, strategies, voting, statistics, and the red-team run.
//!
//! Reading order: `config`, `eval` (the spine), `asked` (the questions' file), `strategy/*` (prompts and answers), `vote`, `score` (one question's
//! record), `noise` (what an endpoint's answers vary by), `metrics` (accuracy with its standard error, groups), `calibration`, `parts` (by subject, length, pool), `expect`, `report` (files and
//! table); `stats`, `bootstrap` and `compare` for
//! intervals and paired tests; `redteam` (its own spine) with `redteam_sample`, `redteam_log`, `redteam_report`, `redteam_rates`,
//! `redteam_success` (by a judge's verdicts), `redteam_compare` and `judge`; `open` (its own spine) for answers in free
//! text; `export`, `export_tree`, `rescore` and `gather` for finished runs; `view/*` for the page that shows a run.

mod answers;
mod asked;
pub mod bootstrap;
pub mod calibration;
pub mod compare;
mod config;
mod error;
mod eval;
pub mod expect;
pub mod export;
pub mod export_tree;
mod gather;
pub mod judge;
pub mod metrics;
pub mod neighbors;
pub mod noise;
pub mod open;
pub mod parts;
pub mod redteam;
pub mod redteam_compare;
mod redteam_log;
pub mod redteam_rates;
pub mod redteam_report;
pub mod redteam_sample;
pub mod redteam_success;
pub mod report;
pub mod rescore;
mod restated;
pub mod same;
mod score;
pub mod specialty;
pub mod stats;
mod strategy;
pub mod view;
pub mod vote;

pub use asked::{AskedQuestion, read_asked};
pub use config::{EvalConfig, MedpromptConfig, Neighbours, Retry, Strategy};
pub use error::Error;
pub use eval::{Encoders, eval};
pub use gather::gather;
pub use redteam::{RedTeamConfig, redteam};
pub use report::EvalResults;
pub use score::{Sample, ScoredChoice, Vote, read_samples};

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
