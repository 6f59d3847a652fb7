//! The steps of a data stage that ask models: rows too near an evaluation question in meaning, or one another, and rows of low quality.

use super::{Run, lines};
use crate::decontaminate::{Index, Overlap};
use crate::dedup::Duplicate;
use crate::meaning::{self, Readers};
use crate::{Result, Scorers, dedup_meaning, quality};
use aloe_engine::{Embedder, Engine};
use aloe_record::Progress;
use std::path::Path;

/// The models that a data stage may ask.
#[derive(Clone, Copy, Default)]
pub struct Models<'a> {
    /// Finds the evaluation question that is nearest in meaning.
    pub embedder: Option<&'a Embedder>,
    /// Says whether the two are the same.
    pub judge: Option<&'a Engine>,
    /// Score complexity and quality.
    pub scorers: Option<Scorers<'a>>,
}

impl Run<'_> {
    /// Drops the rows that ask what an evaluation question asks, but for those that verdicts keep, and gives the evidence. Writes `unjudged.jsonl` where there is a judge.
    pub(super) fn drop_by_meaning(
        &mut self,
        index: &Index,
        models: Models,
        out: &Path,
        progress: &Progress,
    ) -> Result<Vec<Overlap>> {
        if self.config.dedup.semantic.is_some() {
            dedup_meaning::check_number(self.items.len())?;
        }
        let Some(embedder) = models.embedder.filter(|_| index.len() > 0) else { return Ok(Vec::new()) };
        let readers = Readers { embedder, judge: models.judge, seed: self.config.seed, n_threads: self.n_threads };
        let config = self.config.meaning.unwrap_or_default();
        let is_kept = |row: &str, question_at: &str| self.reviewed.is_kept(row, question_at);
        let found = meaning::find(&self.items, index, &is_kept, readers, &config, out, (progress, self.cancel))?;
        let overlaps = self.honour_verdicts(found.overlaps);
        if models.judge.is_some() {
            self.by_model.push(("unjudged.jsonl", lines(&out.join("unjudged.jsonl"), &found.unjudged)?));
        }
        self.report.meaning = Some(found.report);
        Ok(overlaps)
    }

    /// Drops the rows that say what an earlier one says.
    pub(super) fn drop_semantic_duplicates(
        &mut self,
        models: Models,
        out: &Path,
        progress: &Progress,
    ) -> Result<Vec<Duplicate>> {
        let (Some(embedder), Some(threshold)) = (models.embedder, self.config.dedup.semantic) else {
            return Ok(Vec::new());
        };
        let (found, n_cut) = dedup_meaning::find(
            &self.items,
            embedder,
            (threshold, &self.config.dedup),
            out,
            self.n_threads,
            progress,
            self.cancel,
        )?;
        self.report.n_cut_in_dedup = Some(n_cut);
        self.drop_rows(found.iter().map(|one| (one.dropped_index, one.rule.to_owned())).collect());
        Ok(found)
    }

    /// Drops the rows that could not be scored and the lowest share of the others. Writes `scores.jsonl`.
    pub(super) fn drop_low_quality(&mut self, models: Models, out: &Path, progress: &Progress) -> Result<()> {
        let (Some(scorers), Some(config)) = (models.scorers, &self.config.quality) else { return Ok(()) };
        let (scores, report) = quality::score(&self.items, scorers, config, out, progress, self.cancel)?;
        let dropped = scores.iter().enumerate().filter_map(|(row, score)| Some((row, score.dropped?.to_owned())));
        self.drop_rows(dropped.collect());
        self.by_model.push(("scores.jsonl", lines(&out.join("scores.jsonl"), &scores)?));
        self.report.quality = Some(report);
        Ok(())
    }
}
