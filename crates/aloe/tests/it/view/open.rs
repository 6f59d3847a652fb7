//! The page of answers in free text, over a made-up run: three judges whose verdicts follow a rule that is written here.

use super::made::{mixed, write_lines};
use super::{Browser, listed, text_of, view};
use crate::run;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const N: usize = 40;
/// An answer that would run if it were markup.
const EVIL: &str = "<img src=x onerror=\"window.ran=1\"></script><script>window.ran=1</script>";

/// What judge `judge` says of answer `at`; none where the answer is empty or refused.
fn said(at: usize, judge: usize, salt: usize) -> Option<&'static str> {
    let verdict = ["right", "right", "wrong", "wrong", "unparsed"][mixed(at * 8 + judge, salt) % 5];
    (!is_empty(at)).then_some(verdict)
}

fn is_empty(at: usize) -> bool {
    at % 13 == 5 || is_refused(at)
}

fn is_refused(at: usize) -> bool {
    at % 17 == 3
}

fn count(at: usize, salt: usize, verdict: &str) -> usize {
    (0..3).filter(|&judge| said(at, judge, salt) == Some(verdict)).count()
}

fn is_right(at: usize, salt: usize) -> bool {
    count(at, salt, "right") >= 2
}

fn answer(at: usize, salt: usize) -> String {
    if is_empty(at) { String::new() } else { format!("{EVIL} answer {at} of {salt}") }
}

fn sample(at: usize, salt: usize, is_judged: bool) -> Value {
    let verdict = |judge: usize| {
        Some(
            json!({ "judge": format!("j{judge}"), "verdict": said(at, judge, salt)?, "text": format!("reply {judge} on {at}") }),
        )
    };
    let mut row = json!({
        "task": "careqa_open", "id": format!("open-{at}"), "index": at, "category": (["renal", "cardiology"][at % 2]),
        "question": format!("{EVIL} question {at}?"), "reference": format!("reference {at}"), "answer": answer(at, salt),
        "finish_reason": "stop", "overlap": { "rouge1": 0.5, "rouge2": 0.25, "rougeL": 0.5, "bleu": null },
    });
    if is_judged {
        row["verdicts"] = (0..3).filter_map(verdict).collect();
        row["majority"] = json!(is_right(at, salt));
        row["full_agreement"] = json!(count(at, salt, "right") == 3);
    }
    if is_refused(at) {
        row["refused"] = json!("longer than the context");
    }
    row
}

/// The shares of a run: value and interval are the file's, and stand on the page as they stand there.
fn share(value: f64) -> Value {
    json!({ "value": value, "stderr": 0.05, "interval": { "low": value / 2.0, "high": value + 0.1 } })
}

fn judged(dir: &Path, name: &str, salt: usize) -> PathBuf {
    let folder = dir.join(name);
    std::fs::create_dir(&folder).unwrap();
    let model = |name: &str| json!({ "name": name, "weights": "0", "text": "1", "dtype": "f32", "path": "none" });
    let judge = |judge: usize| json!({ "name": format!("j{judge}"), "model": model(&format!("j{judge}")), "prompt_version": 1, "max_new_tokens": 9 });
    let of_judge = |judge: usize| {
        let accuracy = share(0.2 + 0.1 * judge as f64);
        json!({ "judge": format!("j{judge}"), "accuracy": accuracy, "n_unparsed": 4, "at_most": 0.25 + 0.1 * judge as f64, "with_majority": share(0.75) })
    };
    let error = json!({
        "judge": "majority", "n_labelled": 10, "n_right": 6, "sensitivity": share(0.8), "specificity": null,
        "not_corrected": "no answer is labelled wrong",
    });
    let task = json!({
        "task": "careqa_open", "split": "test", "comparability": "not comparable: made up", "n": N, "n_empty": 5, "n_refused": 3, "n_cut": 0,
        "overlap": { "n": N, "rouge1": share(0.41), "rouge2": share(0.21), "rougeL": share(0.31), "bleu": share(0.02) },
        "panel": {
            "n": N, "n_judged": 35, "judges": (0..3).map(of_judge).collect::<Vec<_>>(), "majority": share(0.3), "n_ties": 2,
            "majority_at_most": 0.6, "full_agreement": share(0.1), "fleiss_kappa": { "n": 30, "kappa": 0.1234 },
            "cohens_kappa": [{ "first": "j0", "second": "j1", "n": 31, "kappa": null }],
        },
        "judge_errors": [error],
    });
    let results = json!({
        "model": model(name), "settings": { "strategy": "open", "protocol": "aloe", "seed": 0 }, "answers_sha256": "0",
        "judges": (0..3).map(judge).collect::<Vec<_>>(), "tasks": [task],
    });
    std::fs::write(folder.join("results.json"), results.to_string()).unwrap();
    write_lines(&folder.join("samples.jsonl"), (0..N).map(|at| sample(at, salt, true)));
    folder
}

