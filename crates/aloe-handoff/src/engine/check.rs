//! A configuration held against the keys of its engine's pinned version: every mistake at once, with its line and what would be right.
//!
//! The manifests in `keys/` are made from the engines themselves by `oracles/engine_keys.py`. They are stricter than the engines: TRL
//! passes values of the wrong type on, and axolotl lets unknown keys through, nested ones too. What depends on a machine (is there a
//! GPU) or on other keys is the engine's own to judge.

use aloe_merge::yaml::{self, Node, Scalar, Value};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Which program of an engine reads the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Supervised fine-tuning.
    Sft,
    /// Direct preference optimisation.
    Dpo,
}

/// The keys of one version of an engine.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// `trl` or `axolotl`.
    pub engine: String,
    /// Packages and their versions that the keys were read from.
    pub versions: BTreeMap<String, String>,
    /// Keys without which nothing is trained.
    required: Vec<String>,
    /// Keys that must have one value.
    must: BTreeMap<String, serde_json::Value>,
    shared: Keys,
    programs: BTreeMap<String, Keys>,
}

type Keys = BTreeMap<String, Vec<Kind>>;

/// One form that a value may have.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Kind {
    Plain(Plain),
    OneOf { one_of: Vec<String> },
    ListOf { list: Vec<Kind> },
    MapOf { map: Keys },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Plain {
    Int,
    Float,
    Bool,
    Text,
    Null,
    Map,
    List,
    Any,
}

impl Manifest {
    /// TRL 1.16.
    pub fn trl() -> Self {
        Self::read(include_str!("keys/trl-1.16.json"))
    }

    /// axolotl 0.19.
    pub fn axolotl() -> Self {
        Self::read(include_str!("keys/axolotl-0.19.json"))
    }

    fn read(text: &str) -> Self {
        serde_json::from_str(text).expect("a manifest in this repository is complete")
    }

    fn keys(&self, program: Program) -> Keys {
        let name = if program == Program::Sft { "sft" } else { "dpo" };
        let own = self.programs.get(name).cloned().unwrap_or_default();
        self.shared.clone().into_iter().chain(own).collect()
    }
}

/// All mistakes of a configuration, each `line N: ...`; empty where the engine takes it.
pub fn check_config(text: &str, manifest: &Manifest, program: Program) -> Vec<String> {
    let documents = match yaml::parse(text) {
        Ok(documents) => documents,
        Err(mistake) => return vec![format!("line {}: {}", mistake.line, mistake.text)],
    };
    let [Node { value: Value::Mapping(entries), .. }] = documents.as_slice() else {
        return vec!["line 1: a configuration is one mapping of keys to values".to_owned()];
    };
    let mut mistakes = Vec::new();
    map(entries, &manifest.keys(program), "", &mut mistakes);
    let value_of = |name: &str| entries.iter().find(|(key, _)| text_of(key) == Some(name)).map(|(_, value)| value);
    for name in &manifest.required {
        if value_of(name).is_none_or(|value| matches!(value.value, Value::Scalar(Scalar::Null))) {
            mistakes.push(format!("{name} is missing"));
        }
    }
    for (name, expected) in &manifest.must {
        if value_of(name).and_then(json_of).as_ref() != Some(expected) {
            mistakes.push(format!("{name} must be {expected}"));
        }
    }
    mistakes
}

fn map(entries: &[(Node, Node)], keys: &Keys, path: &str, mistakes: &mut Vec<String>) {
    for (key, value) in entries {
        let Some(name) = text_of(key) else {
            mistakes.push(format!("line {}: {} is no key", key.line, key.describe()));
            continue;
        };
        let path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        match keys.get(name) {
            Some(kinds) => one(value, kinds, &path, mistakes),
            None => {
                let hint = nearest(name, keys).map_or_else(String::new, |near| format!("; did you mean {near}?"));
                mistakes.push(format!("line {}: unknown key {path}{hint}", key.line));
            }
        }
    }
}

