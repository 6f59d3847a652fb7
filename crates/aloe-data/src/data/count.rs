//! The account of a run at its end: what trains, what was left out, and how large the clusters of duplicates are.

use super::Run;
use super::licences::licence_of;
use crate::dedup::Duplicate;
use crate::manifest::LeftOut;
use crate::mixture::Mixture;
use crate::{Error, Quarantine, Result, notices};
use std::collections::BTreeMap;

impl Run<'_> {
    pub(super) fn count(&mut self, mixture: &Mixture) -> Result<()> {
        for &row in &mixture.train {
            let item = &self.items[row];
            self.report.sources[item.source].count_train(item);
            *self.report.licences.entry(licence_of(item, self.config).to_owned()).or_default() += 1;
            *self.report.tasks.entry(item.about.task.to_string()).or_default() += 1;
        }
        for &row in &mixture.held_out {
            self.report.sources[self.items[row].source].n_held_out += 1;
        }
        self.report.n_train = mixture.train.len();
        self.report.n_held_out = mixture.held_out.len();
        if mixture.train.is_empty() {
            return self.refuse_nothing();
        }
        self.settle(mixture);
        Ok(())
    }

    /// The stage's folder is not written, so that broken rows are told here, and go to the quarantine that lies elsewhere.
    fn refuse_nothing(&mut self) -> Result<()> {
        let n_read = self.report.sources.iter().map(|source| source.n_read).sum();
        let dropped = self.report.dropped();
        let by_rule: Vec<String> = dropped.iter().map(|(rule, n)| format!("{rule} {n}")).collect();
        if let Quarantine::File(path) = &self.config.quarantine {
            self.write_quarantine(path)?;
        }
        let problems = std::mem::take(&mut self.problems);
        Err(Error::EmptyResult { n_read, n_dropped: dropped.values().sum(), by_rule: by_rule.join(", "), problems })
    }

    /// Sizes of the clusters of duplicates, the row that stays counted.
    pub(super) fn count_clusters(&mut self, duplicates: &[Duplicate]) {
        let mut sizes: BTreeMap<&str, usize> = BTreeMap::new();
        for found in duplicates {
            *sizes.entry(found.kept.as_str()).or_insert(1) += 1;
        }
        for n_rows in sizes.into_values() {
            *self.report.duplicate_clusters.entry(n_rows).or_default() += 1;
        }
    }

    /// Closes the account of every source and finds what the user must be told.
    fn settle(&mut self, mixture: &Mixture) {
        let mut left = vec![LeftOut::default(); self.config.sources.len()];
        let mut seen = vec![false; self.items.len()];
        for &row in &mixture.train {
            left[self.items[row].source].n_repeated += usize::from(std::mem::replace(&mut seen[row], true));
        }
        for &row in &mixture.over_cap {
            left[self.items[row].source].n_over_cap += 1;
        }
        for &row in &mixture.weighted_out {
            left[self.items[row].source].n_weighted_out += 1;
        }
        for (source, left) in self.report.sources.iter_mut().zip(left) {
            source.settle(left);
        }
        self.report.settle();
        self.report.notices = notices::find(self.config, &self.report);
    }
}
