//! The steps that read the sources: first every row is checked, then they are taken, those that the check kept as they are, the others by
//! reading their files again.

use super::Run;
use super::ledger::Entry;
use crate::check::{self, Kept, known_dialect, layout};
use crate::dialect::{self, Dialect, Unused, help_steer};
use crate::source::{self, DataFile};
use crate::{Error, Item, Result, RowError, SourceConfig};
use aloe_record::{Progress, digest};
use aloe_task::rows::Row;
use std::cmp::Ordering;
use std::collections::{BTreeSet, VecDeque};
use std::sync::OnceLock;
use xxhash_rust::xxh3::xxh3_64;

/// The rule that drops a pair whose chosen side is rated below its rejected one.
const RATED_BELOW: &str = "chosen_rated_below_rejected";

/// The rated rows of a source's files, with their ids.
#[derive(Default)]
struct Rated {
    rows: Vec<Row>,
    ids: Vec<String>,
}

/// What a row of a file is made into, apart from the others.
#[allow(
    clippy::large_enum_variant,
    reason = "nearly all are items, and a box each would be memory to ask for and give back"
)]
pub(crate) enum Made {
    Broken(RowError),
    /// An item and further ones of the same row; how its ratings compare comes with it.
    Items(Dialect, Item, Vec<Item>, Option<Ordering>),
    /// It becomes something with other rows alone, of its file or its source.
    Row(Row),
}

impl Made {
    /// About what it takes in memory.
    pub(crate) fn n_bytes(&self) -> usize {
        match self {
            Made::Broken(_) => 0,
            Made::Items(_, item, others, _) => item.n_bytes() + others.iter().map(Item::n_bytes).sum::<usize>(),
            Made::Row(row) => source::size_of(row),
        }
    }
}

/// Makes something of a row and notes its unread columns; `dialect` is known once there was a row that can be read.
pub(crate) fn made(
    row: Result<Row, RowError>,
    dialect: Option<Dialect>,
    index: usize,
    config: &SourceConfig,
    file: &DataFile,
    unused: &Unused,
) -> Made {
    let (row, dialect) = match (row, dialect) {
        (Err(error), _) => return Made::Broken(error),
        (Ok(row), Some(dialect)) => (row, dialect),
        (Ok(_), None) => unreachable!("a row that can be read has told the layout"),
    };
    if dialect.is_by_file() {
        unused.note(dialect, &row, config);
        return Made::Row(row);
    }
    match dialect::items(dialect, &row, index, id(config, file, &row.at), config) {
        Ok((item, others)) => {
            unused.note(dialect, &row, config);
            Made::Items(dialect, item, others, dialect::rated(dialect, &row))
        }
        Err(error) => Made::Broken(with_raw(error, &row)),
    }
}

