//! Several servers of one model, a server that dies, and a client that is killed: through the binary, against the same run
//! without the fault.

use super::server::{Asked, Model, Reply, Server, texts};
use super::{eval, lines, read, stories_with_template};
use crate::{aloe, run, stories};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const SCORED: [&str; 4] = ["--tasks", "starter_mcqa", "--limit", "12"];

/// The second of two servers dies after seven requests; the scores are those of one server that does not.
#[test]
fn scores_of_two_servers_of_which_one_dies_are_those_of_one() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (model, other) = (Model::open(&stories), Model::open(&stories));
    let steady = Server::start(move |_, asked| model.echo(asked));
    let dying = Server::start(move |at, asked| if at < 7 { other.echo(asked) } else { Reply::Dies });
    let tokenizer = ["--tokenizer", stories.to_str().unwrap()];
    let both = format!("{},{}", steady.model().trim_end_matches("#m"), dying.model());
    let (_, stderr, code) = eval(&both, &dir.path().join("two"), &[&SCORED[..], &tokenizer].concat());
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("its requests go to the other servers"), "{stderr}");
    let (stdout, stderr, code) = eval(&steady.model(), &dir.path().join("one"), &[&SCORED[..], &tokenizer].concat());
    assert_eq!(code, 0, "{stderr}");
    for name in ["samples.jsonl", "results.json"] {
        let bytes = |run: &str| std::fs::read(dir.path().join(run).join(name)).unwrap();
        assert!(bytes("two") == bytes("one"), "{name}");
    }
    assert!(stdout.contains("noise floor: 12 questions scored twice differ by at most 0.000 nat"), "{stdout}");
}

/// Same name, other weights: told by the log-probabilities of the probe's prompt before anything is scored.
#[test]
fn two_servers_of_one_name_with_other_weights_are_refused() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (model, other) = (Model::open(&stories), Model::open(&stories));
    let good = Server::start(move |_, asked| model.echo(asked));
    let shifted = Server::start(move |_, asked| {
        let Reply::Json(mut answer) = other.echo(asked) else { return Reply::Dies };
        let logprobs = &mut answer["choices"][0]["logprobs"];
        let value = logprobs["token_logprobs"][4].as_f64().unwrap() - 0.75;
        logprobs["token_logprobs"][4] = json!(value);
        Reply::Json(answer)
    });
    let both = format!("{},{}", good.model().trim_end_matches("#m"), shifted.model());
    let out = dir.path().join("out");
    let more = [&SCORED[..], &["--tokenizer", stories.to_str().unwrap()]].concat();
    let (_, stderr, code) = eval(&both, &out, &more);
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("do not serve the same weights") && stderr.contains("up to 0.75 nat"), "{stderr}");
    assert!(!out.exists());
}

/// The second scoring of each prompt is 0.125 nat lower on every token.
#[test]
fn the_noise_floor_of_an_endpoint_stands_beside_its_score() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (model, seen) = (Model::open(&stories), Mutex::new(Vec::<Value>::new()));
    let server = Server::start(move |_, asked| {
        let Reply::Json(mut answer) = model.echo(asked) else { return Reply::Dies };
        let mut seen = seen.lock().unwrap();
        if seen.contains(&asked.body["prompt"]) {
            for value in answer["choices"][0]["logprobs"]["token_logprobs"].as_array_mut().unwrap() {
                *value = value.as_f64().map_or(Value::Null, |logp| json!(logp - 0.125));
            }
        }
        seen.push(asked.body["prompt"].clone());
        Reply::Json(answer)
    });
    let out = dir.path().join("out");
    let more = ["--tasks", "starter_mcqa", "--limit", "3", "--tokenizer", stories.to_str().unwrap()];
    let (stdout, stderr, code) = eval(&server.model(), &out, &more);
    assert_eq!(code, 0, "{stderr}");
    let floor = read(&out.join("results.json"))["tasks"][0]["noise_floor"].clone();
    assert_eq!((&floor["n_questions"], &floor["n_predictions_changed"]), (&json!(3), &json!(0)));
    for name in ["max_nat", "mean_nat"] {
        assert!((floor[name].as_f64().unwrap() - 0.125).abs() < 1e-9, "{floor}");
    }
    assert!(stdout.contains("differ by at most 0.125 nat a token (mean 0.1250), predictions changed 0"), "{stdout}");
    let (_, _, code) = eval(stories.to_str().unwrap(), &dir.path().join("local"), &more[..4]);
    assert_eq!(code, 0);
    assert!(read(&dir.path().join("local/results.json"))["tasks"][0].get("noise_floor").is_none());
}

/// The server dies for good after 161 answers, 1 of them the probe's and 4 to a question, and comes back. Of the 16 questions under way
/// up to 3 answers each are lost with it: 112 of 240 are kept at least.
#[test]
fn what_a_server_answered_before_it_died_is_kept() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (model, is_up) = (Model::open(&stories), Arc::new(AtomicUsize::new(0)));
    let up = Arc::clone(&is_up);
    let server = Server::start(move |at, asked| match at < 1 + 4 * 40 || up.load(Ordering::SeqCst) == 1 {
        true => model.echo(asked),
        false => Reply::Dies,
    });
    let out = dir.path().join("out");
    let more = ["--tasks", "starter_mcqa", "--tokenizer", stories.to_str().unwrap()];
    let (_, stderr, code) = eval(&server.model(), &out, &more);
    assert!(code == 1 && stderr.contains("(after 5 tries)"), "{stderr}");
    let n_before = server.n_asked();
    is_up.store(1, Ordering::SeqCst);
    let (_, stderr, code) = eval(&server.model(), &out, &more);
    assert_eq!(code, 0, "{stderr}");
    let n_twice = 4 * 60;
    let n_after = server.n_asked() - n_before - n_twice;
    assert!(n_after <= 240 - 112, "{n_after} of 240 were asked again");
    assert_eq!(lines(&out.join("samples.jsonl")).len(), 60);
}

