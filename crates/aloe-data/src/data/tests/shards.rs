//! Shards and their merge against the search of one process, and verdicts of a reader.

use super::*;
use crate::{merge_shards, review, sign_shard};

/// The starter set, with every planted duplicate, and rules that drop rows before the search.
fn files_of(out: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(out).unwrap().map(|entry| entry.unwrap().path());
    entries
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(path).unwrap()))
        .collect()
}

fn merged(config: &DataConfig, n: usize, n_threads: usize, dir: &Path) -> PathBuf {
    let mut folders = Vec::new();
    // Given in any order.
    for index in (1..=n).rev() {
        let folder = dir.join(format!("{n}-{n_threads}-{index}"));
        let shard = format!("{index}/{n}").parse().unwrap();
        sign_shard(config, shard, &folder, n_threads, &Progress::silent(), &Cancel::default()).unwrap();
        folders.push(folder);
    }
    let out = dir.join(format!("{n}-{n_threads}-merged"));
    merge_shards(&folders, &out).unwrap();
    out
}

#[test]
fn one_four_and_sixteen_shards_on_one_and_two_threads_write_the_same_bytes_and_a_run_takes_them_for_its_own_search() {
    let dir = tempfile::tempdir().unwrap();
    let config = starter_sft();
    let (report, own) = check(&config);
    let report = report.unwrap();
    let first = merged(&config, 1, 1, dir.path());
    for (n, n_threads) in [(4, 1), (16, 1), (1, 2), (4, 2), (16, 2)] {
        assert_eq!(
            files_of(&merged(&config, n, n_threads, dir.path())),
            files_of(&first),
            "{n} shards, {n_threads} threads"
        );
    }
    let found = read_lines(&first.join("duplicates.jsonl"));
    let pairs = |lines: &[serde_json::Value]| -> Vec<String> {
        lines.iter().map(|line| format!("{} {} {}", line["dropped"], line["kept"], line["rule"])).collect()
    };
    assert_eq!(pairs(&found), pairs(&read_lines(&own.path().join("duplicates.jsonl"))));
    assert_eq!(found.len(), report.account.n_exact_duplicate + report.account.n_near_duplicate);
    let with_merged = DataConfig { duplicates: Some(first), ..config };
    let (again, taken) = check(&with_merged);
    assert_eq!(again.unwrap().account, report.account);
    assert_eq!(files_of(taken.path()), files_of(own.path()));
}

/// More rows than are in memory at a time, so that shards sign in several blocks; every ninth of the later ones is a copy of a row
/// of another block.
#[test]
fn shards_that_sign_more_rows_than_one_block_write_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let rows = dir.path().join("rows.jsonl");
    let fact = |i: usize| i.checked_sub(4504).filter(|_| i % 9 == 8).unwrap_or(i);
    let row = |i: usize| json!({"instruction": format!("Give fact {}.", fact(i)), "output": "It is so."});
    let lines: Vec<String> = (0..shard::N_BLOCK + 1000).map(|i| row(i).to_string()).collect();
    std::fs::write(&rows, lines.join("\n")).unwrap();
    let config = config(json!({"sources": [source("s", &rows)], "dedup": {"minhash": false}}));
    let first = files_of(&merged(&config, 1, 2, dir.path()));
    for n in [4, 16] {
        assert_eq!(files_of(&merged(&config, n, 2, dir.path())), first, "{n} shards");
    }
    let found = check(&config).0.unwrap();
    let lines = String::from_utf8(first["duplicates.jsonl"].clone()).unwrap().lines().count();
    assert_eq!((lines, found.account.n_exact_duplicate), (521, 521), "4508, 4517, .. 9188");
}