#[test]
fn judged_answers_are_found_by_what_the_judges_said_and_shown_with_reference_and_verdicts() {
    let Some(mut browser) = Browser::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let page = view(&judged(dir.path(), "one", 3), &[]);
    let has = |at: usize, verdict: &str| count(at, 3, verdict) > 0;
    let filters: [(&str, &dyn Fn(usize) -> bool); 9] = [
        ("", &|_| true),
        ("#outcome=right", &|at| is_right(at, 3)),
        ("#outcome=wrong", &|at| !is_right(at, 3)),
        ("#outcome=unparsed", &|at| has(at, "unparsed")),
        ("#outcome=split", &|at| has(at, "right") && has(at, "wrong")),
        ("#outcome=tie", &|at| has(at, "right") && count(at, 3, "right") == count(at, 3, "wrong")),
        ("#outcome=refused", &is_refused),
        ("#subject=renal&outcome=split", &|at| at % 2 == 0 && has(at, "right") && has(at, "wrong")),
        ("#search=reply 2 on 7&in=texts", &|at| at == 7),
    ];
    for (fragment, keep) in filters {
        browser.open(&page, fragment);
        if fragment.contains("in=texts") {
            browser.until("document.documentElement.dataset.scanned");
        }
        let expected: Vec<usize> = (0..N).filter(|&at| keep(at)).map(|at| at + 1).collect();
        assert!(!expected.is_empty() && (fragment.is_empty() || expected.len() < N), "{fragment} tests nothing");
        assert_eq!(listed(&mut browser), expected, "{fragment}");
        let n_right = expected.iter().filter(|&&at| is_right(at - 1, 3)).count();
        let share = format!("{:.2} % right", 100.0 * n_right as f64 / expected.len() as f64);
        let told = text_of(&mut browser, "#count");
        assert!(told.starts_with(&format!("{} of {N} samples, {share}", expected.len())), "{fragment}: {told}");
    }
    let hidden = browser.eval("[...document.querySelectorAll('#filters label[hidden] select')].map((one) => one.id)");
    assert_eq!(hidden, json!(["task", "against", "changed", "key", "answer", "shown"]));

    let at = (0..N).find(|&at| count(at, 3, "right") == 2 && count(at, 3, "unparsed") == 1).unwrap();
    browser.open(&page, &format!("#open={}", at + 1));
    browser.until("document.documentElement.dataset.opened");
    assert_eq!(text_of(&mut browser, "#detail .stem-text"), format!("{EVIL} question {at}?"));
    assert_eq!(text_of(&mut browser, "#detail .reference"), format!("reference {at}"));
    assert_eq!(text_of(&mut browser, "#detail .answer .text"), answer(at, 3));
    let about = text_of(&mut browser, "#detail .answer .soft");
    assert_eq!(about, "ended by a stop token or text · ROUGE-1 50.0 · ROUGE-2 25.0 · ROUGE-L 50.0");
    assert_eq!(text_of(&mut browser, "#detail h4"), "✓ right, 2 of 3 judges call it right");
    assert_eq!(text_of(&mut browser, &format!("#row{at} .vs")), "2/3");
    let verdicts = browser.eval("[...document.querySelectorAll('#detail .verdict')].map((one) => [...one.children].map((part) => part.textContent))");
    let words = |judge| if said(at, judge, 3) == Some("unparsed") { "no verdict" } else { "right" };
    let expected: Vec<[String; 2]> =
        (0..3).map(|judge| [format!("judge j{judge}: {}", words(judge)), format!("reply {judge} on {at}")]).collect();
    assert_eq!(verdicts, json!(expected));
    assert_eq!(browser.eval("typeof window.ran"), "undefined");
    assert_eq!(browser.eval("document.querySelectorAll('img').length"), 0);
}

