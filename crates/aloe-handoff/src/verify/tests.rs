//! Planted faults, each caught with the right file and name, and folders without one, none of which is refused. The folders are made
//! here, byte by byte, not by the writers that the checker's readers belong to.

mod adapter;
mod checkpoints;
mod held_out;
mod rates;

use super::*;
use aloe_model::testing::{Tiny, fill, tiny_config};
use aloe_model::{Config, arch};
use serde_json::{Value, json};

const N_STEPS: u64 = 80;

#[derive(Clone)]
struct Tensor {
    name: String,
    shape: Vec<usize>,
    dtype: &'static str,
    values: Vec<f32>,
}

/// A returned folder before it is written.
#[derive(Clone)]
struct Folder {
    config: Value,
    tokenizer: Value,
    template: Option<String>,
    tensors: Vec<Tensor>,
    n_shards: usize,
    /// (step, loss, gradient norm, learning rate) as Python writes them.
    steps: Vec<(u64, String, String, f64)>,
    log: Vec<(u64, String)>,
    global_step: u64,
    sessions: Vec<Value>,
}

fn tensors(config: &Config, shift: f32) -> Vec<Tensor> {
    let tensor = |spec: &aloe_model::TensorSpec| Tensor {
        name: spec.hf_name.clone(),
        shape: spec.shape.clone(),
        dtype: "F32",
        values: fill(&spec.hf_name, spec.n_elements()).into_iter().map(|value| value + shift).collect(),
    };
    arch::tensors(config).iter().map(tensor).collect()
}

fn tokenizer() -> Value {
    json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [{"id": 1, "content": "<s>"}], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "vocab": {"a": 0, "<s>": 1, "b": 2, "ab": 3}, "merges": ["a b"], "byte_fallback": false}})
}

fn begin(step: u64) -> Value {
    json!({"event": "begin", "unix_s": 1.0, "step": step, "max_steps": N_STEPS, "world_size": 8, "n_hosts": 2,
        "rows_sha256": "ab".repeat(32), "devices": ["NVIDIA H100"], "versions": {"trl": "1.16.0", "torch": "2.15.0"}})
}

fn end(step: u64) -> Value {
    json!({"event": "end", "unix_s": 3601.0, "step": step, "seconds": 3600.0})
}

impl Folder {
    fn good(kind: Tiny) -> Self {
        let config = tiny_config(kind);
        let steps = (1..=N_STEPS).map(|step| {
            let rate = if step < 8 { step as f64 } else { 88.0 - step as f64 } * 1e-6;
            (step, format!("{:.4}", 2.0 - step as f64 / 200.0), "1.25".to_owned(), rate)
        });
        let steps: Vec<_> = steps.collect();
        Self {
            config: config.to_json(),
            tokenizer: tokenizer(),
            template: Some("{{ messages }}".to_owned()),
            tensors: tensors(&config, 0.001),
            n_shards: 1,
            log: steps.iter().map(|(step, loss, ..)| (*step, loss.clone())).collect(),
            steps,
            global_step: N_STEPS,
            sessions: vec![begin(0), end(N_STEPS)],
        }
    }

