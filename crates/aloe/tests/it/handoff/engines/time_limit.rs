//! A stage that TRL trains under a real Slurm and that its time limit ends in the middle: told so by Slurm (USR1) it saves the step at hand,
//! goes back into the queue, and goes on from there to the bytes of the same stage with time enough. No step is made twice.
//!
//! When the limit comes does not depend on how fast the machine is: the trainer is held still after its first steps, its job's limit is brought
//! near, and it is let go when the job has heard of it.

use super::super::chain::{cluster_file, status};
use super::super::rig::Rig;
use super::{stories, trl};
use crate::{root, run};
use aloe_record::Record;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Steps of either stage.
const N_STEPS: u64 = 300;

/// A signal comes so long before a limit, in minutes: time to save, on any machine.
const SIGNAL_BEFORE_MIN: u64 = 4;

/// Two stages that differ in their name alone.
const RECIPE: &str = "\
name = \"limit\"
trainer = \"trl\"
seed = 3
dtype = \"f32\"

[[stage]]
kind = \"pull\"
name = \"base\"
source = \"@STORIES@\"
licence = \"mit\"

[[stage]]
kind = \"data\"
name = \"rows\"
hold_out = 0.2
sources = [{ name = \"general\", path = \"@STARTER@/sft/general.jsonl\", licence = \"mit\", max_rows = 30 }]
";

const STAGE: &str = "
[[stage]]
kind = \"sft\"
name = \"@NAME@\"
from = { model = \"base\", data = \"rows\" }
chat_template = \"alpaca\"
max_steps = @STEPS@
epochs = 1000
lr = 1e-4
max_len = 256
batch_size = 1
checkpoint_every = 100
warmup_steps = 1
";

fn plan(dir: &Path, stories: &Path, trl: &Path, out: &Path) {
    let starter = root().join("starter").canonicalize().unwrap();
    let stage = |name: &str| STAGE.replace("@NAME@", name).replace("@STEPS@", &N_STEPS.to_string());
    let text = RECIPE.replace("@STORIES@", stories.to_str().unwrap()).replace("@STARTER@", starter.to_str().unwrap());
    let recipe = dir.join("limit.toml");
    std::fs::write(&recipe, [text, stage("whole"), stage("cut")].concat()).unwrap();
    let more = format!("[engines]\ntrl = \"{}\"\n", trl.display());
    let cluster = cluster_file(dir, &more);
    let mut text = std::fs::read_to_string(&cluster).unwrap();
    let signal = format!("signal_before = {}", 60 * SIGNAL_BEFORE_MIN);
    for (old, new) in [("signal_before = 30", signal.as_str()), ("time = \"0:10:00\"", "time = \"1:00:00\"")] {
        assert!(text.contains(old));
        text = text.replace(old, new);
    }
    std::fs::write(&cluster, text).unwrap();
    let [recipe, cluster, out] = [&recipe, &cluster, &out.to_path_buf()].map(|path| path.to_str().unwrap().to_owned());
    let (_, said, code) = run(&["plan", &recipe, "--where", "slurm", "--cluster", &cluster, "--out", &out]);
    assert_eq!(code, 0, "{said}");
}

/// What the start script noted of the stage's sessions: event and step.
fn sessions(run: &Path, stage: &str) -> Vec<(String, u64)> {
    let text = std::fs::read_to_string(run.join("work").join(stage).join("sessions.jsonl")).unwrap_or_default();
    let of = |line: &str| {
        let entry: Value = serde_json::from_str(line).ok()?;
        Some((entry["event"].as_str()?.to_owned(), entry["step"].as_u64()?))
    };
    text.lines().filter_map(of).collect()
}

/// The steps that were logged, in the order in which they were made.
fn steps(run: &Path, stage: &str) -> Vec<u64> {
    let text = std::fs::read_to_string(run.join("work").join(stage).join("log.jsonl")).unwrap_or_default();
    let entries = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    entries.filter(|entry| entry.get("loss").is_some()).map(|entry| entry["step"].as_u64().unwrap()).collect()
}

/// Asks until there is an answer.
fn wait_for<T>(rig: &Rig, run: &Path, what: &str, ask: impl Fn() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = ask() {
            return found;
        }
        let is_late = started.elapsed() > Duration::from_secs(300);
        assert!(!is_late, "no {what}: {}\n{:?}", status(run, Some(rig)), sessions(run, "cut"));
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Sends a signal to the processes that train a stage of this run.
fn signal(run: &Path, stage: &str, name: &str) {
    let run = run.canonicalize().unwrap();
    let script = format!("-{stage}/engine.py");
    let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let trains = |path: &PathBuf| {
        let command = std::fs::read(path.join("cmdline")).unwrap_or_default();
        std::fs::read_link(path.join("cwd")).is_ok_and(|folder| folder == run)
            && String::from_utf8_lossy(&command).contains(&script)
    };
    let found: Vec<PathBuf> = processes.filter(trains).collect();
    assert!(!found.is_empty(), "nobody trains {stage}");
    for path in found {
        let pid = path.file_name().unwrap().to_str().unwrap();
        assert!(Command::new("kill").args([name, pid]).status().unwrap().success());
    }
}

/// Brings the limit of a job so near that Slurm warns it at once.
fn bring_limit_near(rig: &Rig, job: &str) {
    let elapsed = rig.slurm("squeue", &["--noheader", "--Format=TimeUsed", "--jobs", job]);
    // M:SS, or H:MM:SS.
    let parts: Vec<u64> = elapsed.trim().split(':').map(|part| part.parse().unwrap()).collect();
    let elapsed_s = parts.iter().fold(0, |sum, part| 60 * sum + part);
    let limit = format!("TimeLimit={}", elapsed_s / 60 + SIGNAL_BEFORE_MIN);
    rig.slurm("scontrol", &["update", &format!("JobId={job}"), &limit]);
}

/// Takes three minutes and more, two of them Slurm's own waiting before a job begins again: the ten minutes of `.ci/engines train` have no room for
/// them. `ALOE_SLOW=faults` asks for it.
#[test]
fn under_slurm_a_training_by_trl_that_its_limit_ends_goes_on_to_the_bytes_of_one_with_time_enough() {
    if std::env::var_os("ALOE_SLOW").is_none_or(|asked| asked != "faults") {
        eprintln!("not run: ALOE_SLOW is not faults");
        return;
    }
    let (Some(stories), Some(trl), Some(rig)) = (stories(), trl(), Rig::start()) else { return };
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    plan(dir.path(), &stories, &trl, &run);
    rig.aloe_ok(&["run", run.to_str().unwrap()]);
    wait_for(&rig, &run, "step", || steps(&run, "cut").contains(&20).then_some(()));
    signal(&run, "cut", "-STOP");
    let stages = status(&run, Some(&rig))["stages"].as_array().unwrap().clone();
    let job = stages.iter().find(|stage| stage["stage"] == "cut").unwrap()["job"].as_str().unwrap().to_owned();
    bring_limit_near(&rig, &job);
    wait_for(&rig, &run, "signal", || run.join("work/cut/STOP").exists().then_some(()));
    signal(&run, "cut", "-CONT");
    wait_for(&rig, &run, "requeued job", || {
        let details = rig.slurm("scontrol", &["show", "job", &job]);
        (details.contains("JobState=PENDING") && details.contains("Restarts=1")).then_some(())
    });
    let first = sessions(&run, "cut");
    // Time enough now. Slurm lets two minutes pass before a job that was put back begins again, and kills one that is made to begin earlier.
    rig.slurm("scontrol", &["update", &format!("JobId={job}"), "TimeLimit=60"]);
    rig.wait_until(&run, Duration::from_secs(600), |phases| phases.iter().all(|phase| phase == "done"));
    let saved = first.last().map_or(0, |last| last.1);
    let event = |event: &str, step: u64| (event.to_owned(), step);
    assert!(saved > 0 && saved < N_STEPS, "{first:?}");
    assert_eq!(first, [event("begin", 0), event("stop", saved)]);
    let all = sessions(&run, "cut");
    assert_eq!(all[2..], [event("begin", saved), event("end", N_STEPS)], "{all:?}");
    assert_eq!(sessions(&run, "whole"), [event("begin", 0), event("end", N_STEPS)]);
    for stage in ["whole", "cut"] {
        assert_eq!(steps(&run, stage), (1..=N_STEPS).collect::<Vec<u64>>(), "{stage}");
        let record = Record::read(&run.join("out").join(stage)).unwrap();
        assert_eq!(record.results["handoff"]["engine"], "trl", "{stage}");
    }
    for weights in ["master/model.safetensors", "model/model.safetensors"] {
        let digest = |stage: &str| aloe_record::digest::file(&run.join("out").join(stage).join(weights)).unwrap();
        assert_eq!(digest("cut"), digest("whole"), "{weights}");
    }
    eprintln!("told to save by Slurm after step {saved} of {N_STEPS}: the same bytes");
}
