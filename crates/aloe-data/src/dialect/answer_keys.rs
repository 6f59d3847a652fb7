//! Whether a MedMCQA file counts its answer key `cop` from 0 (the Hub's columns) or from 1 (the original files). The columns are the
//! same and file names are no evidence, so the keys of the whole file decide: 0 is found only in the one form, 4 only in the other.

use super::Dialect;
use crate::{Error, Result, source};
use std::path::Path;

/// The layout of the MedMCQA file at `path`; refused where its keys hold neither 0 nor 4, or both.
pub(crate) fn medmcqa(path: &Path) -> Result<Dialect> {
    let (mut has_0, mut has_4) = (false, false);
    source::read(path, &mut |row| {
        // Broken rows and other keys are named when the rows are read; -1 hides the key of the Hub's test split.
        match row.ok().and_then(|row| row.integer("cop").ok()) {
            Some(-1 | 0) => has_0 = true,
            Some(4) => has_4 = true,
            _ => {}
        }
        Ok(())
    })?;
    match (has_0, has_4) {
        (true, false) => Ok(Dialect::Medmcqa),
        (false, true) => Ok(Dialect::MedmcqaOneBased),
        (has_both, _) => {
            Err(Error::AnswerKeys { path: path.to_path_buf(), found: if has_both { "both" } else { "neither" } })
        }
    }
}
