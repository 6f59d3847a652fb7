//! The step that puts instruction templates before the questions of the rows that are written: behind deduplication and
//! decontamination, which a sentence shared by many rows would mislead.

use super::Run;
use super::ledger::Entry;
use crate::mixture::Mixture;
use crate::{Error, Item, Result, templates};

impl Run<'_> {
    /// Refuses rows that a template would have no subject for, before duplicates are sought and models asked: also those that would not be
    /// written, for which of them are is known at the end alone.
    pub(super) fn check_subjects(&self) -> Result<()> {
        if !self.config.templates.is_on() {
            return Ok(());
        }
        let lists = self.config.templates.lists();
        let lacks = |item: &&Item| item.about.subject.trim().is_empty() && templates::sub_task(item, &lists).is_some();
        match self.items.iter().find(lacks) {
            Some(item) => {
                let name = self.config.sources[item.source].name.clone();
                Err(Error::NoSubject { name, at: item.at.to_string() })
            }
            None => Ok(()),
        }
    }

    /// Each row that is written gets one template, however often it stands in the mixture; rows whose task has none, and those of an earlier
    /// stage that have theirs, stay as they are.
    pub(super) fn add_templates(&mut self, mixture: &Mixture) -> Result<()> {
        if !self.config.templates.is_on() {
            return Ok(());
        }
        let lists = self.config.templates.lists();
        let mut written: Vec<usize> = mixture.train.iter().chain(&mixture.held_out).copied().collect();
        written.sort_unstable();
        written.dedup();
        for row in written {
            let item = &mut self.items[row];
            let Some((task, list)) = templates::sub_task(item, &lists) else {
                *self.report.sources[item.source].without_template.entry(item.about.task.to_string()).or_default() += 1;
                continue;
            };
            if templates::has_one(item, list) {
                continue;
            }
            let template = templates::apply(item, task, list, self.config.seed);
            let entry = Entry::of(item, "changed", format!("template {template}"));
            *self.report.sources[item.source].templates.entry(template).or_default() += 1;
            self.ledger.push(entry);
        }
        Ok(())
    }
}