    fn write(&self, folder: &Path) {
        std::fs::create_dir_all(folder).unwrap();
        let put = |name: &str, text: String| std::fs::write(folder.join(name), text).unwrap();
        put("config.json", self.config.to_string());
        put("tokenizer.json", self.tokenizer.to_string());
        put("tokenizer_config.json", "{}".to_owned());
        if let Some(template) = &self.template {
            put("chat_template.jinja", template.clone());
        }
        let entry = |(step, loss, norm, rate): &(u64, String, String, f64)| {
            format!(r#"{{"step": {step}, "loss": {loss}, "grad_norm": {norm}, "learning_rate": {rate}, "epoch": 0.5}}"#)
        };
        let history: Vec<String> = self.steps.iter().map(entry).collect();
        put(
            "trainer_state.json",
            format!(r#"{{"global_step": {}, "log_history": [{}]}}"#, self.global_step, history.join(",")),
        );
        let lines = |lines: Vec<String>| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
        put(
            "log.jsonl",
            lines(self.log.iter().map(|(step, loss)| format!(r#"{{"step": {step}, "loss": "{loss}"}}"#)).collect()),
        );
        put("sessions.jsonl", lines(self.sessions.iter().map(Value::to_string).collect()));
        self.write_weights(folder);
    }

    fn write_weights(&self, folder: &Path) {
        if self.n_shards == 1 {
            return std::fs::write(folder.join("model.safetensors"), safetensors(&self.tensors)).unwrap();
        }
        let mut map = serde_json::Map::new();
        for (at, part) in self.tensors.chunks(self.tensors.len().div_ceil(self.n_shards)).enumerate() {
            let name = format!("model-{:05}-of-{:05}.safetensors", at + 1, self.n_shards);
            std::fs::write(folder.join(&name), safetensors(part)).unwrap();
            map.extend(part.iter().map(|tensor| (tensor.name.clone(), json!(name))));
        }
        let index = json!({"metadata": {}, "weight_map": map});
        std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    }

    fn tensor(&mut self, part: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|tensor| tensor.name.contains(part)).unwrap()
    }

    fn restart(&mut self, from: usize) {
        let peak = self.steps[7].3;
        self.steps[from..].iter_mut().for_each(|step| step.3 = peak);
    }

    fn loss(&mut self, step: usize, loss: &str, norm: &str) {
        self.steps[step - 1].1 = loss.to_owned();
        self.steps[step - 1].2 = norm.to_owned();
        self.log[step - 1].1 = loss.to_owned();
    }
}

/// The format: 8 bytes of header length, a JSON header, the bytes.
fn safetensors(tensors: &[Tensor]) -> Vec<u8> {
    let (mut header, mut bytes) = (serde_json::Map::new(), Vec::new());
    for tensor in tensors {
        let start = bytes.len();
        for value in &tensor.values {
            match tensor.dtype {
                "F32" => bytes.extend(value.to_le_bytes()),
                _ => bytes.extend(((value.to_bits() >> 16) as u16).to_le_bytes()),
            }
        }
        header.insert(
            tensor.name.clone(),
            json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, bytes.len()]}),
        );
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    [(header.len() as u64).to_le_bytes().to_vec(), header, bytes].concat()
}

fn start(kind: Tiny, folder: &Path) -> Expectation {
    let start = Folder { tensors: tensors(&tiny_config(kind), 0.0), ..Folder::good(kind) };
    start.write(folder);
    Expectation {
        start: folder.to_path_buf(),
        start_sha256: Default::default(),
        template_sha256: None,
        rows_sha256: Some("ab".repeat(32)),
        n_steps: N_STEPS,
        world_size: 8,
        n_nodes: 2,
        versions: [("trl".to_owned(), "1.16.0".to_owned())].into(),
        stops_at_spikes: true,
        loss_may_be_zero: false,
        evaluates_held_out: false,
        tells_loaded: true,
        chunks: Vec::new(),
        stage: PlannedStage::default(),
    }
}

struct Fault {
    name: &'static str,
    make: fn(&mut Folder),
    after: fn(&Path),
    /// Part of the finding's file, and of what it names.
    file: &'static str,
    what: &'static str,
}

fn nothing(_: &Path) {}

fn same(_: &mut Folder) {}

fn fault(name: &'static str, make: fn(&mut Folder), file: &'static str, what: &'static str) -> Fault {
    Fault { name, make, after: nothing, file, what }
}

fn fault_of_files(name: &'static str, after: fn(&Path), file: &'static str, what: &'static str) -> Fault {
    Fault { name, make: same, after, file, what }
}

fn faults_of_weights() -> Vec<Fault> {
    let sharded = |f: &mut Folder| f.n_shards = 3;
    vec![
        fault(
            "a NaN",
            |f| f.tensor("0.self_attn.q_proj").values[5] = f32::NAN,
            "model.safetensors",
            "layers.0.self_attn.q_proj",
        ),
        fault(
            "an infinity",
            |f| f.tensor("1.mlp.up").values[0] = f32::INFINITY,
            "model.safetensors",
            "layers.1.mlp.up_proj",
        ),
        fault("a wrong shape", |f| f.tensor("1.mlp.down").shape.reverse(), "model.safetensors", "mlp.down_proj"),
        fault(
            "a missing tensor",
            |f| f.tensors.retain(|t| !t.name.contains("model.norm")),
            "model.safetensors",
            "model.norm.weight",
        ),
        fault(
            "an extra tensor",
            |f| {
                let name = "model.layers.2.mlp.up_proj.weight".to_owned();
                f.tensors.push(Tensor { name, shape: vec![2], dtype: "F32", values: vec![1.0, 2.0] });
            },
            "model.safetensors",
            "model.layers.2",
        ),
        fault(
            "bf16 in place of f32",
            |f| f.tensors.iter_mut().for_each(|t| t.dtype = "BF16"),
            "model.safetensors",
            "embed_tokens",
        ),
        Fault {
            name: "a missing shard",
            make: sharded,
            after: |dir| std::fs::remove_file(dir.join("model-00002-of-00003.safetensors")).unwrap(),
            file: "model-00002",
            what: "file",
        },
        Fault {
            name: "shards without an index",
            make: sharded,
            after: |dir| std::fs::remove_file(dir.join("model.safetensors.index.json")).unwrap(),
            file: "index.json",
            what: "file",
        },
        Fault {
            name: "an index of other shards",
            make: sharded,
            after: |dir| {
                let path = dir.join("model.safetensors.index.json");
                let text = std::fs::read_to_string(&path).unwrap();
                std::fs::write(&path, text.replacen("00001-of", "00003-of", 1)).unwrap();
            },
            file: "index.json",
            what: "model.",
        },
        fault_of_files(
            "a truncated file",
            |dir| {
                let path = dir.join("model.safetensors");
                let bytes = std::fs::read(&path).unwrap();
                std::fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
            },
            "model.safetensors",
            "file",
        ),
        fault_of_files(
            "a pickle",
            |dir| std::fs::rename(dir.join("model.safetensors"), dir.join("pytorch_model.bin")).unwrap(),
            "model.safetensors",
            "file",
        ),
    ]
}

fn faults_of_text() -> Vec<Fault> {
    vec![
        fault(
            "a swapped tokenizer",
            |f| f.tokenizer["model"]["vocab"] = json!({"b": 0, "a": 2}),
            "tokenizer.json",
            "model",
        ),
        fault(
            "another added token",
            |f| f.tokenizer["added_tokens"][0]["content"] = json!("<x>"),
            "tokenizer.json",
            "added_tokens",
        ),
        fault("another template", |f| f.template = Some("{{ messages[0] }}".into()), "chat_template.jinja", "template"),
        fault("no template", |f| f.template = None, "chat_template.jinja", "template"),
        fault(
            "another base of the rotary embedding",
            |f| f.config["rope_theta"] = json!(20000.0),
            "config.json",
            "rope_theta",
        ),
        fault(
            "another number of heads",
            |f| f.config["num_key_value_heads"] = json!(4),
            "config.json",
            "num_key_value_heads",
        ),
        fault_of_files(
            "no tokenizer",
            |dir| std::fs::remove_file(dir.join("tokenizer.json")).unwrap(),
            "tokenizer.json",
            "file",
        ),
        fault_of_files(
            "no config",
            |dir| std::fs::remove_file(dir.join("config.json")).unwrap(),
            "config.json",
            "file",
        ),
    ]
}

fn faults_of_logs() -> Vec<Fault> {
    vec![
        fault("loss 0 of a hidden NaN", |f| f.loss(30, "0", "NaN"), "trainer_state.json", "loss of step 30"),
        fault("loss 0 alone", |f| f.loss(30, "0.0", "1.0"), "trainer_state.json", "loss of step 30"),
        fault("a NaN loss", |f| f.loss(80, "NaN", "1.0"), "trainer_state.json", "loss of step 80"),
        fault("an infinite gradient", |f| f.loss(10, "1.5", "Infinity"), "trainer_state.json", "grad_norm of step 10"),
        fault("a spike", |f| f.loss(75, "9.5", "1.0"), "trainer_state.json", "loss of step 75"),
        fault("half the world", |f| f.sessions[0]["world_size"] = json!(4), "sessions.jsonl", "world_size"),
        fault("one machine of two", |f| f.sessions[0]["n_hosts"] = json!(1), "sessions.jsonl", "n_hosts"),
        fault("another version", |f| f.sessions[0]["versions"]["trl"] = json!("1.15.0"), "sessions.jsonl", "trl"),
        fault("no end", |f| f.sessions.truncate(1), "sessions.jsonl", "last event"),
        fault("no rows", |f| f.sessions[0]["rows_sha256"] = Value::Null, "sessions.jsonl", "rows_sha256 of session 1"),
        fault("no devices", |f| f.sessions[0]["devices"] = json!([]), "sessions.jsonl", "devices of session 1"),
        fault("no seconds", |f| f.sessions[1]["seconds"] = Value::Null, "sessions.jsonl", "seconds of the end"),
        fault("more hours than there were", |f| f.sessions[1]["seconds"] = json!(1e9), "sessions.jsonl", "seconds of"),
        fault("no time of its end", |f| f.sessions[1]["unix_s"] = Value::Null, "sessions.jsonl", "seconds of the end"),
        fault(
            "no gradient in any step",
            |f| f.steps.iter_mut().for_each(|step| step.2 = "0.0".to_owned()),
            "trainer_state.json",
            "grad_norm",
        ),
        fault(
            "one loss for all rows",
            |f| (1..=80).for_each(|step| f.loss(step, "2.5", "1.0")),
            "trainer_state.json",
            "loss",
        ),
        fault(
            "too few steps",
            |f| (f.global_step, f.steps) = (79, f.steps[..79].to_vec()),
            "trainer_state.json",
            "global_step",
        ),
        fault("a step left out", |f| drop(f.steps.remove(20)), "trainer_state.json", "entry 21"),
        fault("a step twice", |f| f.steps.insert(20, f.steps[20].clone()), "trainer_state.json", "entry 22"),
        fault("a schedule that starts again", |f| f.restart(60), "trainer_state.json", "learning_rate of step 61"),
        fault("an edited state", |f| f.steps[39].1 = "0.9".into(), "log.jsonl", "loss of step 40"),
        fault_of_files(
            "no state",
            |dir| std::fs::remove_file(dir.join("trainer_state.json")).unwrap(),
            "trainer_state.json",
            "file",
        ),
        fault_of_files(
            "a state cut off",
            |dir| {
                let path = dir.join("trainer_state.json");
                let text = std::fs::read_to_string(&path).unwrap();
                std::fs::write(&path, &text[..text.len() / 2]).unwrap();
            },
            "trainer_state.json",
            "text",
        ),
    ]
}

#[test]
fn every_planted_fault_is_found_by_file_and_name() {
    let dir = tempfile::tempdir().unwrap();
    let expected = start(Tiny::Llama, &dir.path().join("start"));
    let all: Vec<Fault> = [faults_of_weights(), faults_of_text(), faults_of_logs()].into_iter().flatten().collect();
    assert!(all.len() >= 40, "{}", all.len());
    let mut missed = Vec::new();
    for (at, fault) in all.iter().enumerate() {
        let folder = dir.path().join(format!("fault-{at}"));
        let mut made = Folder::good(Tiny::Llama);
        (fault.make)(&mut made);
        made.write(&folder);
        (fault.after)(&folder);
        let verdict = check(&folder, &expected);
        let hit = |finding: &&Finding| finding.file.contains(fault.file) && finding.what.contains(fault.what);
        if !verdict.findings.iter().any(|finding| hit(&finding)) {
            missed.push(format!("{}: {:#?}", fault.name, verdict.findings));
        }
        // One fault is one thing to read, unless it stands in every tensor or shard.
        let is_one =
            !["bf16 in place of f32", "a missing shard", "an index of other shards", "a truncated file", "a pickle"]
                .contains(&fault.name);
        assert!(!is_one || verdict.findings.len() <= 2, "{}: {:#?}", fault.name, verdict.findings);
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

#[test]
fn weights_that_did_not_move_are_found_all_of_them_or_one() {
    let dir = tempfile::tempdir().unwrap();
    let expected = start(Tiny::Llama, &dir.path().join("start"));
    let config = tiny_config(Tiny::Llama);
    let (unmoved, moved) = (tensors(&config, 0.0), tensors(&config, 0.001));
    for part in ["lm_head.weight", "model.norm.weight", ""] {
        let pick = |(old, new): (&Tensor, &Tensor)| if old.name.contains(part) { old.clone() } else { new.clone() };
        let made = Folder { tensors: unmoved.iter().zip(&moved).map(pick).collect(), ..Folder::good(Tiny::Llama) };
        let folder = dir.path().join(format!("unmoved-{part}"));
        made.write(&folder);
        let findings = check(&folder, &expected).findings;
        let n = if part.is_empty() { unmoved.len() } else { 1 };
        assert_eq!(findings.len(), n, "{findings:#?}");
        assert!(findings.iter().all(|finding| finding.expected.contains("moved")), "{findings:#?}");
    }
}

#[test]
fn a_tied_head_may_be_written_out_but_not_with_other_values() {
    let dir = tempfile::tempdir().unwrap();
    let expected = start(Tiny::Qwen2, &dir.path().join("start"));
    let mut made = Folder::good(Tiny::Qwen2);
    let mut head = made.tensor("embed_tokens").clone();
    head.name = "lm_head.weight".into();
    made.tensors.push(head);
    made.write(&dir.path().join("same"));
    assert_eq!(check(&dir.path().join("same"), &expected).findings, []);
    made.tensor("lm_head").values[3] += 1.0;
    made.write(&dir.path().join("other"));
    let findings = check(&dir.path().join("other"), &expected).findings;
    assert!(findings.len() == 1 && findings[0].what == "lm_head.weight", "{findings:#?}");
}

#[test]
fn twenty_two_good_folders_are_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let mut n = 0;
    for kind in [Tiny::Llama, Tiny::Qwen2] {
        let mut expected = start(kind, &dir.path().join(format!("start-{kind:?}")));
        let variants: [fn(&mut Folder); 11] = [
            |_| {},
            |f| f.n_shards = 2,
            |f| f.n_shards = 5,
            |f| f.sessions = vec![begin(0), begin(40), end(N_STEPS)],
            // A resumed run logs again what came after its checkpoint.
            |f| f.log = [&f.log[..50], &[(45, "3.0".into())], &f.log[40..]].concat(),
            |f| f.tokenizer["model"]["merges"] = json!([["a", "b"]]),
            |f| {
                f.tokenizer["post_processor"] =
                    json!({"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}]})
            },
            |f| f.tokenizer["padding"] = json!({"strategy": "BatchLongest"}),
            |f| f.steps.iter_mut().for_each(|step| step.3 = 1e-6),
            |f| (0..20).for_each(|at| f.loss(60 + at, "2.01", "1.3")),
            |f| f.tensors.reverse(),
        ];
        for make in variants {
            let folder = dir.path().join(format!("good-{n}"));
            let mut made = Folder::good(kind);
            make(&mut made);
            made.write(&folder);
            let verdict = check(&folder, &expected);
            assert!(verdict.is_good(), "{n}: {:#?}", verdict.findings);
            assert_eq!((verdict.facts.world_size, verdict.facts.n_steps), (8, N_STEPS));
            n += 1;
        }
        // The hinge loss of a pair far apart is 0.
        expected.loss_may_be_zero = true;
        let mut made = Folder::good(kind);
        made.loss(20, "0.0", "0.0");
        made.write(&dir.path().join("hinge"));
        assert!(check(&dir.path().join("hinge"), &expected).is_good());
    }
    assert_eq!(n, 22);
}

/// What transformers 5.23 makes of stories260K's file (class `LlamaTokenizer`), of SmolLM2's (`GPT2Tokenizer`) and of any of a Qwen 2 model:
/// other surroundings, the same ids.
#[test]
fn a_tokenizer_that_the_library_builds_anew_is_told_and_refused_only_where_its_vocabulary_differs() {
    let dir = tempfile::tempdir().unwrap();
    let expected = start(Tiny::Llama, &dir.path().join("start"));
    let mut made = Folder::good(Tiny::Llama);
    made.tokenizer["model"]["byte_fallback"] = json!(true);
    made.tokenizer["model"]["fuse_unk"] = json!(true);
    made.tokenizer["pre_tokenizer"] = json!({"type": "Metaspace", "replacement": "\u{2581}"});
    made.tokenizer["decoder"] = json!({"type": "Fuse"});
    let checked = |made: &Folder, name: &str| {
        let folder = dir.path().join(name);
        made.write(&folder);
        check(&folder, &expected)
    };
    let verdict = checked(&made, "rebuilt");
    assert!(verdict.is_good() && verdict.notices.len() == 1, "{verdict:#?}");
    assert!(verdict.notices[0].contains("the same 4 ids"), "{:?}", verdict.notices);
    assert_eq!(checked(&Folder::good(Tiny::Llama), "same").notices, [""; 0]);
    for (at, swapped) in
        [json!({"a": 2, "<s>": 1, "b": 0, "ab": 3}), json!({"a": 0, "<s>": 1, "b": 2}), json!({})].iter().enumerate()
    {
        made.tokenizer["model"]["vocab"] = swapped.clone();
        let verdict = checked(&made, &format!("swapped-{at}"));
        assert!(verdict.findings.iter().any(|one| one.file == "tokenizer.json" && one.what == "model"), "{verdict:#?}");
    }
}

/// A site model that is another one than when the rows were rendered, whose tokenizer came back unchanged.
#[test]
fn a_start_that_is_not_the_one_that_was_planned_with_is_found_by_its_digest() {
    let dir = tempfile::tempdir().unwrap();
    let mut expected = start(Tiny::Llama, &dir.path().join("start"));
    let folder = dir.path().join("work");
    Folder::good(Tiny::Llama).write(&folder);
    let digest = aloe_record::digest::bytes(tokenizer().to_string().as_bytes());
    expected.start_sha256 = [("tokenizer.json".to_owned(), digest.clone())].into();
    assert_eq!(check(&folder, &expected).findings, []);
    let other = tokenizer().to_string() + " ";
    std::fs::write(dir.path().join("start/tokenizer.json"), other).unwrap();
    let findings = check(&folder, &expected).findings;
    assert!(findings.len() == 1 && findings[0].what == "start (sha256)", "{findings:#?}");
    assert_eq!((findings[0].file.as_str(), findings[0].expected.as_str()), ("tokenizer.json", digest.as_str()));
}

/// Weights that somebody put in place of those that were planned with, and a template that the site's model has got since.
#[test]
fn a_start_with_other_weights_or_another_template_than_the_rows_were_rendered_with_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("start");
    let mut expected = start(Tiny::Llama, &at);
    let folder = dir.path().join("work");
    let bpe = |token: &str| {
        json!({"version": "1.0", "added_tokens": [{"id": 1, "content": token, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true}], "normalizer": null, "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": {"a": 0, token: 1, "b": 2}, "unk_token": "a"}})
    };
    let good = Folder { tokenizer: bpe("<s>"), ..Folder::good(Tiny::Llama) };
    Folder { tensors: tensors(&tiny_config(Tiny::Llama), 0.0), ..good.clone() }.write(&at);
    good.write(&folder);
    let weights = aloe_record::digest::file(&at.join("model.safetensors")).unwrap();
    expected.start_sha256 = [("model.safetensors".to_owned(), weights)].into();
    expected.template_sha256 = Some(digest_of_template("{{ messages }}"));
    assert_eq!(check(&folder, &expected).findings, []);
    // The returned folder has it too, as an export from that start would.
    for folder in [&at, &folder] {
        std::fs::write(folder.join("chat_template.jinja"), "<<USER>>{{ messages }}").unwrap();
    }
    let findings = check(&folder, &expected).findings;
    assert!(findings.len() == 1 && findings[0].what == "template of the start (sha256)", "{findings:#?}");
    std::fs::remove_file(at.join("chat_template.jinja")).unwrap();
    std::fs::remove_file(folder.join("chat_template.jinja")).unwrap();
    let findings = check(&folder, &expected).findings;
    assert!(findings.len() == 1 && findings[0].found == "none", "{findings:#?}");
    expected.template_sha256 = None;
    let path = at.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let findings = check(&folder, &expected).findings;
    assert!(findings.len() == 1 && findings[0].file == "model.safetensors", "{findings:#?}");
}

#[test]
fn a_sealed_folder_that_changes_in_one_bit_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let expected = start(Tiny::Llama, &dir.path().join("start"));
    let folder = dir.path().join("work");
    Folder::good(Tiny::Llama).write(&folder);
    seal(&folder, N_STEPS).unwrap();
    assert!(check(&folder, &expected).is_good());
    // Whoever may only read it seals nothing anew.
    let manifest = || std::os::unix::fs::MetadataExt::ino(&folder.join("MANIFEST.json").metadata().unwrap());
    let sealed = manifest();
    seal(&folder, N_STEPS).unwrap();
    assert_eq!(manifest(), sealed);
    let path = folder.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.len() - 2;
    bytes[at] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let findings = check(&folder, &expected).findings;
    assert!(findings.len() == 1 && findings[0].what.contains("model.safetensors has sha256"), "{findings:#?}");
    seal(&folder, N_STEPS).unwrap();
    assert!(manifest() != sealed && check(&folder, &expected).is_good());
}

/// The rows were made anew with as many of them, so that steps, shapes and losses tell nothing.
#[test]
fn a_model_of_other_rows_is_found_by_the_sessions_that_trained_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut expected = start(Tiny::Llama, &dir.path().join("start"));
    let checked = |sessions: &[Value], expected: &Expectation, name: &str| {
        let folder = dir.path().join(name);
        Folder { sessions: sessions.to_vec(), ..Folder::good(Tiny::Llama) }.write(&folder);
        check(&folder, expected).findings
    };
    let of = |step: u64, rows: &str| {
        let mut session = begin(step);
        session["rows_sha256"] = rows.into();
        session
    };
    expected.rows_sha256 = Some("new".into());
    let one = vec![of(0, "old"), end(N_STEPS)];
    let two = vec![of(0, "new"), of(40, "old"), end(N_STEPS)];
    for (name, sessions) in [("one", &one), ("two", &two)] {
        let findings = checked(sessions, &expected, name);
        assert!(
            findings.len() == 1 && findings[0].what == format!("rows_sha256 of session {}", sessions.len() - 1),
            "{findings:#?}"
        );
        assert_eq!((findings[0].expected.as_str(), findings[0].found.as_str()), ("new", "old"));
    }
    assert_eq!(checked(&[of(0, "old"), of(20, "old"), of(0, "new"), end(N_STEPS)], &expected, "anew"), []);
    // The start script writes them down in every session that trained what is there.
    let mut untold = begin(0);
    untold["rows_sha256"] = Value::Null;
    let findings = checked(&[untold, end(N_STEPS)], &expected, "untold");
    assert!(findings.len() == 1 && findings[0].found == "none", "{findings:#?}");
}
