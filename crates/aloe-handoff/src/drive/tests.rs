//! Passes over a run folder against a scheduler that does what a test tells it: failures, deaths of the client, lost jobs.

use super::*;
use crate::plan::{Resources, Trainer, Where};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

/// A scheduler that does what it is told.
#[derive(Default)]
struct Fake {
    holds_back: bool,
    has_arrays: bool,
    jobs: RefCell<BTreeMap<String, (String, Observed)>>,
    submitted: RefCell<Vec<(String, Vec<String>)>>,
    /// What the next submission does.
    mishap: Cell<Mishap>,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Mishap {
    #[default]
    None,
    /// sbatch fails, the controller has nothing.
    Refused,
    /// sbatch fails, the controller has the job.
    TakenAllTheSame,
    /// The client is killed after the controller took the job.
    ClientDies,
}

impl Fake {
    fn slurm() -> Self {
        Self { holds_back: true, ..Self::default() }
    }

    fn set(&self, job: &str, observed: Observed) {
        self.jobs.borrow_mut().get_mut(job).unwrap().1 = observed;
    }

    fn of(&self, job: &str) -> Observed {
        self.jobs.borrow()[job].1.clone()
    }
}

impl Scheduler for Fake {
    fn holds_back(&self) -> bool {
        self.holds_back
    }

    fn preflight(&self, _: &Path, stages: &[&StagePlan]) -> Result<Vec<String>> {
        Ok(stages.iter().filter(|stage| stage.resources.n_nodes > 9).map(|stage| stage.name.clone()).collect())
    }

    fn submit(&self, submission: &Submission<'_>) -> Result<String> {
        let refused = Err(Error::Scheduler { command: "sbatch".into(), reason: "socket timed out".into() });
        if self.mishap.get() == Mishap::Refused {
            return refused;
        }
        let id = (self.jobs.borrow().len() + 1).to_string();
        self.submitted.borrow_mut().push((submission.stage.name.clone(), submission.after.to_vec()));
        self.jobs.borrow_mut().insert(id.clone(), (submission.name.to_owned(), Observed::Waiting));
        match self.mishap.take() {
            Mishap::TakenAllTheSame => refused,
            Mishap::ClientDies => std::panic::panic_any("killed"),
            _ => Ok(id),
        }
    }

    fn has_arrays(&self) -> bool {
        self.has_arrays
    }

    fn submit_array(&self, array: &Array<'_>) -> Result<String> {
        let id = format!("a{}", self.submitted.borrow().len());
        let indices: Vec<u32> = array.shards.iter().map(|stage| stage.shard().unwrap().index).collect();
        self.submitted.borrow_mut().push((format!("{indices:?}"), array.after.to_vec()));
        // As squeue lists it: under the array's own id, then each job.
        self.jobs.borrow_mut().insert(id.clone(), (array.name.to_owned(), Observed::Waiting));
        for index in indices {
            self.jobs.borrow_mut().insert(array_job_id(&id, index), (array.name.to_owned(), Observed::Waiting));
        }
        match self.mishap.take() {
            Mishap::ClientDies => std::panic::panic_any("killed"),
            _ => Ok(id),
        }
    }

    fn find(&self, name: &str) -> Result<Option<String>> {
        Ok(self.jobs.borrow().iter().find(|(_, (known, _))| known == name).map(|(id, _)| id.clone()))
    }

    fn observe(&self, job: &str, name: Option<&str>) -> Result<Observed> {
        let jobs = self.jobs.borrow();
        let own = jobs.get(job).filter(|(found, _)| name.is_none_or(|name| name == found));
        Ok(own.map_or(Observed::Unknown, |(_, observed)| observed.clone()))
    }

    fn cancel(&self, job: &str) -> Result<()> {
        if let Some(known) = self.jobs.borrow_mut().get_mut(job) {
            known.1 = Observed::Cancelled("scancel".into());
        }
        Ok(())
    }
}

/// `a`, then `b`, then `c`.
fn plan() -> RunPlan {
    let stage = |name: &str, after: &[&str]| StagePlan {
        name: name.into(),
        kind: "merge".into(),
        folder: format!("stages/{name}").into(),
        after: after.iter().map(|name| (*name).to_owned()).collect(),
        trainer: Trainer::Aloe,
        resources: Resources { n_nodes: 1, gpus_per_node: 0, cpus_per_node: 1, time_limit_s: 60 },
    };
    let stages = vec![stage("a", &[]), stage("b", &["a"]), stage("c", &["b"])];
    RunPlan { version: 1, name: "r".into(), place: Where::Slurm, recipe_sha256: String::new(), stages }
}

fn phases(run: &Path) -> Vec<&'static str> {
    plan().stages.iter().map(|stage| state::read(run, &stage.name).unwrap().phase.name()).collect()
}

