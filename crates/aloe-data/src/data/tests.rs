//! The whole stage on made files, on the starter set (counts of its READMEs) and on the published files.

mod account;
mod behind;
mod early;
mod everything;
mod kept;
mod one_line;
mod planted;
mod private;
mod rated;
mod shaped;
mod shards;
mod told;

use super::*;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;

fn starter() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../starter")
}

/// The shared data, or a note of what did not run.
fn real_data(test: &str) -> Option<PathBuf> {
    let found = std::env::var_os("ALOE_DATA").map(PathBuf::from);
    if found.is_none() {
        assert!(std::env::var_os("ALOE_REQUIRE").is_none(), "ALOE_DATA is not set, but ALOE_REQUIRE is");
        println!("did not run (no ALOE_DATA): {test}");
    }
    found
}

fn config(value: serde_json::Value) -> DataConfig {
    serde_json::from_value(value).unwrap()
}

fn source(name: &str, path: &Path) -> serde_json::Value {
    json!({"name": name, "path": path, "licence": "MIT"})
}

fn check(config: &DataConfig) -> (Result<DataReport>, tempfile::TempDir) {
    let out = tempfile::tempdir().unwrap();
    (run(config, out.path(), 2, &Progress::silent(), &Cancel::default()), out)
}

fn read_lines(path: &Path) -> Vec<serde_json::Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn counts(pairs: &[(&str, usize)]) -> BTreeMap<String, usize> {
    pairs.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect()
}

fn starter_sft() -> DataConfig {
    let dir = starter();
    config(json!({
        "sources": [
            source("medical", &dir.join("sft/medical.jsonl")), source("general", &dir.join("sft/general.jsonl")),
            source("cot", &dir.join("sft/cot.jsonl")), source("mcqa", &dir.join("mcqa/starter_mcqa_train.jsonl")),
            source("pubmedqa", &dir.join("mcqa/starter_pubmedqa_train.jsonl")),
        ],
        "decontaminate": [dir.join("heldapart/heldapart.jsonl"), dir.join("mcqa/starter_mcqa_test.jsonl"),
            dir.join("mcqa/starter_mcqa_dev.jsonl"), dir.join("mcqa/starter_pubmedqa_test.jsonl")],
        "seed": 7
    }))
}

#[test]
fn the_starter_sets_planted_rows_are_found_and_none_else() {
    let (report, out) = check(&starter_sft());
    let report = report.unwrap();
    let medical = &report.sources[0];
    assert_eq!(medical.n_read, 127);
    let expected = counts(&[
        ("empty_answer", 1),
        ("empty_question", 1),
        ("exact_duplicate", 2),
        ("listed_answer", 1),
        ("listed_question", 1),
        ("near_duplicate", 2),
        ("overlap_ngram_13", 0),
    ]);
    let mut found = medical.dropped.clone();
    let n_overlaps: usize = found.iter().filter(|(rule, _)| rule.starts_with("overlap")).map(|(_, n)| n).sum();
    found.retain(|rule, _| !rule.starts_with("overlap"));
    assert_eq!(found, expected.into_iter().filter(|(_, n)| *n > 0).collect());
    assert_eq!(n_overlaps, 3);
    assert_eq!(medical.changed, counts(&[("clean", 1)]));
    assert_eq!(medical.n_train, 127 - 8 - 3);
    let others: Vec<_> =
        report.sources[1..].iter().map(|source| (source.n_read, source.n_train, source.n_dropped())).collect();
    assert_eq!(
        others,
        [(64, 64, 0), (34, 34, 0), (72, 72, 0), (10, 10, 0)],
        "{:?}",
        read_lines(&out.path().join("overlaps.jsonl"))
    );
    assert_eq!(read_lines(&out.path().join("train.jsonl")).len(), report.n_train);
}

#[test]
fn every_row_is_accounted_for() {
    let mut config = starter_sft();
    config.hold_out = 0.2;
    let report = check(&config).0.unwrap();
    assert!(report.n_held_out > 0);
    for source in &report.sources {
        assert_eq!(
            source.n_read,
            source.n_broken + source.n_dropped() + source.n_held_out + source.n_train,
            "{}",
            source.name
        );
    }
}

