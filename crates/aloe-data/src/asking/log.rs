//! The log that lets an interrupted stage go on: every answer of the model as it came. Verdicts are not kept: they follow from the
//! texts. The first entry is the run's fingerprint; a log of another run is refused. A question that was refused is not kept: it costs
//! nothing to ask again. What a server answered and no canary vouches for yet stands in a file beside it, so that a kill loses none of it.

use crate::{Error, Result};
use aloe_engine::{Call, CanaryAnswers, Completion, Engine, FinishReason};
use aloe_record::Cancel;
use aloe_record::log::Log;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long answers may stay unforced to the disk: a kill loses none of them, a loss of power at most these.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// One answer of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Answered {
    /// What it is to, with a digest of its content.
    pub(crate) key: String,
    /// The attempt's number, from 0.
    pub(crate) number: usize,
    pub(crate) text: String,
    pub(crate) finish_reason: FinishReason,
    /// `None` where an endpoint does not tell.
    pub(crate) n_prompt_tokens: Option<usize>,
    pub(crate) n_tokens: Option<usize>,
}

impl Answered {
    pub(crate) fn of(key: &str, number: usize, prompt_ids: Option<&Vec<u32>>, completion: Completion) -> Self {
        let told = (completion.prompt_len_tokens > 0).then_some(completion.prompt_len_tokens);
        Self {
            key: key.to_owned(),
            number,
            n_prompt_tokens: prompt_ids.map(Vec::len).or(told),
            n_tokens: completion.n_tokens(),
            text: completion.text,
            finish_reason: completion.finish_reason,
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Entry {
    Run(String),
    /// What an endpoint answered to known questions before what follows.
    Canary(CanaryAnswers),
    Answered(Answered),
    /// Seconds since the entry of this kind before it, or since the session's start.
    Seconds(f64),
}

/// The open log with what it held.
pub(crate) struct AnswerLog {
    log: Log,
    path: PathBuf,
    canary: Option<CanaryAnswers>,
    answered: Vec<Answered>,
    /// Of all sessions.
    pub(crate) seconds: f64,
    synced: Instant,
    counted: Instant,
}

impl AnswerLog {
    /// Opens the log in `out` of generated answers of `engine`, which keeps each from now on as it comes, those of an earlier process
    /// first; an endpoint is held against what it answered to known questions then.
    pub(crate) fn begin(engine: &Engine, out: &Path, fingerprint: &str, cancel: &Cancel) -> Result<Self> {
        let mut log = Self::open(&out.join(".answers.log"), fingerprint)?;
        let kept = out.join(".requests.log");
        if log.canary.is_none() {
            // There is nothing to hold them against.
            let _ = std::fs::remove_file(&kept);
        }
        let n_kept = engine.keep_answers(&kept, fingerprint)?;
        log.hold(engine.canary(Call::Generate, cancel)?, n_kept)?;
        Ok(log)
    }

    pub(crate) fn open(path: &Path, fingerprint: &str) -> Result<Self> {
        let other = || Error::OtherRun { path: path.to_owned() };
        let (mut log, entries) = Log::open::<Entry>(path)?;
        let mut entries = entries.into_iter();
        match entries.next() {
            None => log.append(&Entry::Run(fingerprint.into()))?,
            Some(Entry::Run(found)) if found == fingerprint => {}
            Some(_) => return Err(other()),
        }
        let (now, path) = (Instant::now(), path.to_owned());
        let mut found = Self {
            log,
            path: path.clone(),
            canary: None,
            answered: Vec::new(),
            seconds: 0.0,
            synced: now,
            counted: now,
        };
        for entry in entries {
            match entry {
                Entry::Run(_) => return Err(Error::OtherRun { path }),
                Entry::Canary(canary) => found.canary = Some(canary),
                Entry::Answered(answered) => found.answered.push(answered),
                Entry::Seconds(seconds) => found.seconds += seconds,
            }
        }
        Ok(found)
    }

    /// Holds an endpoint against what it answered to known questions when the answers in the log were given, and the `n_kept` that the
    /// engine kept, or notes it.
    pub(crate) fn hold(&mut self, now: Option<CanaryAnswers>, n_kept: usize) -> Result<()> {
        let has_answers = !self.answered.is_empty() || n_kept > 0;
        let Some(now) = now else {
            let difference = "it takes no known prompts now, which it then did".to_owned();
            let is_missing = has_answers && self.canary.is_some();
            return if is_missing { Err(Error::OtherWeights { path: self.path.clone(), difference }) } else { Ok(()) };
        };
        match self.canary.as_ref().filter(|_| has_answers).and_then(|then| then.difference(&now)) {
            Some(difference) => Err(Error::OtherWeights { path: self.path.clone(), difference }),
            None => Ok(self.log.append(&Entry::Canary(now))?),
        }
    }

    /// What was answered before, in the order it came.
    pub(crate) fn take(&mut self) -> Vec<Answered> {
        std::mem::take(&mut self.answered)
    }

    pub(crate) fn append(&mut self, answered: &Answered) -> Result<()> {
        self.log.append(&Entry::Answered(answered.clone()))?;
        if self.synced.elapsed() >= SYNC_EVERY { self.sync() } else { Ok(()) }
    }

    /// Forces what was appended to the disk, with the seconds it took.
    pub(crate) fn sync(&mut self) -> Result<()> {
        let seconds = self.counted.elapsed().as_secs_f64();
        self.counted = Instant::now();
        self.seconds += seconds;
        self.log.append(&Entry::Seconds(seconds))?;
        self.log.sync()?;
        self.synced = Instant::now();
        Ok(())
    }
}