/// Of sixty requests thirty are answered; then the server is gone for good.
#[test]
fn a_file_of_requests_keeps_the_answers_of_a_server_that_died_beside_an_error_for_each_other_row() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|at, asked| match at < 30 {
        true => texts(&[asked.body["prompt"].to_string()]),
        false => Reply::Dies,
    });
    let (requests, out) = (dir.path().join("r.jsonl"), dir.path().join("out.jsonl"));
    let row = |at: usize| json!({"id": at.to_string(), "prompt_ids": [1, at + 3], "max_new_tokens": 4}).to_string();
    std::fs::write(&requests, (0..60).map(row).collect::<Vec<_>>().join("\n")).unwrap();
    let (requests, file) = (requests.display().to_string(), out.display().to_string());
    let args = ["generate", &server.model(), "--requests", &requests, "--out", &file];
    let (_, stderr, code) = run(&[&args[..], &["--tokenizer", stories.to_str().unwrap()]].concat());
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("(5 of 5)"), "{stderr}");
    assert!(stderr.contains("30 of 60 requests could not be answered"), "{stderr}");
    let found = lines(&out);
    assert_eq!(found.len(), 60);
    let (good, bad): (Vec<_>, Vec<_>) = found.iter().partition(|one| one.get("error").is_none());
    assert_eq!((good.len(), bad.len()), (30, 30));
    for one in good {
        let at: usize = one["id"].as_str().unwrap().parse().unwrap();
        assert_eq!(one["completions"][0]["text"], json!([1, at + 3]).to_string());
    }
}

/// Twenty answers to each question, told by their seeds. The client is killed without warning after a random number of
/// requests and a random time, twenty times, and started again with the same command.
#[test]
fn a_client_killed_twenty_times_neither_loses_nor_repeats_a_sample() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let folder = stories_with_template(&stories, &dir.path().join("model"));
    let answer = |asked: &Asked| {
        std::thread::sleep(Duration::from_millis(5));
        let (n, seed) = (asked.body["n"].as_u64().unwrap(), asked.body["seed"].as_u64().unwrap());
        texts(&(0..n).map(|at| format!("{} Answer: A", seed + at)).collect::<Vec<_>>())
    };
    let child: Arc<Mutex<Option<Child>>> = Arc::default();
    let (victim, fuse) = (Arc::clone(&child), Arc::new(AtomicUsize::new(usize::MAX)));
    let burning = Arc::clone(&fuse);
    let server = Server::start(move |_, asked| {
        if burning.load(Ordering::SeqCst) != usize::MAX && burning.fetch_sub(1, Ordering::SeqCst) == 1 {
            burning.store(usize::MAX, Ordering::SeqCst);
            let victim = Arc::clone(&victim);
            let delay = Duration::from_micros(asked.body["seed"].as_u64().unwrap() % 12_000);
            std::thread::spawn(move || {
                std::thread::sleep(delay);
                victim.lock().unwrap().as_mut().map(Child::kill)
            });
        }
        answer(asked)
    });
    let args = |out: &Path| {
        let starter = super::starter();
        let mut args: Vec<String> = ["eval", &server.model(), "--data", &starter, "--out"].map(str::to_owned).to_vec();
        args.push(out.display().to_string());
        let more = ["--tasks", "starter_mcqa", "--strategy", "sc-cot", "--shots", "0", "--set", "n_samples=20"];
        args.extend(more.map(str::to_owned));
        args.extend(["--tokenizer".to_owned(), folder.display().to_string()]);
        args
    };
    let start = |out: &Path| aloe().args(args(out)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let (whole, out) = (dir.path().join("whole"), dir.path().join("out"));
    assert!(start(&whole).wait().unwrap().success());
    let mut n_kills = 0;
    for point in 0..200 {
        if n_kills == 20 {
            break;
        }
        fuse.store(1 + point * 7 % 4, Ordering::SeqCst);
        *child.lock().unwrap() = Some(start(&out));
        loop {
            std::thread::sleep(Duration::from_millis(2));
            let status = child.lock().unwrap().as_mut().unwrap().try_wait().unwrap();
            let Some(status) = status else { continue };
            n_kills += usize::from(!status.success());
            if status.success() {
                std::fs::remove_dir_all(&out).unwrap();
            }
            break;
        }
    }
    assert_eq!(n_kills, 20);
    fuse.store(usize::MAX, Ordering::SeqCst);
    assert!(start(&out).wait().unwrap().success());
    let texts = |out: &Path| -> Vec<String> {
        let votes = lines(&out.join("samples.jsonl")).into_iter().flat_map(|s| s["votes"].as_array().unwrap().clone());
        votes.map(|vote| vote["text"].as_str().unwrap().to_owned()).collect()
    };
    let (found, expected) = (texts(&out), texts(&whole));
    assert_eq!(found.len(), 60 * 20);
    assert!(found == expected, "the samples differ from those of a run that was not killed");
}
