//! What can go wrong while preparing data. Broken rows are values ([`RowError`]) that are counted; the rest stops the run.

use std::fmt::Write as _;
use std::path::PathBuf;

/// How many row errors a message shows; all are counted.
pub(crate) const N_SHOWN: usize = 20;

/// One broken row.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct RowError {
    /// `file:line`, `file:line:column` or `file#row`.
    pub at: String,
    /// Why the row cannot be used.
    pub reason: String,
    /// The row as read, where it could be read at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raw: Option<String>,
}

/// Bytes of a broken row as text, those that are not UTF-8 as `\x{E9}`: a mark in their place would lose what they were, and one
/// that ends in a letter would hide a number behind it from the patterns of identifiers.
pub(crate) fn with_bytes(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{{{byte:02X}}}");
        }
    }
    text
}

impl RowError {
    pub(crate) fn new(at: impl Into<String>, reason: impl Into<String>) -> RowError {
        RowError { at: at.into(), reason: reason.into(), raw: None }
    }

    /// From a reader of `aloe-task`, whose messages begin with the place.
    pub(crate) fn from_task(at: &str, error: &aloe_task::Error) -> RowError {
        let text = error.to_string();
        let reason = text.strip_prefix(at).map_or(text.as_str(), |rest| rest.trim_start_matches([':', ' ']));
        RowError::new(at, reason)
    }
}

impl std::fmt::Display for RowError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.at, self.reason)
    }
}

/// All broken rows of a run: counted, the first twenty kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Problems {
    /// How many.
    pub total: usize,
    /// The first twenty.
    pub shown: Vec<RowError>,
}

impl Problems {
    /// Counts one more.
    pub(crate) fn add(&mut self, error: RowError) {
        self.total += 1;
        if self.shown.len() < N_SHOWN {
            self.shown.push(RowError { raw: None, ..error });
        }
    }
}

impl std::fmt::Display for Problems {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for error in &self.shown {
            write!(f, "\n  {error}")?;
        }
        if self.total > self.shown.len() {
            write!(f, "\n  and {} more", self.total - self.shown.len())?;
        }
        Ok(())
    }
}

