//! Jobs of run folders whose work is a line of shell: order of steps, signals, limits, and who may begin.

use super::*;
use crate::lock::is_held;
use crate::plan::{Resources, StagePlan, Trainer, Where};
use std::cell::Cell;

/// A run folder of stages `a` and `b` (after `a`) whose scripts are `run` and `check`.
pub(crate) fn run_folder(dir: &Path, run: &str, check: &str) {
    let stage = |name: &str, after: &[&str]| StagePlan {
        name: name.into(),
        kind: "merge".into(),
        folder: format!("stages/{name}").into(),
        after: after.iter().map(|name| (*name).to_owned()).collect(),
        trainer: Trainer::Aloe,
        resources: Resources { n_nodes: 1, gpus_per_node: 0, cpus_per_node: 1, time_limit_s: 3600 },
    };
    std::fs::write(dir.join("recipe.toml"), "").unwrap();
    std::fs::write(dir.join("cluster.toml"), "name = \"x\"\naloe = \"/bin/true\"\n").unwrap();
    let plan = RunPlan {
        version: 1,
        name: "r".into(),
        place: Where::Local,
        recipe_sha256: aloe_record::digest::bytes(b""),
        stages: vec![stage("a", &[]), stage("b", &["a"])],
    };
    atomic::write_json(&dir.join("run.json"), &plan).unwrap();
    for name in ["a", "b"] {
        std::fs::create_dir_all(dir.join("stages").join(name)).unwrap();
        std::fs::write(dir.join("stages").join(name).join("run.sh"), run).unwrap();
        std::fs::write(dir.join("stages").join(name).join("check.sh"), check).unwrap();
    }
}

fn job<'a>(run: &'a Path, id: &str, asked: &'a dyn Fn() -> Asked, requeue: &'a dyn Fn() -> Result<()>) -> Job<'a> {
    Job {
        run,
        id: id.into(),
        name: None,
        host: "here".into(),
        aloe: "/bin/true".into(),
        time_limit: None,
        grace: Duration::from_secs(5),
        // A child that another test's thread is just starting holds this process' locks until it has become its program.
        patience: Duration::from_secs(3),
        asked,
        requeue,
    }
}

fn run_plain(dir: &Path, id: &str, stage: &str) -> Outcome {
    run(&job(dir, id, &|| Asked::Nothing, &|| Ok(())), stage).unwrap()
}

fn phase(dir: &Path, stage: &str) -> Phase {
    state::read(dir, stage).unwrap().phase
}

#[test]
fn a_stage_is_done_after_its_check_and_never_done_twice() {
    let dir = tempfile::tempdir().unwrap();
    run_folder(dir.path(), "echo x >> ran; test ! -e state/a/DONE", "test ! -e state/a/DONE && echo y >> checked");
    assert_eq!(run_plain(dir.path(), "1", "a"), Outcome::Done);
    assert_eq!(run_plain(dir.path(), "2", "a"), Outcome::Done);
    assert_eq!(std::fs::read_to_string(dir.path().join("ran")).unwrap(), "x\n");
    assert_eq!(std::fs::read_to_string(dir.path().join("checked")).unwrap(), "y\n");
    assert_eq!(phase(dir.path(), "a"), Phase::Done);
}

#[test]
fn work_that_ends_well_and_fails_its_check_is_a_failure() {
    let dir = tempfile::tempdir().unwrap();
    run_folder(dir.path(), "true", "exit 5");
    assert_eq!(run_plain(dir.path(), "1", "a"), Outcome::Failed("check.sh: exit code 5".into()));
    assert!(!done_mark(dir.path(), "a").exists());
    assert_eq!(phase(dir.path(), "a"), Phase::Failed);
}

