//! Against lm-evaluation-harness 0.4.13 (hf backend, f32) on whole shared sets, with its chat template and a system prompt too: whatever
//! golden files `oracles/lm_eval_parity.py --whole` has written so far. Prompts equal string by string; where the model was run,
//! log-probabilities, predictions, accuracies and standard errors.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test binary")]

use aloe_engine::{Continuation, Engine, EngineOptions, Prompt, ScoreRequest};
use aloe_eval::stats::proportion_stderr;
use aloe_record::{Cancel, Progress, digest};
use aloe_task::wording::{ChatForm, Shown, choice_prompt, lm_eval};
use aloe_task::{ChoicePrompt, Protocol, Question, Split, Task};
use aloe_text::TextModel;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Golden values have four decimals.
const TOLERANCE: f64 = 5e-3 + 5e-5;

fn place(name: &str) -> Option<PathBuf> {
    let found = std::env::var_os(name).map(PathBuf::from);
    if found.is_none() {
        assert!(std::env::var_os("ALOE_REQUIRE").is_none(), "ALOE_REQUIRE is set but {name} is not");
        eprintln!("not run: {name} is not set");
    }
    found
}

/// Name and content of every golden file, in the order of names.
fn goldens() -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("lm_eval_whole_"))
        .collect();
    names.sort();
    let read = |name: String| {
        let golden = serde_json::from_str(&std::fs::read_to_string(folder.join(&name)).unwrap()).unwrap();
        (name, golden)
    };
    names.into_iter().map(read).collect()
}

/// Our prompts for the questions of a golden file, and the keys.
fn prompts(data: &Path, golden: &Value, n: usize) -> Vec<(ChoicePrompt, usize)> {
    let task = Task::parse(golden["task"].as_str().unwrap()).unwrap()[0];
    let shots = golden["shots"].as_u64().unwrap() as usize;
    let questions = task.load(data, Split::Test).unwrap();
    let pool = match shots {
        0 => Vec::new(),
        _ => task.load_shot_pool(data, Split::Test, Protocol::LmEval).unwrap(),
    };
    let chosen = if shots == 0 { vec![vec![]; n] } else { lm_eval::shot_indices(task, &pool, n, shots).unwrap() };
    let form = ChatForm { is_chat: golden["chat"] == true, system: golden["system"].as_str() };
    let word = |(question, indices): (&Question, &Vec<usize>)| {
        let shots: Vec<&Question> = indices.iter().map(|&index| &pool[index]).collect();
        (choice_prompt(task, Protocol::LmEval, question, &shots, form).unwrap(), question.key)
    };
    questions.iter().zip(&chosen).map(word).collect()
}

fn model(models: &Path) -> String {
    models.join("smollm2-135m-instruct-q4_1/model.gguf").display().to_string()
}

fn text_model(models: &Path) -> TextModel {
    let source = aloe_model::ModelSource::open(Path::new(&model(models))).unwrap();
    TextModel::from_gguf(source.gguf_metadata().unwrap()).unwrap()
}

#[test]
fn prompts_of_whole_sets_and_of_chats_equal_the_harness_prompts_string_by_string() {
    let (Some(data), Some(models)) = (place("ALOE_DATA"), place("ALOE_MODELS")) else { return };
    let text = text_model(&models);
    let (mut n_prompts, mut n_chats) = (0, 0);
    for (file, golden) in goldens() {
        let rows = golden["rows"].as_array().unwrap();
        let prompts = prompts(&data, &golden, rows.len());
        assert_eq!(prompts.len(), rows.len(), "{file}");
        for (index, ((prompt, _), row)) in prompts.iter().zip(rows).enumerate() {
            let shown = match &prompt.shown {
                Shown::Text(text) => text.clone(),
                Shown::Messages(messages) => {
                    n_chats += 1;
                    text.render_text(messages, true).unwrap()
                }
            };
            let found = digest::bytes(shown.as_bytes());
            assert_eq!(found[..16], *row["prompt"].as_str().unwrap(), "{file} question {index}:\n{shown}");
            let continuations: Vec<&str> =
                golden["continuations"].as_array().unwrap().iter().map(|c| c.as_str().unwrap()).collect();
            assert!(continuations.is_empty() || prompt.continuations == continuations, "{file}");
            n_prompts += 1;
        }
    }
    assert!(n_prompts >= 2000 && n_chats >= 200, "{n_prompts} prompts, {n_chats} chats");
}