#[test]
fn a_missing_shard_a_shard_twice_other_rows_and_a_damaged_file_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let rows = dir.path().join("rows.jsonl");
    let write = |n: usize| {
        let lines: Vec<String> =
            (0..n).map(|i| json!({"instruction": format!("Q {}", "x".repeat(i)), "output": "A"}).to_string()).collect();
        std::fs::write(&rows, lines.join("\n")).unwrap();
    };
    write(9);
    let config = config(json!({"sources": [source("s", &rows)]}));
    let sign = |shard: &str, folder: &str| {
        let folder = dir.path().join(folder);
        sign_shard(&config, shard.parse().unwrap(), &folder, 1, &Progress::silent(), &Cancel::default()).unwrap();
        folder
    };
    let (one, two) = (sign("1/2", "one"), sign("2/2", "two"));
    let out = dir.path().join("merged");
    let refused = |folders: &[PathBuf]| merge_shards(folders, &out).unwrap_err().to_string();
    assert!(refused(std::slice::from_ref(&one)).ends_with("of 2 shards, shard 2 is missing"));
    assert!(refused(&[one.clone(), one.clone()]).ends_with("shard 1 is given twice"));
    merge_shards(&[one.clone(), two.clone()], &out).unwrap();
    write(10);
    let merged = DataConfig { duplicates: Some(out.clone()), ..config.clone() };
    let error = check(&merged).0.unwrap_err().to_string();
    assert!(error.contains("made of other rows or settings"), "{error}");
    let other = sign("2/2", "other");
    assert!(refused(&[one.clone(), other]).contains("was made of other rows"));
    let mut bytes = std::fs::read(two.join("signatures.bin")).unwrap();
    bytes[20] ^= 1;
    std::fs::write(two.join("signatures.bin"), bytes).unwrap();
    assert!(refused(&[one, two]).contains("not what the shard wrote"));
    for text in ["0/2", "3/2", "1", "a/b", "1/0"] {
        assert!(text.parse::<crate::Shard>().is_err(), "{text}");
    }
}

/// Hits by words and then by meaning, as the two steps hand them over.
#[test]
fn verdicts_hold_for_hits_by_meaning_too_and_a_hit_of_both_steps_is_told_once() {
    let dir = tempfile::tempdir().unwrap();
    let rows = dir.path().join("rows.jsonl");
    let lines: Vec<String> =
        (0..3).map(|i| json!({"instruction": format!("Q{i}"), "output": "A"}).to_string()).collect();
    std::fs::write(&rows, lines.join("\n")).unwrap();
    let verdicts = dir.path().join("verdicts.jsonl");
    let verdict = |row: usize, at: &str| {
        json!({"row": format!("s/rows.jsonl:{row}"), "question_at": at, "verdict": "keep"}).to_string()
    };
    std::fs::write(&verdicts, [verdict(1, "f:1"), verdict(2, "f:2"), verdict(3, "gone:1")].join("\n")).unwrap();
    let config = config(json!({"sources": [source("s", &rows)]}));
    let cancel = Cancel::default();
    let mut run = Run::new(&config, 1, &cancel);
    run.reviewed = Reviewed::of(Verdicts::read(&verdicts).unwrap());
    run.read_sources(&Progress::silent()).unwrap();
    let hit = |row: usize, at: &str, test: &'static str| {
        let evidence = crate::Evidence { test, shared: String::new(), score: 1.0 };
        let (row_text, question) = (String::new(), String::new());
        let row = format!("s/rows.jsonl:{row}");
        Overlap { row, question_at: at.into(), question, row_text, evidence }
    };
    let by_words = vec![(0, hit(1, "f:1", "options"))];
    assert_eq!(run.honour_verdicts(by_words).len(), 1);
    let by_meaning = vec![(0, hit(1, "f:1", "embedding")), (1, hit(2, "f:2", "judge")), (2, hit(3, "f:2", "judge"))];
    let new: Vec<String> = run.honour_verdicts(by_meaning).into_iter().map(|hit| hit.row).collect();
    assert_eq!(new, ["s/rows.jsonl:2", "s/rows.jsonl:3"]);
    assert_eq!(run.items.iter().map(|item| item.id.as_str()).collect::<Vec<_>>(), ["s/rows.jsonl:1", "s/rows.jsonl:2"]);
    let report = &run.report;
    assert_eq!((report.n_overlaps, report.n_overlaps_kept, report.n_verdicts_unused), (3, 2, 1));
}

