//! Other weights behind the same address and name: not gone on with, and not given the cache's answers of the old ones.

use super::server::{Model, Reply, Server, text};
use super::{eval, lines};
use crate::{run, stories};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The truth with every log-probability lower by 0.75.
fn shifted(truth: Reply) -> Reply {
    let Reply::Json(mut answer) = truth else { return truth };
    for list in ["token_logprobs", "top_logprobs"] {
        for value in answer["choices"][0]["logprobs"][list].as_array_mut().unwrap() {
            *value = match &*value {
                Value::Object(tops) => {
                    tops.iter().map(|(name, logp)| (name.clone(), json!(logp.as_f64().unwrap() - 0.75))).collect()
                }
                logp => logp.as_f64().map_or(Value::Null, |logp| json!(logp - 0.75)),
            };
        }
    }
    Reply::Json(answer)
}

/// The server dies in the midst of a run and is started again with other weights, then with the right ones.
#[test]
fn a_run_does_not_go_on_where_a_dead_server_came_back_with_other_weights() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (model, state) = (Model::open(&stories), Arc::new(AtomicUsize::new(0)));
    let now = Arc::clone(&state);
    let server = Server::with_canary(move |at, asked| match now.load(Ordering::SeqCst) {
        0 if at >= 4 * 40 => Reply::Dies,
        1 => shifted(model.echo(asked)),
        _ => model.echo(asked),
    });
    let (out, whole) = (dir.path().join("out"), dir.path().join("whole"));
    let more = ["--tasks", "starter_mcqa", "--limit", "40", "--tokenizer", stories.to_str().unwrap()];
    let (_, stderr, code) = eval(&server.model(), &out, &more);
    assert!(code == 1 && stderr.contains("(after 5 tries)"), "{stderr}");
    state.store(1, Ordering::SeqCst);
    let (_, stderr, code) = eval(&server.model(), &out, &more);
    assert_eq!(code, 1, "{stderr}");
    for words in ["no longer answers as it did for the answers in", ".answers.log", "0.75 nat", "another output folder"]
    {
        assert!(stderr.contains(words), "{words:?} is not in {stderr}");
    }
    assert!(!out.join("results.json").exists());
    state.store(2, Ordering::SeqCst);
    let (_, stderr, code) = eval(&server.model(), &out, &more);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(eval(&server.model(), &whole, &more).2, 0);
    let samples = |out: &std::path::Path| std::fs::read(out.join("samples.jsonl")).unwrap();
    assert!(samples(&out) == samples(&whole), "the run that was taken up differs");
}

/// Old, new and old again: each is given its own answers only.
#[test]
fn a_cache_keeps_the_answers_of_two_models_behind_one_address_apart() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let weights = Arc::new(AtomicUsize::new(0));
    let now = Arc::clone(&weights);
    let server = Server::with_canary(move |_, _| text(["old", "new"][now.load(Ordering::SeqCst) % 2]));
    let path = |name: &str| dir.path().join(name).display().to_string();
    let row = json!({"id": "a", "prompt": "Once upon a time", "max_new_tokens": 5});
    std::fs::write(path("r.jsonl"), format!("{row}\n")).unwrap();
    let generate = || {
        let args = ["generate", &server.model(), "--requests", &path("r.jsonl"), "--out", &path("out"), "--json"];
        let more = ["--tokenizer", stories.to_str().unwrap(), "--answer-cache", &path("cache")];
        let (stdout, stderr, code) = run(&[&args[..], &more].concat());
        assert_eq!(code, 0, "{stderr}");
        let said: Value = serde_json::from_str(&stdout).unwrap();
        let answer = lines(&dir.path().join("out"))[0]["completions"][0]["text"].as_str().unwrap().to_owned();
        (said["answer_cache"]["n_hits"].as_u64().unwrap(), answer)
    };
    assert_eq!([generate(), generate()], [(0, "old".to_owned()), (1, "old".to_owned())]);
    weights.store(1, Ordering::SeqCst);
    assert_eq!([generate(), generate()], [(0, "new".to_owned()), (1, "new".to_owned())]);
    weights.store(2, Ordering::SeqCst);
    assert_eq!(generate(), (1, "old".to_owned()));
}

/// The address is the same, what its server lists is not.
#[test]
fn a_finished_stage_is_made_anew_when_the_server_lists_another_model() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_, _| text("The answer is A."));
    let out = dir.path().join("out");
    let tokenizer = super::stories_with_template(&stories, &dir.path().join("tokenizer"));
    let more = ["--tasks", "starter_mcqa", "--limit", "2", "--strategy", "cot", "--shots", "0", "--tokenizer"];
    let more = [&more[..], &[tokenizer.to_str().unwrap()]].concat();
    let (_, stderr, code) = eval(&server.model(), &out, &more);
    assert_eq!(code, 0, "{stderr}");
    let n = server.n_asked();
    let (stdout, stderr, code) = eval(&server.model(), &out, &more);
    assert!(code == 0 && stdout.contains("was done already") && server.n_asked() == n, "{stdout} {stderr}");
    server.lists("other weights");
    let (stdout, stderr, code) = eval(&server.model(), &out, &more);
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("now serves \"m\" \"other weights\"") && stderr.contains("made anew"), "{stderr}");
    assert!(!stdout.contains("was done already") && server.n_asked() == 2 * n, "{stdout}");
    let served = super::read(&out.join("record.json"))["inputs"]["served"][server.model()].clone();
    assert_eq!(served, "\"m\" \"other weights\"");
}
