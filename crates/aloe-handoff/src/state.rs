//! What happened to a stage: planned -> submitted -> running -> done | failed | cancelled. Each stage has one append-only, checksummed log
//! in `state/NAME/`, written by clients and by the job itself; the state is the fold of its entries. It survives the death of
//! whoever wrote it.
//!
//! Every change is made by [`update`]: take the log's lock, fold, decide, append, sync. So two writers never decide on the same
//! old state. Time is part of the entries, never of a decision on where a stage stands.

use crate::{Error, Result};
use aloe_record::log::{self, Log};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Something that happened to a stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Event {
    /// A client is about to submit a job of this name: found again by it when the client dies before it knows the id.
    Submitting {
        /// The job's name, of no other job.
        name: String,
    },
    /// The scheduler did not take it, or the client died before it could.
    NotSubmitted {
        /// What is known.
        reason: String,
    },
    /// The scheduler took it.
    Submitted {
        /// The scheduler's id.
        job: String,
    },
    /// The job runs: written by the job, which holds the stage's lock.
    Started {
        /// Its id.
        job: String,
        /// Its first machine.
        host: String,
    },
    /// The job was told to save and went back into the queue.
    Requeued {
        /// Its id.
        job: String,
        /// The step after which this session had begun, of a foreign trainer.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from_step: Option<u64>,
    },
    /// Something that the scheduler or a job said and that changes nothing: why it is held, why it did not begin.
    Noted {
        /// Of which job.
        job: String,
        /// What was said.
        reason: String,
    },
    /// The work is there and was checked.
    Done {
        /// Who did it.
        job: String,
    },
    /// It ended otherwise.
    Failed {
        /// Who did, where a job was known.
        job: Option<String>,
        /// What is known of the cause.
        reason: String,
    },
    /// Somebody wants it tried again.
    Reset,
    /// It was not run, or stopped, because somebody said so or because an earlier stage did not end well.
    Cancelled {
        /// Who or what.
        reason: String,
    },
}

/// An event and when it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Seconds since 1970, of the writer's clock.
    pub at_unix_s: u64,
    /// The last beat of the job that was at work: where it died without a word, its hours end there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alive_unix_s: Option<u64>,
    /// What happened.
    pub event: Event,
}

/// Where a stage stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Nothing was done yet.
    #[default]
    Planned,
    /// A client is submitting it, or died while it did.
    Submitting,
    /// The scheduler has it.
    Submitted,
    /// Its job runs.
    Running,
    /// Its results are there and checked. Final.
    Done,
    /// It ended otherwise.
    Failed,
    /// It was stopped or never started.
    Cancelled,
}

impl Phase {
    /// The name in messages and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Submitting => "submitting",
            Self::Submitted => "submitted",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether a job may exist.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Submitting | Self::Submitted | Self::Running)
    }
}

/// A stage's state, folded from its log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StageState {
    /// Where it stands.
    pub phase: Phase,
    /// How often it was submitted, or started by hand.
    pub attempts: u32,
    /// The name of the last submission.
    pub job_name: Option<String>,
    /// The last job's id.
    pub job: Option<String>,
    /// Where it runs or ran last.
    pub host: Option<String>,
    /// Why it failed or was cancelled.
    pub reason: Option<String>,
    /// Sessions of work of all attempts: seconds since 1970 at start and end; an open one ends at `None`.
    pub sessions: Vec<(u64, Option<u64>)>,
}

impl StageState {
    /// The state after `entries`.
    pub fn of(entries: &[Entry]) -> Self {
        let mut state = Self::default();
        entries.iter().for_each(|entry| state.apply(entry));
        state
    }

