//! The endpoint client against a loopback server that behaves, lies, or is busy.

use super::tests::read_request;
use crate::{Continuation, Engine, EngineOptions, GenerateRequest, Prompt, Sampling, ScoreRequest};
use aloe_record::{Cancel, Progress};
use aloe_text::{Message, Role};
use serde_json::{Value, json};
use std::io::{BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How the server answers `/v1/completions`.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    /// Echo with log-probabilities: token `i` of the prompt has -id / 1000.
    Good,
    /// llama-server: no `token_logprobs`.
    NoLogprobs,
    /// Every log-probability is 0.
    Zeros,
    /// One entry too few.
    Short,
    /// 503 the first two times.
    Busy,
    /// 400 for every field that is not OpenAI's, named one at a time.
    Strict,
}

/// The fields that a strict server does not know.
const FOREIGN: [&str; 4] = ["top_k", "min_p", "repetition_penalty", "repeat_penalty"];

/// Serves until the test ends; returns the model's address and the number of completion requests seen.
fn serve(manner: Manner) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/v1#m", listener.local_addr().unwrap());
    let n_asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&n_asked);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let counter = Arc::clone(&counter);
            std::thread::spawn(move || while answer(&stream, manner, &counter).is_some() {});
        }
    });
    (address, n_asked)
}

fn answer(mut stream: &TcpStream, manner: Manner, counter: &AtomicUsize) -> Option<()> {
    let (path, request) = read_request(&mut BufReader::new(stream))?;
    let (status, reply) = if path.contains("/models") {
        let owner = if manner == Manner::NoLogprobs { "llamacpp" } else { "someone" };
        ("200 OK", json!({"data": [{"id": "m", "root": "weights", "owned_by": owner}]}))
    } else {
        let asked = counter.fetch_add(1, Ordering::SeqCst);
        let busy = manner == Manner::Busy && asked < 2;
        let foreign = FOREIGN.iter().find(|name| manner == Manner::Strict && request.get(**name).is_some());
        if let Some(name) = foreign {
            (
                "400 Bad Request",
                json!({"error": {"message": format!("Unrecognized request argument supplied: {name}")}}),
            )
        } else if busy {
            ("503 Service Unavailable", json!({}))
        } else {
            ("200 OK", completion(&request, manner))
        }
    };
    let text = reply.to_string();
    let head = format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", text.len());
    stream.write_all(format!("{head}{text}").as_bytes()).ok()
}

