//! What a user meets: help, notices, what is printed when a command is interrupted.

use crate::road::{recipe, run_recipe};
use crate::{aloe, run, stories};
use std::path::Path;

#[test]
fn help_lists_the_settings_of_a_stage_with_an_example() {
    for (command, words) in [
        (vec!["sft"], ["epochs or max_steps is required", "packed rows of max_len tokens", "2e-5", "aloe sft --model"]),
        (vec!["dpo"], ["pairs per optimizer step", "label_smoothing", "2e-7", "aloe dpo --model"]),
        (vec!["sft"], ["lora", "rank 16", "train_embeddings false", "adapter/ (PEFT's format)"]),
        (vec!["data"], ["max_rows", "drop_listed_answers", "med_safety_bench", "licence = \"mit\""]),
        (vec!["data", "run"], ["max_rows", "drop_listed_answers", "minhash", "aloe data run --config data.toml"]),
        (vec!["eval"], ["n_samples", "pool_attempts", "mmlu_anatomy", "--strategy sc-cot"]),
        (vec!["score"], ["prompt_ids, the prompt's tokens", "logps (natural", "is_greedy", "scoring draws nothing"]),
        (
            vec!["generate"],
            ["completions, a list of n", "logps (natural", "finish_reason (stop", "Seed of the rows that"],
        ),
        (vec!["chat"], ["--prompt and --json", "logps (natural", "finish_reason (stop", "prompt_len_tokens"]),
        (vec!["embed"], ["n_cut_tokens", "last token's state", "unit length", "aloe embed models"]),
        (vec!["rerank"], ["n_cut_tokens", "ranked, the places", "higher answers", "aloe rerank models"]),
        (vec!["merge"], ["--recipe <RECIPE>", "--stage <STAGE>", "folder of the whole run", "dare_ties"]),
        (vec!["redteam"], ["n_harmless", "judge_labels", "injection", "aloe redteam models"]),
    ] {
        let (stdout, _, code) = run(&[command.as_slice(), &["--help"]].concat());
        assert_eq!(code, 0);
        let flat = stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        for word in words {
            assert!(flat.contains(word), "{command:?}: {word:?} is not in {stdout}");
        }
    }
}

/// The keys of the written lines are the help's, and the seed that drew nothing is told.
#[test]
fn score_writes_the_fields_that_its_help_lists_and_tells_the_seed() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (requests, out) = (dir.path().join("r.jsonl"), dir.path().join("out.jsonl"));
    let help = |command: &str| run(&[command, "--help"]).0;
    let check = |command: &str, row: &str, list: &str| {
        std::fs::write(&requests, row).unwrap();
        let mut args = vec![command, stories.to_str().unwrap(), "--requests", requests.to_str().unwrap()];
        args.extend(["--out", out.to_str().unwrap(), "--dtype", "f32", "--seed", "7", "--json"]);
        let (stdout, stderr, code) = run(&args);
        assert_eq!(code, 0, "{stderr}");
        let said: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!((said["n_rows"].as_u64(), said["seed"].as_u64()), (Some(1), Some(7)), "{stdout}");
        let line: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&out).unwrap()).unwrap();
        let help = help(command);
        let written = help.split("Writes one JSON object").nth(1).unwrap();
        for key in line.as_object().unwrap().keys().chain(line[list][0].as_object().unwrap().keys()) {
            assert!(written.contains(key.as_str()), "aloe {command} writes {key}, which its help does not list");
        }
    };
    check("score", "{\"id\": \"1\", \"prompt\": \"Once\", \"continuations\": [\" upon\"]}", "continuations");
    check("generate", "{\"id\": \"1\", \"prompt\": \"Once\", \"max_new_tokens\": 2}", "completions");
}

