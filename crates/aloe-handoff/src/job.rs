//! One job of a stage, on the machine where it runs: take the stage's lock, say that it started, work, check, and only then put DONE in
//! its place. Under Slurm and on this machine alike; `aloe job` is this file.
//!
//! Told to save (USR1, some time before the limit) it stops the work, waits until it has saved, and goes back into the queue. Our own trainer
//! saves on SIGTERM; a foreign one is asked by a file first, which its start script looks for after every step and before every held-out row.
//! It never begins a stage that another job has, one that is done, or one whose inputs are not.

mod cause;

use crate::cluster::Cluster;
use crate::lock::StageLock;
use crate::plan::{RunPlan, StagePlan, Trainer};
use crate::pulse::Pulse;
use crate::resume::{self, Beginning};
use crate::state::{self, Event, Phase, refused};
use crate::{Error, Result};
use aloe_engine::announced::JOB_VARIABLE;
use aloe_record::atomic;
pub(crate) use cause::how;
use cause::{LogsBefore, cause};
use rustix::process::{Pid, Signal, kill_process_group};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

/// What a running job was asked for by a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Nothing.
    Nothing,
    /// Save and go back into the queue: USR1.
    Save,
    /// Stop: SIGTERM, SIGINT.
    Stop,
}

/// Who runs a job and how.
pub struct Job<'a> {
    /// The run folder; the current folder of all scripts.
    pub run: &'a Path,
    /// The scheduler's id.
    pub id: String,
    /// The job's name, where a client gave it one of its own.
    pub name: Option<String>,
    /// This machine.
    pub host: String,
    /// The program, for the scripts.
    pub aloe: PathBuf,
    /// Ended after so long, where no scheduler does it.
    pub time_limit: Option<Duration>,
    /// How long work has to end after SIGTERM before it is killed; told to save, it has until its limit.
    pub grace: Duration,
    /// How long an earlier session of the same job is waited for.
    pub patience: Duration,
    /// Signals that came.
    pub asked: &'a dyn Fn() -> Asked,
    /// Puts the job back into the queue; a scheduler kills it soon after.
    pub requeue: &'a dyn Fn() -> Result<()>,
}

/// What came of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The stage is done, by this job or an earlier one.
    Done,
    /// It goes on later.
    Requeued,
    /// Another job has the stage, or it may not begin yet; nothing was touched.
    NotBegun(String),
    /// It failed, for this reason.
    Failed(String),
    /// It was stopped.
    Cancelled(String),
}

/// Runs the stage called `name`.
pub fn run(job: &Job<'_>, name: &str) -> Result<Outcome> {
    let of_site = job.run.join("cluster.toml");
    let cluster = Cluster::read(&of_site)?;
    let plan = RunPlan::read(job.run)?.at_site(&cluster, &of_site)?;
    let stage = plan.stage(name)?;
    let holder = format!("job {} on {}", job.id, job.host);
    // An orphan of this very job's earlier session may still be at work: its node's daemon was killed, not the node.
    let goes_on = || (job.asked)() == Asked::Nothing;
    let lock = match StageLock::take(job.run, name, &holder, job.patience, &goes_on)? {
        Ok(lock) => lock,
        Err(who) => return not_begun(job, name, format!("{who} is at work on it")),
    };
    match begin(job, stage)? {
        Some(Outcome::NotBegun(reason)) => return not_begun(job, name, reason),
        Some(outcome) => return Ok(outcome),
        None => {}
    }
    let pulse = Pulse::of(job.run, name);
    let outcome = work(job, stage, &cluster, &lock)?;
    drop(pulse);
    let event = match &outcome {
        Outcome::Done => Some(Event::Done { job: job.id.clone() }),
        Outcome::Failed(reason) => Some(Event::Failed { job: Some(job.id.clone()), reason: reason.clone() }),
        Outcome::Cancelled(reason) => Some(Event::Cancelled { reason: reason.clone() }),
        Outcome::Requeued | Outcome::NotBegun(_) => None,
    };
    if let Some(event) = event {
        state::update(job.run, name, |_| Ok(Some(event)))?;
    }
    Ok(outcome)
}

/// Writes down why a job did not begin: its scheduler will only know that it failed.
fn not_begun(job: &Job<'_>, stage: &str, reason: String) -> Result<Outcome> {
    state::update(job.run, stage, |now| {
        let is_mine = now.job.as_ref().is_none_or(|id| *id == job.id);
        let noted = Event::Noted { job: job.id.clone(), reason: format!("job {} did not begin: {reason}", job.id) };
        Ok(is_mine.then_some(noted))
    })?;
    Ok(Outcome::NotBegun(reason))
}

