//! From a run folder's plan and what happened so far to the next submissions: what `aloe run`, `resume` and `status` of a run folder do.
//!
//! One pass is [`look`] (hold each open stage against the scheduler, and say what became of it) and then [`submit`] (what can go next).
//! Both may be repeated, interrupted and run by several clients: a lock keeps clients apart, and an event is written only where
//! the state it was decided on still stands.

use crate::job::{done_mark, is_done};
use crate::lock::{StageLock, is_held};
use crate::plan::{RunPlan, StagePlan};
use crate::scheduler::{Observed, Scheduler, Submission};
use crate::state::{self, Event, Phase, StageState, refused, update};
use crate::{Error, Result};
use std::path::Path;

/// A stage and where it stands.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Status {
    /// Its name.
    pub stage: String,
    /// Its kind.
    pub kind: String,
    /// Who does it.
    pub trainer: &'static str,
    /// Its state.
    #[serde(flatten)]
    pub state: StageState,
    /// Seconds of work so far, of all sessions.
    pub worked_s: u64,
}

/// Where every stage stands, as its log says.
pub fn status(run: &Path, plan: &RunPlan) -> Result<Vec<Status>> {
    let now = state::now_unix_s();
    let of = |stage: &StagePlan| -> Result<Status> {
        let state = state::read(run, &stage.name)?;
        let worked_s = state.worked_s(now);
        let trainer = stage.trainer.name();
        Ok(Status { stage: stage.name.clone(), kind: stage.kind.clone(), trainer, state, worked_s })
    };
    plan.stages.iter().map(of).collect()
}

/// Holds every open stage against the scheduler, and cancels what follows a stage that did not end well. A submission that a client has
/// begun is left to that client while it lives.
pub fn look(run: &Path, plan: &RunPlan, scheduler: &dyn Scheduler) -> Result<()> {
    pass(run, plan, scheduler, None)
}

/// One look; `client` is the caller's lock, where it has it.
fn pass(run: &Path, plan: &RunPlan, scheduler: &dyn Scheduler, client: Option<&StageLock>) -> Result<()> {
    for stage in &plan.stages {
        // First: what waited for a failed stage is cancelled, whether or not its own job is still known.
        cancel_after_failure(run, stage, scheduler)?;
        let state = state::read(run, &stage.name)?;
        match (state.phase, &state.job, &state.job_name) {
            (Phase::Submitting, _, Some(name)) => {
                // Between its word and sbatch's answer the scheduler knows nothing of it yet.
                let own = if client.is_none() { StageLock::of_client_now(run)? } else { None };
                if let Some(client) = client.or(own.as_ref()) {
                    adopt(run, stage, name, scheduler, client)?;
                }
            }
            (Phase::Submitted | Phase::Running, Some(job), _) => settle(run, stage, job, &state, scheduler)?,
            _ => {}
        }
    }
    Ok(())
}

/// A client died, or sbatch failed, between the first word of a submission and its id: known by the lock, which no other client has.
fn adopt(run: &Path, stage: &StagePlan, name: &str, scheduler: &dyn Scheduler, _client: &StageLock) -> Result<()> {
    let found = scheduler.find(name)?;
    update(run, &stage.name, |now| {
        let is_as_seen = now.phase == Phase::Submitting && now.job_name.as_deref() == Some(name);
        Ok(is_as_seen.then(|| match found {
            Some(job) => Event::Submitted { job },
            None => Event::NotSubmitted { reason: "the client ended before it was submitted".to_owned() },
        }))
    })?;
    Ok(())
}

/// Whether the scheduler's job of this id is the one that was submitted, and not somebody else's who got its number.
fn is_ours(job: &str, state: &StageState, scheduler: &dyn Scheduler) -> Result<bool> {
    let Some(name) = &state.job_name else { return Ok(true) };
    Ok(scheduler.name_of(job)?.is_none_or(|known| known == *name))
}

/// How the word about a job begins that somebody must release.
const HELD: &str = "it is held: ";

