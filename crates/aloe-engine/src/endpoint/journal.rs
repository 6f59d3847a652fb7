//! What servers answered, each answer as it came: a killed run is gone on with by a process that finds them here and sends none of
//! their requests again.
//!
//! A caller is handed an answer when a good canary vouches for it (`watch`), and keeps whole questions; this file holds what lies
//! between. Its lines say which server answered, when that server was found the same as at the start, and when it was not: the answers
//! since it last was are then dropped. Those at the end of a file, which no canary followed, stand as those of a server that died, and
//! the caller holds the canary of the process that finds them against that of the one that left them.
//!
//! Answers are told apart by what was sent and by what for ([`Journal::ask_for`]): a question that is asked twice on purpose has two.

use crate::Result;
use aloe_record::digest;
use aloe_record::log::Log;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A line of the file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Entry {
    /// What the answers belong to.
    Run(String),
    Answered {
        /// Digest of what was sent, and for what.
        key: String,
        server: String,
        answer: Value,
    },
    /// The server gave the canary's answer as at the start, asked when the file held `n_before` answers.
    Proven { server: String, n_before: usize },
    /// It gave another.
    Disowned(String),
}

/// The file while it is open; closed it keeps and finds nothing.
#[derive(Default)]
pub(crate) struct Journal {
    open: Mutex<Option<Open>>,
}

/// A place in the file: how many answers it held, and how often it had been emptied.
#[derive(Clone, Copy, Default)]
pub(super) struct Mark {
    n_answers: usize,
    n_emptied: usize,
}

struct Open {
    log: Log,
    run: String,
    what_for: String,
    mark: Mark,
    /// Answers of an earlier process, by key, in their order.
    found: HashMap<String, VecDeque<Value>>,
    /// Whether an answer could not be written.
    is_full: bool,
}

impl Journal {
    /// Opens or creates the file at `path` for the run that `run` stands for. Returns how many answers an earlier process left there;
    /// those of another run are dropped.
    pub(crate) fn open(&self, path: &Path, run: &str) -> Result<usize> {
        let (log, entries) = Log::open::<Entry>(path)?;
        let n_answers = entries.iter().filter(|entry| matches!(entry, Entry::Answered { .. })).count();
        let mark = Mark { n_answers, n_emptied: 0 };
        let is_same = matches!(entries.first(), Some(Entry::Run(found)) if found == run);
        let found = if is_same { answers(entries) } else { HashMap::new() };
        let n_found = found.values().map(VecDeque::len).sum();
        let mut open = Open { log, run: run.to_owned(), what_for: String::new(), mark, found, is_full: false };
        if !is_same {
            open.begin()?;
        }
        *self.lock() = Some(open);
        Ok(n_found)
    }

    /// What the requests from now on are for.
    pub(crate) fn ask_for(&self, what: &str) {
        if let Some(open) = self.lock().as_mut() {
            what.clone_into(&mut open.what_for);
        }
    }

    /// The caller has written down everything it was handed: only answers of an earlier process that were not asked for stay in the file.
    pub(crate) fn forget(&self) -> Result<()> {
        self.lock().as_mut().map_or(Ok(()), Open::begin)
    }

    /// The request `body` to `path`, as it is kept and found.
    pub(super) fn request(&self, path: &str, body: &Value) -> Kept<'_> {
        Kept { journal: self, key: self.lock().as_ref().map(|open| open.key(path, body)) }
    }

    /// How far the file is: what [`Journal::prove`] vouches for.
    pub(super) fn mark(&self) -> Mark {
        self.lock().as_ref().map_or_else(Mark::default, |open| open.mark)
    }

    /// How many answers the file holds.
    pub(super) fn n_answers(&self) -> usize {
        self.mark().n_answers
    }

    /// The server was found the same as at the start, asked when the file was as far as `mark`.
    pub(super) fn prove(&self, server: &str, mark: Mark) {
        if self.mark().n_emptied == mark.n_emptied {
            self.append(&Entry::Proven { server: server.to_owned(), n_before: mark.n_answers });
        }
    }

    /// It was found another.
    pub(super) fn disown(&self, server: &str) {
        self.append(&Entry::Disowned(server.to_owned()));
    }

    /// An answer that cannot be kept is given all the same: a full disk costs what a kill would lose, and no more. Nothing follows the
    /// line that was cut.
    fn append(&self, entry: &Entry) {
        let mut journal = self.lock();
        let Some(open) = journal.as_mut().filter(|open| !open.is_full) else { return };
        open.mark.n_answers += usize::from(matches!(entry, Entry::Answered { .. }));
        if let Err(error) = open.log.append(entry) {
            aloe_record::tell(&format!("warning: answers are not kept as they come: {error}"));
            open.is_full = true;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request.
pub(super) struct Kept<'a> {
    journal: &'a Journal,
    /// `None` where nothing is kept.
    key: Option<String>,
}

impl Kept<'_> {
    /// What an earlier process was answered, the first time it is asked for.
    pub(super) fn found<T: DeserializeOwned>(&self) -> Option<T> {
        let key = self.key.as_ref()?;
        self.journal.lock().as_mut()?.take(key)
    }

    /// Keeps the answer of `server`.
    pub(super) fn keep<T: Serialize>(self, answer: &T, server: &str) {
        if let (Some(key), Ok(answer)) = (self.key, serde_json::to_value(answer)) {
            self.journal.append(&Entry::Answered { key, server: server.to_owned(), answer });
        }
    }
}

