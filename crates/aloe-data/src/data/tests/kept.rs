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

/// All that a run holds once its sources are read, as text.
fn read_on(config: &DataConfig, n_threads: usize) -> Result<String> {
    read_by(Run::new(config, n_threads, &Cancel::default()))
}

fn read_by(mut run: Run<'_>) -> Result<String> {
    run.read_sources(&Progress::silent())?;
    let report = serde_json::to_value(&run.report).unwrap();
    let read = format!("{:?} {report} {}", run.items, run.ledger.len());
    run.stop_at_broken_rows()?;
    Ok(read)
}

/// The same with every file read row by row and none in parallel: as one JSON array each.
fn as_arrays(dir: &Path) {
    for name in ["a", "b", "c", "d"] {
        let text = std::fs::read_to_string(dir.join(format!("{name}.jsonl"))).unwrap();
        let path = dir.join("other").join(format!("{name}.jsonl"));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, format!("[{}]", text.replace('\n', ",\n"))).unwrap();
    }
}

#[test]
fn rows_are_the_same_on_any_number_of_threads_and_in_any_format() {
    let dir = tempfile::tempdir().unwrap();
    let config = sources(dir.path());
    let expected = read_on(&config, 1).unwrap();
    assert!(expected.contains("chosen_rated_below_rejected") && expected.contains("seen"));
    assert!(read_on(&config, 2).unwrap() == expected && read_on(&config, 3).unwrap() == expected);
    as_arrays(dir.path());
    let digests = |text: &str| regex::Regex::new("[0-9a-f]{64}").unwrap().replace_all(text, "").into_owned();
    let mut other = config.clone();
    for source in &mut other.sources {
        source.path = dir.path().join("other").join(source.path.file_name().unwrap());
    }
    let found = read_on(&other, 2).unwrap().replace("/other/", "/");
    assert!(digests(&found) == digests(&expected));
}

/// Of a file of several batches whose second row is broken, and of those behind it.
#[test]
fn no_row_is_kept_from_the_first_broken_one_on_and_all_broken_rows_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = sources(dir.path());
    let broken = "{\"instruction\": 1}\n";
    let first = format!("{{\"instruction\": \"Q\", \"output\": \"A\"}}\n{broken}");
    let path = dir.path().join("a.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, first + &format!("{text}\n").repeat(10) + broken).unwrap();
    for name in ["b.jsonl", "d.jsonl"] {
        let path = dir.path().join(name);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text + "\n" + broken).unwrap();
    }
    // What is wrong with a source as a whole is told behind what is wrong with rows.
    config.sources[3].expect_rows = Some(7);
    for n_threads in [1, 2] {
        let cancel = Cancel::default();
        let mut run = Run::new(&config, n_threads, &cancel);
        run.read_sources(&Progress::silent()).unwrap();
        assert!(run.items.is_empty() && run.ledger.is_empty() && !run.is_kept);
        assert_eq!(run.items.capacity(), 0, "their memory is given back");
        let error = run.stop_at_broken_rows().unwrap_err().to_string();
        for at in ["a.jsonl:2", "a.jsonl:30003", "b.jsonl:4", "d.jsonl:41"] {
            assert!(error.contains(at), "{at} in {error}");
        }
    }
}

#[test]
fn a_million_rows_do_not_say_a_million_times_what_they_say_alike() {
    assert!(size_of::<Item>() <= 104, "{} bytes beside a row's texts", size_of::<Item>());
    let dir = tempfile::tempdir().unwrap();
    let config = sources(dir.path());
    let cancel = Cancel::default();
    let mut run = Run::new(&config, 2, &cancel);
    run.read_sources(&Progress::silent()).unwrap();
    let (first, last) = (&run.items[0], run.items.last().unwrap());
    assert_eq!((first.about.task.as_ref(), run.items[1].about.task.as_ref()), ("instruction", "instruction"));
    assert!(
        run.items[..3000].iter().all(|item| std::sync::Arc::ptr_eq(&item.about, &first.about) && item.rare.is_none())
    );
    assert!(std::sync::Arc::ptr_eq(&last.about, &first.about), "also behind rows that say something else");
    let pair = run.items.iter().find(|item| matches!(item.body, Body::Pair(_))).unwrap();
    assert_eq!(pair.about.task, "preference");
}

/// Bounds at the first row, amid the first file, at the last row, and one that all rows stay within.
#[test]
fn more_rows_than_are_held_unchecked_are_checked_before_they_are_kept_and_are_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let config = sources(dir.path());
    let expected = read_on(&config, 2).unwrap();
    let (cancel, silent) = (Cancel::default(), Progress::silent());
    let within = |most_unchecked: usize| Run { most_unchecked, ..Run::new(&config, 2, &cancel) };
    let mut run = within(usize::MAX);
    run.read_all(&silent).unwrap();
    let all = run.n_unchecked;
    assert!(run.is_kept && run.items.len() == 3041 && all > 3041 * 104);
    for most in [0, all / 2, all - 1, all] {
        let mut run = within(most);
        run.read_all(&silent).unwrap();
        assert_eq!(
            (run.is_kept, run.items.capacity() == 0, run.problems.total),
            (most == all, most < all, 0),
            "{most}"
        );
        assert!(read_by(within(most)).unwrap() == expected, "{most} of {all}");
    }
    let path = dir.path().join("d.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text + "\n{").unwrap();
    let error = read_by(within(0)).unwrap_err().to_string();
    assert!(error.contains("1 broken rows") && error.contains("d.jsonl:41"), "{error}");
}
