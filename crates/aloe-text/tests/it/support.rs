//! Models from `ALOE_MODELS`, golden files, and a reader for the metadata of GGUF files, small because it trusts them.

use aloe_text::{TextModel, TokenizerFiles};
use serde_json::{Map, Value, json};
use std::io::{BufReader, Read};
use std::path::PathBuf;
use std::sync::OnceLock;

/// The path under the folder that `variable` names, or None after saying what did not run.
pub(crate) fn resource(variable: &str, path: &str) -> Option<PathBuf> {
    let found = std::env::var_os(variable).map(|root| PathBuf::from(root).join(path)).filter(|path| path.exists());
    if found.is_none() {
        assert!(std::env::var_os("ALOE_REQUIRE").is_none(), "{variable}/{path} is required");
        println!("not run: {variable}/{path} is absent");
    }
    found
}

pub(crate) fn golden(name: &str) -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The real Llama 3 tokenizer, which adds no BOS itself, with its special tokens named.
pub(crate) fn llama3() -> Option<TextModel> {
    static MODEL: OnceLock<Option<TextModel>> = OnceLock::new();
    let load = || {
        let path = resource("ALOE_MODELS", "llama3-tokenizer/tokenizer.json")?;
        let config = json!({"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"});
        let files = TokenizerFiles {
            origin: "llama3".to_owned(),
            tokenizer_json: std::fs::read(path).unwrap(),
            config: config.as_object().unwrap().clone(),
            special_tokens_map: Map::new(),
            generation_eos_ids: vec![128_001, 128_009],
        };
        Some(TextModel::from_files(files).unwrap().with_template("llama3").unwrap())
    };
    MODEL.get_or_init(load).clone()
}

pub(crate) fn smollm2() -> Option<TextModel> {
    static MODEL: OnceLock<Option<TextModel>> = OnceLock::new();
    MODEL.get_or_init(|| from_gguf("smollm2-135m-instruct-q4_1")).clone()
}

pub(crate) fn qwen() -> Option<TextModel> {
    static MODEL: OnceLock<Option<TextModel>> = OnceLock::new();
    MODEL.get_or_init(|| from_gguf("qwen2.5-coder-0.5b-instruct-q4_k_m")).clone()
}

fn from_gguf(name: &str) -> Option<TextModel> {
    let path = resource("ALOE_MODELS", &format!("{name}/model.gguf"))?;
    Some(TextModel::from_gguf(&metadata(&path)).unwrap())
}

pub(crate) fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// `tokenizer.*` metadata of a GGUF file.
pub(crate) fn metadata(path: &std::path::Path) -> Map<String, Value> {
    let mut file = BufReader::new(std::fs::File::open(path).unwrap());
    assert_eq!(number(&mut file, 4), u64::from(u32::from_le_bytes(*b"GGUF")));
    let (_version, _tensors, entries) = (number(&mut file, 4), number(&mut file, 8), number(&mut file, 8));
    let mut map = Map::new();
    for _ in 0..entries {
        let key = text(&mut file);
        let kind = number(&mut file, 4);
        let value = value(&mut file, kind);
        if key.starts_with("tokenizer.") {
            map.insert(key, value);
        }
    }
    map
}

fn number(file: &mut impl Read, bytes: usize) -> u64 {
    let mut buffer = [0; 8];
    file.read_exact(&mut buffer[..bytes]).unwrap();
    u64::from_le_bytes(buffer)
}

fn text(file: &mut impl Read) -> String {
    let mut bytes = vec![0; number(file, 8) as usize];
    file.read_exact(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

fn value(file: &mut impl Read, kind: u64) -> Value {
    match kind {
        0 => json!(number(file, 1)),
        2 => json!(number(file, 2)),
        4 => json!(number(file, 4)),
        5 => json!(number(file, 4) as u32 as i32),
        6 => json!(f32::from_bits(number(file, 4) as u32)),
        7 => json!(number(file, 1) != 0),
        8 => json!(text(file)),
        9 => {
            let (kind, count) = (number(file, 4), number(file, 8));
            Value::Array((0..count).map(|_| value(file, kind)).collect())
        }
        10 => json!(number(file, 8)),
        other => panic!("GGUF type {other} is not expected in these files"),
    }
}