/// Says that the job started, unless it must not: then why.
fn begin(job: &Job<'_>, stage: &StagePlan) -> Result<Option<Outcome>> {
    for earlier in &stage.after {
        if !is_done(job.run, earlier)? {
            let reason = format!("stage {earlier:?}, which it needs, is not done");
            return Ok(Some(Outcome::NotBegun(reason)));
        }
    }
    let mut outcome = None;
    state::update(job.run, &stage.name, |now| {
        if now.phase == Phase::Done {
            outcome = Some(Outcome::Done);
            return Ok(None);
        }
        if done_mark(job.run, &stage.name).exists() {
            // Killed between the mark and the log.
            outcome = Some(Outcome::Done);
            return Ok(Some(Event::Done { job: job.id.clone() }));
        }
        let is_mine = match (&now.job, &now.job_name) {
            (Some(id), _) => *id == job.id,
            (None, Some(name)) => job.name.as_ref().is_none_or(|mine| mine == name),
            (None, None) => true,
        };
        if now.phase.is_open() && !is_mine {
            let other = now.job.as_deref().or(now.job_name.as_deref()).unwrap_or_default();
            outcome = Some(Outcome::NotBegun(format!("job {other} has the stage")));
            return Ok(None);
        }
        Ok(Some(Event::Started { job: job.id.clone(), host: job.host.clone() }))
    })?;
    Ok(outcome)
}

/// Work, then check, then the mark.
fn work(job: &Job<'_>, stage: &StagePlan, cluster: &Cluster, lock: &StageLock) -> Result<Outcome> {
    link_models(job.run, cluster)?;
    let started = Instant::now();
    // Once: the digests of a large checkpoint take minutes, and a check has no use for it.
    let beginning = resume::newest(job.run, stage);
    let said_before = LogsBefore::of(job, stage);
    if let Some(reason) = gets_nowhere(job, stage, &beginning)? {
        return Ok(Outcome::Failed(reason));
    }
    remove_stop_file(job, stage)?;
    for script in [RUN, "check.sh"] {
        match supervise(job, stage, cluster, lock, (script, &beginning), started)? {
            Ended::By(status) if status.success() => {}
            Ended::By(status) => {
                return Ok(Outcome::Failed(format!(
                    "{script}: {}{}",
                    how(status),
                    cause(job, stage, script, &said_before)
                )));
            }
            Ended::Asked(Asked::Save) => return requeue(job, stage, &beginning),
            // A scheduler sends SIGTERM at the time limit too.
            Ended::Asked(_) if started.elapsed() + LATE >= Duration::from_secs(stage.resources.time_limit_s) => {
                return Ok(Outcome::Failed(format!("{script}: the time limit of {} s", stage.resources.time_limit_s)));
            }
            Ended::Asked(_) => return Ok(Outcome::Cancelled(format!("{script} was stopped by a signal"))),
            Ended::TimeLimit => {
                let limit_s = job.time_limit.unwrap_or_default().as_secs();
                return Ok(Outcome::Failed(format!("{script}: the time limit of {limit_s} s")));
            }
        }
    }
    let mark = serde_json::json!({"job": job.id, "host": job.host, "worked_s": started.elapsed().as_secs()});
    atomic::write_json(&done_mark(job.run, &stage.name), &mark)?;
    Ok(Outcome::Done)
}

/// The file that says that a stage is done, renamed into its place after the check.
pub fn done_mark(run: &Path, stage: &str) -> PathBuf {
    state::folder(run, stage).join("DONE")
}

/// Whether a stage is done by its mark or its log.
pub fn is_done(run: &Path, stage: &str) -> Result<bool> {
    Ok(done_mark(run, stage).exists() || state::read(run, stage)?.phase == Phase::Done)
}

/// A job begins a little after its scheduler counts it.
const LATE: Duration = Duration::from_secs(5);

/// How often a job goes back into the queue before it counts as one that gets nowhere.
const MAX_SESSIONS: usize = 100;

/// Sessions in a row that may end at their limit where they began.
const MAX_FRUITLESS: usize = 2;

