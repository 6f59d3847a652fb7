//! Clients that are slow, absent, greedy or many.

use super::{Served, wire, with_model};
use aloe_serve::Limits;
use serde_json::json;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Until `is` holds; the answers come when they come, and a minute is for a loaded machine.
fn wait_for(what: &str, is: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !is() {
        assert!(Instant::now() < until, "{what}");
        std::thread::yield_now();
    }
}

/// 128 answers of some hundred tokens each: seconds of work.
fn long(stream: bool) -> String {
    with_model(json!({"prompt": "Once upon a time", "n": 128, "max_tokens": 480, "ignore_eos": true, "stream": stream}))
        .to_string()
}

fn n_drawn(served: &Served) -> u64 {
    served.engine.counts().unwrap().n_drawn_tokens
}

/// 400 headers and 400 bodies that never end, while others ask.
#[test]
fn half_sent_requests_are_closed_in_time_and_others_are_answered_meanwhile() {
    let limits =
        Limits { header_timeout: Duration::from_secs(2), body_timeout: Duration::from_secs(2), ..Limits::default() };
    let Some(served) = Served::with_limits(limits) else { return };
    let half = |at: usize| {
        let mut stream = wire::connect(served.address);
        let head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
        let rest = if at.is_multiple_of(2) { "X-Half: " } else { "Content-Length: 100\r\n\r\n{\"prompt\": " };
        stream.write_all(format!("{head}{rest}").as_bytes()).unwrap();
        stream
    };
    let started = Instant::now();
    let streams: Vec<TcpStream> = (0..400).map(half).collect();
    let mut slowest = Duration::ZERO;
    for _ in 0..50 {
        let asked = Instant::now();
        assert_eq!(wire::get(served.address, "/health").status, 200);
        slowest = slowest.max(asked.elapsed());
    }
    assert_eq!(served.post("/v1/completions", json!({"prompt": "a", "max_tokens": 3})).status, 200);
    for (at, mut stream) in streams.into_iter().enumerate() {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        if at % 2 == 1 {
            assert_eq!(wire::parse(&bytes).status, 408);
        }
    }
    assert!(started.elapsed() < Duration::from_secs(2 + 10), "{:?}", started.elapsed());
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
}

/// By its length, and in chunks that do not say how many come.
#[test]
fn a_body_beyond_the_bound_is_refused_and_not_held() {
    let limits = Limits { max_body_bytes: 1 << 20, ..Limits::default() };
    let Some(served) = Served::with_limits(limits) else { return };
    let filler = "a".repeat(8 << 20);
    let whole = wire::post(served.address, "/v1/completions", &format!("{{\"prompt\": \"{filler}\"}}"));
    assert_eq!(whole.status, 413);
    assert!(whole.error().0.contains("1048576 bytes"), "{whole:?}");
    let mut stream = wire::connect(served.address);
    let head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
                Transfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    for _ in 0..64 {
        stream.write_all(format!("{:x}\r\n{}\r\n", 65536, &filler[..65536]).as_bytes()).unwrap();
    }
    stream.write_all(b"0\r\n\r\n").unwrap();
    assert_eq!(wire::read(&mut stream).status, 413);
}

/// A body beyond the bound, and two that would each fit alone: the room of the first is given back with its answer, not when it is read.
#[test]
fn bodies_of_requests_under_way_are_bounded_together() {
    let limits = Limits { max_held_bytes: 1000, ..Limits::default() };
    let Some(served) = Served::with_limits(limits) else { return };
    let small = json!({"prompt": "a", "max_tokens": 1});
    let fits = || served.post("/v1/completions", json!({"prompt": "a", "max_tokens": 1, "user": "b".repeat(600)}));
    assert_eq!(served.post("/v1/completions", small.clone()).status, 200);
    assert_eq!(served.post("/v1/completions", json!({"prompt": "a".repeat(2000)})).status, 429);
    assert_eq!(fits().status, 200, "what was held is given back");
    let body = long(true).replacen('{', &format!("{{\"user\": \"{}\", ", "b".repeat(500)), 1);
    let mut stream = wire::connect(served.address);
    stream.write_all(&wire::request("POST", "/v1/completions", "", &body)).unwrap();
    stream.peek(&mut [0; 20]).unwrap();
    assert_eq!(fits().status, 429);
    assert_eq!(served.post("/v1/completions", small).status, 200, "there is room for a small one");
    drop(stream);
    wait_for("what was held is never given back", || fits().status == 200);
}