fn say(run: &Path, stage: &str, event: Event) {
    update(run, stage, |_| Ok(Some(event))).unwrap();
}

fn started(job: &str) -> Event {
    Event::Started { job: job.into(), host: "n1".into() }
}

fn done(job: &str) -> Event {
    Event::Done { job: job.into() }
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// All files of a folder, as `cp -r` copies them.
fn copied(from: &Path, to: &Path) {
    let done = std::process::Command::new("cp").arg("-r").args([from, to]).status().unwrap();
    assert!(done.success());
}

#[test]
fn a_copy_of_a_run_folder_neither_cancels_nor_takes_the_jobs_of_the_one_it_was_copied_from() {
    let dir = tempfile::tempdir().unwrap();
    let (run, copy) = (dir.path().join("run"), dir.path().join("copy"));
    std::fs::create_dir(&run).unwrap();
    let fake = Fake::slurm();
    submit(&run, &plan(), &fake).unwrap();
    fake.set("1", Observed::Running);
    say(&run, "a", started("1"));
    say(&run, "a", done("1"));
    say(&run, "b", started("2"));
    fake.set("2", Observed::Running);
    copied(&run, &copy);
    // It may as well be the run itself by way of a mount with its own numbers: looking writes nothing.
    let token = std::fs::read(copy.join("state/token")).unwrap();
    look(&copy, &plan(), &fake).unwrap();
    assert_eq!((phases(&copy), phases(&run)), (vec!["done", "running", "submitted"], phases(&copy)));
    assert_eq!(std::fs::read(copy.join("state/token")).unwrap(), token);
    cancel(&copy, &plan(), &fake, "aloe cancel").unwrap();
    assert_eq!([fake.of("2"), fake.of("3")], [Observed::Running, Observed::Waiting]);
    assert_eq!(
        (phases(&copy), phases(&run)),
        (vec!["done", "cancelled", "cancelled"], vec!["done", "running", "submitted"])
    );
    let reason = state::read(&copy, "b").unwrap().reason.unwrap();
    let origin = run.canonicalize().unwrap();
    assert_eq!(reason, format!("this folder is a copy of {}, whose job 2 it is", origin.display()));
    // The copy goes on by itself, under names of its own, and the origin by its own.
    reset(&copy, &plan(), &fake).unwrap();
    submit(&copy, &plan(), &fake).unwrap();
    assert_eq!(phases(&copy), ["done", "submitted", "submitted"]);
    let names: Vec<String> = fake.jobs.borrow().values().map(|(name, _)| name.clone()).collect();
    let tokens: std::collections::BTreeSet<&str> = names.iter().filter_map(|name| name.split('-').nth(1)).collect();
    assert_eq!((names.len(), tokens.len()), (5, 2), "{names:?}");
    look(&run, &plan(), &fake).unwrap();
    assert_eq!(phases(&run), ["done", "running", "submitted"]);
    // A move is no copy.
    let moved = dir.path().join("moved");
    std::fs::rename(&run, &moved).unwrap();
    look(&moved, &plan(), &fake).unwrap();
    assert_eq!(phases(&moved), ["done", "running", "submitted"]);
}

#[test]
fn why_a_job_waits_that_waits_for_more_than_its_turn_is_told_and_when_that_is_over_once_an_hour() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::slurm();
    submit(dir.path(), &plan(), &fake).unwrap();
    let reason_of = |stage: &str| {
        look(dir.path(), &plan(), &fake).unwrap();
        state::read(dir.path(), stage).unwrap().reason
    };
    let reason = || reason_of("a");
    assert_eq!(reason(), None);
    fake.set("1", Observed::Delayed("Slurm says PartitionTimeLimit".into()));
    assert_eq!((reason(), reason()), (Some("it waits: Slurm says PartitionTimeLimit".into()), reason()));
    assert_eq!(phases(dir.path()), ["submitted"; 3]);
    // Slurm's reason goes to and fro: no word of it within the hour.
    for observed in [Observed::Waiting, Observed::Delayed("Slurm says QOSMaxJobs".into()), Observed::Waiting] {
        fake.set("1", observed);
        assert_eq!(reason().as_deref(), Some("it waits: Slurm says PartitionTimeLimit"));
    }
    let n_notes = |stage: &str| {
        let entries = state::entries(dir.path(), stage).unwrap();
        entries.iter().filter(|one| matches!(one.event, Event::Noted { .. })).count()
    };
    assert_eq!(n_notes("a"), 1);
    // That of `b` was noted over an hour ago.
    let path = state::folder(dir.path(), "b").join("events.log");
    let (mut log, _) = aloe_record::log::Log::open::<state::Entry>(&path).unwrap();
    let event = Event::Noted { job: "2".into(), reason: "it waits: Slurm says PartitionTimeLimit".into() };
    log.append(&state::Entry { at_unix_s: state::now_unix_s() - 3601, alive_unix_s: None, event }).unwrap();
    drop(log);
    assert_eq!((reason_of("b").as_deref(), n_notes("b")), (Some("it waits for its turn"), 2));
}

