//! Every way reading or writing a stage's files can fail.

use std::path::{Path, PathBuf};

/// A failure of storage, or of a file that does not hold what it promised.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused an operation on a file.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried, as a verb: `read`, `write`, `rename`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A JSON file that does not parse, or lacks a field.
    #[error("{path}: {reason}", path = path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        reason: String,
    },
    /// A log whose middle is damaged, or that another process holds.
    #[error("{path}: {reason}", path = path.display())]
    Log {
        /// The log file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The user asked to stop.
    #[error("interrupted")]
    Cancelled,
}

impl Error {
    /// A closure for `map_err` that adds the action and the path to an I/O error.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error + use<> {
        let path = path.to_path_buf();
        move |source| Error::Io { action, path, source }
    }

    /// Whether the cause is storage (exit code 4) rather than input.
    pub fn is_storage(&self) -> bool {
        matches!(self, Error::Io { source, .. } if is_storage(source))
    }
}

/// Whether the system refused for want of room or because the disk fails, rather than because of what was asked: a full disk,
/// a quota, a limit on file size, a read-only file system, EIO.
pub fn is_storage(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    const EIO: i32 = 5;
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge | ReadOnlyFilesystem)
        || error.raw_os_error() == Some(EIO)
}
