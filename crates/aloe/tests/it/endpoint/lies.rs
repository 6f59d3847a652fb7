//! Servers that answer the probe well and lie afterwards: each lie is found, with its reason, before any score or answer is
//! written. The truth under each lie is a real small model's.

use super::eval;
use super::server::{Asked, Model, Reply, Server, prompt_ids, text, texts};
use crate::{run, stories};
use serde_json::{Value, json};
use std::path::Path;

/// What says which question's answer it was.
const ASKED: [&str; 2] = ["request starter_mcqa/", "; the question stands in mcqa/starter_mcqa_test.jsonl:"];

/// Runs `aloe eval` on a server that tells the truth until `from` (0 is the probe), then `lie(truth)`; expects `words`.
fn check_score(stories: &Path, from: usize, words: &[&str], lie: impl Fn(Value) -> Reply + Send + Sync + 'static) {
    let model = Model::open(stories);
    let server = Server::start(move |at, asked| match model.echo(asked) {
        Reply::Json(truth) if at >= from => lie(truth),
        truth => truth,
    });
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let more = ["--tasks", "starter_mcqa", "--limit", "2", "--tokenizer", stories.to_str().unwrap()];
    let (stdout, stderr, code) = eval(&server.model(), &out, &more);
    assert_eq!(code, 1, "{words:?}: {stdout}{stderr}");
    for word in words {
        assert!(stderr.contains(word), "{word:?} is not in {stderr}");
    }
    assert!(!out.exists(), "{words:?}");
}

fn logprobs(truth: &mut Value) -> &mut Value {
    &mut truth["choices"][0]["logprobs"]
}

fn changed(mut truth: Value, change: impl Fn(&mut Value)) -> Reply {
    change(&mut truth);
    Reply::Json(truth)
}

#[test]
fn lies_about_log_probabilities_are_found_before_a_score_is_written() {
    let Some(stories) = stories() else { return };
    type Lie = fn(&mut Value);
    let lies: [(&str, Lie); 10] = [
        ("0 entries of `token_logprobs`", |truth| {
            *logprobs(truth) = json!({"token_logprobs": [], "top_logprobs": [], "tokens": []});
        }),
        ("`token_logprobs` is absent", |truth| *logprobs(truth) = Value::Null),
        ("every log-probability is 0", |truth| {
            for list in ["token_logprobs", "top_logprobs"] {
                for value in logprobs(truth)[list].as_array_mut().unwrap() {
                    *value = if list == "token_logprobs" { json!(0.0) } else { json!({"x": 0.0}) };
                }
            }
        }),
        ("the log-probability of entry 3 is null", |truth| logprobs(truth)["token_logprobs"][3] = Value::Null),
        ("the log-probability of entry 2 is 0.5", |truth| logprobs(truth)["token_logprobs"][2] = json!(0.5)),
        ("the log-probability of entry 2 is \"NaN\"", |truth| logprobs(truth)["token_logprobs"][2] = json!("NaN")),
        ("entries of `token_logprobs` where", |truth| {
            logprobs(truth)["token_logprobs"].as_array_mut().unwrap().pop();
        }),
        ("entry 1 is about another token: 999 where", |truth| logprobs(truth)["tokens"][1] = json!("token_id:999")),
        ("1 entries of `token_logprobs` where", |truth| {
            *logprobs(truth) =
                json!({"token_logprobs": [-0.5], "top_logprobs": [{"new": -0.5}], "tokens": ["token_id:5"]});
        }),
        ("among the most probable, -9", |truth| {
            let name = logprobs(truth)["tokens"][2].as_str().unwrap().to_owned();
            logprobs(truth)["top_logprobs"][2] = json!({ name: -9.0 });
        }),
    ];
    for (words, lie) in lies {
        let words = [&["cannot be used", words][..], &ASKED].concat();
        check_score(&stories, 1, &words, move |truth| changed(truth, lie));
    }
}

#[test]
fn lies_about_the_model_the_choices_and_the_counts_are_found_before_a_score_is_written() {
    let Some(stories) = stories() else { return };
    let check =
        |from: usize, words: &[&str], lie: fn(&mut Value)| check_score(&stories, from, words, move |t| changed(t, lie));
    check(0, &["by the model \"other\", \"m\" was asked"], |truth| truth["model"] = json!("other"));
    check(2, &["the model changed", "\"m-2024-08-06\""], |truth| truth["model"] = json!("m-2024-08-06"));
    check(1, &["asked for 1 answer, got 2"], |truth| truth["choices"] = json!([truth["choices"][0], {}]));
    check(1, &["asked for 1 answer, got 0"], |truth| truth["choices"] = json!([]));
    check(1, &["choice 0 has the index 1"], |truth| truth["choices"][0]["index"] = json!(1));
    check(1, &["prompt tokens where"], |truth| truth["usage"]["prompt_tokens"] = json!(3));
    check(1, &["in all"], |truth| {
        truth["usage"]["completion_tokens"] = json!(0);
        truth["usage"]["total_tokens"] = json!(7);
    });
}

