//! The page's static part: what it says of one run, of two, and of runs that cannot be compared.

use super::*;
use serde_json::{Value, json};
use std::path::PathBuf;

/// A run of one task whose first `n_right` of `n` answers are right.
fn folder(dir: &Path, name: &str, n: usize, n_right: usize, seed: usize) -> PathBuf {
    let out = dir.join(name);
    std::fs::create_dir(&out).unwrap();
    let acc = n_right as f64 / n as f64;
    let task = json!({
        "task": "t", "split": "test", "comparability": "not comparable: made up", "n": n, "acc": { "value": acc, "stderr": 0.05 },
        "n_unparsed": 3, "chance": 0.25, "majority_key": 0.3, "chosen_positions": [n - 3, 0, 0, 0], "key_positions": [n, 0, 0, 0],
        "warning": "98 % of the answers are option A", "notes": { "pool": "t/train", "pool_solved": 7 },
    });
    let results = json!({
        "model": { "name": name, "weights": "0", "text": "1", "dtype": "f32", "path": "none" },
        "settings": { "strategy": "loglikelihood", "seed": seed, "sampling": { "top_k": null, "temperature": 0.7 } },
        "tasks": [task], "groups": [],
    });
    std::fs::write(out.join("results.json"), results.to_string()).unwrap();
    let lines = |row: &dyn Fn(usize) -> Value| (0..n).map(|at| format!("{}\n", row(at))).collect::<String>();
    let sample = |at: usize| {
        let predicted = usize::from(at >= n_right);
        let choices: Vec<Value> = (0..4)
            .map(|one| json!({ "ids": [1], "logps": [-0.1], "logp": if one == predicted { -0.1 } else { -9.0 } }))
            .collect();
        json!({ "task": "t", "id": at.to_string(), "index": at, "subject": "", "n_choices": 4, "key": 0, "predicted": predicted,
            "correct": at < n_right, "correct_norm": true, "prompt_sha256": "", "prompt_ids": [1, 2, 3], "choices": choices })
    };
    std::fs::write(out.join("samples.jsonl"), lines(&sample)).unwrap();
    let question = |at: usize| json!({ "task": "t", "id": at.to_string(), "stem": "s", "choices": ["a", "b", "c", "d"], "key": 0, "subject": "" });
    std::fs::write(out.join("questions.jsonl"), lines(&question)).unwrap();
    out
}

/// As `aloe view` reads it.
fn read(folder: &Path) -> Run {
    Run::read(folder, &folder.file_name().unwrap().to_string_lossy(), &index_path(folder)).unwrap()
}

fn page(dir: &Path, run: &Path, against: &[&Path]) -> String {
    let against: Vec<Run> = against.iter().map(|folder| read(folder)).collect();
    let out = dir.join("page.html");
    write(&read(run), &against, &["a note".into()], &out).unwrap();
    let html = std::fs::read_to_string(out).unwrap();
    // What follows is packed.
    html.split("<section id=\"samples\"").next().unwrap().to_owned()
}

fn row(cells: &[&str]) -> String {
    let cell = |(at, cell): (usize, &&str)| match at {
        0 => format!("<td>{cell}</td>"),
        at if at == cells.len() - 1 => format!("<td>{cell}</td>"),
        _ => format!("<td class=\"n\">{cell}</td>"),
    };
    cells.iter().enumerate().map(cell).collect()
}

/// By hand: Wilson's 95 % interval of 60 in 100 is 50.20 to 69.06 (Newcombe 1998, method 3).
#[test]
fn one_run_is_shown_with_its_table_interval_warnings_settings_and_plots() {
    let dir = tempfile::tempdir().unwrap();
    let html = page(dir.path(), &folder(dir.path(), "one", 100, 60, 3), &[]);
    let cells = ["t", "100", "60.00", "5.00", "50.20 to 69.06", "3", "25.00", "not comparable: made up"];
    assert!(html.contains(&row(&cells)), "{html}");
    for words in [
        "Evaluation one",
        "<li>a note</li>",
        "<li>t: 98 % of the answers are option A</li>",
        "<li>t: pool t/train, pool_solved 7</li>",
        "<td>sampling.top_k</td><td>none</td>",
        "<td>seed</td><td>3</td>",
        "Calibration: right answers by confidence",
        "Position bias of one",
        "To the 100 samples",
    ] {
        assert!(html.contains(words), "{words}: {html}");
    }
    assert!(!html.contains("Vote agreement") && !html.contains("A against B"), "{html}");
}

