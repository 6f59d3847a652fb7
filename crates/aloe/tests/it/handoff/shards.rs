//! An evaluation in shards: its folder is, byte for byte, that of one job; a shard that fails stops what follows and is all that runs again.

use super::chain::{states, status};
use super::rig::Rig;
use crate::road::digests;
use crate::{root, run, stories};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Three tasks of three readers in one folder: two of the starter set and CareQA.
fn data(dir: &Path) -> PathBuf {
    let data = dir.join("benchmarks");
    let real = PathBuf::from(std::env::var("ALOE_DATA").unwrap());
    for (folder, from) in [("mcqa", root().join("starter/mcqa")), ("careqa", real.join("careqa"))] {
        std::fs::create_dir_all(data.join(folder)).unwrap();
        for entry in std::fs::read_dir(from).unwrap().flatten() {
            std::fs::copy(entry.path(), data.join(folder).join(entry.file_name())).unwrap();
        }
    }
    data
}

/// Plans the evaluation `scores` and one that follows it; `site` goes to the end of cluster.toml.
fn planned(dir: &Path, name: &str, place: &str, site: &str) -> (PathBuf, String, i32) {
    let (model, data) = (stories().unwrap(), data(dir));
    let recipe = dir.join("scores.toml");
    let text = format!(
        "name = \"scores\"\nseed = 3\n[[stage]]\nkind = \"eval\"\nname = \"scores\"\nfrom = {{ model = {model:?} }}\n\
         tasks = [\"careqa_en\", \"starter_pubmedqa\", \"starter_mcqa\"]\nlimit = 8\ndata = {data:?}\n[[stage]]\nkind = \"eval\"\nname = \"later\"\nfrom = {{ model = {model:?}, compare = \"scores\" }}\ntasks = [\"careqa_en\", \
         \"starter_pubmedqa\", \"starter_mcqa\"]\nlimit = 8\ndata = {data:?}\n"
    );
    std::fs::write(&recipe, text).unwrap();
    let cluster = dir.join(format!("{name}.cluster.toml"));
    let text = format!(
        "name = \"here\"\naloe = \"{}\"\n[slurm]\npartition = \"acc\"\nsignal_before = 5\n[resources.default]\nnodes = 1\ngpus_per_node = 0\n\
         cpus_per_node = 2\ntime = 600\n{site}",
        env!("CARGO_BIN_EXE_aloe")
    );
    std::fs::write(&cluster, text).unwrap();
    let out = dir.join(name);
    let arguments =
        ["plan", recipe.to_str().unwrap(), "--where", place, "--cluster", cluster.to_str().unwrap(), "--out"];
    let (_, said, code) = run(&[&arguments[..], &[out.to_str().unwrap()]].concat());
    (out, said, code)
}

fn planned_well(dir: &Path, name: &str, place: &str, site: &str) -> PathBuf {
    let (out, said, code) = planned(dir, name, place, site);
    assert_eq!(code, 0, "{said}");
    out
}

fn run_well(run_folder: &Path) {
    let (_, said, code) = run(&["run", run_folder.to_str().unwrap()]);
    let log = std::fs::read_to_string(run_folder.join("state/scores/local.log")).unwrap_or_default();
    assert_eq!(code, 0, "{said}\n{log}");
}

/// Every file of the results but records.
fn results(run_folder: &Path) -> BTreeMap<String, String> {
    let found = digests(&run_folder.join("out"));
    for name in ["results.json", "samples.jsonl", "questions.jsonl"] {
        assert!(found.contains_key(&format!("scores/{name}")), "{found:?}");
    }
    found
}

const THREE: &str = "[stages.scores]\nshards = 3\n";

const STAGES: [&str; 5] = ["scores.1-of-3", "scores.2-of-3", "scores.3-of-3", "scores", "later"];

fn attempts(run_folder: &Path, rig: Option<&Rig>) -> Vec<u64> {
    let value: Value = status(run_folder, rig);
    value["stages"].as_array().unwrap().iter().map(|stage| stage["attempts"].as_u64().unwrap()).collect()
}

