//! Every way an evaluation can fail.

/// A failure of an evaluation or of a comparison.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Questions, wording or their files.
    #[error(transparent)]
    Task(#[from] aloe_task::Error),
    /// The model.
    #[error(transparent)]
    Engine(#[from] aloe_engine::Error),
    /// Training rows that cannot be compared.
    #[error(transparent)]
    Data(#[from] aloe_data::Error),
    /// Storage, or an interrupt.
    #[error(transparent)]
    Record(#[from] aloe_record::Error),
    /// Settings that do not go together.
    #[error("{0}")]
    Config(String),
    /// The answers of another run lie in the output folder.
    #[error("{path} holds answers of other settings, another model or other questions; choose another output folder")]
    OtherRun {
        /// The log.
        path: String,
    },
    /// The servers answer otherwise than when the answers so far were given.
    #[error(
        "the endpoint no longer answers as it did for the answers in {path}: {difference}. Load the same weights there, or choose \
         another output folder to start over"
    )]
    OtherWeights {
        /// The log.
        path: String,
        /// How far the answers to known questions lie apart.
        difference: String,
    },
    /// Not one question of a task was taken.
    #[error("{task}: all {n} questions were refused, so there is nothing to report; the first: {reason}")]
    AllRefused {
        /// The task.
        task: String,
        /// Its questions.
        n: usize,
        /// Why the first was refused.
        reason: String,
    },
    /// Two runs that cannot be paired.
    #[error("cannot compare: {0}")]
    Unpaired(String),
    /// A line of a run's file that is not whole, or not what it should be.
    #[error("{path}:{line}: {reason}; the file was cut or edited")]
    Line {
        /// The file.
        path: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// A finished run whose files do not belong together.
    #[error("cannot score again: {0}")]
    Torn(String),
    /// The engine's answer does not fit the request.
    #[error("question {id}: {reason}")]
    Answer {
        /// Task and question.
        id: String,
        /// What is wrong.
        reason: String,
    },
}
