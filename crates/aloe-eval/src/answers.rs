//! The log that lets an interrupted evaluation go on: answered questions and Medprompt's solved examples, as they came.
//!
//! Answers come in any order; each says which question it belongs to. A question that was refused is not kept: it costs nothing to
//! ask again. The first entry is the run's fingerprint; a log of another run is refused, never mixed in.

use crate::{Error, Result, Sample};
use aloe_engine::CanaryAnswers;
use aloe_record::log::Log;
use aloe_task::{Question, Task};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long answers may stay unforced to the disk: a kill loses none of them, a loss of power at most these.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// Refuses to go on with the answers at `path` when the endpoint answers known questions otherwise than it did for them.
pub(crate) fn check_same(then: &CanaryAnswers, now: &CanaryAnswers, path: &Path) -> Result<()> {
    match then.difference(now) {
        Some(difference) => Err(Error::OtherWeights { path: path.display().to_string(), difference }),
        None => Ok(()),
    }
}

/// A pool question's attempts: those that reached the gold answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Solved {
    /// The task under evaluation.
    pub(crate) task: String,
    /// The pool question's place in the pool.
    pub(crate) index: usize,
    /// The pool question's id.
    pub(crate) id: String,
    /// Right answers: the order shown and the text.
    pub(crate) right: Vec<(Vec<usize>, String)>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Entry {
    Run(String),
    /// What an endpoint answered to known questions before what follows.
    Canary(CanaryAnswers),
    Solved(Solved),
    Answered(Box<Sample>),
    /// A question's second answer, for the noise floor.
    Again(Box<Sample>),
}

/// The open log with what it held.
pub(crate) struct AnswerLog {
    log: Log,
    path: PathBuf,
    canary: Option<CanaryAnswers>,
    samples: Vec<Sample>,
    again: Vec<Sample>,
    solved: Vec<Solved>,
    synced: Instant,
}

impl AnswerLog {
    pub(crate) fn open(path: &Path, fingerprint: &str) -> Result<Self> {
        let (mut log, entries) = Log::open::<Entry>(path)?;
        let mut entries = entries.into_iter();
        match entries.next() {
            None => log.append(&Entry::Run(fingerprint.into()))?,
            Some(Entry::Run(found)) if found == fingerprint => {}
            Some(_) => return Err(Error::OtherRun { path: path.display().to_string() }),
        }
        let path = path.to_path_buf();
        let (samples, again, solved, synced) = (Vec::new(), Vec::new(), Vec::new(), Instant::now());
        let mut found = Self { log, path, canary: None, samples, again, solved, synced };
        for entry in entries {
            match entry {
                Entry::Run(_) => return Err(Error::OtherRun { path: found.path.display().to_string() }),
                Entry::Canary(canary) => found.canary = Some(canary),
                Entry::Solved(solved) => found.solved.push(solved),
                Entry::Answered(sample) => found.samples.push(*sample),
                Entry::Again(sample) => found.again.push(*sample),
            }
        }
        Ok(found)
    }

    /// Holds an endpoint against what it answered to known questions when the answers in the log were given, or notes it.
    pub(crate) fn hold(&mut self, now: Option<CanaryAnswers>) -> Result<()> {
        let has_answers = !self.samples.is_empty() || !self.solved.is_empty();
        match (&self.canary, now) {
            (Some(then), Some(now)) if has_answers => {
                check_same(then, &now, &self.path)?;
            }
            (_, Some(now)) => {
                self.log.append(&Entry::Canary(now.clone()))?;
                self.canary = Some(now);
            }
            (_, None) => {}
        }
        Ok(())
    }

    /// The answers to `task` so far, by the places of its questions.
    pub(crate) fn samples_of(&self, task: Task, questions: &[Question]) -> Result<Vec<Option<Sample>>> {
        self.answers_of(&self.samples, task, questions)
    }

    /// The second answers to `task` so far, by the places of its questions.
    pub(crate) fn again_of(&self, task: Task, questions: &[Question]) -> Result<Vec<Option<Sample>>> {
        self.answers_of(&self.again, task, questions)
    }

    fn answers_of(&self, samples: &[Sample], task: Task, questions: &[Question]) -> Result<Vec<Option<Sample>>> {
        let name = task.name();
        let of_task = samples.iter().filter(|sample| sample.task == name);
        self.placed(questions, of_task.map(|sample| (sample.index, sample.id.as_str(), sample)))
    }

    /// The solved pool questions of `task` so far, by their places in the pool.
    pub(crate) fn solved_of(&self, task: Task, pool: &[Question]) -> Result<Vec<Option<Solved>>> {
        let name = task.name();
        let of_task = self.solved.iter().filter(|solved| solved.task == name);
        self.placed(pool, of_task.map(|solved| (solved.index, solved.id.as_str(), solved)))
    }

    fn placed<'a, T: Clone + 'a>(
        &self,
        questions: &[Question],
        entries: impl Iterator<Item = (usize, &'a str, &'a T)>,
    ) -> Result<Vec<Option<T>>> {
        let mut found: Vec<Option<T>> = questions.iter().map(|_| None).collect();
        for (index, id, entry) in entries {
            if questions.get(index).is_none_or(|question| question.id != id) {
                return Err(Error::OtherRun { path: self.path.display().to_string() });
            }
            found[index] = Some(entry.clone());
        }
        Ok(found)
    }

    pub(crate) fn append(&mut self, sample: &Sample) -> Result<()> {
        self.log.append(&Entry::Answered(Box::new(sample.clone())))?;
        self.sync(false)
    }

    pub(crate) fn append_again(&mut self, sample: &Sample) -> Result<()> {
        self.log.append(&Entry::Again(Box::new(sample.clone())))?;
        self.sync(false)
    }

    pub(crate) fn append_solved(&mut self, solved: &Solved) -> Result<()> {
        self.log.append(&Entry::Solved(solved.clone()))?;
        self.sync(false)
    }

    /// Forces what was appended to the disk, now or when it is time again.
    pub(crate) fn sync(&mut self, now: bool) -> Result<()> {
        if now || self.synced.elapsed() >= SYNC_EVERY {
            self.log.sync()?;
            self.synced = Instant::now();
        }
        Ok(())
    }
}
