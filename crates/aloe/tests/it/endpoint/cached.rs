//! The answer cache before an endpoint: a server is asked once, another server's and another renderer's answers are never taken for
//! its own, and the noise floor still measures the server.

use super::server::{Model, Server};
use super::{eval, lines, read};
use crate::{run, stories};
use serde_json::json;

#[test]
fn a_server_is_asked_once_and_another_one_or_the_local_model_is_another_question() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let row = json!({"id": "a", "prompt": "Once upon a time", "max_new_tokens": 5, "temperature": 0.9, "n": 2});
    std::fs::write(path("r.jsonl"), format!("{row}\n")).unwrap();
    let start = || {
        let model = Model::open(&stories);
        Server::start(move |_, asked| model.complete(asked))
    };
    let generate = |model: &str| {
        let mut args = vec!["generate".to_owned(), model.to_owned(), "--requests".into(), path("r.jsonl")];
        args.extend(["--out".into(), path("out")]);
        if model.starts_with("http") {
            args.extend(["--tokenizer".into(), stories.display().to_string()]);
        }
        args.extend(["--answer-cache".into(), path("cache"), "--json".into()]);
        let (stdout, stderr, code) = run(&args.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(code, 0, "{stderr}");
        let said: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        (said["answer_cache"]["n_hits"].as_u64().unwrap(), lines(dir.path().join("out").as_path()))
    };
    let (one, two) = (start(), start());
    let (hits, first) = generate(&one.model());
    let n_asked = one.n_asked();
    assert_eq!(hits, 0);
    assert_eq!(generate(&one.model()), (1, first.clone()));
    assert_eq!(one.n_asked(), n_asked, "the server is asked again");
    assert_eq!(generate(&two.model()).0, 0, "another server's answer");
    assert_eq!(generate(stories.to_str().unwrap()).0, 0, "an endpoint's answer for a local model");
    assert_eq!(generate(&two.model()).0, 1);
}

#[test]
fn the_noise_floor_is_measured_on_the_server_and_not_on_the_cache() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let model = Model::open(&stories);
    let server = Server::start(move |_, asked| model.echo(asked));
    let cache = dir.path().join("cache").display().to_string();
    let more = ["--tasks", "starter_mcqa", "--protocol", "lm-eval", "--limit", "3", "--answer-cache", &cache];
    let tokenizer = ["--tokenizer", stories.to_str().unwrap()];
    let mut found = Vec::new();
    for name in ["one", "two"] {
        let n_before = server.n_asked();
        let out = dir.path().join(name);
        let (_, stderr, code) = eval(&server.model(), &out, &[&more[..], &tokenizer].concat());
        assert_eq!(code, 0, "{stderr}");
        let results = read(&out.join("results.json"));
        assert_eq!(results["tasks"][0]["noise_floor"]["n_questions"], 3, "{results}");
        found.push((std::fs::read(out.join("samples.jsonl")).unwrap(), server.n_asked() - n_before));
    }
    assert_eq!(found[0].0, found[1].0);
    // Four options each: the first run scores three questions twice, the second once. The mock counts the first probe only.
    assert_eq!((found[0].1, found[1].1), (2 * 3 * 4 + 1, 3 * 4));
}
