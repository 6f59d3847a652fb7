//! Files that hold all their rows on one line, as `json.dump` writes them, against the same rows a line each.

use super::*;
use crate::review;
use std::collections::BTreeSet;

/// Writes rows in one of the shapes that one line holds, or a line each.
fn write_as(shape: &str, path: &Path, rows: &[serde_json::Value]) {
    let text = match shape {
        "list" => json!(rows).to_string(),
        "wrapped" => json!({"version": "1", "data": rows}).to_string(),
        "keyed" => {
            let named = rows.iter().enumerate().map(|(number, row)| (format!("k{number}"), row.clone()));
            serde_json::Value::Object(named.collect()).to_string()
        }
        _ => rows.iter().map(|row| format!("{row}\n")).collect(),
    };
    std::fs::write(path, text).unwrap();
}

fn numbered(n: usize) -> Vec<serde_json::Value> {
    (0..n).map(|n| json!({"instruction": format!("What is number {n}?"), "input": "", "output": "So."})).collect()
}

/// Numbers of the training rows in their order.
fn trained(out: &Path) -> Vec<usize> {
    let number = |row: &serde_json::Value| {
        let text = row["messages"][0]["content"].as_str().unwrap();
        text.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap()
    };
    read_lines(&out.join("train.jsonl")).iter().map(number).collect()
}

/// Half of 200 rows, within four standard deviations of 7.1; with weight 1.5 each at least once; 20 of 200 that are not the first ones.
#[test]
fn weights_caps_and_order_draw_each_row_of_a_line_for_itself() {
    for shape in ["list", "wrapped", "keyed", "lines"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.json");
        write_as(shape, &path, &numbered(200));
        let run = |key: &str, value: serde_json::Value| {
            let mut source = source("s", &path);
            source[key] = value;
            let (report, out) = check(&config(json!({"sources": [source], "dedup": {"minhash": false}})));
            report.unwrap();
            trained(out.path())
        };
        let half = run("weight", json!(0.5));
        assert!((72..=128).contains(&half.len()), "{shape}: {}", half.len());
        let more = run("weight", json!(1.5));
        assert!((272..=328).contains(&more.len()), "{shape}: {}", more.len());
        assert_eq!(more.iter().collect::<BTreeSet<_>>().len(), 200);
        let few = run("max_rows", json!(20));
        assert_eq!(few.len(), 20);
        assert!(!few.iter().all(|number| *number < 20) && !few.is_sorted(), "{shape}: {few:?}");
        let ids: BTreeSet<String> = {
            let (_, out) = check(&config(json!({"sources": [source("s", &path)], "dedup": {"minhash": false}})));
            read_lines(&out.path().join("train.jsonl")).iter().map(|row| row["id"].to_string()).collect()
        };
        assert_eq!(ids.len(), 200, "{shape}");
    }
}

/// Three questions on one line, each in one training row: a verdict on one hit says nothing of the other two.
#[test]
fn a_verdict_keeps_the_one_row_of_a_line_that_it_names() {
    let stems = [
        "Which nerve is injured in a fracture of the surgical neck of the humerus after a fall?",
        "Which vitamin is lacking in a sailor with bleeding gums and poor healing of wounds?",
        "Which organism causes a painless black ulcer on the forearm of a shepherd?",
    ];
    for shape in ["list", "wrapped", "keyed", "lines"] {
        let dir = tempfile::tempdir().unwrap();
        let (held, rows) = (dir.path().join("held.json"), dir.path().join("rows.json"));
        let asked = stems.map(|stem| json!({"question": stem, "answer": "x"}));
        write_as(shape, &held, &asked);
        let mut leaks = asked.to_vec();
        leaks.push(json!({"question": "Is bread baked?", "answer": "Yes."}));
        write_as(shape, &rows, &leaks);
        let mut settings = config(json!({"sources": [source("s", &rows)], "decontaminate": [held]}));
        let (report, out) = check(&settings);
        let report = report.unwrap();
        assert_eq!((report.n_overlaps, report.n_train), (3, 1), "{shape}");
        let page = dir.path().join("review");
        review(out.path(), &page).unwrap();
        let path = page.join("verdicts.jsonl");
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 3);
        std::fs::write(&path, text.replacen("\"drop\"", "\"keep\"", 1)).unwrap();
        settings.verdicts = Some(path);
        let report = check(&settings).0.unwrap();
        assert_eq!((report.n_overlaps, report.n_overlaps_kept, report.n_train), (3, 1, 2), "{shape}");
    }
}
