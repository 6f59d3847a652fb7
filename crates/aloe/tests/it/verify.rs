//! `aloe verify` as `check.sh` calls it: a folder as an engine leaves it, good and broken, and the stage that it becomes.

use crate::run;
use aloe_model::testing::{Tiny, formula_params, tiny_config};
use aloe_model::{CheckpointWriter, Params};
use aloe_tensor::Dtype;
use serde_json::{Value, json};
use std::path::Path;

const N_STEPS: u64 = 6;

/// A checkpoint folder whose weights are the formula's plus `shift`.
fn write_checkpoint(folder: &Path, shift: f32) {
    let config = tiny_config(Tiny::Llama);
    let params: Params = formula_params(&config, 0);
    let mut writer = CheckpointWriter::create(folder, &config, Dtype::F32).unwrap();
    for (spec, tensor) in params.specs().iter().zip(params.tensors()) {
        let values: Vec<f32> = tensor.as_f32().iter().map(|value| value + shift).collect();
        writer.add(&spec.hf_name, &values).unwrap();
    }
    let vocab: serde_json::Map<String, Value> = (0..64).map(|id| (format!("w{id}"), json!(id))).collect();
    let added = json!([{"id": 2, "content": "w2", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}]);
    let tokenizer = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"}});
    let template = "{% for message in messages %}{{ message['role'] + ' ' + message['content'] + 'w2' }}{% endfor %}";
    let settings = json!({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "w2", "chat_template": template});
    let file = |name: &str, value: &Value| (name.to_owned(), value.to_string().into_bytes());
    writer.finish(&[file("tokenizer.json", &tokenizer), file("tokenizer_config.json", &settings)]).unwrap();
}

fn write_logs(folder: &Path, world_size: u32) {
    let versions = json!({"trl": "1.16.0", "torch": "2.15.0"});
    let begin = json!({"event": "begin", "unix_s": 1000.0, "step": 0, "max_steps": N_STEPS, "world_size": world_size, "n_hosts": 1,
        "devices": ["NVIDIA H100"], "versions": versions});
    let end = json!({"event": "end", "unix_s": 2800.0, "step": N_STEPS, "seconds": 1800.0});
    std::fs::write(folder.join("sessions.jsonl"), format!("{begin}\n{end}\n")).unwrap();
    let entry =
        |step: u64| json!({"step": step, "loss": 2.0 - step as f64 / 10.0, "grad_norm": 1.0, "learning_rate": 1e-5});
    let history: Vec<Value> = (1..=N_STEPS).map(entry).collect();
    let log: String = history.iter().map(|entry| format!("{entry}\n")).collect();
    std::fs::write(folder.join("log.jsonl"), log).unwrap();
    let state = json!({"global_step": N_STEPS, "log_history": history});
    std::fs::write(folder.join("trainer_state.json"), state.to_string()).unwrap();
}

/// A run folder with a base, rows, what a stage must be, and what TRL left of it.
fn write_run(run: &Path) {
    write_checkpoint(&run.join("out/base"), 0.0);
    write_checkpoint(&run.join("work/tune"), 0.001);
    write_logs(&run.join("work/tune"), 4);
    std::fs::create_dir_all(run.join("out/data")).unwrap();
    let row = json!({"messages": [{"role": "user", "content": "w3"}, {"role": "assistant", "content": "w4"}]});
    std::fs::write(run.join("out/data/train.jsonl"), format!("{row}\n")).unwrap();
    let stage = json!({"kind": "sft", "name": "tune", "config": {"lr": 1e-5, "seed": 3}, "counts": {"n_rows": 1, "n_tokens": 5, "n_targets": 2}});
    let expected = json!({"start": "out/base", "n_steps": N_STEPS, "world_size": 4, "n_nodes": 1, "versions": {"trl": "1.16.0"},
        "stops_at_spikes": true, "loss_may_be_zero": false, "stage": stage});
    std::fs::create_dir_all(run.join("stages/01-tune")).unwrap();
    std::fs::write(run.join("stages/01-tune/expected.json"), expected.to_string()).unwrap();
}

fn verify(run_folder: &Path, more: &[&str]) -> (String, String, i32) {
    let at = |name: &str| run_folder.join(name).display().to_string();
    let (work, expected, root) = (at("work/tune"), at("stages/01-tune/expected.json"), at(""));
    let mut args = vec!["verify", &work, "--expected", &expected, "--run", &root];
    args.extend(more);
    run(&args)
}

