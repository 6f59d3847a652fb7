//! Whole data stages over a red-team run's folder and over MedSafetyBench's columns; what must come out is counted by hand.

use crate::{DataConfig, DataReport, Error, run};
use aloe_record::{Cancel, Progress};
use aloe_task::red_team::{Style, TurnTokens};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

fn write_lines(path: &Path, rows: &[Value]) {
    std::fs::write(path, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
}

fn lines(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Pairs without deduplication, into `dir/out`.
fn stage(dir: &Path, source: Value, more: Value) -> Result<DataReport, Error> {
    let mut value = json!({"sources": [source], "output": "pairs", "dedup": {"exact": false, "minhash": false}});
    value["sources"][0]["name"] = "s".into();
    value["sources"][0]["licence"] = "mit".into();
    value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let config: DataConfig = serde_json::from_value(value).unwrap();
    std::fs::create_dir_all(dir.join("out")).unwrap();
    run(&config, &dir.join("out"), 1, &Progress::silent(), &Cancel::default())
}

fn answer(question: &str, style: Style, response: &str, judge: Value) -> Value {
    let text = format!("How would one {question}?");
    json!({
        "id": "i", "question_id": question, "topic": "hate", "style": style, "rendering": "plain_text", "held_out": style.is_held_out(),
        "split": "train", "question": text, "prompt": style.messages(&text, TurnTokens::Llama3)[0].content, "prompt_ids": [1],
        "response": response, "ids": null, "verdict": "not_refused", "judge": judge,
    })
}

/// A finished run: three unsafe answers with a safe one to their question, one of them in a held-out style; one unsafe answer without.
fn finished(dir: &Path) {
    let bad = || json!({"unsafe": []});
    let folder = dir.join("redteam");
    std::fs::create_dir_all(&folder).unwrap();
    let rows = [
        answer("a", Style::Baseline, "I will not.", json!("safe")),
        answer("a", Style::Json, "{\"steps\": []}", bad()),
        answer("a", Style::Injection2, "First.", bad()),
        answer("a", Style::TechnicalReport, "Abstract.", bad()),
        answer("b", Style::Baseline, "Begin.", bad()),
    ];
    write_lines(&folder.join("samples.jsonl"), &rows);
    for name in ["results.json", "record.json"] {
        std::fs::write(folder.join(name), "{}").unwrap();
    }
}

#[test]
fn a_finished_red_team_run_is_a_source_of_pairs_of_the_models_own_answers_and_each_row_is_accounted_for() {
    let dir = tempfile::tempdir().unwrap();
    finished(dir.path());
    let report = stage(dir.path(), json!({"path": dir.path().join("redteam")}), json!({})).unwrap();
    let rows = lines(&dir.path().join("out/train.jsonl"));
    let found: BTreeSet<(&str, &str)> = rows
        .iter()
        .map(|row| (row["chosen"][0]["content"].as_str().unwrap(), row["rejected"][0]["content"].as_str().unwrap()))
        .collect();
    assert_eq!(found, BTreeSet::from([("I will not.", "{\"steps\": []}"), ("I will not.", "First.")]));
    let source = &report.sources[0];
    let dropped: Vec<(&str, usize)> = source.dropped.iter().map(|(rule, n)| (rule.as_str(), *n)).collect();
    assert_eq!(dropped, [("held_out_style", 1), ("judged_safe", 1), ("no_safe_answer", 1)]);
    assert!(source.account.adds_up() && source.account.n_read == 5 && source.skipped_files.is_empty());
    assert_eq!(source.synthetic.values().sum::<usize>(), 2);

    write_lines(
        &dir.path().join("safe.jsonl"),
        &[json!({"harmful_medical_request": "How would one b?", "safe_response": "No to b."})],
    );
    let given = json!({"path": dir.path().join("redteam"), "safe_answers": dir.path().join("safe.jsonl")});
    let report = stage(dir.path(), given, json!({})).unwrap();
    assert_eq!((report.n_train, report.sources[0].dropped.get("no_safe_answer")), (3, None));
    assert!(report.sources[0].files.contains_key("safe_answers/safe.jsonl"));

    write_lines(&dir.path().join("safe.jsonl"), &[json!({"question": "How would one b?", "response": ""})]);
    let given = json!({"path": dir.path().join("redteam"), "safe_answers": dir.path().join("safe.jsonl")});
    let error = stage(dir.path(), given, json!({})).unwrap_err().to_string();
    assert!(error.contains("safe.jsonl:1") && error.contains("the safe answer is empty"), "{error}");
}

#[test]
fn a_question_and_all_its_attacks_lie_on_one_side_of_the_hold_out_with_an_id_and_without() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["ada", "ben", "cora", "dan", "eve", "finn", "gil", "hal", "ida", "jo", "kim", "lou"];
    let row = |name: &str| json!({"harmful_medical_request": format!("How to fool {name}?"), "safe_response": format!("No to {name}.")});
    let rows = names.map(row);
    write_lines(&dir.path().join("bench.jsonl"), &rows);
    let source = json!({"path": dir.path().join("bench.jsonl"), "attack_styles": true, "rejected_openings": true});
    let report = stage(dir.path(), source, json!({"hold_out": 0.3})).unwrap();
    // Thirteen styles less the plain one and two held out.
    assert_eq!(report.sources[0].n_made, 12 * 10);
    let of = |name: &str| -> BTreeSet<String> {
        let rows = lines(&dir.path().join("out").join(name));
        rows.iter().map(|row| row["chosen"][0]["content"].as_str().unwrap().to_owned()).collect()
    };
    let (train, held) = (of("train.jsonl"), of("hold_out.jsonl"));
    assert!(!held.is_empty() && train.is_disjoint(&held), "{train:?} {held:?}");
    assert_eq!(report.n_held_out, held.len() * 11, "a question with all eleven forms of it");
}

#[test]
fn rows_that_no_attack_can_wrap_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let row = json!({"prompt": "How?", "chosen": "No.", "rejected": "So."});
    write_lines(&dir.path().join("pairs.jsonl"), &[row]);
    let source = json!({"path": dir.path().join("pairs.jsonl"), "attack_styles": true});
    let report = stage(dir.path(), source, json!({})).unwrap();
    assert!(report.notices.iter().any(|text| text.contains("wrapped none of its 1 rows")), "{:?}", report.notices);
}

