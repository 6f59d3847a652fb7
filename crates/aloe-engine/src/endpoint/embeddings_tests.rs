//! The embeddings client against a loopback server that behaves, cannot embed, or changes.

use super::tests::read_request;
use crate::{Embedder, EngineOptions, Error};
use aloe_record::{Cancel, Progress};
use serde_json::{Value, json};
use std::io::{BufReader, Write};
use std::net::TcpListener;
use std::sync::Arc;

type Answer = dyn Fn(&[&str]) -> (&'static str, Value) + Send + Sync;

/// A server of the model `m`; status and body of `/v1/embeddings` by the texts.
fn open(answer: impl Fn(&[&str]) -> (&'static str, Value) + Send + Sync + 'static) -> crate::Result<Embedder> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/v1#m", listener.local_addr().unwrap());
    let answer: Arc<Answer> = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = Arc::clone(&answer);
            std::thread::spawn(move || {
                let mut reader = BufReader::new(&stream);
                while let Some((path, body)) = read_request(&mut reader) {
                    let texts = body["input"].as_array().map(Vec::as_slice).unwrap_or_default();
                    let texts: Vec<&str> = texts.iter().filter_map(Value::as_str).collect();
                    let (status, reply) = match path.as_str() {
                        "/v1/models" => ("200 OK", json!({"data": [{"id": "m", "root": "weights"}]})),
                        _ => answer(&texts),
                    };
                    let text = reply.to_string();
                    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", text.len());
                    let _ = (&stream).write_all(format!("{head}{text}").as_bytes());
                }
            });
        }
    });
    Embedder::open(&address, &EngineOptions::default())
}

/// A text's length and 1, as a server that answers in the order of its own batches: last first.
fn lengths(texts: &[&str]) -> (&'static str, Value) {
    let one = |(at, text): (usize, &&str)| json!({"index": at, "embedding": [text.len(), 1]});
    ("200 OK", json!({"data": texts.iter().enumerate().rev().map(one).collect::<Vec<_>>()}))
}

fn embed(embedder: &Embedder, texts: &[String]) -> crate::Result<Vec<Vec<f32>>> {
    let found = embedder.embed(texts, &Progress::silent(), &Cancel::default())?;
    Ok(found.into_iter().map(|one| one.vector).collect())
}

#[test]
fn each_text_has_its_own_vector_whatever_the_batches_and_the_order_of_an_answer() {
    let embedder = open(lengths).unwrap();
    let texts: Vec<String> = (1..=100).map(|n| "x".repeat(n)).collect();
    let found = embed(&embedder, &texts).unwrap();
    assert_eq!(found.len(), 100);
    for (n, vector) in (1..=100).zip(&found) {
        let norm = (f64::from(n * n) + 1.0).sqrt();
        assert!((f64::from(vector[0]) - f64::from(n) / norm).abs() < 1e-6, "{n}: {vector:?}");
    }
    assert_eq!(embedder.name(), "m, endpoint \"m\" \"weights\"");
}

#[test]
fn a_server_without_embeddings_is_refused_with_what_it_lacks() {
    let error = open(|_| ("501 Not Implemented", json!({"error": "start it with --embeddings"}))).err().unwrap();
    assert!(matches!(error, Error::Open { .. }), "{error}");
    assert!(error.to_string().contains("no embeddings on /v1/embeddings"), "{error}");
    assert!(error.to_string().contains("start it with --embeddings"), "{error}");
}

/// The batch is refused for one of its texts, which is then named, not by its words; nothing is cut.
#[test]
fn a_text_that_a_server_refuses_is_named_by_its_place_and_length() {
    let embedder = open(|texts| match texts.iter().any(|text| text.starts_with("long")) {
        true => ("400 Bad Request", json!({"error": "too many tokens"})),
        false => lengths(texts),
    })
    .unwrap();
    let mut texts: Vec<String> = (0..40).map(|n| format!("text {n}")).collect();
    texts[35] = "long ".repeat(50);
    let error = embed(&embedder, &texts).unwrap_err().to_string();
    assert!(error.contains("text 35 (of 250 characters)") && error.contains("too many tokens"), "{error}");
    let error = embed(&embedder, &[String::new()]).unwrap_err().to_string();
    assert!(error.contains("a text without tokens has no embedding"), "{error}");
}

#[test]
fn vectors_that_cannot_be_used_end_the_call() {
    let embedder = open(|texts| match texts {
        [_] => lengths(texts),
        _ => (
            "200 OK",
            json!({"data": texts.iter().map(|_| json!({"index": 0, "embedding": [1, 1]})).collect::<Vec<_>>()}),
        ),
    })
    .unwrap();
    let error = embed(&embedder, &["a".to_owned(), "b".to_owned()]).unwrap_err().to_string();
    assert!(error.contains("the embeddings cannot be used: two vectors have the index 0"), "{error}");
    let ragged = open(|texts| match texts {
        [_] => lengths(texts),
        _ => ("200 OK", json!({"data": [{"index": 0, "embedding": [1, 1, 1]}, {"index": 1, "embedding": [1, 1, 1]}]})),
    })
    .unwrap();
    let error = embed(&ragged, &["a".to_owned(), "b".to_owned()]).unwrap_err().to_string();
    assert!(error.contains("3 numbers where others have 2"), "{error}");
}

/// The canary's vector turns by 90 degrees once a text has said so.
#[test]
fn vectors_of_other_weights_are_not_handed_over() {
    let is_new = std::sync::atomic::AtomicBool::new(false);
    let embedder = open(move |texts| {
        use std::sync::atomic::Ordering::SeqCst;
        is_new.fetch_or(texts.contains(&"now"), SeqCst);
        let vector = if is_new.load(SeqCst) { json!([0, 1]) } else { json!([1, 0]) };
        let one = |at: usize| json!({"index": at, "embedding": vector});
        ("200 OK", json!({"data": (0..texts.len()).map(one).collect::<Vec<_>>()}))
    })
    .unwrap();
    let many = |last: &str| (0..40).map(|n| n.to_string()).chain([last.to_owned()]).collect::<Vec<_>>();
    assert_eq!(embed(&embedder, &many("then")).unwrap().len(), 41);
    let error = embed(&embedder, &many("now")).unwrap_err().to_string();
    assert!(
        error.contains("no longer answers as at the start: embeddings of one text have a cosine of 0.000"),
        "{error}"
    );
}
