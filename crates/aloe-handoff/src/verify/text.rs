//! Configuration, tokenizer and chat template of a returned folder against those that training started from.
//!
//! Engines write these files anew, in another order and with padding settings of their own, so meaning is compared and not bytes: of
//! `config.json` the model's shape, of `tokenizer.json` what every id means, of the template its text. A tokenizer is held to its
//! vocabulary: rows are ids, and what is taken over has the start's files.

use super::{Expectation, Findings};
use aloe_model::Config;
use aloe_text::TextModel;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const TEMPLATE: &str = "chat_template.jinja";

pub(super) fn check(findings: &mut Findings<'_>, expected: &Expectation) {
    let folder = findings.folder.to_path_buf();
    let pair = |name: &str| (json(&expected.start.join(name)), json(&folder.join(name)));
    // An adapter comes without its model's configuration.
    let has_config = expected.lora().is_none() || folder.join(CONFIG).exists();
    match pair(CONFIG) {
        _ if !has_config => {}
        (Ok(start), Ok(found)) => config(findings, &start, &found),
        (Err(error), _) => findings.add(CONFIG, "start", "readable", error),
        (_, Err(error)) => findings.add(CONFIG, "file", "JSON", error),
    }
    match pair(TOKENIZER) {
        (Ok(start), Ok(found)) => tokenizer(findings, &start, &found),
        (Err(error), _) => findings.add(TOKENIZER, "start", "readable", error),
        (_, Err(error)) => findings.add(TOKENIZER, "file", "JSON", error),
    }
    for (name, planned) in &expected.start_sha256 {
        let found = aloe_record::digest::file(&expected.start.join(name));
        let found = found.unwrap_or_else(|error| error.to_string());
        if found != *planned {
            findings.add(name, "start (sha256)", planned, found);
        }
    }
    let (start, found) = (template(&expected.start), template(&folder));
    if start != found {
        let digest = |text: Option<String>| text.map_or_else(|| "none".to_owned(), |text| digest_of_template(&text));
        findings.add(TEMPLATE, "template (sha256)", digest(start), digest(found));
    }
    if let Some(planned) = &expected.template_sha256 {
        match digest_of_start(&expected.start) {
            Ok(found) if found == *planned => {}
            Ok(found) => findings.add(TEMPLATE, "template of the start (sha256)", planned, found),
            Err(error) => findings.add(TEMPLATE, "start", "a tokenizer with a template", error),
        }
    }
}

/// The digest that [`Expectation::template_sha256`] holds, in short.
pub fn digest_of_template(source: &str) -> String {
    aloe_record::digest::bytes(source.as_bytes())[..16].to_owned()
}

/// That of the start's template now.
fn digest_of_start(start: &Path) -> Result<String, aloe_text::Error> {
    let template = TextModel::open(start)?.template;
    Ok(template.map_or_else(|| "none".to_owned(), |template| digest_of_template(template.source())))
}

fn json(path: &Path) -> Result<Value, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    serde_json::from_str(&text).map_err(|error| error.to_string())
}

/// Every field that decides what a forward pass computes.
fn config(findings: &mut Findings<'_>, start: &Value, found: &Value) {
    let (start, found) = match (Config::from_json(start), Config::from_json(found)) {
        (Ok(start), Ok(found)) => (start, found),
        (Err(error), _) => return findings.add(CONFIG, "start", "a model of ours", error),
        (_, Err(error)) => return findings.add(CONFIG, "model", "one of ours", error),
    };
    let shape = |config: &Config| -> Vec<(&'static str, String)> {
        vec![
            ("model_type", config.arch.model_type().to_owned()),
            ("vocab_size", config.vocab_size.to_string()),
            ("hidden_size", config.hidden_size.to_string()),
            ("intermediate_size", config.intermediate_size.to_string()),
            ("num_hidden_layers", config.num_hidden_layers.to_string()),
            ("num_attention_heads", config.num_attention_heads.to_string()),
            ("num_key_value_heads", config.num_key_value_heads.to_string()),
            ("head_dim", config.head_dim.to_string()),
            ("rms_norm_eps", config.rms_norm_eps.to_string()),
            ("rope_theta", config.rope_theta.to_string()),
            ("rope_scaling", format!("{:?}", config.rope_scaling)),
            ("max_position_embeddings", config.max_position_embeddings.to_string()),
            ("tie_word_embeddings", config.tie_word_embeddings.to_string()),
            ("attention_bias", config.attention_bias.to_string()),
        ]
    };
    for ((key, expected), (_, found)) in shape(&start).into_iter().zip(shape(&found)) {
        if expected != found {
            findings.add(CONFIG, key, expected, found);
        }
    }
}

