//! Tokenizers built from GGUF metadata.

use crate::support::{golden, ids, llama3, qwen, resource, smollm2};
use aloe_text::{ChatTemplate, Error, TextModel, Tokenizer};
use serde_json::{Map, Value, json};

/// tok512.bin of llama2.c: max length, then (score f32, length i32, bytes) for each token.
fn stories_metadata(bytes: &[u8]) -> Map<String, Value> {
    let word = |at: usize| <[u8; 4]>::try_from(&bytes[at..at + 4]).unwrap();
    let (mut at, mut tokens, mut scores, mut types) = (4, Vec::new(), Vec::new(), Vec::new());
    while at < bytes.len() {
        let (score, length) = (f32::from_le_bytes(word(at)), i32::from_le_bytes(word(at + 4)) as usize);
        let piece = String::from_utf8_lossy(&bytes[at + 8..at + 8 + length]).into_owned();
        at += 8 + length;
        let id = tokens.len();
        let (piece, kind) = match id {
            0 => ("<unk>".to_owned(), 2),
            1 => ("<s>".to_owned(), 3),
            2 => ("</s>".to_owned(), 3),
            3..259 => (format!("<0x{:02X}>", id - 3), 6),
            _ => (piece.replace(' ', "▁"), 1),
        };
        tokens.push(piece);
        scores.push(score);
        types.push(kind);
    }
    let map = json!({"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.scores": scores,
                     "tokenizer.ggml.token_type": types, "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
                     "tokenizer.ggml.unknown_token_id": 0});
    map.as_object().unwrap().clone()
}

#[test]
fn a_sentencepiece_vocabulary_from_metadata_encodes_as_the_models_own_file() {
    let Some(dir) = resource("ALOE_DATA", "models/stories260K") else { return };
    let model = TextModel::from_gguf(&stories_metadata(&std::fs::read(dir.join("tok512.bin")).unwrap())).unwrap();
    let golden: Value = serde_json::from_slice(&std::fs::read(dir.join("golden.json")).unwrap()).unwrap();
    for case in golden["tokenizer"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        assert_eq!(model.encode_prompt_text(text).unwrap(), ids(&case["ids"]), "{text:?}");
    }
    assert_eq!(model.stop_ids(), [2]);
    assert!(!model.tokenizer.encode_plain("</s><s>").unwrap().iter().any(|&id| id < 3));
}

#[test]
fn written_files_open_again_as_the_same_model() {
    for model in [smollm2(), qwen()].into_iter().flatten() {
        let dir = tempfile::tempdir().unwrap();
        for file in model.files() {
            std::fs::write(dir.path().join(&file.name), &file.bytes).unwrap();
        }
        if let Some(keep) = std::env::var_os("ALOE_TEXT_KEEP") {
            let keep = std::path::Path::new(&keep).join(model.tokenizer.vocab_size().to_string());
            std::fs::create_dir_all(&keep).unwrap();
            for file in model.files() {
                std::fs::write(keep.join(&file.name), &file.bytes).unwrap();
            }
        }
        let again = TextModel::open(dir.path()).unwrap();
        assert_eq!(again.digest(), model.digest());
        let chat = [aloe_text::Message::user("Fièvre à 39°C?")];
        assert_eq!(again.encode_prompt(&chat).unwrap(), model.encode_prompt(&chat).unwrap());
        assert_eq!(again.end_of_turn(), model.end_of_turn());
    }
}

#[test]
fn broken_metadata_is_refused_with_its_key() {
    let good = json!({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": ["a", "b", "ab", "<e>"],
                      "tokenizer.ggml.token_type": [1, 1, 1, 3], "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.eos_token_id": 3});
    let good = good.as_object().unwrap();
    assert_eq!(Tokenizer::from_gguf(good).unwrap().encode_plain("ab").unwrap(), [2]);
    let changes = [
        ("tokenizer.ggml.model", json!("t5")),
        ("tokenizer.ggml.pre", json!("unheard-of")),
        ("tokenizer.ggml.tokens", json!(["a", 1])),
        ("tokenizer.ggml.tokens", json!("a")),
        ("tokenizer.ggml.token_type", json!([1])),
        ("tokenizer.ggml.merges", json!(["ab"])),
        ("tokenizer.ggml.eos_token_id", json!(99)),
    ];
    for (key, value) in changes {
        let mut bad = good.clone();
        bad.insert(key.to_owned(), value);
        match Tokenizer::from_gguf(&bad) {
            Err(Error::Gguf { key: named, .. }) => assert_eq!(named, key),
            other => panic!("{key}: {other:?}"),
        }
        bad.remove(key);
        _ = Tokenizer::from_gguf(&bad);
    }
}

#[test]
fn llama3_metadata_gives_the_ids_of_llama3s_own_file_and_adds_bos() {
    let Some(original) = llama3() else { return };
    let file: Value = serde_json::from_slice(original.tokenizer.json()).unwrap();
    let mut tokens = vec![String::new(); original.tokenizer.vocab_size()];
    let mut types = vec![1; tokens.len()];
    for (token, id) in file["model"]["vocab"].as_object().unwrap() {
        tokens[id.as_u64().unwrap() as usize].clone_from(token);
    }
    for (token, id) in original.tokenizer.control_tokens() {
        tokens[id as usize] = token.to_owned();
        types[id as usize] = 3;
    }
    let merges: Vec<String> = file["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|merge| match merge {
            Value::Array(parts) => format!("{} {}", parts[0].as_str().unwrap(), parts[1].as_str().unwrap()),
            other => other.as_str().unwrap().to_owned(),
        })
        .collect();
    let map = json!({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.tokens": tokens,
                     "tokenizer.ggml.token_type": types, "tokenizer.ggml.merges": merges,
                     "tokenizer.ggml.bos_token_id": 128_000, "tokenizer.ggml.eos_token_id": 128_001,
                     "tokenizer.ggml.eot_token_id": 128_009});
    let model = TextModel::from_gguf(map.as_object().unwrap()).unwrap();
    for case in golden("tokenizers.json")["llama3"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        assert_eq!(model.encode_prompt_text(text).unwrap(), [vec![128_000], ids(&case["ids"])].concat(), "{text:?}");
        assert_eq!(model.tokenizer.decode(&ids(&case["ids"]), false).unwrap(), text);
    }
    assert_eq!(model.stop_ids(), [128_001, 128_009]);
    // ChatML does not name BOS; on a tokenizer that adds it, the built-in one does. Its end of turn is not in this vocabulary.
    assert!(matches!(model.with_template("chatml"), Err(Error::NoEndOfTurn { .. })));
    assert!(ChatTemplate::builtin("chatml", true).unwrap().source().starts_with("{{ bos_token }}"));
}