/// More prompts than jobs may wait, two jobs for each where prompts are scored and answers drawn; and log-probabilities of 450 prompts
/// of 500 tokens, 21 at each place.
#[test]
fn a_request_for_too_much_is_refused_before_anything_of_it_runs() {
    let Some(served) = Served::stories() else { return };
    let refused = |path: &str, fields: serde_json::Value, words: [&str; 2]| {
        let reply = served.post(path, fields);
        assert_eq!(reply.status, 400, "{}", reply.body);
        let (message, _) = reply.error();
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
    };
    refused("/v1/completions", json!({"prompt": vec![[1]; 1025]}), ["1025 prompts", "1024"]);
    refused("/v1/embeddings", json!({"input": vec![[1]; 1025]}), ["1025 prompts", "1024"]);
    let both = json!({"prompt": vec![[1]; 600], "echo": true, "logprobs": 1, "max_tokens": 2});
    refused("/v1/completions", both, ["600 prompts", "512"]);
    let many = json!({"prompt": vec![vec![5; 500]; 450], "echo": true, "logprobs": 20, "max_tokens": 0});
    refused("/v1/completions", many, ["225000 tokens", "4194304"]);
    let long = json!({"prompt": vec![[1]; 100], "n": 100, "logprobs": 0, "max_tokens": 500});
    refused("/v1/completions", long, ["5000000 tokens", "4194304"]);
    assert_eq!(served.engine.counts().unwrap().n_computed_tokens, 0);
}

/// Its stream fills what the system holds for it, and then it is as good as gone: its place is free long before its answers would end.
#[test]
fn a_client_that_does_not_read_is_let_go_of() {
    let limits = Limits { max_requests: 1, write_timeout: Duration::from_millis(500), ..Limits::default() };
    let Some(served) = Served::with_limits(limits) else { return };
    let fields = json!({"prompt": "Once upon a time", "n": 128, "max_tokens": 480, "ignore_eos": true, "stream": true,
        "logprobs": 20, "return_token_ids": true});
    let mut client = wire::connect(served.address);
    client.write_all(&wire::request("POST", "/v1/completions", "", &with_model(fields).to_string())).unwrap();
    client.peek(&mut [0; 20]).unwrap();
    let small = || served.post("/v1/completions", json!({"prompt": "a", "max_tokens": 1}));
    assert_eq!(small().status, 429);
    wait_for("a client that does not read keeps its place", || small().status == 200);
    assert!(n_drawn(&served) < 128 * 480, "all {} tokens were drawn for nobody", n_drawn(&served));
}

/// Two places: one for a long request, one free, and then none.
#[test]
fn a_request_beyond_the_bound_is_told_to_come_again_and_a_place_is_free_when_its_client_is_gone() {
    let Some(served) = Served::with_limits(Limits { max_requests: 2, ..Limits::default() }) else { return };
    let small = || served.post("/v1/completions", json!({"prompt": "a", "max_tokens": 1}));
    let two = || served.post("/v1/completions", json!({"prompt": ["a", "b"], "max_tokens": 1}));
    let mut stream = wire::connect(served.address);
    stream.write_all(&wire::request("POST", "/v1/completions", "", &long(true))).unwrap();
    let mut first = [0; 200];
    stream.read_exact(&mut first).unwrap();
    assert_eq!(small().status, 200);
    let refused = two();
    assert_eq!(refused.status, 429);
    assert!(refused.head.contains("retry-after: 1"), "{}", refused.head);
    let three = served.post("/v1/completions", json!({"prompt": ["a", "b", "c"], "max_tokens": 1}));
    assert_eq!(three.status, 400, "it would never be taken: {}", three.body);
    drop(stream);
    wait_for("the place of a client that is gone is never free", || two().status == 200);
}

