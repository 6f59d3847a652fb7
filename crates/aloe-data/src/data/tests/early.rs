//! Bad input is refused before work on what is good: each refusal comes although something later is wrong too, or would have hidden it.

use super::*;

/// A source whose second row is broken: whoever has read it says so.
fn half_broken(dir: &Path) -> PathBuf {
    let path = dir.join("rows.jsonl");
    std::fs::write(&path, "{\"question\": \"What is gout?\", \"response\": \"A disease.\"}\n{\n").unwrap();
    path
}

fn refused(value: serde_json::Value) -> String {
    check(&config(value)).0.unwrap_err().to_string()
}

#[test]
fn a_tokenizer_or_template_that_cannot_be_used_is_refused_before_a_row_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let sources = json!([source("s", &half_broken(dir.path()))]);
    assert!(refused(json!({"sources": sources})).contains("rows.jsonl:2"), "the row is broken");
    let text = refused(json!({"sources": sources, "template": "llama3"}));
    assert!(text.contains("`template` is for counting with `tokenizer`"), "{text}");
    let empty = dir.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let text = refused(json!({"sources": sources, "tokenizer": empty}));
    assert!(text.contains("tokenizer.json") && !text.contains("rows.jsonl"), "{text}");
    let Some(models) = std::env::var_os("ALOE_MODELS").map(PathBuf::from) else {
        assert!(std::env::var_os("ALOE_REQUIRE").is_none(), "ALOE_MODELS is not set, but ALOE_REQUIRE is");
        return;
    };
    let tokenizer = dir.path().join("llama3");
    std::fs::create_dir(&tokenizer).unwrap();
    std::fs::copy(models.join("llama3-tokenizer/tokenizer.json"), tokenizer.join("tokenizer.json")).unwrap();
    let special = json!({"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"});
    std::fs::write(tokenizer.join("tokenizer_config.json"), special.to_string()).unwrap();
    let text = refused(json!({"sources": sources, "tokenizer": tokenizer, "template": "llama4"}));
    assert!(text.contains("llama4") && !text.contains("rows.jsonl"), "{text}");
    // Its turns end in words that the tokenizer has no token for.
    let text = refused(json!({"sources": sources, "tokenizer": tokenizer, "template": "chatml"}));
    assert!(!text.contains("rows.jsonl"), "{text}");
    assert!(
        refused(json!({"sources": sources, "tokenizer": tokenizer, "template": "llama3"})).contains("rows.jsonl:2")
    );
}

/// The row would be left out by the source's cap: before, it was found at the end, and only where it was drawn.
#[test]
fn a_row_without_a_subject_for_its_template_is_refused_before_duplicates_are_sought() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.jsonl");
    let row = |asked: &str| json!({"question": asked, "response": "A disease."}).to_string() + "\n";
    std::fs::write(&path, row("What is gout?") + &row("What is flu?")).unwrap();
    let mut value = json!({"sources": [source("s", &path), source("t", &path)], "templates": true, "dedup": {"exact": false, "minhash": false}});
    value["sources"][0]["subject"] = json!("rheumatology");
    value["sources"][1]["max_rows"] = json!(0);
    let text = refused(value.clone());
    assert!(text.contains("source `t`") && text.contains("rows.jsonl:1 names no subject"), "{text}");
    // A row that no template is for needs none.
    value["sources"][1]["task"] = json!("dialogue");
    assert_eq!(check(&config(value)).0.unwrap().n_train, 2);
}

#[test]
fn a_merge_of_other_settings_is_refused_before_a_row_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let sources = json!([source("s", &half_broken(dir.path()))]);
    let text = refused(json!({"sources": sources, "duplicates": dir.path().join("none")}));
    assert!(text.contains("dedup.json") && !text.contains("rows.jsonl"), "{text}");
}

/// With a quarantine too: it could keep nothing of them.
#[test]
fn a_file_of_which_no_row_can_be_read_stops_the_run_whatever_the_quarantine() {
    let dir = tempfile::tempdir().unwrap();
    let good = dir.path().join("good.jsonl");
    std::fs::write(&good, "{\"question\": \"What is gout?\", \"response\": \"A disease.\"}\n").unwrap();
    let utf16: Vec<u8> =
        [0xFF, 0xFE].into_iter().chain("{\"a\": 1}\n".encode_utf16().flat_map(u16::to_le_bytes)).collect();
    for (name, content, told) in [
        ("a.jsonl", utf16, "UTF-16"),
        ("a.parquet", b"PAR1 and no more".to_vec(), "not Parquet"),
        ("a.csv", b"question;answer\nA?;b\n".to_vec(), "semicolons"),
    ] {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        for quarantine in [false, true] {
            let text = refused(json!({"sources": [source("g", &good), source("s", &path)], "quarantine": quarantine}));
            assert!(text.contains(name) && text.contains(told), "{text}");
        }
    }
}
