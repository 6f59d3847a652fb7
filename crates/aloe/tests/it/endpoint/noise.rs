//! What an endpoint's generated answers vary by: some of the requests are sent a second time, past the log and the cache, and the share
//! of texts and predictions that changed stands beside the score, which they do not touch.

use super::server::{Asked, Reply, Server, texts};
use super::{eval, lines, read, stories_with_template};
use crate::stories;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

const COT: [&str; 6] = ["--tasks", "starter_mcqa", "--strategy", "cot", "--shots", "0"];
const SC_COT: [&str; 6] = ["--tasks", "starter_mcqa", "--strategy", "sc-cot", "--shots", "0"];

/// Answers by the question's place in the order in which questions came first, and how often it came before.
fn counting(answer: impl Fn(usize, usize, usize) -> Vec<String> + Send + Sync + 'static) -> Server {
    let seen = Mutex::new(Vec::<(Value, usize)>::new());
    Server::start(move |_, asked| {
        let mut seen = seen.lock().unwrap();
        let key = json!([asked.body["prompt"], asked.body["seed"]]);
        let place = seen.iter().position(|(known, _)| *known == key).unwrap_or(seen.len());
        if place == seen.len() {
            seen.push((key, 0));
        }
        seen[place].1 += 1;
        texts(&answer(place, seen[place].1 - 1, asked.body["n"].as_u64().unwrap() as usize))
    })
}

struct Run {
    floor: Value,
    samples: Vec<u8>,
    stdout: String,
}

fn run(server: &Server, out: &Path, folder: &Path, more: &[&str]) -> Run {
    let more = [more, &["--tokenizer", folder.to_str().unwrap()]].concat();
    let (stdout, stderr, code) = eval(&server.model(), out, &more);
    assert_eq!(code, 0, "{stderr}");
    let floor = read(&out.join("results.json"))["tasks"][0]["noise_floor"].clone();
    assert_eq!(read(&out.join("record.json"))["results"]["eval"]["tasks"][0]["noise_floor"], floor);
    Run { floor, samples: std::fs::read(out.join("samples.jsonl")).unwrap(), stdout }
}

fn folder(dir: &Path) -> Option<PathBuf> {
    Some(stories_with_template(&stories()?, &dir.join("model")))
}

fn floor(n_questions: usize, n_predictions_changed: usize, requests: [usize; 2], texts: [usize; 2]) -> Value {
    json!({"n_questions": n_questions, "n_predictions_changed": n_predictions_changed, "n_requests": requests[0],
        "n_requests_changed": requests[1], "n_texts": texts[0], "n_texts_changed": texts[1]})
}

/// Of twelve questions of five samples each, the second time: four get one other text that reads the same, four are answered B for A
/// throughout, four repeat. So 8 requests, 4 * 1 + 4 * 5 of 60 texts and 4 predictions change.
#[test]
fn the_texts_and_votes_that_change_when_asked_again_stand_beside_the_score_and_do_not_touch_it() {
    let dir = tempfile::tempdir().unwrap();
    let Some(folder) = folder(dir.path()) else { return };
    let text = |letter: &str| format!("It is so. Answer: {letter}");
    let stable = counting(move |_, _, n| vec![text("A"); n]);
    let varying = counting(move |place, before, n| {
        let mut texts = vec![text(if before == 1 && place % 3 == 1 { "B" } else { "A" }); n];
        if before == 1 && place % 3 == 0 {
            texts[n - 1] = format!("Well. {}", text("A"));
        }
        texts
    });
    let more = [&SC_COT[..], &["--limit", "12", "--set", "n_samples=5"]].concat();
    let one = run(&stable, &dir.path().join("stable"), &folder, &more);
    assert_eq!(one.floor, floor(12, 0, [12, 0], [60, 0]));
    let two = run(&varying, &dir.path().join("varying"), &folder, &more);
    assert_eq!(two.floor, floor(12, 4, [12, 8], [60, 24]));
    assert!(one.samples == two.samples, "second answers are counted");
    assert_eq!((stable.n_asked(), varying.n_asked()), (24, 24));
    let words = "noise floor: 12 requests sent twice (60 more answers): texts changed in 8 of 12 requests (66.7 %), 24 of 60 texts \
                 (40.0 %), predictions in 4 of 12 questions (33.3 %)";
    assert!(two.stdout.contains(words), "{}", two.stdout);
    // The same requests: prompts, seeds and sampling.
    let bodies = |asked: &[Asked]| {
        let mut bodies: Vec<String> = asked.iter().map(|one| one.body.to_string()).collect();
        bodies.sort();
        bodies
    };
    let asked = stable.asked();
    assert_eq!(bodies(&asked[..12]), bodies(&asked[12..]));
}

