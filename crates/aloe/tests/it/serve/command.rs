//! `aloe serve` as a user starts and ends it.

use super::wire;
use crate::{aloe, run, stories};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// The program under way, and where it listens.
struct Started {
    child: Child,
    address: SocketAddr,
    line: String,
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Started {
    fn new(model: &Path, more: &[&str], key: Option<&str>) -> Self {
        let mut command = aloe();
        command.args(["serve", model.to_str().unwrap(), "--port", "0", "--threads", "1"]).args(more);
        command.env_remove("ALOE_API_KEY");
        if let Some(key) = key {
            command.env("ALOE_API_KEY", key);
        }
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.split("http://").nth(1).unwrap().trim_end().trim_end_matches("/v1").parse().unwrap();
        Self { child, address, line }
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }
}

#[test]
fn an_evaluation_through_the_server_is_that_of_the_model() {
    let Some(stories) = stories() else { return };
    let served = Started::new(&stories, &["--dtype", "f32"], None);
    assert!(served.line.starts_with("stories260K is served at http://127.0.0.1:"), "{}", served.line);
    let dir = tempfile::tempdir().unwrap();
    let address = format!("http://{}/v1", served.address);
    let starter = crate::root().join("starter").canonicalize().unwrap().display().to_string();
    let eval = |model: &str, name: &str, more: &[&str]| {
        let out = dir.path().join(name);
        let mut args = vec!["eval", model, "--data", &starter, "--out", out.to_str().unwrap()];
        args.extend(["--tasks", "starter_mcqa", "--protocol", "lm-eval", "--limit", "12"]);
        args.extend(more);
        let (_, stderr, code) = run(&args);
        assert_eq!(code, 0, "{stderr}");
        let read = |file: &str| std::fs::read_to_string(out.join(file)).unwrap();
        let samples: Vec<Value> =
            read("samples.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let results: Value = serde_json::from_str(&read("results.json")).unwrap();
        (samples, results["tasks"].clone())
    };
    let (local, results) = eval(stories.to_str().unwrap(), "local", &["--dtype", "f32"]);
    let (far, mut far_results) = eval(&address, "served", &["--tokenizer", stories.to_str().unwrap()]);
    assert_eq!(local.len(), 12);
    for (a, b) in local.iter().zip(&far) {
        for name in ["prompt_ids", "choices", "predicted", "correct_norm"] {
            assert_eq!(a[name], b[name], "{name}");
        }
    }
    // The server is asked twice, and says the same to the bit.
    assert_eq!(far_results[0]["noise_floor"]["max_nat"], 0.0);
    far_results[0].as_object_mut().unwrap().remove("noise_floor");
    assert_eq!(results, far_results);
}

#[test]
fn sigterm_ends_the_server_with_0_after_the_answers_and_ctrl_c_with_130() {
    let Some(stories) = stories() else { return };
    for (name, expected) in [("-TERM", 0), ("-INT", 130)] {
        let mut served = Started::new(&stories, &[], None);
        let body = json!({"prompt": "Once", "max_tokens": 400, "ignore_eos": true, "stream": true, "n": 8}).to_string();
        let mut client = wire::connect(served.address);
        client.write_all(&wire::request("POST", "/v1/completions", "", &body)).unwrap();
        let mut first = [0; 20];
        client.read_exact(&mut first).unwrap();
        served.signal(name);
        let mut bytes = first.to_vec();
        client.read_to_end(&mut bytes).unwrap();
        let events = wire::events(&wire::parse(&bytes).body);
        let ended = events.iter().filter(|event| event["choices"][0]["finish_reason"] == "length").count();
        assert_eq!(ended, 8);
        assert_eq!(served.child.wait().unwrap().code(), Some(expected));
    }
}

#[test]
fn an_address_that_others_can_reach_wants_a_key_and_a_server_of_servers_is_refused() {
    let Some(stories) = stories() else { return };
    let refused = |args: &[&str], says: &str| {
        let found = aloe().args(args).env_remove("ALOE_API_KEY").output().unwrap();
        let stderr = String::from_utf8_lossy(&found.stderr).into_owned();
        assert!(found.status.code() == Some(2) && stderr.contains(says), "{stderr}");
    };
    let stories_path = stories.to_str().unwrap();
    refused(&["serve", stories_path, "--host", "0.0.0.0", "--port", "0"], "ALOE_API_KEY");
    refused(&["serve", stories_path, "--host", "::", "--port", "0"], "ALOE_API_KEY");
    refused(&["serve", "http://127.0.0.1:9/v1"], "servers answer for it already");
    refused(&["serve", "no/such/folder", "--port", "0"], "no such folder");
    let served = Started::new(&stories, &["--host", "0.0.0.0"], Some("k"));
    let address = SocketAddr::from(([127, 0, 0, 1], served.address.port()));
    assert_eq!(wire::get(address, "/v1/models").status, 401);
    assert_eq!(wire::send(address, &wire::request("GET", "/v1/models", "Authorization: Bearer k\r\n", "")).status, 200);
    let taken = served.address.port().to_string();
    let other = aloe().args(["serve", stories_path, "--port", &taken]).output().unwrap();
    assert_eq!(other.status.code(), Some(2), "{}", String::from_utf8_lossy(&other.stderr));
}