#[test]
fn a_failure_ends_with_the_words_of_its_own_attempt() {
    let dir = tempfile::tempdir().unwrap();
    // As the local scheduler has it: what a job says goes to the end of one log.
    let says = |words: &str| format!("echo {words} >> state/a/local.log; exit 3");
    let failed = |words: &str, id: &str| {
        run_folder(dir.path(), words, "true");
        run_plain(dir.path(), id, "a")
    };
    let long = "x".repeat(450);
    let first = failed(&says(&long), "local-1-1");
    assert_eq!(first, Outcome::Failed(format!("run.sh: exit code 3; state/a/local.log ends with: {long}")));
    assert_eq!(failed("exit 4", "local-2-2"), Outcome::Failed("run.sh: exit code 4".into()));
    let third = failed(&says("second"), "local-3-3");
    assert_eq!(third, Outcome::Failed("run.sh: exit code 3; state/a/local.log ends with: second".into()));
}

#[test]
fn a_stage_does_not_begin_before_those_it_needs_are_done() {
    let dir = tempfile::tempdir().unwrap();
    run_folder(dir.path(), "echo x >> ran", "true");
    assert!(matches!(run_plain(dir.path(), "1", "b"), Outcome::NotBegun(_)));
    assert_eq!(phase(dir.path(), "b"), Phase::Planned);
    assert!(!dir.path().join("ran").exists());
}

#[test]
fn a_job_that_was_given_up_and_comes_back_leaves_the_stage_to_its_successor() {
    let dir = tempfile::tempdir().unwrap();
    run_folder(dir.path(), "echo x >> ran", "true");
    let say = |event: Event| state::update(dir.path(), "a", |_| Ok(Some(event))).unwrap();
    say(Event::Submitting { name: "first".into() });
    say(Event::Submitted { job: "1".into() });
    say(Event::Failed { job: None, reason: "vanished".into() });
    say(Event::Submitting { name: "second".into() });
    // The client does not know the second job's id yet; the first one has another name.
    let mut first = job(dir.path(), "1", &|| Asked::Nothing, &|| Ok(()));
    first.name = Some("first".into());
    assert!(matches!(run(&first, "a").unwrap(), Outcome::NotBegun(_)));
    say(Event::Submitted { job: "2".into() });
    assert_eq!(run(&first, "a").unwrap(), Outcome::NotBegun("job 2 has the stage".into()));
    assert!(!dir.path().join("ran").exists());
    assert_eq!(run_plain(dir.path(), "2", "a"), Outcome::Done);
}

/// Starts `sleep` behind a shell that saves on SIGTERM, and asks after the shell said that it runs.
const SAVES: &str = "trap 'echo saved >> saved; kill $!; exit 143' TERM; sleep 60 & touch ready; wait";

#[test]
fn told_to_save_it_stops_the_work_waits_until_it_saved_and_is_requeued_and_goes_on_under_the_same_id() {
    let dir = tempfile::tempdir().unwrap();
    run_folder(dir.path(), &format!("test -e saved || {{ {SAVES}; }}"), "true");
    let ready = dir.path().join("ready");
    let asked = || if ready.exists() { Asked::Save } else { Asked::Nothing };
    let order = Cell::new("not called");
    let requeue = || {
        let saved = dir.path().join("saved").exists();
        let written = phase(dir.path(), "a") == Phase::Submitted;
        order.set(if saved && written { "saved, written, then requeued" } else { "too early" });
        Ok(())
    };
    assert_eq!(run(&job(dir.path(), "7", &asked, &requeue), "a").unwrap(), Outcome::Requeued);
    assert_eq!(order.get(), "saved, written, then requeued");
    assert_eq!(run_plain(dir.path(), "7", "a"), Outcome::Done);
    assert_eq!(state::read(dir.path(), "a").unwrap().sessions.len(), 2);
}

