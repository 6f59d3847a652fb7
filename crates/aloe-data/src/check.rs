//! What a file's rows are: their layout, found from one of the first or named by the recipe, and what each of them must be.

use crate::dialect::{Dialect, answer_keys, help_steer, own_answers};
use crate::source::DataFile;
use crate::{Error, Result, RowError, SourceConfig};
use aloe_task::rows::Row;

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

/// What is wrong with a row that becomes something with the others of its file, as far as it tells alone.
pub(crate) fn problem_alone(dialect: Option<Dialect>, row: &Row) -> Option<RowError> {
    let alone = std::slice::from_ref(row);
    let broken = match dialect {
        Some(Dialect::RedTeamSamples) => own_answers::pairs(alone, &own_answers::SafeAnswers::default()).broken,
        _ => help_steer::group(alone, 1).broken,
    };
    broken.into_iter().next().map(|(_, error)| error)
}