#[test]
fn the_whole_chain_is_submitted_at_once_each_stage_after_those_it_needs_and_only_once() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::slurm();
    submit(dir.path(), &plan(), &fake).unwrap();
    let expected =
        [("a".to_owned(), vec![]), ("b".to_owned(), strings(&["1"])), ("c".to_owned(), strings(&["2"]))].to_vec();
    assert_eq!(*fake.submitted.borrow(), expected);
    assert!(submit(dir.path(), &plan(), &fake).unwrap().is_empty());
    assert_eq!(fake.jobs.borrow().len(), 3);
    assert_eq!(phases(dir.path()), ["submitted"; 3]);
}

#[test]
fn a_failure_at_any_position_cancels_all_later_stages_and_resuming_submits_just_those_and_it() {
    for position in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let fake = Fake::slurm();
        submit(dir.path(), &plan(), &fake).unwrap();
        for (at, stage) in plan().stages.iter().enumerate().take(position + 1) {
            let job = (at + 1).to_string();
            say(dir.path(), &stage.name, started(&job));
            match at == position {
                false => say(dir.path(), &stage.name, done(&job)),
                true => fake.set(&job, Observed::Failed("exit code 7".into())),
            }
        }
        look(dir.path(), &plan(), &fake).unwrap();
        let expected: Vec<&str> = (0..3)
            .map(|at| ["done", "failed", "cancelled"][usize::from(at >= position) + usize::from(at > position)])
            .collect();
        assert_eq!(phases(dir.path()), expected);
        for at in position + 1..3 {
            assert!(matches!(fake.of(&(at + 1).to_string()), Observed::Cancelled(_)), "job {} goes on", at + 1);
        }
        let refused = submit(dir.path(), &plan(), &fake).unwrap_err().to_string();
        assert!(refused.contains("exit code 7; `aloe resume RUN` tries again"), "{refused}");
        reset(dir.path(), &plan(), &fake).unwrap();
        assert_eq!(submit(dir.path(), &plan(), &fake).unwrap().len(), 3 - position);
        let again = fake.submitted.borrow()[3].clone();
        assert_eq!(again, (plan().stages[position].name.clone(), vec![]), "a done stage needs no dependency");
        assert_eq!(state::read(dir.path(), &plan().stages[position].name).unwrap().attempts, 2);
    }
}

#[test]
fn a_client_killed_while_it_submits_neither_loses_the_job_nor_submits_it_twice() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::slurm();
    fake.mishap.set(Mishap::ClientDies);
    let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| submit(dir.path(), &plan(), &fake)));
    assert!(died.is_err());
    assert_eq!(phases(dir.path()), ["submitting", "planned", "planned"]);
    submit(dir.path(), &plan(), &fake).unwrap();
    assert_eq!(phases(dir.path()), ["submitted"; 3]);
    assert_eq!(fake.submitted.borrow().iter().filter(|(name, _)| name == "a").count(), 1);
    assert_eq!(fake.submitted.borrow()[1], ("b".to_owned(), strings(&["1"])));
}

#[test]
fn a_submission_that_failed_is_looked_for_before_it_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::slurm();
    fake.mishap.set(Mishap::TakenAllTheSame);
    submit(dir.path(), &plan(), &fake).unwrap();
    assert_eq!(fake.jobs.borrow().len(), 3);
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::slurm();
    fake.mishap.set(Mishap::Refused);
    assert!(submit(dir.path(), &plan(), &fake).is_err());
    assert_eq!(phases(dir.path()), ["planned"; 3]);
    fake.mishap.set(Mishap::None);
    submit(dir.path(), &plan(), &fake).unwrap();
    assert_eq!((fake.jobs.borrow().len(), state::read(dir.path(), "a").unwrap().attempts), (3, 1));
}