#[test]
fn three_shards_give_the_bytes_of_one_job_and_count_as_that_stage() {
    if stories().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let one = planned_well(dir.path(), "one", "local", "");
    let three = planned_well(dir.path(), "three", "local", THREE);
    run_well(&one);
    run_well(&three);
    assert_eq!(results(&three), results(&one));
    let names: Vec<String> = states(&three, None).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, STAGES);
    let record = |run_folder: &Path| -> Value {
        serde_json::from_str(&std::fs::read_to_string(run_folder.join("out/scores/record.json")).unwrap()).unwrap()
    };
    let (whole, gathered) = (record(&one), record(&three));
    assert_eq!((&gathered["fingerprint"], &gathered["config_used"]), (&whole["fingerprint"], &whole["config_used"]));
    assert_eq!(
        (&gathered["results"]["summary"], &gathered["results"]["shards"]),
        (&whole["results"]["summary"], &3.into())
    );
    let part: Value =
        serde_json::from_str(&std::fs::read_to_string(three.join("work/scores/2-of-3/record.json")).unwrap()).unwrap();
    assert_eq!(part["config_used"]["tasks"], serde_json::json!(["starter_pubmedqa"]));
    // Whoever runs the stage again finds it done, and a shard of other bytes is not gathered.
    std::fs::write(three.join("work/scores/3-of-3/samples.jsonl"), "").unwrap();
    let again = |more: &[&str]| {
        let program = env!("CARGO_BIN_EXE_aloe");
        let arguments = [&["run", "recipe.toml", "--stage", "scores", "--out", "out", "--json"], more].concat();
        let output = std::process::Command::new(program).args(arguments).current_dir(&three).output().unwrap();
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    assert!(again(&[]).0.contains("\"was_done\": true"), "{:?}", again(&[]));
    let (_, said) = again(&["--shards", "work/scores", "--gather", "3"]);
    assert!(said.contains("3-of-3 is not the shard of these settings"), "{said}");
    let (_, said) = again(&["--shards", "work/scores", "--gather", "2"]);
    assert!(said.contains("shard 1 of 2") && said.contains("run it first"), "{said}");
}

