//! `aloe merge-search` on tiny real models: its table is what separate `aloe merge` and `aloe eval` say, a killed search ends as an
//! uninterrupted one, and a search that must not run does not begin.

use crate::road::digests;
use crate::{aloe, root, run, stories};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The stories model and two copies of it with other weights: every matrix is shifted by a model's own pattern, so that merges differ.
fn models(dir: &Path, stories: &Path) {
    for (name, seed) in [("a", 1u64), ("b", 2)] {
        let target = dir.join(name);
        std::fs::create_dir_all(&target).unwrap();
        for entry in std::fs::read_dir(stories).unwrap().flatten() {
            let path = entry.path();
            let to = target.join(entry.file_name());
            if path.extension().is_some_and(|extension| extension == "safetensors") {
                std::fs::write(to, shifted(&std::fs::read(&path).unwrap(), seed)).unwrap();
            } else if path.is_file() {
                std::fs::copy(&path, to).unwrap();
            }
        }
    }
    std::fs::create_dir_all(dir.join("base")).unwrap();
    for entry in std::fs::read_dir(stories).unwrap().flatten().filter(|entry| entry.path().is_file()) {
        std::fs::copy(entry.path(), dir.join("base").join(entry.file_name())).unwrap();
    }
}

/// A safetensors file of float32 whose values are each changed by up to 30 % of themselves.
fn shifted(bytes: &[u8], seed: u64) -> Vec<u8> {
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    assert!(bytes[8..header].windows(5).any(|word| word == b"\"F32\""), "stories260K is stored in float32");
    let mut rng = aloe_record::CounterRng::new(seed, "shift", 0);
    let mut out = bytes[..header].to_vec();
    for value in bytes[header..].chunks_exact(4) {
        let value = f32::from_le_bytes(value.try_into().unwrap()) * (0.7 + 0.6 * rng.uniform());
        out.extend_from_slice(&value.to_le_bytes());
    }
    out
}

const YAML: &str = "merge_method: dare_ties\nbase_model: @/base\nmodels:\n  - model: @/a\n    parameters: {density: 0.5, weight: 0.5}\n  \
                    - model: @/b\n    parameters: {density: 0.5, weight: 0.5}\ndtype: float32\n";

fn yaml(dir: &Path) -> String {
    YAML.replace('@', dir.to_str().unwrap())
}

/// Writes merge.yml and search.toml; `eval` holds further keys.
fn search_file(dir: &Path, space: &str, search: &str, eval: &str) -> PathBuf {
    std::fs::write(dir.join("merge.yml"), yaml(dir)).unwrap();
    let starter = root().join("starter").canonicalize().unwrap();
    let text = format!(
        "config = \"{}/merge.yml\"\n[space]\n{space}\n[search]\n{search}\n[eval]\ndata = \"{}\"\n{eval}\n",
        dir.display(),
        starter.display()
    );
    let path = dir.join("search.toml");
    std::fs::write(&path, text).unwrap();
    path
}

const GRID: &str = "\"models.*.parameters.density\" = { from = 0.4, to = 1, steps = 2 }\nmodels.0.parameters.weight = { values = [0.2, 0.9] }";
const STARTER_DEV: &str = "tasks = [\"starter_mcqa\"]\nsplit = \"validation\"";

