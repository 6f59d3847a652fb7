//! Every way reading, writing or running a model can fail.
//!
//! A message names the file, the tensor or the config key, and says what was expected and what was found.

use std::path::{Path, PathBuf};

/// A failure of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused an operation on a file.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Storage, or the user's interruption.
    #[error(transparent)]
    Record(#[from] aloe_record::Error),
    /// A file that cannot be mapped.
    #[error(transparent)]
    Map(#[from] aloe_tensor::Error),
    /// A model file that is damaged, lies about itself, or uses what is not supported.
    #[error("{path}: {reason}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// One tensor of a model file that cannot be used.
    #[error("{path}: tensor {name}: {reason}", path = path.display())]
    Tensor {
        /// The file or folder.
        path: PathBuf,
        /// The tensor's name in the file.
        name: String,
        /// What is wrong, with expected and found.
        reason: String,
    },
    /// A file that would run code when it is loaded.
    #[error(
        "{path} is {kind}: loading it can run any code, so it is refused; convert it where you trust it, with \
         `python3 -c \"from transformers import AutoModelForCausalLM as M; \
         M.from_pretrained('FOLDER').save_pretrained('OUT', safe_serialization=True)\"`, or take the repository's safetensors files",
        path = path.display()
    )]
    Pickle {
        /// The file.
        path: PathBuf,
        /// What the content shows it to be.
        kind: &'static str,
    },
    /// A key of `config.json` (or of GGUF metadata) that is missing, malformed or not supported.
    #[error("config: {key}: {reason}")]
    Config {
        /// The key.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// A weight that is NaN or infinite.
    #[error("tensor {name}: element {index} is {value}: the weights are damaged or the training diverged")]
    NonFinite {
        /// The tensor.
        name: String,
        /// Position in row-major order.
        index: usize,
        /// The value found.
        value: f32,
    },
    /// Token ids, positions or sizes that the model cannot take.
    #[error("{0}")]
    Input(String),
}

impl Error {
    /// A closure for `map_err` that adds the action and the path to an I/O error.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error + use<> {
        let path = path.to_path_buf();
        move |source| Error::Io { action, path, source }
    }

    pub(crate) fn file(path: &Path, reason: impl Into<String>) -> Error {
        Error::File { path: path.to_path_buf(), reason: reason.into() }
    }

    pub(crate) fn tensor(path: &Path, name: &str, reason: impl Into<String>) -> Error {
        Error::Tensor { path: path.to_path_buf(), name: shortened(name), reason: reason.into() }
    }

    pub(crate) fn config(key: &str, reason: impl Into<String>) -> Error {
        Error::Config { key: key.to_string(), reason: reason.into() }
    }

    /// Whether the cause is storage (exit code 4) rather than input.
    pub fn is_storage(&self) -> bool {
        match self {
            Error::Record(error) => error.is_storage(),
            Error::Io { source, .. } => {
                matches!(
                    source.kind(),
                    std::io::ErrorKind::StorageFull
                        | std::io::ErrorKind::QuotaExceeded
                        | std::io::ErrorKind::ReadOnlyFilesystem
                ) || source.raw_os_error() == Some(5)
            }
            _ => false,
        }
    }
}

/// A name from a file, cut to what fits on a screen: hostile files have names of megabytes.
pub(crate) fn shortened(name: &str) -> String {
    cut(name, 120)
}

/// The same for a parser's message, which may quote such a name and says where at its end.
pub(crate) fn shortened_message(message: &str) -> String {
    cut(message, 400)
}

fn cut(text: &str, max_chars: usize) -> String {
    if text.len() <= max_chars || text.chars().nth(max_chars).is_none() {
        return text.to_string();
    }
    text.chars().take(max_chars - 3).chain("...".chars()).collect()
}
