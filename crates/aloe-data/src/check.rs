//! Reads every row of a file and keeps none, only the account of the broken ones: what a stage does before it takes anything
//! into memory.

use crate::data::id;
use crate::dialect::{self, Dialect, answer_keys, help_steer, own_answers};
use crate::source::{self, DataFile};
use crate::{Error, Problems, Result, RowError, SourceConfig};
use aloe_record::Cancel;
use aloe_task::rows::Row;
use std::sync::OnceLock;

/// The layout that the recipe names.
pub(crate) fn known_dialect(config: &SourceConfig) -> Option<Dialect> {
    if config.columns.is_empty() { config.dialect } else { Some(Dialect::Mapped) }
}

/// The layout of a file's rows, found from the first; of MedMCQA's from all.
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

/// Counts a file's broken rows and keeps none; gives its layout, unless all rows are broken.
pub(crate) fn file(
    config: &SourceConfig,
    file: &DataFile,
    n_threads: usize,
    cancel: &Cancel,
    problems: &mut Problems,
) -> Result<Option<Dialect>> {
    let known = OnceLock::new();
    let mut first = |row: &Row| {
        let found = layout(&mut known_dialect(config), row, file, config)?;
        known.get_or_init(|| found);
        Ok(())
    };
    let make = |index: usize, row: Result<Row, RowError>| match (row, known.get()) {
        (Err(error), _) => vec![error],
        (Ok(row), Some(dialect)) => problems_of(*dialect, &row, index, config, file),
        (Ok(_), None) => unreachable!("the first row that can be read has told the layout"),
    };
    let mut n_rows = 0;
    source::read_on(&file.path, n_threads, &mut first, &make, &mut |found| {
        n_rows += 1;
        if n_rows % 1024 == 0 {
            cancel.check()?;
        }
        found.into_iter().for_each(|error| problems.add(error));
        Ok(())
    })?;
    Ok(known.into_inner())
}

fn problems_of(dialect: Dialect, row: &Row, index: usize, config: &SourceConfig, file: &DataFile) -> Vec<RowError> {
    let alone = std::slice::from_ref(row);
    let of_file = |broken: Vec<(usize, RowError)>| broken.into_iter().map(|(_, error)| error).collect();
    match dialect {
        Dialect::RedTeamSamples => of_file(own_answers::pairs(alone, &own_answers::SafeAnswers::default()).broken),
        Dialect::HelpSteer => of_file(help_steer::group(alone, 1).broken),
        _ => dialect::items(dialect, row, index, id(config, file, &row.at), config).err().into_iter().collect(),
    }
}
