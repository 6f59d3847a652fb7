//! The hub client against a server on the loopback interface.

use super::*;
use std::collections::HashMap;
use std::io::{BufRead as _, BufReader};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the server does with `/resolve/` requests.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Good,
    /// Sends half of each body, then hangs up, as long as there are more than 3 bytes.
    BreaksOff,
    IgnoresRange,
    Denies,
    SendsOtherBytes,
}

struct Server {
    url: String,
    /// Request line, Range and Authorization of each request.
    seen: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(files: &[(&str, &[u8])], manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let files: HashMap<String, Vec<u8>> =
            files.iter().map(|(name, body)| (name.to_string(), body.to_vec())).collect();
        let log = Arc::clone(&seen);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                answer(stream.unwrap(), &files, manner, &log);
            }
        });
        Self { url, seen }
    }

    fn requests(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

fn answer(mut stream: TcpStream, files: &HashMap<String, Vec<u8>>, manner: Manner, log: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 || line.trim().is_empty() {
            break;
        }
        lines.push(line.trim().to_string());
    }
    let Some(target) = lines.first().and_then(|line| line.split(' ').nth(1)) else { return };
    let header = |name: &str| {
        lines.iter().find_map(|line| {
            line.split_once(": ").filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
        })
    };
    log.lock().unwrap().push(format!(
        "{target} {} {}",
        header("range").unwrap_or("-"),
        header("authorization").unwrap_or("-")
    ));
    if manner == Manner::Denies {
        respond(&mut stream, "401 Unauthorized", b"", 0);
    } else if target.starts_with("/api/") {
        let siblings: Vec<Value> = files
            .iter()
            .map(|(name, body)| serde_json::json!({"rfilename": name, "size": body.len(), "lfs": {"sha256": digest::bytes(body)}}))
            .collect();
        let listing = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string();
        respond(&mut stream, "200 OK", listing.as_bytes(), listing.len());
    } else {
        let name = target.rsplit_once(COMMIT).map_or("", |(_, name)| name.trim_start_matches('/'));
        let Some(body) = files.get(name) else { return respond(&mut stream, "404 Not Found", b"", 0) };
        let body = if manner == Manner::SendsOtherBytes { vec![b'?'; body.len()] } else { body.clone() };
        let from =
            header("range").and_then(|range| range.trim_start_matches("bytes=").trim_end_matches('-').parse().ok());
        let from: usize = from.filter(|_| manner != Manner::IgnoresRange).unwrap_or(0);
        let rest = &body[from..];
        let sent = if manner == Manner::BreaksOff && rest.len() > 3 { &rest[..rest.len() / 2] } else { rest };
        respond(&mut stream, if from > 0 { "206 Partial Content" } else { "200 OK" }, sent, rest.len());
    }
}

fn respond(stream: &mut TcpStream, status: &str, body: &[u8], announced: usize) {
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {announced}\r\nConnection: close\r\n\r\n");
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
}

const FILES: [(&str, &[u8]); 5] = [
    ("config.json", b"{}"),
    ("model.safetensors", b"these are the weights of the model"),
    ("1_Pooling/config.json", b"{ }"),
    ("pytorch_model.bin", b"never fetched"),
    ("../../evil.json", b"never written"),
];

fn hub(server: &Server, cache: &Path) -> Hub {
    Hub::new(&server.url, cache.to_path_buf(), Some("hf_secret".into()), false)
}

#[test]
fn a_repository_is_fetched_into_the_layout_of_huggingface_hub_and_found_there_offline() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&FILES, Manner::Good);
    let (snapshot, origin) = fetch("org/name", &hub(&server, dir.path()), &Cancel::default()).unwrap();
    assert_eq!(origin, format!("hf:org/name@{COMMIT}"));
    assert_eq!(snapshot, dir.path().join("models--org--name/snapshots").join(COMMIT));
    for (name, body) in &FILES[..3] {
        assert_eq!(std::fs::read(snapshot.join(name)).unwrap(), *body, "{name}");
    }
    let blob = std::fs::read_link(snapshot.join("model.safetensors")).unwrap();
    assert_eq!(blob, Path::new("../../blobs").join(digest::bytes(FILES[1].1)));
    assert_eq!(std::fs::read_to_string(dir.path().join("models--org--name/refs/main")).unwrap(), COMMIT);
    assert!(
        server
            .requests()
            .iter()
            .all(|line| line.ends_with("Bearer hf_secret") && !line.contains("evil") && !line.contains(".bin"))
    );
    // A second fetch asks for the list only; offline, nothing is asked.
    let before = server.requests().len();
    fetch("org/name", &hub(&server, dir.path()), &Cancel::default()).unwrap();
    assert_eq!(server.requests().len(), before + 1);
    let offline = Hub::new("http://127.0.0.1:9", dir.path().to_path_buf(), None, true);
    for source in ["org/name".to_string(), format!("org/name@{COMMIT}")] {
        assert_eq!(fetch(&source, &offline, &Cancel::default()).unwrap().0, snapshot);
    }
}

