//! Against lm-evaluation-harness 0.4.13 (hf backend, f32) on local files: the prompts equal string by string, every option's
//! log-probability within 5e-3, the same predictions except within that distance of a tie. Golden files: `oracles/lm_eval_parity.py`.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test binary")]

use aloe_engine::{Continuation, Engine, EngineOptions, Prompt, ScoreRequest};
use aloe_record::{Cancel, Progress, digest};
use aloe_task::wording::{ChatForm, choice_prompt, lm_eval};
use aloe_task::{ChoicePrompt, Protocol, Question, Split, Task};
use serde_json::Value;
use std::path::{Path, PathBuf};

const TOLERANCE: f64 = 5e-3;
const RUNS: [(&str, usize); 7] = [
    ("medqa_4options", 0),
    ("medmcqa", 0),
    ("pubmedqa", 0),
    ("mmlu_anatomy", 0),
    ("mmlu_anatomy", 5),
    ("careqa_en", 0),
    ("medqa_4options", 5),
];

fn place(name: &str) -> Option<PathBuf> {
    let found = std::env::var_os(name).map(PathBuf::from);
    if found.is_none() {
        assert!(std::env::var_os("ALOE_REQUIRE").is_none(), "ALOE_REQUIRE is set but {name} is not");
        eprintln!("not run: {name} is not set");
    }
    found
}

fn golden(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    serde_json::from_str(&std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
        .unwrap()
}

/// Our prompts for the first `n` questions.
fn prompts(data: &Path, name: &str, shots: usize, n: usize) -> Vec<ChoicePrompt> {
    let task = Task::parse(name).unwrap()[0];
    let questions = task.load(data, Split::Test).unwrap();
    let pool = if shots == 0 { Vec::new() } else { task.load_shot_pool(data, Split::Test, Protocol::LmEval).unwrap() };
    let chosen = match shots {
        0 => vec![Vec::new(); n],
        _ => lm_eval::shot_indices(task, &pool, n, shots).unwrap(),
    };
    let word = |(question, indices): (&Question, &Vec<usize>)| {
        let shots: Vec<&Question> = indices.iter().map(|&index| &pool[index]).collect();
        choice_prompt(task, Protocol::LmEval, question, &shots, ChatForm::default()).unwrap()
    };
    questions.iter().zip(&chosen).map(word).collect()
}

fn check_prompts(data: &Path, file: &str, name: &str, shots: usize) {
    let golden = golden(file);
    let rows = golden["rows"].as_array().unwrap();
    let prompts = prompts(data, name, shots, rows.len());
    assert_eq!(prompts.len(), rows.len(), "{name}");
    for (index, (prompt, row)) in prompts.iter().zip(rows).enumerate() {
        let found = digest::bytes(prompt.shown.to_digest().as_bytes());
        assert_eq!(
            found[..16],
            *row["prompt"].as_str().unwrap(),
            "{name} {shots}-shot question {index}:\n{}",
            prompt.shown.to_digest()
        );
        let continuations: Vec<&str> =
            golden["continuations"].as_array().unwrap().iter().map(|c| c.as_str().unwrap()).collect();
        assert_eq!(prompt.continuations, continuations);
    }
}

#[test]
fn prompts_equal_the_harness_prompts_string_by_string() {
    let Some(data) = place("ALOE_DATA") else { return };
    for (name, shots) in RUNS {
        check_prompts(&data, &format!("lm_eval_{name}_{shots}.json"), name, shots);
    }
    check_prompts(&data, "lm_eval_medmcqa_5_prompts.json", "medmcqa", 5);
}

/// The first 8 questions of each set (2 of the 5-shot ones); with `ALOE_SLOW=1` 40 (and 10), with `ALOE_SLOW=whole` all 200, which takes
/// a quarter of an hour on two cores.
#[test]
fn every_options_log_probability_equals_the_harness_within_5e_3() {
    let (Some(data), Some(models)) = (place("ALOE_DATA"), place("ALOE_MODELS")) else { return };
    let model = models.join("smollm2-135m-instruct-q4_1/model.gguf");
    let options = EngineOptions {
        format: Some(aloe_engine::WeightFormat::Dense(aloe_tensor::Dtype::F32)),
        ..EngineOptions::default()
    };
    let engine = Engine::open(model.to_str().unwrap(), &options).unwrap();
    let slow = std::env::var("ALOE_SLOW").ok();
    for (name, shots) in RUNS {
        let golden = golden(&format!("lm_eval_{name}_{shots}.json"));
        let rows = golden["rows"].as_array().unwrap();
        let n = match (slow.as_deref(), shots) {
            (Some("whole"), _) => rows.len(),
            (Some(_), 0) => 40,
            (Some(_), _) => 10,
            (None, 0) => 8,
            (None, _) => 2,
        };
        let prompts = prompts(&data, name, shots, n);
        let requests: Vec<ScoreRequest> = prompts
            .iter()
            .enumerate()
            .map(|(index, prompt)| ScoreRequest {
                id: index.to_string(),
                prompt: Prompt::Text(prompt.shown.to_digest()),
                continuations: prompt.continuations.iter().cloned().map(Continuation::Text).collect(),
            })
            .collect();
        let results = engine.score(&requests, &Progress::silent(), &Cancel::default()).unwrap();
        let mut worst = 0.0f64;
        for (index, (result, row)) in results.iter().zip(rows).enumerate() {
            assert_eq!(result.prompt_ids.len() as u64, row["n_ids"].as_u64().unwrap(), "{name} question {index}");
            let expected: Vec<f64> = row["logps"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
            let found: Vec<f64> = result.continuations.iter().map(aloe_engine::Scored::sum).collect();
            assert_eq!(found.len(), expected.len());
            let apart = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            worst = worst.max(apart);
            assert!(apart <= TOLERANCE, "{name} {shots}-shot question {index}: {found:?} against {expected:?}");
            check_prediction(&found, &expected, &format!("{name} question {index}"));
        }
        eprintln!("{name} {shots}-shot: {n} questions, largest difference {worst:.2e}");
    }
}

/// The same winner, unless the harness's two best are within the tolerance of each other.
fn check_prediction(found: &[f64], expected: &[f64], at: &str) {
    let best = |values: &[f64]| (0..values.len()).rev().max_by(|&a, &b| values[a].total_cmp(&values[b])).unwrap();
    let (a, b) = (best(found), best(expected));
    assert!(a == b || (expected[b] - expected[a]).abs() <= TOLERANCE, "{at}: {a} against {b}");
}
