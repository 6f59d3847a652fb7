//! `record.json`: how a stage's folder came to be. The model card is rendered from these and from nothing else.
//!
//! Times, host and paths live here, and times also in `timing.jsonl` and `tensorboard/` of a training stage; every other file of a stage
//! is byte-reproducible.

use crate::{Error, Result, atomic};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// The evidence of one finished stage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The kind of stage, equal to its subcommand: `sft`, `merge`, `eval`.
    pub kind: String,
    /// The stage's name in its recipe, or the output folder's name.
    pub name: String,
    /// The settings as the user wrote them.
    pub config_written: Value,
    /// The settings as checked and completed with defaults.
    pub config_used: Value,
    /// Digest of everything that decides the result: kind, settings used, inputs, seed, dtype, CPU path, program version.
    pub fingerprint: String,
    /// Input name to digest.
    pub inputs: Map<String, Value>,
    /// Output file or folder name to digest.
    pub outputs: Map<String, Value>,
    /// The files in output folders, by their paths: what tells them from files that somebody else put there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<String>,
    /// The seed.
    pub seed: u64,
    /// Program version.
    pub version: String,
    /// CPU path and threads, such as `avx512-bf16, 2 threads`.
    pub device: String,
    /// What was measured: numbers with their denominators, counts, notes. The card quotes from here.
    pub results: Map<String, Value>,
    /// Seconds of wall time.
    pub elapsed_s: f64,
    /// Peak resident memory of the process in bytes.
    pub peak_rss_bytes: u64,
    /// Seconds since 1970 at the start.
    pub started_unix_s: u64,
    /// Host name.
    pub host: String,
}

impl Record {
    /// A record of `kind` and `name` with start time, host and version filled in.
    pub fn start(kind: &str, name: &str) -> Self {
        Self {
            kind: kind.to_owned(),
            name: name.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_unix_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs()),
            host: std::fs::read_to_string("/etc/hostname")
                .map_or_else(|_| String::new(), |name| name.trim().to_owned()),
            ..Self::default()
        }
    }

    /// Reads `record.json` of a stage folder.
    pub fn read(folder: &Path) -> Result<Self> {
        atomic::read_json(&folder.join("record.json"))
    }

    /// Fills in elapsed time and peak memory and writes `record.json` into `folder`, atomically. `earlier_s` is what
    /// interrupted sessions of the same stage took.
    pub fn finish(&mut self, folder: &Path, started: std::time::Instant, earlier_s: f64) -> Result<()> {
        self.elapsed_s = earlier_s + started.elapsed().as_secs_f64();
        self.peak_rss_bytes = peak_rss_bytes();
        atomic::write_json(&folder.join("record.json"), self)
    }

    /// Adds a measured value under `key`.
    pub fn result(&mut self, key: &str, value: impl Serialize) -> Result<()> {
        let value = serde_json::to_value(value)
            .map_err(|error| Error::Json { path: "record.json".into(), reason: format!("{key}: {error}") })?;
        self.results.insert(key.to_owned(), value);
        Ok(())
    }
}

/// Peak resident memory of this process in bytes (`VmHWM`), 0 where the system does not tell.
pub fn peak_rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|rest| rest.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_as_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = Record::start("eval", "before");
        record.result("accuracy", 0.25).unwrap();
        record.finish(dir.path(), std::time::Instant::now(), 0.0).unwrap();
        assert_eq!(Record::read(dir.path()).unwrap(), record);
        assert!(record.peak_rss_bytes > 0);
    }
}
