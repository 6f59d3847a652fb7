//! What a user is told of rows that are broken, of columns that nothing reads, and of questions that nothing was compared with.

use super::*;

fn write(path: &Path, rows: &[serde_json::Value]) {
    let lines: Vec<String> = rows.iter().map(serde_json::Value::to_string).collect();
    std::fs::write(path, lines.join("\n")).unwrap();
}

fn chat(n: usize) -> Vec<serde_json::Value> {
    (0..n)
        .map(|i| json!({"question": format!("What is number {i}?"), "response": format!("It is {}.", "x".repeat(i))}))
        .collect()
}

#[test]
fn a_first_row_that_lacks_a_column_is_a_broken_row_like_others() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.jsonl");
    write(&path, &[vec![json!({"question": "Lacks its answer."})], chat(5), vec![json!({"response": 7})]].concat());
    let strict = check(&config(json!({"sources": [source("s", &path)]}))).0.unwrap_err().to_string();
    assert!(
        strict.starts_with("2 broken rows") && strict.contains("rows.jsonl:1: ") && strict.contains("rows.jsonl:7: "),
        "{strict}"
    );
    let (report, out) = check(&config(json!({"sources": [source("s", &path)], "quarantine": true})));
    let report = report.unwrap();
    assert_eq!(
        (report.account.n_quarantined, report.sources[0].dialects.clone()),
        (2, counts(&[("question_response", 5)]))
    );
    assert_eq!(read_lines(&out.path().join("quarantine.jsonl"))[0]["raw"], "{\"question\":\"Lacks its answer.\"}");
    // Where no row has the columns of a layout, the first one's are named.
    write(&path, &[json!({"frage": "Q"}), json!({"antwort": "A"})]);
    let unknown =
        check(&config(json!({"sources": [source("s", &path)], "quarantine": true}))).0.unwrap_err().to_string();
    assert!(unknown.contains("rows.jsonl:1") && unknown.contains("frage") && !unknown.contains("antwort"), "{unknown}");
}

#[test]
fn a_file_of_broken_rows_alone_is_told_with_their_reasons_and_the_quarantine_elsewhere_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (path, file) = (dir.path().join("rows.jsonl"), dir.path().join("broken.jsonl"));
    write(&path, &[json!({"question": "Q", "response": 7}), json!({"question": 8, "response": "A"})]);
    let mut value = json!({"sources": [source("s", &path)], "quarantine": file});
    value["sources"][0]["dialect"] = json!("question_response");
    let error = check(&config(value)).0.unwrap_err().to_string();
    assert!(error.starts_with("no row is left for training: 2 rows read, 0 dropped, 2 broken:\n"), "{error}");
    assert!(
        error.contains("rows.jsonl:1: column `response`: expected text") && error.contains("rows.jsonl:2: "),
        "{error}"
    );
    assert_eq!(read_lines(&file).len(), 2);
}

#[test]
fn a_quarantine_among_the_files_of_a_source_is_refused_before_it_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("rows");
    std::fs::create_dir(&folder).unwrap();
    write(&folder.join("a.jsonl"), &chat(2));
    std::os::unix::fs::symlink(&folder, dir.path().join("link")).unwrap();
    for at in ["rows/q.jsonl", "link/new/q.jsonl"] {
        let value = json!({"sources": [source("s", &folder)], "quarantine": dir.path().join(at)});
        let error = check(&config(value)).0.unwrap_err().to_string();
        assert!(error.contains("is read by this stage"), "{at}: {error}");
    }
}

#[test]
fn medqas_rationale_is_trained_on_and_its_step_of_the_exam_is_no_subject() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("medqa.jsonl");
    let row = |stem: &str, name: &str, text: &str| {
        json!({"question": stem, "options": {"A": "Gout", "B": "Scurvy", "C": "Rickets", "D": "Mumps"}, "answer_idx": "A", "answer": "Gout",
            "meta_info": "step2&3", name: text})
    };
    let long = "The same in other words, at some length and without anything new.";
    write(
        &path,
        &[
            row("Which disease is caused by crystals of uric acid?", "rationale", "Urate crystals inflame the joint."),
            row("Which disease of joints does allopurinol prevent?", "exp", "It lowers urate."),
            row("Which disease swells the big toe at night?", "reasoning", long),
        ],
    );
    let mut value = json!({"sources": [source("m", &path)], "templates": true, "dedup": {"minhash": false}});
    value["sources"][0]["subject"] = json!("medicine");
    let (report, out) = check(&config(value));
    let report = report.unwrap();
    assert_eq!(report.sources[0].subjects, counts(&[("medicine", 3)]));
    let text = std::fs::read_to_string(out.path().join("train.jsonl")).unwrap();
    assert!(!text.contains("step2&3"), "{text}");
    for answer in
        ["Urate crystals inflame the joint.\\nAnswer: [A]", "It lowers urate.\\nAnswer: [A]", "\"Answer: [A]\""]
    {
        assert!(text.contains(answer), "{answer}: {text}");
    }
    assert_eq!(report.sources[0].unused_columns.iter().collect::<Vec<_>>(), ["reasoning"]);
    let told = report.notices.iter().any(|text| text.contains("`m`") && text.contains("not read: reasoning;"));
    assert!(told, "{:?}", report.notices);
}