/// By hand from the made-up results: of the majority more than a tenth hangs on missing verdicts.
#[test]
fn the_page_of_a_judged_run_has_all_its_figures_and_no_accuracy_that_hangs_on_missing_verdicts() {
    let dir = tempfile::tempdir().unwrap();
    let html = std::fs::read_to_string(view(&judged(dir.path(), "one", 3), &[])).unwrap();
    let cells = |what: &str, n: usize, value: &str| {
        let line = format!("<tr><td>careqa_open</td><td>{what}</td><td class=\"n\">{n}</td><td>{value}</td></tr>");
        assert!(html.contains(&line), "{line} is not in {}", html.split("<section").next().unwrap());
    };
    cells(
        "right by the majority of 3 judges",
        40,
        "not stated: 30.0 to 60.0 % as the missing verdicts mean wrong or right",
    );
    cells("right by all 3 judges", 40, "10.0 % (95 %: 5.0 to 20.0)");
    cells("right by judge j0", 40, "20.0 % (95 %: 10.0 to 30.0)");
    cells("no verdict of judge j0, counted as wrong", 35, "4");
    cells("verdicts of judge j0 that are the majority&#39;s", 31, "75.0 % (95 %: 37.5 to 85.0)");
    cells("as many judges for the answer as against it, counted as wrong", 35, "2");
    cells("Fleiss&#39; kappa", 30, "0.123");
    cells("Cohen&#39;s kappa of j0 and j1", 31, "undefined, all verdicts are alike");
    cells("sensitivity of the majority, by labels", 6, "80.0 % (95 %: 40.0 to 90.0)");
    cells("specificity of the majority, by labels", 4, "not known");
    cells("right by the majority, its error taken out (Rogan-Gladen)", 10, "none: no answer is labelled wrong");
    cells("ROUGE-L", 40, "31.0 % (95 %: 15.5 to 41.0)");
    cells("questions refused by the model or its server", 40, "3");
    for words in ["<li>careqa_open: not comparable: made up</li>", "<td>judge j2</td>", "Evaluation one"] {
        assert!(html.contains(words), "{words}");
    }
    assert!(!html.contains("answers cut at the limit"), "none was cut");
    let plot = html.split("<figure>").nth(1).and_then(|rest| rest.split("</figure>").next()).unwrap();
    let bars: Vec<&str> =
        plot.split("<title>careqa_open: ").skip(1).filter_map(|bar| bar.split("</title>").next()).collect();
    assert_eq!(bars, ["all judges: 10.00", "j0: 20.00", "j1: 30.00", "j2: 40.00"], "{plot}");
    assert_eq!(plot.matches("class=\"i\"").count(), 4, "each with its interval");
    assert!(plot.contains("Answers judged right by task and judge"), "{plot}");
}

#[test]
fn two_judged_runs_stand_on_one_page_and_other_panels_are_compared_with_no_verdict() {
    let Some(mut browser) = Browser::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (judged(dir.path(), "one", 3), judged(dir.path(), "two", 4));
    let page = view(&one, &[&two]);
    browser.open(&page, "#changed=right-wrong");
    let expected: Vec<usize> = (0..N).filter(|&at| is_right(at, 3) && !is_right(at, 4)).map(|at| at + 1).collect();
    assert!(!expected.is_empty(), "tests nothing");
    assert_eq!(listed(&mut browser), expected);
    let html = std::fs::read_to_string(&page).unwrap();
    let n_only_other = (0..N).filter(|&at| !is_right(at, 3) && is_right(at, 4)).count();
    let only = format!("<td class=\"n\">{}</td><td class=\"n\">{n_only_other}</td>", expected.len());
    assert!(html.contains(&only), "{only}");

    let path = two.join("results.json");
    let results = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, results.replace("\"prompt_version\":1", "\"prompt_version\":2")).unwrap();
    let html = std::fs::read_to_string(view(&one, &[&two])).unwrap();
    assert!(html.contains("cannot compare: two was judged by j0, j1, j2 and one by j0, j1, j2"), "another panel");
    let closed = super::made::run(dir.path(), "closed", &super::all(3, 1, 3));
    let (_, stderr, code) = run(&["view", one.to_str().unwrap(), "--against", closed.to_str().unwrap()]);
    assert!(code == 2 && stderr.contains("the questions of one are open, and those of closed are not"), "{stderr}");
}

#[test]
fn open_answers_under_way_are_shown_without_a_verdict() {
    let dir = tempfile::tempdir().unwrap();
    let partial = dir.path().join(".growing.partial");
    std::fs::create_dir(&partial).unwrap();
    let decides = json!({ "config": { "strategy": "open", "judge_prompt_version": 1 } });
    std::fs::write(partial.join(".decides.json"), decides.to_string()).unwrap();
    let (mut log, _) = aloe_record::log::Log::open::<Value>(&partial.join(".answers.log")).unwrap();
    log.append(&json!({ "run": "fingerprint" })).unwrap();
    for at in [7, 2] {
        log.append(&json!({ "answered": [at, sample(at, 3, false)] })).unwrap();
    }
    let page = view(&dir.path().join("growing"), &[]);
    let html = std::fs::read_to_string(&page).unwrap();
    assert!(html.contains("growing: unfinished: 2 of an unknown number of questions"), "{}", &html[..4000]);
    assert!(html.contains("No figures yet"));
    let Some(mut browser) = Browser::start() else { return };
    browser.open(&page, "#open=1");
    browser.until("document.documentElement.dataset.opened");
    assert_eq!(text_of(&mut browser, "#detail h3"), "careqa_open/open-2");
    assert_eq!(text_of(&mut browser, "#detail h4"), "· not judged");
    assert_eq!(text_of(&mut browser, "#count"), "2 of 2 samples, not judged");
    assert_eq!(text_of(&mut browser, "#detail .answer .text"), answer(2, 3));
}