#[test]
fn the_same_settings_give_the_same_bytes_and_another_seed_another_order() {
    let bytes = |config: &DataConfig| {
        let (report, out) = check(config);
        report.unwrap();
        let mut files: Vec<_> = std::fs::read_dir(out.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files.into_iter().map(|file| std::fs::read(file).unwrap()).collect::<Vec<_>>()
    };
    let first = starter_sft();
    let mut second = starter_sft();
    second.seed = 8;
    assert_eq!(bytes(&first), bytes(&first));
    assert_ne!(bytes(&first), bytes(&second));
}

#[test]
fn one_two_and_three_threads_write_the_same_bytes() {
    let mut config = starter_sft();
    config.hold_out = 0.2;
    let bytes = |n_threads: usize| {
        let out = tempfile::tempdir().unwrap();
        run(&config, out.path(), n_threads, &Progress::silent(), &Cancel::default()).unwrap();
        let mut files: Vec<_> = std::fs::read_dir(out.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        assert!(files.len() >= 6);
        files.into_iter().map(|file| std::fs::read(file).unwrap()).collect::<Vec<_>>()
    };
    let one = bytes(1);
    assert_eq!(one, bytes(2));
    assert_eq!(one, bytes(3));
}

#[test]
fn adding_a_source_keeps_the_order_and_the_hold_out_of_the_others() {
    let ids = |config: &DataConfig, file: &str| -> Vec<String> {
        let (report, out) = check(config);
        report.unwrap();
        let lines = read_lines(&out.path().join(file));
        lines
            .iter()
            .filter(|line| line["source"] == "general")
            .map(|line| line["id"].as_str().unwrap().to_owned())
            .collect()
    };
    let mut many = starter_sft();
    many.hold_out = 0.3;
    let mut one = many.clone();
    one.sources.retain(|source| source.name == "general");
    for file in ["train.jsonl", "hold_out.jsonl"] {
        assert_eq!(ids(&many, file), ids(&one, file), "{file}");
    }
}

#[test]
fn caps_and_weights_give_the_stated_numbers() {
    let mut config = starter_sft();
    config.sources.retain(|source| source.name == "general");
    config.sources[0].max_rows = Some(10);
    config.sources[0].weight = 2.0;
    let (report, out) = check(&config);
    assert_eq!(report.unwrap().n_train, 20);
    let mut ids: Vec<String> = read_lines(&out.path().join("train.jsonl"))
        .iter()
        .map(|line| line["id"].as_str().unwrap().to_owned())
        .collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 10);
}

#[test]
fn the_account_adds_up_under_caps_weights_variants_and_a_quarantine_and_is_in_the_manifest() {
    let mut config = starter_sft();
    config.hold_out = 0.2;
    config.quarantine = Quarantine::InFolder(true);
    config.sources[0].max_rows = Some(30);
    config.sources[1].weight = 2.0;
    config.sources[2].weight = 0.5;
    let (report, out) = check(&config);
    let report = report.unwrap();
    assert!(report.account.adds_up() && report.sources.iter().all(|source| source.account.adds_up()));
    let medical = report.sources[0].account;
    assert_eq!((medical.n_read, medical.n_train, medical.n_overlap), (127, 30, 3));
    assert_eq!((medical.n_exact_duplicate, medical.n_near_duplicate, medical.n_rules), (2, 2, 4));
    assert_eq!(medical.n_over_cap, 127 - 11 - 30 - medical.n_held_out);
    let (general, cot) = (report.sources[1].account, report.sources[2].account);
    assert_eq!(general.n_repeated * 2, general.n_train);
    assert_eq!(cot.n_weighted_out, 34 - cot.n_train - cot.n_held_out);
    let manifest: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(out.path().join("manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest["sources"][0]["account"]["n_over_cap"], medical.n_over_cap);
    assert_eq!(manifest["account"]["n_read"], 127 + 64 + 34 + 72 + 10);

    let pairs = starter().join("dpo/pairs.jsonl");
    let mut value = json!({"sources": [source("pairs", &pairs)], "output": "pairs", "stage": 2});
    value["sources"][0]["attack_styles"] = true.into();
    value["sources"][0]["max_rows"] = 20.into();
    let account = check(&super::tests::config(value)).0.unwrap().account;
    assert!(account.adds_up() && account.n_made == 26 * 9 && account.n_over_cap > 0, "{account}");
}

#[test]
fn a_capped_source_with_a_hold_out_and_a_templated_source_give_notices_on_the_page_too() {
    let mut config = starter_sft();
    config.sources.truncate(1);
    // Some of these questions are short, which is told too.
    config.decontaminate.clear();
    config.hold_out = 0.2;
    config.sources[0].max_rows = Some(10);
    let (report, out) = check(&config);
    let notices = report.unwrap().notices;
    assert_eq!(notices.len(), 1);
    assert!(notices[0].contains("before `max_rows`"), "{notices:?}");
    assert!(std::fs::read_to_string(out.path().join("report.html")).unwrap().contains("rows written ("));
    config.sources[0].max_rows = None;
    assert!(check(&config).0.unwrap().notices.is_empty());
}

#[test]
fn starter_pairs_split_by_stage_and_variants_use_no_held_out_style_and_no_test_question() {
    let pairs = starter().join("dpo/pairs.jsonl");
    let value = |stage: u64| {
        json!({"sources": [source("pairs", &pairs)], "output": "pairs", "stage": stage,
        "decontaminate": [starter().join("redteam/questions.jsonl")]})
    };
    let stage_1 = check(&config(value(1))).0.unwrap();
    assert_eq!((stage_1.n_train, stage_1.sources[0].dropped.clone()), (84, counts(&[("other_stage", 60)])));
    let mut stage_2 = config(value(2));
    assert_eq!(check(&stage_2).0.unwrap().n_train, 60);
    stage_2.sources[0].attack_styles = true;
    stage_2.hold_out = 0.25;
    let (report, out) = check(&stage_2);
    let report = report.unwrap();
    // 26 questions in 11 styles that may be trained on (13 less 2 held out, less 0): plain, one there, nine made.
    assert_eq!(report.sources[0].n_made, 26 * 9);
    let question = |line: &serde_json::Value| line["id"].as_str().unwrap().to_owned();
    let train: Vec<String> = read_lines(&out.path().join("train.jsonl")).iter().map(question).collect();
    let held: Vec<String> = read_lines(&out.path().join("hold_out.jsonl")).iter().map(question).collect();
    assert!(
        train.iter().chain(&held).all(|id| !id.ends_with("technical_report") && !id.ends_with("jailbreak_dev_mode"))
    );
    let base = |ids: &[String]| -> std::collections::BTreeSet<String> {
        let row = |id: &String| id.rsplit(':').next().and_then(|rest| rest.split('/').next()).unwrap().to_owned();
        let all = read_lines(&pairs);
        ids.iter()
            .filter_map(|id| all[row(id).parse::<usize>().unwrap() - 1]["question_id"].as_str().map(String::from))
            .collect()
    };
    assert!(base(&train).is_disjoint(&base(&held)), "a question and its variants are on one side");
    assert!(base(&train).len() > 10 && base(&held).len() > 1, "questions are drawn one by one");
}

#[test]
fn broken_rows_stop_the_run_with_twenty_shown_and_all_counted_or_go_to_quarantine() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.jsonl");
    let mut text = String::from("{\"instruction\": \"Q1\", \"input\": \"\", \"output\": \"A1\"}\n");
    for _ in 0..30 {
        text += "{\"instruction\": \"Q\", \"output\": 5}\n";
    }
    text += "{\"instruction\": \"Q2\", \"output\": \"A2\"";
    std::fs::write(&path, text).unwrap();
    let mut config = config(json!({"sources": [source("s", &path)]}));
    let error = check(&config).0.unwrap_err().to_string();
    assert!(error.starts_with("31 broken rows"), "{error}");
    assert!(
        error.contains("rows.jsonl:2: column `output`: expected text, found a number") && error.contains("and 11 more"),
        "{error}"
    );
    assert_eq!(error.lines().count(), 22);
    config.quarantine = Quarantine::InFolder(true);
    let (report, out) = check(&config);
    let report = report.unwrap();
    assert_eq!((report.n_train, report.sources[0].n_broken), (1, 31));
    let quarantined = read_lines(&out.path().join("quarantine.jsonl"));
    assert_eq!(quarantined.len(), 31);
    assert!(quarantined[30]["at"].as_str().unwrap().contains("rows.jsonl:32:") && quarantined[30]["raw"].is_string());
}

#[test]
fn an_empty_result_says_which_rules_emptied_it_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.jsonl");
    std::fs::write(
        &path,
        "{\"instruction\": \"No input\", \"output\": \"x\"}\n{\"instruction\": \"Q\", \"output\": \"\"}\n",
    )
    .unwrap();
    let (report, out) = check(&config(json!({"sources": [source("s", &path)]})));
    let error = report.unwrap_err().to_string();
    assert!(error.contains("2 rows read, 2 dropped") && error.contains("empty_answer 1, listed_question 1"), "{error}");
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
}

#[test]
fn rated_answers_become_pairs_and_every_row_is_accounted_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("helpsteer.jsonl");
    let row = |prompt: &str, response: &str, helpfulness: u32| {
        json!({"prompt": prompt, "response": response, "helpfulness": helpfulness, "correctness": 3, "coherence": 3, "complexity": 1,
            "verbosity": 1})
        .to_string()
    };
    let rows = [row("P", "good", 4), row("P", "bad", 1), row("P", "fair", 2), row("Q", "one", 3), row("Q", "two", 3)];
    std::fs::write(&path, rows.join("\n")).unwrap();
    let (report, out) = check(&config(json!({"sources": [source("h", &path)], "output": "pairs"})));
    let report = report.unwrap();
    assert_eq!((report.n_train, report.dropped()), (1, counts(&[("merged_into_pair", 2), ("no_rating_gap", 2)])));
    let line = &read_lines(&out.path().join("train.jsonl"))[0];
    assert_eq!(
        (line["chosen"][0]["content"].as_str(), line["rejected"][0]["content"].as_str()),
        (Some("good"), Some("bad"))
    );
    assert_eq!(line["id"], "h/helpsteer.jsonl:1");
    assert_eq!(read_lines(&out.path().join("ledger.jsonl")).len(), 4);
    // A rating that is none is quarantined with its text.
    std::fs::write(&path, [rows[0].clone(), rows[1].clone(), row("P", "beyond", 9)].join("\n")).unwrap();
    let (report, out) = check(&config(json!({"sources": [source("h", &path)], "output": "pairs", "quarantine": true})));
    assert_eq!(report.unwrap().n_train, 1);
    assert!(read_lines(&out.path().join("quarantine.jsonl"))[0]["raw"].as_str().unwrap().contains("beyond"));
}

