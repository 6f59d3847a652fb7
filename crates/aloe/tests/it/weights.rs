//! The form of the weights, through the binary: blocks score near bf16, results name the form, and what cannot be had is refused.

use crate::{root, run, stories};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn gguf() -> Option<PathBuf> {
    match std::env::var("ALOE_MODELS") {
        Ok(models) => Some(PathBuf::from(models).join("smollm2-135m-instruct-q4_1/model.gguf")),
        Err(_) => {
            assert!(std::env::var("ALOE_REQUIRE").is_err(), "ALOE_MODELS is not set");
            eprintln!("not run: ALOE_MODELS is not set");
            None
        }
    }
}

/// The log-probabilities of the tokens of a few sentences, with further flags.
fn logps(model: &Path, sentences: &[&str], more: &[&str]) -> Vec<f64> {
    let dir = tempfile::tempdir().unwrap();
    let requests = dir.path().join("r.jsonl");
    let row = |text: &&str| serde_json::json!({"id": text, "prompt": text, "continuations": []}).to_string() + "\n";
    std::fs::write(&requests, sentences.iter().map(row).collect::<String>()).unwrap();
    let mut args = vec!["score", model.to_str().unwrap(), "--requests", requests.to_str().unwrap()];
    args.extend(more);
    let (stdout, stderr, code) = run(&args);
    assert_eq!(code, 0, "{more:?}: {stderr}");
    let line = |line: &str| {
        let result: Value = serde_json::from_str(line).unwrap();
        let logps = result["continuations"][0]["logps"].as_array().unwrap().clone();
        logps.into_iter().map(|logp| logp.as_f64().unwrap())
    };
    stdout.lines().flat_map(line).collect()
}

/// Mean and largest distance of two lists.
fn distance(a: &[f64], b: &[f64]) -> (f64, f64) {
    assert!(a.len() == b.len() && !a.is_empty());
    let far: Vec<f64> = a.iter().zip(b).map(|(a, b)| (a - b).abs()).collect();
    (far.iter().sum::<f64>() / far.len() as f64, far.iter().copied().fold(0.0, f64::max))
}

const STORY: [&str; 2] =
    ["Once upon a time there was a little girl named Lily.", "The dog was very happy and played in the park."];

const MEDICAL: [&str; 2] = [
    "Insulin is a hormone made in the pancreas that lets cells take up glucose from the blood.",
    "Pneumonia is an infection of the lungs; its signs are fever, cough and shortness of breath.",
];

/// Bounds in nats a token: a rounding to 8 bits moves a weight by 0.2 % of its block's largest, to 4 bits by 4 %, and stories260K is so
/// small that its logits feel it; the second of each pair is for the worst token.
#[test]
fn weights_rounded_on_load_score_near_bf16_in_the_order_of_their_bits() {
    let Some(stories) = stories() else { return };
    let dense = logps(&stories, &STORY, &["--dtype", "bf16"]);
    assert_eq!(dense, logps(&stories, &STORY, &[]), "bf16 is a folder's default");
    let q8 = distance(&logps(&stories, &STORY, &["--quantize", "q8"]), &dense);
    let q4 = distance(&logps(&stories, &STORY, &["--quantize", "q4", "--dtype", "bf16"]), &dense);
    assert!(q8.0 > 0.0 && q8.0 < 0.06 && q8.1 < 0.5, "{q8:?}");
    assert!(q4.0 > q8.0 && q4.0 < 0.6 && q4.1 < 4.0, "{q4:?}");
}

/// The bounds are those that a server with other arithmetic is held to: 0.10 a token on average, 0.35 at most.
#[test]
fn a_gguf_file_is_used_in_its_own_blocks_unless_a_dtype_is_named() {
    let Some(gguf) = gguf() else { return };
    let (stored, bf16) = (logps(&gguf, &MEDICAL, &[]), logps(&gguf, &MEDICAL, &["--dtype", "bf16"]));
    let far = distance(&stored, &bf16);
    assert!(far.0 > 0.0, "the blocks were not used");
    assert!(far.0 < 0.10 && far.1 < 0.35, "{far:?}");
}

#[test]
fn results_and_records_name_the_form_and_another_form_is_another_run() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (starter, out) = (root().join("starter").canonicalize().unwrap(), dir.path().join("eval"));
    let eval = |more: &[&str]| {
        let mut args = vec!["eval", stories.to_str().unwrap(), "--data", starter.to_str().unwrap()];
        args.extend(["--tasks", "starter_mcqa", "--limit", "2", "--out", out.to_str().unwrap()]);
        args.extend(more);
        let (stdout, stderr, code) = run(&args);
        assert_eq!(code, 0, "{stderr}");
        let found =
            |name: &str| -> Value { serde_json::from_str(&std::fs::read_to_string(out.join(name)).unwrap()).unwrap() };
        let (results, record) = (found("results.json"), found("record.json"));
        assert_eq!(record["results"]["eval"]["model"]["dtype"], results["model"]["dtype"]);
        (results["model"]["dtype"].as_str().unwrap().to_owned(), stdout.contains("was done already"))
    };
    assert_eq!(eval(&[]), ("bf16".into(), false));
    assert_eq!(eval(&["--dtype", "bf16"]), ("bf16".into(), true));
    assert_eq!(eval(&["--quantize", "q8"]), ("q8".into(), false));
    assert_eq!(eval(&["--set", "quantize=q8"]), ("q8".into(), true));
    assert_eq!(eval(&["--quantize", "q4"]), ("q4".into(), false));
    assert_eq!(eval(&["--dtype", "f32"]), ("f32".into(), false));
}

