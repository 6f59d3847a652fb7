//! Against lm-evaluation-harness 0.4.13 (hf backend, f32) on whole shared sets, with its chat template and a system prompt too: whatever
//! golden files `oracles/lm_eval_parity.py --whole` has written so far. Prompts equal string by string; where the model was run, what
//! `aloe eval` writes: log-probabilities, predictions, accuracies and standard errors.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test binary")]

use aloe_engine::{Engine, EngineOptions};
use aloe_eval::metrics::{Counts, Estimate};
use aloe_eval::{Encoders, EvalConfig, Sample, Strategy, eval, read_samples};
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

fn task_of(golden: &Value) -> Task {
    Task::parse(golden["task"].as_str().unwrap()).unwrap()[0]
}

fn shots_of(golden: &Value) -> usize {
    golden["shots"].as_u64().unwrap() as usize
}

/// Our prompts for the first `n` questions of a golden file.
fn prompts(data: &Path, golden: &Value, n: usize) -> Vec<ChoicePrompt> {
    let (task, shots) = (task_of(golden), shots_of(golden));
    let questions = task.load(data, Split::Test).unwrap();
    let pool = match shots {
        0 => Vec::new(),
        _ => task.load_shot_pool(data, Split::Test, Protocol::LmEval).unwrap(),
    };
    let chosen = if shots == 0 { vec![vec![]; n] } else { lm_eval::shot_indices(task, &pool, n, shots).unwrap() };
    let form = ChatForm { is_chat: golden["chat"] == true, system: golden["system"].as_str() };
    let word = |(question, indices): (&Question, &Vec<usize>)| {
        let shots: Vec<&Question> = indices.iter().map(|&index| &pool[index]).collect();
        choice_prompt(task, Protocol::LmEval, question, &shots, form).unwrap()
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
        for (index, (prompt, row)) in prompts.iter().zip(rows).enumerate() {
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

/// How many questions of a file are asked: all of them with `ALOE_SLOW=whole`, else few, and fewer where five examples stand before each.
fn n_asked(golden: &Value) -> usize {
    let n = golden["rows"].as_array().unwrap().len();
    let few = match (std::env::var("ALOE_SLOW").ok().as_deref(), shots_of(golden)) {
        (Some("whole"), _) => n,
        (Some(_), 0) => 10,
        (Some(_), _) => 3,
        (None, 0) => 4,
        (None, _) => 1,
    };
    few.min(n)
}

/// `aloe eval` over the first `n` questions of a golden file: its samples and what it counts.
fn evaluated(engine: &Engine, data: &Path, golden: &Value, n: usize) -> (Vec<Sample>, Counts) {
    let tasks = vec![task_of(golden)];
    let mut config = EvalConfig::new(tasks, data.to_path_buf(), Protocol::LmEval, Strategy::Loglikelihood);
    (config.shots, config.limit) = (shots_of(golden), Some(n));
    config.chat_template = golden["chat"] == true;
    config.system = golden["system"].as_str().map(String::from);
    let dir = tempfile::tempdir().unwrap();
    let (progress, cancel) = (Progress::silent(), Cancel::default());
    let results = eval(engine, &config, Encoders::default(), dir.path(), &progress, &cancel).unwrap();
    (read_samples(&dir.path().join("samples.jsonl")).unwrap(), results.tasks[0].counts.clone())
}

/// One question against its golden row; returns the largest difference of an option's log-probability.
fn check_sample(at: &str, golden: &Value, sample: &Sample, row: &Value) -> f64 {
    // The line break that ends a chat's prompt is scored with the option, there too; the golden file counts it with the prompt.
    let is_chat = golden["chat"] == true;
    assert_eq!((sample.prompt_ids.len() + usize::from(is_chat)) as u64, row["n_ids"].as_u64().unwrap(), "{at}");
    assert!(is_chat || sample.prompt_sha256[..16] == *row["prompt"].as_str().unwrap(), "{at}: another prompt");
    let expected: Vec<f64> = row["logps"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
    let found: Vec<f64> = sample.choices.iter().filter_map(|choice| choice.logp).collect();
    assert_eq!(found.len(), expected.len(), "{at}");
    let apart = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(apart <= TOLERANCE, "{at}: {found:?} against {expected:?}");
    let best = (0..expected.len()).rev().max_by(|&a, &b| expected[a].total_cmp(&expected[b])).unwrap();
    let predicted = sample.predicted.unwrap();
    assert!(
        predicted == best || (expected[best] - expected[predicted]).abs() <= TOLERANCE,
        "{at}: {predicted} against {best}"
    );
    apart
}

/// The accuracies of a whole file, to four digits.
fn check_counts(file: &str, golden: &Value, counts: &Counts) {
    let same = |name: &str, found: Estimate| {
        let expected = |key: String| golden["results"][key].as_f64();
        // The harness tells no accuracy by length for some sets.
        let Some(value) = expected(format!("{name},none")) else { return };
        let stderr = expected(format!("{name}_stderr,none")).unwrap();
        let is_same = (found.value - value).abs() < 5e-5 && (found.stderr - stderr).abs() < 5e-5;
        assert!(is_same, "{file} {name}: {found:?} against {value} +- {stderr}");
    };
    same("acc", counts.acc);
    same("acc_norm", counts.acc_norm.unwrap());
}

/// A run of the program is held to each file with numbers; `ALOE_WHOLE=careqa_en_5` takes those with that in their name alone.
#[test]
fn log_probabilities_and_accuracies_of_whole_sets_are_the_harness_ones() {
    let (Some(data), Some(models)) = (place("ALOE_DATA"), place("ALOE_MODELS")) else { return };
    let options = EngineOptions {
        format: Some(aloe_engine::WeightFormat::Dense(aloe_tensor::Dtype::F32)),
        ..EngineOptions::default()
    };
    let engine = Engine::open(&model(&models), &options).unwrap();
    let wanted = std::env::var("ALOE_WHOLE").unwrap_or_default();
    let mut files = goldens();
    files.retain(|(file, golden)| file.contains(&wanted) && golden["rows"][0].get("logps").is_some());
    assert!(!files.is_empty(), "no file with numbers has {wanted:?} in its name");
    for (file, golden) in files {
        let (rows, n) = (golden["rows"].as_array().unwrap(), n_asked(&golden));
        let (samples, counts) = evaluated(&engine, &data, &golden, n);
        assert_eq!(samples.len(), n, "{file}");
        let pairs = samples.iter().zip(rows).enumerate();
        let apart =
            pairs.map(|(at, (sample, row))| check_sample(&format!("{file} question {at}"), &golden, sample, row));
        let worst = apart.fold(0.0, f64::max);
        eprintln!("{file}: {n} questions, largest difference {worst:.2e}");
        if n == rows.len() {
            check_counts(&file, &golden, &counts);
        }
    }
}
