//! The files of a tokenizer: read from a folder, or built from GGUF metadata so that transformers loads them and encodes the same.
//!
//! GGUF keeps the vocabulary but names the pre-tokenizer only (`tokenizer.ggml.pre`). The regular expressions are those of
//! llama.cpp's `llama-vocab.cpp` and of the models' own tokenizer.json; a name not in the table is refused, because a near miss shifts
//! ids in silence.

use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::path::Path;

/// What a tokenizer is built from.
#[derive(Clone, Debug)]
pub struct TokenizerFiles {
    /// Folder or "GGUF metadata", for messages.
    pub origin: String,
    /// Bytes of tokenizer.json.
    pub tokenizer_json: Vec<u8>,
    /// tokenizer_config.json; `chat_template` is filled from chat_template.jinja if that exists.
    pub config: Map<String, Value>,
    /// special_tokens_map.json, or empty.
    pub special_tokens_map: Map<String, Value>,
    /// `eos_token_id` of generation_config.json, or of the metadata.
    pub generation_eos_ids: Vec<u32>,
}

impl TokenizerFiles {
    /// Reads a folder; only tokenizer.json must exist.
    pub fn read(dir: &Path) -> Result<TokenizerFiles> {
        let path = dir.join("tokenizer.json");
        let tokenizer_json = std::fs::read(&path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound if dir.is_dir() => Error::NoTokenizer { dir: dir.to_owned() },
            _ => Error::Read { path, source },
        })?;
        let mut config = optional_json(&dir.join("tokenizer_config.json"))?;
        let special_tokens_map = optional_json(&dir.join("special_tokens_map.json"))?;
        let generation = optional_json(&dir.join("generation_config.json"))?;
        let jinja = dir.join("chat_template.jinja");
        match std::fs::read_to_string(&jinja) {
            Ok(text) => _ = config.insert("chat_template".to_owned(), json!(text)),
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::Read { path: jinja, source }),
        }
        let ids = match generation.get("eos_token_id") {
            Some(Value::Array(ids)) => ids.iter().filter_map(id).collect(),
            Some(one) => id(one).into_iter().collect(),
            None => Vec::new(),
        };
        let origin = dir.display().to_string();
        Ok(TokenizerFiles { origin, tokenizer_json, config, special_tokens_map, generation_eos_ids: ids })
    }
}

fn id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

fn optional_json(path: &Path) -> Result<Map<String, Value>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => return Ok(Map::new()),
        Err(source) => return Err(Error::Read { path: path.to_owned(), source }),
    };
    serde_json::from_slice(&bytes).map_err(|source| Error::Json { path: path.to_owned(), source })
}

const GPT2: &str = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
const LLAMA3: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const QWEN2: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/// Byte-level pre-tokenizers by their GGUF name: (regex, digits one by one first, NFC, ignore_merges, BOS unless told otherwise).
fn pre_tokenizer(name: &str) -> Option<(&'static str, bool, bool, bool, bool)> {
    match name {
        "default" | "gpt-2" | "gpt2" => Some((GPT2, false, false, false, false)),
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" => Some((GPT2, true, false, false, false)),
        "llama-bpe" | "llama3" | "llama-v3" => Some((LLAMA3, false, false, true, true)),
        "qwen2" => Some((QWEN2, false, true, false, false)),
        _ => None,
    }
}

/// Token types of GGUF.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;

