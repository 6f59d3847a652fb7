//! The step that makes pairs of a red-team run's judged answers, and of the safe answers given beside them.

use super::{Entry, Run, id, with_raw};
use crate::check::dialect_of;
use crate::dialect::own_answers::{self, SafeAnswers};
use crate::dialect::{self, Dialect};
use crate::source::{self, DataFile};
use crate::{Item, Rare, Result, RowError, SourceConfig};
use aloe_record::digest;
use aloe_task::rows::Row;
use std::path::Path;

/// The safe answers that a source names, and the broken rows among them.
fn safe_answers(config: &SourceConfig) -> Result<(SafeAnswers, Vec<RowError>)> {
    let (mut safe, mut broken) = (SafeAnswers::default(), Vec::new());
    let Some(path) = &config.safe_answers else { return Ok((safe, broken)) };
    for file in source::files(path)? {
        let mut known = None;
        source::read(&file.path, &mut |row| {
            let added = row.and_then(|row| {
                let dialect = match dialect_of(&mut known, &row, &file) {
                    Ok(dialect) => dialect,
                    Err(error) => return Ok(Err(error)),
                };
                let item = dialect::item(dialect, &row, 0, String::new(), &SourceConfig::plain());
                item.and_then(|item| safe.add(&item)).map_err(|error| with_raw(error, &row))?;
                Ok(Ok(()))
            });
            match added {
                Ok(stopped) => stopped,
                Err(error) => {
                    broken.push(error);
                    Ok(())
                }
            }
        })?;
    }
    Ok((safe, broken))
}

impl Run<'_> {
    /// Reads the safe answers of a source, once: for all of its files, and for the check and the reading alike.
    pub(super) fn read_safe_answers(&mut self, source: usize) -> Result<()> {
        if self.safe_answers.contains_key(&source) {
            return Ok(());
        }
        let config = &self.config.sources[source];
        if let Some(path) = &config.safe_answers {
            for file in source::files(path)? {
                let name = format!("safe_answers/{}", file.label);
                self.report.sources[source].files.insert(name, digest::file(&file.path)?);
            }
        }
        let (safe, broken) = safe_answers(config)?;
        for error in broken {
            self.add_problem(error);
        }
        self.safe_answers.insert(source, safe);
        Ok(())
    }

    pub(super) fn take_judged(&mut self, source: usize, file: &DataFile, rows: &[Row]) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        self.read_safe_answers(source)?;
        let config = &self.config.sources[source];
        let none = SafeAnswers::default();
        let paired = own_answers::pairs(rows, self.safe_answers.get(&source).unwrap_or(&none));
        for (row, error) in paired.broken {
            self.broken(source, with_raw(error, &rows[row]));
        }
        for one in paired.pairs {
            let row = &rows[one.row];
            let made = dialect::finish(Dialect::RedTeamSamples, row, id(config, file, &row.at), config, one.body, None);
            let made = made.map(|item| Item {
                rare: Rare {
                    group: Some(one.group),
                    style: Some(one.style.name().to_owned()),
                    made: Some(one.made.to_owned()),
                    ..item.rare().clone()
                }
                .boxed(),
                ..item
            });
            self.take(source, Dialect::RedTeamSamples, made);
        }
        for (row, rule) in paired.left_out {
            self.report.sources[source].count_drop(rule);
            self.ledger.push(Entry::without_item(id(config, file, &rows[row].at), source, "dropped", rule));
        }
        Ok(())
    }
}

/// The folder of a finished stage holds more than rows; only these are a source. `None` for any other folder.
pub(crate) fn stage_rows(folder: &Path) -> Option<&'static str> {
    let rows = ["train.jsonl", "samples.jsonl"];
    let is_finished = folder.join("record.json").is_file();
    rows.into_iter().find(|name| is_finished && folder.join(name).is_file())
}

#[cfg(test)]
mod tests;
