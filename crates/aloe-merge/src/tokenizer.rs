//! The files beside the weights: whose tokenizer the result gets, its chat template, and whether the inputs' tokenizers agree.
//!
//! Refuses to merge embeddings whose rows mean different words. Renamed added tokens (`<|reserved_special_token_0|>` that a
//! fine-tune calls `<|im_start|>`) are noted, not refused: mergekit merges them too, and users do it knowingly.

use crate::beside::Beside;
use crate::config::{ChatTemplateChoice, MergeConfig};
use crate::inputs::PlannedModel;
use crate::tokenizer_file::{TokenizerFile, forget_in_config, list_in_config};
use crate::vocabulary::note_past;
use crate::{Error, Result, named_template};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// What is copied from the donor, as mergekit does.
const FILES: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
];

/// The vocabulary in other forms, which a changed `tokenizer.json` would contradict.
const STALE: [&str; 3] = ["vocab.json", "merges.txt", "tokenizer.model"];

/// The vocabulary of a `tokenizer.json`: id to token, and which of them were added.
struct Vocabulary {
    tokens: BTreeMap<u64, String>,
    added: BTreeSet<u64>,
}

/// Compares every model's tokenizer with the donor's on the ids they share. Gives the donor's without the tokens that lie past its embedding, where
/// it has some, with a note: an id without a row ends a program that looks it up.
pub(crate) fn compare(models: &[PlannedModel], donor: usize, notes: &mut Vec<String>) -> Result<Option<TokenizerFile>> {
    let Some(expected) = vocabulary(&models[donor].beside)? else {
        notes.push(format!("{} has no tokenizer.json: tokenizers were not compared", models[donor].name));
        return Ok(None);
    };
    for model in models.iter().enumerate().filter(|(index, _)| *index != donor).map(|(_, model)| model) {
        let name = &model.name;
        let Some(found) = vocabulary(&model.beside)? else {
            notes.push(format!("{name} has no tokenizer.json: its tokenizer was not compared"));
            continue;
        };
        let differing: Vec<u64> = expected
            .tokens
            .iter()
            .filter(|(id, token)| found.tokens.get(id).is_some_and(|f| f != *token))
            .map(|(id, _)| *id)
            .collect();
        let is_added = |id: &&u64| expected.added.contains(id) || found.added.contains(id);
        if let Some(id) = differing.iter().find(|id| !is_added(id)) {
            let reason = format!(
                "its tokenizer gives {} ids another meaning than that of {} (id {id}: {:?}, expected {:?}); \
                 `tokenizer_source: union` (or base, or a model) moves the rows",
                differing.len(),
                models[donor].name,
                found.tokens[id],
                expected.tokens[id]
            );
            return Err(Error::model(name, reason));
        }
        if let Some(id) = differing.first() {
            notes.push(format!(
                "{name} names {} added tokens differently from {} (id {id}: {:?} instead of {:?}); their rows are merged all the same",
                differing.len(),
                models[donor].name,
                found.tokens[id],
                expected.tokens[id]
            ));
        }
    }
    let n_rows = models[donor].config.vocab_size;
    if expected.tokens.keys().all(|id| (*id as usize) < n_rows) {
        return Ok(None);
    }
    drop(expected);
    let Some(mut file) = TokenizerFile::open(&models[donor].beside)? else { return Ok(None) };
    notes.extend(note_past(&models[donor], &file));
    file.strip(n_rows);
    file.pin_ids().map_err(|reason| Error::model(&models[donor].name, reason))?;
    Ok(Some(file))
}

/// The donor's files with the chosen chat template, as (name, content).
pub(crate) fn files(
    models: &[PlannedModel],
    donor: usize,
    config: &MergeConfig,
    notes: &mut Vec<String>,
) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for name in FILES {
        files.extend(models[donor].beside.read(name)?.map(|content| (name.to_owned(), content)));
    }
    if !files.iter().any(|(name, _)| name == "tokenizer.json" || name == "tokenizer.model") {
        notes.push(format!("{} has no tokenizer: the result has none either", models[donor].name));
        return Ok(files);
    }
    match template(models, config.chat_template.as_ref(), notes)? {
        Some(template) => set_template(&mut files, &template)?,
        None => hint_at_template(models, donor, config, notes)?,
    }
    Ok(files)
}

fn template(
    models: &[PlannedModel],
    choice: Option<&ChatTemplateChoice>,
    notes: &mut Vec<String>,
) -> Result<Option<String>> {
    match choice {
        None => Ok(None),
        Some(ChatTemplateChoice::Jinja(text)) => Ok(Some(text.clone())),
        Some(ChatTemplateChoice::Named(name)) => {
            notes.extend(named_template::note(name));
            let template = named_template::named(name);
            template
                .map(|text| Some(text.to_owned()))
                .ok_or_else(|| Error::model("chat_template", named_template::unknown(name)))
        }
        Some(ChatTemplateChoice::Auto) => {
            let chosen = most_common(models)?;
            if chosen.is_none() {
                notes.push("chat_template auto: no input has a chat template".into());
            }
            Ok(chosen)
        }
    }
}

/// The template that most inputs carry; of equally common ones, the one that comes first.
fn most_common(models: &[PlannedModel]) -> Result<Option<String>> {
    let mut counts: Vec<(String, usize)> = Vec::new();
    for model in models {
        let Some(found) = template_of(&model.beside)? else { continue };
        let found = found.trim().to_owned();
        match counts.iter_mut().find(|(known, _)| *known == found) {
            Some((_, count)) => *count += 1,
            None => counts.push((found, 1)),
        }
    }
    let most = counts.iter().map(|(_, count)| *count).max();
    Ok(counts.into_iter().find(|(_, count)| Some(*count) == most).map(|(template, _)| template))
}