/// The direction is that of the command: A is the run, B what it is held against. 60 and 20 of the same 100: 40 only A has right.
#[test]
fn two_runs_are_compared_as_a_minus_b_over_the_questions_of_both_and_their_differences_are_marked() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (folder(dir.path(), "one", 100, 60, 3), folder(dir.path(), "two", 120, 20, 4));
    let html = page(dir.path(), &a, &[&b]);
    assert!(html.contains("100 of A&#39;s 100 and B&#39;s 120 questions are in both runs"), "{html}");
    assert!(html.contains("<td>t</td><td class=\"n\">100</td><td class=\"n\">60.00</td><td class=\"n\">20.00</td><td class=\"n\">+40.00</td>"), "{html}");
    assert!(
        html.contains("<td class=\"n\">40</td><td class=\"n\">0</td><td class=\"n\">0.0000</td><td>higher</td>"),
        "{html}"
    );
    assert!(html.contains("<td>seed</td><td>differs</td><td>3</td><td>4</td>"), "{html}");
    assert!(html.contains("<td>strategy</td><td></td><td>loglikelihood</td><td>loglikelihood</td>"), "{html}");
    let html = page(dir.path(), &b, &[&a]);
    assert!(html.contains("<td class=\"n\">-40.00</td>") && html.contains("<td>lower</td>"), "{html}");
}

/// Eight and nine questions, the first six right in A alone: by hand 2 / 2^6 = 0.03125 on the first task and over all, 1 on the second; of
/// three tests Holm's 0.09375, as `aloe compare` has it.
#[test]
fn one_run_against_one_over_several_tasks_is_adjusted_as_several_runs_are() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (folder(dir.path(), "one", 17, 6, 3), folder(dir.path(), "two", 17, 0, 3));
    for run in [&a, &b] {
        let path = run.join("samples.jsonl");
        let lines = std::fs::read_to_string(&path).unwrap();
        let named = |(at, line): (usize, &str)| {
            if at < 8 { format!("{line}\n") } else { line.replace("\"task\":\"t\"", "\"task\":\"u\"") + "\n" }
        };
        std::fs::write(&path, lines.lines().enumerate().map(named).collect::<String>()).unwrap();
    }
    let html = page(dir.path(), &a, &[&b]);
    let adjusted = "<td class=\"n\">0.0938</td><td>no difference can be concluded</td>";
    assert_eq!(html.matches(adjusted).count(), 2, "{html}");
    assert!(
        html.contains("3 tests were made; verdicts hold for all of them together at the 0.05 level (Holm)."),
        "{html}"
    );
}

/// The second run has the same ids and keys, and another text under one of them.
#[test]
fn questions_of_one_name_and_another_text_are_refused_with_both_runs_named() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (folder(dir.path(), "one", 10, 6, 3), folder(dir.path(), "two", 10, 2, 4));
    for (run, digest) in [(&a, "aa"), (&b, "bb")] {
        let path = run.join("samples.jsonl");
        let lines = std::fs::read_to_string(&path).unwrap();
        let with = lines.replace("\"id\":\"4\"", &format!("\"id\":\"4\",\"stem_sha256\":\"{digest}\""));
        std::fs::write(&path, with).unwrap();
    }
    let html = page(dir.path(), &a, &[&b]);
    let words = "cannot compare: t/4 is not the same question in both runs: its text differs (the first run is two, the second one)";
    assert!(html.contains(words) && !html.contains("95 % interval of"), "{html}");
}

#[test]
fn runs_without_a_question_in_common_say_so_in_place_of_a_verdict() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (folder(dir.path(), "one", 10, 6, 3), folder(dir.path(), "two", 10, 2, 4));
    let other = std::fs::read_to_string(b.join("samples.jsonl")).unwrap().replace("\"task\":\"t\"", "\"task\":\"u\"");
    std::fs::write(b.join("samples.jsonl"), other).unwrap();
    let html = page(dir.path(), &a, &[&b]);
    assert!(html.contains("0 of A&#39;s 10 and B&#39;s 10 questions are in both runs"), "{html}");
    assert!(html.contains("cannot compare: the runs hold 0 questions of each other"), "{html}");
}