#[test]
fn aloe_cpu_runs_the_kernels_of_a_lesser_processor_and_says_so() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let requests = dir.path().join("r.jsonl");
    std::fs::write(&requests, "{\"id\": \"1\", \"prompt\": \"Once upon a time\", \"continuations\": [\" there\"]}")
        .unwrap();
    let on = |cpu: &str, args: &[&str]| {
        let found = aloe().env("ALOE_CPU", cpu).args(args).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (text(found.stdout), text(found.stderr), found.status.code().unwrap())
    };
    let score = ["score", stories.to_str().unwrap(), "--requests", requests.to_str().unwrap(), "--dtype", "f32"];
    let sum = |cpu: &str| {
        let (stdout, stderr, code) = on(cpu, &score);
        assert_eq!(code, 0, "{stderr}");
        let line: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        line["continuations"][0]["sum"].as_f64().unwrap()
    };
    let (best, portable) = (sum(""), sum("portable"));
    assert!((best - portable).abs() < 1e-4, "{best} and {portable}");
    let (stdout, _, _) = on("portable", &["bench", stories.to_str().unwrap(), "--runs", "1", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert!(report["device"].as_str().unwrap().starts_with("portable"), "{stdout}");
    let results = dir.path().join("benches/results/");
    let kept = ["bench", stories.to_str().unwrap(), "--runs", "1", "--seed", "3", "--out"];
    let (stdout, stderr, code) = run(&[&kept[..], &[results.to_str().unwrap()]].concat());
    assert!(code == 0 && stdout.contains("decode, one stream after 128"), "{stdout}{stderr}");
    let file = std::fs::read_dir(&results).unwrap().next().unwrap().unwrap().path();
    assert!(file.to_str().unwrap().ends_with("-stories260K-bf16.json"), "{file:?}");
    let report: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!((&report["seed"], &report["rows"][0]["n_tokens"]), (&3.into(), &128.into()));
    let no_folder = file.join("x/");
    let (stdout, stderr, code) = run(&[&kept[..], &[no_folder.to_str().unwrap()]].concat());
    assert!(
        code == 2 && stdout.is_empty() && stderr.contains("cannot create"),
        "before anything is measured: {stdout}{stderr}"
    );
    let (_, stderr, code) = on("avx9", &score);
    assert_eq!(code, 2);
    assert!(stderr.contains("ALOE_CPU=avx9") && stderr.contains("portable"), "{stderr}");
}

/// A command with `--recipe` makes what `aloe run` makes: it finds `aloe run`'s folders done, and `aloe run` finds its own.
#[test]
fn every_kind_of_stage_runs_by_its_entry_in_a_recipe() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let recipe = recipe(dir.path(), &stories);
    let out = dir.path().join("out");
    let told = |kind: &str, stage: &str, more: &[&str]| {
        let words = if kind == "data" { vec!["data", "run"] } else { vec![kind] };
        let args = ["--recipe", recipe.to_str().unwrap(), "--stage", stage, "--out", out.to_str().unwrap()];
        run(&[words.as_slice(), &args, more].concat())
    };
    run_recipe(&recipe, &out);
    let by_kind = [("data", "rows"), ("sft", "sft-a"), ("dpo", "dpo"), ("merge", "merge"), ("eval", "after")];
    for (kind, stage) in by_kind.into_iter().chain([("redteam", "attacks"), ("card", "card")]) {
        let (stdout, stderr, code) = told(kind, stage, &[]);
        assert!(code == 0 && stdout.contains("was done already"), "{kind}: {stdout}{stderr}");
    }
    for stage in ["merge", "before", "attacks"] {
        std::fs::remove_dir_all(out.join(stage)).unwrap();
    }
    for (kind, stage) in [("merge", "merge"), ("eval", "before"), ("redteam", "attacks")] {
        let (stdout, stderr, code) = told(kind, stage, &["--threads", "1"]);
        assert!(code == 0 && !stdout.contains("was done already"), "{kind}: {stdout}{stderr}");
    }
    let again: serde_json::Value = serde_json::from_str(&run_recipe(&recipe, &out)).unwrap();
    for stage in again.as_array().unwrap() {
        assert_eq!(stage["was_done"], true, "{} ran again", stage["stage"]);
    }
    let (_, stderr, code) = told("eval", "attacks", &[]);
    assert!(code == 2 && stderr.contains("is of kind redteam, not eval"), "{stderr}");
    for (kind, flag) in
        [("eval", "--limit=1"), ("redteam", "--questions=x"), ("merge", "--memory=9"), ("eval", "--dtype=f32")]
    {
        let (_, stderr, code) = told(kind, "before", &[flag]);
        assert!(code == 2 && stderr.contains("cannot be used with"), "{kind} {flag}: {stderr}");
    }
    let (_, stderr, code) = run(&["eval", "--out", "x"]);
    assert!(code == 2 && stderr.contains("--tasks"), "{stderr}");
    let (_, stderr, code) = run(&["sft", "--stage", "sft-a", "--out", "x"]);
    assert!(code == 2 && stderr.contains("--recipe"), "{stderr}");
}

const ROW: &str = "{\"messages\": [{\"role\": \"user\", \"content\": \"Tell me\"}, {\"role\": \"assistant\", \"content\": \"a story\"}]}\n";

