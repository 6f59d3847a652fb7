//! The whole chain as jobs, on this machine and under Slurm.

use super::rig::Rig;
use crate::road::{digests, recipe, run_recipe};
use crate::{aloe, run, stories};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A site that is this machine; `more` goes at its end.
pub(super) fn cluster_file(dir: &Path, more: &str) -> PathBuf {
    let path = dir.join("cluster.toml");
    let program = env!("CARGO_BIN_EXE_aloe");
    let text = format!(
        "name = \"here\"\naloe = \"{program}\"\n[slurm]\npartition = \"acc\"\nsignal_before = 30\n[node]\ncpus = 80\ngpus = 4\n[resources.default]\n\
         nodes = 1\ngpus_per_node = 0\ncpus_per_node = 2\ntime = \"0:10:00\"\n{more}"
    );
    std::fs::write(&path, text).unwrap();
    path
}

/// Plans the tiny recipe, all stages by our own trainer; `swaps` are (old, new) in its text.
pub(super) fn plan(dir: &Path, stories: &Path, out: &Path, place: &str, swaps: &[(&str, &str)]) {
    let recipe = recipe(dir, stories);
    let mut text =
        std::fs::read_to_string(&recipe).unwrap().replace("dtype = \"f32\"", "dtype = \"f32\"\ntrainer = \"aloe\"");
    for (old, new) in swaps {
        assert!(text.contains(old), "{old} is not in the recipe");
        text = text.replace(old, new);
    }
    std::fs::write(&recipe, text).unwrap();
    let cluster = dir.join("cluster.toml");
    let cluster = if cluster.exists() { cluster } else { cluster_file(dir, "") };
    let arguments =
        ["plan", recipe.to_str().unwrap(), "--where", place, "--cluster", cluster.to_str().unwrap(), "--out"];
    let (_, said, code) = run(&[&arguments[..], &[out.to_str().unwrap()]].concat());
    assert_eq!(code, 0, "{said}");
}

/// Digest of every file of a plan, and of what was made with it.
pub(super) fn digests_of_plan(run: &Path) -> BTreeMap<String, String> {
    let mut found = digests(run);
    found.retain(|name, _| !name.starts_with("state/"));
    assert!(found.contains_key("run.json") && found.contains_key("recipe.toml"), "{:?}", found.keys());
    found
}

/// State of each stage, by `aloe status --json`.
pub(super) fn states(run_folder: &Path, rig: Option<&Rig>) -> Vec<(String, String)> {
    let value = status(run_folder, rig);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    value["stages"].as_array().unwrap().iter().map(|stage| (text(&stage["stage"]), text(&stage["phase"]))).collect()
}

