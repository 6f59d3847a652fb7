//! Reference log-probabilities kept in a folder of the user's, across runs: another beta, loss or learning rate over the same
//! start model and pairs does not compute them again.
//!
//! One file per fingerprint of weights, config, template, dtype, CPU path and kernels, one line per pair, keyed by a digest of its ids. So a
//! stale number cannot be found. A line that fails its checksum is passed over; two lines that give one pair different numbers are
//! an error, and so is a file that disagrees with the model on a pair computed again.

use crate::preference::PairLogps;
use crate::{Error, Result};
use aloe_record::digest::Hasher;
use aloe_record::shared_log::SharedLog;
use aloe_text::EncodedPair;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// A line: the log-probabilities as bits, because JSON numbers need not survive reading exactly.
#[derive(Serialize, Deserialize)]
struct Line {
    pair: String,
    chosen: u64,
    rejected: u64,
}

/// An open file of the cache.
pub(crate) struct ReferenceCache {
    log: SharedLog,
    path: PathBuf,
    known: HashMap<String, PairLogps>,
}

impl ReferenceCache {
    /// The file of these fingerprinted facts in `folder`, created where it does not exist.
    pub(crate) fn open(folder: &Path, identity: &str, compute: &str) -> Result<Self> {
        let mut hasher = Hasher::default();
        for field in [identity, compute] {
            hasher.field(field.as_bytes());
        }
        let path = folder.join(format!("{}.log", hasher.hex()));
        let mut log = SharedLog::open(&path)?;
        let mut known = HashMap::new();
        let mut contradicted = None;
        log.read_new(|_, json| {
            let Ok(line) = serde_json::from_slice::<Line>(json) else { return };
            let logps = PairLogps { chosen: f64::from_bits(line.chosen), rejected: f64::from_bits(line.rejected) };
            if known.get(&line.pair).is_some_and(|other| *other != logps) {
                contradicted = Some(line.pair.clone());
            }
            known.insert(line.pair, logps);
        })?;
        match contradicted {
            None => Ok(Self { log, path, known }),
            Some(pair) => Err(contradiction(&path, &format!("two lines differ on the pair {pair}"))),
        }
    }

    /// What is known of a pair.
    pub(crate) fn get(&self, ids: &EncodedPair) -> Option<PairLogps> {
        self.known.get(&key(ids)).copied()
    }

    /// Refuses the file when the model gives a pair other numbers than it.
    pub(crate) fn check(&self, source: &str, ids: &EncodedPair, computed: PairLogps) -> Result<()> {
        match self.get(ids) {
            Some(kept) if kept != computed => {
                let reason = format!(
                    "holds {} and {} for {source}, the model gives {} and {}",
                    kept.chosen, kept.rejected, computed.chosen, computed.rejected
                );
                Err(contradiction(&self.path, &reason))
            }
            _ => Ok(()),
        }
    }

    /// Adds computed pairs.
    pub(crate) fn append(&mut self, pairs: &[(&EncodedPair, PairLogps)]) -> Result<()> {
        let line = |(ids, logps): &(&EncodedPair, PairLogps)| {
            let (chosen, rejected) = (logps.chosen.to_bits(), logps.rejected.to_bits());
            let line = Line { pair: key(ids), chosen, rejected };
            serde_json::to_string(&line).map_err(|error| contradiction(&self.path, &error.to_string()))
        };
        let lines = pairs.iter().map(line).collect::<Result<Vec<_>>>()?;
        Ok(self.log.append(&lines)?)
    }
}

fn key(ids: &EncodedPair) -> String {
    let mut hasher = Hasher::default();
    for ids in [&ids.prompt_ids, &ids.chosen_ids, &ids.rejected_ids] {
        hasher.field(&ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>());
    }
    hasher.hex()
}

fn contradiction(path: &Path, reason: &str) -> Error {
    Error::State { path: path.to_path_buf(), reason: format!("{reason}; remove this file, it is computed again") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(first: u32) -> EncodedPair {
        EncodedPair { prompt_ids: vec![first, 2], chosen_ids: vec![3], rejected_ids: vec![4, 5] }
    }

    const LOGPS: PairLogps = PairLogps { chosen: -1.0 / 3.0, rejected: -1e-300 };

    #[test]
    fn a_kept_pair_is_found_again_with_the_same_bits_and_only_under_the_same_facts() {
        let dir = tempfile::tempdir().unwrap();
        ReferenceCache::open(dir.path(), "w t", "f32").unwrap().append(&[(&ids(1), LOGPS)]).unwrap();
        let cache = ReferenceCache::open(dir.path(), "w t", "f32").unwrap();
        assert_eq!(cache.get(&ids(1)), Some(LOGPS));
        assert_eq!(cache.get(&ids(2)), None);
        for (identity, compute) in [("x t", "f32"), ("w u", "f32"), ("w t", "bf16")] {
            assert_eq!(ReferenceCache::open(dir.path(), identity, compute).unwrap().get(&ids(1)), None);
        }
    }

    #[test]
    fn numbers_that_contradict_each_other_or_the_model_are_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut cache = ReferenceCache::open(dir.path(), "w", "f32").unwrap();
        cache.append(&[(&ids(1), LOGPS)]).unwrap();
        let mut cache = ReferenceCache::open(dir.path(), "w", "f32").unwrap();
        cache.check("a:1", &ids(1), LOGPS).unwrap();
        let other = PairLogps { chosen: -0.25, ..LOGPS };
        let error = cache.check("a:1", &ids(1), other).unwrap_err().to_string();
        assert!(error.contains(".log") && error.contains("a:1") && error.contains("-0.25"), "{error}");
        cache.append(&[(&ids(1), other)]).unwrap();
        let error = ReferenceCache::open(dir.path(), "w", "f32").err().unwrap().to_string();
        assert!(error.contains("two lines differ"), "{error}");
    }
}
