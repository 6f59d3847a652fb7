//! From a run folder's plan and what happened so far to the next submissions: what `aloe run`, `resume` and `status` of a run folder do.
//!
//! One pass is [`look`] (hold each open stage against the scheduler, and say what became of it) and then [`submit`] (what can go next).
//! Both may be repeated, interrupted and run by several clients: a lock keeps clients apart, and an event is written only where
//! the state it was decided on still stands.

use crate::engine::mistakes_of_written;
use crate::home;
use crate::job::{done_mark, is_done};
use crate::lock::{StageLock, is_held};
use crate::plan::{RunPlan, StagePlan, is_set_aside};
use crate::scheduler::{Array, Observed, Scheduler, Submission, array_job_id};
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
/// begun is left to that client while it lives, and a copy of a run folder is left as it is.
pub fn look(run: &Path, plan: &RunPlan, scheduler: &dyn Scheduler) -> Result<()> {
    pass(run, plan, scheduler, None)
}

/// One look; `client` is the caller's lock, where it has it.
fn pass(run: &Path, plan: &RunPlan, scheduler: &dyn Scheduler, client: Option<&StageLock>) -> Result<()> {
    match client {
        Some(client) => {
            home::claim(run, plan, client)?;
        }
        None => {
            if let Some(from) = home::copied_from(run)? {
                aloe_record::tell(&format!(
                    "note: {} looks like a copy of {}; its jobs are not asked about here; `aloe run`, `resume` or `cancel` makes it a run of \
                     its own",
                    run.display(),
                    from.display()
                ));
                return Ok(());
            }
        }
    }
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
    let found = scheduler.find(name)?.map(|id| job_of(stage, id, scheduler));
    update(run, &stage.name, |now| {
        let is_as_seen = now.phase == Phase::Submitting && now.job_name.as_deref() == Some(name);
        Ok(is_as_seen.then(|| match found {
            Some(job) => Event::Submitted { job },
            None => Event::NotSubmitted { reason: "the client ended before it was submitted".to_owned() },
        }))
    })?;
    Ok(())
}

/// How the word about a job begins that somebody must release.
const HELD: &str = "it is held: ";

/// How the word about a job begins that waits for more than its turn.
const WAITS: &str = "it waits: ";

