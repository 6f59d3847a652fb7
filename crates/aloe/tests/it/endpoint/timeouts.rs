//! How long one answer of a server is waited for is the user's to say, wherever a server is asked, and a mistake where none is.

use super::server::{Reply, Server, text};
use super::{eval, starter, stories_with_template};
use crate::{run, stories};
use serde_json::json;
use std::time::{Duration, Instant};

/// Takes half a minute for the first request and answers the others at once.
fn slow_at_first() -> Server {
    Server::start(|at, asked| {
        if at == 0 {
            std::thread::sleep(Duration::from_secs(30));
        }
        match asked.path.as_str() {
            "/embeddings" => {
                let n = asked.body["input"].as_array().unwrap().len();
                let one = |at: usize| json!({"index": at, "embedding": [1.0, 0.0]});
                Reply::Json(json!({"data": (0..n).map(one).collect::<Vec<_>>()}))
            }
            _ => text("Answer: A"),
        }
    })
}

/// The answer is given up after a second and asked for again.
#[test]
fn an_answer_is_waited_for_as_long_as_the_flag_or_the_key_says() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let folder = stories_with_template(&stories, &dir.path().join("model")).display().to_string();
    let (starter, path) = (starter(), |name: &str| dir.path().join(name).display().to_string());
    std::fs::write(path("r.jsonl"), "{\"id\": \"a\", \"prompt\": \"Once\", \"max_new_tokens\": 4}\n").unwrap();
    std::fs::write(path("t.jsonl"), "{\"id\": \"a\", \"text\": \"Once\"}\n").unwrap();
    let check = |command: &str, more: &[&str], timeout: [&str; 2]| {
        let server = slow_at_first();
        let started = Instant::now();
        let (_, stderr, code) = run(&[&[command, &server.model()][..], more, &timeout].concat());
        assert_eq!(code, 0, "{command} {timeout:?}: {stderr}");
        assert!(stderr.contains("trying again in"), "{command} {timeout:?}: {stderr}");
        let elapsed = started.elapsed();
        assert!((1..20).contains(&elapsed.as_secs()), "{command} {timeout:?}: {elapsed:?}");
    };
    let flag = ["--request-timeout", "1"];
    check("generate", &["--requests", &path("r.jsonl"), "--out", &path("g"), "--tokenizer", &folder], flag);
    check("chat", &["--prompt", "Once", "--tokenizer", &folder], flag);
    check("embed", &["--requests", &path("t.jsonl"), "--out", &path("e")], flag);
    let cot = ["--tasks", "starter_mcqa", "--limit", "1", "--data", &starter, "--strategy", "cot", "--shots", "0"];
    for (name, timeout) in [("flag", flag), ("key", ["--set", "request_timeout=1"])] {
        check("eval", &[&cot[..], &["--tokenizer", &folder, "--out", &path(name)]].concat(), timeout);
    }
    let questions = format!("{starter}/redteam/questions.jsonl");
    let few = ["--questions", &questions, "--set", "n_prompts=2", "--set", "styles=[\"baseline\"]"];
    check("redteam", &[&few[..], &["--tokenizer", &folder, "--out", &path("r")]].concat(), flag);
}

#[test]
fn a_time_out_where_no_server_is_asked_and_one_that_is_none_are_refused() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (local, out) = (stories.display().to_string(), dir.path().join("out"));
    let texts = dir.path().join("t.jsonl");
    std::fs::write(&texts, "{\"id\": \"a\", \"text\": \"Once\"}\n").unwrap();
    let refused = |stderr: String, code: i32, words: &str| {
        assert!(code == 2 && stderr.contains(words) && !out.exists(), "{code}: {stderr}");
    };
    let (_, stderr, code) = run(&["embed", &local, "--requests", texts.to_str().unwrap(), "--request-timeout", "5"]);
    refused(stderr, code, "--request-timeout does not go with a local model");
    let more = |timeout: &[&'static str]| [&["--tasks", "starter_mcqa", "--limit", "1"][..], timeout].concat();
    for timeout in [["--request-timeout", "5"], ["--set", "request_timeout=5"]] {
        let (_, stderr, code) = eval(&local, &out, &more(&timeout));
        refused(stderr, code, "request_timeout is for endpoints, and this stage asks none");
    }
    let questions = format!("{}/redteam/questions.jsonl", starter());
    let args = ["redteam", &local, "--questions", &questions, "--out", out.to_str().unwrap(), "--request-timeout", "5"];
    let (_, stderr, code) = run(&args);
    refused(stderr, code, "this stage asks none");
    for timeout in [["--request-timeout", "0"], ["--request-timeout", "86401"]] {
        let (_, stderr, code) = eval("http://127.0.0.1:9/v1#m", &out, &more(&timeout));
        refused(stderr, code, "is not in 1..=86400");
    }
    for timeout in [["--set", "request_timeout=0"], ["--set", "request_timeout=86401"]] {
        let (_, stderr, code) = eval("http://127.0.0.1:9/v1#m", &out, &more(&timeout));
        refused(stderr, code, "request_timeout must be 1 to 86400 seconds");
    }
}
