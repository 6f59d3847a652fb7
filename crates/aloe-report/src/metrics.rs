//! A training stage's `metrics.jsonl` (one JSON object a step) as series and plots. Knows no key by name but `step`: a number that a
//! stage logs is drawn.

use crate::plot::{LinePlot, Series};
use crate::scale::Scaling;
use crate::{Error, Page, Result};
use serde_json::Value;
use std::path::Path;

/// The numbers of a metrics file, by key in the order of their first appearance.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    series: Vec<Series>,
}

impl Metrics {
    /// Reads a file. A last line without its end is left out: the stage may still be writing it.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(aloe_record::Error::io("read", path))?;
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        Self::parse(complete, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self> {
        let mut metrics = Self::default();
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let wrong = |reason: String| Error::Metrics { path: path.to_path_buf(), line: index + 1, reason };
            let row: Value = serde_json::from_str(line).map_err(|error| wrong(error.to_string()))?;
            let row = row.as_object().ok_or_else(|| wrong("not a JSON object".into()))?;
            let step = row.get("step").and_then(Value::as_f64).unwrap_or(index as f64 + 1.0);
            for (key, value) in row.iter().filter(|(key, _)| *key != "step") {
                if let Some(value) = value.as_f64() {
                    metrics.push(key, step, value);
                }
                for (inner, value) in value.as_object().into_iter().flatten() {
                    value.as_f64().into_iter().for_each(|value| metrics.push(&format!("{key}/{inner}"), step, value));
                }
            }
        }
        Ok(metrics)
    }

    fn push(&mut self, key: &str, step: f64, value: f64) {
        match self.series.iter_mut().find(|series| series.name == key) {
            Some(series) => series.points.push((step, value)),
            None => self.series.push(Series { name: key.to_owned(), points: vec![(step, value)] }),
        }
    }

    /// The keys.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.series.iter().map(|series| series.name.as_str())
    }

    /// The points (step, value) of a key.
    pub fn series(&self, key: &str) -> Option<&Series> {
        self.series.iter().find(|series| series.name == key)
    }

    /// Lines of several keys over the steps; keys that the file does not have are left out.
    pub fn plot(&self, title: &str, y_label: &str, keys: &[&str]) -> LinePlot {
        LinePlot {
            title: title.to_owned(),
            x_label: "step".into(),
            y_label: y_label.to_owned(),
            y_scaling: Scaling::Linear,
            series: keys.iter().filter_map(|key| self.series(key)).cloned().collect(),
        }
    }
}

/// A page with one plot per key of a metrics file: what a training stage writes beside it.
pub fn training_page(title: &str, metrics: &Metrics) -> Page {
    let mut page = Page::new(title);
    for series in &metrics.series {
        page.line_plot(&metrics.plot(&format!("{} by step", series.name), &series.name, &[&series.name]));
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Metrics> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        std::fs::write(&path, text).unwrap();
        Metrics::read(&path)
    }

    #[test]
    fn numbers_become_series_over_their_steps() {
        let metrics = read("{\"step\":1,\"loss\":2.5,\"note\":\"x\"}\n{\"step\":3,\"loss\":2.0,\"eval\":1}\n").unwrap();
        assert_eq!(metrics.keys().collect::<Vec<_>>(), ["loss", "eval"]);
        let inner = read("{\"step\":2,\"by\":{\"a\":1.5,\"b\":\"x\"}}\n").unwrap();
        assert_eq!(inner.series("by/a").unwrap().points, [(2.0, 1.5)]);
        assert_eq!(inner.keys().count(), 1);
        assert_eq!(metrics.series("loss").unwrap().points, [(1.0, 2.5), (3.0, 2.0)]);
        assert_eq!(metrics.series("eval").unwrap().points, [(3.0, 1.0)]);
        let page = training_page("sft", &metrics).html();
        assert_eq!(page.matches("<svg").count(), 2);
    }

    #[test]
    fn an_unfinished_last_line_is_left_out_and_a_bad_one_is_named() {
        assert_eq!(read("{\"step\":1,\"loss\":2}\n{\"step\":2,\"lo").unwrap().series("loss").unwrap().points.len(), 1);
        let error = read("{\"step\":1}\nnonsense\n{}\n").unwrap_err().to_string();
        assert!(error.contains("metrics.jsonl:2: "), "{error}");
        assert_eq!(read("").unwrap(), Metrics::default());
    }
}
