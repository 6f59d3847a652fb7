//! The step that reads the sources: every row is read and checked once, and kept as what it is made into, until one is broken that no quarantine
//! takes: then those kept are let go, and the rest is read for the account of the broken ones alone.
//!
//! A large set whose only broken row is its last would be held whole until then. So what is kept without a quarantine before all rows are
//! known to be sound is bounded ([`Run::most_unchecked`]): beyond that the rest is checked first, and where no row was broken all is read again.

use super::Run;
use super::ledger::Entry;
use crate::check::{known_dialect, layout, problem_alone};
use crate::dialect::{self, Dialect, Unused, help_steer};
use crate::source::{self, DataFile, Source};
use crate::{About, Error, Item, Place, Result, RowError, SourceConfig};
use aloe_record::Progress;
use aloe_task::Question;
use aloe_task::rows::Row;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
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
enum Made {
    Broken(RowError),
    /// An item and further ones of the same row; how its ratings compare comes with it.
    Items(Dialect, Item, Vec<Item>, Option<Ordering>),
    /// It becomes something with other rows alone, of its file or its source.
    Row(Row),
}

/// Bytes that a row takes beside its texts, about.
const N_BESIDE: usize = 256;

impl Made {
    /// Bytes that keeping it takes, about.
    fn n_bytes(&self) -> usize {
        let of_question = |question: &Question| {
            let texts = question.choices.iter().map(String::len).sum::<usize>() + question.stem.len();
            texts + question.context.iter().chain(&question.explanation).map(String::len).sum::<usize>()
        };
        let of_item = |item: &Item| {
            let of_messages = item.each_message().map(|message| message.content.len()).sum::<usize>();
            N_BESIDE + of_messages + item.question.as_deref().map_or(0, of_question)
        };
        match self {
            Made::Broken(_) => 0,
            Made::Items(_, item, others, _) => of_item(item) + others.iter().map(of_item).sum::<usize>(),
            Made::Row(row) => N_BESIDE + source::n_bytes(&row.columns),
        }
    }
}