/// NaN as Python's `json` writes it, half an answer, and a proxy's page: none is JSON, and none is at the second try.
#[test]
fn an_answer_that_is_no_json_is_asked_for_again_and_then_reported_with_how_it_begins() {
    let Some(stories) = stories() else { return };
    let raw = |words: &str, lie: fn(String) -> String, kind: &'static str| {
        let words = ["the answer is not JSON", words, "trying again", "(after 5 tries)"];
        check_score(&stories, 1, &[&words[..], &ASKED].concat(), move |truth| Reply::Raw(kind, lie(truth.to_string())));
    };
    raw("expected value", |truth| truth.replacen("null", "NaN", 1), "application/json");
    raw("EOF while parsing", |truth| truth[..truth.len() / 2].to_owned(), "application/json");
    raw("\"text/html\", it begins \"<html>", |_| "<html><body>Welcome</body></html>".to_owned(), "text/html");
}

/// As a proxy says that its server is overloaded.
#[test]
fn an_error_under_status_200_is_asked_for_again_and_then_reported_in_the_servers_words() {
    let Some(stories) = stories() else { return };
    let words = ["an error in place of an answer", "\"the queue is full\"", "trying again", "(after 5 tries)"];
    check_score(&stories, 1, &[&words[..], &ASKED].concat(), |_| {
        Reply::Json(json!({"error": {"message": "the queue is full", "code": 503}}))
    });
}

#[test]
fn a_server_that_asks_by_a_date_to_come_back_long_after_is_not_waited_for() {
    let Some(stories) = stories() else { return };
    check_score(&stories, 1, &["HTTP status 429", "it asks to come back in"], |_| {
        Reply::Status("429 Too Many Requests", "retry-after: Wed, 21 Oct 2099 07:28:00 GMT")
    });
}

/// The answers to two prompts of one length change places: only the names of the tokens tell.
#[test]
fn an_answer_to_another_prompt_is_found_by_its_tokens_whether_named_by_id_or_by_text() {
    let Some(stories) = stories() else { return };
    for by_text in [false, true] {
        check_score(&stories, 1, &["is about another token"], move |mut truth| {
            let tokens = logprobs(&mut truth)["tokens"].as_array_mut().unwrap();
            let n = tokens.len();
            for (at, token) in tokens.iter_mut().enumerate() {
                *token = if by_text { json!(format!("word{at}")) } else { json!(format!("token_id:{}", 300 + n - at)) };
            }
            Reply::Json(truth)
        });
    }
}

/// Runs `aloe generate` for three answers of four tokens each, and expects `words`.
fn check_generate(stories: &Path, words: &[&str], answer: impl Fn(&Asked) -> Value + Send + Sync + 'static) {
    let server = Server::start(move |_, asked| Reply::Json(answer(asked)));
    let dir = tempfile::tempdir().unwrap();
    let (requests, out) = (dir.path().join("r.jsonl"), dir.path().join("out.jsonl"));
    std::fs::write(&requests, "{\"id\": \"g\", \"prompt\": \"Once upon\", \"n\": 3, \"max_new_tokens\": 4}\n").unwrap();
    let (requests, file) = (requests.display().to_string(), out.display().to_string());
    let args = ["generate", &server.model(), "--requests", &requests, "--out", &file];
    let (_, stderr, code) = run(&[&args[..], &["--tokenizer", stories.to_str().unwrap()]].concat());
    assert_eq!(code, 1, "{words:?}: {stderr}");
    for word in words {
        assert!(stderr.contains(word), "{word:?} is not in {stderr}");
    }
    assert!(!out.exists(), "{words:?}");
}

/// Three true answers of four tokens, of a server that tells everything.
fn three(asked: &Asked) -> Value {
    let Reply::Json(mut answer) = texts(&["a", "b", "c"].map(str::to_owned)) else { return Value::Null };
    for choice in answer["choices"].as_array_mut().unwrap() {
        choice["finish_reason"] = json!("length");
        choice["token_ids"] = json!([5, 6, 7, 8]);
        choice["prompt_token_ids"] = json!(prompt_ids(asked));
    }
    let n = prompt_ids(asked).len();
    answer["usage"] = json!({"prompt_tokens": n, "completion_tokens": 12, "total_tokens": n + 12});
    answer["model"] = json!("m");
    answer
}

