//! HTTP as it goes over the wire, byte by byte where a test wants it.

use serde_json::Value;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// An answer.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    /// Lower case, one `name: value` a line.
    pub(super) head: String,
    pub(super) body: String,
}

impl Reply {
    /// The error's message and field.
    pub(super) fn error(&self) -> (String, Value) {
        let body: Value = serde_json::from_str(&self.body).unwrap();
        assert!(body["error"]["type"].is_string(), "{}", self.body);
        (body["error"]["message"].as_str().unwrap().to_owned(), body["error"]["param"].clone())
    }
}

pub(super) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    stream
}

/// Sends bytes and reads the answer to its end; the connection is not kept.
pub(super) fn send(address: SocketAddr, bytes: &[u8]) -> Reply {
    let mut stream = connect(address);
    stream.write_all(bytes).unwrap();
    read(&mut stream)
}

pub(super) fn read(stream: &mut TcpStream) -> Reply {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    parse(&bytes)
}

pub(super) fn parse(bytes: &[u8]) -> Reply {
    let at = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("a head ends");
    let head = String::from_utf8(bytes[..at].to_vec()).unwrap().to_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let rest = &bytes[at + 4..];
    let body = if head.contains("transfer-encoding: chunked") { chunks(rest) } else { rest.to_vec() };
    Reply { status, head, body: String::from_utf8(body).unwrap() }
}

/// The data of a chunked body, which must end.
fn chunks(mut bytes: &[u8]) -> Vec<u8> {
    let mut data = Vec::new();
    loop {
        let end = bytes.windows(2).position(|window| window == b"\r\n").expect("a chunk's length ends");
        let len = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap(), 16).unwrap();
        if len == 0 {
            return data;
        }
        data.extend_from_slice(&bytes[end + 2..end + 2 + len]);
        bytes = &bytes[end + 4 + len..];
    }
}

pub(super) fn request(method: &str, path: &str, more: &str, body: &str) -> Vec<u8> {
    let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{more}");
    format!("{head}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

pub(super) fn post(address: SocketAddr, path: &str, body: &str) -> Reply {
    send(address, &request("POST", path, "", body))
}

pub(super) fn get(address: SocketAddr, path: &str) -> Reply {
    send(address, &request("GET", path, "", ""))
}

/// The objects of a stream of events, which must end with `[DONE]`.
pub(super) fn events(body: &str) -> Vec<Value> {
    let mut found: Vec<&str> = body.split("\n\n").filter(|event| !event.is_empty()).collect();
    assert_eq!(found.pop(), Some("data: [DONE]"), "{body}");
    found.iter().map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap()).collect()
}
