//! The step that looks for overlaps with evaluation questions and asks a reader's verdicts about them.

use super::Run;
use crate::Result;
use crate::decontaminate::{self, Index, Overlap};
use crate::review::{Verdict, Verdicts};
use aloe_record::Progress;

impl Run<'_> {
    /// Drops rows that overlap, but for those that a verdict keeps; gives what was found, kept rows included.
    pub(super) fn take_overlaps_out(&mut self, index: &Index, progress: &Progress) -> Result<Vec<Overlap>> {
        let overlaps = decontaminate::find(&self.items, index, self.n_threads, progress, self.cancel)?;
        let verdicts = match &self.config.verdicts {
            Some(path) => Verdicts::read(path)?,
            None => Verdicts::default(),
        };
        let (mut dropped, mut n_used) = (Vec::new(), 0);
        for (row, found) in &overlaps {
            let verdict = verdicts.of(found);
            n_used += usize::from(verdict.is_some());
            if verdict == Some(Verdict::Keep) {
                self.report.n_overlaps_kept += 1;
                let item = self.items[*row].clone();
                self.enter(&item, "kept", &format!("overlap_{}", found.evidence.test));
            } else {
                dropped.push((*row, format!("overlap_{}", found.evidence.test)));
            }
        }
        self.report.n_overlaps = overlaps.len();
        self.report.n_verdicts_unused = verdicts.len() - n_used;
        self.drop_rows(dropped);
        Ok(overlaps.into_iter().map(|(_, found)| found).collect())
    }
}
