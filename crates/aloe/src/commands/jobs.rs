//! The commands of a run folder: `aloe run`, `status`, `resume`, `cancel` and `collect` with its path, and `aloe job`, which its jobs run.

use crate::cli::jobs::{CollectArgs, JobArgs, ResumeArgs, StatusArgs, WaitArgs};
use crate::commands::stages;
use crate::failure::Failure;
use crate::handoff::scripts;
use crate::outputs;
use crate::recipe::checked::Recipe;
use aloe_handoff::drive::{self, Status};
use aloe_handoff::job::{self, Asked, Job, Outcome};
use aloe_handoff::plan::is_run_folder;
use aloe_handoff::scheduler::{Local, Scheduler, Slurm, array_job_id, job_id};
use aloe_handoff::state::Phase;
use aloe_handoff::{Cluster, RunPlan, Trainer, Where};
use aloe_record::{Cancel, Record};
use anyhow::Context as _;
use serde_json::json;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A run folder that was opened.
struct Opened {
    run: PathBuf,
    plan: RunPlan,
    place: Where,
    scheduler: Box<dyn Scheduler>,
}

/// Absolute, since jobs start elsewhere.
fn folder_of(path: &Path) -> anyhow::Result<PathBuf> {
    if !is_run_folder(path) {
        let text = format!(
            "{} is no run folder (it has no run.json); write one with `aloe plan RECIPE --where slurm --cluster cluster.toml --out RUN`",
            path.display()
        );
        return Err(Failure::usage(text).into());
    }
    path.canonicalize().with_context(|| format!("cannot resolve {}", path.display()))
}

fn open(path: &Path, asked: Option<Where>) -> anyhow::Result<Opened> {
    let run = folder_of(path)?;
    let plan = RunPlan::read(&run)?;
    let cluster = Cluster::read(&run.join("cluster.toml"))?;
    let place = asked.unwrap_or(plan.place);
    let scheduler: Box<dyn Scheduler> = match place {
        Where::Local => Box::new(Local::new(cluster.aloe)),
        Where::Slurm => Box::new(Slurm::new(cluster)),
    };
    Ok(Opened { run, plan, place, scheduler })
}

/// The same to submit from it: each stage asks for what `cluster.toml` says now.
fn open_to_submit(path: &Path, asked: Option<Where>) -> anyhow::Result<Opened> {
    let opened = open(path, asked)?;
    let file = opened.run.join("cluster.toml");
    let plan = opened.plan.at_site(&Cluster::read(&file)?, &file)?;
    Ok(Opened { plan, ..opened })
}

/// `aloe run RUN`: submits what is not done.
pub(crate) fn run(args: &StatusArgs, waits: WaitArgs, cancel: &Cancel) -> anyhow::Result<()> {
    go_on(&open_to_submit(&args.run, args.place)?, args.json, waits, cancel)
}

/// `aloe resume RUN`: the same, and once more what failed or was cancelled.
pub(crate) fn resume(args: &ResumeArgs, cancel: &Cancel) -> anyhow::Result<()> {
    let opened = open_to_submit(&args.of.run, args.of.place)?;
    let again = drive::reset(&opened.run, &opened.plan, opened.scheduler.as_ref())?;
    if !again.is_empty() {
        aloe_record::tell(&format!("tried again: {}", again.join(", ")));
    }
    go_on(&opened, args.of.json, args.waits, cancel)
}