#[test]
fn a_download_that_was_interrupted_continues_where_it_stopped() {
    for manner in [Manner::Good, Manner::IgnoresRange] {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(&FILES, manner);
        let blobs = dir.path().join("models--org--name/blobs");
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::write(blobs.join(format!("{}.incomplete", digest::bytes(FILES[1].1))), &FILES[1].1[..10]).unwrap();
        let (snapshot, _) = fetch("org/name", &hub(&server, dir.path()), &Cancel::default()).unwrap();
        assert_eq!(std::fs::read(snapshot.join("model.safetensors")).unwrap(), FILES[1].1);
        assert!(server.requests().iter().any(|line| line.contains("model.safetensors bytes=10- ")));
        assert_eq!(std::fs::read_dir(blobs).unwrap().count(), 3);
    }
}

#[test]
fn a_connection_that_breaks_off_is_continued_within_one_fetch() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&FILES, Manner::BreaksOff);
    let (snapshot, _) = fetch("org/name", &hub(&server, dir.path()), &Cancel::default()).unwrap();
    assert_eq!(std::fs::read(snapshot.join("model.safetensors")).unwrap(), FILES[1].1);
    // 34 bytes: 17 came, then 8 of 17, then 4 of 9, then 2 of 5, then 3 of 3.
    let ranges: Vec<String> = server
        .requests()
        .into_iter()
        .filter(|line| line.contains("model.safe"))
        .map(|line| line.split(' ').nth(1).unwrap().into())
        .collect();
    assert_eq!(ranges, ["-", "bytes=17-", "bytes=25-", "bytes=29-", "bytes=31-"]);
}

#[test]
fn bytes_that_are_not_those_of_the_list_are_removed_and_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&FILES, Manner::SendsOtherBytes);
    let error = fetch("org/name", &hub(&server, dir.path()), &Cancel::default()).unwrap_err().to_string();
    assert!(error.contains("the hub lists"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path().join("models--org--name/blobs")).unwrap().count(), 0);
}

fn refused(files: &[(&str, &[u8])], manner: Manner, expected: &str) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(files, manner);
    let error = format!("{:#}", fetch("org/name", &hub(&server, dir.path()), &Cancel::default()).unwrap_err());
    assert!(error.contains(expected), "expected \"{expected}\" in: {error}");
}

#[test]
fn pickles_gguf_files_and_closed_doors_are_told_apart() {
    refused(&[("pytorch_model.bin", b"x"), ("config.json", b"{}")], Manner::Good, "only as pickles");
    refused(&[("m.gguf", b"x")], Manner::Good, "holds GGUF files");
    refused(&[("config.json", b"{}")], Manner::Good, "holds no model*.safetensors");
    refused(&FILES, Manner::Denies, "the token in use has no access");
}

#[test]
fn without_a_network_the_message_names_the_offline_switch() {
    let dir = tempfile::tempdir().unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let hub = Hub::new(&format!("http://{closed}"), dir.path().to_path_buf(), None, false);
    let error = format!("{:#}", fetch("org/name", &hub, &Cancel::default()).unwrap_err());
    assert!(error.contains("HF_HUB_OFFLINE=1"), "{error}");
    let offline = Hub::new("http://127.0.0.1:9", dir.path().to_path_buf(), None, true);
    let error = fetch("org/name", &offline, &Cancel::default()).unwrap_err().to_string();
    assert!(error.contains("holds no snapshot"), "{error}");
}

#[test]
fn repository_names_that_are_paths_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let offline = Hub::new("http://127.0.0.1:9", dir.path().to_path_buf(), None, true);
    for name in ["../x", "a/b/c", "a//b", "", "a/b@../main", "a/b@", "a b"] {
        let error = fetch(name, &offline, &Cancel::default()).unwrap_err().to_string();
        assert!(error.contains("is not hf:ORG/NAME"), "{name}: {error}");
    }
}

