//! The account of every row: the ledger, the filters and the tables of manifest and page.

use super::*;
use std::collections::BTreeSet;

fn write_rows(path: &Path, rows: &[(String, String)]) {
    let lines: Vec<String> =
        rows.iter().map(|(q, a)| json!({"instruction": q, "input": "", "output": a}).to_string()).collect();
    std::fs::write(path, lines.join("\n")).unwrap();
}

/// Of 60 rows with caps, a weight below 1 and a hold-out: who is not in train.jsonl is in the ledger once, with source and licence.
#[test]
fn every_row_that_does_not_train_stands_in_the_ledger_with_its_source_licence_and_task() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one.jsonl"), dir.path().join("two.jsonl"));
    let row = |n: usize| (format!("What is number {n}, {}?", "x".repeat(n)), format!("It is {n}."));
    write_rows(&one, &(0..40).map(row).collect::<Vec<_>>());
    write_rows(&two, &(40..60).map(row).chain([(String::from("Q"), String::new())]).collect::<Vec<_>>());
    let mut first = source("one", &one);
    first["max_rows"] = json!(20);
    let mut second = source("two", &two);
    (second["weight"], second["licence"], second["task"]) = (json!(0.5), json!("CC-BY-4.0"), json!("qa"));
    let (report, out) = check(&config(json!({"sources": [first, second], "hold_out": 0.2})));
    let report = report.unwrap();
    let ledger = read_lines(&out.path().join("ledger.jsonl"));
    let of = |name: &str| -> BTreeSet<String> {
        read_lines(&out.path().join(name)).iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
    };
    let (train, entered) = (of("train.jsonl"), of("ledger.jsonl"));
    assert_eq!((train.len() + entered.len(), ledger.len()), (61, entered.len()));
    assert!(train.is_disjoint(&entered) && of("hold_out.jsonl").is_subset(&entered));
    let by_rule = |rule: &str| ledger.iter().filter(|entry| entry["rule"] == rule).count();
    let account = report.account;
    let counted = (account.n_held_out, account.n_over_cap, account.n_weighted_out);
    assert_eq!((by_rule("hold_out"), by_rule("max_rows"), by_rule("weight")), counted);
    assert!(counted.0 > 0 && counted.1 > 0 && counted.2 > 0, "{counted:?}");
    for entry in &ledger {
        let is_one = entry["id"].as_str().unwrap().starts_with("one/");
        let expected = if is_one { ("one", "MIT", "instruction") } else { ("two", "CC-BY-4.0", "qa") };
        let found = ["source", "licence", "task"].map(|key| entry[key].as_str().unwrap());
        assert_eq!((found[0], found[1], found[2]), expected);
    }
    assert_eq!(report.tasks.values().sum::<usize>(), report.n_train);
}

#[test]
fn filters_drop_by_their_names_and_shards_take_them_into_account() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.jsonl");
    let spanish = "La insuficiencia cardíaca es la incapacidad del corazón para bombear la sangre que el cuerpo necesita. \
        Los síntomas más frecuentes son la falta de aire con el esfuerzo, el cansancio y la hinchazón de las piernas y de los tobillos.";
    let english = "Heart failure means that the heart cannot pump as much blood as the body needs at rest or at work.";
    let rows = [
        ("What is it?", english.to_owned()),
        ("¿Qué es la insuficiencia cardíaca?", spanish.to_owned()),
        ("And this?", "The liver makes bile all day. ".repeat(20)),
        ("Hm", "No".to_owned()),
        ("All?", english.repeat(30)),
    ];
    write_rows(&path, &rows.map(|(q, a)| (q.to_owned(), a)));
    let filters = json!({"min_words": 3, "max_words": 400, "languages": ["eng"], "repetition": true});
    let filtered = config(json!({"sources": [source("s", &path)], "filters": filters}));
    let (report, _) = check(&filtered);
    let report = report.unwrap();
    assert_eq!(
        report.sources[0].dropped,
        counts(&[("other_language", 1), ("repetition", 1), ("too_long", 1), ("too_short", 1)])
    );
    assert!(report.account.adds_up() && report.account.n_rules == 4);
    let plain = config(json!({"sources": [source("s", &path)]}));
    assert_eq!(check(&plain).0.unwrap().n_train, 5, "off by default");
    // A merge made without the filters is of other rows.
    let merged = dir.path().join("merged");
    let shard = dir.path().join("shard");
    crate::sign_shard(&plain, "1/1".parse().unwrap(), &shard, 1, &Progress::silent(), &Cancel::default()).unwrap();
    crate::merge_shards(&[shard], &merged).unwrap();
    let error = check(&DataConfig { duplicates: Some(merged), ..filtered }).0.unwrap_err().to_string();
    assert!(error.contains("other rows or settings"), "{error}");
}