/// Submits, waits where that is asked for or nobody else does, and shows where every stage stands.
fn go_on(opened: &Opened, as_json: bool, waits: WaitArgs, cancel: &Cancel) -> anyhow::Result<()> {
    let Opened { run, plan, place, scheduler } = opened;
    let pause = match place {
        Where::Local => Duration::from_millis(200),
        Where::Slurm => Duration::from_secs(waits.poll),
    };
    let mut is_first = true;
    loop {
        let phases: Vec<Phase> = drive::status(run, plan)?.iter().map(|one| one.state.phase).collect();
        let is_bad = |phase: &Phase| matches!(phase, Phase::Failed | Phase::Cancelled);
        if is_first || (phases.contains(&Phase::Planned) && !phases.iter().any(is_bad)) {
            for (stage, job) in drive::submit(run, plan, scheduler.as_ref())? {
                aloe_record::tell(&format!("{stage}: job {job}"));
            }
        }
        is_first = false;
        let status = drive::status(run, plan)?;
        let phases = || status.iter().map(|one| one.state.phase);
        let is_over = !phases().any(Phase::is_open)
            && (phases().any(|phase| is_bad(&phase)) || phases().all(|phase| phase == Phase::Done));
        if is_over || !(waits.wait || *place == Where::Local) {
            show(opened, &status, as_json)?;
            return refuse_failed(&status);
        }
        wait(opened, pause, cancel)?;
    }
}

/// Waits and looks. An interrupted client of this machine stops its jobs, one of Slurm leaves them.
fn wait(opened: &Opened, pause: Duration, cancel: &Cancel) -> anyhow::Result<()> {
    let Opened { run, plan, place, scheduler } = opened;
    let started = Instant::now();
    while started.elapsed() < pause {
        std::thread::sleep(Duration::from_millis(100));
        if cancel.is_requested() && *place == Where::Local {
            drive::cancel(run, plan, scheduler.as_ref(), "the client was interrupted")?;
        }
        cancel.check()?;
    }
    match drive::look(run, plan, scheduler.as_ref()) {
        // An unreachable controller says nothing about the jobs.
        Err(error @ aloe_handoff::Error::Scheduler { .. }) => {
            aloe_record::tell(&format!("note: {error}; it is asked again"));
            Ok(())
        }
        other => Ok(other?),
    }
}

/// `aloe status RUN`.
pub(crate) fn status(args: &StatusArgs) -> anyhow::Result<()> {
    let opened = open(&args.run, args.place)?;
    let looked = drive::look(&opened.run, &opened.plan, opened.scheduler.as_ref());
    if let Err(error) = &looked {
        aloe_record::tell(&format!("note: {error}; what follows is what is written down"));
    }
    show(&opened, &drive::status(&opened.run, &opened.plan)?, args.json)
}

/// `aloe cancel RUN`.
pub(crate) fn cancel(args: &StatusArgs) -> anyhow::Result<()> {
    let opened = open(&args.run, args.place)?;
    drive::look(&opened.run, &opened.plan, opened.scheduler.as_ref())?;
    drive::cancel(&opened.run, &opened.plan, opened.scheduler.as_ref(), "aloe cancel")?;
    show(&opened, &drive::status(&opened.run, &opened.plan)?, args.json)
}

fn refuse_failed(status: &[Status]) -> anyhow::Result<()> {
    let failed = status.iter().find(|one| matches!(one.state.phase, Phase::Failed | Phase::Cancelled));
    match failed {
        Some(one) => {
            let reason = one.state.reason.as_deref().unwrap_or("no reason is known");
            anyhow::bail!("stage {}: {}: {reason}; `aloe resume` tries again", one.stage, one.state.phase.name())
        }
        None => Ok(()),
    }
}

fn show(opened: &Opened, status: &[Status], as_json: bool) -> anyhow::Result<()> {
    let mut output = std::io::stdout();
    if as_json {
        let value = json!({"run": opened.run, "name": opened.plan.name, "stages": status});
        writeln!(output, "{}", serde_json::to_string_pretty(&value)?)?;
        return Ok(());
    }
    writeln!(
        output,
        "{:<18} {:<12} {:<8} {:<10} {:<14} {:>8}  ",
        "stage", "kind", "trainer", "state", "job", "seconds"
    )?;
    for one in status {
        let job = one.state.job.as_deref().unwrap_or("-");
        let tries = if one.state.attempts > 1 { format!(" (attempt {})", one.state.attempts) } else { String::new() };
        let reason = one.state.reason.as_deref().unwrap_or_default();
        writeln!(
            output,
            "{:<18} {:<12} {:<8} {:<10} {:<14} {:>8}  {reason}{tries}",
            one.stage,
            one.kind,
            one.trainer,
            one.state.phase.name(),
            job,
            one.worked_s
        )?;
    }
    Ok(())
}

