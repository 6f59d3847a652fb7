//! `ledger.jsonl`: what happened to each row that did not go to training as it was read: changed, kept by a verdict, dropped, held out or
//! left out, with the rule. A row in no line of it stands in `train.jsonl` unchanged, where it says the same of itself, or broken in the
//! quarantine.
//!
//! Ids are `source/file:line`; the folder stands in the record's settings, so that the ledger's bytes do not depend on where the data
//! lies. Never holds text of rows, but for the subject that a row's own column names.

use super::Run;
use crate::identifiers::Counts;
use crate::mixture::Mixture;
use crate::{About, DataConfig, Item, Result};
use serde::{Serialize, Serializer};
use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

/// One event of one row.
#[derive(Clone)]
pub(super) struct Entry {
    id: String,
    action: &'static str,
    rule: Cow<'static, str>,
    source: usize,
    about: Arc<About>,
    /// How a synthetic row says it came about.
    made: Option<String>,
    /// Identifiers by kind, without their text.
    identifiers: Counts,
}

impl Entry {
    pub(super) fn of(item: &Item, action: &'static str, rule: impl Into<Cow<'static, str>>) -> Entry {
        let (about, made) = (Arc::clone(&item.about), item.rare().made.clone());
        Entry { about, made, ..Entry::without_item(item.id.clone(), item.source, action, rule) }
    }

    /// Of a row that became no item of its own.
    pub(super) fn without_item(
        id: String,
        source: usize,
        action: &'static str,
        rule: impl Into<Cow<'static, str>>,
    ) -> Entry {
        let (about, made, identifiers) = (Arc::default(), None, Counts::new());
        Entry { id, action, rule: rule.into(), source, about, made, identifiers }
    }

    pub(super) fn with(self, identifiers: Counts) -> Entry {
        Entry { identifiers, ..self }
    }

    fn line<'a>(&'a self, config: &'a DataConfig) -> Line<'a> {
        let source = &config.sources[self.source];
        Line {
            id: &self.id,
            action: self.action,
            rule: &self.rule,
            source: &source.name,
            licence: self.about.licence.as_deref().unwrap_or(&source.licence),
            split: self.about.split.as_deref().unwrap_or_default(),
            task: &self.about.task,
            subject: &self.about.subject,
            made: self.made.as_deref(),
            identifiers: &self.identifiers,
        }
    }
}

/// As it is written.
#[derive(Serialize)]
struct Line<'a> {
    id: &'a str,
    action: &'a str,
    rule: &'a str,
    source: &'a str,
    licence: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    split: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    task: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    subject: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    made: Option<&'a str>,
    #[serde(skip_serializing_if = "Counts::is_empty")]
    identifiers: &'a Counts,
}

/// An entry with what its line takes from the settings.
struct Written<'a> {
    entry: Cow<'a, Entry>,
    config: &'a DataConfig,
}

impl Serialize for Written<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.entry.line(self.config).serialize(to)
    }
}

impl Run<'_> {
    /// Writes all entries and, behind them, the rows that the mixture did not put among the training rows, in row order; gives the digest.
    pub(super) fn write_ledger(&self, path: &Path, mixture: &Mixture) -> Result<String> {
        let reasons = [
            ("held_out", "hold_out", &mixture.held_out),
            ("left_out", "max_rows", &mixture.over_cap),
            ("left_out", "weight", &mixture.weighted_out),
        ];
        let mut left: Vec<(usize, &'static str, &'static str)> = reasons
            .into_iter()
            .flat_map(|(action, rule, rows)| rows.iter().map(move |row| (*row, action, rule)))
            .collect();
        left.sort_unstable();
        // Each made when it is written: a second list of rows would take as much memory as the ledger.
        let rest = left.into_iter().map(|(row, action, rule)| Entry::of(&self.items[row], action, rule));
        let entries = self.ledger.iter().map(Cow::Borrowed).chain(rest.map(Cow::Owned));
        super::lines(path, entries.map(|entry| Written { entry, config: self.config }))
    }
}