#[test]
fn a_shard_that_fails_cancels_what_follows_and_is_all_that_runs_again() {
    if stories().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let three = planned_well(dir.path(), "three", "local", THREE);
    let check = three.join("stages/10-scores.2-of-3/check.sh");
    let whole = std::fs::read_to_string(&check).unwrap();
    std::fs::write(&check, "exit 9\n").unwrap();
    let (_, said, code) = run(&["run", three.to_str().unwrap()]);
    assert!(code == 1 && said.contains("stage scores.2-of-3: failed: check.sh: exit code 9"), "{said}");
    let found: Vec<String> = states(&three, None).into_iter().map(|(_, phase)| phase).collect();
    assert_eq!(found, ["done", "failed", "planned", "cancelled", "cancelled"]);
    std::fs::write(&check, whole).unwrap();
    let (_, said, code) = run(&["resume", three.to_str().unwrap()]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(attempts(&three, None)[..3], [1, 2, 1]);
    let one = planned_well(dir.path(), "one", "local", "");
    run_well(&one);
    assert_eq!(results(&three), results(&one));
}

#[test]
fn shards_of_served_stages_are_gathered_without_a_server() {
    if stories().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let seen = dir.path().join("seen");
    std::fs::create_dir(&seen).unwrap();
    let mock = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/handoff/mock_server.py");
    let serving =
        format!("[serving]\ncommand = [\"python3\", {mock:?}, \"{{port}}\", \"{{model}}\", {seen:?}, \"good\"]\n");
    let one = planned_well(dir.path(), "one", "local", &serving);
    let three = planned_well(dir.path(), "three", "local", &format!("{THREE}{serving}"));
    let gathers = std::fs::read_to_string(three.join("stages/10-scores/run.sh")).unwrap();
    assert!(gathers.ends_with("--stage scores --out out --shards work/scores --gather 3\n"), "{gathers}");
    run_well(&one);
    run_well(&three);
    assert_eq!(results(&three), results(&one));
}

/// Nodes of a partition may have other processors: a done shard never runs again, so whoever gathers must take it.
#[test]
fn shards_that_another_processor_made_are_gathered_and_the_record_names_it() {
    if stories().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let three = planned_well(dir.path(), "three", "local", THREE);
    let gathers = three.join("stages/10-scores/run.sh");
    let whole = std::fs::read_to_string(&gathers).unwrap();
    std::fs::write(&gathers, "exit 9\n").unwrap();
    let shards = crate::aloe().args(["run", three.to_str().unwrap()]).env("ALOE_CPU", "portable").output().unwrap();
    assert_eq!(shards.status.code(), Some(1), "{}", String::from_utf8_lossy(&shards.stderr));
    let found: Vec<String> = states(&three, None).into_iter().map(|(_, phase)| phase).collect();
    assert_eq!(found, ["done", "done", "done", "failed", "cancelled"]);
    std::fs::write(&gathers, whole).unwrap();
    let (_, said, code) = run(&["resume", three.to_str().unwrap()]);
    let log = std::fs::read_to_string(three.join("state/scores/local.log")).unwrap();
    assert_eq!(code, 0, "{said}\n{log}");
    assert_eq!(attempts(&three, None)[..3], [1, 1, 1]);
    let record = aloe_record::Record::read(&three.join("out/scores")).unwrap();
    let is_own = aloe_tensor::Isa::best() == aloe_tensor::Isa::Portable;
    let expected = if is_own { Value::Null } else { serde_json::json!(["portable"]) };
    assert_eq!(record.config_used.get("processors").cloned().unwrap_or_default(), expected);
    assert!(is_own || log.contains("the shards of scores were made on processors with portable"), "{log}");
    // What the shards' jobs cost is the stage's: three machines.
    assert_eq!(record.results["job"]["n_nodes"], 3);
}

#[test]
fn more_shards_than_tasks_and_shards_of_what_is_no_evaluation_are_refused_when_planned() {
    if stories().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (_, said, code) = planned(dir.path(), "four", "local", "[resources.eval]\nshards = 4\n");
    assert!(code == 2 && said.contains("stage \"scores\": 4 shards for 3 tasks"), "{said}");
    let (_, said, code) = planned(dir.path(), "default", "local", "shards = 2\n");
    assert!(code == 2 && said.contains("[resources.default] has `shards`, which are of evaluations"), "{said}");
}

const TRAINED: &str = r#"
name = "trained"
seed = 3
dtype = "f32"
[[stage]]
kind = "data"
name = "rows"
sources = [{ name = "general", path = "@STARTER@/sft/general.jsonl", licence = "mit", max_rows = 4 }]
[[stage]]
kind = "sft"
name = "sft"
from = { model = "@STORIES@", data = "rows" }
chat_template = "alpaca"
lr = 1e-3
epochs = 1
max_len = 256
batch_size = 4
[[stage]]
kind = "eval"
name = "scores"
from = { model = "sft" }
data = "@STARTER@"
tasks = ["starter_mcqa", "starter_pubmedqa"]
limit = 4
"#;

/// The rows are others, and the model that they train is the same: a row's options do not train.
#[test]
fn a_shard_that_was_held_against_earlier_training_rows_is_not_gathered() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (recipe, out) = (dir.path().join("trained.toml"), dir.path().join("out"));
    let starter = root().join("starter").canonicalize().unwrap();
    let text = TRAINED.replace("@STARTER@", starter.to_str().unwrap()).replace("@STORIES@", stories.to_str().unwrap());
    std::fs::write(&recipe, text).unwrap();
    let shards = dir.path().join("shards");
    let stage = |name: &str, more: &[&str]| {
        let arguments = ["run", recipe.to_str().unwrap(), "--out", out.to_str().unwrap(), "--stage", name];
        let (_, said, code) = run(&[&arguments[..], more].concat());
        (said, code)
    };
    let of_scores = |more: [&str; 2]| stage("scores", &[&["--shards", shards.to_str().unwrap()], &more[..]].concat());
    let well = |(said, code): (String, i32)| assert_eq!(code, 0, "{said}");
    well(stage("rows", &[]));
    well(stage("sft", &[]));
    let both = ["1/2", "2/2"];
    both.iter().for_each(|shard| well(of_scores(["--shard", shard])));
    well(of_scores(["--gather", "2"]));
    let marks = || aloe_record::Record::read(&out.join("scores")).unwrap().results["trained_rows"]["rows"].clone();
    let before = marks();
    assert!(before.is_string(), "{before}");
    // Another row at the end, in the records of the data and of the training, whose weights stay.
    let outputs = || serde_json::to_string(&aloe_record::Record::read(&out.join("rows")).unwrap().outputs).unwrap();
    let digest = |text: &str| aloe_record::digest::bytes(text.as_bytes());
    let swap = |path: &Path, from: &str, to: &str| {
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(path, text.replace(from, to)).unwrap();
    };
    let (old, rows) = (outputs(), out.join("rows/train.jsonl"));
    let text = std::fs::read_to_string(&rows).unwrap();
    let longer = format!("{text}{}\n", text.lines().next().unwrap());
    std::fs::write(&rows, &longer).unwrap();
    swap(&out.join("rows/record.json"), &digest(&text), &digest(&longer));
    swap(&out.join("sft/record.json"), &digest(&old), &digest(&outputs()));
    let (said, code) = of_scores(["--gather", "2"]);
    assert!(code == 2 && said.contains("1-of-2 was held against other training rows"), "{said}");
    well(of_scores(["--shard", both[0]]));
    let (said, code) = of_scores(["--gather", "2"]);
    assert!(code == 2 && said.contains("2-of-2 was held against other training rows"), "{said}");
    well(of_scores(["--shard", both[1]]));
    well(of_scores(["--gather", "2"]));
    assert_eq!(marks(), digest(&longer));
    assert_ne!(marks(), before);
}

