//! `metrics.jsonl` and `samples.jsonl`: JSON objects by step, the same bytes on every run of the same settings (no times, no paths).
//!
//! Its content so far is part of each checkpoint; a resumed run first puts the file back to that moment.

use crate::Result;
use aloe_record::{Error, atomic};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// The open file and its content.
pub(crate) struct Metrics {
    path: PathBuf,
    file: File,
    text: Vec<u8>,
}

impl Metrics {
    /// Starts the file with `text`, the lines up to the checkpoint a run resumes from (none for a new run).
    pub(crate) fn start(path: &Path, text: Vec<u8>) -> Result<Self> {
        atomic::write(path, &text)?;
        let file = OpenOptions::new().append(true).open(path).map_err(Error::io("open", path))?;
        Ok(Self { path: path.to_path_buf(), file, text })
    }

    /// Appends one line.
    pub(crate) fn append(&mut self, line: &impl Serialize) -> Result<()> {
        let mut json = serde_json::to_vec(line)
            .map_err(|error| Error::Json { path: self.path.clone(), reason: error.to_string() })?;
        json.push(b'\n');
        self.file.write_all(&json).map_err(Error::io("write", &self.path))?;
        self.text.extend_from_slice(&json);
        Ok(())
    }

    /// The bytes of all lines.
    pub(crate) fn text(&self) -> &[u8] {
        &self.text
    }

    /// The step of the last line.
    pub(crate) fn last_step(&self) -> Option<u64> {
        self.lines().last()?.get("step")?.as_u64()
    }

    /// The last value of `field` that the lines of `step` hold.
    pub(crate) fn number_at(&self, step: u64, field: &str) -> Option<f64> {
        self.lines().filter(|line| line["step"] == step).filter_map(|line| line.get(field)?.as_f64()).last()
    }

    /// The last array of numbers called `field` that the lines of `step` hold.
    pub(crate) fn array_at(&self, step: u64, field: &str) -> Option<Vec<f64>> {
        let lines = self.lines().filter(|line| line["step"] == step);
        let found = lines.filter_map(|line| line.get(field)?.as_array().cloned()).last()?;
        found.iter().map(Value::as_f64).collect()
    }

    /// The numbers in the last `object` that the lines of `step` hold, by their name.
    pub(crate) fn numbers_at(&self, step: u64, object: &str) -> BTreeMap<String, f64> {
        let lines = self.lines().filter(|line| line["step"] == step);
        let found = lines.filter_map(|line| line.get(object)?.as_object().cloned()).last().unwrap_or_default();
        found.into_iter().filter_map(|(name, value)| Some((name, value.as_f64()?))).collect()
    }

    /// The values that the lines hold as numbers in `object`, by their name, in order.
    pub(crate) fn numbers_in(&self, object: &str) -> BTreeMap<String, Vec<f64>> {
        let mut found = BTreeMap::<String, Vec<f64>>::new();
        for line in self.lines() {
            for (name, value) in line.get(object).and_then(Value::as_object).into_iter().flatten() {
                found.entry(name.clone()).or_default().extend(value.as_f64());
            }
        }
        found
    }

    fn lines(&self) -> impl Iterator<Item = Value> {
        self.text.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok())
    }

    /// The values of `field` in the lines that hold it as a number, in order.
    pub(crate) fn numbers(&self, field: &str) -> Vec<f64> {
        self.lines().filter_map(|line| line.get(field)?.as_f64()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restarted_file_forgets_the_lines_after_the_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut metrics = Metrics::start(&path, Vec::new()).unwrap();
        metrics.append(&serde_json::json!({"step": 1, "loss": 2.5})).unwrap();
        let checkpoint = metrics.text().to_vec();
        metrics.append(&serde_json::json!({"step": 2, "loss": 9.5})).unwrap();
        let mut metrics = Metrics::start(&path, checkpoint).unwrap();
        metrics.append(&serde_json::json!({"step": 2, "loss": 1.5})).unwrap();
        assert_eq!(metrics.numbers("loss"), [2.5, 1.5]);
        assert_eq!(std::fs::read(&path).unwrap(), metrics.text());
    }
}
