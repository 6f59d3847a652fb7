//! Every way the hand-off can fail, with what is needed to fix the cause.

use std::path::PathBuf;

/// A failure of the hand-off.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Storage, or a damaged file of state.
    #[error(transparent)]
    Record(#[from] aloe_record::Error),
    /// Mistakes of a file that a person wrote, all of them.
    #[error("{path}: {n} {noun}\n{lines}", path = path.display(), n = mistakes.len(), noun = noun(mistakes.len()), lines = indented(mistakes))]
    Mistakes {
        /// The file.
        path: PathBuf,
        /// One line each.
        mistakes: Vec<String>,
    },
    /// A run folder that does not hold what its plan says.
    #[error("{path}: {reason}", path = path.display())]
    Folder {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A server of a model did not come up, or is not what was asked for.
    #[error("{log}: {reason}", log = log.display())]
    Server {
        /// Its log.
        log: PathBuf,
        /// What it did.
        reason: String,
    },
    /// A stage was asked to do what its state does not allow.
    #[error("stage {stage}: {reason}")]
    State {
        /// The stage's name.
        stage: String,
        /// Why not, and what to do.
        reason: String,
    },
    /// A scheduler's command did not do what was asked.
    #[error("{command}: {reason}")]
    Scheduler {
        /// The command, such as `sbatch`.
        command: String,
        /// What it said.
        reason: String,
    },
    /// What a bundle would need is not there, or is not to be packed.
    #[error("nothing was packed: {n} {noun}\n{lines}", n = mistakes.len(), noun = noun(mistakes.len()), lines = indented(mistakes))]
    Bundle {
        /// One line each.
        mistakes: Vec<String>,
    },
    /// Before anything was submitted the scheduler or our own checks found what cannot run.
    #[error("nothing was submitted: {n} {noun}\n{lines}", n = mistakes.len(), noun = noun(mistakes.len()), lines = indented(mistakes))]
    Preflight {
        /// One line each.
        mistakes: Vec<String>,
    },
}

fn noun(n: usize) -> &'static str {
    if n == 1 { "mistake" } else { "mistakes" }
}

fn indented(lines: &[String]) -> String {
    lines.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
