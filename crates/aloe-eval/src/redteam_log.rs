//! The log that lets an interrupted red-team run go on: responses, and the judge's verdicts on labels and responses, as they came. What
//! a model has said once is not asked again, even when the judge fails after it.
//!
//! The first entry is the run's fingerprint; a log of another run is refused. Verdicts carry the judge's key, and those of
//! another judge are passed over.

use crate::answers::{check_same, kept_beside, takes_no_canary};
use crate::redteam_report::RedTeamSample;
use crate::{Error, Result};
use aloe_engine::{Call, CanaryAnswers, Engine};
use aloe_record::Cancel;
use aloe_record::log::Log;
use aloe_task::red_team::llama_guard::GuardVerdict;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Entry {
    Run(String),
    /// What an endpoint answered to known questions before the responses.
    Canary(CanaryAnswers),
    /// The same of the judge, before its verdicts.
    JudgeCanary {
        judge: String,
        answers: CanaryAnswers,
    },
    /// A response, and its place among the prompts.
    Answered(usize, Box<RedTeamSample>),
    /// A verdict on a labelled response, and its place among them.
    Label {
        judge: String,
        at: usize,
        verdict: GuardVerdict,
    },
    /// A verdict on a response to a harmful prompt, and its place among these.
    Judged {
        judge: String,
        at: usize,
        verdict: GuardVerdict,
    },
}

/// The open log with what it held.
pub(crate) struct RedTeamLog {
    log: Log,
    path: PathBuf,
    judge: String,
    canary: Option<CanaryAnswers>,
    judge_canary: Option<CanaryAnswers>,
    /// Responses by their places.
    pub(crate) samples: BTreeMap<usize, RedTeamSample>,
    /// Verdicts on the labelled responses.
    pub(crate) labels: BTreeMap<usize, GuardVerdict>,
    /// Verdicts on the responses to harmful prompts.
    pub(crate) verdicts: BTreeMap<usize, GuardVerdict>,
}

impl RedTeamLog {
    /// Opens the log of the run with this fingerprint; `judge` is its judge's key, empty without one.
    pub(crate) fn open(path: &Path, fingerprint: &str, judge: &str) -> Result<Self> {
        let (log, entries) = Log::open::<Entry>(path)?;
        let (samples, labels, verdicts) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let (path, judge_key) = (path.to_path_buf(), judge.to_owned());
        let mut found =
            Self { log, path, judge: judge_key, canary: None, judge_canary: None, samples, labels, verdicts };
        let mut known = false;
        for entry in entries {
            match entry {
                Entry::Run(written) if written == fingerprint && !known => known = true,
                Entry::Canary(canary) if known => found.canary = Some(canary),
                Entry::JudgeCanary { judge: by, answers } if known && by == judge => found.judge_canary = Some(answers),
                Entry::Answered(at, sample) if known => drop(found.samples.insert(at, *sample)),
                Entry::Label { judge: by, at, verdict } if known && by == judge => {
                    found.labels.insert(at, verdict);
                }
                Entry::Judged { judge: by, at, verdict } if known && by == judge => {
                    found.verdicts.insert(at, verdict);
                }
                Entry::JudgeCanary { .. } | Entry::Label { .. } | Entry::Judged { .. } if known => {}
                _ => return Err(Error::OtherRun { path: found.path.display().to_string() }),
            }
        }
        if !known {
            found.log.append(&Entry::Run(fingerprint.into()))?;
        }
        Ok(found)
    }

    /// Holds an endpoint against what it answered to known questions when the responses in the log were given, and the `n_kept` that the
    /// engine kept, or notes it.
    pub(crate) fn hold(&mut self, now: Option<CanaryAnswers>, n_kept: usize) -> Result<()> {
        let has_answers = !self.samples.is_empty() || n_kept > 0;
        match (&self.canary, now) {
            (Some(then), Some(now)) if has_answers => check_same(then, &now, &self.path)?,
            (Some(_), None) if has_answers => return Err(takes_no_canary(&self.path)),
            (_, Some(now)) => {
                self.log.append(&Entry::Canary(now.clone()))?;
                self.canary = Some(now);
            }
            (_, None) => {}
        }
        Ok(())
    }

    /// As `hold`, of the judge and its verdicts, whose engine keeps its replies from now on as they come.
    pub(crate) fn hold_judge(&mut self, engine: &Engine, cancel: &Cancel) -> Result<()> {
        let n_kept = kept_beside(engine, &self.path, &self.judge, self.judge_canary.is_some())?;
        let now = engine.canary(Call::Generate, cancel)?;
        let has_verdicts = !self.labels.is_empty() || !self.verdicts.is_empty() || n_kept > 0;
        match (&self.judge_canary, now) {
            (Some(then), Some(now)) if has_verdicts => check_same(then, &now, &self.path)?,
            (_, Some(now)) => {
                self.log.append(&Entry::JudgeCanary { judge: self.judge.clone(), answers: now.clone() })?;
                self.judge_canary = Some(now);
            }
            (_, None) => {}
        }
        Ok(())
    }

    /// Adds a response.
    pub(crate) fn answered(&mut self, at: usize, sample: RedTeamSample) -> Result<()> {
        self.log.append(&Entry::Answered(at, Box::new(sample.clone())))?;
        self.samples.insert(at, sample);
        Ok(())
    }

    /// Adds a verdict on a labelled response.
    pub(crate) fn labelled(&mut self, at: usize, verdict: GuardVerdict) -> Result<()> {
        self.log.append(&Entry::Label { judge: self.judge.clone(), at, verdict: verdict.clone() })?;
        self.labels.insert(at, verdict);
        Ok(())
    }

    /// Adds a verdict on a response.
    pub(crate) fn judged(&mut self, at: usize, verdict: GuardVerdict) -> Result<()> {
        self.log.append(&Entry::Judged { judge: self.judge.clone(), at, verdict: verdict.clone() })?;
        self.verdicts.insert(at, verdict);
        Ok(())
    }

    /// Forces what was added to the disk.
    pub(crate) fn sync(&self) -> Result<()> {
        Ok(self.log.sync()?)
    }
}