#[test]
fn a_job_that_vanished_failed_unless_somebody_holds_its_lock() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::slurm();
    submit(dir.path(), &plan(), &fake).unwrap();
    say(dir.path(), "a", started("1"));
    fake.jobs.borrow_mut().remove("1");
    let held = StageLock::take(dir.path(), "a", "job 1", std::time::Duration::ZERO, &|| true).unwrap().unwrap();
    look(dir.path(), &plan(), &fake).unwrap();
    assert_eq!(phases(dir.path()), ["running", "submitted", "submitted"]);
    drop(held);
    look(dir.path(), &plan(), &fake).unwrap();
    assert_eq!(phases(dir.path()), ["failed", "cancelled", "cancelled"]);
    let reason = state::read(dir.path(), "a").unwrap().reason.unwrap();
    assert!(reason.contains("vanished"), "{reason}");
}

#[test]
fn where_the_scheduler_forgets_all_jobs_the_one_at_work_failed_and_those_that_waited_are_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::slurm();
    submit(dir.path(), &plan(), &fake).unwrap();
    say(dir.path(), "a", started("1"));
    fake.jobs.borrow_mut().clear();
    look(dir.path(), &plan(), &fake).unwrap();
    assert_eq!(phases(dir.path()), ["failed", "cancelled", "cancelled"]);
}

/// The job at work holds its lock on a while, as an orphan: those that waited for it are not failed meanwhile.
#[test]
fn a_waiting_job_that_the_scheduler_forgot_is_cancelled_while_the_one_before_it_still_works() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::slurm();
    submit(dir.path(), &plan(), &fake).unwrap();
    say(dir.path(), "a", started("1"));
    fake.jobs.borrow_mut().clear();
    let held = StageLock::take(dir.path(), "a", "job 1", std::time::Duration::ZERO, &|| true).unwrap().unwrap();
    look(dir.path(), &plan(), &fake).unwrap();
    assert_eq!(phases(dir.path()), ["running", "cancelled", "cancelled"]);
    drop(held);
    look(dir.path(), &plan(), &fake).unwrap();
    assert_eq!(phases(dir.path()), ["failed", "cancelled", "cancelled"]);
}

/// A controller without memory counts from 1 again: `squeue` then knows other jobs by the numbers of ours.
#[test]
fn another_job_with_the_number_of_a_forgotten_one_is_neither_waited_for_nor_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::slurm();
    submit(dir.path(), &plan(), &fake).unwrap();
    say(dir.path(), "a", started("1"));
    for (name, observed) in fake.jobs.borrow_mut().values_mut() {
        (*name, *observed) = ("of somebody else".to_owned(), Observed::Running);
    }
    look(dir.path(), &plan(), &fake).unwrap();
    assert_eq!(phases(dir.path()), ["failed", "cancelled", "cancelled"]);
    cancel(dir.path(), &plan(), &fake, "asked to").unwrap();
    assert!(["1", "2", "3"].iter().all(|job| fake.of(job) == Observed::Running));
}

#[test]
fn a_job_that_ended_well_without_done_failed_and_with_it_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::slurm();
    submit(dir.path(), &plan(), &fake).unwrap();
    for job in ["1", "2"] {
        fake.set(job, Observed::EndedWell);
    }
    aloe_record::atomic::write(&done_mark(dir.path(), "a"), b"{}").unwrap();
    look(dir.path(), &plan(), &fake).unwrap();
    assert_eq!(phases(dir.path()), ["done", "failed", "cancelled"]);
}

#[test]
fn where_nobody_holds_jobs_back_one_goes_at_a_time_when_its_inputs_are_done() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::default();
    let next = || submit(dir.path(), &plan(), &fake).unwrap().into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!(next(), ["a"]);
    assert!(next().is_empty());
    say(dir.path(), "a", done("1"));
    assert_eq!(next(), ["b"]);
    fake.set("2", Observed::Failed("killed".into()));
    look(dir.path(), &plan(), &fake).unwrap();
    assert_eq!(phases(dir.path()), ["done", "failed", "cancelled"]);
}

#[test]
fn what_cannot_run_is_told_before_anything_is_submitted() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::slurm();
    let mut plan = plan();
    plan.stages[2].resources.n_nodes = 10;
    let refused = submit(dir.path(), &plan, &fake).unwrap_err().to_string();
    assert!(refused.starts_with("nothing was submitted: 1 mistake"), "{refused}");
    assert!(fake.jobs.borrow().is_empty());
}

