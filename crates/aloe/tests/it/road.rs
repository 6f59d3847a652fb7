//! The whole road on a tiny real model (stories260K): every stage runs, a killed run ends like an uninterrupted one, and
//! a second run does nothing.

use crate::{aloe, root, run, stories};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A recipe that runs in seconds: alpaca's template needs no special token but the end of sequence.
pub(crate) fn recipe(dir: &Path, stories: &Path) -> PathBuf {
    let starter = root().join("starter").canonicalize().unwrap();
    let text = include_str!("tiny.toml")
        .replace("@STORIES@", &stories.display().to_string())
        .replace("@STARTER@", &starter.display().to_string());
    let path = dir.join("tiny.toml");
    std::fs::write(&path, text).unwrap();
    path
}

/// Digest of every file that must be reproducible: all but the card and what bears times.
pub(crate) fn digests(out: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![out.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            let name = path.strip_prefix(out).unwrap().to_string_lossy().into_owned();
            if aloe_record::digest::bears_time(&entry.file_name().to_string_lossy()) {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if !name.starts_with("card/") {
                found.insert(name, aloe_record::digest::file(&path).unwrap());
            }
        }
    }
    found
}

pub(crate) fn run_recipe(recipe: &Path, out: &Path) -> String {
    let (stdout, stderr, code) = run(&["run", recipe.to_str().unwrap(), "--out", out.to_str().unwrap(), "--json"]);
    assert_eq!(code, 0, "{stderr}");
    stdout
}

#[test]
fn a_run_killed_at_any_moment_and_resumed_equals_an_uninterrupted_one_byte_for_byte() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let recipe = recipe(dir.path(), &stories);
    let whole = dir.path().join("whole");
    let started = std::time::Instant::now();
    run_recipe(&recipe, &whole);
    let whole_time = started.elapsed();
    let expected = digests(&whole);
    for name in ["dpo/model/model.safetensors", "after/samples.jsonl", "after/results.json", "attacks/samples.jsonl"] {
        assert!(expected.contains_key(name), "{name} was not written; there are {:?}", expected.keys());
    }
    check_plan(&recipe, &whole);
    let killed = dir.path().join("killed");
    let mut rng = aloe_record::CounterRng::new(11, "kill", 0);
    for _ in 0..5 {
        let mut child = aloe()
            .args(["run", recipe.to_str().unwrap(), "--out", killed.to_str().unwrap()])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_secs_f64(whole_time.as_secs_f64() * (0.05 + 0.35 * rng.uniform_f64())));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    run_recipe(&recipe, &killed);
    assert_eq!(digests(&killed), expected);

    let again: serde_json::Value = serde_json::from_str(&run_recipe(&recipe, &killed)).unwrap();
    for stage in again.as_array().unwrap() {
        assert_eq!(stage["was_done"], true, "{} ran again", stage["stage"]);
    }
    check_card(&killed);
}

/// With the rows written and the tokenizer at hand, a plan's steps and tokens of supervised stages are those that were run; a measured
/// plan runs a step of each training stage.
fn check_plan(recipe: &Path, out: &Path) {
    let args =
        ["plan", recipe.to_str().unwrap(), "--out", out.to_str().unwrap(), "--json", "--measure", "--threads", "1"];
    let (stdout, stderr, code) = run(&args);
    assert_eq!(code, 0, "{stderr}");
    let plan: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    for row in plan["stages"].as_array().unwrap() {
        let is_training = matches!(row["kind"].as_str(), Some("sft" | "dpo"));
        assert_eq!(row["is_measured"].as_bool(), Some(is_training), "{row}");
        if !is_training {
            continue;
        }
        assert!(row["local_s"].as_f64().unwrap() > 1.5 && row["memory_bytes"].as_u64().unwrap() > 1 << 20, "{row}");
        let stage = row["stage"].as_str().unwrap();
        let record = std::fs::read_to_string(out.join(stage).join("record.json")).unwrap();
        let record: serde_json::Value = serde_json::from_str(&record).unwrap();
        let report = &record["results"][row["kind"].as_str().unwrap()];
        let n_rows = if row["kind"] == "sft" { &report["n_rows"] } else { &report["n_pairs"] };
        assert_eq!((&row["rows"], &row["tokens"]), (n_rows, &report["n_tokens"]), "{stage}");
        assert_eq!(row["steps"], report["n_steps"], "{stage}");
    }
}

/// The card quotes the records: the accuracy that the evaluation wrote stands in it, and the fixed parts are there.
fn check_card(out: &Path) {
    let card = std::fs::read_to_string(out.join("card/README.md")).unwrap();
    let results: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(out.join("after/results.json")).unwrap()).unwrap();
    let accuracy = results["tasks"][0]["acc"]["value"].as_f64().unwrap();
    assert!(card.contains(&format!("| starter_mcqa | 60 | {:.2} |", accuracy * 100.0)), "{card}");
    for part in [
        "no difference can be concluded",
        "Not for clinical practice",
        "Environmental Impact",
        "6. Uncertainty and assumptions",
        "non refusal rate",
        "not comparable",
    ] {
        assert!(card.contains(part), "{part:?} is missing in the card");
    }
}

#[test]
fn one_and_two_threads_write_the_same_bytes() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let recipe = recipe(dir.path(), &stories);
    let mut found = Vec::new();
    for threads in ["1", "2"] {
        let out = dir.path().join(threads);
        let args = ["run", recipe.to_str().unwrap(), "--out", out.to_str().unwrap(), "--threads", threads];
        let (_, stderr, code) = run(&args);
        assert_eq!(code, 0, "{stderr}");
        found.push(digests(&out));
    }
    assert_eq!(found[0], found[1]);
}