#[test]
fn past_its_time_limit_the_work_is_stopped_and_then_killed() {
    let dir = tempfile::tempdir().unwrap();
    run_folder(dir.path(), "trap '' TERM; touch ready; while :; do sleep 60; done", "true");
    let mut limited = job(dir.path(), "1", &|| Asked::Nothing, &|| Ok(()));
    limited.time_limit = Some(Duration::from_millis(300));
    limited.grace = Duration::from_millis(300);
    let started = Instant::now();
    let Outcome::Failed(reason) = run(&limited, "a").unwrap() else { panic!("it did not fail") };
    assert!(reason.contains("the time limit"), "{reason}");
    assert!(started.elapsed() < Duration::from_secs(30));
}

#[test]
fn a_job_stopped_by_a_signal_is_cancelled_and_a_later_one_takes_it_up() {
    let dir = tempfile::tempdir().unwrap();
    run_folder(dir.path(), &format!("test -e saved || {{ {SAVES}; }}"), "true");
    let ready = dir.path().join("ready");
    let asked = || if ready.exists() { Asked::Stop } else { Asked::Nothing };
    let stopped = run(&job(dir.path(), "1", &asked, &|| Ok(())), "a").unwrap();
    assert_eq!(stopped, Outcome::Cancelled("run.sh was stopped by a signal".into()));
    assert_eq!(phase(dir.path(), "a"), Phase::Cancelled);
    assert_eq!(run_plain(dir.path(), "2", "a"), Outcome::Done);
}

#[test]
fn work_that_a_schedulers_signal_reached_first_is_cancelled_and_not_failed() {
    let dir = tempfile::tempdir().unwrap();
    run_folder(dir.path(), "exit 143", "true");
    let started = Instant::now();
    let asked = || if started.elapsed() > Duration::from_millis(400) { Asked::Stop } else { Asked::Nothing };
    let stopped = run(&job(dir.path(), "1", &asked, &|| Ok(())), "a").unwrap();
    assert_eq!(stopped, Outcome::Cancelled("run.sh was stopped by a signal".into()));
    run_folder(dir.path(), "exit 143", "true");
    assert_eq!(run_plain(dir.path(), "2", "a"), Outcome::Failed("run.sh: exit code 143".into()));
}

#[test]
fn a_second_job_of_a_stage_at_work_is_turned_away() {
    let dir = tempfile::tempdir().unwrap();
    run_folder(dir.path(), "echo x >> ran", "true");
    let _held = StageLock::take(dir.path(), "a", "job 1 on n1", Duration::ZERO, &|| true).unwrap().unwrap();
    assert_eq!(run_plain(dir.path(), "2", "a"), Outcome::NotBegun("job 1 on n1 is at work on it".into()));
    assert!(!dir.path().join("ran").exists());
}

