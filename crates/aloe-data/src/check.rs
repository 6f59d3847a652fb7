//! Reads every row of a file before any becomes part of the stage: for the account of the broken ones, and, as long as there is none and
//! there is room, for the rows themselves, which are not read a second time then.

use crate::data::{Made, made};
use crate::dialect::{Dialect, Unused, answer_keys, help_steer, own_answers};
use crate::source::{self, DataFile};
use crate::{Error, Problems, Result, RowError, SourceConfig};
use aloe_record::Cancel;
use aloe_task::rows::Row;
use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes of rows, by their own account, that all checked files together keep: so much and a batch of rows is the memory of a refusal,
/// whatever the size of the files; with rows of a line that is below 256 MiB.
pub(crate) const MOST_KEPT_BYTES: usize = 176 << 20;

/// What checking a file gives beside its broken rows.
pub(crate) struct Checked {
    /// Its layout, unless all rows are broken.
    pub(crate) known: Option<Dialect>,
    /// Its rows, if all of them are kept.
    pub(crate) kept: Option<Kept>,
}

/// The rows of a file, which need not be read again.
pub(crate) struct Kept {
    pub(crate) file: DataFile,
    pub(crate) known: Option<Dialect>,
    /// Columns of its rows that nothing reads, as [`Unused::into_columns`].
    pub(crate) unused: BTreeMap<String, bool>,
    /// In blocks, each freed once it is taken.
    pub(crate) rows: Vec<Vec<Made>>,
}

/// Rows of a block.
const N_BLOCK: usize = 1024;

/// The layout that the recipe names.
pub(crate) fn known_dialect(config: &SourceConfig) -> Option<Dialect> {
    if config.columns.is_empty() { config.dialect } else { Some(Dialect::Mapped) }
}

/// The layout of a file's rows, found from one of the first; of MedMCQA's from all.
pub(crate) fn dialect_of(known: &mut Option<Dialect>, row: &Row, file: &DataFile) -> Result<Dialect> {
    if let Some(known) = *known {
        return Ok(known);
    }
    let found = match Dialect::detect(row)? {
        Dialect::Medmcqa => answer_keys::medmcqa(&file.path)?,
        found => found,
    };
    Ok(*known.insert(found))
}

/// As [`dialect_of`], for a source: settings that the layout would ignore are refused.
pub(crate) fn layout(
    known: &mut Option<Dialect>,
    row: &Row,
    file: &DataFile,
    config: &SourceConfig,
) -> Result<Dialect> {
    let found = dialect_of(known, row, file)?;
    let mistakes: Vec<String> = config.ignored_by(found).map(|key| config.ignored(key, found, &file.label)).collect();
    if mistakes.is_empty() { Ok(found) } else { Err(Error::Config { mistakes }) }
}

impl SourceConfig {
    /// The settings, by key, that rows of a layout do not look at.
    pub(crate) fn ignored_by(&self, dialect: Dialect) -> impl Iterator<Item = &'static str> {
        let of_samples = self.safe_answers.is_some() && dialect != Dialect::RedTeamSamples;
        let of_ratings = self.rating_gap.is_some() && dialect != Dialect::HelpSteer;
        let keys = [of_samples.then_some("safe_answers"), of_ratings.then_some("rating_gap")];
        keys.into_iter().flatten()
    }

    pub(crate) fn ignored(&self, key: &str, dialect: Dialect, of: &str) -> String {
        let wanted = if key == "rating_gap" { Dialect::HelpSteer } else { Dialect::RedTeamSamples };
        let (name, wanted, found) = (&self.name, wanted.name(), dialect.name());
        format!("source `{name}`: `{key}` is for rows of the layout `{wanted}`, not `{found}` ({of})")
    }
}

/// Counts a file's broken rows. Its sound ones are kept while there is `room` for them, in bytes; a broken row or a lack of room ends that
/// for this file and all that follow.
pub(crate) fn file(
    config: &SourceConfig,
    file: &DataFile,
    n_threads: usize,
    room: &mut usize,
    cancel: &Cancel,
    problems: &mut Problems,
) -> Result<Checked> {
    let (known, unused) = (OnceLock::new(), Unused::default());
    let mut first = |row: &Row| {
        let found = layout(&mut known_dialect(config), row, file, config)?;
        known.get_or_init(|| found);
        Ok(())
    };
    let is_kept = AtomicBool::new(*room > 0);
    let make = |index: usize, row: Result<Row, RowError>| {
        let made = made(row, known.get().copied(), index, config, file, &unused);
        let broken = match made {
            Made::Broken(error) => return (vec![error], None),
            Made::Row(ref row) => problems_alone(known.get().copied(), row),
            Made::Items(..) => Vec::new(),
        };
        // What is not kept is freed where it was made, and what is kept is measured there.
        let is_kept = broken.is_empty() && is_kept.load(Ordering::Relaxed);
        (broken, is_kept.then(|| (made.n_bytes(), made)))
    };
    let (mut n_rows, mut rows) = (0, Vec::<Vec<Made>>::new());
    source::read_on(&file.path, n_threads, &mut first, &make, &mut |(broken, kept)| {
        n_rows += 1;
        if n_rows % 1024 == 0 {
            cancel.check()?;
        }
        let n_bytes = kept.as_ref().map_or(0, |(n_bytes, _)| *n_bytes);
        if !broken.is_empty() || n_bytes > *room {
            is_kept.store(false, Ordering::Relaxed);
            (rows, *room) = (Vec::new(), 0);
        }
        broken.into_iter().for_each(|error| problems.add(error));
        if let Some((n_bytes, made)) = kept.filter(|_| is_kept.load(Ordering::Relaxed)) {
            *room -= n_bytes;
            match rows.last_mut().filter(|block| block.len() < N_BLOCK) {
                Some(block) => block.push(made),
                None => {
                    let mut block = Vec::with_capacity(N_BLOCK);
                    block.push(made);
                    rows.push(block);
                }
            }
        }
        Ok(())
    })?;
    let (known, unused) = (known.into_inner(), unused.into_columns());
    let kept = is_kept.into_inner().then(|| Kept { file: file.clone(), known, unused, rows });
    Ok(Checked { known, kept })
}

/// What is wrong with a row that becomes something with the others of its file, as far as it tells alone.
fn problems_alone(dialect: Option<Dialect>, row: &Row) -> Vec<RowError> {
    let alone = std::slice::from_ref(row);
    let broken = match dialect {
        Some(Dialect::RedTeamSamples) => own_answers::pairs(alone, &own_answers::SafeAnswers::default()).broken,
        _ => help_steer::group(alone, 1).broken,
    };
    broken.into_iter().map(|(_, error)| error).collect()
}