    fn apply(&mut self, entry: &Entry) {
        if self.phase == Phase::Done {
            return;
        }
        let at = entry.at_unix_s;
        let worked_until = entry.alive_unix_s.map_or(at, |alive| at.min(alive + BEAT_S));
        match &entry.event {
            Event::Submitting { name } => {
                self.end_session(worked_until);
                self.attempts += 1;
                (self.phase, self.job_name, self.job) = (Phase::Submitting, Some(name.clone()), None);
                self.reason = None;
            }
            Event::NotSubmitted { reason } if self.phase == Phase::Submitting => {
                self.attempts = self.attempts.saturating_sub(1);
                (self.phase, self.reason) = (Phase::Planned, Some(reason.clone()));
            }
            Event::NotSubmitted { .. } => {}
            // The job may have started before its client wrote down its id.
            Event::Submitted { job } if self.phase == Phase::Submitting => {
                (self.phase, self.job) = (Phase::Submitted, Some(job.clone()));
            }
            Event::Submitted { .. } => {}
            Event::Started { job, host } => {
                self.end_session(worked_until);
                if self.attempts == 0 {
                    self.attempts = 1;
                }
                // Started by hand: the name is that of an earlier job.
                if self.phase != Phase::Submitting && self.job.as_ref() != Some(job) {
                    self.job_name = None;
                }
                self.phase = Phase::Running;
                (self.job, self.host, self.reason) = (Some(job.clone()), Some(host.clone()), None);
                self.sessions.push((at, None));
            }
            // The work of one job says nothing about what another one saw.
            Event::Noted { job, reason } => {
                if self.job.as_ref().is_none_or(|mine| mine == job) && self.phase != Phase::Running {
                    self.reason = Some(reason.clone());
                }
            }
            Event::Requeued { job, .. } => {
                self.end_session(worked_until);
                (self.phase, self.job) = (Phase::Submitted, Some(job.clone()));
            }
            Event::Done { job } => {
                self.end_session(worked_until);
                (self.phase, self.job, self.reason) = (Phase::Done, Some(job.clone()), None);
            }
            Event::Failed { reason, .. } => {
                self.end_session(worked_until);
                (self.phase, self.reason) = (Phase::Failed, Some(reason.clone()));
            }
            Event::Reset if self.phase.is_open() => {}
            Event::Reset => {
                (self.phase, self.job, self.job_name, self.reason) = (Phase::Planned, None, None, None);
            }
            Event::Cancelled { reason } => {
                self.end_session(worked_until);
                (self.phase, self.reason) = (Phase::Cancelled, Some(reason.clone()));
            }
        }
    }

    fn end_session(&mut self, at: u64) {
        if let Some((start, end @ None)) = self.sessions.last_mut() {
            *end = Some(at.max(*start));
        }
    }

    /// Seconds of all sessions, an open one up to `now_unix_s`.
    pub fn worked_s(&self, now_unix_s: u64) -> u64 {
        self.sessions.iter().map(|(start, end)| end.unwrap_or(now_unix_s).saturating_sub(*start)).sum()
    }
}

/// The folder of a stage's state.
pub fn folder(run: &Path, stage: &str) -> PathBuf {
    run.join("state").join(stage)
}

fn log_of(run: &Path, stage: &str) -> PathBuf {
    folder(run, stage).join("events.log")
}

/// Every entry of a stage; none where nothing happened.
pub fn entries(run: &Path, stage: &str) -> Result<Vec<Entry>> {
    let path = log_of(run, stage);
    if !path.exists() {
        return Ok(Vec::new());
    }
    Ok(log::read(&path)?)
}

/// Where a stage stands.
pub fn read(run: &Path, stage: &str) -> Result<StageState> {
    Ok(StageState::of(&entries(run, stage)?))
}

/// How long a writer waits for another one's line.
const PATIENCE: Duration = Duration::from_secs(60);

/// Appends the event that `decide` makes of the present state, if it makes one; nobody else writes in between. Returns the state
/// after it.
pub fn update(
    run: &Path,
    stage: &str,
    decide: impl FnOnce(&StageState) -> Result<Option<Event>>,
) -> Result<StageState> {
    let (mut log, entries) = open(&log_of(run, stage))?;
    let mut state = StageState::of(&entries);
    if let Some(event) = decide(&state)? {
        let is_at_work = state.sessions.last().is_some_and(|(_, end)| end.is_none());
        let alive_unix_s = if is_at_work { last_beat(run, stage) } else { None };
        let entry = Entry { at_unix_s: now_unix_s(), alive_unix_s, event };
        log.append(&entry)?;
        log.sync()?;
        state.apply(&entry);
    }
    Ok(state)
}

