//! Every way a report can fail: its sources cannot be read, or it cannot be written.

use std::path::PathBuf;

/// A failure of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A line of a metrics file that is no JSON object.
    #[error("{path}:{line}: {reason}", path = path.display())]
    Metrics {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// Storage failed.
    #[error(transparent)]
    Record(#[from] aloe_record::Error),
}