#[test]
fn under_slurm_shards_are_one_array_and_only_the_failed_one_is_submitted_again() {
    let (Some(_), Some(rig)) = (stories(), Rig::start()) else { return };
    let dir = tempfile::tempdir().unwrap();
    let one = planned_well(dir.path(), "one", "local", "");
    run_well(&one);
    let three = planned_well(dir.path(), "three", "slurm", THREE);
    let check = three.join("stages/10-scores.2-of-3/check.sh");
    let whole = std::fs::read_to_string(&check).unwrap();
    std::fs::write(&check, "exit 9\n").unwrap();
    rig.aloe_ok(&["run", three.to_str().unwrap()]);
    let patience = Duration::from_secs(300);
    rig.wait_until(&three, patience, |phases| phases == ["done", "failed", "done", "cancelled", "cancelled"]);
    let jobs = |at: usize| status(&three, Some(&rig))["stages"][at]["job"].as_str().unwrap().to_owned();
    let first = jobs(0);
    let array = first.strip_suffix("_1").unwrap_or_else(|| panic!("{first} is no job of an array")).to_owned();
    assert_eq!(jobs(2), format!("{array}_3"));
    std::fs::write(&check, whole).unwrap();
    rig.aloe_ok(&["resume", three.to_str().unwrap()]);
    rig.wait_until(&three, patience, |phases| phases.iter().all(|phase| phase == "done"));
    assert_eq!(attempts(&three, Some(&rig)), [1, 2, 1, 2, 2]);
    let again = jobs(1);
    assert!(again.ends_with("_2") && !again.starts_with(&array), "{again} after {array}");
    assert_eq!(results(&three), results(&one));
    // A client that died after the controller took the array finds each of its jobs by the array's name.
    let other = planned_well(dir.path(), "other", "slurm", THREE);
    let mut client = rig.aloe(&["run", other.to_str().unwrap()]).stdout(std::process::Stdio::null()).spawn().unwrap();
    let log = other.join("state/scores.3-of-3/events.log");
    let started = Instant::now();
    while !std::fs::read_to_string(&log).unwrap_or_default().contains("submitting") {
        assert!(started.elapsed() < patience, "nothing was submitted");
        std::thread::sleep(Duration::from_millis(2));
    }
    client.kill().unwrap();
    client.wait().unwrap();
    rig.aloe_ok(&["run", other.to_str().unwrap()]);
    rig.wait_until(&other, patience, |phases| phases.iter().all(|phase| phase == "done"));
    assert_eq!(attempts(&other, Some(&rig)), [1; 5]);
    assert_eq!(results(&other), results(&one));
}
