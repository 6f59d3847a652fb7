//! The reference model's log-probabilities of every pair, computed once per stage (or chunk) and kept across restarts.
//!
//! They are stored in a checksummed log under a fingerprint of everything that decides them. A log of another fingerprint
//! is stale: none of its numbers is used, it is removed, recomputed and reported. (A run that has already stepped from a stale log
//! cannot get here: its checkpoint belongs to another run and is refused.) A log of this fingerprint that contradicts itself is an
//! error, and so is a number of the cache that the model does not give.

use crate::pack::first_fit_decreasing;
use crate::pairs::{Example, logps_of, refuse_non_finite};
use crate::preference::PairLogps;
use crate::reference_cache::ReferenceCache;
use crate::settings::Context;
use crate::{Error, Result};
use aloe_model::Decoder;
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
    pub(crate) fn of<'a>(identity: &str, compute: &str, pairs: impl IntoIterator<Item = &'a EncodedPair>) -> Self {
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

/// An open store, filled in any order.
pub(crate) struct ReferenceStore {
    log: Log,
    logps: Vec<Option<PairLogps>>,
}

impl ReferenceStore {
    /// Opens or starts the store at `path` for `n_pairs` pairs. The notice says when a stale one was removed.
    pub(crate) fn open(path: &Path, fingerprint: Fingerprint, n_pairs: usize) -> Result<(Self, Option<String>)> {
        let (mut log, entries) = Log::open::<Entry>(path)?;
        let header = Entry::Header { fingerprint, n_pairs };
        let mut logps = vec![None; n_pairs];
        if entries.first().is_some_and(|first| *first != header) {
            drop(log);
            std::fs::remove_file(path).map_err(aloe_record::Error::io("remove", path))?;
            let notice =
                format!("{}: reference log-probabilities of another model or data, recomputed", path.display());
            log = Log::open::<Entry>(path)?.0;
            log.append(&header)?;
            return Ok((Self { log, logps }, Some(notice)));
        }
        if entries.is_empty() {
            log.append(&header)?;
        }
        for (line, entry) in entries.iter().enumerate().skip(1) {
            let wrong = |what: &str| Err(contradiction(path, format!("line {} {what}", line + 1)));
            let Entry::Pair { at, chosen, rejected } = *entry else { return wrong("is a second header") };
            let found = PairLogps { chosen: f64::from_bits(chosen), rejected: f64::from_bits(rejected) };
            match logps.get_mut(at) {
                Some(place @ None) => *place = Some(found),
                Some(Some(_)) => return wrong(&format!("gives pair {at} a second time")),
                None => return wrong(&format!("is of pair {at}, and there are {n_pairs}")),
            }
        }
        Ok((Self { log, logps }, None))
    }

    /// Pairs that have no log-probabilities yet.
    pub(crate) fn missing(&self) -> Vec<usize> {
        (0..self.logps.len()).filter(|&at| self.logps[at].is_none()).collect()
    }

    /// Adds pairs that are missing, each with its index.
    pub(crate) fn append(&mut self, found: impl IntoIterator<Item = (usize, PairLogps)>) -> Result<()> {
        for (at, pair) in found {
            assert!(self.logps[at].is_none(), "pair {at} is stored already");
            self.log.append(&Entry::Pair { at, chosen: pair.chosen.to_bits(), rejected: pair.rejected.to_bits() })?;
            self.logps[at] = Some(pair);
        }
        Ok(())
    }

    /// All log-probabilities, once every pair is stored and synced.
    pub(crate) fn finish(self) -> Result<Vec<PairLogps>> {
        self.log.sync()?;
        Ok(self.logps.into_iter().map(|pair| pair.expect("reference store closed before it was full")).collect())
    }
}

/// How the reference of a set of pairs is had: what names it, what it is kept in, and what computes it.
pub(crate) struct ReferencePass<'a> {
    /// The weights and the tokenizer.
    pub(crate) identity: &'a str,
    /// Dtype and CPU path.
    pub(crate) compute: &'a str,
    /// The store of this run.
    pub(crate) store: &'a Path,
    /// The folder kept across runs.
    pub(crate) cache: Option<&'a Path>,
    /// Opens the weights, if something is still to be computed.
    pub(crate) decoder: &'a dyn Fn() -> Result<Decoder>,
}

/// What a pass found.
pub(crate) struct References {
    /// Of each pair, in the order given.
    pub(crate) logps: Vec<PairLogps>,
    /// How many came from the cache.
    pub(crate) n_reused: usize,
    /// A stale store was removed.
    pub(crate) notice: Option<String>,
}

/// Tokens of one forward pass: pairs are put together, long ones first, up to so many. Each pair's numbers are the same
/// whatever its mates, and nothing is kept for a backward pass, so the number is a matter of speed and memory alone.
const PASS_TOKENS: usize = 4096;

