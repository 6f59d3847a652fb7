//! The log that lets an interrupted evaluation go on: answered questions and Medprompt's solved examples, in order.
//!
//! The first entry is the run's fingerprint; a log of another run is refused, never mixed in.

use crate::{Error, Result, Sample};
use aloe_engine::CanaryAnswers;
use aloe_record::log::Log;
use aloe_task::{Question, Task};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

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
}

/// The open log with what it held.
pub(crate) struct AnswerLog {
    log: Log,
    path: PathBuf,
    canary: Option<CanaryAnswers>,
    samples: Vec<Sample>,
    solved: Vec<Solved>,
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
        let (path, samples, solved) = (path.to_path_buf(), Vec::new(), Vec::new());
        let mut found = Self { log, path, canary: None, samples, solved };
        for entry in entries {
            match entry {
                Entry::Run(_) => return Err(Error::OtherRun { path: found.path.display().to_string() }),
                Entry::Canary(canary) => found.canary = Some(canary),
                Entry::Solved(solved) => found.solved.push(solved),
                Entry::Answered(sample) => found.samples.push(*sample),
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

    /// The answers to `task` so far: a prefix of its questions, because they are asked in order.
    pub(crate) fn samples_of(&self, task: Task, questions: &[Question]) -> Result<Vec<Sample>> {
        let name = task.name();
        let samples: Vec<Sample> = self.samples.iter().filter(|sample| sample.task == name).cloned().collect();
        let fits = samples.len() <= questions.len()
            && samples.iter().zip(questions).all(|(sample, question)| sample.id == question.id);
        if fits { Ok(samples) } else { Err(Error::OtherRun { path: self.path.display().to_string() }) }
    }

    /// The solved pool questions of `task` so far.
    pub(crate) fn solved_of(&self, task: Task) -> Vec<Solved> {
        let name = task.name();
        self.solved.iter().filter(|solved| solved.task == name).cloned().collect()
    }

    pub(crate) fn append_all(&mut self, samples: &[Sample]) -> Result<()> {
        for sample in samples {
            self.log.append(&Entry::Answered(Box::new(sample.clone())))?;
        }
        Ok(self.log.sync()?)
    }

    pub(crate) fn append_solved(&mut self, solved: &[Solved]) -> Result<()> {
        for entry in solved {
            self.log.append(&Entry::Solved(entry.clone()))?;
        }
        Ok(self.log.sync()?)
    }
}