/// Why a foreign trainer's next session would be as fruitless as those before it: they saved no checkpoint newer than the one that this
/// session goes on from too. Our own trainer saves whenever it is told to.
fn gets_nowhere(job: &Job<'_>, stage: &StagePlan, beginning: &Beginning) -> Result<Option<String>> {
    let Some(step) = beginning.step else { return Ok(None) };
    let entries = state::entries(job.run, &stage.name)?;
    let is_new = |event: &Event| matches!(event, Event::Submitting { .. } | Event::Reset);
    let of_attempt = entries.iter().rev().take_while(|entry| !is_new(&entry.event));
    let began = of_attempt.filter_map(|entry| match &entry.event {
        Event::Requeued { from_step, .. } => Some(*from_step),
        _ => None,
    });
    let n_fruitless = began.take_while(|from| *from == Some(step)).count();
    Ok((n_fruitless >= MAX_FRUITLESS).then(|| {
        format!(
            "{n_fruitless} sessions in a row left no whole checkpoint after step {step}: one step and a checkpoint must fit into signal_before of \
             cluster.toml, and checkpoint_every steps, or one evaluation of the held-out rows, into the time limit"
        )
    }))
}

fn requeue(job: &Job<'_>, stage: &StagePlan, beginning: &Beginning) -> Result<Outcome> {
    let now = state::read(job.run, &stage.name)?;
    if now.sessions.len() >= MAX_SESSIONS {
        return Ok(Outcome::Failed(format!("{MAX_SESSIONS} sessions did not end it; give it more time or nodes")));
    }
    // Written first: the scheduler kills this process soon after the call.
    state::update(job.run, &stage.name, |_| {
        Ok(Some(Event::Requeued { job: job.id.clone(), from_step: beginning.step }))
    })?;
    match (job.requeue)() {
        Ok(()) => Ok(Outcome::Requeued),
        Err(error) => Ok(Outcome::Failed(format!("it saved before its time limit and could not be requeued: {error}"))),
    }
}

/// How a script ended.
enum Ended {
    By(ExitStatus),
    Asked(Asked),
    TimeLimit,
}

impl Ended {
    /// A script that ended by itself. A scheduler that cancels a job signals all of its processes at once: the script may have
    /// ended by it before this process has heard of it.
    fn of(status: ExitStatus, asked: &dyn Fn() -> Asked) -> Self {
        const SIGTERM: i32 = 15;
        let is_terminated = status.signal() == Some(SIGTERM) || status.code() == Some(128 + SIGTERM);
        let started = Instant::now();
        while is_terminated && started.elapsed() < Duration::from_secs(2) {
            match asked() {
                Asked::Nothing => std::thread::sleep(Duration::from_millis(20)),
                asked => return Self::Asked(asked),
            }
        }
        Self::By(status)
    }
}

/// A script of the stage in the run folder with the site's environment. All that it starts holds the stage's lock, as standard input and as
/// descriptor 9: a shell gives its background jobs another standard input, Python gives its children no other descriptor.
fn command(job: &Job<'_>, stage: &StagePlan, cluster: &Cluster, lock: &StageLock, script: &Path) -> Result<Command> {
    let script = crate::cluster::quoted(&script.to_string_lossy());
    let line = format!("exec 9<&0\n{}exec bash {script}", cluster.prelude(stage.trainer));
    let mut command = Command::new("bash");
    command
        .arg("-c")
        .arg(line)
        .current_dir(job.run)
        .env("ALOE", &job.aloe)
        .env(JOB_VARIABLE, &job.id)
        .env(STAGE_VARIABLE, &stage.name)
        .stdin(lock.share()?);
    // A group of its own: a signal reaches all that the script started, and none of ours.
    command.process_group(0);
    Ok(command)
}

/// Runs a script of the stage, and passes signals on.
fn supervise(
    job: &Job<'_>,
    stage: &StagePlan,
    cluster: &Cluster,
    lock: &StageLock,
    (script, beginning): (&str, &Beginning),
    started: Instant,
) -> Result<Ended> {
    let path = stage.folder.join(script);
    let mut command = command(job, stage, cluster, lock, &path)?;
    if let Some(checkpoint) = beginning.checkpoint.as_ref().filter(|_| script == RUN) {
        command.env("ALOE_RESUME", checkpoint);
    }
    let mut child = command.spawn().map_err(aloe_record::Error::io("run", &path))?;
    loop {
        if let Some(status) = child.try_wait().map_err(aloe_record::Error::io("wait for", &path))? {
            // What it left behind in its group must not work on, nor hold the stage's lock.
            signal_group(&child, Signal::KILL);
            return Ok(Ended::of(status, job.asked));
        }
        let asked = (job.asked)();
        let is_over = job.time_limit.is_some_and(|limit| started.elapsed() > limit);
        if asked == Asked::Nothing && !is_over {
            std::thread::sleep(Duration::from_millis(50));
            continue;
        }
        let early = Duration::from_secs(cluster.slurm.signal_before_s);
        let grace = match asked {
            Asked::Save if script == RUN && stage.trainer != Trainer::Aloe => {
                let grace = job.grace.min(early / 4);
                wait_for_save(&mut child, job, stage, early.saturating_sub(grace + early / 20), &path)?;
                grace
            }
            // The signal came so early that there is time to save.
            Asked::Save => job.grace.max(early),
            _ => job.grace,
        };
        let status = stop(&mut child, grace, &path)?;
        // Work that ended well while it was being stopped has ended well.
        return Ok(match asked {
            _ if status.success() => Ended::By(status),
            Asked::Nothing => Ended::TimeLimit,
            asked => Ended::Asked(asked),
        });
    }
}