#[test]
fn tokens_are_counted_by_the_named_tokenizer() {
    let Some(models) = std::env::var_os("ALOE_MODELS").map(PathBuf::from) else {
        assert!(std::env::var_os("ALOE_REQUIRE").is_none(), "ALOE_MODELS is not set, but ALOE_REQUIRE is");
        println!("did not run (no ALOE_MODELS): token counts");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("model");
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(models.join("llama3-tokenizer/tokenizer.json"), folder.join("tokenizer.json")).unwrap();
    let special = json!({"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"});
    std::fs::write(folder.join("tokenizer_config.json"), special.to_string()).unwrap();
    let path = dir.path().join("rows.jsonl");
    std::fs::write(&path, "{\"instruction\": \"Say yes.\", \"output\": \"Yes\"}\n").unwrap();
    let mut config = config(json!({"sources": [source("s", &path)]}));
    config.tokenizer = Some(folder);
    config.template = Some("llama3".into());
    let report = check(&config).0.unwrap();
    // Llama 3: begin, 4 of the user's header and break, "Say", " yes", ".", end, 4 of the assistant's header and break, "Yes", end.
    assert_eq!((report.sources[0].n_tokens, report.sources[0].n_target_tokens), (Some(15), Some(2)));
}

#[test]
fn pairs_do_not_slip_into_sft() {
    let error = check(&config(json!({"sources": [source("p", &starter().join("dpo/pairs.jsonl"))]})))
        .0
        .unwrap_err()
        .to_string();
    assert!(error.contains("is a preference row, but the output is sft"), "{error}");
}

#[test]
fn published_files_give_the_row_counts_of_their_readmes() {
    let Some(data) = real_data("row counts of the published files") else { return };
    let counts = [
        ("medmcqa/dev.json", 2923),
        ("medmcqa/train_sample.jsonl", 9999),
        ("medmcqa/validation-00000-of-00001.parquet", 2923),
        ("medqa/US_test.jsonl", 891),
        ("medqa/train_part_5_options.jsonl", 1000),
        ("pubmedqa/ori_pqal.json", 850),
        ("pubmedqa/pqa_labeled/train-00000-of-00001.parquet", 850),
        ("medquad/medquad_sample.jsonl", 2500),
        ("genmedgpt_5k/chatdoctor5k.json", 5452),
        ("medical_meadow_wikidoc_patient_information/medical_meadow_wikidoc_patient_info.json", 5942),
        ("general_instruct/alpaca_en_demo.json", 999),
        ("general_instruct/seed_tasks.jsonl", 175),
        ("headqa/train_en.jsonl", 2657),
        ("careqa/CareQA_en.json", 3935),
        ("medqa/dev_4_options.jsonl", 1272),
        ("medqa/phrases_no_exclude_test.jsonl", 891),
        ("medqa/train_part_4_options.jsonl", 777),
        ("pubmedqa/pqal_fold0/train_set.json", 450),
        ("pubmedqa/pqal_fold0/dev_set.json", 50),
        ("headqa/validation_en.jsonl", 1366),
        ("headqa/test_en.jsonl", 2742),
        ("headqa/test_es.jsonl", 2742),
        ("general_instruct/user_oriented_instructions.jsonl", 252),
        ("med_safety_bench/datasets/test", 900),
        ("mmlu_medical/data/dev", 30),
        ("mmlu_medical/data/val", 119),
        ("mmlu_medical/data/test", 735),
        ("mmlu_medical/data/test/anatomy_test.csv", 95),
        ("med_safety_bench/datasets/train", 900),
    ];
    let sources: Vec<_> =
        counts.iter().map(|(path, _)| source(&path.replace(['/', '.'], "_"), &data.join(path))).collect();
    let report = check(&config(json!({"sources": sources, "dedup": {"exact": false, "minhash": false}}))).0.unwrap();
    for (source, (path, n_rows)) in report.sources.iter().zip(counts) {
        assert_eq!((source.n_read, source.n_broken), (n_rows, 0), "{path}");
    }
}

#[test]
fn published_preference_files_become_pairs() {
    let Some(data) = real_data("pairs of the published preference files") else { return };
    let paths =
        ["dpo_pairs/dpo_mix_7k_schema.jsonl", "dpo_pairs/dpo_en_demo.json", "hh_rlhf/harmless-base/test.jsonl.gz"];
    let sources: Vec<_> = paths.iter().map(|path| source(&path.replace(['/', '.'], "_"), &data.join(path))).collect();
    let value =
        json!({"sources": sources, "output": "pairs", "quarantine": true, "dedup": {"exact": false, "minhash": false}});
    let report = check(&config(value)).0.unwrap();
    let read: Vec<_> = report.sources.iter().map(|source| source.n_read).collect();
    assert_eq!(read, [300, 300, 2312]);
    // Of hh-rlhf's test rows, 5 differ before the last answer and 4 have two answers in a row (counted with a separate script).
    assert_eq!(report.sources.iter().map(|source| source.n_broken).collect::<Vec<_>>(), [0, 0, 9]);
}

const CANARY: &str = "CANARY Erika Mustermann 4711";

/// Rows of every layout that are broken in one way each and bear the canary in each text, key and number.
fn canary_files(dir: &Path) {
    let lines = [
        json!({"instruction": "Q", "output": [CANARY]}),
        json!({"instruction": "Q", "output": 4_711_471_147_114_711_u64}),
        json!({"instruction": "Q", CANARY: "x"}),
        json!({"instruction": {"a": CANARY}, "output": "x"}),
    ];
    let write = |name: &str, text: String| std::fs::write(dir.join(name), text).unwrap();
    let good = json!({"instruction": "Good", "output": CANARY});
    let twice = format!(
        "{{\"instruction\": \"Q\", \"{CANARY}\": 1, \"{CANARY}\": 2}}\n{{\"{CANARY}\": tru}}\n[\"{CANARY}\"]\n"
    );
    write("alpaca.jsonl", lines.iter().fold(format!("{good}\n{twice}"), |text, row| format!("{text}{row}\n")));
    let speaker = json!({"messages": [{"role": CANARY, "content": CANARY}]});
    let fine = json!({"messages": [{"role": "user", "content": "Q2"}, {"role": "assistant", "content": CANARY}]});
    write("messages.jsonl", format!("{fine}\n{speaker}\n"));
    write("mmlu.csv", format!("input,A,B,C,D,target\nQ?,w,x,y,z,{CANARY}\n{CANARY},w,x,y,z,A,too many\n"));
    let options = json!({"A": "w", "B": "x", "C": "y", "D": "z"});
    let key = json!({"question": CANARY, "options": options, "answer_idx": CANARY});
    let odd = json!({"question": CANARY, "options": {CANARY: "w"}, "answer_idx": "A"});
    write("medqa.jsonl", format!("{key}\n{odd}\n"));
    let decision = json!({"QUESTION": CANARY, "CONTEXTS": [CANARY], "final_decision": CANARY, "LONG_ANSWER": null});
    write("pubmedqa.jsonl", format!("{decision}\n"));
    let rated = json!({"prompt": CANARY, "response": CANARY, "helpfulness": 471_147_114_711_u64, "correctness": 1, "coherence": 1});
    write("rated.jsonl", format!("{rated}\n"));
    let pair = json!({"prompt": [{"role": "user", "content": CANARY}], "chosen": CANARY, "rejected": [{"role": CANARY, "content": CANARY}]});
    write("pair.jsonl", format!("{pair}\n"));
}

#[test]
fn no_row_text_key_or_number_reaches_the_errors_the_report_or_the_manifest() {
    let (dir, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    canary_files(dir.path());
    let names =
        ["alpaca.jsonl", "messages.jsonl", "mmlu.csv", "medqa.jsonl", "pubmedqa.jsonl", "rated.jsonl", "pair.jsonl"];
    let sources: Vec<_> = names.iter().map(|name| source(&name.replace('.', "_"), &dir.path().join(name))).collect();
    let mut config = config(json!({"sources": sources, "decontaminate": [dir.path().join("medqa.jsonl")]}));
    let clean = |text: &str, what: &str| {
        for part in ["CANARY", "Erika", "Mustermann", "4711"] {
            assert!(!text.contains(part), "{what}: {text}");
        }
    };
    let refused = check(&config).0.unwrap_err().to_string();
    assert!(refused.contains("15 broken rows"), "{refused}");
    clean(&refused, "refusal");
    config.quarantine = Quarantine::InFolder(true);
    let report = run(&config, out.path(), 2, &Progress::silent(), &Cancel::default()).unwrap();
    assert_eq!(report.n_train, 2);
    clean(&serde_json::to_string(&report).unwrap(), "report of the record");
    clean(&std::fs::read_to_string(out.path().join("manifest.json")).unwrap(), "manifest");
    assert!(
        std::fs::read_to_string(out.path().join("quarantine.jsonl")).unwrap().contains("CANARY"),
        "nothing is lost"
    );
    // A CSV file without its header: its first row is no list of columns.
    let path = dir.path().join("headless.csv");
    std::fs::write(&path, format!("{CANARY},4711\nx,y\n")).unwrap();
    clean(
        &check(&super::tests::config(json!({"sources": [source("h", &path)]}))).0.unwrap_err().to_string(),
        "unknown layout",
    );
}

/// The key of one question, counted from 1 and from 0, must give one and the same answer whatever the file is called.
#[test]
fn a_medmcqa_file_counts_its_keys_as_its_content_says_whatever_its_name() {
    use std::io::Write as _;
    let dir = tempfile::tempdir().unwrap();
    let text = |keys: &[i64]| -> Vec<u8> {
        let row = |(i, key): (usize, &i64)| {
            json!({"id": format!("{i}"), "question": format!("Question {i}?"), "opa": "w", "opb": "x", "opc": "y", "opd": "z", "cop": key,
                "exp": null, "subject_name": "s"})
        };
        keys.iter().enumerate().map(|keyed| format!("{}\n", row(keyed))).collect::<String>().into_bytes()
    };
    let answers = |name: &str, bytes: &[u8], dialect: Option<&str>| -> Result<Vec<String>> {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let mut source = source("m", &path);
        if let Some(dialect) = dialect {
            source["dialect"] = dialect.into();
        }
        let (report, out) = check(&config(json!({"sources": [source], "dedup": {"exact": false, "minhash": false}})));
        report?;
        let mut lines = read_lines(&out.path().join("train.jsonl"));
        lines.sort_by_key(|line| line["id"].to_string());
        Ok(lines.iter().map(|line| line["messages"][1]["content"].as_str().unwrap().to_owned()).collect())
    };
    let expected = ["Answer: [B]", "Answer: [D]", "Answer: [A]"];
    let (from_0, from_1) = (text(&[1, 3, 0]), text(&[2, 4, 1]));
    for name in ["dev.json", "train.json", "test.json", "rows.jsonl", "x.json"] {
        assert_eq!(answers(name, &from_0, None).unwrap(), expected, "{name}");
        assert_eq!(answers(name, &from_1, None).unwrap(), expected, "{name}");
    }
    let written = String::from_utf8(from_0.clone()).unwrap();
    let by_pandas = ["1", "3", "0"]
        .iter()
        .fold(written, |text, key| text.replace(&format!("\"cop\":{key},"), &format!("\"cop\":{key}.0,")));
    assert!(by_pandas.contains("\"cop\":0.0,"));
    assert_eq!(answers("dev.json", by_pandas.as_bytes(), None).unwrap(), expected);
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&from_1).unwrap();
    assert_eq!(answers("dev.json.gz", &packed.finish().unwrap(), None).unwrap(), expected);
    for (keys, word) in [(&[1, 2, 3][..], "neither"), (&[0, 4][..], "both")] {
        let error = answers("dev.json", &text(keys), None).unwrap_err().to_string();
        assert!(error.contains(word) && error.contains("medmcqa_one_based"), "{error}");
    }
    assert_eq!(answers("few.json", &text(&[1, 2]), Some("medmcqa")).unwrap(), ["Answer: [B]", "Answer: [C]"]);
    assert_eq!(answers("few.json", &text(&[1, 2]), Some("medmcqa_one_based")).unwrap(), ["Answer: [A]", "Answer: [B]"]);
}

#[test]
fn a_broken_evaluation_question_stops_the_run_or_is_counted_quarantined_and_told() {
    let dir = tempfile::tempdir().unwrap();
    let (rows, held) = (dir.path().join("rows.jsonl"), dir.path().join("held.jsonl"));
    std::fs::write(&rows, "{\"instruction\": \"Q\", \"output\": \"A\"}\n").unwrap();
    std::fs::write(&held, "{\"goal\": \"g\"}\n{\"goal\": 5}\n{\"goal\": \n").unwrap();
    let mut config = config(json!({"sources": [source("s", &rows)], "decontaminate": [held]}));
    assert!(check(&config).0.unwrap_err().to_string().starts_with("2 broken rows"));
    config.quarantine = Quarantine::InFolder(true);
    let (report, out) = check(&config);
    let report = report.unwrap();
    assert_eq!((report.n_held_apart_questions, report.n_held_apart_broken, report.broken.total), (1, 2, 2));
    assert!(
        report.notices.iter().any(|notice| notice.starts_with("2 evaluation rows are broken")),
        "{:?}",
        report.notices
    );
    let quarantined = read_lines(&out.path().join("quarantine.jsonl"));
    assert_eq!(quarantined.len(), 2);
    assert!(quarantined.iter().all(|line| line["raw"].as_str().unwrap().contains("goal")));
}

/// Every file of ../shared/data with rows that are only compared with, and the rows that its README states.
#[test]
fn published_evaluation_files_give_the_row_counts_of_their_readmes() {
    let Some(data) = real_data("row counts of the published evaluation files") else { return };
    let mut counts: Vec<(String, usize)> = [
        ("careqa/CareQA_en.json", 3935),
        ("crows_pairs/crows_pairs_anonymized.csv", 1508),
        ("dpo_pairs/dpo_en_demo.json", 300),
        ("dpo_pairs/dpo_mix_7k_schema.jsonl", 300),
        ("ethics/commonsense/cm_test_short.csv", 2109),
        ("ethics/deontology/deontology_test.csv", 3596),
        ("ethics/justice/justice_test.csv", 2704),
        ("ethics/utilitarianism/util_test.csv", 4808),
        ("ethics/virtue/virtue_test.csv", 4975),
        ("general_instruct/user_oriented_instructions.jsonl", 252),
        ("headqa/test_en.jsonl", 2742),
        ("headqa/test_es.jsonl", 2742),
        ("headqa/validation_en.jsonl", 1366),
        ("medmcqa/dev.json", 2923),
        ("medqa/US_test.jsonl", 891),
        ("medqa/dev_4_options.jsonl", 1272),
        ("medqa/phrases_no_exclude_test.jsonl", 891),
        ("openmedqa/openmedqa_test.json", 891),
        ("pubmedqa/ori_pqal.json", 350),
        ("pubmedqa/pqal_fold0/dev_set.json", 50),
        ("pubmedqa/pqal_fold0/train_set.json", 450),
        ("red_team/advbench/harmful_behaviors.csv", 520),
        ("red_team/chen_et_al/harmful_prompts_filtered.csv", 1072),
        ("red_team/chen_et_al/jailbreak_styles_sample.jsonl", 100),
        ("red_team/do_not_answer/discrimination_exclusion_toxicity_hateful_offensive.jsonl", 176),
        ("red_team/do_not_answer/human_chatbox.jsonl", 117),
        ("red_team/do_not_answer/information_hazard.jsonl", 248),
        ("red_team/do_not_answer/malicious_uses.jsonl", 243),
        ("red_team/do_not_answer/misinformation_harms.jsonl", 155),
        ("red_team/harmbench/harmbench_behaviors_text_standard.csv", 200),
        ("red_team/real_toxicity_prompts/rtp_identity_attack.txt", 100),
        ("red_team/real_toxicity_prompts/rtp_insult.txt", 100),
        ("red_team/real_toxicity_prompts/rtp_threat.txt", 100),
        ("red_team/xstest/xstest_prompts.csv", 450),
    ]
    .map(|(path, n)| (path.to_owned(), n))
    .to_vec();
    let bbq = ["Age", "Disability_status", "Nationality", "Physical_appearance", "Religion", "Sexual_orientation"];
    counts.extend(bbq.map(|name| (format!("bbq/data/{name}.jsonl"), 300)));
    for (path, n_rows) in counts {
        let mut broken = Vec::new();
        let index = Index::read(
            &crate::decontaminate::HeldFile::all(&[data.join(&path)], []).unwrap(),
            Default::default(),
            false,
            &mut |error| {
                broken.push(error.to_string());
                Ok(())
            },
        );
        let found: usize = index.unwrap().n_by_file.values().sum();
        assert_eq!((found, broken), (n_rows, vec![]), "{path}");
    }
}