/// `aloe collect RUN`: every result is there and what its record says; with `--out` also copied.
pub(crate) fn collect(args: &CollectArgs) -> anyhow::Result<()> {
    let run = folder_of(&args.run)?;
    let plan = RunPlan::read(&run)?;
    let mut rows = Vec::new();
    for stage in &plan.stages {
        if args.stage.as_ref().is_some_and(|only| *only != stage.name) {
            continue;
        }
        if args.stage.is_none() && !job::is_done(&run, &stage.name)? {
            let text = format!("stage {:?} is not done; `aloe status {}` says more", stage.name, run.display());
            return Err(Failure::usage(text).into());
        }
        match stage.shard() {
            // What shards make together is in `out`.
            Some(_) if args.stage.is_none() => {}
            Some(shard) => rows.push(checked(&run.join(shard.work()), stage.kind_in_recipe())?),
            None => rows.push(checked(&run.join("out").join(&stage.name), &stage.kind)?),
        }
    }
    if let Some(only) = args.stage.as_ref().filter(|_| rows.is_empty()) {
        plan.stage(only)?;
    }
    if let Some(out) = &args.out {
        copy_results(&run.join("out"), out)?;
    }
    let mut output = std::io::stdout();
    if args.json {
        writeln!(output, "{}", serde_json::to_string_pretty(&rows)?)?;
        return Ok(());
    }
    for record in &rows {
        let summary = record.results.get("summary").and_then(|value| value.as_str()).unwrap_or_default();
        writeln!(output, "{:<18} {:<12} {:>9.1}  {summary}", record.name, record.kind, record.elapsed_s)?;
    }
    Ok(())
}

/// The record of a finished stage whose outputs are what it says.
fn checked(folder: &Path, kind: &str) -> anyhow::Result<Record> {
    let record = Record::read(folder).with_context(|| format!("{} has no results", folder.display()))?;
    if record.kind != kind {
        let text = format!("{} holds results of kind {:?}, not {kind:?}", folder.display(), record.kind);
        return Err(Failure::usage(text).into());
    }
    outputs::check(folder, &record)?;
    Ok(record)
}

/// Every stage's folder, whole or not at all; one that is there already is left if it is the same.
fn copy_results(from: &Path, out: &Path) -> anyhow::Result<()> {
    let entries = std::fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))?;
    for entry in entries.flatten().filter(|entry| !entry.file_name().to_string_lossy().starts_with('.')) {
        let (source, target) = (entry.path(), out.join(entry.file_name()));
        let record = Record::read(&source)?;
        outputs::check(&source, &record)?;
        if target.exists() {
            let same = Record::read(&target).is_ok_and(|found| found.outputs == record.outputs);
            if !same {
                let text =
                    format!("{} is there already and holds something else; choose another --out", target.display());
                return Err(Failure::usage(text).into());
            }
            continue;
        }
        let folder = aloe_record::atomic::OutputDir::fresh(&target)?;
        copy_tree(&source, folder.path())?;
        outputs::check(folder.path(), &record)?;
        folder.commit()?;
    }
    Ok(())
}

fn copy_tree(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    for entry in std::fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy_tree(&entry.path(), &target)?,
            false => {
                std::fs::copy(entry.path(), &target).with_context(|| format!("cannot copy to {}", target.display()))?;
            }
        }
    }
    Ok(())
}