/// Every text that has an id of its own, and the id: of the model's vocabulary and of the tokens added to it. `None` where the vocabulary is
/// no map.
fn vocabulary(file: &Value) -> Option<BTreeMap<String, Option<u64>>> {
    let known = file["model"]["vocab"].as_object()?.iter().map(|(text, id)| (text.clone(), id.as_u64()));
    let added = file["added_tokens"].as_array().into_iter().flatten();
    Some(known.chain(added.filter_map(|one| Some((one["content"].as_str()?.to_owned(), one["id"].as_u64())))).collect())
}

/// Every id must still mean what it meant. transformers 5 takes the vocabulary and the merges of many a file and builds all else itself, by the
/// class (Llama 2, Mistral 7B, GPT-2's for SmolLM2) or by the model's family (Qwen 2): such a file is told of and passes.
fn tokenizer(findings: &mut Findings<'_>, start: &Value, found: &Value) {
    let (ours, theirs) = (vocabulary(start), vocabulary(found));
    if let Some(vocabulary) = ours.filter(|ours| theirs.as_ref() == Some(ours)) {
        let is_same = |part: &str| plain(&start[part]) == plain(&found[part]);
        let around = put_around(&start["post_processor"]) == put_around(&found["post_processor"]);
        if !around || !["model", "normalizer", "pre_tokenizer", "decoder"].into_iter().all(is_same) {
            findings.notices.push(format!(
                "{TOKENIZER}: the engine's library built another tokenizer with the same {} ids; it trained on ids, and what is taken over has the \
                 start's tokenizer",
                vocabulary.len()
            ));
        }
        return;
    }
    for part in ["model", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder"] {
        let meaning = |file: &Value| match part {
            "post_processor" => Value::from(put_around(&file[part])),
            _ => plain(&file[part]),
        };
        let (expected, found) = (meaning(start), meaning(found));
        if expected != found {
            let digest =
                |value: &Value| format!("sha256 {}", &aloe_record::digest::bytes(value.to_string().as_bytes())[..16]);
            findings.add(TOKENIZER, part, digest(&expected), digest(&found));
        }
    }
}

/// The special tokens that a post-processor puts around one text, which is all that it does to ids. transformers writes a template that
/// adds nothing where there was none.
fn put_around(processor: &Value) -> Vec<String> {
    let pieces = processor["single"].as_array().into_iter().flatten();
    let mut found: Vec<String> =
        pieces.filter_map(|piece| piece["SpecialToken"]["id"].as_str().map(str::to_owned)).collect();
    for inner in processor["processors"].as_array().into_iter().flatten() {
        found.extend(put_around(inner));
    }
    for side in ["cls", "sep"] {
        found.extend(processor[side][0].as_str().map(str::to_owned));
    }
    found
}

/// Keys sorted, merges as `left right`, and without what is null or false, which newer versions of the library write out.
fn plain(value: &Value) -> Value {
    match value {
        Value::Object(entries) => {
            let mut sorted: Vec<(&String, Value)> = entries.iter().map(|(key, value)| (key, plain(value))).collect();
            sorted.retain(|(_, value)| !value.is_null() && *value != Value::Bool(false));
            sorted.sort_by(|left, right| left.0.cmp(right.0));
            let mut map: Map<String, Value> = sorted.into_iter().map(|(key, value)| (key.clone(), value)).collect();
            if let Some(Value::Array(merges)) = map.get_mut("merges") {
                merges.iter_mut().for_each(|merge| {
                    if let Value::Array(parts) = merge {
                        let parts: Vec<&str> = parts.iter().filter_map(Value::as_str).collect();
                        *merge = Value::from(parts.join(" "));
                    }
                });
            }
            Value::Object(map)
        }
        Value::Array(items) => Value::Array(items.iter().map(plain).collect()),
        other => other.clone(),
    }
}

/// The template of a folder: its own file, or an entry of the tokenizer's configuration.
fn template(folder: &Path) -> Option<String> {
    if let Ok(text) = std::fs::read_to_string(folder.join("chat_template.jinja")) {
        return Some(text);
    }
    let config = json(&folder.join("tokenizer_config.json")).ok()?;
    config["chat_template"].as_str().map(str::to_owned)
}