/// A data set as the hub lays it out: two splits, a folder of one, the card, and lists that are no rows.
const ROWS: [(&str, &[u8]); 7] = [
    ("README.md", b"# Pairs"),
    ("dataset_infos.json", b"{\"rows\": 3}"),
    ("data/train-00000-of-00002.jsonl", b"{\"a\": 1}\n{\"a\": 2}\n"),
    ("data/train-00001-of-00002.csv", b"a\n3\n"),
    ("data/test-00000-of-00001.jsonl", b"{\"a\": 4}\n{\"a\"\n"),
    (".gitattributes", b"hidden"),
    ("data/../../evil.jsonl", b"{\"a\": 5}\n"),
];

#[test]
fn a_data_set_is_fetched_as_it_is_with_resuming_and_digests_and_its_train_rows_are_counted() {
    use crate::sources::rows::pull_from;
    for manner in [Manner::Good, Manner::BreaksOff] {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(&ROWS, manner);
        let (hub, out) = (hub(&server, dir.path()), dir.path().join("out"));
        let pulled = pull_from("datasets/org/pairs", Some(3), &out, &hub, &Cancel::default()).unwrap();
        assert_eq!((pulled.n_rows, pulled.origin), (3, format!("hf:datasets/org/pairs@{COMMIT}")));
        let found: Vec<_> =
            pulled.files.iter().map(|(name, file)| (name.as_str(), file.n_rows, file.n_broken)).collect();
        assert_eq!(found, [(ROWS[4].0, 2, 1), (ROWS[2].0, 2, 0), (ROWS[3].0, 1, 0)]);
        for (name, body) in [ROWS[0], ROWS[2], ROWS[3], ROWS[4]] {
            assert_eq!(std::fs::read(out.join(name)).unwrap(), body, "{name}");
        }
        assert_eq!(pulled.files[ROWS[2].0].sha256, digest::bytes(ROWS[2].1));
        assert!(!out.join("dataset_infos.json").exists() && !out.join(".gitattributes").exists());
        assert!(dir.path().join("datasets--org--pairs/refs/main").is_file(), "the layout of huggingface_hub");
        let asked = server.requests();
        assert!(asked[0].starts_with("/api/datasets/org/pairs/revision/main?"), "{asked:?}");
        assert!(
            asked.iter().any(|line| line.starts_with("/datasets/org/pairs/resolve/"))
                && asked.iter().all(|line| !line.contains("evil"))
        );
        let resumed = asked.iter().any(|line| line.contains("bytes="));
        assert_eq!(resumed, manner == Manner::BreaksOff);
    }
}

#[test]
fn a_data_set_with_another_number_of_train_rows_is_refused_and_nothing_is_written() {
    use crate::sources::rows::pull_from;
    let dir = tempfile::tempdir().unwrap();
    let (server, out) = (Server::start(&ROWS, Manner::Good), dir.path().join("out"));
    let hub = hub(&server, dir.path());
    for (name, expect, told) in [
        ("datasets/org/pairs", Some(4), "3 train rows, and expect_rows is 4"),
        // The two published numbers stand in the reference, section 6.
        ("datasets/argilla/dpo-mix-7k", None, "3 train rows, and the published set has 6750"),
        ("datasets/nvidia/HelpSteer@main", None, "3 train rows, and the published set has 35331"),
    ] {
        let error = pull_from(name, expect, &out, &hub, &Cancel::default()).unwrap_err().to_string();
        assert!(error.contains(told) && error.contains("--expect-rows") && !out.exists(), "{error}");
    }
    let taken = pull_from("datasets/argilla/dpo-mix-7k", Some(3), &out, &hub, &Cancel::default()).unwrap();
    assert_eq!(taken.expected, Some((3, "expect_rows is")));
    let other = [("README.md", b"" as &[u8]), ("load.py", b"import os")];
    let (server, out) = (Server::start(&other, Manner::Good), dir.path().join("other"));
    let hub = Hub::new(&server.url, dir.path().join("cache"), None, false);
    let error = pull_from("datasets/org/script", None, &out, &hub, &Cancel::default()).unwrap_err().to_string();
    assert!(error.contains("no files of rows") && error.contains("refs/convert/parquet"), "{error}");
}
