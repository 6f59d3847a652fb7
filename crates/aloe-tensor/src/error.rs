//! What can fail here: only files. Shape mismatches are bugs of the caller and assert.

use std::path::PathBuf;

/// A file could not be mapped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Opening or mapping failed.
    #[error("cannot map {path}: {source}")]
    Map {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}
