//! The log that lets an interrupted red-team run go on: responses, and the judge's verdicts on labels and responses. What a
//! model has said once is not asked again, even when the judge fails after it.
//!
//! The first entry is the run's fingerprint; a log of another run is refused. Verdicts carry the judge's key, and those of
//! another judge are passed over.

use crate::redteam_report::RedTeamSample;
use crate::{Error, Result};
use aloe_record::log::Log;
use aloe_task::red_team::llama_guard::GuardVerdict;
use serde::{Deserialize, Serialize};
use std::path::Path;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Entry {
    Run(String),
    Answered(Box<RedTeamSample>),
    Labels { judge: String, verdicts: Vec<GuardVerdict> },
    Judged { judge: String, verdicts: Vec<GuardVerdict> },
}

/// The open log with what it held.
pub(crate) struct RedTeamLog {
    log: Log,
    judge: String,
    /// Responses, in the order asked.
    pub(crate) samples: Vec<RedTeamSample>,
    /// Verdicts on the labelled responses, in their order.
    pub(crate) labels: Vec<GuardVerdict>,
    /// Verdicts on the responses to harmful prompts, in their order.
    pub(crate) verdicts: Vec<GuardVerdict>,
}

impl RedTeamLog {
    /// Opens the log of the run with this fingerprint; `judge` is its judge's key, empty without one.
    pub(crate) fn open(path: &Path, fingerprint: &str, judge: &str) -> Result<Self> {
        let (log, entries) = Log::open::<Entry>(path)?;
        let (samples, labels, verdicts) = (Vec::new(), Vec::new(), Vec::new());
        let mut found = Self { log, judge: judge.into(), samples, labels, verdicts };
        let mut known = false;
        for entry in entries {
            match entry {
                Entry::Run(written) if written == fingerprint && !known => known = true,
                Entry::Answered(sample) if known => found.samples.push(*sample),
                Entry::Labels { judge: by, verdicts } if known && by == judge => found.labels.extend(verdicts),
                Entry::Judged { judge: by, verdicts } if known && by == judge => found.verdicts.extend(verdicts),
                Entry::Labels { .. } | Entry::Judged { .. } if known => {}
                _ => return Err(Error::OtherRun { path: path.display().to_string() }),
            }
        }
        if !known {
            found.log.append(&Entry::Run(fingerprint.into()))?;
        }
        Ok(found)
    }

    /// Adds responses.
    pub(crate) fn answered(&mut self, samples: Vec<RedTeamSample>) -> Result<()> {
        for sample in samples {
            self.log.append(&Entry::Answered(Box::new(sample.clone())))?;
            self.samples.push(sample);
        }
        Ok(self.log.sync()?)
    }

    /// Adds verdicts on labelled responses.
    pub(crate) fn labelled(&mut self, verdicts: Vec<GuardVerdict>) -> Result<()> {
        self.log.append(&Entry::Labels { judge: self.judge.clone(), verdicts: verdicts.clone() })?;
        self.labels.extend(verdicts);
        Ok(self.log.sync()?)
    }

    /// Adds verdicts on responses.
    pub(crate) fn judged(&mut self, verdicts: Vec<GuardVerdict>) -> Result<()> {
        self.log.append(&Entry::Judged { judge: self.judge.clone(), verdicts: verdicts.clone() })?;
        self.verdicts.extend(verdicts);
        Ok(self.log.sync()?)
    }
}
