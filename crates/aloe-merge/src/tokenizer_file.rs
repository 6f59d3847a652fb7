//! A `tokenizer.json` as a vocabulary that can be stripped and extended, keeping everything else of the file as it is.

use crate::Result;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

/// An opened tokenizer.
#[derive(Clone)]
pub(crate) struct TokenizerFile {
    json: Value,
    /// Entries that were appended, for `tokenizer_config.json`.
    appended: Vec<Value>,
    is_changed: bool,
    /// Id of every token, and whether it is an added one.
    known: HashMap<String, (u32, bool)>,
    n_plain: u32,
    last_added: Option<u32>,
}

impl TokenizerFile {
    /// Opens the file of a model's folder; none where there is none.
    pub(crate) fn open(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join("tokenizer.json");
        if !path.is_file() {
            return Ok(None);
        }
        let json: Value = aloe_record::atomic::read_json(&path)?;
        let mut file =
            Self { json, appended: Vec::new(), is_changed: false, known: HashMap::new(), n_plain: 0, last_added: None };
        file.index();
        Ok(Some(file))
    }

    fn index(&mut self) {
        self.n_plain = self.plain().len() as u32;
        self.last_added = self.added().iter().map(|(id, ..)| *id).max();
        let plain = self.plain().into_iter().map(|(id, token)| (token, (id, false)));
        let added = self.added().into_iter().map(|(id, token, _)| (token, (id, true)));
        self.known = plain.chain(added).collect();
    }

    /// The changed file's text; none where it is as it was.
    pub(crate) fn text(&self) -> Option<Vec<u8>> {
        self.is_changed.then(|| {
            let mut text = serde_json::to_vec_pretty(&self.json).unwrap_or_default();
            text.push(b'\n');
            text
        })
    }

    /// The appended tokens as `tokenizer_config.json` lists them.
    pub(crate) fn appended(&self) -> &[Value] {
        &self.appended
    }

    fn plain(&self) -> BTreeMap<u32, String> {
        match &self.json["model"]["vocab"] {
            Value::Object(map) => {
                map.iter().filter_map(|(token, id)| Some((id.as_u64()? as u32, token.clone()))).collect()
            }
            Value::Array(list) => list
                .iter()
                .enumerate()
                .filter_map(|(id, entry)| Some((id as u32, entry[0].as_str()?.to_owned())))
                .collect(),
            _ => BTreeMap::new(),
        }
    }

    fn added(&self) -> Vec<(u32, String, &Value)> {
        let entries = self.json["added_tokens"].as_array().into_iter().flatten();
        entries
            .filter_map(|entry| Some((entry["id"].as_u64()? as u32, entry["content"].as_str()?.to_owned(), entry)))
            .collect()
    }

    /// Token by id, added ones included.
    pub(crate) fn tokens(&self) -> BTreeMap<u32, String> {
        let mut tokens = self.plain();
        tokens.extend(self.added().into_iter().map(|(id, token, _)| (id, token)));
        tokens
    }

    /// Id by token, of ids below a bound.
    pub(crate) fn ids_below(&self, bound: usize) -> BTreeMap<String, u32> {
        self.tokens().into_iter().filter(|(id, _)| (*id as usize) < bound).map(|(id, token)| (token, id)).collect()
    }

    /// Removes tokens whose ids lie past the embedding.
    pub(crate) fn strip(&mut self, n_rows: usize) {
        let unused: BTreeSet<String> =
            self.tokens().into_iter().filter(|(id, _)| *id as usize >= n_rows).map(|(_, token)| token).collect();
        if unused.is_empty() {
            return;
        }
        self.is_changed = true;
        if let Some(added) = self.json["added_tokens"].as_array_mut() {
            added.retain(|entry| entry["id"].as_u64().is_none_or(|id| (id as usize) < n_rows));
        }
        if let Some(vocab) = self.json["model"]["vocab"].as_object_mut() {
            vocab.retain(|token, _| !unused.contains(token));
        }
        if let Some(merges) = self.json["model"]["merges"].as_array_mut() {
            merges.retain(|merge| match merge {
                Value::String(pair) => !pair.split(' ').any(|part| unused.contains(part)),
                Value::Array(pair) => !pair.iter().any(|part| part.as_str().is_some_and(|part| unused.contains(part))),
                _ => true,
            });
        }
        self.index();
    }

    /// Appends what other tokenizers (each with its number of rows) have beyond this one. The error says why that cannot be done.
    pub(crate) fn unite(&mut self, others: &[(&Self, usize)]) -> std::result::Result<(), String> {
        let own_kind = self.json["model"]["type"].as_str().unwrap_or("?").to_owned();
        for (other, _) in others {
            let kind = other.json["model"]["type"].as_str().unwrap_or("?");
            if kind != own_kind {
                return Err(format!(
                    "its tokenizer is of type {own_kind}, another one of {kind}: they cannot be united"
                ));
            }
        }
        let added_anywhere: BTreeSet<String> = others
            .iter()
            .flat_map(|(other, bound)| other.added().into_iter().filter(|(id, ..)| (*id as usize) < *bound))
            .map(|(_, token, _)| token)
            .chain(self.added().into_iter().map(|(_, token, _)| token))
            .collect();
        for (other, bound) in others {
            for (id, token) in other.plain() {
                if (id as usize) < *bound && !added_anywhere.contains(&token) {
                    self.append_plain(&token);
                }
            }
        }
        for (other, bound) in others {
            for (id, _, entry) in other.added() {
                if (id as usize) < *bound {
                    self.append(entry.clone());
                }
            }
        }
        Ok(())
    }

    /// Appends a token as `tokenizer.add_tokens(token)` does, unless it is there.
    pub(crate) fn append_plain(&mut self, token: &str) {
        if !self.known.contains_key(token) {
            self.append(json!({
                "id": 0, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": true, "special": false,
            }));
        }
    }

    /// Appends an added token unless it is one already; a plain token becomes an added one in its place.
    fn append(&mut self, mut entry: Value) {
        let Some(content) = entry["content"].as_str().map(str::to_owned) else { return };
        let id = match self.known.get(&content) {
            Some((_, true)) => return,
            Some((id, false)) => *id,
            None => self.next_id(),
        };
        entry["id"] = json!(id);
        match self.json["added_tokens"].as_array_mut() {
            Some(added) => added.push(entry.clone()),
            None => self.json["added_tokens"] = json!([entry.clone()]),
        }
        self.known.insert(content, (id, true));
        self.last_added = Some(self.last_added.map_or(id, |last| last.max(id)));
        self.appended.push(entry);
        self.is_changed = true;
    }

    /// The id the `tokenizers` library gives a new token: after the last added one, or after the vocabulary.
    fn next_id(&self) -> u32 {
        let last = self.last_added.filter(|last| *last >= self.n_plain || self.n_plain == 0);
        last.map_or(self.n_plain, |last| last + 1)
    }
}

/// Adds appended tokens to the `added_tokens_decoder` of a `tokenizer_config.json` that has one.
pub(crate) fn list_in_config(config: &mut Value, appended: &[Value]) {
    let Some(decoder) = config.get_mut("added_tokens_decoder").and_then(Value::as_object_mut) else { return };
    for entry in appended {
        let mut info: Map<String, Value> = entry.as_object().cloned().unwrap_or_default();
        if let Some(id) = info.shift_remove("id") {
            decoder.insert(id.to_string(), Value::Object(info));
        }
    }
}