/// What the scheduler says of a job, against what the job said itself.
fn settle(run: &Path, stage: &StagePlan, job: &str, state: &StageState, scheduler: &dyn Scheduler) -> Result<()> {
    let observed = match is_ours(job, state, scheduler)? {
        true => scheduler.observe(job)?,
        false => Observed::Unknown,
    };
    let reason_of_end = match observed {
        Observed::Waiting if state.reason.as_ref().is_some_and(|reason| reason.starts_with(HELD)) => {
            return note(run, stage, job, "it was released and waits".to_owned());
        }
        Observed::Waiting | Observed::Running => return Ok(()),
        Observed::Held(reason) => return note(run, stage, job, format!("{HELD}{reason}")),
        Observed::EndedWell => "its job ended well without DONE in its place".to_owned(),
        // A requeued job that found its orphan at work and gave up has failed in Slurm's eyes; the work goes on.
        Observed::Failed(_) if is_held(run, &stage.name)? => return Ok(()),
        Observed::Failed(reason) => match &state.reason {
            Some(noted) => format!("{reason}; {noted}"),
            None => reason,
        },
        Observed::Cancelled(reason) => return end(run, stage, job, Event::Cancelled { reason }),
        // Whoever holds the lock works on it, whatever the scheduler has forgotten.
        Observed::Unknown if is_held(run, &stage.name)? => return Ok(()),
        // The scheduler has forgotten a job that waited for another: nothing ran, so nothing failed.
        Observed::Unknown if state::read(run, &stage.name)?.sessions.is_empty() && !stage.after.is_empty() => {
            let reason = "its job vanished before it began: the scheduler does not know it".to_owned();
            return end(run, stage, job, Event::Cancelled { reason });
        }
        Observed::Unknown => "its job vanished: the scheduler does not know it and nobody holds its lock".to_owned(),
    };
    end(run, stage, job, Event::Failed { job: Some(job.to_owned()), reason: reason_of_end })
}

/// Writes what holds a job back and tells it, once.
fn note(run: &Path, stage: &StagePlan, job: &str, reason: String) -> Result<()> {
    let mut is_new = false;
    update(run, &stage.name, |now| {
        is_new = now.phase.is_open() && now.job.as_deref() == Some(job) && now.reason.as_ref() != Some(&reason);
        Ok(is_new.then(|| Event::Noted { job: job.to_owned(), reason: reason.clone() }))
    })?;
    if is_new {
        aloe_record::tell(&format!("{}: {reason}", stage.name));
    }
    Ok(())
}

/// Writes how a job ended, unless it said so itself in the meantime.
fn end(run: &Path, stage: &StagePlan, job: &str, event: Event) -> Result<()> {
    update(run, &stage.name, |now| {
        let is_as_seen = now.phase.is_open() && now.job.as_deref() == Some(job);
        let event = match done_mark(run, &stage.name).exists() {
            true => Event::Done { job: job.to_owned() },
            false => event,
        };
        Ok(is_as_seen.then_some(event))
    })?;
    Ok(())
}

/// A stage that waits for one which failed or was cancelled is cancelled too.
fn cancel_after_failure(run: &Path, stage: &StagePlan, scheduler: &dyn Scheduler) -> Result<()> {
    let mut failed = None;
    for earlier in &stage.after {
        if matches!(state::read(run, earlier)?.phase, Phase::Failed | Phase::Cancelled) {
            failed = Some(earlier);
        }
    }
    let Some(earlier) = failed else { return Ok(()) };
    let now = state::read(run, &stage.name)?;
    let waits = matches!(now.phase, Phase::Planned | Phase::Submitted);
    if !waits {
        return Ok(());
    }
    if let (Phase::Submitted, Some(job)) = (now.phase, &now.job)
        && is_ours(job, &now, scheduler)?
    {
        scheduler.cancel(job)?;
    }
    update(run, &stage.name, |then| {
        let is_as_seen = then.phase == now.phase && then.job == now.job;
        Ok(is_as_seen.then(|| Event::Cancelled { reason: format!("stage {earlier} did not end well") }))
    })?;
    Ok(())
}

/// Submits every stage that may go: all that are planned where the scheduler holds jobs back, one whose inputs are done otherwise.
/// Returns the names and ids of what was submitted.
pub fn submit(run: &Path, plan: &RunPlan, scheduler: &dyn Scheduler) -> Result<Vec<(String, String)>> {
    let client = client_lock(run)?;
    pass(run, plan, scheduler, Some(&client))?;
    let mut wanted = Vec::new();
    for stage in &plan.stages {
        let now = state::read(run, &stage.name)?;
        match now.phase {
            Phase::Planned => wanted.push(stage),
            Phase::Failed | Phase::Cancelled => {
                let reason = now.reason.unwrap_or_default();
                let text = format!("{}: {reason}; `aloe resume RUN` tries again", now.phase.name());
                return Err(refused(&stage.name, text));
            }
            _ => {}
        }
    }
    if !scheduler.holds_back() {
        wanted = next_alone(run, plan, wanted)?;
    }
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let mistakes = scheduler.preflight(run, &wanted)?;
    if !mistakes.is_empty() {
        return Err(Error::Preflight { mistakes });
    }
    let token = state::run_token(run)?;
    wanted.into_iter().map(|stage| Ok((stage.name.clone(), submit_one(run, stage, &token, scheduler)?))).collect()
}

