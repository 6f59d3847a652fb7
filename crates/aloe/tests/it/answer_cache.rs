//! The answer cache, through the binary: what was asked before is not computed again, everything that decides an answer is part of
//! its key, damage and kills cost entries and never give a wrong one, and samples stay samples.

use crate::{aloe, root, run, stories};
use aloe_record::CounterRng;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// What `--json` says of the cache.
#[derive(Debug, PartialEq)]
struct Counts {
    asked: u64,
    hits: u64,
    damaged: u64,
}

/// A folder with a cache, and requests asked of a model through it.
struct Asker {
    dir: tempfile::TempDir,
}

impl Asker {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("cache/answers.log")
    }

    /// Runs `aloe COMMAND MODEL` over the rows; the lines written and what the cache knew.
    fn ask(&self, command: &str, model: &Path, rows: &[Value], more: &[&str]) -> (Vec<String>, Counts) {
        self.ask_with(command, model, rows, more, &[])
    }

    fn ask_with(
        &self,
        command: &str,
        model: &Path,
        rows: &[Value],
        more: &[&str],
        env: &[(&str, &str)],
    ) -> (Vec<String>, Counts) {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        let (requests, out, cache) = (path("requests.jsonl"), path("out.jsonl"), path("cache"));
        std::fs::write(&requests, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
        let mut run = aloe();
        run.args([command, model.to_str().unwrap(), "--requests", &requests, "--out", &out, "--json"]);
        let found = run.args(["--answer-cache", &cache]).args(more).envs(env.iter().copied()).output().unwrap();
        assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
        let said: Value = serde_json::from_slice(&found.stdout).unwrap();
        let count = |name: &str| said["answer_cache"][name].as_u64().unwrap();
        let counts = Counts { asked: count("n_asked"), hits: count("n_hits"), damaged: count("n_damaged") };
        let told = String::from_utf8(found.stderr).unwrap();
        assert!(told.contains(&format!("{} of {} requests were answered from", counts.hits, counts.asked)), "{told}");
        (std::fs::read_to_string(&out).unwrap().lines().map(str::to_owned).collect(), counts)
    }
}

fn counts(asked: u64, hits: u64) -> Counts {
    Counts { asked, hits, damaged: 0 }
}

fn score_row(id: &str, prompt: &str) -> Value {
    json!({"id": id, "prompt": prompt, "continuations": [" there was", " a dog"]})
}

fn generate_row(id: &str) -> Value {
    json!({
        "id": id, "prompt": "Once upon a time", "n": 3, "max_new_tokens": 6, "temperature": 0.9, "top_k": 50, "top_p": 0.95,
        "min_p": 0.01, "repetition_penalty": 1.1, "seed": 4, "stop": ["!"], "stop_ids": [500]
    })
}

fn without_cache(command: &str, model: &Path, rows: &[Value]) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let requests = dir.path().join("r.jsonl");
    std::fs::write(&requests, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
    let (stdout, stderr, code) = run(&[command, model.to_str().unwrap(), "--requests", requests.to_str().unwrap()]);
    assert_eq!(code, 0, "{stderr}");
    stdout.lines().map(str::to_owned).collect()
}

/// A copy of stories260K with a chat template of plain text.
fn copy(stories: &Path, to: &Path) -> PathBuf {
    std::fs::create_dir_all(to).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(stories.join(name), to.join(name)).unwrap();
    }
    edit_json(&to.join("tokenizer_config.json"), |config| {
        config["chat_template"] = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}".into();
    });
    to.to_path_buf()
}