/// Builds tokenizer.json and its companions from `tokenizer.*` metadata.
pub fn tokenizer_from_gguf(metadata: &Map<String, Value>) -> Result<TokenizerFiles> {
    let meta = Metadata(metadata);
    let tokens = meta.strings("tokenizer.ggml.tokens")?;
    let types = match metadata.get("tokenizer.ggml.token_type") {
        Some(_) => meta.numbers("tokenizer.ggml.token_type")?.into_iter().map(|kind| kind as i64).collect(),
        None => vec![NORMAL; tokens.len()],
    };
    if types.len() != tokens.len() {
        let message = format!("{} types for {} tokens", types.len(), tokens.len());
        return Err(gguf_error("tokenizer.ggml.token_type", message));
    }
    let special = |key: &str| -> Result<Option<(usize, &str)>> {
        let Some(value) = metadata.get(key) else { return Ok(None) };
        let at = value.as_u64().map(|id| id as usize).filter(|&id| id < tokens.len());
        let at = at.ok_or_else(|| gguf_error(key, format!("{value} is no id of {} tokens", tokens.len())))?;
        Ok(Some((at, tokens[at])))
    };
    let added = added_tokens(&tokens, &types);
    let model = meta.string("tokenizer.ggml.model")?;
    let (mut file, bos_by_default) = match model {
        "gpt2" => byte_level(&meta, &tokens, &types)?,
        "llama" => sentencepiece(&meta, &tokens, &types)?,
        other => {
            return Err(gguf_error("tokenizer.ggml.model", format!("`{other}`: only `gpt2` and `llama` are known")));
        }
    };
    let mut config = Map::new();
    for (key, name) in [("bos", "bos"), ("eos", "eos"), ("padding", "pad"), ("unknown", "unk")] {
        if let Some((_, text)) = special(&format!("tokenizer.ggml.{key}_token_id"))? {
            config.insert(format!("{name}_token"), json!(text));
        }
    }
    let bos = special("tokenizer.ggml.bos_token_id")?;
    let adds_bos = meta.flag("tokenizer.ggml.add_bos_token").unwrap_or(bos_by_default) && bos.is_some();
    if let (true, Some((id, text))) = (adds_bos, bos) {
        file["post_processor"] = bos_post_processor(id, text);
    }
    file["added_tokens"] = Value::Array(added);
    config.insert("add_bos_token".to_owned(), json!(adds_bos));
    config.insert("clean_up_tokenization_spaces".to_owned(), json!(false));
    config.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
    if let Some(template) = metadata.get("tokenizer.chat_template") {
        config.insert("chat_template".to_owned(), template.clone());
    }
    let ends = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"];
    let ends = ends.iter().filter_map(|key| id(metadata.get(*key)?)).collect();
    Ok(TokenizerFiles {
        origin: "GGUF metadata".to_owned(),
        tokenizer_json: serde_json::to_vec(&file).unwrap_or_default(),
        config,
        special_tokens_map: Map::new(),
        generation_eos_ids: ends,
    })
}

struct Metadata<'a>(&'a Map<String, Value>);

impl<'a> Metadata<'a> {
    fn get(&self, key: &str) -> Result<&'a Value> {
        self.0.get(key).ok_or_else(|| gguf_error(key, "missing".to_owned()))
    }

    fn string(&self, key: &str) -> Result<&'a str> {
        self.get(key)?.as_str().ok_or_else(|| gguf_error(key, "not a string".to_owned()))
    }

    fn strings(&self, key: &str) -> Result<Vec<&'a str>> {
        let items = self.get(key)?.as_array().ok_or_else(|| gguf_error(key, "not an array".to_owned()))?;
        let text = |(i, item): (usize, &'a Value)| {
            item.as_str().ok_or_else(|| gguf_error(key, format!("item {i} is not a string")))
        };
        items.iter().enumerate().map(text).collect()
    }

    fn numbers(&self, key: &str) -> Result<Vec<f64>> {
        let items = self.get(key)?.as_array().ok_or_else(|| gguf_error(key, "not an array".to_owned()))?;
        let number = |(i, item): (usize, &Value)| {
            item.as_f64().ok_or_else(|| gguf_error(key, format!("item {i} is not a number")))
        };
        items.iter().enumerate().map(number).collect()
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.0.get(key).and_then(Value::as_bool)
    }
}

fn gguf_error(key: &str, message: String) -> Error {
    Error::Gguf { key: key.to_owned(), message }
}

/// Control tokens are special; user-defined ones are added but not special, as in the models' own files.
fn added_tokens(tokens: &[&str], types: &[i64]) -> Vec<Value> {
    let entry = |(id, (content, &kind)): (usize, (&&str, &i64))| {
        let added = matches!(kind, CONTROL | USER_DEFINED | UNKNOWN) && !content.is_empty();
        added.then(|| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": kind != USER_DEFINED})
        })
    };
    tokens.iter().zip(types).enumerate().filter_map(entry).collect()
}

