//! The whole stage over every file of the shared folder at once: what trains, what is scored on and what is only compared with. The
//! printed accounts are those of LOG.md.

use super::*;
use crate::Scored;

fn scored(data: &Path, tasks: &[&str], split: &str) -> Scored {
    let tasks = tasks.iter().map(|task| (*task).to_owned()).collect();
    Scored { data: data.to_path_buf(), tasks, split: split.into() }
}

fn tell(report: &DataReport, n_seconds: f64) {
    println!("{n_seconds:.1} s; {}; {:?}", report.account, report.dropped());
    for source in &report.sources {
        println!("{}: {}; {:?}; identifiers {:?}", source.name, source.account, source.dropped, source.identifiers);
    }
    println!("questions {}: {:?}", report.n_held_apart_questions, report.held_apart_rows);
    println!("clusters {:?}; licences {:?}; tasks {:?}", report.duplicate_clusters, report.licences, report.tasks);
}

/// Three reported sets stand among the sources, as in a careless folder: of their rows (read whole, scored by tasks) at least 99 in 100 go.
#[test]
fn every_file_of_the_shared_folder_goes_through_one_stage_and_reported_sets_among_the_sources_are_taken_out() {
    let Some(data) = real_data("every shared file in one stage") else { return };
    let files = [
        ("medquad", "medquad/medquad_sample.jsonl", 2500),
        ("wikidoc", "medical_meadow_wikidoc_patient_information/medical_meadow_wikidoc_patient_info.json", 5942),
        ("genmedgpt", "genmedgpt_5k/chatdoctor5k.json", 5452),
        ("medmcqa-train", "medmcqa/train_sample.jsonl", 9999),
        ("medqa-train-4", "medqa/train_part_4_options.jsonl", 777),
        ("medqa-train-5", "medqa/train_part_5_options.jsonl", 1000),
        ("pubmedqa-train", "pubmedqa/pqal_fold0/train_set.json", 450),
        ("headqa-train", "headqa/train_en.jsonl", 2657),
        ("mmlu-dev", "mmlu_medical/data/dev", 30),
        ("alpaca", "general_instruct/alpaca_en_demo.json", 999),
        ("seed-tasks", "general_instruct/seed_tasks.jsonl", 175),
        ("user-oriented", "general_instruct/user_oriented_instructions.jsonl", 252),
        ("leak-medqa", "medqa/phrases_no_exclude_test.jsonl", 891),
        ("leak-careqa", "careqa/CareQA_en.json", 3935),
        ("leak-headqa", "headqa/test_en.jsonl", 2742),
    ];
    let sources: Vec<serde_json::Value> = files
        .iter()
        .map(|(name, path, n_rows)| {
            let mut source = source(name, &data.join(path));
            source["expect_rows"] = json!(n_rows);
            source
        })
        .collect();
    let compared = ["bbq/data", "crows_pairs/crows_pairs_anonymized.csv", "ethics", "headqa/test_es.jsonl", "red_team"];
    let compared: Vec<PathBuf> = compared.iter().map(|path| data.join(path)).collect();
    let mut config =
        config(json!({"sources": sources, "decontaminate": compared, "hold_out": 0.03, "seed": 7, "quarantine": true,
        "identifiers": "report", "filters": {"languages": ["eng"], "repetition": true}}));
    let reported =
        ["medqa_4options", "medqa_5options", "medmcqa", "pubmedqa", "mmlu_medical", "careqa_en", "headqa_en"];
    config.scored = vec![
        scored(&data, &reported, "test"),
        scored(&data, &["medqa_4options", "pubmedqa", "mmlu_medical", "headqa_en"], "validation"),
        scored(&data, &["openmedqa"], "test"),
    ];
    let start = std::time::Instant::now();
    let report = check(&config).0.unwrap();
    tell(&report, start.elapsed().as_secs_f64());
    assert!(report.account.adds_up() && report.account.n_read == 37_801, "{}", report.account);
    // All of these files but some of the instructions are English.
    let n_other = report.dropped().get("other_language").copied().unwrap_or(0);
    assert!(n_other <= 5, "{n_other} rows are taken for another language");
    for source in report.sources.iter().filter(|source| source.name.starts_with("leak-")) {
        let account = &source.account;
        let n_left = account.n_train + account.n_held_out;
        assert!(n_left * 100 <= account.n_read, "{}: {account}", source.name);
    }
}

#[test]
fn every_preference_file_of_the_shared_folder_goes_through_one_stage() {
    let Some(data) = real_data("every shared preference file in one stage") else { return };
    let mut safety = source("med-safety", &data.join("med_safety_bench/datasets/train"));
    (safety["rejected_openings"], safety["expect_rows"]) = (json!(true), json!(900));
    let sources = [
        source("dpo-mix-schema", &data.join("dpo_pairs/dpo_mix_7k_schema.jsonl")),
        source("dpo-demo", &data.join("dpo_pairs/dpo_en_demo.json")),
        source("hh-harmless", &data.join("hh_rlhf/harmless-base/test.jsonl.gz")),
        safety,
    ];
    let compared: Vec<PathBuf> =
        ["med_safety_bench/datasets/test", "red_team"].iter().map(|path| data.join(path)).collect();
    let mut config =
        config(json!({"sources": sources, "output": "pairs", "decontaminate": compared, "hold_out": 0.05, "seed": 7,
        "quarantine": true, "identifiers": "report"}));
    config.scored = vec![scored(&data, &["medqa_4options", "careqa_en", "openmedqa"], "test")];
    let start = std::time::Instant::now();
    let report = check(&config).0.unwrap();
    tell(&report, start.elapsed().as_secs_f64());
    assert!(report.account.adds_up());
    assert_eq!((report.account.n_read, report.account.n_quarantined), (3812, 9));
}