/// Tells what a job runs which stage of the plan it is: its record says what the job cost.
pub const STAGE_VARIABLE: &str = "ALOE_STAGE";

/// The script that does the work.
const RUN: &str = "run.sh";

/// What asks a foreign trainer's start script to save and to end; it looks for it after every step, and before every row of an evaluation.
fn stop_file(job: &Job<'_>, stage: &StagePlan) -> PathBuf {
    job.run.join("work").join(&stage.name).join("STOP")
}

/// An earlier session's question is not this one's.
fn remove_stop_file(job: &Job<'_>, stage: &StagePlan) -> Result<()> {
    let path = stop_file(job, stage);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(aloe_record::Error::io("remove", &path)(error).into())
        }
        _ => Ok(()),
    }
}

/// Asks for a checkpoint and waits until the work has ended, `patience` is over, or somebody wants it stopped at once.
fn wait_for_save(child: &mut Child, job: &Job<'_>, stage: &StagePlan, patience: Duration, path: &Path) -> Result<()> {
    atomic::write(&stop_file(job, stage), b"")?;
    let asked = Instant::now();
    while asked.elapsed() < patience && (job.asked)() != Asked::Stop {
        if child.try_wait().map_err(aloe_record::Error::io("wait for", path))?.is_some() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    aloe_record::tell(&format!("{}: no checkpoint within {} s; it is stopped", stage.name, asked.elapsed().as_secs()));
    Ok(())
}

/// SIGTERM to the child's group; SIGKILL to it when the grace is over.
fn stop(child: &mut Child, grace: Duration, path: &Path) -> Result<ExitStatus> {
    let asked = Instant::now();
    signal_group(child, Signal::TERM);
    loop {
        if let Some(status) = child.try_wait().map_err(aloe_record::Error::io("wait for", path))? {
            // What the script left behind in its group goes with it.
            signal_group(child, Signal::KILL);
            return Ok(status);
        }
        if asked.elapsed() > grace {
            signal_group(child, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The group may just have ended.
fn signal_group(child: &Child, signal: Signal) {
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let _ = group.map(|group| kill_process_group(group, signal));
}

/// `models/NAME` leads to where `cluster.toml` of this site has the model: remade when the run was moved.
fn link_models(run: &Path, cluster: &Cluster) -> Result<()> {
    for (name, folder) in &cluster.models {
        let link = run.join("models").join(crate::plan::model_folder(name));
        if std::fs::read_link(&link).is_ok_and(|target| target == *folder) {
            continue;
        }
        let parent = run.join("models");
        std::fs::create_dir_all(&parent).map_err(aloe_record::Error::io("create", &parent))?;
        if link.symlink_metadata().is_ok_and(|found| !found.is_symlink()) {
            let reason = "is no link of ours; remove it".to_owned();
            return Err(Error::Folder { path: link, reason });
        }
        let partial = atomic::sibling(&link).with_extension(std::process::id().to_string());
        std::os::unix::fs::symlink(folder, &partial).map_err(aloe_record::Error::io("link", &partial))?;
        std::fs::rename(&partial, &link).map_err(aloe_record::Error::io("rename", &partial))?;
    }
    Ok(())
}

/// Refuses what a job's outcome does not allow to be called well, for an exit code.
pub fn ended_well(stage: &str, outcome: &Outcome) -> Result<()> {
    match outcome {
        Outcome::Done | Outcome::Requeued => Ok(()),
        Outcome::NotBegun(reason) => Err(refused(stage, format!("not begun: {reason}"))),
        Outcome::Failed(reason) => Err(refused(stage, format!("failed: {reason}"))),
        Outcome::Cancelled(reason) => Err(refused(stage, format!("cancelled: {reason}"))),
    }
}

#[cfg(test)]
mod tests;
