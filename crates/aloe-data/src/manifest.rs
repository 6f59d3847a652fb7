//! The account of a data stage: every row read is kept, dropped by a named rule, held out, capped or broken.

use crate::{Item, Problems};
use serde::Serialize;
use std::collections::BTreeMap;

/// One source's account. `n_read` = broken + dropped + kept, before variants.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SourceReport {
    /// Its name.
    pub name: String,
    /// As stated in the recipe.
    pub licence: String,
    /// File to SHA-256.
    pub files: BTreeMap<String, String>,
    /// The layouts found, a row count each.
    pub dialects: BTreeMap<String, usize>,
    /// Rows in the files, broken ones included.
    pub n_read: usize,
    /// Rows that could not be read.
    pub n_broken: usize,
    /// Rows built from others: attack variants.
    pub n_made: usize,
    /// Rule to rows changed.
    pub changed: BTreeMap<String, usize>,
    /// Rule to rows dropped.
    pub dropped: BTreeMap<String, usize>,
    /// Rows held out.
    pub n_held_out: usize,
    /// Rows written for training, copies by weight counted.
    pub n_train: usize,
    /// Sub-task to training rows.
    pub tasks: BTreeMap<String, usize>,
    /// Subject to training rows.
    pub subjects: BTreeMap<String, usize>,
    /// Characters of the training rows.
    pub n_chars: usize,
    /// Tokens of the training rows with their template, when the recipe names a tokenizer; of pairs the prompt counts twice.
    pub n_tokens: Option<usize>,
    /// Tokens that the loss sees.
    pub n_target_tokens: Option<usize>,
}

impl SourceReport {
    pub(crate) fn count_change(&mut self, rule: &str) {
        *self.changed.entry(rule.to_owned()).or_default() += 1;
    }

    pub(crate) fn count_drop(&mut self, rule: &str) {
        *self.dropped.entry(rule.to_owned()).or_default() += 1;
    }

    pub(crate) fn count_train(&mut self, item: &Item) {
        self.n_train += 1;
        self.n_chars += item.n_chars();
        *self.tasks.entry(item.task.clone()).or_default() += 1;
        if !item.subject.is_empty() {
            *self.subjects.entry(item.subject.clone()).or_default() += 1;
        }
    }

    /// Rows dropped by all rules.
    pub fn n_dropped(&self) -> usize {
        self.dropped.values().sum()
    }
}

/// The whole account; `manifest.json` holds it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct DataReport {
    /// `sft` or `pairs`.
    pub output: String,
    /// The seed.
    pub seed: u64,
    /// In the recipe's order.
    pub sources: Vec<SourceReport>,
    /// Evaluation questions that rows were compared with.
    pub n_held_apart_questions: usize,
    /// File of evaluation questions to SHA-256.
    pub held_apart_files: BTreeMap<String, String>,
    /// Rows that overlapped one.
    pub n_overlaps: usize,
    /// Rows in `train.jsonl`.
    pub n_train: usize,
    /// Rows in `hold_out.jsonl`.
    pub n_held_out: usize,
    /// Licence to training rows.
    pub licences: BTreeMap<String, usize>,
    /// Broken rows, when a quarantine let the run go on.
    pub broken: Problems,
    /// File to SHA-256.
    pub outputs: BTreeMap<String, String>,
}

impl DataReport {
    /// Rule to rows dropped, over all sources.
    pub fn dropped(&self) -> BTreeMap<String, usize> {
        let mut total = BTreeMap::new();
        for (rule, n_rows) in self.sources.iter().flat_map(|source| &source.dropped) {
            *total.entry(rule.clone()).or_default() += n_rows;
        }
        total
    }
}