/// Three runs of 100 questions, 60, 40 and 58 right: by hand, Holm's p of the first difference is twice its own, and the second of 2 in 100
/// stands where it was (binomtest(0, 2).pvalue = 0.5; scipy: binomtest(0, 20).pvalue = 1.9e-6).
#[test]
fn several_runs_stand_in_one_table_and_plot_and_their_verdicts_hold_together() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b, c] = [("one", 60), ("two", 40), ("three", 58)].map(|(name, n)| folder(dir.path(), name, 100, n, n));
    let html = page(dir.path(), &a, &[&b, &c]);
    assert!(html.contains("Evaluation one against two, three"), "{html}");
    for (letter, acc) in [("A", "60.00"), ("B", "40.00"), ("C", "58.00")] {
        let cells = format!("<td>{letter}</td><td>t</td><td class=\"n\">100</td><td class=\"n\">{acc}</td>");
        assert!(html.contains(&cells), "{letter}: {html}");
    }
    let interval = |letter: &str| {
        let part = html.split(&format!("A against {letter}, question by question")).nth(1).unwrap();
        let cells = part.split(" to ").next().unwrap().rsplit('>').next().unwrap().to_owned();
        let end = part.split(" to ").nth(1).unwrap().split('<').next().unwrap();
        format!("{cells} to {end}")
    };
    for (letter, cells, verdict) in [
        ("B", ["100", "60.00", "40.00", "+20.00", &interval("B"), "20", "0", "0.0000", "0.0000"], "higher"),
        (
            "C",
            ["100", "60.00", "58.00", "+2.00", &interval("C"), "2", "0", "0.5000", "0.5000"],
            "no difference can be concluded",
        ),
    ] {
        let cells: String = cells.map(|cell| format!("<td class=\"n\">{cell}</td>")).join("");
        assert!(html.contains(&format!("<td>t</td>{cells}<td>{verdict}</td>")), "{letter}: {html}");
    }
    assert!(
        html.contains("2 tests were made; verdicts hold for all of them together at the 0.05 level (Holm)."),
        "{html}"
    );
    assert!(html.contains("<td>seed</td><td>differs</td><td>60</td><td>40</td><td>58</td>"), "{html}");
    let plot = html.split("Plots</h2>").nth(1).unwrap().split("</figure>").next().unwrap();
    for bar in ["A: one (loglikelihood): 60.00", "B: two (loglikelihood): 40.00", "C: three (loglikelihood): 58.00"] {
        assert!(plot.contains(&format!("<title>t, {bar}</title>")), "{bar}: {plot}");
    }
}

/// Changes `results.json` of a run.
fn change(folder: &Path, change: impl Fn(&mut Value)) {
    let path = folder.join("results.json");
    let mut results: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    change(&mut results);
    std::fs::write(path, results.to_string()).unwrap();
}

fn part(name: &str, n: usize, acc: f64) -> Value {
    json!({ "part": name, "n": n, "acc": { "value": acc, "stderr": 0.05 } })
}

/// A group's row behind the cells of words.
fn group_row(words: &[&str], figures: [&str; 3]) -> String {
    let words: String = words.iter().map(|cell| format!("<td>{cell}</td>")).collect();
    words + &figures.map(|cell| format!("<td class=\"n\">{cell}</td>")).join("")
}

/// By hand (stats.rs): Wilson's interval of 10 in 20 is 29.93 to 70.07, of 0 in 10 it ends at 27.75, of 20 in 20 it starts at 83.89; an
/// interval that the file holds, of questions about one abstract, stands as it is.
#[test]
fn a_task_is_told_by_subject_specialty_and_length_with_intervals() {
    let dir = tempfile::tempdir().unwrap();
    let one = folder(dir.path(), "one", 30, 10, 3);
    assert!(!page(dir.path(), &one, &[]).contains("By subject"), "nothing to tell");
    change(&one, |results| {
        let task = &mut results["tasks"][0];
        task["by_subject"] = json!([part("cardiology", 20, 0.5), part("renal & <b>", 10, 0.0)]);
        task["by_specialty"] = json!([part("Neurology", 20, 1.0)]);
        task["by_length"] = json!([part("10 to 99 characters", 30, 0.5)]);
        task["by_length"][0]["acc"]["interval"] = json!({ "low": 0.1, "high": 0.9 });
    });
    let html = page(dir.path(), &one, &[]);
    let section = html.split("<h2>By subject, specialty and question length</h2>").nth(1).unwrap();
    let rows = [
        group_row(&["subject", "cardiology"], ["20", "50.00", "29.93 to 70.07"]),
        group_row(&["subject", "renal &amp; &lt;b&gt;"], ["10", "0.00", "0.00 to 27.75"]),
        group_row(&["specialty", "Neurology"], ["20", "100.00", "83.89 to 100.00"]),
        group_row(&["length", "10 to 99 characters"], ["30", "50.00", "10.00 to 90.00"]),
    ];
    let body = format!("<tr>{}</tr>\n</tbody>", rows.join("</tr>\n<tr>"));
    assert!(section.contains("<h3>t</h3>") && section.contains(&body), "{section}");
    assert!(!section.contains("<details>"), "{section}");
}

