//! Rows that the check kept, against the reading of their files anew.

use super::*;

/// Two files of conversations about one of rated answers, which become pairs only with each other; and a row of a transposed pair.
fn sources(dir: &Path) -> DataConfig {
    let chat = |n: usize| (0..n).map(|i| json!({"instruction": format!("Q {i}"), "output": "A"})).collect::<Vec<_>>();
    let rate = |response: &str, score: u8| {
        json!({"prompt": "Q", "response": response, "helpfulness": score, "correctness": score, "coherence": 4,
            "complexity": 1, "verbosity": 1})
    };
    let pair =
        json!({"prompt": "Q", "chosen": "a", "rejected": "b", "chosen_rating": 1, "rejected_rating": 5, "seen": "by"});
    for (name, rows) in [
        ("a.jsonl", chat(3000)),
        ("b.jsonl", vec![rate("good", 4), rate("bad", 0), rate("fair", 2)]),
        ("c.jsonl", vec![pair]),
        ("d.jsonl", chat(40)),
    ] {
        let lines: Vec<String> = rows.iter().map(serde_json::Value::to_string).collect();
        std::fs::write(dir.join(name), lines.join("\n")).unwrap();
    }
    let all = ["a", "b", "c", "d"].map(|name| source(name, &dir.join(format!("{name}.jsonl"))));
    config(json!({"sources": all, "output": "pairs"}))
}

/// The names of the kept files, and all that a run holds once its sources are read, as text.
fn read_with(config: &DataConfig, room: usize) -> Result<(Vec<String>, String)> {
    let cancel = Cancel::default();
    let mut run = Run::new(config, 2, &cancel);
    let kept: VecDeque<_> = run.check_sources(&Progress::silent(), room)?;
    let names = kept.iter().map(|kept| kept.file.label.clone()).collect();
    run.read_sources(&Progress::silent(), kept)?;
    let ledger = serde_json::to_value(&run.report).unwrap();
    Ok((names, format!("{:?} {ledger} {}", run.items, run.ledger.len())))
}

#[test]
fn rows_that_the_check_kept_are_those_of_their_files_whatever_there_is_room_for() {
    let dir = tempfile::tempdir().unwrap();
    let config = sources(dir.path());
    let (none, expected) = read_with(&config, 0).unwrap();
    assert!(none.is_empty() && expected.contains("chosen_rated_below_rejected") && expected.contains("seen"));
    let (all, found) = read_with(&config, usize::MAX).unwrap();
    assert_eq!(all, ["a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl"]);
    assert!(found == expected, "all files kept");
    // Room for all but some rows of the last file; for most rows of the first; for no row.
    for (room, names) in [(1_565_000, vec!["a.jsonl", "b.jsonl", "c.jsonl"]), (3000 * 512, vec![]), (1, vec![])] {
        let (kept, found) = read_with(&config, room).unwrap();
        assert_eq!(kept, names, "room for {room} bytes");
        assert!(found == expected, "room for {room} bytes");
    }
}

#[test]
fn nothing_is_kept_once_a_row_is_broken_and_all_broken_rows_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let config = sources(dir.path());
    for name in ["b.jsonl", "d.jsonl"] {
        let path = dir.path().join(name);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text + "\n{\"instruction\": 1}\n").unwrap();
    }
    for room in [0, usize::MAX] {
        let error = read_with(&config, room).unwrap_err().to_string();
        assert!(error.contains("b.jsonl:4") && error.contains("d.jsonl:41"), "{error}");
    }
}