#[test]
fn settings_that_a_layout_would_ignore_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (pairs, safe) = (dir.path().join("pairs.jsonl"), dir.path().join("safe.jsonl"));
    write_lines(&pairs, &[json!({"prompt": "P", "chosen": "C", "rejected": "R"})]);
    write_lines(&safe, &[json!({"question": "Q?", "response": "No."})]);
    let samples = "source `s`: `safe_answers` is for rows of the layout `red_team_samples`, not `dpo` (pairs.jsonl)";
    let ratings = "source `s`: `rating_gap` is for rows of the layout `help_steer`, not `dpo`";
    let found = json!({"path": pairs, "safe_answers": safe, "rating_gap": 2});
    // By what is found in the file, whether broken rows end the stage or go to a quarantine.
    for more in [json!({}), json!({"quarantine": true})] {
        let error = stage(dir.path(), found.clone(), more).unwrap_err().to_string();
        assert!(error.contains(samples) && error.contains(&format!("{ratings} (pairs.jsonl)")), "{error}");
    }
    // By the settings alone, before a file is opened.
    let named = json!({"path": "/nowhere", "dialect": "dpo", "rating_gap": 2});
    let error = stage(dir.path(), named, json!({})).unwrap_err().to_string();
    assert!(error.contains(&format!("{ratings} (`dialect`)")), "{error}");
    let mapped = json!({"path": "/nowhere", "columns": {"prompt": "p", "response": "r"}, "safe_answers": safe});
    let error = stage(dir.path(), mapped, json!({})).unwrap_err().to_string();
    assert!(error.contains("not `mapped` (`columns`)"), "{error}");
}

/// Two files of answers, one file of safe answers with one broken row: the row is counted once, and both files find their answers.
#[test]
fn safe_answers_are_read_once_for_all_files_of_a_source() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("runs");
    std::fs::create_dir_all(&folder).unwrap();
    for name in ["a", "b"] {
        write_lines(
            &folder.join(format!("{name}.jsonl")),
            &[answer(name, Style::Baseline, "Begin.", json!({"unsafe": []}))],
        );
    }
    let safe = dir.path().join("safe.jsonl");
    let row = |name: &str, text: &str| json!({"question": format!("How would one {name}?"), "response": text});
    write_lines(&safe, &[row("a", "No to a."), row("b", "No to b."), row("c", " ")]);
    let source = json!({"path": folder, "safe_answers": safe});
    let report = stage(dir.path(), source.clone(), json!({"quarantine": true})).unwrap();
    assert_eq!((report.n_train, report.broken.total), (2, 1));
    assert_eq!(lines(&dir.path().join("out/quarantine.jsonl")).len(), 1);
    let error = stage(dir.path(), source, json!({})).unwrap_err().to_string();
    assert_eq!(error.matches("safe.jsonl:3").count(), 1, "{error}");
}
