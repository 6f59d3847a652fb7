//! Bad input gets one clear error, the exit code of its kind, and leaves no file behind.

use crate::{run, stories};
use std::path::Path;

/// Copies stories260K so that a test can damage it.
fn copy_model(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(from.join(name), to.join(name)).unwrap();
    }
}

fn score(model: &Path, requests: &str, out: &Path) -> (String, i32) {
    let file = out.with_extension("requests");
    std::fs::write(&file, requests).unwrap();
    let (_, stderr, code) = run(&[
        "score",
        model.to_str().unwrap(),
        "--requests",
        file.to_str().unwrap(),
        "--out",
        out.to_str().unwrap(),
        "--dtype",
        "f32",
    ]);
    (stderr, code)
}

/// What is done to the bytes of a good file.
type Damage = fn(Vec<u8>) -> Vec<u8>;

const GOOD: &str = "{\"id\": \"1\", \"prompt\": \"Once upon a time\", \"continuations\": [\" there\"]}\n";

#[test]
fn damaged_weights_are_refused_by_name_and_nothing_is_written() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("scores.jsonl");
    let damages: [(&str, Damage); 4] = [
        ("truncated", |bytes| bytes[..bytes.len() / 2].to_vec()),
        ("lying header length", |mut bytes| {
            bytes[6] = 0x7f;
            bytes
        }),
        ("wrong dtype", |bytes| {
            let text = String::from_utf8_lossy(&bytes[..6000]).into_owned();
            let at = text.find("\"F32\"").unwrap();
            let mut bytes = bytes;
            bytes[at + 1..at + 4].copy_from_slice(b"I32");
            bytes
        }),
        ("a pickle", |_| b"\x80\x02}q\x00.".to_vec()),
    ];
    for (name, damage) in damages {
        let model = dir.path().join(name.replace(' ', "-"));
        copy_model(&stories, &model);
        let path = model.join("model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, damage(bytes)).unwrap();
        let (stderr, code) = score(&model, GOOD, &out);
        assert_eq!(code, 2, "{name}: {stderr}");
        assert!(stderr.contains("model.safetensors") && stderr.starts_with("error: "), "{name}: {stderr}");
        assert!(!out.exists());
    }
}

#[test]
fn request_rows_that_are_wrong_are_all_named_by_file_and_line() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let rows = format!(
        "{GOOD}not json\n{{\"id\": \"2\", \"continuations\": []}}\n{{\"id\": \"3\", \"prompt\": \"x\", \"typo\": 1}}\n\
         {{\"id\": \"4\", \"prompt\": \"x\", \"continuations\": [], \"temperature\": 1}}\n"
    );
    let (stderr, code) = score(&stories, &rows, &dir.path().join("scores.jsonl"));
    assert_eq!(code, 2);
    for line in [":2:", ":3:", ":4:", ":5:"] {
        assert!(stderr.contains(line), "{line} missing in {stderr}");
    }
}

#[test]
fn a_folder_without_a_model_is_refused_with_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    let (_, stderr, code) = run(&["chat", dir.path().to_str().unwrap(), "--prompt", "Hello"]);
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("no config.json"), "{stderr}");
}

#[test]
fn chat_without_a_chat_template_says_what_to_do() {
    let Some(stories) = stories() else { return };
    let (_, stderr, code) = run(&["chat", stories.to_str().unwrap(), "--prompt", "Hello"]);
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("template"), "{stderr}");
}

#[test]
fn a_merge_with_density_0_or_2_is_refused_before_any_output() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    for density in ["0", "2"] {
        let config = dir.path().join("merge.yml");
        let model = stories.display();
        let yaml = format!(
            "merge_method: dare_ties\nbase_model: {model}\nmodels:\n  - model: {model}\n    parameters: {{density: {density}, weight: 1}}\n"
        );
        std::fs::write(&config, yaml).unwrap();
        let out = dir.path().join("merged");
        let (_, stderr, code) = run(&["merge", config.to_str().unwrap(), out.to_str().unwrap()]);
        assert_eq!(code, 2, "{stderr}");
        assert!(stderr.contains("density") && !out.exists(), "{stderr}");
    }
}

#[test]
fn data_that_is_empty_or_not_json_is_refused_by_file_and_line() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("rows.jsonl");
    let config = dir.path().join("data.toml");
    let source = format!(
        "sources = [{{ name = \"s\", path = {:?}, licence = \"mit\", dialect = \"alpaca\" }}]\n",
        data.display().to_string()
    );
    std::fs::write(&config, source).unwrap();
    let out = dir.path().join("out");
    for (content, word) in
        [("", "rows.jsonl"), ("{\"instruction\": \"a\", \"output\": \"b\"}\n{broken\n", "rows.jsonl:2")]
    {
        std::fs::write(&data, content).unwrap();
        let (_, stderr, code) =
            run(&["data", "run", "--config", config.to_str().unwrap(), "--out", out.to_str().unwrap()]);
        assert_eq!(code, 2, "{stderr}");
        assert!(stderr.contains(word) && !out.exists(), "{stderr}");
    }
}

#[test]
fn an_answer_key_out_of_range_is_refused_with_its_line() {
    let Some(stories) = stories() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mcqa = dir.path().join("mcqa");
    std::fs::create_dir_all(&mcqa).unwrap();
    let row = "{\"id\": \"q1\", \"question\": \"x\", \"opa\": \"a\", \"opb\": \"b\", \"opc\": \"c\", \"opd\": \"d\", \"cop\": 7, \
               \"choice_type\": \"single\", \"exp\": \"\", \"subject_name\": \"anatomy\", \"topic_name\": \"\"}\n";
    std::fs::write(mcqa.join("starter_mcqa_test.jsonl"), row).unwrap();
    let out = dir.path().join("out");
    let (_, stderr, code) = run(&[
        "eval",
        stories.to_str().unwrap(),
        "--tasks",
        "starter_mcqa",
        "--data",
        dir.path().to_str().unwrap(),
        "--out",
        out.to_str().unwrap(),
    ]);
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("starter_mcqa_test.jsonl:1") && !out.exists(), "{stderr}");
}