#[test]
fn show_mask_takes_the_folder_of_a_data_stage_and_another_template() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("train.jsonl"), ROW).unwrap();
    let show = |more: &[&str]| {
        let args = ["show-mask", stories.to_str().unwrap(), "--data", dir.path().to_str().unwrap(), "--json"];
        run(&[args.as_slice(), more].concat())
    };
    let (stdout, stderr, code) = show(&["--chat-template", "alpaca"]);
    assert_eq!(code, 0, "{stderr}");
    let shown: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let trained = shown["loss_mask"].as_array().unwrap().iter().filter(|mark| **mark == true).count();
    assert!(trained > 0 && trained < shown["ids"].as_array().unwrap().len(), "{stdout}");
    assert_eq!(show(&[]).2, 2, "the model has no template of its own");
    let (_, stderr, code) = show(&["--chat-template", "alpaca", "--row", "1"]);
    assert!(code == 2 && stderr.contains("has 1 rows"), "{stderr}");
    // A byte order mark and blank lines at the end are no rows, as in training; what is no text is named by its line.
    let bytes = |text: &[u8]| std::fs::write(dir.path().join("train.jsonl"), text).unwrap();
    bytes(format!("\u{feff}{ROW}\n\n").as_bytes());
    assert_eq!(show(&["--chat-template", "alpaca"]).0, stdout);
    let (_, stderr, code) = show(&["--chat-template", "alpaca", "--row", "1"]);
    assert!(code == 2 && stderr.contains("has 1 rows"), "{stderr}");
    bytes(format!("{ROW}\n{ROW}").as_bytes());
    let (_, stderr, code) = show(&["--chat-template", "alpaca", "--row", "1"]);
    assert!(code == 2 && stderr.contains("train.jsonl:2: a blank line between rows"), "{stderr}");
    bytes(&[ROW.as_bytes(), b"\"\xff\"\n"].concat());
    let (_, stderr, code) = show(&["--chat-template", "alpaca", "--row", "1"]);
    assert!(code == 2 && stderr.contains("train.jsonl:2: not UTF-8 at byte 2"), "{stderr}");
}

#[test]
fn chat_with_a_prompt_prints_the_research_notice_on_standard_error_only() {
    let Ok(models) = std::env::var("ALOE_MODELS") else {
        assert!(std::env::var("ALOE_REQUIRE").is_err(), "ALOE_MODELS is not set");
        return;
    };
    let model = Path::new(&models).join("smollm2-135m-instruct-q4_1/model.gguf");
    let args = ["chat", model.to_str().unwrap(), "--prompt", "Hello.", "--max-new-tokens", "2"];
    let (stdout, stderr, code) = run(&args);
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("For research only") && !stdout.contains("For research only"), "{stdout}{stderr}");
    let (_, stderr, code) = run(&[args.as_slice(), &["--temperature=-1"]].concat());
    assert!(code == 2 && stderr.contains("temperature") && !stderr.contains("chat/0"), "{stderr}");
}

/// Waits for a file's line count without a fixed pause; gives up after a minute.
fn wait_for_lines(path: &Path, n_lines: usize) {
    let started = std::time::Instant::now();
    while std::fs::read_to_string(path).unwrap_or_default().lines().count() < n_lines {
        assert!(started.elapsed().as_secs() < 60, "{} does not grow", path.display());
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

#[test]
fn an_interrupted_stage_says_from_where_the_same_command_goes_on_and_it_does() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("rows.jsonl");
    std::fs::write(&data, ROW.repeat(8)).unwrap();
    let out = dir.path().join("sft");
    let mut args = vec!["sft", "--model", stories.to_str().unwrap(), "--data", data.to_str().unwrap(), "--out"];
    args.extend([out.to_str().unwrap(), "--dtype", "f32", "--threads", "1", "--set", "chat_template=alpaca"]);
    for setting in ["max_steps=400", "max_len=64", "batch_size=1", "checkpoint_every=0"] {
        args.extend(["--set", setting]);
    }
    let child =
        aloe().args(&args).stderr(std::process::Stdio::piped()).stdout(std::process::Stdio::null()).spawn().unwrap();
    wait_for_lines(&dir.path().join(".sft.partial/metrics.jsonl"), 3);
    let killed = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(killed.success());
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    let said =
        stderr.lines().find(|line| line.starts_with("interrupted; the same command goes on after step")).unwrap();
    let step: u64 = said.rsplit(' ').next().unwrap().parse().unwrap();
    assert!((2..400).contains(&step), "{said}");
    assert!(!dir.path().join(".sft.lock").exists());
    let (stdout, stderr, code) = run(&[args.as_slice(), &["--json"]].concat());
    assert_eq!(code, 0, "{stderr}");
    let results: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(results["sft"]["resumed_from_step"].as_u64(), Some(step), "{said}");
}