/// Makes something of a row and notes its unread columns; `dialect` is known once there was a row that can be read.
fn made(
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
    /// Where a row is broken and no quarantine is there, nothing is left but the account of the broken ones, which `stop_at_broken_rows` tells.
    pub(super) fn read_sources(&mut self, progress: &Progress) -> Result<()> {
        self.read_all(progress)?;
        if !self.is_kept && self.problems.total == 0 {
            let reviewed = std::mem::take(&mut self.reviewed);
            *self = Run { reviewed, most_unchecked: usize::MAX, ..Run::new(self.config, self.n_threads, self.cancel) };
            self.read_all(progress)?;
        }
        // What is wrong with a source as a whole is told when none of its rows is.
        if self.is_kept { self.check_read() } else { Ok(()) }
    }

    pub(super) fn read_all(&mut self, progress: &Progress) -> Result<()> {
        for source in 0..self.config.sources.len() {
            let mut rated = Rated::default();
            for file in source::files(&self.config.sources[source].path)? {
                progress.message(&file.label);
                let opened = Source::hashed(&file.path)?;
                self.read_file(source, &file, &opened, &mut rated)?;
                let digest = opened.digest()?;
                self.report.sources[source].files.extend(digest.map(|digest| (file.label, digest)));
            }
            if self.is_kept {
                self.take_rated(source, &rated);
            }
            self.count_dialects(source);
        }
        Ok(())
    }

    fn check_read(&mut self) -> Result<()> {
        for (config, report) in self.config.sources.iter().zip(&mut self.report.sources) {
            report.skipped_files = source::skipped(&config.path)?;
            if let Some(expected) = config.expect_rows.filter(|expected| *expected != report.n_read) {
                return Err(Error::RowCount { name: config.name.clone(), expected, found: report.n_read });
            }
        }
        unique_ids(&self.items)
    }

    fn read_file(&mut self, source: usize, file: &DataFile, opened: &Source, rated: &mut Rated) -> Result<()> {
        let config = &self.config.sources[source];
        let (known, unused) = (OnceLock::new(), Unused::default());
        let mut first = |row: &Row| {
            let found = layout(&mut known_dialect(config), row, file, config)?;
            known.get_or_init(|| found);
            Ok(())
        };
        let (is_strict, is_kept) = (!self.config.quarantine.is_on(), AtomicBool::new(self.is_kept));
        // Of the file's first row; most say the same. What is not kept, or held already, is freed where it was made.
        let usual: OnceLock<(Place, Arc<About>)> = OnceLock::new();
        let n_unchecked = AtomicUsize::new(self.n_unchecked);
        let make = |index: usize, row: Result<Row, RowError>| {
            let dialect = known.get().copied();
            let made = match made(row, dialect, index, config, file, &unused) {
                Made::Items(dialect, mut item, others, rated) => {
                    let (at, about) = usual.get_or_init(|| (item.at.clone(), Arc::clone(&item.about)));
                    item.at.share(at);
                    item.shares_about(about);
                    Made::Items(dialect, item, others, rated)
                }
                Made::Row(row) if is_strict => problem_alone(dialect, &row).map_or(Made::Row(row), Made::Broken),
                made => made,
            };
            n_unchecked.fetch_add(made.n_bytes(), Relaxed);
            (is_kept.load(Relaxed) || matches!(made, Made::Broken(_))).then_some(made)
        };
        let mut together = Vec::new();
        source::read_on(opened, self.n_threads, &mut first, &make, &mut |made| {
            self.take_made(source, made, &mut together)?;
            if self.is_kept && n_unchecked.load(Relaxed) > self.most_unchecked {
                self.keep_none();
            }
            if !self.is_kept {
                is_kept.store(false, Relaxed);
                opened.hash_no_more();
                together = Vec::new();
            }
            Ok(())
        })?;
        self.n_unchecked = n_unchecked.into_inner();
        if !self.is_kept {
            *rated = Rated::default();
        }
        self.report.sources[source].count_unused(unused.into_columns());
        self.take_together(source, file, known.into_inner(), together, rated)
    }

    pub(super) fn broken(&mut self, source: usize, error: RowError) {
        self.report.sources[source].n_broken += 1;
        self.add_problem(error);
    }

    /// Without a quarantine nothing becomes of the rows any more, and their memory is given back.
    pub(super) fn add_problem(&mut self, error: RowError) {
        self.problems.add(error.clone());
        if !self.config.quarantine.is_on() {
            self.keep_none();
        } else if self.sink.is_none() {
            // A shard writes no quarantine; that is the run's that takes its merge.
            self.quarantined.push(error);
        }
    }

    fn keep_none(&mut self) {
        self.is_kept = false;
        (self.items, self.ledger) = (Vec::new(), Vec::new());
    }

    /// Takes what was made of a row, nothing of one that is sound and not kept; those of `together` are made into something at their file's end.
    fn take_made(&mut self, source: usize, made: Option<Made>, together: &mut Vec<Row>) -> Result<()> {
        let report = &mut self.report.sources[source];
        report.n_read += 1;
        if report.n_read.is_multiple_of(1024) {
            self.cancel.check()?;
        }
        match made {
            Some(Made::Broken(error)) => self.broken(source, error),
            _ if !self.is_kept => {}
            Some(Made::Items(dialect, item, others, rated)) => self.take_all(source, dialect, item, others, rated),
            Some(Made::Row(row)) => together.push(row),
            None => {}
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
            // Broken safe answers are told beside broken rows.
            return if self.is_kept { self.take_judged(source, file, &rows) } else { self.read_safe_answers(source) };
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
            Ok(_) if !self.is_kept => {}
            Ok(mut item) => {
                *self.n_by_dialect.entry(dialect).or_default() += 1;
                item.source = source;
                self.alike.share(&mut item, self.items.last());
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
    use crate::Body;
    use aloe_text::Conversation;

    fn check(ids: &[&str]) -> Option<String> {
        let item = |(line, id): (usize, &&str)| {
            let body = Body::Conversation(Conversation { messages: Vec::new() });
            Item { at: Place::of(&format!("f:{}", line + 1)), ..Item::plain(*id, body) }
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