fn search(file: &Path, out: &Path, more: &[&str]) -> (String, String, i32) {
    let fixed = ["merge-search", file.to_str().unwrap(), out.to_str().unwrap(), "--dtype", "f32", "--seed", "5"];
    run(&[&fixed, more].concat())
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn a_grids_table_and_best_merge_are_those_of_separate_merges_and_evaluations() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    models(dir.path(), &stories);
    let file = search_file(dir.path(), GRID, "method = \"grid\"", STARTER_DEV);
    let out = dir.path().join("search");
    let (stdout, stderr, code) = search(&file, &out, &[]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("unmerged") && stdout.contains("McNemar"), "{stdout}");
    let found = json(&out.join("search.json"));
    let starter = root().join("starter");
    let evaluate = |model: &Path, name: &str| {
        let out = dir.path().join(format!("eval-{name}"));
        let args =
            ["eval", model.to_str().unwrap(), "--tasks", "starter_mcqa", "--data", starter.to_str().unwrap(), "--set"];
        let rest = ["split=validation", "--dtype", "f32", "--seed", "5", "--out", out.to_str().unwrap()];
        let (_, stderr, code) = run(&[&args[..], &rest].concat());
        assert_eq!(code, 0, "{stderr}");
        json(&out.join("results.json"))
    };
    let points = found["points"].as_array().unwrap();
    let grid = [(0.4, 0.2), (0.4, 0.9), (1.0, 0.2), (1.0, 0.9)];
    assert_eq!(points.len(), grid.len());
    let mut best_accuracy = 0.0;
    for (at, (density, weight)) in grid.into_iter().enumerate() {
        let text = yaml(dir.path());
        let text = text.replace("density: 0.5", &format!("density: {density}")).replacen(
            "weight: 0.5",
            &format!("weight: {weight}"),
            1,
        );
        let (config, merged) = (dir.path().join(format!("{at}.yml")), dir.path().join(format!("merged-{at}")));
        std::fs::write(&config, text).unwrap();
        let (_, stderr, code) = run(&["merge", config.to_str().unwrap(), merged.to_str().unwrap(), "--seed", "5"]);
        assert_eq!(code, 0, "{stderr}");
        let results = evaluate(&merged, &at.to_string());
        assert_eq!(points[at]["values"]["models.*.parameters.density"], density);
        assert_eq!(points[at]["values"]["models.0.parameters.weight"], weight);
        assert_eq!(points[at]["acc"], results["tasks"][0]["acc"], "point {at}");
        assert_eq!(points[at]["weights_sha256"], results["model"]["weights"], "point {at}");
        let accuracy = results["tasks"][0]["acc"]["value"].as_f64().unwrap();
        if accuracy > best_accuracy {
            best_accuracy = accuracy;
            assert!(found["best"].as_u64().unwrap() > at as u64);
        }
        if found["best"] == at + 1 {
            for name in ["model.safetensors", "config.json", "tokenizer.json", "mergekit_config.yml"] {
                let bytes = |folder: &Path| std::fs::read(folder.join(name)).unwrap();
                assert!(bytes(&merged) == bytes(&out), "{name} of the best merge is another");
            }
        }
    }
    assert_eq!(points[found["best"].as_u64().unwrap() as usize - 1]["acc"]["value"], best_accuracy);
    for (at, name) in ["a", "b", "base"].into_iter().enumerate() {
        let results = evaluate(&dir.path().join(name), name);
        assert!(
            found["inputs"][at]["name"].as_str().unwrap().ends_with(&format!("/{name}")),
            "{}",
            found["inputs"][at]
        );
        assert_eq!(found["inputs"][at]["acc"], results["tasks"][0]["acc"], "{name}");
    }
    let card = std::fs::read_to_string(out.join("README.md")).unwrap();
    assert!(card.contains("## How the numbers were chosen") && card.contains("biased upward"), "{card}");
    let html = std::fs::read_to_string(out.join("search.html")).unwrap();
    assert!(html.contains("<svg") && html.contains("density: "), "{html}");
    assert!(!out.join(".scratch").exists() && !out.join(".points.log").exists());
    let (stdout, _, code) = search(&file, &out, &[]);
    assert!(code == 0 && stdout.contains("was done already"), "{stdout}");
}