fn client_lock(run: &Path) -> Result<StageLock> {
    StageLock::of_client(run)?.map_err(|who| {
        let reason = format!("{who} is submitting this run; wait for it");
        Error::Folder { path: run.to_path_buf(), reason }
    })
}

/// Lets stages that failed or were cancelled be tried again, after a last look at what became of them. Returns their names.
pub fn reset(run: &Path, plan: &RunPlan, scheduler: &dyn Scheduler) -> Result<Vec<String>> {
    let client = client_lock(run)?;
    pass(run, plan, scheduler, Some(&client))?;
    let mut names = Vec::new();
    for stage in &plan.stages {
        let ended = |phase: Phase| matches!(phase, Phase::Failed | Phase::Cancelled);
        if ended(state::read(run, &stage.name)?.phase) {
            update(run, &stage.name, |now| Ok(ended(now.phase).then_some(Event::Reset)))?;
            names.push(stage.name.clone());
        }
    }
    Ok(names)
}

/// Without a scheduler that waits: the first stage whose inputs are done, when none is at work.
fn next_alone<'p>(run: &Path, plan: &RunPlan, wanted: Vec<&'p StagePlan>) -> Result<Vec<&'p StagePlan>> {
    for stage in &plan.stages {
        if state::read(run, &stage.name)?.phase.is_open() || is_held(run, &stage.name)? {
            return Ok(Vec::new());
        }
    }
    for stage in wanted {
        if stage.after.iter().map(|name| is_done(run, name)).collect::<Result<Vec<bool>>>()?.iter().all(|done| *done) {
            return Ok(vec![stage]);
        }
    }
    Ok(Vec::new())
}

fn submit_one(run: &Path, stage: &StagePlan, token: &str, scheduler: &dyn Scheduler) -> Result<String> {
    let mut after = Vec::new();
    for earlier in &stage.after {
        if is_done(run, earlier)? {
            continue;
        }
        let state = state::read(run, earlier)?;
        match state.job.filter(|_| state.phase.is_open()) {
            Some(job) => after.push(job),
            None => return Err(refused(&stage.name, format!("stage {earlier}, which it needs, has no job"))),
        }
    }
    // Counted over all submissions, those that the scheduler refused included: a name is never used twice.
    let n_before = state::entries(run, &stage.name)?
        .iter()
        .filter(|entry| matches!(entry.event, Event::Submitting { .. }))
        .count();
    let name = format!("aloe-{token}-{}-{}", stage.name, n_before + 1);
    update(run, &stage.name, |_| Ok(Some(Event::Submitting { name: name.clone() })))?;
    let submission = Submission { run, stage, name: &name, after: &after };
    let job = match scheduler.submit(&submission) {
        Ok(job) => job,
        // The controller may have taken it all the same.
        Err(error) => match scheduler.find(&name) {
            Ok(Some(job)) => job,
            // Without an answer nothing is known: the next look finds out.
            Err(_) => return Err(error),
            Ok(None) => {
                let reason = error.to_string();
                update(run, &stage.name, |_| Ok(Some(Event::NotSubmitted { reason })))?;
                return Err(error);
            }
        },
    };
    update(run, &stage.name, |now| {
        let is_as_left = now.phase == Phase::Submitting;
        Ok(is_as_left.then(|| Event::Submitted { job: job.clone() }))
    })?;
    Ok(job)
}

/// Cancels every job of the run.
pub fn cancel(run: &Path, plan: &RunPlan, scheduler: &dyn Scheduler, reason: &str) -> Result<()> {
    // The last first: a scheduler must not start one because the one before it was cancelled.
    for stage in plan.stages.iter().rev() {
        let state = state::read(run, &stage.name)?;
        let Some(job) = state.job.clone().filter(|_| state.phase.is_open()) else { continue };
        if is_ours(&job, &state, scheduler)? {
            scheduler.cancel(&job)?;
        }
        if state.phase == Phase::Submitted {
            end(run, stage, &job, Event::Cancelled { reason: reason.to_owned() })?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