fn edit_json(path: &Path, edit: impl Fn(&mut Value)) {
    let mut value: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    edit(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

#[test]
fn what_was_asked_before_is_answered_from_disk_with_the_same_bytes() {
    let Some(stories) = stories() else { return };
    let asker = Asker::new();
    let rows = [score_row("a", "Once upon a time"), score_row("b", "The dog")];
    let (first, found) = asker.ask("score", &stories, &rows, &[]);
    assert_eq!(found, counts(2, 0));
    assert_eq!(first, without_cache("score", &stories, &rows));
    assert_eq!(asker.ask("score", &stories, &rows, &["--threads", "1"]), (first.clone(), counts(2, 2)));
    // Another name is the same question; the answer goes under the name it was asked by.
    let (again, found) = asker.ask("score", &stories, &[score_row("z", "The dog"), score_row("n", "Lily")], &[]);
    assert_eq!((again[0].as_str(), found), (first[1].replace("\"b\"", "\"z\"").as_str(), counts(2, 1)));
    let draws = [generate_row("g")];
    let (drawn, _) = asker.ask("generate", &stories, &draws, &[]);
    assert_eq!(asker.ask("generate", &stories, &draws, &[]), (drawn.clone(), counts(1, 1)));
    assert_eq!(drawn, without_cache("generate", &stories, &draws));
}

/// 23 parts of a key: each alone is changed, asked (a miss) and asked again (a hit).
#[test]
fn each_part_of_what_decides_an_answer_changed_alone_is_a_miss() {
    let Some(stories) = stories() else { return };
    let asker = Asker::new();
    let model = copy(&stories, &asker.dir.path().join("model"));
    let check = |what: &str, command: &str, model: &Path, row: Value, more: &[&str], env: &[(&str, &str)]| {
        let rows = [row];
        assert_eq!(asker.ask_with(command, model, &rows, more, env).1, counts(1, 0), "another {what} is a hit");
        assert_eq!(asker.ask_with(command, model, &rows, more, env).1, counts(1, 1), "the same {what} is a miss");
    };
    check("start", "score", &model, score_row("s", "Once upon a time"), &[], &[]);
    check("prompt", "score", &model, score_row("s", "Once upon a day"), &[], &[]);
    let other = json!({"id": "s", "prompt": "Once upon a time", "continuations": [" there was", " a cat"]});
    check("continuation", "score", &model, other, &[], &[]);
    let fewer = json!({"id": "s", "prompt": "Once upon a time", "continuations": [" there was"]});
    check("number of continuations", "score", &model, fewer, &[], &[]);
    check("dtype", "score", &model, score_row("s", "Once upon a time"), &["--dtype", "f32"], &[]);
    check("quantisation", "score", &model, score_row("s", "Once upon a time"), &["--quantize", "q8"], &[]);
    check("CPU path", "score", &model, score_row("s", "Once upon a time"), &[], &[("ALOE_CPU", "portable")]);
    let turned = copy(&stories, &asker.dir.path().join("turned"));
    edit_json(&turned.join("config.json"), |config| config["rope_theta"] = 20_000.0.into());
    check("RoPE base", "score", &turned, score_row("s", "Once upon a time"), &[], &[]);
    check("generation", "generate", &model, generate_row("g"), &[], &[]);
    for (field, value) in [
        ("id", json!("h")),
        ("prompt", json!("The dog")),
        ("n", json!(2)),
        ("max_new_tokens", json!(7)),
        ("temperature", json!(0.8)),
        ("top_k", json!(40)),
        ("top_p", json!(0.9)),
        ("min_p", json!(0.02)),
        ("repetition_penalty", json!(1.2)),
        ("seed", json!(5)),
        ("stop", json!(["?"])),
        ("stop_ids", json!([501])),
    ] {
        let mut row = generate_row("g");
        row[field] = value;
        check(field, "generate", &model, row, &[], &[]);
    }
    let template = copy(&stories, &asker.dir.path().join("template"));
    edit_json(&template.join("tokenizer_config.json"), |config| {
        config["chat_template"] = "{% for m in messages %}{{ m['content'] }} {% endfor %}".into();
    });
    check("template", "score", &template, score_row("s", "Once upon a time"), &[], &[]);
    let tokenizer = copy(&stories, &asker.dir.path().join("tokenizer"));
    let text = std::fs::read_to_string(tokenizer.join("tokenizer.json")).unwrap();
    std::fs::write(tokenizer.join("tokenizer.json"), text + "\n").unwrap();
    check("tokenizer", "score", &tokenizer, score_row("s", "Once upon a time"), &[], &[]);
    let ends = copy(&stories, &asker.dir.path().join("ends"));
    std::fs::write(ends.join("generation_config.json"), "{\"eos_token_id\": [2, 400]}").unwrap();
    check("set of ids that end an answer", "generate", &ends, generate_row("g"), &[], &[]);
    let weights = copy(&stories, &asker.dir.path().join("weights"));
    let mut bytes = std::fs::read(weights.join("model.safetensors")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(weights.join("model.safetensors"), bytes).unwrap();
    check("weight", "score", &weights, score_row("s", "Once upon a time"), &[], &[]);
    // The same model under another name is the same model.
    let renamed = copy(&stories, &asker.dir.path().join("renamed"));
    assert_eq!(asker.ask("score", &renamed, &[score_row("s", "Once upon a time")], &[]).1, counts(1, 1));
}

/// Twelve places spread over the file, and its end cut off.
#[test]
fn a_damaged_cache_costs_answers_and_gives_no_wrong_one() {
    let Some(stories) = stories() else { return };
    let asker = Asker::new();
    let rows: Vec<Value> = ["One", "Two", "Red", "Blue"].iter().map(|text| score_row(text, text)).collect();
    let (expected, _) = asker.ask("score", &stories, &rows, &[]);
    let whole = std::fs::read(asker.log()).unwrap();
    let mut n_missed = 0;
    for at in 0..12 {
        let mut bytes = whole.clone();
        bytes[at * whole.len() / 12 + 3] ^= 1 << (at % 8);
        std::fs::write(asker.log(), &bytes).unwrap();
        let (found, counts) = asker.ask("score", &stories, &rows, &[]);
        assert_eq!(found, expected, "byte {}", at * whole.len() / 12 + 3);
        assert!(counts.hits < 4 && counts.damaged == 1, "{counts:?}");
        n_missed += 4 - counts.hits;
        assert_eq!(asker.ask("score", &stories, &rows, &[]).1, Counts { asked: 4, hits: 4, damaged: 1 });
    }
    assert!(n_missed >= 12);
    std::fs::write(asker.log(), &whole[..whole.len() - 20]).unwrap();
    assert_eq!(asker.ask("score", &stories, &rows, &[]), (expected, Counts { asked: 4, hits: 3, damaged: 1 }));
}

#[test]
fn a_run_killed_at_any_moment_leaves_a_cache_that_gives_the_same_answers() {
    let Some(stories) = stories() else { return };
    let asker = Asker::new();
    let rows: Vec<Value> = (0..700).map(|at| score_row("k", &format!("Number {at} was"))).collect();
    let expected = without_cache("score", &stories, &rows);
    let start = std::time::Instant::now();
    asker.ask("score", &stories, &rows[..1], &[]);
    without_cache("score", &stories, &rows);
    let whole = start.elapsed();
    let path = |name: &str| asker.dir.path().join(name).display().to_string();
    std::fs::write(path("all.jsonl"), rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
    let mut rng = CounterRng::new(1, "cache-kills", 0);
    for _ in 0..10 {
        let args =
            ["score", stories.to_str().unwrap(), "--requests", &path("all.jsonl"), "--out", &path("killed.jsonl")];
        let mut child = aloe().args(args).args(["--answer-cache", &path("cache")]).spawn().unwrap();
        std::thread::sleep(whole.mul_f64(rng.uniform_f64()));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let (found, counts) = asker.ask("score", &stories, &rows, &[]);
    assert!(found == expected && counts.asked == 700 && counts.hits >= 1, "{counts:?}");
    assert_eq!(asker.ask("score", &stories, &rows, &[]).1.hits, 700);
}

#[test]
fn two_processes_that_write_at_once_lose_nothing() {
    let Some(stories) = stories() else { return };
    let asker = Asker::new();
    let rows = |name: &str| (0..300).map(|at| score_row(name, &format!("{name} {at} was"))).collect::<Vec<Value>>();
    let path = |name: &str| asker.dir.path().join(name).display().to_string();
    let children: Vec<_> = ["Lily", "Tom"]
        .iter()
        .map(|name| {
            let (requests, out) = (path(name), path(&format!("{name}.out")));
            std::fs::write(&requests, rows(name).iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
            let args = ["score", stories.to_str().unwrap(), "--requests", &requests, "--out", &out];
            aloe().args(args).args(["--answer-cache", &path("cache"), "--threads", "1"]).spawn().unwrap()
        })
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let all = [rows("Lily"), rows("Tom")].concat();
    assert_eq!(asker.ask("score", &stories, &all, &[]).1, counts(600, 600));
}

#[test]
fn twenty_samples_of_self_consistency_stay_twenty_and_results_do_not_know_of_the_cache() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let model = copy(&stories, &dir.path().join("model"));
    let starter = root().join("starter").canonicalize().unwrap();
    let eval = |name: &str, more: &[&str]| {
        let out = dir.path().join(name);
        let mut args = vec!["eval", model.to_str().unwrap(), "--data", starter.to_str().unwrap(), "--out"];
        args.extend([out.to_str().unwrap(), "--tasks", "starter_mcqa", "--strategy", "sc-cot", "--shots", "0"]);
        args.extend(["--limit", "2", "--set", "n_samples=20", "--set", "max_new_tokens=8"]);
        args.extend(more);
        let (_, stderr, code) = run(&args);
        assert_eq!(code, 0, "{stderr}");
        let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
        let record: Value = serde_json::from_str(&read("record.json")).unwrap();
        (read("samples.jsonl"), read("results.json"), record["results"]["answer_cache"].clone())
    };
    let cache = dir.path().join("cache").display().to_string();
    let plain = eval("plain", &[]);
    let (first, second) = (eval("one", &["--answer-cache", &cache]), eval("two", &["--answer-cache", &cache]));
    assert_eq!((&first.0, &first.1), (&plain.0, &plain.1));
    assert_eq!((&second.0, &second.1), (&plain.0, &plain.1));
    let asked = |value: &Value| (value["n_asked"].as_u64(), value["n_hits"].as_u64());
    assert_eq!((asked(&first.2), asked(&second.2)), ((Some(2), Some(0)), (Some(2), Some(2))));
    assert_eq!(plain.2, Value::Null);
    for line in second.0.lines() {
        let votes = serde_json::from_str::<Value>(line).unwrap()["votes"].as_array().unwrap().clone();
        let mut texts: Vec<&str> = votes.iter().map(|vote| vote["text"].as_str().unwrap()).collect();
        texts.sort_unstable();
        texts.dedup();
        assert!(votes.len() == 20 && texts.len() > 10, "{} votes, {} texts", votes.len(), texts.len());
    }
}

/// A line under the key of an answer that is no answer to the request: other ids, or one score too few. It costs an answer once, not at
/// every run, and the first that fits stays whatever stands after it.
#[test]
fn a_line_that_does_not_fit_its_key_is_passed_over_and_the_answer_behind_it_found() {
    let Some(stories) = stories() else { return };
    let asker = Asker::new();
    let (scored, drawn) = ([score_row("a", "Once upon a time")], [generate_row("g")]);
    let check = |command: &str, rows: &[Value], spoil: &dyn Fn(&mut Value)| {
        let _ = std::fs::remove_file(asker.log());
        let (expected, found) = asker.ask(command, &stories, rows, &[]);
        assert_eq!(found, counts(1, 0));
        let line = std::fs::read_to_string(asker.log()).unwrap();
        let mut entry: Value = serde_json::from_str(line.trim_end().split_once(' ').unwrap().1).unwrap();
        spoil(&mut entry["answer"]);
        let json = entry.to_string();
        let spoilt = format!("{:08x} {json}\n", aloe_record::log::crc32(json.as_bytes()));
        assert_ne!(spoilt, line);
        std::fs::write(asker.log(), &spoilt).unwrap();
        assert_eq!(asker.ask(command, &stories, rows, &[]), (expected.clone(), counts(1, 0)), "{command}: {json}");
        assert_eq!(asker.ask(command, &stories, rows, &[]), (expected.clone(), counts(1, 1)), "{command}: {json}");
        std::fs::write(asker.log(), format!("{line}{spoilt}")).unwrap();
        assert_eq!(asker.ask(command, &stories, rows, &[]), (expected, counts(1, 1)));
    };
    check("score", &scored, &|answer| answer["prompt_ids"][1] = 7.into());
    check("score", &scored, &|answer| answer["continuations"][1]["ids"][0] = 7.into());
    check("score", &scored, &|answer| drop(answer["continuations"].as_array_mut().unwrap().pop()));
    check("score", &scored, &|answer| drop(answer["continuations"][0]["logps"].as_array_mut().unwrap().pop()));
    check("generate", &drawn, &|answer| answer["prompt_ids"][1] = 7.into());
    check("generate", &drawn, &|answer| drop(answer["completions"].as_array_mut().unwrap().pop()));
    check("generate", &drawn, &|answer| drop(answer["completions"][0]["logps"].as_array_mut().unwrap().pop()));
}
