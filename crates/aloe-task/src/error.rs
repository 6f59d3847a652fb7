//! The one error of this crate: each variant names the file, the line or row, and the column.

/// What can be wrong with questions, rows and requests for wording.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be opened or read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A row is not what its format says. `at` is `file:line`, `file:line:column` or `file#row`.
    #[error("{at}: {reason}")]
    Row {
        /// Where.
        at: String,
        /// Why.
        reason: String,
    },
    /// A column is missing or of another kind.
    #[error("{at}: column `{column}`: expected {expected}, found {found}")]
    Column {
        /// Where.
        at: String,
        /// The column's name.
        column: String,
        /// What the layout asks for.
        expected: String,
        /// What the row holds.
        found: String,
    },
    /// The answer key names no option.
    #[error("{at}: answer key {key} is out of range: the question has {n_choices} options")]
    Key {
        /// Where.
        at: String,
        /// The key as written.
        key: String,
        /// How many options the row has.
        n_choices: usize,
    },
    /// A data set without a single row.
    #[error("{path}: the data set is empty")]
    Empty {
        /// The file.
        path: String,
    },
    /// None of the known files of a task is there.
    #[error("no file of task `{task}`, {split} split, in {dir}: looked for {tried}")]
    Missing {
        /// The task's name.
        task: String,
        /// The split's name.
        split: String,
        /// The data folder.
        dir: String,
        /// The candidates, relative to the folder.
        tried: String,
    },
    /// The task has no such split.
    #[error("task `{task}` has no {split} split: {hint}")]
    NoSplit {
        /// The task's name.
        task: String,
        /// The split's name.
        split: String,
        /// What to use instead.
        hint: String,
    },
    /// Not a task.
    #[error("unknown task `{name}`; known are {known}")]
    UnknownTask {
        /// The name given.
        name: String,
        /// All names.
        known: String,
    },
    /// A protocol that has no wording for this.
    #[error("protocol `{protocol}` {reason}")]
    Wording {
        /// The protocol's name.
        protocol: String,
        /// What it cannot do and what to do instead.
        reason: String,
    },
    /// More few-shot examples than there are questions to take them from.
    #[error("{n_shots} examples asked for, but the pool of task `{task}` holds {n_pool} ({file})")]
    Pool {
        /// Where the pool's first question stands, or what the pool is.
        file: String,
        /// The task's name.
        task: String,
        /// Examples wanted.
        n_shots: usize,
        /// Examples there.
        n_pool: usize,
    },
    /// Two questions of one split with the same id: answers could not be told apart.
    #[error("{second}: the id of this question is also that of {first}")]
    DuplicateId {
        /// Where the first stands.
        first: String,
        /// Where the second stands.
        second: String,
    },
    /// A task file that cannot be used.
    #[error("{path}: {reason}")]
    TaskFile {
        /// The TOML file.
        path: String,
        /// Every mistake in it.
        reason: String,
    },
}