fn completion(request: &Value, manner: Manner) -> Value {
    if let Some(messages) = request.get("messages") {
        return json!({"choices": [{"message": {"content": format!("{} messages", messages.as_array().unwrap().len())}, "finish_reason": "stop"}]});
    }
    if request["echo"] != true {
        let n = request["n"].as_u64().unwrap_or(1);
        let choice = |at: u64| json!({"index": at, "text": format!("seed {}", request["seed"].as_u64().unwrap_or(0) + at), "finish_reason": "length"});
        return json!({"choices": (0..n).map(choice).collect::<Vec<_>>()});
    }
    let ids: Vec<u64> = request["prompt"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
    let mut logps: Vec<Value> =
        ids.iter().map(|&id| json!(if manner == Manner::Zeros { 0.0 } else { -(id as f64) / 1000.0 })).collect();
    logps[0] = Value::Null;
    if manner == Manner::Short {
        logps.pop();
    }
    if manner == Manner::NoLogprobs {
        return json!({"choices": [{"text": "", "logprobs": {"content": []}}]});
    }
    let tops: Vec<Value> =
        logps.iter().map(|logp| logp.as_f64().map_or(Value::Null, |logp| json!({"x": logp + 0.001}))).collect();
    let names: Vec<String> = ids.iter().map(|id| format!("token_id:{id}")).collect();
    json!({"choices": [{"text": "", "logprobs": {"token_logprobs": logps, "top_logprobs": tops, "tokens": names}}]})
}

fn open(manner: Manner, server_template: bool) -> Option<(Engine, Arc<AtomicUsize>)> {
    let data = match std::env::var("ALOE_DATA") {
        Ok(data) => PathBuf::from(data),
        Err(_) => {
            assert!(std::env::var("ALOE_REQUIRE").is_err(), "ALOE_DATA is not set");
            eprintln!("not run: ALOE_DATA is not set");
            return None;
        }
    };
    let (address, n_asked) = serve(manner);
    let tokenizer = (!server_template).then(|| data.join("models/stories260K"));
    let options = EngineOptions { tokenizer, server_template, ..EngineOptions::default() };
    Some((Engine::open(&address, &options).unwrap(), n_asked))
}

fn score(engine: &Engine) -> crate::Result<Vec<crate::ScoreResult>> {
    let continuations = vec![Continuation::Ids(vec![10, 20]), Continuation::Ids(vec![30])];
    let request = ScoreRequest { id: "q".into(), prompt: Prompt::Ids(vec![1, 403, 407]), continuations };
    engine.score(&[request], &Progress::silent(), &Cancel::default())
}

/// -10/1000 - 20/1000 = -0.03, and -30/1000; the server's best is always better.
#[test]
fn continuations_are_scored_by_the_echo_of_our_own_token_ids() {
    let Some((engine, _)) = open(Manner::Good, false) else { return };
    let result = score(&engine).unwrap().remove(0);
    assert_eq!(result.prompt_ids, [1, 403, 407]);
    let sums: Vec<f64> = result.continuations.iter().map(crate::Scored::sum).collect();
    assert!((sums[0] + 0.03).abs() < 1e-12 && (sums[1] + 0.03).abs() < 1e-12, "{sums:?}");
    assert!(!result.continuations[0].is_greedy);
}

#[test]
fn a_server_without_usable_prompt_log_probabilities_is_refused_before_anything_is_scored() {
    for manner in [Manner::NoLogprobs, Manner::Zeros, Manner::Short] {
        let Some((engine, n_asked)) = open(manner, false) else { return };
        let error = score(&engine).unwrap_err().to_string();
        assert!(error.contains("prompt log-probabilities"), "{error}");
        assert_eq!(error.contains("the server is llama-server"), manner == Manner::NoLogprobs, "{error}");
        assert_eq!(n_asked.load(Ordering::SeqCst), 3, "only the probe was sent, once in each form");
    }
}

#[test]
fn a_busy_server_is_asked_again() {
    let Some((engine, n_asked)) = open(Manner::Busy, false) else { return };
    assert!(score(&engine).is_ok());
    assert_eq!(n_asked.load(Ordering::SeqCst), 2 + 1 + 2, "two refusals, the probe, two continuations");
}

#[test]
fn answers_come_by_token_ids_or_by_the_servers_template_when_that_is_asked_for() {
    let request = GenerateRequest {
        id: "g".into(),
        prompt: Prompt::Text("Once upon a time".into()),
        n: 3,
        sampling: Sampling::greedy(4),
    };
    let Some((engine, _)) = open(Manner::Good, false) else { return };
    let result =
        engine.generate(std::slice::from_ref(&request), &Progress::silent(), &Cancel::default()).unwrap().remove(0);
    let texts: Vec<&str> = result.completions.iter().map(|c| c.text.as_str()).collect();
    let alike = texts[0] == texts[1] || texts[1] == texts[2] || texts[0] == texts[2];
    assert!(texts.iter().all(|text| text.starts_with("seed ")) && !alike, "samples share a seed: {texts:?}");
    let again =
        engine.generate(&[GenerateRequest { n: 1, ..request.clone() }], &Progress::silent(), &Cancel::default());
    assert_eq!(again.unwrap()[0].completions[0].text, texts[0], "a sample's seed depends on how many are asked for");
    let Some((engine, _)) = open(Manner::Good, true) else { return };
    let messages = vec![Message { role: Role::User, content: "Hello".into() }];
    let chat = GenerateRequest { prompt: Prompt::Messages(messages), n: 1, ..request.clone() };
    let result = engine.generate(&[chat], &Progress::silent(), &Cancel::default()).unwrap().remove(0);
    assert_eq!(result.completions[0].text, "1 messages");
    assert_eq!(engine.identity().text, "server template");
    let error = engine.generate(&[request], &Progress::silent(), &Cancel::default()).unwrap_err().to_string();
    assert!(error.contains("give messages, or leave out --server-template"), "{error}");
}

/// Left out where it is off, as the server cannot turn on what it does not know; an error where it is on.
#[test]
fn a_sampling_field_that_a_server_does_not_know_is_left_out_only_when_it_is_off() {
    let Some((engine, n_asked)) = open(Manner::Strict, false) else { return };
    let request = |sampling| GenerateRequest { id: "g".into(), prompt: Prompt::Ids(vec![1, 403]), n: 1, sampling };
    let generate = |sampling| engine.generate(&[request(sampling)], &Progress::silent(), &Cancel::default());
    assert!(generate(Sampling::greedy(4)).is_ok());
    let n_first = n_asked.load(Ordering::SeqCst);
    assert!(generate(Sampling::greedy(4)).is_ok());
    assert_eq!(n_asked.load(Ordering::SeqCst), n_first + 1, "what was refused once is not sent again");
    for sampling in
        [Sampling { top_k: 5, ..Sampling::greedy(4) }, Sampling { repetition_penalty: 1.1, ..Sampling::greedy(4) }]
    {
        let Some((engine, _)) = open(Manner::Strict, false) else { return };
        let error = engine.generate(&[request(sampling.clone())], &Progress::silent(), &Cancel::default()).unwrap_err();
        let name = if sampling.top_k > 0 { "top_k" } else { "repetition_penalty" };
        assert!(error.to_string().contains(&format!("supplied: {name}")), "{error}");
    }
}

/// The tokenizer on this side renders nothing of what the server renders.
#[test]
fn a_servers_template_is_recorded_as_such_beside_a_tokenizer_too() {
    let Ok(data) = std::env::var("ALOE_DATA") else { return };
    let (address, _) = serve(Manner::Good);
    let tokenizer = Some(PathBuf::from(data).join("models/stories260K"));
    let options = EngineOptions { tokenizer, server_template: true, ..EngineOptions::default() };
    let engine = Engine::open(&address, &options).unwrap();
    assert_eq!(engine.identity().text, "server template");
    let text =
        GenerateRequest { id: "g".into(), prompt: Prompt::Text("x".into()), n: 1, sampling: Sampling::greedy(4) };
    let error = engine.generate(&[text], &Progress::silent(), &Cancel::default()).unwrap_err().to_string();
    assert!(error.contains("give messages, or leave out --server-template"), "{error}");
}