/// Both methods; the log must hold what was scored before the kills, so the last session scores fewer models than there are.
#[test]
fn a_search_killed_at_any_moment_and_resumed_equals_an_uninterrupted_one_byte_for_byte() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    models(dir.path(), &stories);
    let range = "\"models.*.parameters.density\" = { from = 0.3, to = 1 }\n\"models.*.parameters.weight\" = { from = 0.1, to = 1 }";
    let cases = [("grid", GRID, "method = \"grid\""), ("cmaes", range, "method = \"cmaes\"\nevaluations = 13")];
    for (name, space, method) in cases {
        let file = search_file(dir.path(), space, method, STARTER_DEV);
        let whole = dir.path().join(format!("whole-{name}"));
        let started = std::time::Instant::now();
        let (_, stderr, code) = search(&file, &whole, &[]);
        let whole_s = started.elapsed().as_secs_f64();
        assert_eq!(code, 0, "{stderr}");
        let killed = dir.path().join(format!("killed-{name}"));
        let mut rng = aloe_record::CounterRng::new(7, name, 0);
        for _ in 0..3 {
            let args =
                ["merge-search", file.to_str().unwrap(), killed.to_str().unwrap(), "--dtype", "f32", "--seed", "5"];
            let quiet = std::process::Stdio::null;
            let mut child = aloe().args(args).stdout(quiet()).stderr(quiet()).spawn().unwrap();
            std::thread::sleep(Duration::from_secs_f64(whole_s * (0.1 + 0.4 * rng.uniform_f64())));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let (_, stderr, code) = search(&file, &killed, &[]);
        assert_eq!(code, 0, "{stderr}");
        let expected = digests(&whole);
        assert!(expected.contains_key("search.json") && expected.contains_key("model.safetensors"));
        assert_eq!(digests(&killed), expected, "{name}");
        let found = json(&whole.join("search.json"));
        if name == "cmaes" {
            assert_eq!(found["n_asked"], 12, "two generations of 6 are the most within 13: {}", found["ended"]);
        }
    }
}

/// With a folder of points that outlives the search, a wider search scores what is new alone.
#[test]
fn a_wider_search_with_the_same_point_cache_scores_what_is_new_alone() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    models(dir.path(), &stories);
    let cache = dir.path().join("cache");
    let n_lines = || std::fs::read_to_string(cache.join("points.log")).unwrap().lines().count();
    let setting = format!("point_cache={}", cache.display());
    let knob = |values: &str| format!("models.0.parameters.weight = {{ values = [{values}] }}");
    let file = search_file(dir.path(), &knob("0.2, 0.9"), "method = \"grid\"", STARTER_DEV);
    let (_, stderr, code) = search(&file, &dir.path().join("narrow"), &["--set", &setting]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(n_lines(), 5, "three inputs and two points");
    let file = search_file(dir.path(), &knob("0.2, 0.5, 0.9"), "method = \"grid\"", STARTER_DEV);
    let (_, stderr, code) = search(&file, &dir.path().join("wide"), &["--set", &setting]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(n_lines(), 6, "one more point");
    let (_, stderr, code) = search(&file, &dir.path().join("alone"), &[]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(digests(&dir.path().join("wide")), digests(&dir.path().join("alone")), "the cache changes no byte");
}

/// After the end and after a kill, for both methods: what was scored is not asked again, and the files are those of the longer search alone.
#[test]
fn a_longer_search_in_the_place_of_a_shorter_one_asks_what_is_new_alone() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    models(dir.path(), &stories);
    let grid = |values: &str| format!("models.0.parameters.weight = {{ values = [{values}] }}");
    let range = "\"models.*.parameters.density\" = { from = 0.3, to = 1 }\n\"models.*.parameters.weight\" = { from = 0.1, to = 1 }";
    let cases = [
        ("grid", [grid("0.2, 0.9"), grid("0.2, 0.5, 0.9")], ["method = \"grid\"", "method = \"grid\""], (1, 6)),
        (
            "cmaes",
            [range.into(), range.into()],
            ["method = \"cmaes\"\nevaluations = 6", "method = \"cmaes\"\nevaluations = 12"],
            (6, 15),
        ),
    ];
    for (name, spaces, methods, (n_new, n_all)) in cases {
        let settings = |at: usize| search_file(dir.path(), &spaces[at], methods[at], STARTER_DEV);
        let (alone, there) = (dir.path().join(format!("alone-{name}")), dir.path().join(format!("there-{name}")));
        let file = settings(0);
        let (_, stderr, code) = search(&file, &there, &[]);
        assert!(code == 0 && !stderr.contains("asked now"), "{stderr}");
        let file = settings(1);
        let (_, stderr, code) = search(&file, &there, &[]);
        assert_eq!(code, 0, "{stderr}");
        let said = format!("{n_new} of {n_all} models were asked now, the others had been before");
        assert!(stderr.contains(&said), "{name}: {stderr}");
        let (_, stderr, code) = search(&file, &alone, &[]);
        assert_eq!(code, 0, "{stderr}");
        assert_eq!(digests(&there), digests(&alone), "{name}: what was scored before changes no byte");
        // A shorter search that a kill ended after its last score.
        let killed = dir.path().join(format!("killed-{name}"));
        let file = settings(0);
        let args = ["merge-search", file.to_str().unwrap(), killed.to_str().unwrap(), "--dtype", "f32", "--seed", "5"];
        let quiet = std::process::Stdio::null;
        let mut child = aloe().args(args).stdout(quiet()).stderr(quiet()).spawn().unwrap();
        let log = dir.path().join(format!(".killed-{name}.partial/.points.log"));
        // Of a line that the kill cuts the log keeps nothing.
        let n_lines = || std::fs::read(&log).map_or(0, |text| text.iter().filter(|&&byte| byte == b'\n').count());
        while n_lines() < 2 && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(2));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!killed.exists(), "the kill came too late");
        let n_scored = n_lines();
        let file = settings(1);
        let (_, stderr, code) = search(&file, &killed, &[]);
        assert_eq!(code, 0, "{stderr}");
        let said = format!("{} of {n_all} models were asked now", n_all - n_scored);
        assert!(stderr.contains(&said), "{name}: {said} is not in {stderr}");
        assert_eq!(digests(&killed), digests(&alone), "{name}");
    }
}

