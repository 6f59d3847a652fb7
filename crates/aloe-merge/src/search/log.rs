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
}

impl<T: Clone + Serialize + DeserializeOwned> PointLog<T> {
    /// Opens or creates the log.
    pub fn open(path: &Path) -> Result<Self> {
        let (log, entries) = Log::open::<Entry<T>>(path).map_err(Error::from)?;
        let known = entries.into_iter().map(|entry| (entry.key, (entry.score, entry.detail))).collect();
        Ok(Self { log, known })
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
        Ok(())
    }
}