/// Thirteen rows are folded, twelve are not. A group that B alone has follows A's.
#[test]
fn groups_of_several_runs_stand_beside_each_other_and_a_long_table_is_folded() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = ["one", "two"].map(|name| folder(dir.path(), name, 10, 5, 3));
    let subjects = |folder: &Path, names: &[&str], acc: f64| {
        let parts: Vec<Value> = names.iter().map(|name| part(name, 20, acc)).collect();
        change(folder, |results| results["tasks"][0]["by_subject"] = json!(parts));
    };
    let seven = ["s1", "s2", "s3", "s4", "s5", "s6", "s7"];
    subjects(&a, &seven[..6], 0.5);
    subjects(&b, &["s7", "s1", "s2", "s3", "s4", "s5"], 1.0);
    let html = page(dir.path(), &a, &[&b]);
    let of = |letter: &str, group: &str| {
        let figures =
            if letter == "A" { ["20", "50.00", "29.93 to 70.07"] } else { ["20", "100.00", "83.89 to 100.00"] };
        group_row(&["subject", group, letter], figures)
    };
    let body = [of("A", "s1"), of("B", "s1"), of("A", "s2")].join("</tr>\n<tr>");
    assert!(html.contains(&body) && !html.contains("<details>"), "{html}");
    let last = [of("A", "s6"), of("B", "s7")].join("</tr>\n<tr>");
    assert!(html.contains(&format!("{last}</tr>\n</tbody>")), "{html}");
    subjects(&a, &seven, 0.5);
    let html = page(dir.path(), &a, &[&b]);
    assert!(html.contains("<details>\n<summary>t: 13 rows</summary>\n<div class=\"wide\"><table>"), "{html}");
}

/// By hand: Wilson's intervals as above; 0.5 -+ 1.959964 * 0.01 is 48.04 to 51.96, and a standard error of 0 says nothing.
#[test]
fn questions_that_training_rows_hold_stand_apart_under_their_task_and_averages_have_an_interval() {
    let dir = tempfile::tempdir().unwrap();
    let one = folder(dir.path(), "one", 30, 10, 3);
    change(&one, |results| {
        let clean = part("clean: no training row holds the question", 20, 0.5);
        results["tasks"][0]["by_training"] = json!([clean, part("dirty: a training row holds it", 10, 0.0)]);
        results["tasks"][0]["by_pool"] = json!([part("the example pool does not", 20, 1.0)]);
        let average = |name: &str, value: f64, stderr: f64| json!({ "name": name, "n": 7045, "tasks": [], "comparability": "comparable", "acc": { "value": value, "stderr": stderr } });
        results["groups"] = json!([average("multimedqa", 0.5, 0.01), average("mean", 1.0, 0.0)]);
    });
    let html = page(dir.path(), &one, &[]);
    let apart = |name: &str, figures: [&str; 3], part: &str| {
        let [n, acc, interval] = figures;
        let words = format!("not comparable: a part of the questions: {part}");
        row(&[name, n, acc, "5.00", interval, "", "", &words])
    };
    let rows = [
        apart("t (clean)", ["20", "50.00", "29.93 to 70.07"], "clean: no training row holds the question"),
        apart("t (dirty)", ["10", "0.00", "0.00 to 27.75"], "dirty: a training row holds it"),
        apart("t (the example pool does not)", ["20", "100.00", "83.89 to 100.00"], "the example pool does not"),
        row(&["multimedqa", "7045", "50.00", "1.00", "48.04 to 51.96 (normal)", "", "", "comparable"]),
        row(&["mean", "7045", "100.00", "0.00", "", "", "", "comparable"]),
    ];
    assert!(html.contains(&rows.join("</tr>\n<tr>")), "{html}");
}

#[test]
fn a_line_that_is_no_sample_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let folder = folder(dir.path(), "one", 10, 6, 3);
    let lines = std::fs::read_to_string(folder.join("samples.jsonl")).unwrap();
    std::fs::write(folder.join("samples.jsonl"), &lines[..lines.len() - 9]).unwrap();
    let error = Run::read(&folder, "one", &index_path(&folder)).err().unwrap().to_string();
    assert!(error.contains("samples.jsonl: line 10: "), "{error}");
}
