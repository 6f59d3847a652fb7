//! Templates and rendered rows through the whole stage.

use super::*;

fn rows(dir: &Path) -> PathBuf {
    let path = dir.join("qa.jsonl");
    let lines: Vec<String> = (0..40u8)
        // Letters, for rows that differ in numbers alone fall on one side of the hold-out.
        .map(|i| format!("{}{}", char::from(b'a' + i % 8), char::from(b'a' + i / 8)))
        .map(|i| json!({"question": format!("What does sign number {i} of the set mean?"), "response": format!("It means thing {i}.")}).to_string())
        .collect();
    std::fs::write(&path, lines.join("\n")).unwrap();
    path
}

fn templated(dir: &Path, more: serde_json::Value) -> DataConfig {
    let mut value =
        json!({"sources": [source("s", &rows(dir))], "templates": true, "seed": 3, "dedup": {"minhash": false}});
    value["sources"][0]["subject"] = "neurology".into();
    for (key, new) in more.as_object().unwrap() {
        value[key] = new.clone();
    }
    config(value)
}

#[test]
fn each_row_gets_one_template_with_its_subject_that_its_id_draws_and_the_ledger_and_the_manifest_name_it() {
    let dir = tempfile::tempdir().unwrap();
    let (report, out) = check(&templated(dir.path(), json!({"hold_out": 0.2})));
    let report = report.unwrap();
    assert_eq!(report.sources[0].templates.values().sum::<usize>(), 40, "training rows and held-out rows");
    assert!(report.sources[0].templates.len() >= 7, "{:?}", report.sources[0].templates);
    assert!(report.sources[0].templates.keys().all(|id| id.starts_with("medical_qa/")));
    let mut ledger = read_lines(&out.path().join("ledger.jsonl"));
    ledger.retain(|entry| entry["action"] == "changed");
    assert_eq!(ledger.len(), 40);
    let written = read_lines(&out.path().join("train.jsonl"));
    for row in written.iter().chain(&read_lines(&out.path().join("hold_out.jsonl"))) {
        let text = row["messages"][0]["content"].as_str().unwrap();
        let (template, question) = text.split_once("\n\n").unwrap();
        assert!(
            template.contains("neurology") && !template.contains("<<") && question.starts_with("What does sign"),
            "{text}"
        );
        let entry = ledger.iter().find(|entry| entry["id"] == row["id"]).unwrap();
        assert!(entry["rule"].as_str().unwrap().starts_with("template medical_qa/"), "{entry}");
    }
    // A row keeps its template when others go.
    let of = |lines: &[serde_json::Value]| -> BTreeMap<String, String> {
        let text = |line: &serde_json::Value, key: &str| line[key].as_str().unwrap_or_default().to_owned();
        lines.iter().map(|line| (text(line, "id"), line["messages"][0]["content"].to_string())).collect()
    };
    let mut capped = templated(dir.path(), json!({"hold_out": 0.2}));
    capped.sources[0].max_rows = Some(5);
    let (_, other) = check(&capped);
    let (all, some) = (of(&written), of(&read_lines(&other.path().join("train.jsonl"))));
    assert!(some.len() == 5 && some.iter().all(|(id, text)| all[id] == *text));
}

#[test]
fn own_templates_take_the_place_of_a_list_other_tasks_stay_and_a_row_without_a_subject_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let own = json!({"templates": {"medical_qa": ["On <<DATASET SUBJECT>>:"]}});
    let (report, out) = check(&templated(dir.path(), own));
    assert_eq!(report.unwrap().sources[0].templates, counts(&[("medical_qa/1", 40)]));
    let first = &read_lines(&out.path().join("train.jsonl"))[0];
    assert!(first["messages"][0]["content"].as_str().unwrap().starts_with("On neurology:\n\nWhat"));
    let mut config = templated(dir.path(), json!({}));
    config.sources[0].task = Some("dialogue".into());
    assert!(check(&config).0.unwrap().sources[0].templates.is_empty());
    config.sources[0].task = Some("term_definition".into());
    assert!(check(&config).0.unwrap().sources[0].templates.keys().all(|id| id.starts_with("term_definition/")));
    config.sources[0].subject = None;
    let error = check(&config).0.unwrap_err().to_string();
    assert!(error.contains("names no subject") && error.contains("qa.jsonl:1"), "{error}");
}

#[test]
fn rows_of_a_stage_that_put_templates_on_get_no_second_one_behind_it() {
    let dir = tempfile::tempdir().unwrap();
    let (_, one) = check(&templated(dir.path(), json!({})));
    let rows = one.path().join("train.jsonl");
    let behind =
        json!({"sources": [source("again", &rows)], "templates": true, "seed": 4, "dedup": {"minhash": false}});
    let (report, two) = check(&config(behind));
    assert!(report.unwrap().sources[0].templates.is_empty());
    let asked = |path: &Path| -> std::collections::BTreeSet<String> {
        read_lines(path).iter().map(|row| row["messages"][0]["content"].to_string()).collect()
    };
    assert_eq!(asked(&two.path().join("train.jsonl")), asked(&rows));
}