/// What decides a score besides the YAML, changed one after the other under a finished search: no model is spared being asked.
#[test]
fn scores_of_another_model_question_seed_dtype_or_limit_are_not_used() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    models(dir.path(), &stories);
    let questions = dir.path().join("data/mcqa");
    std::fs::create_dir_all(&questions).unwrap();
    for entry in std::fs::read_dir(root().join("starter/mcqa")).unwrap().flatten() {
        std::fs::copy(entry.path(), questions.join(entry.file_name())).unwrap();
    }
    let file = search_file(
        dir.path(),
        "models.0.parameters.weight = { values = [0.2, 0.9] }",
        "method = \"grid\"",
        STARTER_DEV,
    );
    let text = std::fs::read_to_string(&file).unwrap();
    let starter = root().join("starter").canonicalize().unwrap();
    std::fs::write(&file, text.replace(starter.to_str().unwrap(), dir.path().join("data").to_str().unwrap())).unwrap();
    let out = dir.path().join("search");
    let searched = |more: &[&str]| {
        let (_, stderr, code) = run(&[&["merge-search", file.to_str().unwrap(), out.to_str().unwrap()], more].concat());
        assert_eq!(code, 0, "{stderr}");
        assert!(!stderr.contains("asked now"), "{more:?}: {stderr}");
        stderr
    };
    searched(&["--seed", "5", "--dtype", "f32"]);
    let edited = |path: &Path, edit: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = std::fs::read(path).unwrap();
        edit(&mut bytes);
        std::fs::write(path, bytes).unwrap();
    };
    edited(&dir.path().join("b/model.safetensors"), &|bytes| *bytes.last_mut().unwrap() ^= 1);
    let said = searched(&["--seed", "5", "--dtype", "f32"]);
    assert!(said.contains("of its scores those that fit are used"), "{said}");
    for entry in std::fs::read_dir(&questions).unwrap().flatten() {
        // A letter of a word in every file, not of a key.
        edited(&entry.path(), &|bytes| {
            let text = String::from_utf8(bytes.clone()).unwrap();
            *bytes = text.replacen(" patient", " person", 1).replacen(" with", " having", 1).into_bytes();
        });
    }
    searched(&["--seed", "5", "--dtype", "f32"]);
    searched(&["--seed", "6", "--dtype", "f32"]);
    searched(&["--seed", "6", "--dtype", "bf16"]);
    searched(&["--seed", "6", "--dtype", "bf16", "--set", "eval.limit=6"]);
}

