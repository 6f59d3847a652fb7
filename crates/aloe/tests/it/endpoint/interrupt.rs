//! Ctrl-C while servers are asked what they serve: the command ends at once, whatever they do.

use crate::{aloe, stories};
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Starts `aloe score` on the server at `address`, interrupts it once `is_waiting` returns, and expects exit code 130 soon after.
fn check(address: &str, is_waiting: impl FnOnce(&mut dyn BufRead)) {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let requests = dir.path().join("r.jsonl");
    std::fs::write(&requests, "{\"id\": \"a\", \"prompt\": \"Once\", \"continuations\": []}\n").unwrap();
    let model = format!("http://{address}/v1#m");
    let mut child = aloe()
        .args(["score", &model, "--requests", requests.to_str().unwrap(), "--tokenizer", stories.to_str().unwrap()])
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    is_waiting(&mut BufReader::new(child.stderr.take().unwrap()));
    let asked = Instant::now();
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(asked.elapsed() < Duration::from_millis(1500), "{:?}", asked.elapsed());
}

/// Its time-out is 10 seconds.
#[test]
fn an_interrupt_does_not_wait_for_a_server_that_takes_the_connection_and_says_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut connection = None;
    check(&address, |_| connection = listener.accept().ok());
    assert!(connection.is_some());
}

/// Four seconds and more lie between the first try and the last.
#[test]
fn an_interrupt_does_not_wait_for_the_next_try_of_a_server_that_is_down() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    check(&address, |stderr| {
        let mut lines = stderr.lines().map_while(Result::ok);
        assert!(lines.any(|line| line.contains("trying again in 1 s")));
    });
}
