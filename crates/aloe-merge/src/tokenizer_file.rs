//! A `tokenizer.json` as a vocabulary that can be stripped and extended, keeping everything else of the file as it is.

use crate::Result;
use crate::beside::Beside;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// An opened tokenizer.
#[derive(Clone)]
pub(crate) struct TokenizerFile {
    json: Value,
    /// Entries that were appended, for `tokenizer_config.json`.
    appended: Vec<Value>,
    /// Tokens that were removed, by the ids they had.
    stripped: BTreeMap<u32, String>,
    is_changed: bool,
    /// Id of every token, and whether it is an added one.
    known: HashMap<String, (u32, bool)>,
    /// The highest id and one.
    n_ids: u32,
}

impl TokenizerFile {
    /// Opens the file of a model's folder; none where there is none.
    pub(crate) fn open(beside: &Beside) -> Result<Option<Self>> {
        let Some(json) = beside.read_json::<Value>("tokenizer.json")? else { return Ok(None) };
        let (appended, stripped, known) = (Vec::new(), BTreeMap::new(), HashMap::new());
        let mut file = Self { json, appended, stripped, is_changed: false, known, n_ids: 0 };
        file.index();
        Ok(Some(file))
    }

    fn index(&mut self) {
        let plain = self.plain().into_iter().map(|(id, token)| (token, (id, false)));
        let added = self.added().into_iter().map(|(id, token, _)| (token, (id, true)));
        self.known = plain.chain(added).collect();
        self.n_ids = self.known.values().map(|(id, _)| id + 1).max().unwrap_or(0);
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

    /// The tokens that were removed, by the ids they had.
    pub(crate) fn stripped(&self) -> &BTreeMap<u32, String> {
        &self.stripped
    }

    /// Whether a token is there.
    pub(crate) fn has(&self, token: &str) -> bool {
        self.known.contains_key(token)
    }

    /// The tokens whose ids lie past an embedding of so many rows.
    pub(crate) fn past(&self, n_rows: usize) -> BTreeMap<u32, String> {
        self.tokens().into_iter().filter(|(id, _)| *id as usize >= n_rows).collect()
    }

    /// Removes tokens whose ids lie past the embedding.
    pub(crate) fn strip(&mut self, n_rows: usize) {
        let past = self.past(n_rows);
        if past.is_empty() {
            return;
        }
        let unused: BTreeSet<String> = past.values().cloned().collect();
        self.stripped.extend(past);
        self.is_changed = true;
        if let Some(added) = self.json["added_tokens"].as_array_mut() {
            added.retain(|entry| entry["id"].as_u64().is_none_or(|id| (id as usize) < n_rows));
        }
        if let Some(vocab) = self.json["model"]["vocab"].as_object_mut() {
            vocab.retain(|token, _| !unused.contains(token));
        }
        if let Some(vocab) = self.json["model"]["vocab"].as_array_mut() {
            vocab.truncate(n_rows);
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
    pub(crate) fn unite(
        &mut self,
        others: &[(&Self, usize)],
        notes: &mut Vec<String>,
    ) -> std::result::Result<(), String> {
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
            let plain = other.plain().into_iter().filter(|(id, token)| {
                (*id as usize) < *bound && !added_anywhere.contains(token) && !self.known.contains_key(token)
            });
            let new: Vec<String> = plain.map(|(_, token)| token).collect();
            self.append_plain(&new, other, &own_kind, notes);
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

    /// Appends plain tokens of another tokenizer to the vocabulary, for BPE with the merges that make them, so that they stay what they are:
    /// pieces of words. mergekit gives them the same ids but makes added tokens of them, which match inside any word, and of which a
    /// byte-level `Ġx` never matches ` x`. A Unigram vocabulary is a list by id with no place after the added tokens: there it is done
    /// as in mergekit, with a note.
    fn append_plain(&mut self, tokens: &[String], other: &Self, kind: &str, notes: &mut Vec<String>) {
        let Some(first) = tokens.first() else { return };
        if !self.json["model"]["vocab"].is_object() {
            notes.push(format!(
                "{} plain tokens ({first:?}, ...) become added tokens of the {kind} tokenizer: they match inside words too",
                tokens.len()
            ));
            tokens.iter().for_each(|token| self.append_added(token));
            return;
        }
        for token in tokens {
            let id = self.next_id();
            self.json["model"]["vocab"][token] = json!(id);
            self.known.insert(token.clone(), (id, false));
        }
        self.is_changed = true;
        let made = if kind == "BPE" { self.append_merges(tokens, other) } else { 0 };
        if made > 0 {
            notes.push(format!(
                "{made} plain tokens of the union ({first:?}, ...) bring the merges that make them, ranked behind those of the first \
                 tokenizer: text with these words is cut otherwise than by that one, and text of the other model may be cut otherwise \
                 than by its own"
            ));
        }
        if kind == "BPE" && made < tokens.len() {
            notes.push(format!(
                "{} of {} plain tokens of the union ({first:?}, ...) are made by no merge of tokens that it has: they keep their rows, and \
                 no text is encoded to them",
                tokens.len() - made,
                tokens.len()
            ));
        }
    }

    /// Appends the other's merges that make one of these tokens, in their order and after all own ones: text that needs none of them is
    /// encoded as before. How many of the tokens are made by one.
    fn append_merges(&mut self, tokens: &[String], other: &Self) -> usize {
        let wanted: BTreeSet<&str> = tokens.iter().map(String::as_str).collect();
        let pair = |merge: &Value| match merge {
            Value::String(text) => text.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())),
            Value::Array(parts) => Some((parts.first()?.as_str()?.to_owned(), parts.get(1)?.as_str()?.to_owned())),
            _ => None,
        };
        let theirs = other.json["model"]["merges"].as_array().into_iter().flatten().filter_map(pair);
        let new: Vec<(String, String)> = theirs
            .filter(|(a, b)| {
                wanted.contains(format!("{a}{b}").as_str()) && self.known.contains_key(a) && self.known.contains_key(b)
            })
            .collect();
        let made: BTreeSet<String> = new.iter().map(|(a, b)| format!("{a}{b}")).collect();
        if let Some(merges) = self.json["model"]["merges"].as_array_mut() {
            let as_text = merges.first().is_some_and(Value::is_string);
            merges
                .extend(new.into_iter().map(|(a, b)| if as_text { json!(format!("{a} {b}")) } else { json!([a, b]) }));
        }
        made.len()
    }

    /// Appends a token that the configuration names, as an added one.
    pub(crate) fn append_named(&mut self, token: &str, notes: &mut Vec<String>) {
        if !self.known.contains_key(token) && token.starts_with(['Ġ', '▁']) {
            notes.push(format!(
                "{token:?} of `tokens` becomes an added token: it matches these characters themselves, not a word after a space"
            ));
        }
        self.append_added(token);
    }

    /// Appends a token as `tokenizer.add_tokens(token)` does, unless it is there.
    fn append_added(&mut self, token: &str) {
        if !self.known.contains_key(token) {
            self.append(json!({
                "id": 0, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": true, "special": false,
            }));
        }
    }

    /// Appends an added token unless it is one already; a plain token becomes an added one in its place.
    fn append(&mut self, mut entry: Value) {
        let Some(content) = entry["content"].as_str().map(str::to_owned) else { return };
        let id = match self.known.get(&content).copied() {
            Some((_, true)) => return,
            Some((id, false)) => id,
            None => self.next_id(),
        };
        entry["id"] = json!(id);
        match self.json["added_tokens"].as_array_mut() {
            Some(added) => added.push(entry.clone()),
            None => self.json["added_tokens"] = json!([entry.clone()]),
        }
        self.known.insert(content, (id, true));
        self.appended.push(entry);
        self.is_changed = true;
    }

    /// Puts the added tokens into the vocabulary, each at its id, where the `tokenizers` library would read the file with other ids: it numbers
    /// added tokens that the vocabulary lacks from the vocabulary's size on, whatever id the file states. That differs where plain tokens
    /// were appended behind them (Llama 3 and Qwen lay out ids so) and where ids are left out. No merge makes them, so text is encoded as
    /// before. The error says why that cannot be done.
    pub(crate) fn pin_ids(&mut self) -> std::result::Result<(), String> {
        if !self.is_changed {
            return Ok(());
        }
        let added: Vec<(u32, String)> = self.added().into_iter().map(|(id, token, _)| (id, token)).collect();
        let plain: HashMap<String, u32> = self.plain().into_iter().map(|(id, token)| (token, id)).collect();
        let mut next = plain.len() as u32;
        let moved = added.iter().find_map(|(id, token)| {
            let read = plain.get(token).copied().unwrap_or_else(|| {
                next += 1;
                next - 1
            });
            (read != *id).then_some((token, *id, read))
        });
        let Some((token, id, read)) = moved else { return Ok(()) };
        let Some(vocab) = self.json["model"]["vocab"].as_object_mut() else {
            return Err(format!(
                "the result's tokenizer.json would give {token:?} the id {id}, and the tokenizers library would read {read}: the ids of its \
                 added tokens must follow the vocabulary without a gap"
            ));
        };
        for (id, token) in added {
            vocab.insert(token, json!(id));
        }
        Ok(())
    }

    /// The id of a new token: after all others, which is what the `tokenizers` library gives it where no id is left out.
    fn next_id(&mut self) -> u32 {
        self.n_ids += 1;
        self.n_ids - 1
    }
}

/// Takes removed tokens out of a `tokenizer_config.json` or a `special_tokens_map.json`, where transformers would add them again: entries of
/// their ids, and names of special tokens that the result does not have.
pub(crate) fn forget_in_config(config: &mut Value, file: &TokenizerFile) {
    let content = |value: &Value| value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned);
    let is_gone = |value: &Value| {
        content(value).is_some_and(|token| !file.has(&token) && file.stripped.values().any(|gone| *gone == token))
    };
    let Some(entries) = config.as_object_mut() else { return };
    if let Some(decoder) = entries.get_mut("added_tokens_decoder").and_then(Value::as_object_mut) {
        let of_id = |id: &str| id.parse::<u32>().ok().and_then(|id| file.stripped.get(&id));
        decoder.retain(|id, entry| of_id(id).is_none_or(|token| entry["content"].as_str() != Some(token)));
    }
    entries.retain(|key, value| !key.ends_with("_token") || !is_gone(value));
    for key in ["additional_special_tokens", "extra_special_tokens"] {
        match entries.get_mut(key) {
            Some(Value::Array(list)) => list.retain(|value| !is_gone(value)),
            Some(Value::Object(named)) => named.retain(|_, value| !is_gone(value)),
            _ => {}
        }
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