#[test]
fn a_run_is_cancelled_from_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::slurm();
    submit(dir.path(), &plan(), &fake).unwrap();
    cancel(dir.path(), &plan(), &fake, "asked to").unwrap();
    assert_eq!(phases(dir.path()), ["cancelled"; 3]);
}

/// `watch aloe status` beside `aloe run`: the scheduler has no job yet, and that says nothing.
#[test]
fn who_only_looks_leaves_a_submission_to_the_client_that_is_at_it() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::slurm();
    let client = StageLock::of_client(dir.path()).unwrap().unwrap();
    say(dir.path(), "a", Event::Submitting { name: "x".into() });
    look(dir.path(), &plan(), &fake).unwrap();
    assert_eq!(phases(dir.path()), ["submitting", "planned", "planned"]);
    drop(client);
    look(dir.path(), &plan(), &fake).unwrap();
    assert_eq!(phases(dir.path()), ["planned"; 3], "the client is gone, and no job came of it");
}

/// Job 1 is somebody else's after the controller lost its memory.
#[test]
fn a_number_that_another_job_has_by_now_is_not_ours_and_never_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::slurm();
    submit(dir.path(), &plan(), &fake).unwrap();
    say(dir.path(), "a", started("1"));
    for job in ["1", "2"] {
        fake.jobs.borrow_mut().insert(job.into(), ("a colleague's".into(), Observed::Running));
    }
    cancel(dir.path(), &plan(), &fake, "asked to").unwrap();
    assert_eq!((fake.of("1"), fake.of("2")), (Observed::Running, Observed::Running));
    assert!(matches!(fake.of("3"), Observed::Cancelled(_)));
    look(dir.path(), &plan(), &fake).unwrap();
    assert_eq!(phases(dir.path()), ["failed", "cancelled", "cancelled"]);
    assert!(state::read(dir.path(), "a").unwrap().reason.unwrap().contains("vanished"));
}

#[test]
fn a_failure_in_the_schedulers_eyes_is_none_while_an_orphan_works_on_and_tells_what_the_job_said() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::slurm();
    submit(dir.path(), &plan(), &fake).unwrap();
    say(dir.path(), "a", started("1"));
    say(dir.path(), "a", Event::Requeued { job: "1".into(), from_step: None });
    say(
        dir.path(),
        "a",
        Event::Noted { job: "1".into(), reason: "job 1 did not begin: job 1 on n1 is at work".into() },
    );
    fake.set("1", Observed::Failed("Slurm says FAILED".into()));
    let held = StageLock::take(dir.path(), "a", "orphan", std::time::Duration::ZERO, &|| true).unwrap().unwrap();
    look(dir.path(), &plan(), &fake).unwrap();
    assert_eq!(phases(dir.path()), ["submitted"; 3]);
    drop(held);
    look(dir.path(), &plan(), &fake).unwrap();
    assert_eq!(phases(dir.path()), ["failed", "cancelled", "cancelled"]);
    let reason = state::read(dir.path(), "a").unwrap().reason.unwrap();
    assert_eq!(reason, "Slurm says FAILED; job 1 did not begin: job 1 on n1 is at work");
}

#[test]
fn a_held_job_says_why_it_waits_and_is_told_once() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::slurm();
    submit(dir.path(), &plan(), &fake).unwrap();
    fake.set("1", Observed::Held("JobHeldUser: `scontrol release 1` lets it go on".into()));
    for _ in 0..2 {
        look(dir.path(), &plan(), &fake).unwrap();
    }
    assert_eq!(phases(dir.path()), ["submitted"; 3]);
    let reason = state::read(dir.path(), "a").unwrap().reason.unwrap();
    assert!(reason.contains("it is held: JobHeldUser: `scontrol release 1`"), "{reason}");
    assert_eq!(state::entries(dir.path(), "a").unwrap().len(), 3, "submitting, submitted, held");
    fake.set("1", Observed::Waiting);
    for _ in 0..2 {
        look(dir.path(), &plan(), &fake).unwrap();
    }
    assert_eq!(state::read(dir.path(), "a").unwrap().reason.as_deref(), Some("it was released and waits"));
    assert_eq!(state::entries(dir.path(), "a").unwrap().len(), 4);
    say(dir.path(), "a", started("1"));
    assert_eq!(state::read(dir.path(), "a").unwrap().reason, None);
}