pub(super) fn status(run_folder: &Path, rig: Option<&Rig>) -> Value {
    let mut command = aloe();
    command.args(["status", run_folder.to_str().unwrap(), "--json"]);
    if let Some(rig) = rig {
        command.env("SLURM_CONF", &rig.conf);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What the chain must give: the same as `aloe run` on the recipe that was planned.
pub(super) fn assert_equals_plain_run(dir: &Path, stories: &Path, run_folder: &Path) {
    let plain = dir.join("plain");
    let recipe = recipe(dir, stories);
    run_recipe(&recipe, &plain);
    let (plain, planned) = (digests(&plain), digests(&run_folder.join("out")));
    let of = |found: &BTreeMap<String, String>| -> BTreeMap<String, String> {
        // Tables and pages name the data by its path, which is another one in the run folder.
        let names = ["model.safetensors", "samples.jsonl", "train.jsonl", "metrics.jsonl"];
        found
            .iter()
            .filter(|(name, _)| names.iter().any(|end| name.ends_with(end)))
            .map(|(name, digest)| (name.clone(), digest.clone()))
            .collect()
    };
    assert!(of(&plain).len() > 12, "{:?}", plain.keys());
    assert_eq!(of(&planned), of(&plain));
}

pub(super) fn assert_all(run_folder: &Path, rig: Option<&Rig>, phase: &str) {
    let found = states(run_folder, rig);
    assert_eq!(found.len(), 8);
    assert!(found.iter().all(|(_, one)| one == phase), "{found:?}");
}

#[test]
fn on_this_machine_a_moved_run_folder_gives_what_aloe_run_gives_and_is_collected() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let planned = dir.path().join("planned");
    plan(dir.path(), &stories, &planned, "local", &[]);
    let moved = dir.path().join("other place/run");
    std::fs::create_dir(dir.path().join("other place")).unwrap();
    std::fs::rename(&planned, &moved).unwrap();
    let (_, said, code) = run(&["run", moved.to_str().unwrap()]);
    assert_eq!(code, 0, "{said}");
    assert_all(&moved, None, "done");
    assert_equals_plain_run(dir.path(), &stories, &moved);
    let collected = dir.path().join("collected");
    let (_, said, code) = run(&["collect", moved.to_str().unwrap(), "--out", collected.to_str().unwrap()]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(digests(&collected), digests(&moved.join("out")));
    // Nothing is done twice.
    let before = std::fs::read_to_string(moved.join("out/card/record.json")).unwrap();
    let (_, said, code) = run(&["run", moved.to_str().unwrap()]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(std::fs::read_to_string(moved.join("out/card/record.json")).unwrap(), before);
    // A changed result is not collected.
    std::fs::write(moved.join("out/merge/model/config.json"), "{}").unwrap();
    let (_, said, code) = run(&["collect", moved.to_str().unwrap()]);
    assert!(code == 2 && said.contains("is not what the stage wrote"), "{said}");
}

#[test]
fn on_this_machine_a_killed_client_loses_nothing_and_a_failure_cancels_what_follows() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let planned = dir.path().join("planned");
    plan(dir.path(), &stories, &planned, "local", &[]);
    let check = planned.join("stages/30-merge/check.sh");
    let whole = std::fs::read_to_string(&check).unwrap();
    std::fs::write(&check, "exit 9\n").unwrap();
    let mut client =
        aloe().args(["run", planned.to_str().unwrap()]).stdout(std::process::Stdio::null()).spawn().unwrap();
    let log = planned.join("state/sft-a/events.log");
    let started = Instant::now();
    while !std::fs::read_to_string(&log).unwrap_or_default().contains("started") {
        assert!(started.elapsed() < Duration::from_secs(120), "the first job did not start");
        std::thread::yield_now();
    }
    client.kill().unwrap();
    client.wait().unwrap();
    let (_, said, code) = run(&["run", planned.to_str().unwrap()]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("stage merge: failed: check.sh: exit code 9"), "{said}");
    let phases: Vec<String> = states(&planned, None).into_iter().map(|(_, phase)| phase).collect();
    // sft-a, sft-b, merge, dpo, before, after, attacks, card: "before" asks the base model and does not follow the merge.
    assert_eq!(phases[..4], ["done", "done", "failed", "cancelled"]);
    assert_eq!(phases[5..], ["cancelled", "cancelled", "cancelled"]);
    assert_eq!(status(&planned, None)["stages"][0]["attempts"], 1, "the killed client's job was started anew");
    std::fs::write(&check, whole).unwrap();
    let (_, said, code) = run(&["resume", planned.to_str().unwrap()]);
    assert_eq!(code, 0, "{said}");
    assert_all(&planned, None, "done");
    assert_equals_plain_run(dir.path(), &stories, &planned);
}

#[test]
fn under_slurm_the_whole_chain_completes_and_gives_what_aloe_run_gives() {
    let (Some(stories), Some(rig)) = (stories(), Rig::start()) else { return };
    let dir = tempfile::tempdir().unwrap();
    let planned = dir.path().join("planned");
    plan(dir.path(), &stories, &planned, "slurm", &[]);
    rig.aloe_ok(&["run", planned.to_str().unwrap()]);
    rig.wait_until(&planned, Duration::from_secs(900), |phases| phases.iter().all(|phase| phase == "done"));
    let jobs = rig.completed(8);
    assert_eq!(jobs.len(), 8, "{jobs:?}");
    assert!(jobs.iter().all(|(_, state)| state == "COMPLETED"), "{jobs:?}");
    assert_equals_plain_run(dir.path(), &stories, &planned);
}

#[test]
fn under_slurm_a_failure_at_each_position_cancels_all_later_stages() {
    let (Some(stories), Some(rig)) = (stories(), Rig::start()) else { return };
    let dir = tempfile::tempdir().unwrap();
    let planned = dir.path().join("planned");
    plan(dir.path(), &stories, &planned, "slurm", &[]);
    let stages = ["10-sft-a", "20-sft-b", "30-merge", "40-dpo", "50-before", "60-after", "70-attacks", "80-card"];
    // Work of no length: what is shown is what the scheduler and the state make of an exit code.
    for stage in stages {
        for script in ["run.sh", "check.sh"] {
            std::fs::write(planned.join("stages").join(stage).join(script), "exit 0\n").unwrap();
        }
    }
    let after: Value = serde_json::from_str(&std::fs::read_to_string(planned.join("run.json")).unwrap()).unwrap();
    for (position, stage) in stages.iter().enumerate() {
        let run_folder = dir.path().join(format!("run {position}"));
        let copied = std::process::Command::new("cp").arg("-r").args([&planned, &run_folder]).status().unwrap();
        assert!(copied.success());
        std::fs::write(run_folder.join("stages").join(stage).join("run.sh"), "exit 7\n").unwrap();
        // It submits all, and says so with another exit code where the failure came before its end.
        rig.aloe(&["run", run_folder.to_str().unwrap()]).output().unwrap();
        rig.wait_until(&run_folder, Duration::from_secs(120), |phases| {
            phases.iter().all(|phase| ["done", "failed", "cancelled"].contains(&phase.as_str()))
        });
        let found = states(&run_folder, Some(&rig));
        let mut lost: Vec<String> = Vec::new();
        for (at, stage) in after["stages"].as_array().unwrap().iter().enumerate() {
            let name = stage["name"].as_str().unwrap().to_owned();
            let follows = stage["after"].as_array().unwrap().iter().any(|name| lost.iter().any(|lost| name == lost));
            let expected = if at == position {
                "failed"
            } else if follows {
                "cancelled"
            } else {
                "done"
            };
            assert_eq!(found[at], (name.clone(), expected.to_owned()), "failure at {position}: {found:?}");
            if expected != "done" {
                lost.push(name);
            }
        }
    }
}
