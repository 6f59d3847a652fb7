//! Rendered rows of a data stage are those that the trainer makes of the same rows, id for id; and broken rows go to the file asked for.

use crate::{root, run};
use aloe_text::{Conversation, Message, TextModel};
use aloe_train::{SftConfig, SftRow, trained_rows};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn lines(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A folder with Llama 3's tokenizer.
fn tokenizer(dir: &Path) -> Option<PathBuf> {
    let Some(models) = std::env::var_os("ALOE_MODELS").map(PathBuf::from) else {
        assert!(std::env::var_os("ALOE_REQUIRE").is_none(), "ALOE_MODELS is not set");
        return None;
    };
    let folder = dir.join("model");
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(models.join("llama3-tokenizer/tokenizer.json"), folder.join("tokenizer.json")).unwrap();
    let special = r#"{"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}"#;
    std::fs::write(folder.join("tokenizer_config.json"), special).unwrap();
    Some(folder)
}

#[test]
fn rendered_ids_and_labels_are_those_that_the_trainer_trains_on() {
    let dir = tempfile::tempdir().unwrap();
    let Some(model) = tokenizer(dir.path()) else { return };
    let (out, config) = (dir.path().join("out"), dir.path().join("data.toml"));
    let starter = root().join("starter").canonicalize().unwrap();
    let source = |name: &str, file: &str| {
        format!(
            "{{ name = \"{name}\", path = \"{}\", licence = \"mit\", subject = \"medicine\" }},",
            starter.join(file).display()
        )
    };
    let text = format!(
        "tokenizer = \"{}\"\ntemplate = \"llama3\"\nhold_out = 0.1\ntemplates = true\nsources = [{}{}{}]\n",
        model.display(),
        source("medical", "sft/medical.jsonl"),
        source("general", "sft/general.jsonl"),
        source("mcqa", "mcqa/starter_mcqa_train.jsonl")
    );
    std::fs::write(&config, text).unwrap();
    let args = ["data", "run", "--rendered", "--config", config.to_str().unwrap(), "--out", out.to_str().unwrap()];
    let (_, stderr, code) = run(&args);
    assert_eq!(code, 0, "{stderr}");
    let text = TextModel::open(&model).unwrap().with_template("llama3").unwrap();
    for (rows, rendered) in [("train.jsonl", "rendered.jsonl"), ("hold_out.jsonl", "rendered_hold_out.jsonl")] {
        let rows = lines(&out.join(rows));
        let taken: Vec<SftRow> = rows
            .iter()
            .map(|row| {
                let messages: Vec<Message> = serde_json::from_value(row["messages"].clone()).unwrap();
                SftRow { source: row["id"].to_string(), data_source: None, conversation: Conversation { messages } }
            })
            .collect();
        let trained = trained_rows(&taken, &text, &SftConfig::default()).unwrap();
        let rendered = lines(&out.join(rendered));
        assert!(!rows.is_empty() && rendered.len() == rows.len() && trained.len() == rows.len());
        for ((row, made), trained) in rows.iter().zip(&rendered).zip(&trained) {
            assert_eq!(row["id"], made["id"]);
            let ids: Vec<u32> = serde_json::from_value(made["input_ids"].clone()).unwrap();
            let mask: Vec<bool> =
                made["labels"].as_array().unwrap().iter().map(|label| label.as_i64() != Some(-100)).collect();
            assert_eq!((&ids, &mask), (&trained.ids, &trained.loss_mask), "{}", row["id"]);
            assert!(
                ids.iter()
                    .zip(made["labels"].as_array().unwrap())
                    .all(|(id, label)| { label.as_i64() == Some(i64::from(*id)) || label.as_i64() == Some(-100) })
            );
        }
    }
}

#[test]
fn broken_rows_go_to_the_file_asked_for_and_the_run_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (out, rows, apart) = (dir.path().join("out"), dir.path().join("rows.jsonl"), dir.path().join("apart.jsonl"));
    std::fs::write(
        &rows,
        "{\"instruction\": \"What is gout?\", \"output\": \"A disease.\"}\n{\"instruction\": 5, \"output\": \"x\"}\n",
    )
    .unwrap();
    let sources = format!("sources=[{{name=\"a\",path=\"{}\",licence=\"mit\"}}]", rows.display());
    let (out, apart_text) = (out.to_str().unwrap(), apart.to_str().unwrap());
    let (_, stderr, code) = run(&["data", "run", "--set", &sources, "--quarantine", apart_text, "--out", out]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!((lines(&apart).len(), lines(&Path::new(out).join("train.jsonl")).len()), (1, 1));
    assert!(!Path::new(out).join("quarantine.jsonl").exists());
}
