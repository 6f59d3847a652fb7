//! The log that lets an interrupted open evaluation go on: answers and verdicts, as they came.
//!
//! The first entry is the run's fingerprint; a log of another run is refused. Verdicts carry their judge's key (model, prompt version,
//! place among the like), so another panel asks the model nothing again, and its judges only what they have not said.

use super::sample::{JudgeReply, OpenSample};
use crate::answers::{check_same, kept_beside, takes_no_canary};
use crate::{Error, Result};
use aloe_engine::{Call, CanaryAnswers, Engine};
use aloe_record::Cancel;
use aloe_record::log::Log;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Entry {
    Run(String),
    /// What an endpoint answered to known questions before the answers.
    Canary(CanaryAnswers),
    /// The same of a judge, before its verdicts.
    JudgeCanary {
        judge: String,
        answers: CanaryAnswers,
    },
    /// An answer, and its place among all questions.
    Answered(usize, Box<OpenSample>),
    /// A judge's reply about the answer at a place.
    Judged {
        judge: String,
        at: usize,
        reply: JudgeReply,
    },
}

/// The answer on a line of the log, without its line break; `None` on a line that says something else.
pub(crate) fn logged(line: &[u8]) -> Result<Option<OpenSample>, String> {
    match aloe_record::log::entry::<Entry>(line) {
        Some(Entry::Answered(_, sample)) => Ok(Some(*sample)),
        Some(_) => Ok(None),
        None => Err(aloe_record::log::DAMAGED.into()),
    }
}

/// The open log with what it held.
pub(crate) struct OpenLog {
    log: Log,
    path: PathBuf,
    canary: Option<CanaryAnswers>,
    judge_canaries: HashMap<String, CanaryAnswers>,
    /// Answers by their places.
    pub(crate) samples: BTreeMap<usize, OpenSample>,
    verdicts: HashMap<String, BTreeMap<usize, JudgeReply>>,
}

impl OpenLog {
    /// Opens the log of the run with this fingerprint.
    pub(crate) fn open(path: &Path, fingerprint: &str) -> Result<Self> {
        let (log, entries) = Log::open::<Entry>(path)?;
        let mut found = Self {
            log,
            path: path.to_path_buf(),
            canary: None,
            judge_canaries: HashMap::new(),
            samples: BTreeMap::new(),
            verdicts: HashMap::new(),
        };
        let mut known = false;
        for entry in entries {
            match entry {
                Entry::Run(written) if written == fingerprint && !known => known = true,
                _ if !known => return Err(found.other_run()),
                Entry::Run(_) => return Err(found.other_run()),
                Entry::Canary(canary) => found.canary = Some(canary),
                Entry::JudgeCanary { judge, answers } => drop(found.judge_canaries.insert(judge, answers)),
                Entry::Answered(at, sample) => drop(found.samples.insert(at, *sample)),
                Entry::Judged { judge, at, reply } => drop(found.verdicts.entry(judge).or_default().insert(at, reply)),
            }
        }
        if !known {
            found.log.append(&Entry::Run(fingerprint.into()))?;
        }
        Ok(found)
    }

    fn other_run(&self) -> Error {
        Error::OtherRun { path: self.path.display().to_string() }
    }

    /// Holds an endpoint against what it answered to known questions when the answers in the log were given, and the `n_kept` that the
    /// engine kept, or notes it.
    pub(crate) fn hold(&mut self, now: Option<CanaryAnswers>, n_kept: usize) -> Result<()> {
        let has_answers = !self.samples.is_empty() || n_kept > 0;
        let Some(now) = now else {
            let is_missing = has_answers && self.canary.is_some();
            return if is_missing { Err(takes_no_canary(&self.path)) } else { Ok(()) };
        };
        match &self.canary {
            Some(then) if has_answers => check_same(then, &now, &self.path),
            _ => {
                self.log.append(&Entry::Canary(now.clone()))?;
                self.canary = Some(now);
                Ok(())
            }
        }
    }

    /// As `hold`, of a judge and its verdicts, whose engine keeps its replies from now on as they come.
    pub(crate) fn hold_judge(&mut self, judge: &str, engine: &Engine, cancel: &Cancel) -> Result<()> {
        let n_kept = kept_beside(engine, &self.path, judge, self.judge_canaries.contains_key(judge))?;
        let Some(now) = engine.canary(Call::Generate, cancel)? else { return Ok(()) };
        let has_verdicts = self.verdicts.get(judge).is_some_and(|verdicts| !verdicts.is_empty());
        match self.judge_canaries.get(judge) {
            Some(then) if has_verdicts || n_kept > 0 => check_same(then, &now, &self.path),
            _ => {
                self.log.append(&Entry::JudgeCanary { judge: judge.to_owned(), answers: now.clone() })?;
                self.judge_canaries.insert(judge.to_owned(), now);
                Ok(())
            }
        }
    }

    /// Adds an answer.
    pub(crate) fn answered(&mut self, at: usize, sample: &OpenSample) -> Result<()> {
        self.log.append(&Entry::Answered(at, Box::new(sample.clone())))?;
        self.samples.insert(at, sample.clone());
        Ok(())
    }

    /// Adds a judge's reply.
    pub(crate) fn judged(&mut self, judge: &str, at: usize, reply: &JudgeReply) -> Result<()> {
        self.log.append(&Entry::Judged { judge: judge.to_owned(), at, reply: reply.clone() })?;
        self.verdicts.entry(judge.to_owned()).or_default().insert(at, reply.clone());
        Ok(())
    }

    /// What a judge has said so far, by the places of the answers.
    pub(crate) fn said(&self, judge: &str) -> BTreeMap<usize, JudgeReply> {
        self.verdicts.get(judge).cloned().unwrap_or_default()
    }

    /// Forces what was added to the disk.
    pub(crate) fn sync(&self) -> Result<()> {
        Ok(self.log.sync()?)
    }
}
