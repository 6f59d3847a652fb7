//! Every way reading a merge configuration or merging can fail.

use std::path::{Path, PathBuf};

/// One mistake in a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Line in the file, from 1.
    pub line: usize,
    /// What is wrong and what would be right.
    pub text: String,
}

/// A failed merge.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration holds mistakes: all of them, in the order of their lines.
    #[error("{}: {}", path.display(), listed(mistakes))]
    Config {
        /// The YAML file.
        path: PathBuf,
        /// The mistakes, at least one.
        mistakes: Vec<Mistake>,
    },
    /// Points of a search that nothing can be merged with.
    #[error("{n_refused} of the {n_points} points of the search cannot be merged:{reasons}{}", if *n_refused > 5 { "\n  ..." } else { "" })]
    Points {
        /// How many.
        n_refused: usize,
        /// Of how many.
        n_points: usize,
        /// The first of them, a line each.
        reasons: String,
    },
    /// A model folder that is absent or cannot take part in this merge.
    #[error("model {model}: {reason}")]
    Model {
        /// The model as the configuration names it.
        model: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A tensor that the models do not share in one shape, or that holds values that cannot be merged.
    #[error("tensor {tensor} of model {model}: {reason}")]
    Tensor {
        /// The tensor's name in the checkpoint.
        tensor: String,
        /// The model as the configuration names it.
        model: String,
        /// Expected and found.
        reason: String,
    },
    /// The result does not fit on the disk.
    #[error("the result needs {} and the disk of {} has {} free", size(*needed), path.display(), size(*free))]
    Disk {
        /// The folder that was to be written.
        path: PathBuf,
        /// Bytes of the result.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// The memory budget is smaller than what one thread works in.
    #[error("a memory budget of {} MiB is too small: this merge needs {} MiB", budget >> 20, needed.div_ceil(1 << 20))]
    Memory {
        /// Bytes allowed.
        budget: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// An input was written to while it was merged.
    #[error("{} was changed while it was merged: the result would be of two versions of it. Nothing was written; run the merge again", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// Reading or writing a checkpoint failed.
    #[error(transparent)]
    Checkpoint(#[from] aloe_model::Error),
    /// Storage failed, or the user asked to stop.
    #[error(transparent)]
    Record(#[from] aloe_record::Error),
}

impl Error {
    /// A closure for `map_err` that adds the action and the path to an I/O error.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error + use<> {
        let wrap = aloe_record::Error::io(action, path);
        move |source| Error::Record(wrap(source))
    }

    pub(crate) fn model(model: &str, reason: impl Into<String>) -> Self {
        Self::Model { model: model.to_owned(), reason: reason.into() }
    }

    pub(crate) fn tensor(tensor: &str, model: &str, reason: impl Into<String>) -> Self {
        Self::Tensor { tensor: tensor.to_owned(), model: model.to_owned(), reason: reason.into() }
    }
}

/// A number of bytes as people read it: 1.5 kB, 3.0 MB, 16.1 GB.
pub(crate) fn size(n_bytes: u64) -> String {
    match n_bytes {
        0..1_000 => format!("{n_bytes} bytes"),
        1_000..1_000_000 => format!("{:.1} kB", n_bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", n_bytes as f64 / 1e6),
        _ => format!("{:.1} GB", n_bytes as f64 / 1e9),
    }
}

fn listed(mistakes: &[Mistake]) -> String {
    match mistakes {
        [only] => format!("line {}: {}", only.line, only.text),
        many => {
            let lines: Vec<String> = many.iter().map(|m| format!("\n  line {}: {}", m.line, m.text)).collect();
            format!("{} mistakes{}", many.len(), lines.concat())
        }
    }
}