impl Run<'_> {
    /// Without a quarantine a single broken row ends the stage, so all rows are read once before any is taken. Gives the files, the first
    /// ones in their order, whose rows the check could keep in `room` bytes.
    pub(super) fn check_sources(&mut self, progress: &Progress, mut room: usize) -> Result<VecDeque<Kept>> {
        let mut kept = VecDeque::new();
        if self.config.quarantine.is_on() {
            return Ok(kept);
        }
        for (source, config) in self.config.sources.iter().enumerate() {
            for file in source::files(&config.path)? {
                progress.message(&format!("checking {}", file.label));
                let (n_threads, problems) = (self.n_threads, &mut self.problems);
                let checked = check::file(config, &file, n_threads, &mut room, self.cancel, problems)?;
                if checked.known == Some(Dialect::RedTeamSamples) {
                    self.read_safe_answers(source)?;
                }
                kept.extend(checked.kept);
            }
        }
        if self.problems.total > 0 {
            drop(kept);
            self.read_held_apart()?;
            self.stop_at_broken_rows()?;
            return Ok(VecDeque::new());
        }
        Ok(kept)
    }

    pub(super) fn read_sources(&mut self, progress: &Progress, mut kept: VecDeque<Kept>) -> Result<()> {
        for source in 0..self.config.sources.len() {
            let mut rated = Rated::default();
            for file in source::files(&self.config.sources[source].path)? {
                progress.message(&file.label);
                self.report.sources[source].files.insert(file.label.clone(), digest::file(&file.path)?);
                match kept.pop_front_if(|kept| kept.file == file) {
                    Some(kept) => self.take_kept(source, kept, &mut rated)?,
                    None => self.read_file(source, &file, &mut rated)?,
                }
            }
            self.take_rated(source, &rated);
            self.count_dialects(source);
            let (config, report) = (&self.config.sources[source], &mut self.report.sources[source]);
            report.skipped_files = source::skipped(&config.path)?;
            if let Some(expected) = config.expect_rows.filter(|expected| *expected != report.n_read) {
                return Err(Error::RowCount { name: config.name.clone(), expected, found: report.n_read });
            }
        }
        unique_ids(&self.items)
    }

    fn take_kept(&mut self, source: usize, kept: Kept, rated: &mut Rated) -> Result<()> {
        let mut together = Vec::new();
        for made in kept.rows.into_iter().flatten() {
            self.take_made(source, made, &mut together)?;
        }
        self.report.sources[source].count_unused(kept.unused);
        self.take_together(source, &kept.file, kept.known, together, rated)
    }

    fn read_file(&mut self, source: usize, file: &DataFile, rated: &mut Rated) -> Result<()> {
        let config = &self.config.sources[source];
        let (known, unused) = (OnceLock::new(), Unused::default());
        let mut first = |row: &Row| {
            let found = layout(&mut known_dialect(config), row, file, config)?;
            known.get_or_init(|| found);
            Ok(())
        };
        let make =
            |index: usize, row: Result<Row, RowError>| made(row, known.get().copied(), index, config, file, &unused);
        let mut together = Vec::new();
        source::read_on(&file.path, self.n_threads, &mut first, &make, &mut |made| {
            self.take_made(source, made, &mut together)
        })?;
        self.report.sources[source].count_unused(unused.into_columns());
        self.take_together(source, file, known.into_inner(), together, rated)
    }

    /// Takes what was made of a row; those of `together` are made into something at their file's end.
    fn take_made(&mut self, source: usize, made: Made, together: &mut Vec<Row>) -> Result<()> {
        let report = &mut self.report.sources[source];
        report.n_read += 1;
        if report.n_read.is_multiple_of(1024) {
            self.cancel.check()?;
        }
        match made {
            Made::Broken(error) => self.broken(source, error),
            Made::Items(dialect, item, others, rated) => self.take_all(source, dialect, item, others, rated),
            Made::Row(row) => together.push(row),
        }
        self.flush_when_full()
    }

    /// At a file's end: a run's judged answers are a file; rated rows wait for those of the source's other files.
    fn take_together(
        &mut self,
        source: usize,
        file: &DataFile,
        known: Option<Dialect>,
        rows: Vec<Row>,
        rated: &mut Rated,
    ) -> Result<()> {
        if known == Some(Dialect::RedTeamSamples) {
            return self.take_judged(source, file, &rows);
        }
        rated.ids.extend(rows.iter().map(|row| id(&self.config.sources[source], file, &row.at)));
        rated.rows.extend(rows);
        Ok(())
    }

    fn count_dialects(&mut self, source: usize) {
        for (dialect, n_rows) in std::mem::take(&mut self.n_by_dialect) {
            *self.report.sources[source].dialects.entry(dialect.name()).or_default() += n_rows;
        }
    }

    /// Keeps the items of a row, but for a pair whose ratings say that its sides stand the wrong way round.
    fn take_all(&mut self, source: usize, dialect: Dialect, item: Item, others: Vec<Item>, rated: Option<Ordering>) {
        let report = &mut self.report.sources[source];
        report.n_equal_rating += usize::from(rated == Some(Ordering::Equal));
        report.n_made += others.len();
        for item in std::iter::once(item).chain(others) {
            if rated == Some(Ordering::Less) && self.config.rules.chosen_rated_below_rejected {
                self.report.sources[source].count_drop(RATED_BELOW);
                self.ledger.push(Entry::without_item(item.id, source, "dropped", RATED_BELOW));
            } else {
                self.take(source, dialect, Ok(item));
            }
        }
    }

    /// Keeps an item or counts a broken row.
    pub(super) fn take(&mut self, source: usize, dialect: Dialect, made: Result<Item, RowError>) {
        match made {
            Ok(mut item) => {
                *self.n_by_dialect.entry(dialect).or_default() += 1;
                item.source = source;
                if let Some(before) = self.items.last() {
                    item.share(before);
                }
                self.items.push(item);
            }
            Err(error) => self.broken(source, error),
        }
    }

    /// Pairs of a source's rated rows, once all of its files are read: the rows of a prompt may stand in several.
    fn take_rated(&mut self, source: usize, rated: &Rated) {
        let config = &self.config.sources[source];
        let Rated { rows, ids } = rated;
        let grouped = help_steer::group(rows, config.rating_gap.unwrap_or(1));
        for (row, error) in grouped.broken {
            self.broken(source, with_raw(error, &rows[row]));
        }
        for (row, body) in grouped.pairs {
            let made = dialect::finish(Dialect::HelpSteer, &rows[row], ids[row].clone(), config, body, None);
            self.take(source, Dialect::HelpSteer, made);
        }
        for (rule, dropped) in [("merged_into_pair", grouped.merged), ("no_rating_gap", grouped.no_gap)] {
            for row in dropped {
                self.report.sources[source].count_drop(rule);
                self.ledger.push(Entry::without_item(ids[row].clone(), source, "dropped", rule));
            }
        }
    }
}

