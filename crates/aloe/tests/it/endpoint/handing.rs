//! How an evaluation hands its questions to servers: all connections have work, each answer is kept as it comes, and a question that
//! the server refuses is counted.

use super::server::{Reply, Server, text, texts};
use super::{eval, lines, read, starter, stories_with_template};
use crate::{run, stories};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

fn until(what: impl Fn() -> bool, at_most: Duration) {
    let started = Instant::now();
    while !what() && started.elapsed() < at_most {
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Twenty samples a question; the server keeps each request until sixteen are there, or for three seconds.
#[test]
fn twenty_samples_of_thirty_questions_keep_all_sixteen_connections_at_work() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let folder = stories_with_template(&stories, &dir.path().join("model"));
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::clone(&most);
    let server = Server::start(move |_, asked| {
        seen.fetch_max(1 + now.fetch_add(1, Ordering::SeqCst), Ordering::SeqCst);
        until(|| seen.load(Ordering::SeqCst) >= 16, Duration::from_secs(3));
        now.fetch_sub(1, Ordering::SeqCst);
        texts(&vec!["Answer: A".to_owned(); asked.body["n"].as_u64().unwrap() as usize])
    });
    let more = ["--tasks", "starter_mcqa", "--limit", "30", "--strategy", "sc-cot", "--shots", "0"];
    let tokenizer = ["--set", "n_samples=20", "--tokenizer", folder.to_str().unwrap()];
    let (_, stderr, code) = eval(&server.model(), &dir.path().join("out"), &[&more[..], &tokenizer].concat());
    assert_eq!(code, 0, "{stderr}");
    assert_eq!((server.n_asked(), most.load(Ordering::SeqCst)), (2 * 30, 16), "each is sent twice");
}

/// The first request is answered last, with an answer that cannot be used: 59 others were answered by then.
#[test]
fn every_answer_behind_the_first_failure_is_kept_and_none_is_asked_for_again() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let folder = stories_with_template(&stories, &dir.path().join("model"));
    let (is_up, n_seen) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let up = Arc::clone(&is_up);
    let server = Server::start(move |at, _| {
        n_seen.fetch_add(1, Ordering::SeqCst);
        if at == 0 && !up.load(Ordering::SeqCst) {
            until(|| n_seen.load(Ordering::SeqCst) == 60, Duration::from_secs(60));
            // The others' answers are on their way.
            std::thread::sleep(Duration::from_millis(200));
            return Reply::Json(json!({ "choices": [] }));
        }
        text(&format!("Answer: {}", ["A", "B"][at % 2]))
    });
    let out = dir.path().join("out");
    let more =
        ["--tasks", "starter_mcqa", "--strategy", "cot", "--shots", "0", "--tokenizer", folder.to_str().unwrap()];
    let (_, stderr, code) = eval(&server.model(), &out, &more);
    assert_eq!(code, 1, "{stderr}");
    let n_before = server.n_asked();
    is_up.store(true, Ordering::SeqCst);
    let (_, stderr, code) = eval(&server.model(), &out, &more);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!((n_before, server.n_asked() - n_before), (60, 1 + 60), "the one that failed, and all a second time");
    let samples = lines(&out.join("samples.jsonl"));
    let places: Vec<u64> = samples.iter().map(|sample| sample["index"].as_u64().unwrap()).collect();
    assert_eq!(places, (0..60).collect::<Vec<u64>>(), "the order of the questions");
}

/// A server that never takes the prompt it saw first, as one whose context is too small for it.
fn choosy() -> Server {
    let first = Mutex::new(None::<Value>);
    Server::start(move |_, asked| {
        let mut first = first.lock().unwrap();
        match first.get_or_insert_with(|| asked.body["prompt"].clone()) == &asked.body["prompt"] {
            true => Reply::Status("400 Bad Request", ""),
            false => text("Answer: A"),
        }
    })
}

#[test]
fn a_question_that_the_server_refuses_is_counted_wrong_and_the_evaluation_ends() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let folder = stories_with_template(&stories, &dir.path().join("model"));
    let more =
        ["--tasks", "starter_mcqa", "--strategy", "cot", "--shots", "0", "--tokenizer", folder.to_str().unwrap()];
    let (server, out) = (choosy(), dir.path().join("out"));
    let (stdout, stderr, code) = eval(&server.model(), &out, &[&more[..], &["--limit", "20"]].concat());
    assert_eq!((code, server.n_asked()), (0, 20 + 19), "what was refused is not sent twice: {stderr}");
    assert!(stdout.contains("1 question was refused by the model or its server and counted wrong"), "{stdout}");
    let counts = read(&out.join("results.json"))["tasks"][0].clone();
    assert_eq!((&counts["n"], &counts["n_refused"], &counts["n_unparsed"]), (&json!(20), &json!(1), &json!(0)));
    let samples = lines(&out.join("samples.jsonl"));
    let refused: Vec<&Value> = samples.iter().filter(|sample| sample.get("refused").is_some()).collect();
    assert_eq!((refused.len(), &refused[0]["correct"], samples.len()), (1, &json!(false), 20));
    let none = Server::start(|_, _| Reply::Status("400 Bad Request", ""));
    let (_, stderr, code) = eval(&none.model(), &dir.path().join("none"), &[&more[..], &["--limit", "3"]].concat());
    assert!(code == 2 && stderr.contains("all 3 questions were refused"), "{code}: {stderr}");
    assert!(!dir.path().join("none").exists());
}

#[test]
fn a_red_team_prompt_that_the_server_refuses_costs_none_of_the_other_answers() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let folder = stories_with_template(&stories, &dir.path().join("model"));
    let questions = Path::new(&starter()).join("redteam/questions.jsonl").display().to_string();
    let attack = |server: &Server, out: &Path| {
        let model = server.model();
        let mut args = vec!["redteam", &model, "--questions", &questions, "--out", out.to_str().unwrap()];
        args.extend(["--set", "n_prompts=40", "--set", "styles=[\"baseline\"]"]);
        args.extend(["--tokenizer", folder.to_str().unwrap()]);
        run(&args)
    };
    let (server, out) = (choosy(), dir.path().join("out"));
    let (_, stderr, code) = attack(&server, &out);
    let n_before = server.n_asked();
    assert!(code == 2 && stderr.contains(&format!("1 of {n_before} prompts were refused")), "{code}: {stderr}");
    let (_, stderr, code) = attack(&server, &out);
    assert_eq!((code, server.n_asked() - n_before), (2, 1), "the refused one alone is asked again: {stderr}");
}
