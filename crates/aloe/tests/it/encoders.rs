//! `aloe embed` and `aloe rerank` against the goldens of transformers (`oracles/tiny_encoders.py`).

use crate::{root, run, stories};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn tiny_bert() -> PathBuf {
    root().join("crates/aloe-model/tests/golden/tiny_bert")
}

fn golden() -> Value {
    serde_json::from_str(include_str!("../../../aloe-model/tests/golden/tiny_encoders.json")).unwrap()
}

/// Runs `aloe COMMAND MODEL` over the rows; what `--json` says, the lines written, standard error and the exit code.
fn ask(command: &str, model: &Path, rows: &[Value], more: &[&str]) -> (Value, Vec<Value>, String, i32) {
    let dir = tempfile::tempdir().unwrap();
    let (requests, out) = (dir.path().join("r.jsonl"), dir.path().join("out.jsonl"));
    std::fs::write(&requests, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
    let mut args = vec![command, model.to_str().unwrap(), "--requests", requests.to_str().unwrap()];
    args.extend(["--out", out.to_str().unwrap(), "--json"]);
    args.extend(more);
    let (stdout, stderr, code) = run(&args);
    let lines = std::fs::read_to_string(&out).unwrap_or_default();
    let lines = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (serde_json::from_str(&stdout).unwrap_or_default(), lines, stderr, code)
}

fn near(found: &Value, expected: &Value, tolerance: f64) -> bool {
    let floats = |value: &Value| -> Vec<f64> { serde_json::from_value(value.clone()).unwrap() };
    let (found, expected) = (floats(found), floats(expected));
    found.len() == expected.len() && found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < tolerance)
}

#[test]
fn embed_writes_the_vectors_of_transformers_and_counts_what_it_cut() {
    let golden = golden();
    let cases = golden["singles"].as_array().unwrap();
    let mut rows: Vec<Value> = cases.iter().map(|case| json!({"id": case["text"], "text": case["text"]})).collect();
    rows.push(json!({"id": "long", "text": "fever ".repeat(2000)}));
    let (said, lines, stderr, code) = ask("embed", &tiny_bert(), &rows, &[]);
    assert_eq!(code, 0, "{stderr}");
    for (case, line) in cases.iter().zip(&lines) {
        assert_eq!(line["id"], case["text"]);
        assert!(near(&line["embedding"], &case["embedding"], 1e-5), "{line}");
        assert_eq!(line["n_tokens"], json!(case["ids"].as_array().unwrap().len()));
        let n_cut = line["n_cut_tokens"].as_u64().unwrap();
        // The oracle's model reads 40 tokens; its last text is longer.
        assert_eq!(n_cut > 0, line["n_tokens"] == json!(40), "{line}");
    }
    let long = lines.last().unwrap();
    let n_read = long["n_tokens"].as_u64().unwrap();
    // 2,000 words of one token at least, and a frame of two.
    assert!(long["n_cut_tokens"].as_u64().unwrap() + n_read >= 2002 && n_read == 40, "{}", long["n_tokens"]);
    assert_eq!((&said["n_cut"], &said["n_rows"], &said["n_errors"]), (&json!(2), &json!(rows.len()), &json!(0)));
    assert!(stderr.contains(&format!("2 of {} texts were longer than the model reads", rows.len())), "{stderr}");
    let (_, alone, _, _) = ask("embed", &tiny_bert(), &rows[..1], &["--threads", "1"]);
    assert_eq!(alone[0], lines[0], "neighbours and threads change nothing");
}

/// Last-token pooling of a causal model: its own state of the text's last token, so another text with the same end differs.
#[test]
fn embed_takes_a_causal_model_by_its_last_token_and_a_row_of_another_shape_is_refused() {
    let Some(stories) = stories() else { return };
    let rows = [json!({"id": "a", "text": "Once upon a time"}), json!({"id": "b", "text": "The time"})];
    let (_, lines, stderr, code) = ask("embed", &stories, &rows, &[]);
    assert_eq!(code, 0, "{stderr}");
    let vector = |line: &Value| -> Vec<f64> { serde_json::from_value(line["embedding"].clone()).unwrap() };
    let (a, b) = (vector(&lines[0]), vector(&lines[1]));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    assert!((dot(&a, &a) - 1.0).abs() < 1e-5 && a.len() == 64);
    assert!(dot(&a, &b) < 0.9999, "{}", dot(&a, &b));
    let (_, _, stderr, code) = ask("embed", &stories, &[json!({"id": "a", "txt": "x"})], &[]);
    assert!(code == 2 && stderr.contains("unknown field `txt`"), "{stderr}");
}

/// The golden logits of the tiny cross-encoder; its last pair is cut.
#[test]
fn rerank_writes_the_scores_of_transformers_in_order_and_ranked() {
    let golden = golden();
    let pairs = golden["pairs"].as_array().unwrap();
    let texts: Vec<&Value> = pairs.iter().map(|pair| &pair["text"]).collect();
    let rows = [json!({"id": "q", "query": golden["query"], "texts": texts})];
    let (said, lines, stderr, code) = ask("rerank", &tiny_bert(), &rows, &[]);
    assert_eq!(code, 0, "{stderr}");
    let expected: Vec<f64> = pairs.iter().map(|pair| pair["logit"].as_f64().unwrap()).collect();
    assert!(near(&lines[0]["scores"], &json!(expected), 1e-4), "{}", lines[0]);
    let ranked: Vec<usize> = serde_json::from_value(lines[0]["ranked"].clone()).unwrap();
    assert!(ranked.windows(2).all(|two| expected[two[0]] >= expected[two[1]]) && ranked.len() == texts.len());
    let cut = lines[0]["n_cut_tokens"].as_array().unwrap();
    assert!(cut.last().unwrap().as_u64() > Some(0) && cut[..cut.len() - 1].iter().all(|n| *n == 0), "{cut:?}");
    assert_eq!(said["n_cut"], json!(1));
    let none = [json!({"id": "q", "query": "x", "texts": []})];
    let (_, _, stderr, code) = ask("rerank", &tiny_bert(), &none, &[]);
    assert!(code == 2 && stderr.contains("r.jsonl:1: `texts` is empty"), "{stderr}");
}