/// An id is what a row is drawn, weighted, kept by a verdict and accounted for by.
fn unique_ids(items: &[Item]) -> Result<()> {
    // By hash, as a set of a million ids would take more than their rows' other state.
    let hash = |item: &Item| xxh3_64(item.id.as_bytes());
    let mut hashes: Vec<u64> = items.iter().map(hash).collect();
    hashes.sort_unstable();
    let twice: Vec<u64> = hashes.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
    drop(hashes);
    let mut seen = BTreeSet::new();
    let mut may_repeat = items.iter().filter(|item| !twice.is_empty() && twice.binary_search(&hash(item)).is_ok());
    match may_repeat.find(|item| !seen.insert(item.id.as_str())) {
        Some(item) => Err(Error::RepeatedId { at: item.at.to_string(), id: item.id.clone() }),
        None => Ok(()),
    }
}

/// `source/file:line`.
pub(crate) fn id(config: &SourceConfig, file: &DataFile, at: &str) -> String {
    let prefix = file.path.to_string_lossy();
    let inside = at.strip_prefix(&*prefix).unwrap_or(at);
    [config.name.as_str(), "/", &file.label, inside].concat()
}

/// The broken row with its text, so that a quarantine loses nothing.
pub(crate) fn with_raw(error: RowError, row: &Row) -> RowError {
    let raw = error.raw.clone().or_else(|| serde_json::to_string(&row.columns).ok());
    RowError { raw, ..error }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Body, Place};
    use aloe_text::Conversation;

    fn check(ids: &[&str]) -> Option<String> {
        let item = |(line, id): (usize, &&str)| Item {
            id: (*id).to_owned(),
            at: Place::of(&format!("f:{}", line + 1)),
            source: 0,
            task: String::new(),
            subject: String::new(),
            question: None,
            stage: None,
            group: None,
            style: None,
            made: None,
            licence: None,
            split: None,
            body: Body::Conversation(Conversation { messages: Vec::new() }),
        };
        let items: Vec<Item> = ids.iter().enumerate().map(item).collect();
        unique_ids(&items).err().map(|error| error.to_string())
    }

    #[test]
    fn two_rows_of_one_id_are_refused_with_the_place_of_the_second() {
        assert_eq!(check(&["s/a:1", "s/a:2", "t/a:1"]), None);
        let text = check(&["s/a:1", "s/a:2", "s/a:3", "s/a:2"]).unwrap();
        assert!(text.starts_with("f:4: another row has the id s/a:2"), "{text}");
    }
}