/// Scores that somebody edited are told and asked again.
#[test]
fn edited_scores_of_a_finished_search_are_not_used() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    models(dir.path(), &stories);
    let grid = |values: &str| format!("models.0.parameters.weight = {{ values = [{values}] }}");
    let out = dir.path().join("search");
    let file = search_file(dir.path(), &grid("0.2, 0.9"), "method = \"grid\"", STARTER_DEV);
    assert_eq!(search(&file, &out, &[]).2, 0);
    let log = std::fs::read_to_string(out.join("points.log")).unwrap();
    std::fs::write(out.join("points.log"), log.replacen("\"score\":", "\"score\":1", 1)).unwrap();
    let file = search_file(dir.path(), &grid("0.2, 0.5, 0.9"), "method = \"grid\"", STARTER_DEV);
    let (_, stderr, code) = search(&file, &out, &[]);
    assert!(
        code == 0 && stderr.contains("was changed since it was written") && !stderr.contains("asked now"),
        "{stderr}"
    );
}

#[test]
fn a_search_on_a_reported_set_is_refused_before_the_first_merge_by_name_and_by_content() {
    let Some(stories) = stories() else { return };
    let data = PathBuf::from(std::env::var("ALOE_DATA").unwrap());
    let dir = tempfile::tempdir().unwrap();
    models(dir.path(), &stories);
    let out = dir.path().join("search");
    let refused = |eval: &str, words: &[&str]| {
        let file = search_file(dir.path(), GRID, "method = \"grid\"", eval);
        let text = std::fs::read_to_string(&file).unwrap();
        let starter = root().join("starter").canonicalize().unwrap();
        let own = if eval.contains("#elsewhere") { dir.path().join("data") } else { data.clone() };
        std::fs::write(&file, text.replace(starter.to_str().unwrap(), own.to_str().unwrap())).unwrap();
        let (_, stderr, code) = search(&file, &out, &[]);
        assert_eq!(code, 2, "{stderr}");
        words.iter().for_each(|word| assert!(stderr.contains(word), "{word:?} is not in {stderr}"));
        assert!(!out.exists() && !out.with_file_name(".search.partial").exists(), "something was written");
    };
    let named = "tasks = [\"medqa_4options\", \"medmcqa\", \"pubmedqa\", \"mmlu_anatomy\", \"careqa_en\"]";
    let sets =
        ["MedQA's test set", "MedMCQA's published validation set", "PubMedQA's test set", "MMLU's test set", "CareQA"];
    refused(named, &sets);
    refused("tasks = [\"medqa_4options\"]\nsplit = \"test\"", &["MedQA's test set", "split = \"validation\""]);
    // The test file under the name of the development file, without the test file beside it.
    std::fs::create_dir_all(dir.path().join("data/medqa")).unwrap();
    std::fs::copy(data.join("medqa/phrases_no_exclude_test.jsonl"), dir.path().join("data/medqa/dev_4_options.jsonl"))
        .unwrap();
    let renamed = "tasks = [\"medqa_4options\"]\nsplit = \"validation\" #elsewhere";
    refused(renamed, &["reported set under another name", "medqa_4options, validation split"]);
}