fn bos_post_processor(id: usize, bos: &str) -> Value {
    let special = |type_id: u32| json!({"SpecialToken": {"id": bos, "type_id": type_id}});
    let sequence = |name: &str, type_id: u32| json!({"Sequence": {"id": name, "type_id": type_id}});
    json!({"type": "TemplateProcessing",
           "single": [special(0), sequence("A", 0)],
           "pair": [special(0), sequence("A", 0), special(1), sequence("B", 1)],
           "special_tokens": {bos: {"id": bos, "ids": [id], "tokens": [bos]}}})
}

fn vocabulary(tokens: &[&str], types: &[i64]) -> Map<String, Value> {
    let used = tokens.iter().zip(types).enumerate().filter(|(_, (_, kind))| **kind != UNUSED);
    used.map(|(id, (token, _))| ((*token).to_owned(), json!(id))).collect()
}

fn byte_level(meta: &Metadata<'_>, tokens: &[&str], types: &[i64]) -> Result<(Value, bool)> {
    let name = meta.0.get("tokenizer.ggml.pre").and_then(Value::as_str).unwrap_or("default");
    let Some((regex, digits, nfc, ignore_merges, adds_bos)) = pre_tokenizer(name) else {
        let known = "default, gpt-2, smollm, starcoder, refact, command-r, codeshell, llama-bpe, llama3, qwen2";
        return Err(gguf_error("tokenizer.ggml.pre", format!("`{name}` is not one of {known}")));
    };
    let mut steps = Vec::new();
    if digits {
        steps.push(json!({"type": "Digits", "individual_digits": true}));
    }
    let own_regex = regex == GPT2;
    if !own_regex {
        steps.push(json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false}));
    }
    steps.push(json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": own_regex}));
    let merges: Vec<Value> = meta
        .strings("tokenizer.ggml.merges")?
        .into_iter()
        .enumerate()
        .map(|(i, merge)| match merge.split_once(' ') {
            Some((left, right)) => Ok(json!([left, right])),
            None => Err(gguf_error("tokenizer.ggml.merges", format!("item {i} `{merge}` is not a pair"))),
        })
        .collect::<Result<_>>()?;
    let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": if nfc { json!({"type": "NFC"}) } else { Value::Null },
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": level, "decoder": level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                  "ignore_merges": ignore_merges, "vocab": vocabulary(tokens, types), "merges": merges}});
    Ok((file, adds_bos))
}

/// SentencePiece BPE: merges are the splits of each piece into two pieces, best score first, in the order of transformers'
/// `generate_merges`.
fn sentencepiece(meta: &Metadata<'_>, tokens: &[&str], types: &[i64]) -> Result<(Value, bool)> {
    let scores = meta.numbers("tokenizer.ggml.scores")?;
    if scores.len() != tokens.len() {
        let message = format!("{} scores for {} tokens", scores.len(), tokens.len());
        return Err(gguf_error("tokenizer.ggml.scores", message));
    }
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (*token, id)).collect();
    let mut merges: Vec<(f64, usize, usize, &str, &str)> = Vec::new();
    for (piece, (&score, &kind)) in tokens.iter().zip(scores.iter().zip(types)) {
        if kind != NORMAL && kind != USER_DEFINED {
            continue;
        }
        let splits = piece.char_indices().skip(1).map(|(at, _)| piece.split_at(at));
        let mut own: Vec<_> = splits.filter(|(l, r)| ids.contains_key(l) && ids.contains_key(r)).collect();
        own.sort_by_key(|(l, r)| (ids[l], ids[r]));
        merges.extend(own.into_iter().map(|(l, r)| (score, l.chars().count(), r.chars().count(), l, r)));
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)).then(b.2.cmp(&a.2)));
    let merges: Vec<Value> = merges.into_iter().map(|(_, _, _, l, r)| json!([l, r])).collect();
    let prefix = meta.flag("tokenizer.ggml.add_space_prefix").unwrap_or(true);
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let normalizers = if prefix { vec![json!({"type": "Prepend", "prepend": "▁"}), spaces] } else { vec![spaces] };
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let unknown = tokens.iter().zip(types).find(|(_, kind)| **kind == UNKNOWN).map(|(token, _)| *token);
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {"type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                  "vocab": vocabulary(tokens, types), "merges": merges}});
    Ok((file, true))
}
