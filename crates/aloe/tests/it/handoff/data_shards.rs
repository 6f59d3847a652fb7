//! A data stage in shards: its folder is, byte for byte, that of one process; a shard that fails is all that runs again, and one whose files
//! were changed is made anew as the message says.

use super::chain::{states, status};
use super::rig::Rig;
use crate::road::digests;
use crate::{aloe, root, run};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// 90 rows: every fifth is a copy of another in capitals, every seventh one with another word in a long answer.
fn rows(dir: &Path) -> PathBuf {
    // Of letters: rows that differ in numbers alone count as one.
    let word = |n: usize| -> String { (0..3).map(|at| char::from(b'a' + (n / 26usize.pow(at) % 26) as u8)).collect() };
    let answer =
        |i: usize| -> String { (0..60).map(|at| word((i * 7919 + at * at * 31 + at * i * 17) % 9973) + " ").collect() };
    let row = |i: usize| -> Value {
        let (question, answer) = (format!("What is finding number {i} of the list?"), format!("{i}: {}", answer(i)));
        json!({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
    };
    let line = |i: usize| match i {
        5.. if i.is_multiple_of(5) => row(i / 2).to_string().replace("finding", "FINDING"),
        7.. if i.is_multiple_of(7) => row(i - 3).to_string().replace("the list", "that list"),
        _ => row(i).to_string(),
    };
    let path = dir.join("rows.jsonl");
    std::fs::write(&path, (0..90).map(|i| line(i) + "\n").collect::<String>()).unwrap();
    path
}

const STAGES: [&str; 6] = ["rows.1-of-3", "rows.2-of-3", "rows.3-of-3", "rows", "more.1-of-2", "more.2-of-2"];

/// Plans `rows` in three shards and `more`, which takes its rows and others, in two; the run folder, what was said, exit code.
fn planned(dir: &Path, name: &str, place: &str, more: &str) -> (PathBuf, String, i32) {
    let (own, general) = (rows(dir), root().join("starter/sft/medical.jsonl").canonicalize().unwrap());
    let recipe = dir.join(format!("{name}.toml"));
    let text = format!(
        "name = \"shards\"\nseed = 3\n[[stage]]\nkind = \"data\"\nname = \"rows\"\nhold_out = 0.1\nsources = [{{ name = \"own\", path = {own:?}, licence = \"mit\" }}]\n{more}\
         [[stage]]\nkind = \"data\"\nname = \"more\"\nsources = [{{ name = \"earlier\", path = \"stage:rows\", licence = \"mit\" }}, \
         {{ name = \"starter\", path = {general:?}, licence = \"mit\" }}]\n"
    );
    std::fs::write(&recipe, text).unwrap();
    let cluster = dir.join(format!("{name}.cluster.toml"));
    let text = format!(
        "name = \"here\"\naloe = \"{}\"\n[slurm]\npartition = \"acc\"\nsignal_before = 5\n[resources.default]\nnodes = 1\ngpus_per_node = 0\n\
         cpus_per_node = 2\ntime = 600\n[resources.data]\nshards = 2\n[stages.rows]\nshards = 3\n",
        env!("CARGO_BIN_EXE_aloe")
    );
    std::fs::write(&cluster, text).unwrap();
    let out = dir.join(name);
    let [recipe, cluster, folder] = [&recipe, &cluster, &out].map(|path| path.to_str().unwrap());
    let (_, said, code) = run(&["plan", recipe, "--where", place, "--cluster", cluster, "--out", folder]);
    (out, said, code)
}

fn planned_well(dir: &Path, name: &str, place: &str) -> PathBuf {
    let (out, said, code) = planned(dir, name, place, "");
    assert_eq!(code, 0, "{said}");
    out
}

/// What one process makes of the run folder's recipe.
fn of_one_process(dir: &Path, run_folder: &Path) -> BTreeMap<String, String> {
    let out = dir.join("whole");
    let arguments = ["run", "recipe.toml", "--out", out.to_str().unwrap()];
    let output = aloe().args(arguments).current_dir(run_folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found = digests(&out);
    for name in ["rows/train.jsonl", "rows/manifest.json", "more/train.jsonl"] {
        assert!(found.contains_key(name), "{found:?}");
    }
    found
}

fn attempts(run_folder: &Path, rig: Option<&Rig>) -> Vec<u64> {
    let value: Value = status(run_folder, rig);
    value["stages"].as_array().unwrap().iter().map(|stage| stage["attempts"].as_u64().unwrap()).collect()
}

fn phases(run_folder: &Path) -> Vec<String> {
    states(run_folder, None).into_iter().map(|(_, phase)| phase).collect()
}

#[test]
fn data_in_shards_has_the_bytes_of_one_process_and_a_failed_or_changed_shard_is_all_that_runs_again() {
    let dir = tempfile::tempdir().unwrap();
    let folder = planned_well(dir.path(), "run", "local");
    let names: Vec<String> = states(&folder, None).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, [&STAGES[..], &["more"]].concat());
    assert!(!folder.join("out/rows").exists(), "made by jobs and not while planning");
    let check = folder.join("stages/10-rows.2-of-3/check.sh");
    let whole = std::fs::read_to_string(&check).unwrap();
    std::fs::write(&check, "exit 9\n").unwrap();
    let (_, said, code) = run(&["run", folder.to_str().unwrap()]);
    assert!(code == 1 && said.contains("stage rows.2-of-3: failed: check.sh: exit code 9"), "{said}");
    assert_eq!(phases(&folder)[..4], ["done", "failed", "planned", "cancelled"]);
    std::fs::write(&check, whole).unwrap();
    // The third is changed behind the program's back, before what it signed is gathered.
    let gathers = folder.join("stages/10-rows/run.sh");
    let script = std::fs::read_to_string(&gathers).unwrap();
    std::fs::write(&gathers, format!("printf x >> work/rows/3-of-3/signatures.bin\n{script}")).unwrap();
    let (_, _, code) = run(&["resume", folder.to_str().unwrap()]);
    let log = std::fs::read_to_string(folder.join("state/rows/local.log")).unwrap();
    assert!(code == 1 && log.contains("3-of-3 is not the shard of these settings and inputs"), "{log}");
    assert_eq!(phases(&folder)[..4], ["done", "done", "done", "failed"]);
    std::fs::write(&gathers, script).unwrap();
    // What the message says is what a user does.
    let advice = log.split("were changed: remove ").nth(1).unwrap().split(" and run it again").next().unwrap();
    for path in advice.split(" and ") {
        assert!(folder.join(path).is_dir(), "{advice}");
        std::fs::remove_dir_all(folder.join(path)).unwrap();
    }
    let (_, said, code) = run(&["resume", folder.to_str().unwrap()]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(attempts(&folder, None), [1, 2, 1, 2, 1, 1, 1], "a removed state counts anew");
    assert_eq!(digests(&folder.join("out")), of_one_process(dir.path(), &folder));
    let record = aloe_record::Record::read(&folder.join("out/rows")).unwrap();
    let single = aloe_record::Record::read(&dir.path().join("whole/rows")).unwrap();
    assert_eq!((&record.fingerprint, &record.config_used), (&single.fingerprint, &single.config_used));
    assert_eq!((&record.results["shards"], &record.results["job"]["n_nodes"]), (&json!(3), &json!(3)));
    assert_eq!(record.results["summary"], single.results["summary"]);
    let n_dropped = std::fs::read_to_string(folder.join("work/rows/merged/duplicates.jsonl")).unwrap().lines().count();
    // 17 lines are fifths and 10 more are sevenths; what some of them repeat was itself replaced.
    assert!((12..=27).contains(&n_dropped), "{n_dropped} of 90 rows");
}

#[test]
fn shards_of_a_stage_whose_duplicates_were_found_already_are_refused_when_planned() {
    let dir = tempfile::tempdir().unwrap();
    let (_, said, code) = planned(dir.path(), "run", "local", "duplicates = \"/found\"\n");
    assert!(code == 2 && said.contains("stage \"rows\": shards find its duplicates"), "{said}");
}

#[test]
fn under_slurm_data_shards_are_one_array_and_only_the_failed_one_is_submitted_again() {
    let Some(rig) = Rig::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let folder = planned_well(dir.path(), "run", "slurm");
    let check = folder.join("stages/10-rows.2-of-3/check.sh");
    let whole = std::fs::read_to_string(&check).unwrap();
    std::fs::write(&check, "exit 9\n").unwrap();
    rig.aloe_ok(&["run", folder.to_str().unwrap()]);
    let patience = Duration::from_secs(300);
    rig.wait_until(&folder, patience, |phases| phases[..4] == ["done", "failed", "done", "cancelled"]);
    let jobs = |at: usize| status(&folder, Some(&rig))["stages"][at]["job"].as_str().unwrap().to_owned();
    let first = jobs(0);
    let array = first.strip_suffix("_1").unwrap_or_else(|| panic!("{first} is no job of an array")).to_owned();
    assert_eq!(jobs(2), format!("{array}_3"));
    std::fs::write(&check, whole).unwrap();
    rig.aloe_ok(&["resume", folder.to_str().unwrap()]);
    rig.wait_until(&folder, patience, |phases| phases.iter().all(|phase| phase == "done"));
    assert_eq!(attempts(&folder, Some(&rig))[..4], [1, 2, 1, 2]);
    assert!(jobs(1).ends_with("_2") && !jobs(1).starts_with(&array), "{} after {array}", jobs(1));
    assert_eq!(digests(&folder.join("out")), of_one_process(dir.path(), &folder));
}
