//! From raw files to a training mixture one can answer for: rows, rules, duplicates, overlaps, order, and an account of all.
//!
//! Knows no weights; models are asked through `aloe-engine` (`asking`): `meaning` and `quality` of a data stage, and `synthesis`, a stage of
//! its own. Reading order: `config`, `data` (the spine), `check`, `source` (files to rows with file:line),
//! `dialect/*` (rows to conversations and pairs), `identifiers`, `rules`, `filters`, `simplify`, `shingles`, `minhash`, `dedup`, `held`, `scored`, `decontaminate`, `red_team`
//! (stage-2 variants), `mixture` (hold-out, shares, order), `templates`, `manifest`, `notices`, `page`, `steps`.
//!
//! Refuses: broken rows (all counted, at most twenty shown) unless a quarantine is asked for, layouts it is not sure of, unknown
//! licences, and an empty result.

mod asking;
mod check;
mod config;
mod data;
mod decontaminate;
mod dedup;
mod dedup_meaning;
mod dialect;
mod dirty;
mod elements;
mod error;
mod filters;
mod held;
mod identifiers;
mod item;
mod licence;
mod manifest;
mod meaning;
mod minhash;
mod mixture;
mod notices;
mod of_stage;
mod page;
mod parallel;
mod quality;
mod red_team;
mod review;
mod rules;
mod scored;
mod shingles;
mod simplify;
mod source;
mod steps;
pub mod synthesis;
mod templates;
mod vectors;

pub use asking::Cost;
pub use config::{DataConfig, Dedup, Keep, OutputKind, Quarantine, Rules, SourceConfig, TurnTokenNames};
pub use data::shard::{DedupReport, Shard, ShardReport, merge as merge_shards, sign as sign_shard};
pub use data::{Models, run, run_with};
pub use decontaminate::{Evidence, Overlap};
pub use dialect::{Dialect, SPEAKERS};
pub use dirty::{Trained, trained_on};
pub use error::{Error, Problems, RowError};
pub use filters::Filters;
pub use identifiers::Identifiers;
pub use item::{About, Body, Item, Place, Rare};
pub use licence::{Use, forbids_sharing};
pub use manifest::{Account, DataReport, SourceReport};
pub use meaning::{Meaning, MeaningReport};
pub use minhash::{Banding, MinHash};
pub use quality::{Quality, QualityReport, Scorers};
pub use review::review;
pub use scored::{Scored, names as compared_with};
pub use simplify::simplify;
pub use source::count_rows;
pub use steps::Step;
pub use templates::Templates;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