#[test]
fn a_model_from_another_trainer_is_checked_taken_over_and_told_as_its_own() {
    let dir = tempfile::tempdir().unwrap();
    write_run(dir.path());
    let (stdout, stderr, code) = verify(dir.path(), &[]);
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert!(stdout.contains("6 steps on 4 processes of 1 machine,"), "{stdout}");
    assert!(dir.path().join("work/tune/MANIFEST.json").is_file());
    let at = |name: &str| dir.path().join(name).display().to_string();
    let more = ["--out", &at("out/tune"), "--model", &at("out/base"), "--data", &at("out/data")];
    let (_, stderr, code) = verify(dir.path(), &more);
    assert_eq!(code, 0, "{stderr}");
    let record: Value = aloe_record::atomic::read_json(&dir.path().join("out/tune/record.json")).unwrap();
    let handoff = &record["results"]["handoff"];
    assert_eq!((record["kind"].as_str(), record["name"].as_str()), (Some("sft"), Some("tune")));
    assert_eq!((handoff["engine"].as_str(), handoff["versions"]["trl"].as_str()), (Some("trl"), Some("1.16.0")));
    // As `aloe run` says it in a run folder, and with what an epoch held.
    assert_eq!(record["config_used"]["trainer"], "trl: trl==1.16.0 transformers==5.23.0 accelerate==1.15.0");
    assert_eq!(record["results"]["sft"]["n_tokens"], 5);
    // 1,800 s of 4 processes are 2 device-hours.
    assert_eq!((handoff["device_hours"].as_f64(), handoff["devices"][0].as_str()), (Some(2.0), Some("NVIDIA H100")));
    assert!((record["results"]["sft"]["loss_last_tenth"].as_f64().unwrap() - 1.4).abs() < 1e-12);
    // The f32 weights are those that came back, to the bit.
    let bits = |folder: &str| {
        let source = aloe_model::ModelSource::open(&dir.path().join(folder)).unwrap();
        source.load_f32("lm_head.weight").unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    assert_eq!(bits("out/tune/master"), bits("work/tune"));
    assert!(dir.path().join("out/tune/model/tokenizer.json").is_file());
    let (_, stderr, code) = verify(dir.path(), &more);
    assert!(code == 0 && stderr.contains("was taken over before"), "{stderr}");
}

#[test]
fn a_broken_folder_fails_with_a_line_for_each_finding_and_nothing_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    write_run(dir.path());
    write_logs(&dir.path().join("work/tune"), 2);
    write_checkpoint(&dir.path().join("other"), 0.0);
    std::fs::copy(dir.path().join("other/model.safetensors"), dir.path().join("work/tune/model.safetensors")).unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let more = ["--out", &at("out/tune"), "--model", &at("out/base"), "--data", &at("out/data")];
    let (stdout, stderr, code) = verify(dir.path(), &more);
    assert_eq!(code, 1, "{stdout}{stderr}");
    assert!(stdout.contains("sessions.jsonl: world_size of session 1: expected 4, found 2\n"), "{stdout}");
    assert!(stdout.contains("model.safetensors: lm_head.weight: expected moved from where it started"), "{stdout}");
    assert!(stderr.contains("nothing was taken over") && !dir.path().join("out/tune").exists(), "{stderr}");
    assert!(!dir.path().join("work/tune/MANIFEST.json").exists());
}

#[test]
fn the_newest_whole_checkpoint_is_printed_and_a_newer_one_passed_over_aloud() {
    let dir = tempfile::tempdir().unwrap();
    for step in [10, 20] {
        let folder = dir.path().join(format!("checkpoint-{step}"));
        std::fs::create_dir(&folder).unwrap();
        for name in ["model.safetensors", "optimizer.pt", "trainer_state.json"] {
            std::fs::write(folder.join(name), "moments").unwrap();
        }
    }
    let work = dir.path().display().to_string();
    assert_eq!(run(&["verify", &work, "--newest"]).0, "");
    let digest = aloe_record::digest::bytes(b"moments");
    let file = json!({"size": 7, "sha256": digest});
    let files = json!({"model.safetensors": file, "optimizer.pt": file, "trainer_state.json": file});
    let manifest = json!({"step": 10, "files": files});
    std::fs::write(dir.path().join("checkpoint-10/MANIFEST.json"), manifest.to_string()).unwrap();
    let (stdout, stderr, code) = run(&["verify", &work, "--newest"]);
    assert_eq!((stdout.trim_end(), code), (format!("{work}/checkpoint-10").as_str(), 0));
    assert!(stderr.contains("passed over") && stderr.contains("checkpoint-20: has no MANIFEST.json"), "{stderr}");
}