/// What stops a run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// `read`, `list` or `write`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Settings that cannot be meant; all mistakes together.
    #[error("the data settings are wrong:{}", .mistakes.iter().map(|mistake| format!("\n  {mistake}")).collect::<String>())]
    Config {
        /// One line each.
        mistakes: Vec<String>,
    },
    /// The layout of a file is not known.
    #[error(
        "{at}: no known layout has the columns {columns}; name one with `dialect`, or map columns with \
         `columns = {{ prompt = \"..\", response = \"..\" }}` (preference rows: also `rejected`)"
    )]
    UnknownDialect {
        /// The first row.
        at: String,
        /// The columns found.
        columns: String,
    },
    /// The keys of a MedMCQA file do not tell whether they count from 0 or from 1.
    #[error(
        "{}: column `cop` holds {found} of 0 and 4, so that it cannot be told whether the answer keys count from 0 or from 1; set \
         `dialect = \"medmcqa\"` (from 0, as on the Hub) or `dialect = \"medmcqa_one_based\"` (from 1, as in the original files)",
        path.display()
    )]
    AnswerKeys {
        /// The file.
        path: PathBuf,
        /// `both` or `neither`.
        found: &'static str,
    },
    /// Two rows of one name: weights, verdicts and the ledger could not tell them apart.
    #[error("{at}: another row has the id {id} too; rename one of the files that hold them")]
    RepeatedId {
        /// The second row's place.
        at: String,
        /// Their id.
        id: String,
    },
    /// A file of evaluation questions that no row would be compared with.
    #[error(
        "{}: none of its {n_rows} rows is an evaluation question{reason}, so that no training row would be compared with it; take it out of \
         `decontaminate`, or name the file that holds the questions",
        path.display()
    )]
    NoQuestions {
        /// The file.
        path: PathBuf,
        /// Its rows.
        n_rows: usize,
        /// Why, where that is known.
        reason: &'static str,
    },
    /// A source is not what the recipe expects.
    #[error(
        "source `{name}`: `expect_rows` is {expected}, and its files hold {found} rows; is this the published set?"
    )]
    RowCount {
        /// The source.
        name: String,
        /// As the recipe states it.
        expected: usize,
        /// Broken rows counted.
        found: usize,
    },
    /// A line of a file that should be a data stage's.
    #[error("{at}: neither `messages` nor `prompt`, `chosen` and `rejected`, so it is no training row of a data stage")]
    TrainingRow {
        /// `file:line`.
        at: String,
    },
    /// A line of a verdicts file, or of the hits it judges.
    #[error("{at}: {reason}")]
    Verdicts {
        /// `file:line`.
        at: String,
        /// Why.
        reason: String,
    },
    /// Shards, or what was merged of them, that do not fit.
    #[error("{}: {reason}", path.display())]
    Shards {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A template's slot has nothing to hold.
    #[error(
        "source `{name}`: {at} names no subject for its instruction template, which each row needs, also rows that may be dropped later; \
         state `subject` for the source"
    )]
    NoSubject {
        /// The source.
        name: String,
        /// The row.
        at: String,
    },
    /// A source holds rows of the other kind.
    #[error("source `{name}`: {at} is a {found} row, but the output is {wanted}")]
    Kind {
        /// The source.
        name: String,
        /// The row.
        at: String,
        /// `preference` or `conversation`.
        found: &'static str,
        /// The kind asked for.
        wanted: &'static str,
    },
    /// Broken rows, without a quarantine to put them into.
    #[error("{} broken rows; correct them or set `quarantine = true` (or a file):{problems}", problems.total)]
    Rows {
        /// All counted, twenty shown.
        problems: Problems,
    },
    /// A file of which no row can be read: a quarantine cannot keep what it holds, so the stage does not go on without it.
    #[error("{}: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// A file that somebody writes to.
    #[error("{}: the file changed while it was read; run this again once it is whole", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// A file without a single row.
    #[error("{}: the data set is empty", path.display())]
    EmptyFile {
        /// The file.
        path: PathBuf,
    },
    /// The tokenizer of the recipe cannot be opened, or refuses a row.
    #[error("{at}: {source}")]
    Text {
        /// The tokenizer's folder, or the row.
        at: String,
        /// Why.
        source: aloe_text::Error,
    },
    /// Nothing is left.
    #[error(
        "no row is left for training: {n_read} rows read, {n_dropped} dropped{}{}",
        counted(by_rule),
        broken(problems)
    )]
    EmptyResult {
        /// Rows read.
        n_read: usize,
        /// Rows dropped.
        n_dropped: usize,
        /// Counts by rule.
        by_rule: String,
        /// Broken rows: all counted, twenty shown.
        problems: Problems,
    },
    /// Passages that cannot be read.
    #[error("{} broken passages:{problems}", problems.total)]
    BrokenPassages {
        /// All counted, twenty shown.
        problems: Problems,
    },
    /// Rows with a better side that cannot be read.
    #[error("{} broken rows:{problems}", problems.total)]
    BrokenRows {
        /// All counted, twenty shown.
        problems: Problems,
    },
    /// Benchmark questions that cannot be read.
    #[error(transparent)]
    Task(#[from] aloe_task::Error),
    /// The model that writes or judges.
    #[error(transparent)]
    Engine(#[from] aloe_engine::Error),
    /// The answers of another run lie in the output folder.
    #[error("{} holds answers of other settings or another model; choose another output folder", path.display())]
    OtherRun {
        /// The log.
        path: PathBuf,
    },
    /// The servers answer otherwise than when the answers so far were given.
    #[error(
        "the endpoint no longer answers as it did for the answers in {}: {difference}. Load the same weights there, or choose another output \
         folder to start over",
        path.display()
    )]
    OtherWeights {
        /// The log.
        path: PathBuf,
        /// How far the answers to known questions lie apart.
        difference: String,
    },
    /// Not one item was taken by the model.
    #[error("all {n} requests were refused, so there is nothing to report; the first: {reason}")]
    AllRefused {
        /// How many.
        n: usize,
        /// Why the first was refused.
        reason: String,
    },
    /// Writing the output folder, or a stop asked for.
    #[error(transparent)]
    Record(#[from] aloe_record::Error),
}

fn counted(by_rule: &str) -> String {
    if by_rule.is_empty() { String::new() } else { format!(" (see the counts by rule: {by_rule})") }
}

fn broken(problems: &Problems) -> String {
    if problems.total == 0 { String::new() } else { format!(", {} broken:{problems}", problems.total) }
}

impl Error {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { action, path, source }
    }
}
