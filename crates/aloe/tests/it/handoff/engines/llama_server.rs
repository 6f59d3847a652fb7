//! A real llama-server on the quickstart's base model, asked 100 of the shared questions: for scores it is refused by its name, for worked
//! answers it is taken. Needs the environment of `oracles/llama_server.py`: `ALOE_LLAMA`,
//! or llama in ~/.cache/aloe-venvs, made of `.ci/engines-llama.txt`; with `ALOE_REQUIRE_ENGINES=1` its absence fails.

use crate::{root, run};
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Python with llama.cpp's server, or `None` (said aloud).
fn python() -> Option<PathBuf> {
    let named = std::env::var_os("ALOE_LLAMA").map(PathBuf::from);
    let cached = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/aloe-venvs/llama"));
    let pythons = [named, cached].into_iter().flatten().map(|folder| folder.join("bin/python"));
    let is_there = |python: &PathBuf| {
        let mut command = Command::new(python);
        command.args(["-c", "import xllamacpp"]).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let found = pythons.filter(|python| python.is_file()).find(is_there);
    if found.is_none() {
        assert!(
            !super::is_required(),
            "no environment with llama.cpp's server: a venv of .ci/engines-llama.txt is one"
        );
        eprintln!("not run: no environment with llama.cpp's server");
    }
    found
}

/// A running server; dropping it ends it.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(python: &Path, model: &Path) -> Self {
        // The port is free until somebody else takes it in the moment between.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new(python);
        command.arg(root().join("oracles/llama_server.py")).arg(model).args([&port.to_string(), "4", "8192"]);
        command.env("LLAMA_THREADS", "1");
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let is_ready = lines.map_while(Result::ok).any(|line| line.starts_with("listening: "));
        assert!(is_ready, "the server ended: {:?}", child.wait());
        Self { child, port }
    }

    fn address(&self) -> String {
        format!("http://127.0.0.1:{}/v1#model", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// 100 short questions of MedMCQA with more flags.
fn evaluate(model: &str, tokenizer: &Path, out: &Path, more: &[&str]) -> (String, i32) {
    let data = std::env::var("ALOE_DATA").expect("asked before");
    let (tokenizer, out) = (tokenizer.to_str().unwrap(), out.to_str().unwrap());
    let arguments = ["eval", model, "--data", &data, "--tasks", "medmcqa", "--limit", "100", "--out", out];
    let (_, said, code) = run(&[&arguments[..], &["--tokenizer", tokenizer], more].concat());
    (said, code)
}

/// The questions that were answered.
fn answered(out: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(out.join("samples.jsonl")).unwrap();
    let samples = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    samples.filter(|sample| sample["refused"].is_null()).map(|sample| sample["id"].to_string()).collect()
}

#[test]
fn llama_server_is_refused_for_scores_by_its_name_and_answers_a_hundred_shared_questions() {
    if !super::may_ask_shared_questions() {
        return;
    }
    let Some(python) = python() else { return };
    let models = PathBuf::from(std::env::var_os("ALOE_MODELS").expect("ALOE_MODELS is set"));
    let model = models.join("smollm2-135m-instruct-q4_1/model.gguf");
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&python, &model);
    let scores = dir.path().join("scores");
    let (said, code) = evaluate(&server.address(), &model, &scores, &[]);
    assert!(code == 2 && said.contains("the server is llama-server") && said.contains("Nothing was scored"), "{said}");
    assert!(!scores.exists(), "a refused evaluation leaves nothing");
    let worked = ["--strategy", "cot", "--shots", "0", "--set", "max_new_tokens=4"];
    let served = dir.path().join("served");
    let (said, code) = evaluate(&server.address(), &model, &served, &worked);
    assert_eq!(code, 0, "{said}");
    assert_eq!(answered(&served).len(), 100);
}