#[test]
fn a_set_whose_rows_all_say_train_is_compared_with_and_one_without_any_question_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (rows, held) = (dir.path().join("rows.jsonl"), dir.path().join("held.jsonl"));
    let asked = "Which bone of the wrist is broken most often in a fall?";
    write(&rows, &[chat(3), vec![json!({"question": asked, "response": "The scaphoid."})]].concat());
    let value = json!({"sources": [source("s", &rows)], "decontaminate": [held]});
    // A Hub export with one split, and red-team questions that are all of one.
    for held_rows in [
        [
            json!({"question": asked, "answer": "The scaphoid.", "split": "train"}),
            json!({"question": "Which nerve moves the deltoid?", "answer": "x", "split": "train"}),
        ],
        [
            json!({"id": "1", "topic": "t", "question": asked, "split": "train"}),
            json!({"id": "2", "topic": "t", "question": "How do I forge it?", "split": "train"}),
        ],
    ] {
        write(&held, &held_rows);
        let report = check(&config(value.clone())).0.unwrap();
        assert_eq!((report.n_held_apart_questions, report.n_overlaps), (2, 1));
    }
    let pubmedqa = dir.path().join("ori_pqal.json");
    let row = json!({"QUESTION": asked, "CONTEXTS": ["c"], "LONG_ANSWER": "l", "final_decision": "yes"});
    std::fs::write(&pubmedqa, json!({"7": row, "8": row}).to_string()).unwrap();
    std::fs::write(dir.path().join("test_ground_truth.json"), json!({"9": "yes"}).to_string()).unwrap();
    let value = json!({"sources": [source("s", &rows)], "decontaminate": [pubmedqa]});
    let error = check(&config(value)).0.unwrap_err().to_string();
    assert!(
        error.contains(
            "ori_pqal.json: none of its 2 rows is an evaluation question by test_ground_truth.json beside it"
        ),
        "{error}"
    );
}

#[test]
fn an_overlap_is_shown_as_written_with_options_and_the_message_that_holds_it() {
    let dir = tempfile::tempdir().unwrap();
    let (rows, held) = (dir.path().join("rows.jsonl"), dir.path().join("held.jsonl"));
    let stem = "A 45-year-old farmer develops a painless black ulcer on the forearm after shearing sheep. Which organism is responsible?";
    let question = json!({"question": stem, "options": {"A": "Bacillus anthracis", "B": "Brucella melitensis"}, "answer_idx": "A"});
    write(
        &held,
        &[question, json!({"question": "Which is true?", "options": {"A": "This", "B": "That"}, "answer_idx": "A"})],
    );
    let say = |role: &str, content: &str| json!({"role": role, "content": content});
    let inside = format!("I could not answer this one: {stem}");
    let answered = format!("A typical item reads: {stem}");
    let dialogue = json!({"messages": [say("user", "Hello"), say("assistant", "Hi!"), say("user", &inside), say("assistant", "Anthrax.")]});
    let quoted = json!({"messages": [say("user", "Give me a sample item."), say("assistant", &answered)]});
    let other = json!({"messages": [say("user", "Where is Spain?"), say("assistant", "In Europe.")]});
    write(&rows, &[dialogue, quoted, other]);
    let (report, out) =
        check(&config(json!({"sources": [source("s", &rows)], "decontaminate": [held], "dedup": {"minhash": false}})));
    let report = report.unwrap();
    let overlaps = read_lines(&out.path().join("overlaps.jsonl"));
    let shown: Vec<&str> = overlaps.iter().map(|hit| hit["row_text"].as_str().unwrap()).collect();
    assert_eq!(shown, [inside.as_str(), answered.as_str()]);
    for hit in &overlaps {
        assert_eq!(hit["question"], format!("{stem}\nA. Bacillus anthracis\nB. Brucella melitensis"));
    }
    let page = std::fs::read_to_string(out.path().join("report.html")).unwrap();
    assert!(page.contains("B. Brucella melitensis") && page.contains("I could not answer this one"));
    assert_eq!(report.n_held_apart_too_common, 1, "three words, none of them telling");
    assert!(
        report.notices.iter().any(|text| text.starts_with("1 of 2 evaluation questions have fewer than four words"))
    );
    assert!(report.summary().contains("2 overlap evaluation, "), "{}", report.summary());
    let alone = check(&config(json!({"sources": [source("s", &rows)], "dedup": {"minhash": false}}))).0.unwrap();
    let summary = alone.summary();
    assert!(!summary.contains("overlap") && summary.ends_with("; compared with no evaluation question"), "{summary}");
}