/// The template of these files.
pub(crate) fn template_of(beside: &Beside) -> Result<Option<String>> {
    if let Some(text) = beside.read("chat_template.jinja")? {
        return Ok(Some(String::from_utf8_lossy(&text).into_owned()));
    }
    let Some(config) = beside.read_json::<Value>("tokenizer_config.json")? else { return Ok(None) };
    Ok(match &config["chat_template"] {
        Value::String(text) => Some(text.clone()),
        Value::Array(named) => named
            .iter()
            .find(|entry| entry["name"] == "default")
            .and_then(|entry| entry["template"].as_str().map(str::to_owned)),
        _ => None,
    })
}

fn set_template(files: &mut Vec<(String, Vec<u8>)>, template: &str) -> Result<()> {
    files.retain(|(name, _)| name != "chat_template.jinja");
    let place = files.iter().position(|(name, _)| name == "tokenizer_config.json");
    let mut config = match place {
        Some(index) => parse("tokenizer_config.json", &files[index].1)?,
        None => json!({}),
    };
    config["chat_template"] = json!(template);
    let mut content =
        serde_json::to_vec_pretty(&config).map_err(|error| json_error("tokenizer_config.json", &error))?;
    content.push(b'\n');
    match place {
        Some(index) => files[index].1 = content,
        None => files.push(("tokenizer_config.json".into(), content)),
    }
    Ok(())
}

/// Puts the extended or stripped `tokenizer.json` in place, and its new tokens into `tokenizer_config.json`.
pub(crate) fn put_vocabulary(
    files: &mut Vec<(String, Vec<u8>)>,
    vocabulary: &TokenizerFile,
    notes: &mut Vec<String>,
) -> Result<()> {
    let Some(text) = vocabulary.text() else { return Ok(()) };
    let stale: Vec<&str> = STALE.into_iter().filter(|stale| files.iter().any(|(name, _)| name == stale)).collect();
    if !stale.is_empty() {
        notes.push(format!(
            "{} are left out: they hold the vocabulary before tokens were added or removed; tokenizer.json holds the result's",
            stale.join(", ")
        ));
    }
    files
        .retain(|(name, _)| name != "tokenizer.json" && name != "added_tokens.json" && !stale.contains(&name.as_str()));
    files.insert(0, ("tokenizer.json".to_owned(), text));
    let is_changed = |name: &str| match name {
        "tokenizer_config.json" => true,
        "special_tokens_map.json" => !vocabulary.stripped().is_empty(),
        _ => false,
    };
    for (name, content) in files.iter_mut().filter(|(name, _)| is_changed(name)) {
        let mut config = parse(name, content)?;
        forget_in_config(&mut config, vocabulary);
        list_in_config(&mut config, vocabulary.appended());
        *content = serde_json::to_vec_pretty(&config).map_err(|error| json_error(name, &error))?;
        content.push(b'\n');
    }
    Ok(())
}

/// A base model often has no template while the models merged over it do: the result could not be chatted with. Where the file chooses a
/// vocabulary, that choice stands: another `tokenizer_source` would give up a union.
fn hint_at_template(
    models: &[PlannedModel],
    donor: usize,
    config: &MergeConfig,
    notes: &mut Vec<String>,
) -> Result<()> {
    if template_of(&models[donor].beside)?.is_some() {
        return Ok(());
    }
    for PlannedModel { name, beside, .. } in models {
        if template_of(beside)?.is_some() {
            let donor = &models[donor].name;
            let advice = match &config.tokenizer {
                Some(_) => "`chat_template: auto` would take the one that most models have".to_owned(),
                None => format!("`tokenizer_source: {name}` would keep it"),
            };
            notes.push(format!("the tokenizer of {donor} has no chat template, that of {name} has one: {advice}"));
            return Ok(());
        }
    }
    Ok(())
}

/// Only the tokens are kept in memory: a tokenizer's merges are longer than its vocabulary.
#[derive(serde::Deserialize)]
struct TokenizerJson {
    model: Model,
    #[serde(default)]
    added_tokens: Vec<Value>,
}

#[derive(serde::Deserialize)]
struct Model {
    #[serde(default)]
    vocab: Value,
}

fn vocabulary(beside: &Beside) -> Result<Option<Vocabulary>> {
    let Some(parsed) = beside.read_json::<TokenizerJson>("tokenizer.json")? else { return Ok(None) };
    let mut tokens = BTreeMap::new();
    match parsed.model.vocab {
        Value::Object(map) => {
            tokens.extend(map.into_iter().filter_map(|(token, id)| Some((id.as_u64()?, token))));
        }
        Value::Array(list) => {
            let named =
                list.iter().enumerate().filter_map(|(id, entry)| Some((id as u64, entry[0].as_str()?.to_owned())));
            tokens.extend(named);
        }
        _ => {}
    }
    let mut added = BTreeSet::new();
    for entry in &parsed.added_tokens {
        if let (Some(id), Some(token)) = (entry["id"].as_u64(), entry["content"].as_str()) {
            tokens.insert(id, token.to_owned());
            added.insert(id);
        }
    }
    Ok(Some(Vocabulary { tokens, added }))
}

fn parse(name: &str, bytes: &[u8]) -> Result<Value> {
    serde_json::from_slice(bytes).map_err(|error| json_error(name, &error))
}

fn json_error(name: &str, error: &serde_json::Error) -> Error {
    Error::Record(aloe_record::Error::Json { path: name.into(), reason: error.to_string() })
}
