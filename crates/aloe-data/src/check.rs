//! Reads every row of a file and keeps none, only the account of the broken ones: what a stage does before it takes anything
//! into memory.

use crate::data::id;
use crate::data::own_answers::safe_answers;
use crate::dialect::{self, Dialect, answer_keys, help_steer, own_answers};
use crate::source::{self, DataFile};
use crate::{Problems, Result, SourceConfig};
use aloe_record::Cancel;
use aloe_task::rows::Row;

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

/// Counts a file's broken rows and keeps none.
pub(crate) fn file(config: &SourceConfig, file: &DataFile, cancel: &Cancel, problems: &mut Problems) -> Result<()> {
    let mut dialect = known_dialect(config);
    let mut index = 0;
    source::read(&file.path, &mut |row| {
        index += 1;
        if index % 1024 == 0 {
            cancel.check()?;
        }
        let row = match row {
            Ok(row) => row,
            Err(error) => {
                problems.add(error);
                return Ok(());
            }
        };
        let dialect = dialect_of(&mut dialect, &row, file)?;
        if dialect == Dialect::RedTeamSamples {
            let broken = own_answers::pairs(std::slice::from_ref(&row), &own_answers::SafeAnswers::default()).broken;
            broken.into_iter().for_each(|(_, error)| problems.add(error));
        } else if dialect == Dialect::HelpSteer {
            help_steer::group(std::slice::from_ref(&row), 1)
                .broken
                .into_iter()
                .for_each(|(_, error)| problems.add(error));
        } else if let Err(error) = dialect::item(dialect, &row, index - 1, id(config, file, &row.at), config) {
            problems.add(error);
        }
        Ok(())
    })?;
    if dialect == Some(Dialect::RedTeamSamples) {
        safe_answers(config)?.1.into_iter().for_each(|error| problems.add(error));
    }
    Ok(())
}
