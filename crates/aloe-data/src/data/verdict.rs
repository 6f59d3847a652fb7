//! The steps that drop rows for an overlap with an evaluation question, and ask a reader's verdicts about each: by words here, by meaning
//! in `by_model`.

use super::Run;
use crate::Result;
use crate::decontaminate::{self, Index, Overlap};
use aloe_record::Progress;

impl Run<'_> {
    /// Drops rows that overlap in words, but for those that verdicts keep; gives what was found, kept rows included.
    pub(super) fn take_overlaps_out(&mut self, index: &Index, progress: &Progress) -> Result<Vec<Overlap>> {
        let is_kept = |row: &str, question_at: &str| self.reviewed.is_kept(row, question_at);
        let found = decontaminate::find(&self.items, index, &is_kept, self.n_threads, progress, self.cancel)?;
        Ok(self.honour_verdicts(found))
    }

    /// `found` is in row order. Gives the hits that no earlier step had.
    pub(super) fn honour_verdicts(&mut self, found: Vec<(usize, Overlap)>) -> Vec<Overlap> {
        let mut dropped: Vec<(usize, String)> = Vec::new();
        let mut new = Vec::new();
        for same_row in found.chunk_by(|first, second| first.0 == second.0) {
            let is_kept = |hit: &Overlap| self.reviewed.is_kept(&hit.row, &hit.question_at);
            let rule = |hit: &Overlap| format!("overlap_{}", hit.evidence.test);
            match same_row.iter().find(|(_, hit)| !is_kept(hit)) {
                Some((row, hit)) => dropped.push((*row, rule(hit))),
                None => {
                    let item = self.items[same_row[0].0].clone();
                    self.enter(&item, "kept", rule(&same_row[0].1));
                }
            }
            new.extend(same_row.iter().filter(|(_, hit)| self.reviewed.add(hit)).map(|(_, hit)| hit.clone()));
        }
        self.report.n_overlaps = self.reviewed.n_rows();
        self.report.n_overlaps_kept = self.reviewed.n_kept();
        self.report.n_verdicts_unused = self.reviewed.n_unused();
        self.drop_rows(dropped);
        new
    }
}