#[test]
fn a_quantisation_that_cannot_be_had_is_refused_before_the_model_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.gguf");
    std::fs::write(&file, "no model").unwrap();
    let out = dir.path().join("out");
    let (file, folder, out) = (file.to_str().unwrap(), dir.path().to_str().unwrap(), out.to_str().unwrap());
    let server = "http://127.0.0.1:9/v1#m";
    let chat =
        |model: &str, more: &[&str]| run(&[&["chat", model, "--prompt", "x", "--quantize", "q8"], more].concat());
    let eval = |model: &str, more: &[&str]| {
        let flags = ["eval", model, "--data", folder, "--tasks", "starter_mcqa", "--out", out, "--quantize", "q4"];
        run(&[&flags, more].concat())
    };
    for ((_, stderr, code), words) in [
        (chat(folder, &["--dtype", "f32"]), "rounds the weights and dtype f32 keeps them"),
        (eval(folder, &["--dtype", "f32"]), "rounds the weights and dtype f32 keeps them"),
        (chat(server, &[]), "are its server's"),
        (eval(server, &[]), "are its server's"),
        (chat(file, &[]), "used as they are"),
        (eval(file, &[]), "used as they are"),
    ] {
        assert_eq!(code, 2, "{stderr}");
        assert!(stderr.starts_with("error: --quantize q") && stderr.contains(words), "{stderr}");
    }
    let recipe = dir.path().join("r.toml");
    let text = "name = \"x\"\ndtype = \"f32\"\n[[stage]]\nkind = \"eval\"\nname = \"e\"\nfrom = { model = \"./m\" }\n\
                data = \"d\"\ntasks = [\"starter_mcqa\"]\nquantize = \"q8\"\n";
    for (text, words) in [
        (text.to_owned(), "dtype f32 keeps them"),
        (text.replace("f32", "bf16").replace("./m", "./m.gguf"), "used as they are"),
    ] {
        std::fs::write(&recipe, text).unwrap();
        let (_, stderr, code) = run(&["plan", recipe.to_str().unwrap()]);
        assert_eq!(code, 2, "{stderr}");
        assert!(stderr.contains(words) && stderr.contains("r.toml:3:"), "{stderr}");
    }
}

/// 1 MiB holds 25 pages of stories260K in bf16.
#[test]
fn the_memory_budget_of_keys_and_values_is_a_flag_and_a_key_is_stated_and_changes_no_result() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (starter, out) = (root().join("starter").canonicalize().unwrap(), dir.path().join("eval"));
    let eval = |more: &[&str]| {
        let mut args = vec!["eval", stories.to_str().unwrap(), "--data", starter.to_str().unwrap()];
        args.extend(["--tasks", "starter_mcqa", "--limit", "4", "--out", out.to_str().unwrap(), "--json"]);
        args.extend(more);
        let (stdout, stderr, code) = run(&args);
        assert_eq!(code, 0, "{stderr}");
        let samples = std::fs::read(out.join("samples.jsonl")).unwrap();
        let said: Value = serde_json::from_str(&stdout).unwrap();
        (samples, said["memory"]["kv_budget_bytes"].as_u64(), said["memory"]["peak_kv_bytes"].as_u64())
    };
    let (plain, Some(free), _) = eval(&[]) else { panic!("no budget is stated") };
    assert!(free > 64 << 20, "a quarter of what is free: {free}");
    assert_eq!(eval(&["--kv-budget", "1"]).1, Some(free), "the same stage: done already");
    std::fs::remove_dir_all(&out).unwrap();
    let (narrow, budget, peak) = eval(&["--kv-budget", "1"]);
    assert_eq!((narrow == plain, budget), (true, Some(1 << 20)));
    assert!(peak.unwrap() > 0 && peak.unwrap() <= 1 << 20, "{peak:?}");
    std::fs::remove_dir_all(&out).unwrap();
    assert_eq!(eval(&["--set", "kv_budget=2"]).1, Some(2 << 20));
    let (requests, answers) = (dir.path().join("r.jsonl"), dir.path().join("a.jsonl"));
    std::fs::write(&requests, "{\"id\": \"1\", \"prompt\": \"Once\", \"continuations\": [\" upon\"]}\n").unwrap();
    let mut args = vec!["score", stories.to_str().unwrap(), "--requests", requests.to_str().unwrap(), "--json"];
    args.extend(["--out", answers.to_str().unwrap(), "--kv-budget", "3"]);
    let said: Value = serde_json::from_str(&run(&args).0).unwrap();
    assert_eq!(said["memory"]["kv_budget_bytes"].as_u64(), Some(3 << 20));
}
