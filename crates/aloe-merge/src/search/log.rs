//! Scores that are not computed twice: a checksummed log of points, keyed by everything that decides a score. A line cut by a kill is
//! dropped when the log is opened.

use crate::{Error, Result};
use aloe_record::digest;
use aloe_record::log::Log;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;

#[derive(Serialize, Deserialize)]
struct Entry<T> {
    key: String,
    score: f64,
    detail: T,
}

/// An open log of points, locked for this process.
pub struct PointLog<T> {
    log: Log,
    known: HashMap<String, (f64, T)>,
    n_new: usize,
}

impl<T: Clone + Serialize + DeserializeOwned> PointLog<T> {
    /// Opens or creates the log.
    pub fn open(path: &Path) -> Result<Self> {
        let (log, entries) = Log::open::<Entry<T>>(path).map_err(Error::from)?;
        let known = entries.into_iter().map(|entry| (entry.key, (entry.score, entry.detail))).collect();
        Ok(Self { log, known, n_new: 0 })
    }

    /// Takes over what another log holds and this one does not; nobody may be writing the other one.
    pub fn take_over(&mut self, path: &Path) -> Result<()> {
        for entry in aloe_record::log::read::<Entry<T>>(path).map_err(Error::from)? {
            if !self.known.contains_key(&entry.key) {
                self.log.append(&entry).map_err(Error::from)?;
                self.known.insert(entry.key, (entry.score, entry.detail));
            }
        }
        self.log.sync().map_err(Error::from)
    }

    /// Writes the entries of `keys` that the log holds into a new log at `path`, in this order: the same bytes, however often the search was
    /// interrupted and whatever else was scored before. A file that is there goes first.
    pub fn write(&self, keys: &[String], path: &Path) -> Result<()> {
        if path.exists() {
            std::fs::remove_file(path).map_err(aloe_record::Error::io("remove", path)).map_err(Error::from)?;
        }
        let (mut log, _) = Log::open::<Entry<T>>(path).map_err(Error::from)?;
        for key in keys {
            if let Some((score, detail)) = self.get(key) {
                log.append(&Entry { key: key.clone(), score, detail }).map_err(Error::from)?;
            }
        }
        log.sync().map_err(Error::from)
    }

    /// How many points were put into it since it was opened.
    pub fn n_new(&self) -> usize {
        self.n_new
    }

    /// The key of a YAML under everything else that decides its score.
    pub fn key(scope: &str, yaml: &str) -> String {
        let mut hasher = digest::Hasher::default();
        hasher.field(scope.as_bytes());
        hasher.field(yaml.as_bytes());
        hasher.hex()
    }

    /// What a point scored.
    pub fn get(&self, key: &str) -> Option<(f64, T)> {
        self.known.get(key).cloned()
    }

    /// Keeps what a point scored; it is on the disk when this returns.
    pub fn put(&mut self, key: &str, scored: &(f64, T)) -> Result<()> {
        let entry = Entry { key: key.to_owned(), score: scored.0, detail: scored.1.clone() };
        self.log.append(&entry).map_err(Error::from)?;
        self.log.sync().map_err(Error::from)?;
        self.known.insert(key.to_owned(), scored.clone());
        self.n_new += 1;
        Ok(())
    }
}