/// Seconds that a job which lives may be silent.
const BEAT_S: u64 = 60;

/// When a job of the stage was last seen alive.
fn last_beat(run: &Path, stage: &str) -> Option<u64> {
    let beat = crate::pulse::path_of(run, stage).metadata().ok()?.modified().ok()?;
    beat.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}

/// Opens the log, waiting for a writer that holds it for the time of a line.
fn open(path: &Path) -> Result<(Log, Vec<Entry>)> {
    let started = Instant::now();
    loop {
        match Log::open::<Entry>(path) {
            Ok(opened) => return Ok(opened),
            Err(error @ aloe_record::Error::Log { .. }) if started.elapsed() > PATIENCE => return Err(error.into()),
            // A damaged log stays damaged: the reader without a lock tells the two apart.
            Err(aloe_record::Error::Log { .. }) if log::read::<Entry>(path).is_ok() => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Seconds since 1970.
pub fn now_unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

/// Refused: what the state does not allow.
pub(crate) fn refused(stage: &str, reason: impl Into<String>) -> Error {
    Error::State { stage: stage.to_owned(), reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(at_unix_s: u64, event: Event) -> Entry {
        Entry { at_unix_s, alive_unix_s: None, event }
    }

    fn started(job: &str) -> Event {
        Event::Started { job: job.into(), host: "n1".into() }
    }

    #[test]
    fn a_stage_goes_from_planned_over_submitted_and_running_to_done_and_stays_there() {
        let events = [
            (Event::Submitting { name: "x".into() }, Phase::Submitting),
            (Event::Submitted { job: "7".into() }, Phase::Submitted),
            (started("7"), Phase::Running),
            (Event::Requeued { job: "7".into(), from_step: None }, Phase::Submitted),
            (started("7"), Phase::Running),
            (Event::Done { job: "7".into() }, Phase::Done),
            (Event::Failed { job: None, reason: "late".into() }, Phase::Done),
        ];
        let mut entries = Vec::new();
        assert_eq!(StageState::of(&entries).phase, Phase::Planned);
        for (second, (event, phase)) in events.into_iter().enumerate() {
            entries.push(at(100 + 10 * second as u64, event));
            assert_eq!(StageState::of(&entries).phase, phase, "{:?}", entries.last());
        }
        let state = StageState::of(&entries);
        // Sessions 120 to 130 and 140 to 150: 20 s of work in one attempt.
        assert_eq!((state.attempts, state.worked_s(999), state.job.as_deref()), (1, 20, Some("7")));
        assert_eq!(state.sessions, [(120, Some(130)), (140, Some(150))]);
    }

    #[test]
    fn a_client_that_died_before_it_wrote_the_jobs_id_loses_nothing_when_the_job_speaks_first() {
        let entries = [at(1, Event::Submitting { name: "x".into() }), at(2, started("9"))];
        let state = StageState::of(&entries);
        assert_eq!((state.phase, state.job.as_deref()), (Phase::Running, Some("9")));
        let late = [entries.as_slice(), &[at(3, Event::Submitted { job: "9".into() })]].concat();
        assert_eq!(StageState::of(&late).phase, Phase::Running);
    }

    #[test]
    fn a_job_that_was_started_by_hand_has_not_the_name_of_the_one_submitted_before() {
        let submitted = [at(1, Event::Submitting { name: "x".into() }), at(2, Event::Submitted { job: "7".into() })];
        let with = |job: &str| StageState::of(&[submitted.as_slice(), &[at(3, started(job))]].concat()).job_name;
        assert_eq!((with("7").as_deref(), with("8")), (Some("x"), None));
    }

    #[test]
    fn a_new_attempt_forgets_the_reason_and_the_job_of_the_failed_one_and_keeps_its_hours() {
        let mut entries = vec![at(0, started("1")), at(60, Event::Failed { job: None, reason: "disk".into() })];
        assert_eq!(StageState::of(&entries).reason.as_deref(), Some("disk"));
        entries.push(at(100, Event::Submitting { name: "y".into() }));
        let state = StageState::of(&entries);
        assert_eq!((state.attempts, state.job, state.reason.clone()), (2, None, None));
        assert_eq!(StageState::of(&entries).worked_s(500), 60);
    }

    #[test]
    fn a_session_that_died_without_a_word_ends_a_beat_after_it_was_last_alive_and_not_when_the_next_begins() {
        let dir = tempfile::tempdir().unwrap();
        update(dir.path(), "sft", |_| Ok(Some(started("1")))).unwrap();
        let beat = std::fs::File::create(crate::pulse::path_of(dir.path(), "sft")).unwrap();
        // Its node died after two hours; the next session begins ten hours later.
        let begun = read(dir.path(), "sft").unwrap().sessions[0].0;
        let mut entries = entries(dir.path(), "sft").unwrap();
        beat.set_modified(UNIX_EPOCH + Duration::from_secs(begun + 7200)).unwrap();
        let alive_unix_s = last_beat(dir.path(), "sft");
        entries.push(Entry { at_unix_s: begun + 43_200, alive_unix_s, event: started("1") });
        entries.push(Entry {
            at_unix_s: begun + 43_300,
            alive_unix_s: Some(begun + 43_290),
            event: Event::Done { job: "1".into() },
        });
        let state = StageState::of(&entries);
        assert_eq!(state.sessions, [(begun, Some(begun + 7260)), (begun + 43_200, Some(begun + 43_300))]);
        assert_eq!(state.worked_s(u64::MAX), 7360);
    }

    #[test]
    fn the_time_of_the_last_beat_is_written_with_what_ends_a_session() {
        let dir = tempfile::tempdir().unwrap();
        update(dir.path(), "sft", |_| Ok(Some(started("1")))).unwrap();
        let beat = std::fs::File::create(crate::pulse::path_of(dir.path(), "sft")).unwrap();
        beat.set_modified(UNIX_EPOCH + Duration::from_secs(1000)).unwrap();
        let event = Event::Failed { job: None, reason: "its node died".into() };
        update(dir.path(), "sft", |_| Ok(Some(event))).unwrap();
        let found: Vec<Option<u64>> = entries(dir.path(), "sft").unwrap().iter().map(|one| one.alive_unix_s).collect();
        assert_eq!(found, [None, Some(1000)]);
    }

    #[test]
    fn eight_writers_at_once_lose_no_entry_and_each_decides_on_what_the_others_wrote() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for writer in 0..8 {
                let run = dir.path();
                scope.spawn(move || {
                    for _ in 0..5 {
                        update(run, "sft", |state| {
                            let name = format!("{}-{writer}", state.attempts);
                            Ok(Some(Event::Submitting { name }))
                        })
                        .unwrap();
                    }
                });
            }
        });
        let entries = entries(dir.path(), "sft").unwrap();
        assert_eq!(entries.len(), 40);
        for (at, entry) in entries.iter().enumerate() {
            let Event::Submitting { name } = &entry.event else { panic!("{entry:?}") };
            assert!(name.starts_with(&format!("{at}-")), "entry {at} was decided on another state: {name}");
        }
    }

    #[test]
    fn a_damaged_log_is_told_at_once_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        update(dir.path(), "sft", |_| Ok(Some(started("1")))).unwrap();
        update(dir.path(), "sft", |_| Ok(Some(started("1")))).unwrap();
        let path = log_of(dir.path(), "sft");
        let text = std::fs::read_to_string(&path).unwrap().replacen("n1", "n2", 1);
        std::fs::write(&path, text).unwrap();
        let before = Instant::now();
        let refused = update(dir.path(), "sft", |_| Ok(None)).unwrap_err().to_string();
        assert!(refused.contains("line 1 fails its checksum"), "{refused}");
        assert!(before.elapsed() < Duration::from_secs(10));
    }
}