/// Three copies of one row, two of another: clusters of 3 and 2, counted by hand; the longest of the three stays when asked for.
#[test]
fn clusters_of_duplicates_are_counted_and_the_longest_row_stays_when_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.jsonl");
    let rows = [("a b c?", "one"), ("d e f?", "two"), ("A, b, c?", "one!!"), ("a b c", "one"), ("d e f", "two")];
    write_rows(&path, &rows.map(|(q, a)| (q.to_owned(), a.to_owned())));
    let kept = |keep: &str| {
        let (report, out) = check(&config(json!({"sources": [source("s", &path)], "dedup": {"keep": keep}})));
        let rows = read_lines(&out.path().join("train.jsonl"));
        let ids: BTreeSet<String> = rows.iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect();
        let page = std::fs::read_to_string(out.path().join("report.html")).unwrap();
        assert!(page.contains("3 to 4 rows") && page.contains("Clusters of duplicates"));
        (report.unwrap().duplicate_clusters, ids)
    };
    let ids = |lines: [usize; 2]| lines.map(|line| format!("s/rows.jsonl:{line}")).into_iter().collect::<BTreeSet<_>>();
    let sizes = BTreeMap::from([(2, 1), (3, 1)]);
    assert_eq!(kept("first"), (sizes.clone(), ids([1, 2])));
    assert_eq!(kept("longest"), (sizes, ids([3, 2])));
}

#[test]
fn a_source_that_is_not_the_published_set_by_its_number_of_rows_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.jsonl");
    write_rows(&path, &[("q".into(), "a".into()), ("r".into(), "b".into())]);
    let with = |n: usize| {
        let mut source = source("dpo-mix-7k", &path);
        source["expect_rows"] = json!(n);
        check(&config(json!({"sources": [source]}))).0
    };
    assert_eq!(with(2).unwrap().n_train, 2);
    let error = with(6750).unwrap_err().to_string();
    assert!(error.starts_with("source `dpo-mix-7k`: `expect_rows` is 6750, and its files hold 2 rows"), "{error}");
}

/// Scored by a recipe and named by nobody: a leaked starter question goes, and its file stands in the manifest.
#[test]
fn rows_are_compared_with_the_questions_that_the_recipe_scores_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.jsonl");
    let question = &aloe_task::Task::StarterMcqa.load(&starter(), aloe_task::Split::Test).unwrap()[3];
    let listed: Vec<String> = question.choices.iter().zip('A'..).map(|(text, at)| format!("{at}. {text}")).collect();
    let leak = format!("{}\n{}", question.stem, listed.join("\n"));
    write_rows(&path, &[(leak, "A".into()), ("What is gout?".into(), "Crystals of urate in a joint.".into())]);
    let mut config = config(json!({"sources": [source("s", &path)]}));
    assert_eq!(check(&config).0.unwrap().n_train, 2);
    let scored = |tasks: &str| crate::Scored { data: starter(), tasks: vec![tasks.into()], split: "test".into() };
    config.scored = vec![scored("starter"), scored("starter_open")];
    let report = check(&config).0.unwrap();
    assert_eq!((report.n_train, report.n_overlaps), (1, 1));
    let files: Vec<&str> = report.held_apart_files.keys().map(String::as_str).collect();
    assert_eq!(
        files,
        ["mcqa/starter_mcqa_test.jsonl", "mcqa/starter_pubmedqa_test.jsonl", "open/starter_open_test.jsonl"]
    );
    assert_eq!(report.compared_with, ["test starter", "test starter_open"]);
    config.decontaminate = vec![starter().join("mcqa/starter_mcqa_test.jsonl")];
    let again = check(&config).0.unwrap();
    assert_eq!(again.n_held_apart_questions, report.n_held_apart_questions, "a file that is named too is read once");
}

/// Three solutions: one that reasons from the answer key and says that it is synthetic, one that does not, and a person's of the same words.
#[test]
fn a_synthetic_row_that_betrays_the_given_answer_is_dropped_by_a_rule_that_can_be_switched_off() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cot.jsonl");
    let betraying = "The answer key says B, so that the tumour is central.";
    let row = |question: &str, response: &str, made: Option<&str>| {
        let mut row = json!({"question": question, "response": response});
        if let Some(made) = made {
            row["made"] = made.into();
        }
        row.to_string()
    };
    let rows = [
        row("Which tumour?", betraying, Some("gold-conditioned")),
        row("Which nerve?", "The deltoid is weak, which tells of the axillary nerve.", Some("gold-conditioned")),
        row("Which bone?", betraying, None),
    ];
    std::fs::write(&path, rows.join("\n")).unwrap();
    let mut settings = config(json!({"sources": [source("cot", &path)]}));
    let (report, out) = check(&settings);
    let report = report.unwrap();
    assert_eq!((report.sources[0].dropped.clone(), report.n_train), (counts(&[("betrays_answer", 1)]), 2));
    let ledger = read_lines(&out.path().join("ledger.jsonl"));
    assert_eq!(
        (ledger[0]["id"].as_str(), ledger[0]["made"].as_str()),
        (Some("cot/cot.jsonl:1"), Some("gold-conditioned"))
    );
    settings.rules.betraying = false;
    assert_eq!(check(&settings).0.unwrap().n_train, 3);
}