/// Waits a moment for the end of a process that was killed.
fn is_free_soon(run: &Path) -> bool {
    let started = Instant::now();
    while is_held(run, "a").unwrap() {
        if started.elapsed() > Duration::from_secs(10) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

/// A shell gives a background job /dev/null as standard input, on which the lock would be lost.
#[test]
fn a_background_process_that_outlives_job_and_script_keeps_the_stages_lock() {
    let dir = tempfile::tempdir().unwrap();
    run_folder(dir.path(), "sleep 60 & echo $! > pid.partial; mv pid.partial pid; wait", "true");
    let lock = StageLock::take(dir.path(), "a", "job 1", Duration::ZERO, &|| true).unwrap().unwrap();
    let plan = RunPlan::read(dir.path()).unwrap();
    let cluster = Cluster::read(&dir.path().join("cluster.toml")).unwrap();
    let (asked, requeue) = (|| Asked::Nothing, || Ok(()));
    let job = job(dir.path(), "1", &asked, &requeue);
    let stage = plan.stage("a").unwrap();
    let mut script = command(&job, stage, &cluster, &lock, &stage.folder.join("run.sh")).unwrap().spawn().unwrap();
    drop(lock);
    let started = Instant::now();
    while !dir.path().join("pid").exists() {
        assert!(started.elapsed() < Duration::from_secs(30), "the script did not start");
        std::thread::sleep(Duration::from_millis(10));
    }
    script.kill().unwrap();
    script.wait().unwrap();
    assert!(is_held(dir.path(), "a").unwrap());
    assert_eq!(run_plain(dir.path(), "2", "a"), Outcome::NotBegun("job 1 is at work on it".into()));
    let pid = std::fs::read_to_string(dir.path().join("pid")).unwrap();
    assert!(Command::new("kill").args(["-9", pid.trim()]).status().unwrap().success());
    assert!(is_free_soon(dir.path()));
}

#[test]
fn what_a_script_leaves_behind_ends_with_it() {
    let dir = tempfile::tempdir().unwrap();
    run_folder(dir.path(), "sleep 60 &", "true");
    assert_eq!(run_plain(dir.path(), "1", "a"), Outcome::Done);
    assert!(is_free_soon(dir.path()));
}

#[test]
fn models_of_the_site_stand_under_their_names_and_follow_a_move() {
    let dir = tempfile::tempdir().unwrap();
    run_folder(dir.path(), "readlink models/hf-a-b >> seen", "true");
    for folder in ["/one", "/two"] {
        let text = format!("name = \"x\"\naloe = \"/bin/true\"\n[models]\n\"hf:a/b\" = \"{folder}\"\n");
        std::fs::write(dir.path().join("cluster.toml"), text).unwrap();
        assert_eq!(run_plain(dir.path(), "1", "a"), Outcome::Done);
        std::fs::remove_dir_all(dir.path().join("state")).unwrap();
    }
    assert_eq!(std::fs::read_to_string(dir.path().join("seen")).unwrap(), "/one\n/two\n");
}

/// The stages of [`run_folder`] as TRL's.
fn to_trl(dir: &Path) {
    let text = std::fs::read_to_string(dir.join("run.json")).unwrap();
    std::fs::write(dir.join("run.json"), text.replace("\"aloe\"", "\"trl\"")).unwrap();
}

/// A checkpoint as the start script leaves it.
fn checkpoint(dir: &Path, step: u64) {
    let folder = dir.join(format!("work/a/checkpoint-{step}"));
    std::fs::create_dir_all(&folder).unwrap();
    let mut files = serde_json::Map::new();
    for name in ["model.safetensors", "optimizer.pt", "trainer_state.json"] {
        std::fs::write(folder.join(name), name).unwrap();
        let sha256 = aloe_record::digest::bytes(name.as_bytes());
        files.insert(name.into(), serde_json::json!({"size": name.len(), "sha256": sha256}));
    }
    atomic::write_json(&folder.join("MANIFEST.json"), &serde_json::json!({"step": step, "files": files})).unwrap();
}

/// TRL does not save on SIGTERM: the trap would say so.
#[test]
fn a_foreign_trainer_is_asked_to_save_by_a_file_before_any_signal_and_the_next_session_does_not_find_the_question() {
    let dir = tempfile::tempdir().unwrap();
    let asks = "trap 'echo terminated >> saved' TERM; test -e work/a/STOP && echo stale >> saved; mkdir -p work/a; touch ready; \
                while [ ! -e work/a/STOP ]; do sleep 0.05; done; echo saved >> saved; exit 75";
    run_folder(dir.path(), &format!("test -e saved && exit 0; {asks}"), "test -z \"${ALOE_RESUME:-}\"");
    to_trl(dir.path());
    let ready = dir.path().join("ready");
    let asked = || if ready.exists() { Asked::Save } else { Asked::Nothing };
    assert_eq!(run(&job(dir.path(), "7", &asked, &|| Ok(())), "a").unwrap(), Outcome::Requeued);
    assert_eq!(std::fs::read_to_string(dir.path().join("saved")).unwrap(), "saved\n");
    checkpoint(dir.path(), 5);
    assert_eq!(run_plain(dir.path(), "7", "a"), Outcome::Done);
    assert!(!dir.path().join("work/a/STOP").exists());
}

#[test]
fn two_sessions_without_a_newer_checkpoint_fail_the_third_and_one_with_it_begins_the_count_anew() {
    let dir = tempfile::tempdir().unwrap();
    run_folder(dir.path(), "mkdir -p work/a; echo \"${ALOE_RESUME:-none}\" >> begun; touch ready; sleep 60", "true");
    to_trl(dir.path());
    // A signal that is too late for saving: it is stopped at once.
    let text = "name = \"x\"\naloe = \"/bin/true\"\n[slurm]\nsignal_before = 0\n";
    std::fs::write(dir.path().join("cluster.toml"), text).unwrap();
    let ready = dir.path().join("ready");
    let session = || {
        let _ = std::fs::remove_file(&ready);
        let asked = || if ready.exists() { Asked::Save } else { Asked::Nothing };
        run(&job(dir.path(), "7", &asked, &|| Ok(())), "a").unwrap()
    };
    assert_eq!(session(), Outcome::Requeued);
    checkpoint(dir.path(), 5);
    assert_eq!((session(), session()), (Outcome::Requeued, Outcome::Requeued));
    let Outcome::Failed(reason) = session() else { panic!("it began a third time") };
    assert!(reason.contains("2 sessions in a row left no whole checkpoint after step 5"), "{reason}");
    let begun = std::fs::read_to_string(dir.path().join("begun")).unwrap();
    assert_eq!(begun, "none\nwork/a/checkpoint-5\nwork/a/checkpoint-5\n");
    // Who resumes it has given it more time, or so it is taken.
    state::update(dir.path(), "a", |_| Ok(Some(Event::Reset))).unwrap();
    assert_eq!(session(), Outcome::Requeued);
}

#[test]
fn a_failure_names_the_engines_log_and_its_last_words_and_a_check_the_jobs_own() {
    let dir = tempfile::tempdir().unwrap();
    run_folder(dir.path(), "mkdir -p work/a; seq 9 > work/a/engine.log; false", "exit 3");
    to_trl(dir.path());
    let failed = run_plain(dir.path(), "7", "a");
    assert_eq!(failed, Outcome::Failed("run.sh: exit code 1; work/a/engine.log ends with: 7 | 8 | 9".into()));
    // The next session ends before its engine is started.
    let says = |words: &str, id: u32| format!("echo {words} >> state/a/slurm-{id}.log");
    let run_9 = format!("{}; exit 2", says("error: the rows are others", 9));
    std::fs::write(dir.path().join("stages/a/run.sh"), run_9).unwrap();
    let failed = run_plain(dir.path(), "9", "a");
    let said = "run.sh: exit code 2; state/a/slurm-9.log ends with: error: the rows are others";
    assert_eq!(failed, Outcome::Failed(said.into()));
    std::fs::write(dir.path().join("stages/a/run.sh"), says("work/a: 2 findings", 8)).unwrap();
    let failed = run_plain(dir.path(), "8", "a");
    assert_eq!(
        failed,
        Outcome::Failed("check.sh: exit code 3; state/a/slurm-8.log ends with: work/a: 2 findings".into())
    );
}

#[test]
fn why_a_job_did_not_begin_is_written_down_and_a_job_at_work_leaves_its_beat() {
    let dir = tempfile::tempdir().unwrap();
    run_folder(dir.path(), "test -e state/a/alive || sleep 1; test -e state/a/alive", "true");
    assert!(matches!(run_plain(dir.path(), "1", "b"), Outcome::NotBegun(_)));
    let reason = state::read(dir.path(), "b").unwrap().reason.unwrap();
    assert_eq!(reason, "job 1 did not begin: stage \"a\", which it needs, is not done");
    assert_eq!(run_plain(dir.path(), "1", "a"), Outcome::Done);
}
