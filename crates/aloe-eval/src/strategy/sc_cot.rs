//! Self-consistency (Wang et al. 2022, 2203.11171): several sampled worked answers after fixed worked examples, majority
//! vote; options shuffled between samples when asked for.

use super::TaskRun;
use super::generate::{Plan, Shots};
use serde_json::{Map, Value};

/// Nothing to prepare beyond the examples.
pub(crate) fn prepare(run: &TaskRun) -> Plan {
    let mut notes = Map::new();
    notes.insert("examples".into(), Value::from("fixed worked examples written for this program"));
    Plan {
        shots: Shots::Fixed(run.config.shots),
        n_samples: run.config.n_samples,
        shuffle: run.config.shuffle,
        n_same: None,
        notes,
    }
}