/// Explained answers get the templates that ask for explanations.
#[test]
fn multiple_choice_rows_are_asked_for_an_explanation_only_where_they_have_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mcqa.jsonl");
    let row = |q: &str, exp: Option<&str>| json!({"question": q, "opa": "Gout", "opb": "Scurvy", "opc": "Rickets", "opd": "Mumps", "cop": 0, "exp": exp, "id": q, "subject_name": "Medicine", "topic_name": null, "choice_type": "single"});
    let rows = [
        row("Which disease is caused by urate?", Some("Urate crystals in joints cause it.")),
        row("Which one is hyperuricaemia linked to?", None),
    ];
    std::fs::write(&path, rows.map(|row| row.to_string()).join("\n")).unwrap();
    let mut value = json!({"sources": [source("s", &path)], "templates": true});
    value["sources"][0]["dialect"] = "medmcqa".into();
    let report = check(&config(value)).0.unwrap();
    let tasks: Vec<&str> = report.sources[0].templates.keys().map(|id| id.split('/').next().unwrap()).collect();
    assert_eq!(tasks, ["mcqa", "mcqa_with_explanation"]);
}

#[test]
fn rendered_rows_are_the_ids_of_the_tokenizer_and_their_tokens_are_counted_by_task_and_licence() {
    let Some(models) = std::env::var_os("ALOE_MODELS").map(PathBuf::from) else {
        assert!(std::env::var_os("ALOE_REQUIRE").is_none(), "ALOE_MODELS is not set, but ALOE_REQUIRE is");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = dir.path().join("model");
    std::fs::create_dir(&tokenizer).unwrap();
    std::fs::copy(models.join("llama3-tokenizer/tokenizer.json"), tokenizer.join("tokenizer.json")).unwrap();
    let special = json!({"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"});
    std::fs::write(tokenizer.join("tokenizer_config.json"), special.to_string()).unwrap();
    let more = json!({"tokenizer": tokenizer, "template": "llama3", "rendered": true, "hold_out": 0.2});
    let (report, out) = check(&templated(dir.path(), more));
    let report = report.unwrap();
    let (train, rendered) =
        (read_lines(&out.path().join("train.jsonl")), read_lines(&out.path().join("rendered.jsonl")));
    let text = aloe_text::TextModel::open(&tokenizer).unwrap().with_template("llama3").unwrap();
    assert_eq!((train.len(), rendered.len()), (report.n_train, report.n_train));
    let mut n_tokens = 0;
    for (row, made) in train.iter().zip(&rendered) {
        assert_eq!(row["id"], made["id"]);
        // The text of the ids is the template written out by hand, and the labels are the answer with its end of turn.
        let ids: Vec<u32> = serde_json::from_value(made["input_ids"].clone()).unwrap();
        let labels: Vec<i64> = serde_json::from_value(made["labels"].clone()).unwrap();
        let part = |speaker: usize| row["messages"][speaker]["content"].as_str().unwrap();
        let head = |role: &str| format!("<|start_header_id|>{role}<|end_header_id|>\n\n");
        let (user, assistant) = (head("user"), head("assistant"));
        let expected = format!("<|begin_of_text|>{user}{}<|eot_id|>{assistant}{}<|eot_id|>", part(0), part(1));
        assert_eq!(text.tokenizer.decode(&ids, false).unwrap(), expected);
        let trained: Vec<u32> = labels.iter().filter(|label| **label >= 0).map(|label| *label as u32).collect();
        assert_eq!(text.tokenizer.decode(&trained, false).unwrap(), format!("{}<|eot_id|>", part(1)));
        n_tokens += ids.len();
    }
    assert_eq!(report.tokens_by_task, counts(&[("qa", n_tokens)]));
    assert_eq!(report.tokens_by_licence, counts(&[("MIT", n_tokens)]));
    assert_eq!(read_lines(&out.path().join("rendered_hold_out.jsonl")).len(), report.n_held_out);
    assert!(report.outputs.contains_key("rendered.jsonl"));
}

/// Three pairs: the right way round, the wrong way round, and of one rating.
#[test]
fn a_pair_rated_the_wrong_way_round_is_dropped_by_name_and_one_of_equal_ratings_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mix.jsonl");
    let pair = |number: usize, chosen: f64, rejected: f64| {
        let side = |answer: &str| json!([{"role": "user", "content": format!("Question {number}?")}, {"role": "assistant", "content": answer}]);
        json!({"dataset": "d", "chosen": side("Good."), "rejected": side("Bad."), "chosen_rating": chosen, "rejected_rating": rejected})
    };
    let rows = [pair(1, 5.0, 3.0), pair(2, 2.5, 4.0), pair(3, 4.0, 4.0)];
    std::fs::write(&path, rows.map(|row| format!("{row}\n")).concat()).unwrap();
    let (report, out) = check(&config(json!({"output": "pairs", "sources": [source("mix", &path)]})));
    let report = report.unwrap();
    assert_eq!(report.sources[0].dropped, counts(&[("chosen_rated_below_rejected", 1)]));
    assert_eq!((report.n_train, report.sources[0].n_equal_rating), (2, 1));
    assert!(report.notices.iter().any(|told| told.contains("1 pairs have the same rating")), "{:?}", report.notices);
    let ledger = read_lines(&out.path().join("ledger.jsonl"));
    assert_eq!((ledger[0]["id"].as_str(), ledger[0]["action"].as_str()), (Some("mix/mix.jsonl:2"), Some("dropped")));
}