/// `aloe job RUN STAGE`: what a scheduler's job runs.
pub(crate) fn job(args: &JobArgs, cancel: &Cancel) -> anyhow::Result<()> {
    let run = folder_of(&args.run)?;
    if args.render {
        return render(&run, &args.stage);
    }
    let to_save = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGUSR1, Arc::clone(&to_save))?;
    let asked = || match (cancel.is_requested(), to_save.load(Ordering::SeqCst)) {
        (true, _) => Asked::Stop,
        (false, true) => Asked::Save,
        (false, false) => Asked::Nothing,
    };
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    // Of an array: as scontrol and dependencies name one job of it.
    let array = variable("SLURM_ARRAY_JOB_ID").zip(variable("SLURM_ARRAY_TASK_ID"));
    let array = array.and_then(|(array, index)| Some(array_job_id(&array, index.parse().ok()?)));
    let slurm = array.or_else(|| variable("SLURM_JOB_ID"));
    let id = slurm.clone().or_else(|| job_id(std::process::id())).unwrap_or_default();
    let file = run.join("cluster.toml");
    let plan = RunPlan::read(&run)?.at_site(&Cluster::read(&file)?, &file)?;
    let limit = Duration::from_secs(plan.stage(&args.stage)?.resources.time_limit_s);
    let restarts = variable("SLURM_RESTART_COUNT").and_then(|text| text.parse::<u32>().ok()).unwrap_or(0);
    let requeue = || match &slurm {
        Some(id) => scontrol_requeue(id),
        None => Err(aloe_handoff::Error::Scheduler {
            command: "requeue".into(),
            reason: "no scheduler runs this job".into(),
        }),
    };
    let outcome = job::run(
        &Job {
            run: &run,
            id,
            name: args.name.clone().or_else(|| variable("SLURM_JOB_NAME")),
            host: variable("SLURMD_NODENAME").unwrap_or_else(host_name),
            aloe: std::env::current_exe().context("where is this program?")?,
            time_limit: args.time_limit.map(Duration::from_secs),
            // Slurm's KillWait is 30 s where a site has not changed it.
            grace: Duration::from_secs(if slurm.is_some() { 25 } else { 60 }),
            patience: if restarts > 0 { limit } else { Duration::from_secs(5) },
            asked: &asked,
            requeue: &requeue,
        },
        &args.stage,
    )?;
    match &outcome {
        Outcome::Requeued => aloe_record::tell(&format!("{}: saved and back in the queue", args.stage)),
        Outcome::Done => aloe_record::tell(&format!("{}: done", args.stage)),
        _ => {}
    }
    Ok(job::ended_well(&args.stage, &outcome)?)
}

/// What comes before a foreign trainer: a check of what it starts from, and what it reads where the plan could not hold it.
fn render(run: &Path, name: &str) -> anyhow::Result<()> {
    std::env::set_current_dir(run).with_context(|| format!("cannot enter {}", run.display()))?;
    let plan = RunPlan::read(Path::new("."))?;
    let planned = plan.stage(name)?;
    let recipe = Recipe::read(Path::new("recipe.toml"))?;
    let stage = &recipe.stages[recipe.position(name)?];
    let cluster = Cluster::read(Path::new("cluster.toml"))?;
    if planned.trainer == Trainer::Aloe {
        return Err(
            Failure::usage(format!("stage {name:?} is trained by aloe, which reads its rows as they are")).into()
        );
    }
    let notices = scripts::render(&recipe, stage, planned, &cluster).with_context(|| format!("stage {name:?}"))?;
    stages::tell(&notices);
    Ok(())
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map_or_else(|_| String::new(), |name| name.trim().to_owned())
}

fn scontrol_requeue(id: &str) -> aloe_handoff::Result<()> {
    let output = Command::new("scontrol").args(["requeue", id]).output();
    let reason = match output {
        Ok(output) if output.status.success() => return Ok(()),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    Err(aloe_handoff::Error::Scheduler { command: "scontrol requeue".into(), reason })
}