/// The first 4 questions of each file with numbers; with `ALOE_SLOW=1` 20, with `ALOE_SLOW=whole` all, and then the accuracies too.
#[test]
fn log_probabilities_and_accuracies_of_whole_sets_are_the_harness_ones() {
    let (Some(data), Some(models)) = (place("ALOE_DATA"), place("ALOE_MODELS")) else { return };
    let options = EngineOptions {
        format: Some(aloe_engine::WeightFormat::Dense(aloe_tensor::Dtype::F32)),
        ..EngineOptions::default()
    };
    let engine = Engine::open(&model(&models), &options).unwrap();
    let slow = std::env::var("ALOE_SLOW").ok();
    let scored: Vec<(String, Value)> =
        goldens().into_iter().filter(|(_, golden)| golden["rows"][0].get("logps").is_some()).collect();
    assert!(!scored.is_empty());
    for (file, golden) in scored {
        let rows = golden["rows"].as_array().unwrap();
        let n = match slow.as_deref() {
            Some("whole") => rows.len(),
            Some(_) => 20,
            None => 4,
        };
        let prompts = prompts(&data, &golden, n);
        let request = |(index, (prompt, _)): (usize, &(ChoicePrompt, usize))| ScoreRequest {
            id: index.to_string(),
            prompt: match &prompt.shown {
                Shown::Text(text) => Prompt::Text(text.clone()),
                Shown::Messages(messages) => Prompt::Messages(messages.clone()),
            },
            continuations: prompt.continuations.iter().cloned().map(Continuation::Joint).collect(),
        };
        let requests: Vec<ScoreRequest> = prompts.iter().enumerate().map(request).collect();
        let results = engine.score(&requests, &Progress::silent(), &Cancel::default()).unwrap();
        let (mut worst, mut n_right, mut n_right_norm) = (0.0f64, 0, 0);
        for (index, ((result, row), (prompt, key))) in results.iter().zip(rows).zip(&prompts).enumerate() {
            assert_eq!(result.prompt_ids.len() as u64, row["n_ids"].as_u64().unwrap(), "{file} question {index}");
            let expected: Vec<f64> = row["logps"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
            let found: Vec<f64> = result.continuations.iter().map(aloe_engine::Scored::sum).collect();
            let apart = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            worst = worst.max(apart);
            assert!(apart <= TOLERANCE, "{file} question {index}: {found:?} against {expected:?}");
            let best =
                |values: &[f64]| (0..values.len()).rev().max_by(|&a, &b| values[a].total_cmp(&values[b])).unwrap();
            let (a, b) = (best(&found), best(&expected));
            assert!(
                a == b || (expected[b] - expected[a]).abs() <= TOLERANCE,
                "{file} question {index}: {a} against {b}"
            );
            n_right += usize::from(a == *key);
            let by_length: Vec<f64> =
                found.iter().zip(&prompt.choices).map(|(logp, text)| logp / text.chars().count() as f64).collect();
            n_right_norm += usize::from(best(&by_length) == *key);
        }
        eprintln!("{file}: {n} questions, largest difference {worst:.2e}");
        if n == rows.len() {
            let same = |name: &str, n_right: usize| {
                let Some(expected) = golden["results"][format!("{name},none")].as_f64() else { return };
                let stderr = golden["results"][format!("{name}_stderr,none")].as_f64().unwrap();
                let acc = n_right as f64 / n as f64;
                assert!((acc - expected).abs() < 5e-5, "{file} {name}: {acc} against {expected}");
                assert!((proportion_stderr(n_right, n) - stderr).abs() < 5e-5, "{file} {name}_stderr");
            };
            same("acc", n_right);
            same("acc_norm", n_right_norm);
        }
    }
}