#[test]
fn lies_about_generated_answers_are_found_before_an_answer_is_written() {
    let Some(stories) = stories() else { return };
    type Lie = fn(&mut Value);
    let lies: [(&str, Lie); 12] = [
        ("asked for 3 answers, got 2", |answer| {
            answer["choices"].as_array_mut().unwrap().pop();
        }),
        ("asked for 3 answers, got 4", |answer| {
            let more = answer["choices"][2].clone();
            answer["choices"].as_array_mut().unwrap().push(more);
        }),
        ("choice 0 has the index 1", |answer| answer["choices"].as_array_mut().unwrap().swap(0, 1)),
        ("choice 1 has the index 0", |answer| answer["choices"][1]["index"] = json!(0)),
        ("choice 2 has the index null", |answer| answer["choices"][2]["index"] = Value::Null),
        ("finish_reason is null", |answer| answer["choices"][1]["finish_reason"] = Value::Null),
        ("at most 12 were asked for", |answer| {
            answer["usage"]["completion_tokens"] = json!(13);
            answer["usage"].as_object_mut().unwrap().remove("total_tokens");
        }),
        ("5 new tokens where at most 4", |answer| answer["choices"][0]["token_ids"] = json!([1, 2, 3, 4, 5])),
        ("gives 11 ids", |answer| answer["choices"][0]["token_ids"] = json!([1, 2, 3])),
        ("prompt tokens where", |answer| answer["usage"]["prompt_tokens"] = json!(77)),
        ("to another prompt", |answer| answer["choices"][2]["prompt_token_ids"][1] = json!(77)),
        ("holds no text", |answer| answer["choices"][1]["text"] = Value::Null),
    ];
    for (words, lie) in lies {
        check_generate(&stories, &["request g", words], move |asked| {
            let mut answer = three(asked);
            lie(&mut answer);
            answer
        });
    }
    check_generate(&stories, &["no new tokens for a text"], |asked| {
        let mut answer = three(asked);
        answer["usage"] = json!({ "completion_tokens": 0 });
        (0..3).for_each(|at| answer["choices"][at]["token_ids"] = Value::Null);
        answer
    });
}

/// A server that passes `n` over is not taken for one that loses answers: each sample becomes a request, and that is said.
#[test]
fn a_server_that_passes_n_over_is_asked_for_one_sample_at_a_time_and_a_refusal_halves_the_number() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let generate = |server: &Server, name: &str| {
        let (requests, out) = (dir.path().join("r.jsonl"), dir.path().join(name));
        std::fs::write(&requests, "{\"id\": \"g\", \"prompt\": \"Once\", \"n\": 20, \"temperature\": 1}\n").unwrap();
        let (requests, file) = (requests.display().to_string(), out.display().to_string());
        let args = ["generate", &server.model(), "--requests", &requests, "--out", &file];
        let (_, stderr, code) = run(&[&args[..], &["--tokenizer", stories.to_str().unwrap()]].concat());
        assert_eq!(code, 0, "{stderr}");
        let completions = super::lines(&out)[0]["completions"].clone();
        let found = completions.as_array().unwrap().iter().map(|one| one["text"].as_str().unwrap().to_owned());
        (found.collect::<Vec<_>>(), stderr)
    };
    let counted = |asked: &Asked, most: u64| {
        let (n, seed) = (asked.body["n"].as_u64().unwrap(), asked.body["seed"].as_u64().unwrap());
        match n > most {
            true => Reply::Status("400 Bad Request", ""),
            false => texts(&(0..n).map(|at| (seed + at).to_string()).collect::<Vec<_>>()),
        }
    };
    let (whole, _) = generate(&Server::start(move |_, asked| counted(asked, 20)), "whole");
    let four = Server::start(move |_, asked| counted(asked, 4));
    let (split, stderr) = generate(&four, "split");
    assert!(stderr.contains("it refuses more; each request asks for 4 samples at most"), "{stderr}");
    let sizes: Vec<u64> = four.asked().iter().map(|asked| asked.body["n"].as_u64().unwrap()).collect();
    assert_eq!(sizes, [20, 16, 8, 4, 4, 4, 4, 4]);
    let one = Server::start(|_, asked| text(&asked.body["seed"].to_string()));
    let (single, stderr) = generate(&one, "single");
    assert!(stderr.contains("it answers once whatever `n` is; each request asks for 1 sample at most"), "{stderr}");
    assert_eq!(one.n_asked(), 21);
    let mut distinct = whole.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!((distinct.len(), &split, &single), (20, &whole, &whole), "20 seeds, however they are asked for");
}