fn one(value: &Node, kinds: &[Kind], path: &str, mistakes: &mut Vec<String>) {
    // Of several forms that the value has on the outside, the one with the fewest mistakes within is meant.
    let within = kinds.iter().filter(|kind| kind.takes(value)).map(|kind| kind.within(value, path));
    if let Some(fewest) = within.min_by_key(Vec::len) {
        mistakes.extend(fewest);
        return;
    }
    let expected: Vec<String> = kinds.iter().map(Kind::describe).collect();
    let found = match &value.value {
        Value::Scalar(Scalar::Text(text)) => format!("{text:?}"),
        _ => value.describe(),
    };
    let hint = match (&value.value, text_of(value)) {
        (Value::Scalar(_), Some(text)) if text.parse::<f64>().is_ok() => {
            "; YAML 1.1 reads a number with an exponent as text unless it has a point and a sign, as in 2.0e-05"
        }
        _ => "",
    };
    mistakes.push(format!("line {}: {path} is {found}, expected {}{hint}", value.line, expected.join(" or ")));
}

impl Kind {
    /// Whether a value has this form on the outside.
    fn takes(&self, node: &Node) -> bool {
        match (self, &node.value) {
            (Self::Plain(plain), value) => plain.takes(value),
            (Self::OneOf { one_of }, Value::Scalar(Scalar::Text(text))) => one_of.contains(text),
            (Self::OneOf { one_of }, Value::Scalar(Scalar::Int(number))) => one_of.contains(&number.to_string()),
            (Self::ListOf { .. }, Value::Sequence(_)) | (Self::MapOf { .. }, Value::Mapping(_)) => true,
            _ => false,
        }
    }

    /// The mistakes inside a value that has this form.
    fn within(&self, node: &Node, path: &str) -> Vec<String> {
        let mut mistakes = Vec::new();
        match (self, &node.value) {
            (Self::MapOf { map: keys }, Value::Mapping(entries)) => map(entries, keys, path, &mut mistakes),
            (Self::ListOf { list }, Value::Sequence(items)) => {
                let items = items.iter().enumerate();
                items.for_each(|(at, item)| one(item, list, &format!("{path}[{at}]"), &mut mistakes));
            }
            _ => {}
        }
        mistakes
    }

    fn describe(&self) -> String {
        match self {
            Self::Plain(plain) => format!("{plain:?}").to_lowercase(),
            Self::OneOf { one_of } => format!("one of {}", one_of.join(", ")),
            Self::ListOf { list } => {
                format!("a list of {}", list.iter().map(Self::describe).collect::<Vec<_>>().join(" or "))
            }
            Self::MapOf { map } => format!("a map of {}", map.keys().cloned().collect::<Vec<_>>().join(", ")),
        }
    }
}

impl Plain {
    fn takes(self, value: &Value) -> bool {
        matches!(
            (self, value),
            (Self::Any, _)
                | (Self::Int, Value::Scalar(Scalar::Int(_)))
                | (Self::Float, Value::Scalar(Scalar::Int(_) | Scalar::Float(_)))
                | (Self::Bool, Value::Scalar(Scalar::Bool(_)))
                | (Self::Text, Value::Scalar(Scalar::Text(_)))
                | (Self::Null, Value::Scalar(Scalar::Null))
                | (Self::Map, Value::Mapping(_))
                | (Self::List, Value::Sequence(_))
        )
    }
}

fn text_of(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Scalar(Scalar::Text(text)) => Some(text),
        _ => None,
    }
}

fn json_of(node: &Node) -> Option<serde_json::Value> {
    match &node.value {
        Value::Scalar(Scalar::Text(text)) => Some(serde_json::Value::from(text.as_str())),
        Value::Scalar(Scalar::Bool(value)) => Some(serde_json::Value::from(*value)),
        Value::Scalar(Scalar::Int(value)) => Some(serde_json::Value::from(*value)),
        _ => None,
    }
}

/// The key that is fewest letters away, if it is at most a third of the name.
fn nearest<'a>(name: &str, keys: &'a Keys) -> Option<&'a str> {
    let best = keys.keys().min_by_key(|key| distance(name, key))?;
    (distance(name, best) <= (name.len() / 3).max(1)).then_some(best.as_str())
}

/// Levenshtein's distance in bytes.
fn distance(left: &str, right: &str) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (at, from) in left.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = at + 1;
        for (column, to) in right.bytes().enumerate() {
            let changed = diagonal + usize::from(from != to);
            diagonal = row[column + 1];
            row[column + 1] = changed.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// kitten -> sitting: k to s, e to i, g added.
    #[test]
    fn the_distance_of_the_textbook_words_is_three() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("same", "same"), 0);
    }
}
