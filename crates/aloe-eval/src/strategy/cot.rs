//! One greedy worked answer after fixed worked examples (none: zero-shot), options in their own order.

use super::TaskRun;
use super::generate::{Plan, Shots};
use serde_json::Map;

/// Nothing to prepare beyond the examples.
pub(crate) fn prepare(run: &TaskRun) -> Plan {
    Plan { shots: Shots::Fixed(run.config.shots), n_samples: 1, shuffle: false, n_same: None, notes: Map::new() }
}
