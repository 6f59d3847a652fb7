//! What a user meets: help, notices, what is printed when a command is interrupted.

use crate::{aloe, run, stories};
use std::path::Path;

#[test]
fn help_lists_the_settings_of_a_stage_with_an_example() {
    for (command, words) in [
        (vec!["sft"], ["epochs or max_steps is required", "packed rows of max_len tokens", "2e-5", "aloe sft --model"]),
        (vec!["dpo"], ["pairs per optimizer step", "label_smoothing", "2e-7", "aloe dpo --model"]),
        (vec!["data"], ["max_rows", "drop_listed_answers", "med_safety_bench", "licence = \"mit\""]),
        (vec!["data", "run"], ["max_rows", "drop_listed_answers", "minhash", "aloe data run --config data.toml"]),
        (vec!["eval"], ["n_samples", "pool_attempts", "mmlu_anatomy", "--strategy sc-cot"]),
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