impl Open {
    /// Begins the file anew with what an earlier process was answered and nobody has asked for yet: it may belong to a later task or
    /// window. The canary of this process vouches for it, so that it has no server.
    fn begin(&mut self) -> Result<()> {
        self.is_full = false;
        self.mark =
            Mark { n_answers: self.found.values().map(VecDeque::len).sum(), n_emptied: self.mark.n_emptied + 1 };
        self.log.clear()?;
        self.log.append(&Entry::Run(self.run.clone()))?;
        for (key, answers) in &self.found {
            for answer in answers {
                let (key, answer) = (key.clone(), answer.clone());
                self.log.append(&Entry::Answered { key, server: String::new(), answer })?;
            }
        }
        Ok(())
    }

    fn key(&self, path: &str, body: &Value) -> String {
        digest::bytes(format!("{}\n{path}\n{body}", self.what_for).as_bytes())
    }

    fn take<T: DeserializeOwned>(&mut self, key: &str) -> Option<T> {
        let answers = self.found.get_mut(key)?;
        let answer = answers.pop_front();
        if answers.is_empty() {
            self.found.remove(key);
        }
        serde_json::from_value(answer?).ok()
    }
}

/// The answers of a file by key, in their order, without those of servers that were found to lie since they were last proven.
fn answers(entries: Vec<Entry>) -> HashMap<String, VecDeque<Value>> {
    let mut answers: Vec<Option<(String, Value)>> = Vec::new();
    let mut unproven: HashMap<String, Vec<usize>> = HashMap::new();
    for entry in entries {
        match entry {
            Entry::Run(_) => {}
            Entry::Answered { key, server, answer } => {
                unproven.entry(server).or_default().push(answers.len());
                answers.push(Some((key, answer)));
            }
            Entry::Proven { server, n_before } => {
                unproven.entry(server).or_default().retain(|&at| at >= n_before);
            }
            Entry::Disowned(server) => {
                for at in unproven.remove(&server).unwrap_or_default() {
                    answers[at] = None;
                }
            }
        }
    }
    let mut found: HashMap<String, VecDeque<Value>> = HashMap::new();
    for (key, answer) in answers.into_iter().flatten() {
        found.entry(key).or_default().push_back(answer);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What the journal has for `body`.
    fn found(journal: &Journal, body: &str) -> Option<u32> {
        journal.request("/completions", &json!(body)).found()
    }

    fn open(path: &Path, run: &str) -> (Journal, usize) {
        let journal = Journal::default();
        let n_found = journal.open(path, run).unwrap();
        (journal, n_found)
    }

    fn put(journal: &Journal, body: &str, answer: u32, server: &str) {
        journal.request("/completions", &json!(body)).keep(&answer, server);
    }

    #[test]
    fn each_answer_of_a_killed_process_is_given_once_to_what_was_sent_for_the_same_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.log");
        let (journal, n_found) = open(&path, "run");
        assert_eq!(n_found, 0);
        put(&journal, "x", 1, "a");
        put(&journal, "x", 2, "a");
        put(&journal, "y", 3, "a");
        journal.ask_for("again");
        put(&journal, "x", 4, "a");
        drop(journal);
        let (journal, n_found) = open(&path, "run");
        assert_eq!(n_found, 4);
        assert_eq!([found(&journal, "x"), found(&journal, "x"), found(&journal, "x")], [Some(1), Some(2), None]);
        journal.ask_for("again");
        assert_eq!([found(&journal, "y"), found(&journal, "x")], [None, Some(4)]);
        journal.ask_for("");
        assert_eq!(found(&journal, "y"), Some(3));
        put(&journal, "z", 5, "a");
        drop(journal);
        let (journal, n_found) = open(&path, "run");
        assert_eq!((n_found, found(&journal, "z")), (5, Some(5)));
        put(&journal, "later", 6, "a");
        journal.forget().unwrap();
        put(&journal, "latest", 7, "a");
        drop(journal);
        let (journal, n_found) = open(&path, "run");
        let left = ["x", "x", "y", "z", "later", "latest"].map(|body| found(&journal, body));
        assert_eq!(
            (n_found, left),
            (5, [Some(1), Some(2), Some(3), None, None, Some(7)]),
            "the caller has what it asked for"
        );
    }

    #[test]
    fn answers_of_another_run_are_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.log");
        let (journal, _) = open(&path, "run");
        put(&journal, "x", 1, "a");
        drop(journal);
        let (journal, n_found) = open(&path, "other");
        assert_eq!((n_found, found(&journal, "x")), (0, None));
    }

    #[test]
    fn answers_since_a_server_was_last_proven_go_when_it_is_found_to_lie_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.log");
        let (journal, _) = open(&path, "run");
        put(&journal, "before", 1, "b");
        let mark = journal.mark();
        put(&journal, "while it was asked", 4, "b");
        journal.prove("b", mark);
        put(&journal, "after", 2, "b");
        put(&journal, "other", 3, "c");
        journal.disown("b");
        drop(journal);
        let (journal, n_found) = open(&path, "run");
        assert_eq!(n_found, 2);
        let found = ["before", "while it was asked", "after", "other"].map(|body| found(&journal, body));
        assert_eq!(found, [Some(1), None, None, Some(3)]);
    }
}