/// Streamed and whole: what a client that went away asked for is not drawn to its end.
#[test]
fn a_client_that_goes_away_ends_its_answer() {
    for stream in [true, false] {
        let Some(served) = Served::stories() else { return };
        let mut client = wire::connect(served.address);
        client.write_all(&wire::request("POST", "/v1/completions", "", &long(stream))).unwrap();
        wait_for("nothing is drawn", || served.engine.counts().unwrap().n_computed_tokens > 2000);
        drop(client);
        // One that comes after it is answered at once, and nothing of the first goes on.
        assert_eq!(served.post("/v1/completions", json!({"prompt": "a", "max_tokens": 1})).status, 200);
        wait_for("the answer of a client that is gone goes on", || {
            let before = served.engine.counts().unwrap().n_computed_tokens;
            assert_eq!(served.post("/v1/completions", json!({"prompt": "a", "max_tokens": 3})).status, 200);
            served.engine.counts().unwrap().n_computed_tokens - before < 10
        });
        assert!(n_drawn(&served) < 128 * 480 / 2, "{} tokens were drawn for nobody", n_drawn(&served));
    }
}

/// A short request beside long ones is answered long before their end: it joins while they run. On a machine that is busy with other
/// things the long ones may be over when it comes, so there are some tries.
#[test]
fn a_request_joins_while_others_run() {
    let Some(served) = Served::stories() else { return };
    let joins = (0..5).any(|_| {
        let before = served.engine.counts().unwrap().n_computed_tokens;
        let mut client = wire::connect(served.address);
        let few = json!({"prompt": "Once upon a time", "n": 16, "max_tokens": 490, "ignore_eos": true, "stream": true});
        client.write_all(&wire::request("POST", "/v1/completions", "", &with_model(few).to_string())).unwrap();
        client.peek(&mut [0; 20]).unwrap();
        let reading = std::thread::spawn(move || wire::read(&mut client));
        let short = json!({"prompt": "Tom", "max_tokens": 5, "temperature": 0});
        assert_eq!(served.post("/v1/completions", short).status, 200);
        let scored = json!({"prompt": "Tom saw a dog", "max_tokens": 0, "echo": true, "logprobs": 1});
        assert_eq!(served.post("/v1/completions", scored).status, 200);
        let computed = served.engine.counts().unwrap().n_computed_tokens - before;
        let rest = reading.join().unwrap();
        assert_eq!(rest.status, 200);
        wire::events(&rest.body);
        computed < 16 * 300
    });
    assert!(joins, "a short request waits until the long ones are over");
}

/// The server takes no more, and each of 20 streams ends whole.
#[test]
fn what_runs_when_the_server_ends_is_answered_to_its_end() {
    let Some(served) = Served::stories() else { return };
    let fields = json!({"prompt": "Once upon a time", "max_tokens": 300, "ignore_eos": true, "stream": true});
    let body = with_model(fields).to_string();
    let clients: Vec<TcpStream> = (0..20)
        .map(|_| {
            let mut client = wire::connect(served.address);
            client.write_all(&wire::request("POST", "/v1/completions", "", &body)).unwrap();
            let mut first = [0; 20];
            client.peek(&mut first).unwrap();
            client
        })
        .collect();
    let address = served.address;
    drop(served);
    assert!(TcpStream::connect(address).is_err(), "it still listens");
    for mut client in clients {
        let reply = wire::read(&mut client);
        let events = wire::events(&reply.body);
        assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "length");
    }
}

/// Time for the end of what runs is over: the stream says so, and the server ends.
#[test]
fn what_does_not_end_in_time_is_broken_off_with_an_error() {
    let Some(served) = Served::with_limits(Limits { drain_timeout: Duration::ZERO, ..Limits::default() }) else {
        return;
    };
    let mut client = wire::connect(served.address);
    client.write_all(&wire::request("POST", "/v1/completions", "", &long(true))).unwrap();
    let mut first = [0; 20];
    client.peek(&mut first).unwrap();
    // Read along: what does not fit into the socket could not be told.
    let reading = std::thread::spawn(move || wire::read(&mut client));
    drop(served);
    let reply = reading.join().unwrap();
    assert!(
        reply.body.trim_end().ends_with("\"code\":null}}") && reply.body.contains("the server is stopping"),
        "{reply:?}"
    );
}