impl ReferencePass<'_> {
    /// Reads what is stored, then what the cache holds, and computes the rest.
    pub(crate) fn run(&self, pairs: &[&Example], context: &Context) -> Result<References> {
        let fingerprint = Fingerprint::of(self.identity, self.compute, pairs.iter().map(|pair| &pair.ids));
        let (mut store, notice) = ReferenceStore::open(self.store, fingerprint, pairs.len())?;
        let mut missing = store.missing();
        context.progress.resume((pairs.len() - missing.len()) as u64);
        let mut n_reused = 0;
        if !missing.is_empty() {
            let decoder = (self.decoder)()?;
            let opened = self.cache.map(|folder| ReferenceCache::open(folder, self.identity, self.compute));
            let mut cache = opened.transpose()?;
            if let Some(cache) = &cache {
                n_reused = reuse(cache, &mut store, pairs, &missing, &decoder)?;
                context.progress.resume(n_reused as u64);
                missing = store.missing();
            }
            compute(&mut store, cache.as_mut(), pairs, &missing, &decoder, context)?;
        }
        Ok(References { logps: store.finish()?, n_reused, notice })
    }
}

/// Takes over what the cache holds; the first such pair is computed again, and must give the same bits.
fn reuse(
    cache: &ReferenceCache,
    store: &mut ReferenceStore,
    pairs: &[&Example],
    missing: &[usize],
    decoder: &Decoder,
) -> Result<usize> {
    let known: Vec<(usize, PairLogps)> =
        missing.iter().filter_map(|&at| Some((at, cache.get(&pairs[at].ids)?))).collect();
    if let Some(&(first, _)) = known.first() {
        let computed = logps_of(decoder, &pairs[first..=first])?[0];
        cache.check(&pairs[first].source, &pairs[first].ids, computed)?;
    }
    let n_reused = known.len();
    store.append(known)?;
    Ok(n_reused)
}

fn compute(
    store: &mut ReferenceStore,
    mut cache: Option<&mut ReferenceCache>,
    pairs: &[&Example],
    missing: &[usize],
    decoder: &Decoder,
    context: &Context,
) -> Result<()> {
    for batch in batches_by_tokens(pairs, missing, PASS_TOKENS) {
        context.cancel.check()?;
        let members: Vec<&Example> = batch.iter().map(|&at| pairs[at]).collect();
        let found = logps_of(decoder, &members)?;
        refuse_non_finite(&members, &found, "reference log-probability")?;
        store.append(batch.iter().copied().zip(found.iter().copied()))?;
        if let Some(cache) = &mut cache {
            let lines: Vec<_> = members.iter().map(|pair| &pair.ids).zip(found).collect();
            cache.append(&lines)?;
        }
        context.progress.advance(batch.len() as u64);
    }
    Ok(())
}

/// Log-probabilities of all pairs, in their order, under weights that are not kept for: the held-out pairs of an evaluation.
pub(crate) fn logps_in_batches(decoder: &Decoder, pairs: &[&Example], context: &Context) -> Result<Vec<PairLogps>> {
    let mut logps = vec![PairLogps::default(); pairs.len()];
    for batch in batches_by_tokens(pairs, &(0..pairs.len()).collect::<Vec<_>>(), PASS_TOKENS) {
        context.cancel.check()?;
        let members: Vec<&Example> = batch.iter().map(|&at| pairs[at]).collect();
        for (at, found) in batch.into_iter().zip(logps_of(decoder, &members)?) {
            logps[at] = found;
        }
    }
    Ok(logps)
}

/// The pairs of `which`, long ones first, in batches of at most `n_tokens`; a longer pair is a batch of its own.
fn batches_by_tokens(pairs: &[&Example], which: &[usize], n_tokens: usize) -> Vec<Vec<usize>> {
    let lens: Vec<usize> = pairs.iter().map(|pair| pair.n_tokens().min(n_tokens)).collect();
    first_fit_decreasing(&lens, which, n_tokens).rows
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
        store.append([(1, LOGPS[1])]).unwrap();
        drop(store);
        let (mut store, _) = ReferenceStore::open(&path, fingerprint, 2).unwrap();
        assert_eq!(store.missing(), [0]);
        store.append([(0, LOGPS[0])]).unwrap();
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
            assert_eq!(store.missing(), [0, 1]);
            assert_eq!(notice.is_some(), at > 0);
            store.append(LOGPS.into_iter().enumerate()).unwrap();
        }
    }

    #[test]
    fn a_store_that_contradicts_its_own_fingerprint_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("reference.log");
        let fingerprint = Fingerprint::of("w t", "f32", &pairs(1));
        let pair = |at: usize| Entry::Pair { at, chosen: 0, rejected: 0 };
        for entries in [vec![pair(2)], vec![pair(0), pair(0)], vec![Entry::Header { fingerprint, n_pairs: 2 }]] {
            let (mut log, _) = Log::open::<Entry>(&path).unwrap();
            log.append(&Entry::Header { fingerprint, n_pairs: 2 }).unwrap();
            entries.iter().for_each(|entry| log.append(entry).unwrap());
            drop(log);
            assert!(matches!(ReferenceStore::open(&path, fingerprint, 2), Err(Error::State { .. })), "{entries:?}");
            std::fs::remove_file(&path).unwrap();
        }
    }
}