/// With shuffled options each sample is a request of its own: five questions of twenty are the hundred.
#[test]
fn a_hundred_requests_are_sent_twice_whatever_the_number_of_samples_and_a_local_model_is_asked_once() {
    let dir = tempfile::tempdir().unwrap();
    let Some(folder) = folder(dir.path()) else { return };
    let server = counting(|_, before, n| vec![format!("{before} Answer: A"); n]);
    let shuffled = ["--limit", "12", "--set", "n_samples=20", "--set", "shuffle=true"];
    let found = run(&server, &dir.path().join("shuffled"), &folder, &[&SC_COT[..], &shuffled].concat());
    assert_eq!(found.floor, floor(5, 0, [100, 100], [100, 100]));
    assert_eq!(server.n_asked(), 12 * 20 + 100);
    let out = dir.path().join("local");
    let few = ["--limit", "2", "--set", "max_new_tokens=4"];
    let (stdout, stderr, code) = eval(folder.to_str().unwrap(), &out, &[&COT[..], &few].concat());
    assert_eq!(code, 0, "{stderr}");
    assert!(
        read(&out.join("results.json"))["tasks"][0].get("noise_floor").is_none() && !stdout.contains("noise floor")
    );
}

/// A second run from the cache asks the server for the noise floor alone; a third in the folder of the second for nothing.
#[test]
fn the_noise_floor_of_generated_answers_is_measured_on_the_server_and_not_on_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let Some(folder) = folder(dir.path()) else { return };
    let server = counting(|_, before, n| vec![format!("{before} Answer: A"); n]);
    let cache = dir.path().join("cache").display().to_string();
    let more = [&COT[..], &["--limit", "6", "--answer-cache", &cache]].concat();
    let one = run(&server, &dir.path().join("one"), &folder, &more);
    let n_first = server.n_asked();
    let two = run(&server, &dir.path().join("two"), &folder, &more);
    let n_second = server.n_asked() - n_first;
    run(&server, &dir.path().join("two"), &folder, &more);
    assert_eq!((n_first, n_second, server.n_asked()), (12, 6, 18));
    assert_eq!((one.floor, two.floor), (floor(6, 0, [6, 6], [6, 6]), floor(6, 0, [6, 6], [6, 6])));
    assert!(one.samples == two.samples);
}

/// Of sixty questions asked twice the server dies after the twentieth second answer: the rest is asked when it is back.
#[test]
fn a_run_that_was_cut_off_while_it_asked_again_asks_only_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let Some(folder) = folder(dir.path()) else { return };
    let is_up = Arc::new(AtomicBool::new(false));
    let up = Arc::clone(&is_up);
    let server = Server::start(move |at, _| match at < 60 + 20 || up.load(Ordering::SeqCst) {
        true => texts(&["Answer: A".to_owned()]),
        false => Reply::Dies,
    });
    let out = dir.path().join("out");
    let more = [&COT[..], &["--tokenizer", folder.to_str().unwrap()]].concat();
    let (_, stderr, code) = eval(&server.model(), &out, &more);
    assert!(code == 1 && stderr.contains("(after 5 tries)"), "{stderr}");
    let n_before = server.n_asked();
    is_up.store(true, Ordering::SeqCst);
    let found = run(&server, &out, &folder, &COT);
    assert_eq!(server.n_asked() - n_before, 60 - 20);
    assert_eq!((found.floor, lines(&out.join("samples.jsonl")).len()), (floor(60, 0, [60, 0], [60, 0]), 60));
}
