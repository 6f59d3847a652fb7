//! Rated rows: those of a prompt in several files, and pairs whose ratings contradict their sides.

use super::*;
use std::collections::BTreeSet;

fn rated(prompt: &str, response: &str, helpfulness: u8) -> String {
    json!({"prompt": prompt, "response": response, "helpfulness": helpfulness, "correctness": 2, "coherence": 3, "complexity": 1,
        "verbosity": 1})
    .to_string()
        + "\n"
}

/// Two prompts whose answers stand in two files each, four and two points apart, and one with no gap.
#[test]
fn rated_answers_of_a_prompt_make_a_pair_whatever_files_of_a_source_they_stand_in() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("a.jsonl"), dir.path().join("b.jsonl"));
    std::fs::write(&first, rated("What is gout?", "good", 4) + &rated("What is mumps?", "worse", 1)).unwrap();
    let alike = rated("What is flu?", "so", 2) + &rated("What is flu?", "thus", 2);
    std::fs::write(&second, rated("What is gout?", "bad", 0) + &rated("What is mumps?", "better", 3) + &alike).unwrap();
    for quarantine in [false, true] {
        let mut value = json!({"sources": [source("h", dir.path())], "output": "pairs", "quarantine": quarantine});
        value["sources"][0]["rating_gap"] = json!(2);
        let (report, out) = check(&config(value));
        let report = report.unwrap();
        assert!(report.account.adds_up(), "{}", report.account);
        assert_eq!(report.sources[0].dropped, counts(&[("merged_into_pair", 2), ("no_rating_gap", 2)]));
        assert_eq!(report.sources[0].dialects, counts(&[("help_steer", 2)]));
        let mut pairs: Vec<String> = read_lines(&out.path().join("train.jsonl"))
            .iter()
            .map(|row| format!("{} {} {}", row["id"], row["chosen"][0]["content"], row["rejected"][0]["content"]))
            .collect();
        pairs.sort();
        assert_eq!(pairs, [r#""h/a.jsonl:1" "good" "bad""#, r#""h/b.jsonl:2" "better" "worse""#]);
        let ledger = read_lines(&out.path().join("ledger.jsonl"));
        let of = |rule: &str| -> BTreeSet<&str> {
            ledger.iter().filter(|entry| entry["rule"] == rule).map(|entry| entry["id"].as_str().unwrap()).collect()
        };
        assert_eq!(of("merged_into_pair"), BTreeSet::from(["h/a.jsonl:2", "h/b.jsonl:1"]));
        assert_eq!(of("no_rating_gap"), BTreeSet::from(["h/b.jsonl:3", "h/b.jsonl:4"]));
    }
}

#[test]
fn a_pair_whose_chosen_side_is_rated_lower_goes_by_a_rule_of_its_own_that_can_be_switched_off() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.jsonl");
    let pair = |asked: &str, chosen: u8| {
        json!({"prompt": asked, "chosen": "one answer", "rejected": "another", "chosen_rating": chosen, "rejected_rating": 3}).to_string()
            + "\n"
    };
    std::fs::write(&path, pair("What is gout?", 5) + &pair("What is flu?", 1)).unwrap();
    let mut config = config(json!({"sources": [source("s", &path)], "output": "pairs"}));
    let settings = serde_json::to_string(&config.rules).unwrap();
    assert!(!settings.contains("chosen_rated"), "stages finished before stand: {settings}");
    let (report, _) = check(&config);
    let report = report.unwrap();
    assert_eq!((report.n_train, report.sources[0].dropped.clone()), (1, counts(&[("chosen_rated_below_rejected", 1)])));
    config.rules.chosen_rated_below_rejected = false;
    assert!(serde_json::to_string(&config.rules).unwrap().contains("chosen_rated_below_rejected"));
    let report = check(&config).0.unwrap();
    assert_eq!((report.n_train, report.sources[0].dropped.len()), (2, 0));
}