/// `base`, three shards of `eval`, `eval`, which gathers them, and `card`.
fn sharded() -> RunPlan {
    let first = plan().stages.remove(0);
    let stage = |name: &str, kind: &str, after: &[&str]| StagePlan {
        name: name.into(),
        kind: kind.into(),
        folder: format!("stages/{name}").into(),
        after: after.iter().map(|name| (*name).to_owned()).collect(),
        ..first.clone()
    };
    let shards: Vec<String> = (1..=3).map(|index| crate::shard::name_of("eval", index, 3)).collect();
    let parts: Vec<&str> = shards.iter().map(String::as_str).collect();
    let mut stages = vec![stage("base", "merge", &[])];
    stages.extend(parts.iter().map(|part| stage(part, crate::shard::EVAL_SHARD, &["base"])));
    stages.extend([stage("eval", "eval", &parts), stage("card", "card", &["eval"])]);
    RunPlan { stages, ..plan() }
}

#[test]
fn shards_go_as_one_array_after_what_they_need_and_only_the_failed_one_goes_again() {
    let (dir, slurm) = (tempfile::tempdir().unwrap(), Fake { has_arrays: true, ..Fake::slurm() });
    let plan = sharded();
    submit(dir.path(), &plan, &slurm).unwrap();
    let words = |name: &str, after: &[&str]| (name.to_owned(), after.iter().map(|job| (*job).to_owned()).collect());
    let expected: Vec<(String, Vec<String>)> =
        vec![words("base", &[]), words("[1, 2, 3]", &["1"]), words("eval", &["a1_1", "a1_2", "a1_3"])];
    assert_eq!(slurm.submitted.borrow()[..3], expected);
    let job = |at: usize| state::read(dir.path(), &plan.stages[at].name).unwrap().job.unwrap();
    assert_eq!((job(1), job(3)), ("a1_1".to_owned(), "a1_3".to_owned()));
    let done = |name: &str, id: &str| {
        let event = Event::Started { job: id.into(), host: "n1".into() };
        update(dir.path(), name, |_| Ok(Some(event))).unwrap();
        update(dir.path(), name, |_| Ok(Some(Event::Done { job: id.into() }))).unwrap();
    };
    done("base", "1");
    done("eval.1-of-3", "a1_1");
    done("eval.3-of-3", "a1_3");
    slurm.set("a1_2", Observed::Failed("exit code 9".into()));
    look(dir.path(), &plan, &slurm).unwrap();
    let phase = |at: usize| state::read(dir.path(), &plan.stages[at].name).unwrap().phase;
    assert_eq!((phase(2), phase(4), phase(5)), (Phase::Failed, Phase::Cancelled, Phase::Cancelled));
    reset(dir.path(), &plan, &slurm).unwrap();
    submit(dir.path(), &plan, &slurm).unwrap();
    assert_eq!(slurm.submitted.borrow()[4], words("[2]", &[]));
    assert_eq!(slurm.submitted.borrow()[5], words("eval", &["a4_2"]));
}

#[test]
fn a_client_that_dies_after_an_array_was_taken_finds_every_job_of_it() {
    let (dir, slurm) = (tempfile::tempdir().unwrap(), Fake { has_arrays: true, ..Fake::slurm() });
    let plan = RunPlan { stages: sharded().stages[1..].to_vec(), ..sharded() };
    let plan = RunPlan {
        stages: plan
            .stages
            .into_iter()
            .map(|stage| StagePlan { after: after_without(&stage, "base"), ..stage })
            .collect(),
        ..sharded()
    };
    slurm.mishap.set(Mishap::ClientDies);
    let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| submit(dir.path(), &plan, &slurm)));
    assert!(died.is_err());
    assert_eq!(state::read(dir.path(), "eval.2-of-3").unwrap().phase, Phase::Submitting);
    submit(dir.path(), &plan, &slurm).unwrap();
    for index in 1..=3 {
        let found = state::read(dir.path(), &crate::shard::name_of("eval", index, 3)).unwrap();
        assert_eq!((found.phase, found.job, found.attempts), (Phase::Submitted, Some(format!("a0_{index}")), 1));
    }
    let arrays = slurm.submitted.borrow().iter().filter(|(name, _)| name.starts_with('[')).count();
    assert_eq!(arrays, 1, "{:?}", slurm.submitted.borrow());
}

fn after_without(stage: &StagePlan, name: &str) -> Vec<String> {
    stage.after.iter().filter(|after| *after != name).cloned().collect()
}
