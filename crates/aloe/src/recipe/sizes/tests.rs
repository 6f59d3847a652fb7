//! Sizes against counts and lengths worked by hand.

use super::*;
use serde_json::json;

/// 21 characters in two columns of text are 5 tokens, the frame is 10; `note` is no text of the row.
fn alpaca(dir: &Path, n_rows: usize) -> PathBuf {
    let path = dir.join("rows.jsonl");
    let row = json!({"instruction": "abcdefghij", "input": "", "output": "abcdefghijk", "note": "x".repeat(9000)});
    std::fs::write(&path, format!("{row}\n").repeat(n_rows)).unwrap();
    path
}

fn config(path: &Path, more: Value) -> DataConfig {
    let mut source = json!({"name": "s", "path": path, "licence": "mit"});
    source.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    serde_json::from_value(json!({"sources": [source], "hold_out": 0.2})).unwrap()
}

#[test]
fn rows_respect_hold_out_caps_and_weights_and_tokens_come_from_their_text() {
    let dir = tempfile::tempdir().unwrap();
    let path = alpaca(dir.path(), 10);
    let found = |more| data(&config(&path, more), &Meter(None)).unwrap();
    // 10 rows less a fifth, 15 tokens each.
    assert_eq!(found(json!({})), Size { rows: 8, tokens: 120, generated: 0 });
    assert_eq!(found(json!({"max_rows": 3})), Size { rows: 3, tokens: 45, generated: 0 });
    assert_eq!(found(json!({"weight": 2.0})), Size { rows: 16, tokens: 240, generated: 0 });
}

#[test]
fn a_stage_of_pairs_counts_only_its_own_rows_and_a_shared_transcript_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pairs.jsonl");
    // 42 shared characters and 21 of each answer: 63 + 21 characters are 20 tokens, the frame is 10.
    let (shared, yes, no) = ("p".repeat(42), "y".repeat(21), "n".repeat(21));
    let row =
        |stage: u64| json!({"chosen": format!("{shared}{yes}"), "rejected": format!("{shared}{no}"), "stage": stage});
    std::fs::write(&path, format!("{}\n{}\n{}\n", row(1), row(2), row(2))).unwrap();
    let config = serde_json::from_value(json!({
        "sources": [{"name": "s", "path": path, "licence": "mit"}], "output": "pairs", "stage": 2
    }));
    assert_eq!(data(&config.unwrap(), &Meter(None)).unwrap(), Size { rows: 2, tokens: 60, generated: 0 });
}

/// Thirteen styles less the plain one and two held out are 10 variants of a plain question.
#[test]
fn attack_styles_wrap_plain_questions_with_an_id_and_requests_of_med_safety_bench_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let rows_of = |rows: &[Value]| {
        let path = dir.path().join("rows.jsonl");
        std::fs::write(&path, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
        let config = json!({"sources": [{"name": "s", "path": path, "licence": "mit", "attack_styles": true}], "output": "pairs"});
        data(&serde_json::from_value(config).unwrap(), &Meter(None)).unwrap().rows
    };
    let request = json!({"harmful_medical_request": "How to harm?", "safe_response": "I will not."});
    let pair = |more: Value| {
        let mut row = json!({"prompt": "How to harm?", "chosen": "No.", "rejected": "Yes."});
        row.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        row
    };
    assert_eq!(rows_of(&[request.clone(), request]), 2 + 20);
    assert_eq!(rows_of(&[pair(json!({})), pair(json!({"question_id": "q1"}))]), 2 + 10);
    assert_eq!(rows_of(&[pair(json!({"question_id": "", "style": ""}))]), 1, "a data stage knows of no question");
    let wrapped = [json!({"question_id": "q1", "style": "json"}), json!({"question_id": "q2", "style": "baseline"})];
    assert_eq!(rows_of(&wrapped.map(pair)), 2 + 10);
}

#[test]
fn a_file_that_is_not_there_has_no_size() {
    assert!(data(&config(Path::new("/nowhere/x.jsonl"), json!({})), &Meter(None)).is_none());
}

/// A loaded prompt and its parts: each sample of SC-CoT has the question's prompt once, each of Medprompt its own.
#[test]
fn generated_tokens_are_bounded_by_samples_questions_and_the_pool() {
    let starter = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../starter");
    let mut stage: super::super::eval_stage::EvalStage = serde_json::from_value(json!({
        "tasks": ["starter_mcqa"], "data": starter, "strategy": "sc-cot", "limit": 20, "max_new_tokens": 80
    }))
    .unwrap();
    let found = eval(&stage.checked().unwrap(), &Meter(None)).unwrap();
    assert_eq!((found.rows, found.generated), (20, 20 * 5 * 80));
    let shared = found.tokens;
    stage.shuffle = Some(true);
    let own = eval(&stage.checked().unwrap(), &Meter(None)).unwrap().tokens;
    assert!(own.abs_diff(5 * shared) < 5, "{own} against five times {shared}");
    (stage.strategy, stage.pool_limit, stage.pool_attempts, stage.shots) =
        ("medprompt".into(), Some(16), Some(2), Some(2));
    assert_eq!(eval(&stage.checked().unwrap(), &Meter(None)).unwrap().generated, (20 * 5 + 16 * 2) * 80);
    stage.strategy = "loglikelihood".into();
    (stage.shuffle, stage.pool_limit, stage.pool_attempts, stage.max_new_tokens) = (None, None, None, None);
    assert_eq!(eval(&stage.checked().unwrap(), &Meter(None)).unwrap().generated, 0);
}
