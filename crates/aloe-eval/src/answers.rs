//! The log that lets an interrupted evaluation go on: answered questions and Medprompt's solved examples, in order.
//!
//! The first entry is the run's fingerprint; a log of another run is refused, never mixed in.

use crate::{Error, Result, Sample};
use aloe_record::log::Log;
use aloe_task::{Question, Task};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

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
    Solved(Solved),
    Answered(Box<Sample>),
}

/// The open log with what it held.
pub(crate) struct AnswerLog {
    log: Log,
    path: PathBuf,
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
        let mut found = Self { log, path: path.to_path_buf(), samples: Vec::new(), solved: Vec::new() };
        for entry in entries {
            match entry {
                Entry::Run(_) => return Err(Error::OtherRun { path: path.display().to_string() }),
                Entry::Solved(solved) => found.solved.push(solved),
                Entry::Answered(sample) => found.samples.push(*sample),
            }
        }
        Ok(found)
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
