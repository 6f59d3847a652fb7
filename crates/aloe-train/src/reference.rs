//! The reference model's log-probabilities of every pair, computed once per stage (or chunk) and kept across restarts.
//!
//! They are stored in a checksummed log under a fingerprint of everything that decides them. A log of another fingerprint
//! is stale: it is removed, recomputed and reported. A log of this fingerprint that contradicts itself is an error.

use crate::preference::PairLogps;
use crate::{Error, Result};
use aloe_record::digest::Hasher;
use aloe_record::log::Log;
use aloe_text::EncodedPair;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Log-probabilities as bits: JSON numbers need not survive reading exactly.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Entry {
    Header { fingerprint: Fingerprint, n_pairs: usize },
    Pair { at: usize, chosen: u64, rejected: u64 },
}

/// A SHA-256 as four words.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Fingerprint([u64; 4]);

impl Fingerprint {
    /// Of the identity of the reference weights and the tokenizer, of dtype and CPU path, and of all pairs' ids.
    pub(crate) fn of(identity: &str, compute: &str, pairs: &[EncodedPair]) -> Self {
        let mut hasher = Hasher::default();
        for field in [identity, compute] {
            hasher.field(field.as_bytes());
        }
        for pair in pairs {
            for ids in [&pair.prompt_ids, &pair.chosen_ids, &pair.rejected_ids] {
                hasher.field(&ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>());
            }
        }
        let hex = hasher.hex();
        let word = |at: usize| u64::from_str_radix(&hex[16 * at..16 * (at + 1)], 16).unwrap_or_default();
        Self([word(0), word(1), word(2), word(3)])
    }
}

/// An open store, filled from the front.
pub(crate) struct ReferenceStore {
    log: Log,
    n_pairs: usize,
    logps: Vec<PairLogps>,
}

impl ReferenceStore {
    /// Opens or starts the store at `path` for `n_pairs` pairs. The notice says when a stale one was removed.
    pub(crate) fn open(path: &Path, fingerprint: Fingerprint, n_pairs: usize) -> Result<(Self, Option<String>)> {
        let (mut log, entries) = Log::open::<Entry>(path)?;
        let header = Entry::Header { fingerprint, n_pairs };
        let mut notice = None;
        if entries.first().is_some_and(|first| *first != header) {
            drop(log);
            std::fs::remove_file(path).map_err(aloe_record::Error::io("remove", path))?;
            notice =
                Some(format!("{}: reference log-probabilities of another model or data, recomputed", path.display()));
            log = Log::open::<Entry>(path)?.0;
            log.append(&header)?;
            return Ok((Self { log, n_pairs, logps: Vec::new() }, notice));
        }
        if entries.is_empty() {
            log.append(&header)?;
        }
        let logps =
            entries.iter().skip(1).enumerate().map(|(at, entry)| pair(path, at, entry)).collect::<Result<Vec<_>>>()?;
        if logps.len() > n_pairs {
            return Err(contradiction(path, format!("holds {} pairs of {n_pairs}", logps.len())));
        }
        Ok((Self { log, n_pairs, logps }, notice))
    }

    /// How many pairs are stored already.
    pub(crate) fn n_stored(&self) -> usize {
        self.logps.len()
    }

    /// Adds the next pairs, in order.
    pub(crate) fn append(&mut self, logps: &[PairLogps]) -> Result<()> {
        for pair in logps {
            let at = self.logps.len();
            self.log.append(&Entry::Pair { at, chosen: pair.chosen.to_bits(), rejected: pair.rejected.to_bits() })?;
            self.logps.push(*pair);
        }
        Ok(())
    }

    /// All log-probabilities, once every pair is stored and synced.
    pub(crate) fn finish(self) -> Result<Vec<PairLogps>> {
        assert_eq!(self.logps.len(), self.n_pairs, "reference store closed before it was full");
        self.log.sync()?;
        Ok(self.logps)
    }
}

fn pair(path: &Path, expected_at: usize, entry: &Entry) -> Result<PairLogps> {
    match *entry {
        Entry::Pair { at, chosen, rejected } if at == expected_at => {
            Ok(PairLogps { chosen: f64::from_bits(chosen), rejected: f64::from_bits(rejected) })
        }
        _ => Err(contradiction(path, format!("entry {} is not pair {expected_at}", expected_at + 2))),
    }
}

fn contradiction(path: &Path, reason: String) -> Error {
    Error::State { path: PathBuf::from(path), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(first: u32) -> Vec<EncodedPair> {
        vec![EncodedPair { prompt_ids: vec![first, 2], chosen_ids: vec![3], rejected_ids: vec![4, 5] }]
    }

    const LOGPS: [PairLogps; 2] =
        [PairLogps { chosen: -0.1, rejected: -1.0 / 3.0 }, PairLogps { chosen: -7.25, rejected: -1e-300 }];

    #[test]
    fn a_half_filled_store_goes_on_where_it_was_and_returns_the_same_bits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("reference.log");
        let fingerprint = Fingerprint::of("w t", "f32", &pairs(1));
        let (mut store, notice) = ReferenceStore::open(&path, fingerprint, 2).unwrap();
        assert!(notice.is_none());
        store.append(&LOGPS[..1]).unwrap();
        drop(store);
        let (mut store, _) = ReferenceStore::open(&path, fingerprint, 2).unwrap();
        assert_eq!(store.n_stored(), 1);
        store.append(&LOGPS[1..]).unwrap();
        assert_eq!(store.finish().unwrap(), LOGPS);
    }

    #[test]
    fn a_changed_weight_template_dtype_or_id_makes_the_store_stale() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("reference.log");
        let fingerprints = [
            Fingerprint::of("w t", "f32", &pairs(1)),
            Fingerprint::of("x t", "f32", &pairs(1)),
            Fingerprint::of("x u", "f32", &pairs(1)),
            Fingerprint::of("x u", "bf16", &pairs(1)),
            Fingerprint::of("x u", "bf16", &pairs(9)),
        ];
        for (at, &fingerprint) in fingerprints.iter().enumerate() {
            let (mut store, notice) = ReferenceStore::open(&path, fingerprint, 2).unwrap();
            assert_eq!(store.n_stored(), 0);
            assert_eq!(notice.is_some(), at > 0);
            store.append(&LOGPS).unwrap();
        }
    }

    #[test]
    fn a_store_that_contradicts_its_own_fingerprint_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("reference.log");
        let fingerprint = Fingerprint::of("w t", "f32", &pairs(1));
        let (mut log, _) = Log::open::<Entry>(&path).unwrap();
        log.append(&Entry::Header { fingerprint, n_pairs: 2 }).unwrap();
        log.append(&Entry::Pair { at: 1, chosen: 0, rejected: 0 }).unwrap();
        drop(log);
        assert!(matches!(ReferenceStore::open(&path, fingerprint, 2), Err(Error::State { .. })));
    }
}