/// What the scheduler says of a job, against what the job said itself.
fn settle(run: &Path, stage: &StagePlan, job: &str, state: &StageState, scheduler: &dyn Scheduler) -> Result<()> {
    let reason_of_end = match scheduler.observe(job, state.job_name.as_deref())? {
        Observed::Waiting if has_noted(state, HELD) => {
            return note(run, stage, job, "it was released and waits".to_owned());
        }
        Observed::Waiting if has_noted(state, WAITS) => {
            return note_at_times(run, stage, job, "it waits for its turn".to_owned());
        }
        Observed::Waiting | Observed::Running => return Ok(()),
        Observed::Held(reason) => return note(run, stage, job, format!("{HELD}{reason}")),
        Observed::Delayed(reason) => return note_at_times(run, stage, job, format!("{WAITS}{reason}")),
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

fn has_noted(state: &StageState, beginning: &str) -> bool {
    state.reason.as_ref().is_some_and(|reason| reason.starts_with(beginning))
}

/// The least time between two notes of why a job waits: Slurm's reason may be another at every look, a limit now and its turn then.
const BETWEEN_NOTES_S: u64 = 3600;

/// Writes why a job waits, unless something was noted of it within the last hour.
fn note_at_times(run: &Path, stage: &StagePlan, job: &str, reason: String) -> Result<()> {
    let since = state::now_unix_s().saturating_sub(BETWEEN_NOTES_S);
    let is_recent = |entry: &state::Entry| {
        entry.at_unix_s > since && matches!(&entry.event, Event::Noted { job: noted, .. } if noted == job)
    };
    match state::entries(run, &stage.name)?.iter().any(is_recent) {
        true => Ok(()),
        false => note(run, stage, job, reason),
    }
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
    if let (Phase::Submitted, Some(job)) = (now.phase, &now.job) {
        cancel_own(job, now.job_name.as_deref(), scheduler)?;
    }
    update(run, &stage.name, |then| {
        let is_as_seen = then.phase == now.phase && then.job == now.job;
        Ok(is_as_seen.then(|| Event::Cancelled { reason: format!("stage {earlier} did not end well") }))
    })?;
    Ok(())
}

/// Cancels a job, and never another one that has its number.
fn cancel_own(job: &str, name: Option<&str>, scheduler: &dyn Scheduler) -> Result<()> {
    match scheduler.observe(job, name)? {
        Observed::Unknown => Ok(()),
        _ => scheduler.cancel(job),
    }
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
    let planned = wanted.clone();
    if !scheduler.holds_back() {
        wanted = next_alone(run, plan, wanted)?;
    }
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    // Those of stages that wait for others too: their turn may come after days.
    let of_configs: Vec<String> =
        planned.iter().map(|stage| mistakes_of_written(run, stage)).collect::<Result<Vec<_>>>()?.concat();
    let mistakes = [of_configs, scheduler.preflight(run, &wanted)?].concat();
    if !mistakes.is_empty() {
        return Err(Error::Preflight { mistakes });
    }
    let token = home::run_token(run)?;
    let mut submitted = Vec::new();
    for together in wanted.chunk_by(|a, b| goes_with(a, b) && scheduler.has_arrays()) {
        match together {
            [stage, ..] if stage.shard().is_some() && scheduler.has_arrays() => {
                submitted.extend(submit_array(run, together, &token, scheduler)?);
            }
            stages => {
                for stage in stages {
                    submitted.push((stage.name.clone(), submit_one(run, stage, &token, scheduler)?));
                }
            }
        }
    }
    Ok(submitted)
}

/// Whether two are shards of one stage.
fn goes_with(a: &StagePlan, b: &StagePlan) -> bool {
    matches!((a.shard(), b.shard()), (Some(a), Some(b)) if a.of == b.of)
}

fn client_lock(run: &Path) -> Result<StageLock> {
    let wrong = |reason| Error::Folder { path: run.to_path_buf(), reason };
    let client = StageLock::of_client(run)?;
    let client = client.map_err(|who| wrong(format!("{who} is submitting or planning this run; wait for it")))?;
    // This client read the plan before, and waited for the lock of whoever set it aside.
    if is_set_aside(run) {
        return Err(wrong("another plan is being written over it; wait for it".to_owned()));
    }
    Ok(client)
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

/// Ids of the jobs that a stage must wait for.
fn jobs_before(run: &Path, stage: &StagePlan) -> Result<Vec<String>> {
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
    Ok(after)
}

/// How often a stage was submitted, those times included when the scheduler refused: a name is never used twice.
fn n_submissions(run: &Path, stage: &StagePlan) -> Result<usize> {
    let entries = state::entries(run, &stage.name)?;
    Ok(entries.iter().filter(|entry| matches!(entry.event, Event::Submitting { .. })).count())
}

fn submit_one(run: &Path, stage: &StagePlan, token: &str, scheduler: &dyn Scheduler) -> Result<String> {
    let after = jobs_before(run, stage)?;
    let name = format!("aloe-{token}-{}-{}", stage.name, n_submissions(run, stage)? + 1);
    let submission = Submission { run, stage, name: &name, after: &after };
    let job = submit_as(run, &[stage], &name, scheduler, || scheduler.submit(&submission))?;
    submitted(run, stage, &job)?;
    Ok(job)
}

/// Submits shards of one stage as an array; the names and ids of its jobs.
fn submit_array(
    run: &Path,
    shards: &[&StagePlan],
    token: &str,
    scheduler: &dyn Scheduler,
) -> Result<Vec<(String, String)>> {
    let (mut of, mut after, mut n_before) = ("", Vec::new(), 0);
    for shard in shards {
        of = shard.in_recipe();
        after.extend(jobs_before(run, shard)?);
        n_before = n_before.max(n_submissions(run, shard)?);
    }
    after.sort();
    after.dedup();
    // A name of no other array: one of other shards may have been submitted as often.
    let first = shards.first().and_then(|shard| shard.shard()).map_or(0, |shard| shard.index);
    let name = format!("aloe-{token}-{of}-from-{first}-{}", n_before + 1);
    let array = Array { run, shards, name: &name, after: &after };
    let id = submit_as(run, shards, &name, scheduler, || scheduler.submit_array(&array))?;
    let mut jobs = Vec::new();
    for shard in shards {
        let job = job_of(shard, id.clone(), scheduler);
        submitted(run, shard, &job)?;
        jobs.push((shard.name.clone(), job));
    }
    Ok(jobs)
}

/// The id of a stage's own job, where `id` may be that of an array.
fn job_of(stage: &StagePlan, id: String, scheduler: &dyn Scheduler) -> String {
    match stage.shard().filter(|_| scheduler.has_arrays()) {
        Some(shard) => array_job_id(&id, shard.index),
        None => id,
    }
}

/// One submission under a name that is written down first; what the scheduler called it.
fn submit_as(
    run: &Path,
    stages: &[&StagePlan],
    name: &str,
    scheduler: &dyn Scheduler,
    submit: impl FnOnce() -> Result<String>,
) -> Result<String> {
    for stage in stages {
        update(run, &stage.name, |_| Ok(Some(Event::Submitting { name: name.to_owned() })))?;
    }
    match submit() {
        Ok(job) => Ok(job),
        // The controller may have taken it all the same.
        Err(error) => match scheduler.find(name) {
            Ok(Some(job)) => Ok(job),
            // Without an answer nothing is known: the next look finds out.
            Err(_) => Err(error),
            Ok(None) => {
                for stage in stages {
                    let reason = error.to_string();
                    update(run, &stage.name, |_| Ok(Some(Event::NotSubmitted { reason })))?;
                }
                Err(error)
            }
        },
    }
}

/// Writes down a job's id, unless the job has said more meanwhile.
fn submitted(run: &Path, stage: &StagePlan, job: &str) -> Result<()> {
    update(run, &stage.name, |now| {
        let is_as_left = now.phase == Phase::Submitting;
        Ok(is_as_left.then(|| Event::Submitted { job: job.to_owned() }))
    })?;
    Ok(())
}

/// Cancels every job of the run.
pub fn cancel(run: &Path, plan: &RunPlan, scheduler: &dyn Scheduler, reason: &str) -> Result<()> {
    let client = client_lock(run)?;
    home::claim(run, plan, &client)?;
    // The last first: a scheduler must not start one because the one before it was cancelled.
    for stage in plan.stages.iter().rev() {
        let state = state::read(run, &stage.name)?;
        let Some(job) = state.job.filter(|_| state.phase.is_open()) else { continue };
        let is_gone = scheduler.observe(&job, state.job_name.as_deref())? == Observed::Unknown;
        if is_gone && is_held(run, &stage.name)? {
            // What a killed job left behind is no job any more: nobody can be asked to end it.
            aloe_record::tell(&format!(
                "{}: job {job} is gone, and something that it started still works on {}; end that by hand, it cannot be cancelled",
                stage.name,
                state.host.as_deref().unwrap_or("its machine")
            ));
        }
        cancel_own(&job, state.job_name.as_deref(), scheduler)?;
        if state.phase == Phase::Submitted {
            end(run, stage, &job, Event::Cancelled { reason: reason.to_owned() })?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