#[test]
fn a_verdict_keeps_a_row_in_the_next_run_and_one_that_fits_no_hit_is_told() {
    let config = starter_sft();
    let (report, out) = check(&config);
    let (n_train, n_overlaps) = (report.as_ref().unwrap().n_train, report.unwrap().n_overlaps);
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(review(out.path(), dir.path()).unwrap(), n_overlaps);
    let page = std::fs::read_to_string(dir.path().join("review.html")).unwrap();
    let hits = read_lines(&out.path().join("overlaps.jsonl"));
    assert!(hits.iter().all(|hit| page.contains(hit["row"].as_str().unwrap())));
    let path = dir.path().join("verdicts.jsonl");
    let judged = |config: &DataConfig| check(&DataConfig { verdicts: Some(path.clone()), ..config.clone() });
    assert_eq!(judged(&config).0.unwrap().n_train, n_train, "all say drop");
    let text = std::fs::read_to_string(&path).unwrap().replacen("\"drop\"", "\"keep\"", 1);
    std::fs::write(&path, format!("{text}{{\"row\": \"gone\", \"question_at\": \"x:1\", \"verdict\": \"keep\"}}\n"))
        .unwrap();
    let (report, again) = judged(&config);
    let report = report.unwrap();
    assert_eq!((report.n_train, report.n_overlaps, report.n_overlaps_kept), (n_train + 1, n_overlaps, 1));
    assert!(
        report.account.adds_up() && report.notices.iter().any(|notice| notice.starts_with("1 verdicts are on hits"))
    );
    let kept = hits[0]["row"].as_str().unwrap();
    assert!(read_lines(&again.path().join("train.jsonl")).iter().any(|row| row["id"] == kept));
    assert!(
        read_lines(&again.path().join("ledger.jsonl"))
            .iter()
            .any(|entry| entry["id"] == kept && entry["action"] == "kept")
    );
    // A second review keeps what was judged.
    review(out.path(), dir.path()).unwrap();
    assert!(std::fs::read_to_string(&path).unwrap().starts_with(text.lines().next().unwrap()));
    // Of a run that lacks all hits but one, the verdicts on the others stay.
    let text = std::fs::read_to_string(&path).unwrap();
    let fewer = tempfile::tempdir().unwrap();
    std::fs::write(fewer.path().join("overlaps.jsonl"), format!("{}\n", hits[1])).unwrap();
    assert_eq!(review(fewer.path(), dir.path()).unwrap(), 1);
    let sorted = |text: &str| text.lines().map(String::from).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(sorted(&std::fs::read_to_string(&path).unwrap()), sorted(&text));
    assert!(text.contains("\"gone\"") && text.contains("\"keep\""));
    std::fs::write(&path, "{\"row\": \"a\", \"verdict\": \"maybe\"}\n").unwrap();
    let error = judged(&config).0.unwrap_err().to_string();
    assert!(error.contains("verdicts.jsonl:1"), "{error}");
}

/// The wrong kind is found with the first block, before the broken row is read.
#[test]
fn a_shard_tells_broken_rows_before_a_row_of_another_kind_and_leaves_no_signatures() {
    let dir = tempfile::tempdir().unwrap();
    let (pairs, chat, out) = (dir.path().join("pairs.jsonl"), dir.path().join("chat.jsonl"), dir.path().join("out"));
    let pair = |at: usize| json!({"prompt": format!("Q {at}"), "chosen": "Yes.", "rejected": "No."}).to_string();
    std::fs::write(&pairs, (0..=shard::N_BLOCK).map(pair).collect::<Vec<_>>().join("\n")).unwrap();
    let row = json!({"instruction": "Q", "output": "A"}).to_string();
    let config = config(json!({"sources": [source("p", &pairs), source("c", &chat)]}));
    let refused = |text: String| {
        std::fs::write(&chat, text).unwrap();
        let signed = sign_shard(&config, "1/2".parse().unwrap(), &out, 2, &Progress::silent(), &Cancel::default());
        assert_eq!(std::fs::read_dir(&out).unwrap().count(), 0);
        signed.unwrap_err().to_string()
    };
    let error = refused(format!("{row}\n{{\n{row}\n"));
    assert!(error.starts_with("1 broken rows") && error.contains("chat.jsonl:2"), "{error}");
    let error = refused(row.clone());
    assert!(error.contains("pairs.jsonl:1 is a preference row"), "{error}");
}

#[test]
fn a_merge_is_held_against_the_files_as_they_were_read() {
    let dir = tempfile::tempdir().unwrap();
    let rows = dir.path().join("rows.jsonl");
    let lines: Vec<String> =
        (0..9).map(|i| json!({"instruction": format!("Q {}", "x".repeat(i % 8)), "output": "A"}).to_string()).collect();
    std::fs::write(&rows, lines.join("\n")).unwrap();
    let config = config(json!({"sources": [source("s", &rows)]}));
    let merged = merged(&config, 2, 1, dir.path());
    let cancel = Cancel::default();
    let mut run = Run::new(&config, 1, &cancel);
    run.read_sources(&Progress::silent()).unwrap();
    assert_eq!(shard::read_merged(&merged, &run).unwrap(), [(8, 0, "exact_duplicate")]);
    // As where the file was changed between the first look at it and its reading.
    run.report.sources[0].files.insert("rows.jsonl".into(), "other".into());
    let error = shard::read_merged(&merged, &run).unwrap_err().to_string();
    assert!(error.contains("made of other rows or settings"), "{error}");
}