#[test]
fn a_bad_search_file_is_one_clear_error_before_any_work() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    models(dir.path(), &stories);
    let out = dir.path().join("search");
    let cases = [
        (
            "parameters.lambda = { from = 0.5, to = 1, steps = 2 }",
            "method = \"grid\"",
            "the YAML has no parameters.lambda",
        ),
        ("models.0.parameters.weight = { from = 1, to = 0.5, steps = 2 }", "method = \"grid\"", "empty range"),
        ("models.0.model = { values = [1] }", "method = \"grid\"", "is no parameter"),
        ("models.0.parameters.weight = { from = 0, to = 1, steps = 500 }", "method = \"grid\"", "allows 100"),
        (
            "models.0.parameters.weight = { from = 0, to = 1, steps = 2 }",
            "method = \"random\"",
            "`search.method`: unknown variant `random`",
        ),
        (
            "models.0.parameters.weight = { from = 0, to = 1, steps = 2 }",
            "methd = \"grid\"",
            "`search`: unknown field `methd`",
        ),
    ];
    for (space, method, words) in cases {
        let file = search_file(dir.path(), space, method, STARTER_DEV);
        let (_, stderr, code) = search(&file, &out, &[]);
        assert!(code == 2 && stderr.contains(words), "{words:?} is not in {stderr}");
        // Neither a line of a text that nobody wrote, nor a stage that nobody named.
        assert!(!stderr.contains("command line") && !stderr.contains("stage \"search\""), "{stderr}");
        assert!(!out.exists(), "something was written");
    }
    let file = search_file(dir.path(), GRID, "method = \"grid\"", STARTER_DEV);
    let inside = format!("point_cache={}/cache", out.display());
    let (_, stderr, code) = search(&file, &out, &["--set", &inside]);
    assert!(code == 2 && stderr.contains("point_cache") && stderr.contains("outside"), "{stderr}");
    assert!(!out.exists() && !out.with_file_name(".search.partial").exists(), "something was written");
}

/// The stage's folder is a model to a later stage, and its dtype is the recipe's.
#[test]
fn a_recipe_searches_and_a_later_stage_starts_from_the_best() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    models(dir.path(), &stories);
    let starter = root().join("starter").canonicalize().unwrap();
    let text = format!(
        "name = \"r\"\nseed = 5\ndtype = \"f32\"\n[[stage]]\nkind = \"merge-search\"\nname = \"search\"\nfrom = {{ base = \"{0}/base\", a = \"{0}/a\", b = \
         \"{0}/b\" }}\nyaml = \"\"\"\n{1}\"\"\"\nspace = {{ \"models.*.parameters.density\" = {{ values = [0.5, 1] }} }}\nsearch = {{ method = \"grid\" \
         }}\neval = {{ data = \"{2}\", tasks = [\"starter_mcqa\"], split = \"validation\" }}\n[[stage]]\nkind = \"eval\"\nname = \"after\"\nfrom = {{ model = \
         \"search\" }}\ndata = \"{2}\"\ntasks = [\"starter_mcqa\"]\nsplit = \"validation\"\n",
        dir.path().display(),
        YAML.replace("@/", ""),
        starter.display()
    );
    let recipe = dir.path().join("r.toml");
    std::fs::write(&recipe, text).unwrap();
    let out = dir.path().join("out");
    let (stdout, stderr, code) = run(&["run", recipe.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    assert_eq!(code, 0, "{stderr}");
    assert!(out.join("search/master/model.safetensors").exists() && out.join("search/model/config.json").exists());
    let card = std::fs::read_to_string(out.join("search/model/README.md")).unwrap();
    assert!(card.contains("## How the numbers were chosen"), "{card}");
    let (found, after) = (json(&out.join("search/search.json")), json(&out.join("after/results.json")));
    let best = &found["points"][found["best"].as_u64().unwrap() as usize - 1];
    assert_eq!(best["acc"], after["tasks"][0]["acc"]);
    assert_eq!(best["weights_sha256"], after["model"]["weights"]);
    assert!(stdout.contains("merge-search"), "{stdout}");
    let (stdout, stderr, code) = run(&["plan", recipe.to_str().unwrap(), "--out", out.to_str().unwrap(), "--json"]);
    assert_eq!(code, 0, "{stderr}");
    let plan: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(plan["stages"][0]["rows"], 60, "12 questions to two points and three inputs");
}
