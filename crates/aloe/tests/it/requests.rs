//! Request files with rows that cannot be answered among good ones: each gets its error by name, the others go on.

use crate::{run, stories};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Runs `aloe COMMAND` over the rows; the lines written, standard error and the exit code.
fn ask(command: &str, model: &Path, rows: &[Value], more: &[&str]) -> (Vec<Value>, String, i32) {
    let dir = tempfile::tempdir().unwrap();
    let (requests, out) = (dir.path().join("r.jsonl"), dir.path().join("out.jsonl"));
    std::fs::write(&requests, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
    let mut args = vec![command, model.to_str().unwrap(), "--requests", requests.to_str().unwrap()];
    args.extend(["--out", out.to_str().unwrap(), "--json"]);
    args.extend(more);
    let (stdout, stderr, code) = run(&args);
    let lines = std::fs::read_to_string(&out).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let said: Value = serde_json::from_str(&stdout).unwrap();
    let n_errors = lines.iter().filter(|line| line.get("error").is_some()).count();
    assert_eq!((said["n_rows"].as_u64(), said["n_errors"].as_u64()), (Some(rows.len() as u64), Some(n_errors as u64)));
    (lines, stderr, code)
}

/// The errors by row, in order of the rows; `None` where a row has an answer, which must be the one it gets alone.
fn check(command: &str, model: &Path, rows: &[Value], expected: &[Option<&str>], more: &[&str]) {
    let (lines, stderr, code) = ask(command, model, rows, more);
    let n_errors = expected.iter().flatten().count();
    let summary = format!("error: {n_errors} of {} requests could not be answered", rows.len());
    assert!(code == 2 && stderr.contains(&summary), "{code}: {stderr}");
    for ((row, line), expected) in rows.iter().zip(&lines).zip(expected) {
        assert_eq!(row["id"], line["id"]);
        match (expected, line["error"].as_str()) {
            (Some(words), Some(error)) => {
                assert!(error.contains(words), "{error}");
                assert!(stderr.contains(&format!("request {}: ", row["id"].as_str().unwrap())), "{stderr}");
            }
            (None, None) => {
                let (alone, _, code) = ask(command, model, std::slice::from_ref(row), more);
                assert_eq!((&alone[0], code), (line, 0));
            }
            found => panic!("row {row}: {found:?}"),
        }
    }
}

/// Stories260K has a context of 512 and 512 token ids.
#[test]
fn score_rows_that_cannot_be_answered_are_named_and_the_others_go_on() {
    let Some(model) = stories() else { return };
    let long: Vec<u32> = vec![5; 520];
    let rows = [
        json!({"id": "good", "prompt_ids": [1, 5, 6], "continuations": [[7, 8]]}),
        json!({"id": "long", "prompt_ids": long, "continuations": [[7]]}),
        json!({"id": "empty", "prompt": "Once", "continuations": [" upon", ""]}),
        json!({"id": "empty-ids", "prompt_ids": [1], "continuations": [[]]}),
        json!({"id": "unknown", "prompt_ids": [1, 512], "continuations": [[7]]}),
        json!({"id": "unknown-after", "prompt_ids": [1], "continuations": [[4_000_000_000_u32]]}),
        json!({"id": "nothing", "prompt_ids": [], "continuations": [[7]]}),
        json!({"id": "good too", "prompt": "Once upon a time", "continuations": []}),
    ];
    let expected = [
        None,
        Some("521 tokens exceed the model's context of 512"),
        Some("continuation 2 has no tokens"),
        Some("continuation 1 has no tokens"),
        Some("token id 512 is outside the model's vocabulary of 512"),
        Some("token id 4000000000 is outside"),
        Some("the prompt has no tokens"),
        None,
    ];
    check("score", &model, &rows, &expected, &[]);
}

#[test]
fn generate_rows_that_cannot_be_answered_are_named_and_the_others_go_on() {
    let Some(model) = stories() else { return };
    let long: Vec<u32> = vec![5; 512];
    let rows = [
        json!({"id": "long", "prompt_ids": long, "max_new_tokens": 4}),
        json!({"id": "good", "prompt": "Once upon a time", "n": 2, "max_new_tokens": 5, "temperature": 0.8}),
        json!({"id": "unknown", "prompt_ids": [1, 9999], "max_new_tokens": 4}),
        json!({"id": "nothing", "prompt_ids": [], "max_new_tokens": 4}),
        json!({"id": "good too", "prompt_ids": [1, 9], "max_new_tokens": 3}),
    ];
    let expected = [
        Some("the prompt's 512 tokens fill the model's context of 512"),
        None,
        Some("token id 9999 is outside the model's vocabulary of 512"),
        Some("the prompt has no tokens"),
        None,
    ];
    check("generate", &model, &rows, &expected, &[]);
}

/// A page of SmolLM2's keys and values, 64 positions of 30 layers of 3 heads of 64 bf16 elements, both, is 1.4 MiB: 2 MiB hold one.
#[test]
fn a_row_beyond_the_budget_for_keys_and_values_is_named_with_what_to_raise_and_the_others_go_on() {
    let Ok(models) = std::env::var("ALOE_MODELS") else {
        assert!(std::env::var("ALOE_REQUIRE").is_err(), "ALOE_MODELS is not set");
        return;
    };
    let model = PathBuf::from(models).join("smollm2-135m-instruct-q4_1/model.gguf");
    let ids = |n: u32| (100..100 + n).collect::<Vec<u32>>();
    let score = |id: &str, n: u32| json!({"id": id, "prompt_ids": ids(n), "continuations": [[7, 8]]});
    let rows = [score("big", 64), score("small", 63), score("bigger", 200)];
    let budget = Some("more than the budget of 2.0 MiB; raise it with --kv-budget");
    check("score", &model, &rows, &[budget, None, budget], &["--kv-budget", "2"]);
    let generate = |id: &str, n: u32, m: u32| json!({"id": id, "prompt_ids": ids(n), "max_new_tokens": m});
    let rows = [generate("small", 50, 4), generate("big", 50, 20)];
    check("generate", &model, &rows, &[None, budget], &["--kv-budget", "2"]);
}

/// What a flag asks for and a row's draws repeat would not be what the user gets.
#[test]
fn flags_without_a_meaning_for_the_model_and_repeated_draws_are_refused_before_any_work() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.jsonl");
    let row = |temperature: f64| json!({"id": "a", "prompt": "Once", "max_new_tokens": 1, "temperature": temperature});
    let ask = |model: &str, temperature: f64, more: &[&str]| {
        std::fs::write(&path, format!("{}\n{}\n", row(temperature), row(temperature))).unwrap();
        let args = ["generate", model, "--requests", path.to_str().unwrap()];
        let (_, stderr, code) = run(&[&args[..], more].concat());
        (stderr, code)
    };
    let (local, served) = (stories.to_str().unwrap(), "http://127.0.0.1:9/v1#m");
    for (model, more) in [
        (local, &["--tokenizer", local][..]),
        (local, &["--server-template"]),
        (local, &["--request-timeout", "5"]),
        (served, &["--kv-budget", "64"]),
        (served, &["--dtype", "f32"]),
    ] {
        let (stderr, code) = ask(model, 0.0, more);
        assert!(code == 2 && stderr.contains(&format!("{} does not go with", more[0])), "{more:?}: {code} {stderr}");
    }
    let (stderr, code) = ask(local, 1.0, &[]);
    assert!(code == 2 && stderr.contains("r.jsonl:2: the id \"a\" is that of an earlier row"), "{stderr}");
    assert_eq!(ask(local, 0.0, &[]).1, 0, "nothing is drawn");
}
