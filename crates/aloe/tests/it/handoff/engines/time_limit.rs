//! A stage that TRL trains under a real Slurm and that its time limit ends in the middle: told so by Slurm (USR1) it saves the step at hand,
//! goes back into the queue, and goes on from there to the bytes of the same stage with time enough. No step is made twice.

use super::super::chain::{cluster_file, status};
use super::super::rig::Rig;
use super::{stories, trl};
use crate::{root, run};
use aloe_record::Record;
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant};

/// Steps of either stage. With two of them at work on two cores they take over a minute, and Slurm tells the first one half a minute after its job
/// began: only on a machine that is several times as fast it would be done by then. A slow one has three minutes to make a step and save it.
const N_STEPS: u64 = 2000;

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
checkpoint_every = 500
warmup_steps = 1
";

fn plan(dir: &Path, stories: &Path, trl: &Path, out: &Path) {
    let starter = root().join("starter").canonicalize().unwrap();
    let stage = |name: &str| STAGE.replace("@NAME@", name).replace("@STEPS@", &N_STEPS.to_string());
    let text = RECIPE.replace("@STORIES@", stories.to_str().unwrap()).replace("@STARTER@", starter.to_str().unwrap());
    let recipe = dir.join("limit.toml");
    std::fs::write(&recipe, [text, stage("whole"), stage("cut")].concat()).unwrap();
    let more = format!("[stages.cut]\ntime = \"0:04:00\"\n[engines]\ntrl = \"{}\"\n", trl.display());
    let cluster = cluster_file(dir, &more);
    let text = std::fs::read_to_string(&cluster).unwrap().replace("signal_before = 30", "signal_before = 210");
    std::fs::write(&cluster, text.replace("time = \"0:10:00\"", "time = \"0:30:00\"")).unwrap();
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
    let text = std::fs::read_to_string(run.join("work").join(stage).join("log.jsonl")).unwrap();
    let entries = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    entries.filter(|entry| entry.get("loss").is_some()).map(|entry| entry["step"].as_u64().unwrap()).collect()
}

/// The job of a stage, once Slurm has put it back into its queue.
fn requeued(rig: &Rig, run: &Path, stage: &str) -> String {
    let started = Instant::now();
    loop {
        let found = status(run, Some(rig));
        let of_stage = found["stages"].as_array().unwrap().iter().find(|one| one["stage"] == stage).unwrap();
        let job = of_stage["job"].as_str().unwrap_or_default().to_owned();
        let details = rig.slurm("scontrol", &["show", "job", &job]);
        if details.contains("JobState=PENDING") && details.contains("Restarts=1") {
            return job;
        }
        let is_late = started.elapsed() > Duration::from_secs(240);
        assert!(!is_late && of_stage["phase"] != "failed", "{of_stage}\n{details}\n{:?}", sessions(run, stage));
        std::thread::sleep(Duration::from_millis(500));
    }
}

#[test]
fn under_slurm_a_training_by_trl_that_its_limit_ends_goes_on_to_the_bytes_of_one_with_time_enough() {
    let (Some(stories), Some(trl), Some(rig)) = (stories(), trl(), Rig::start()) else { return };
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    plan(dir.path(), &stories, &trl, &run);
    rig.aloe_ok(&["run", run.to_str().unwrap()]);
    let job = requeued(&rig, &run, "cut");
    let first = sessions(&run, "cut");
    // Slurm lets two minutes pass before a job that was put back begins again, and its next limit would come as early as this one.
    rig.slurm("scontrol", &["update", &format!("JobId={job}"), "TimeLimit=30", "StartTime=now"]);
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
