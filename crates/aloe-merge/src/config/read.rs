//! From YAML documents to a [`MergeConfig`]; collects every mistake on the way instead of stopping at the first.

mod settings;
mod slices;
mod tokens;

use super::{BaseUse, ChatTemplateChoice, InputModel, METHODS, MergeConfig, MergeDtype, Method, Parameter};
use crate::yaml::{Node, Scalar, Value};
use crate::{Mistake, named_template};
use std::path::Path;

const KEYS: [&str; 13] = [
    "name",
    "models",
    "slices",
    "modules",
    "merge_method",
    "base_model",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "allow_crimes",
];

/// Methods of mergekit 0.1.5 that this version does not have.
const OTHER_METHODS: [&str; 3] = ["arcee_fusion", "ram", "ramplus_tl"];

/// Checks every document. Those with a `name` come first, in an order in which each finds what it uses.
pub(super) fn documents(roots: &[Node], text: &str, path: &Path) -> Result<MergeConfig, Vec<Mistake>> {
    let mut mistakes = Vec::new();
    let mut configs = Vec::new();
    for root in roots {
        match document(root, text, path) {
            Ok(config) => configs.push((root.line, config)),
            Err(found) => mistakes.extend(found),
        }
    }
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    if configs.len() == 1 {
        return Ok(configs.remove(0).1);
    }
    in_order(configs).map_err(|mistake| vec![mistake])
}

/// The result with the other documents before it in the order of their use. It is the one without a name; where all have names, the one that
/// no other uses (mergekit-multi writes them all, to a folder each).
fn in_order(configs: Vec<(usize, MergeConfig)>) -> Result<MergeConfig, Mistake> {
    let (mut named, mut last): (Vec<_>, Vec<_>) = configs.into_iter().partition(|(_, config)| config.name.is_some());
    let (line, mut result) = match last.len() {
        1 => last.remove(0),
        0 => named.remove(unused(&named)?),
        _ => {
            let text =
                "a second document without `name`: every merge but the last one needs a name to be used by".into();
            return Err(Mistake { line: last[1].0, text });
        }
    };
    let names = names_of(&named);
    if let Some(twice) = names.iter().enumerate().find(|(index, name)| names[..*index].contains(name)) {
        return Err(Mistake { line: named[twice.0].0, text: format!("a second document is named {}", twice.1) });
    }
    while let Some(at) = named.iter().position(|(_, config)| !is_used(config, &named, &result)) {
        let name = named.remove(at).1.name.unwrap_or_default();
        result
            .notes
            .push(format!("the document {name} is not merged: no other document that leads to the result uses it"));
    }
    let names = names_of(&named);
    let mut waiting = named;
    while !waiting.is_empty() {
        let is_ready = |config: &MergeConfig| {
            config.models.iter().flat_map(|model| super::split_adapter(&model.name)).all(|name| {
                !names.iter().any(|known| known == name)
                    || result.earlier.iter().any(|done: &MergeConfig| done.name.as_deref() == Some(name))
            })
        };
        let Some(index) = waiting.iter().position(|(_, config)| is_ready(config)) else {
            let text = "documents use each other in a circle".into();
            return Err(Mistake { line: waiting.first().map_or(line, |(line, _)| *line), text });
        };
        result.earlier.push(waiting.remove(index).1);
    }
    Ok(result)
}

fn names_of(documents: &[(usize, MergeConfig)]) -> Vec<String> {
    documents.iter().filter_map(|(_, config)| config.name.clone()).collect()
}

/// Whether another document uses this one.
fn is_used(config: &MergeConfig, named: &[(usize, MergeConfig)], result: &MergeConfig) -> bool {
    let others = named.iter().map(|(_, other)| other).filter(|other| other.name != config.name).chain([result]);
    let mut names = others.flat_map(|other| &other.models).flat_map(|model| super::split_adapter(&model.name));
    names.any(|name| Some(name) == config.name.as_deref())
}

/// The place of the only document that no other one uses.
fn unused(named: &[(usize, MergeConfig)]) -> Result<usize, Mistake> {
    let models = || named.iter().flat_map(|(_, config)| &config.models);
    let is_used = |name: &str| models().any(|model| super::split_adapter(&model.name).contains(&name));
    let unused: Vec<usize> = (0..named.len()).filter(|at| !named[*at].1.name.as_deref().is_some_and(is_used)).collect();
    match unused[..] {
        [only] => Ok(only),
        [] => Err(Mistake { line: named[0].0, text: "documents use each other in a circle".into() }),
        [.., at] => {
            let names: Vec<&str> = unused.iter().filter_map(|at| named[*at].1.name.as_deref()).collect();
            let mut strangers: Vec<&str> = Vec::new();
            for name in models().flat_map(|model| super::split_adapter(&model.name)) {
                let is_document = named.iter().any(|(_, config)| config.name.as_deref() == Some(name));
                if !is_document && !name.contains('/') && !Path::new(name).exists() && !strangers.contains(&name) {
                    strangers.push(name);
                }
            }
            let hint = match strangers.len() {
                0 => String::new(),
                _ => format!("; if a document was meant by one of {}, its name is misspelt", strangers.join(", ")),
            };
            let text = format!(
                "every document has a `name` and no other one uses {}: leave out the `name` of the one that is the result{hint}",
                names.join(", ")
            );
            Err(Mistake { line: named[at].0, text })
        }
    }
}

/// Checks one document.
fn document(root: &Node, text: &str, path: &Path) -> Result<MergeConfig, Vec<Mistake>> {
    let mut reader = Reader::default();
    let Some(entries) = reader.mapping(root, "the configuration") else { return Err(reader.mistakes) };
    reader.refuse_unknown_keys(entries);
    reader.method = reader.merge_method(entries, root.line);
    let base_name = find(entries, "base_model").and_then(|node| reader.model_name(node).map(|name| (name, node.line)));
    let parts = reader.output(entries, root.line, base_name.as_ref());
    let settings = find(entries, "parameters").map_or_else(Vec::new, |node| reader.settings(node, None));
    reader.check_slices(&parts, &settings, base_name.is_some(), root.line);
    let base = base_name.and_then(|(name, _)| reader.models.iter().position(|model| model.name == name));
    let tokenizer = reader.tokenizer_choice(entries, base);
    let config = MergeConfig {
        path: path.to_path_buf(),
        text: text.to_owned(),
        name: find(entries, "name").and_then(|node| reader.text(node, "name").map(str::to_owned)),
        earlier: Vec::new(),
        method: reader.method.unwrap_or(Method::Linear),
        dtype: reader.dtype(entries, "dtype"),
        out_dtype: reader.dtype(entries, "out_dtype"),
        tokenizer,
        chat_template: reader.chat_template(entries),
        base,
        slices: parts.slices,
        module_settings: parts.module_settings,
        settings,
        models: reader.models,
        notes: reader.notes,
    };
    if reader.mistakes.is_empty() { Ok(config) } else { Err(reader.mistakes) }
}

#[derive(Default)]
struct Reader {
    method: Option<Method>,
    models: Vec<InputModel>,
    mistakes: Vec<Mistake>,
    notes: Vec<String>,
}

type Entries<'a> = &'a [(Node, Node)];

/// The value of a key; a null counts as not given, as in mergekit.
fn find<'a>(entries: Entries<'a>, key: &str) -> Option<&'a Node> {
    let found = entries.iter().find(|(name, _)| name.value == Value::Scalar(Scalar::Text(key.to_owned())));
    found.map(|(_, value)| value).filter(|value| value.value != Value::Scalar(Scalar::Null))
}

fn key_text(key: &Node) -> String {
    match &key.value {
        Value::Scalar(Scalar::Text(text)) => text.clone(),
        _ => key.describe(),
    }
}

fn text_of(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Scalar(Scalar::Text(text)) => Some(text),
        _ => None,
    }
}

/// Whether a key that mergekit does not know is there for its anchors: it has some, holds none of mergekit's own keys, and is not one of these
/// with a letter or two wrong.
fn only_holds_anchors(name: &str, value: &Node) -> bool {
    let holds_key = match &value.value {
        Value::Mapping(entries) => entries.iter().any(|(key, _)| KEYS.contains(&key_text(key).as_str())),
        _ => false,
    };
    value.holds_anchor() && !holds_key && KEYS.iter().all(|known| n_edits(name, known) > 2)
}

/// Letters to put in, take out or replace to make one text of the other.
fn n_edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (at, letter) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = at + 1;
        for (place, other) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = row[place + 1];
            row[place + 1] = replaced.min(diagonal + 1).min(row[place] + 1);
        }
    }
    row[b.len()]
}

impl Reader {
    fn wrong(&mut self, line: usize, text: impl Into<String>) {
        self.mistakes.push(Mistake { line, text: text.into() });
    }

    fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    fn mapping<'a>(&mut self, node: &'a Node, what: &str) -> Option<Entries<'a>> {
        match &node.value {
            Value::Mapping(entries) => Some(entries),
            _ => {
                self.wrong(node.line, format!("{what} must be a mapping, found {}", node.describe()));
                None
            }
        }
    }

    fn list<'a>(&mut self, node: &'a Node, what: &str, of: &str) -> &'a [Node] {
        match &node.value {
            Value::Sequence(items) if items.is_empty() => {
                self.wrong(node.line, format!("{what} is an empty list"));
                &[]
            }
            Value::Sequence(items) => items,
            _ => {
                self.wrong(node.line, format!("{what} must be a list of `{of}`, found {}", node.describe()));
                &[]
            }
        }
    }

    fn text<'a>(&mut self, node: &'a Node, key: &str) -> Option<&'a str> {
        let found = text_of(node).filter(|text| !text.is_empty());
        if found.is_none() {
            self.wrong(node.line, format!("{key} must be a text, found {}; quote it", node.describe()));
        }
        found
    }

    /// A whole number from 0 on.
    fn count(&mut self, node: &Node, what: &str) -> Option<usize> {
        let found = match &node.value {
            Value::Scalar(Scalar::Int(value)) => usize::try_from(*value).ok(),
            _ => None,
        };
        if found.is_none() {
            self.wrong(node.line, format!("{what} must be a whole number from 0 on, found {}", node.describe()));
        }
        found
    }

    fn only_keys(&mut self, entries: Entries<'_>, known: &[&str], of: &str) {
        for (key, _) in entries {
            let name = key_text(key);
            if !known.contains(&name.as_str()) {
                let is_misplaced = known.contains(&"parameters") && Parameter::of_name(&name).is_some();
                let hint = if is_misplaced { "; write it under parameters" } else { "" };
                self.wrong(key.line, format!("unknown key {name} of {of}; known are {}{hint}", known.join(", ")));
            }
        }
    }

    fn refuse_unknown_keys(&mut self, entries: Entries<'_>) {
        for (key, value) in entries {
            let name = key_text(key);
            match name.as_str() {
                "allow_crimes" => {
                    self.note("allow_crimes has no effect: models of different architectures are refused".into())
                }
                // Many shared files have it; mergekit's seed is a flag of the command, as here.
                "random_seed" => self.note("random_seed has no effect, in mergekit neither: give --seed".into()),
                _ if KEYS.contains(&name.as_str()) || value.value == Value::Scalar(Scalar::Null) => {}
                _ if only_holds_anchors(&name, value) => {
                    self.note(format!(
                        "the key {name} is passed over, as in mergekit: it holds anchors for the rest of the file"
                    ));
                }
                _ => self.wrong(key.line, format!("unknown key {name}; known are {}", KEYS[..12].join(", "))),
            }
        }
    }

    fn merge_method(&mut self, entries: Entries<'_>, line: usize) -> Option<Method> {
        let names = || METHODS.iter().map(|row| row.1).collect::<Vec<_>>().join(", ");
        let Some(node) = find(entries, "merge_method") else {
            self.wrong(line, format!("merge_method is missing; give one of {}", names()));
            return None;
        };
        let name = self.text(node, "merge_method")?;
        let found = Method::of_name(name);
        if found.is_none() && OTHER_METHODS.contains(&name) {
            self.wrong(
                node.line,
                format!("merge_method {name} of mergekit is not supported; this version has {}", names()),
            );
        } else if found.is_none() {
            self.wrong(node.line, format!("unknown merge_method {name}; this version has {}", names()));
        }
        found
    }

    /// Whether the method takes differences to the base.
    fn uses_base(&self) -> bool {
        self.method.is_some_and(|method| method.base_use() != BaseUse::Ignored)
    }

    /// The model's index; a new name is added.
    fn model_index(&mut self, name: String, line: usize) -> usize {
        match self.models.iter().position(|model| model.name == name) {
            Some(index) => index,
            None => {
                self.models.push(InputModel { name, line, gives_tokenizer_only: false });
                self.models.len() - 1
            }
        }
    }

    /// A model's name: a text, or mergekit's long form `{model: {path: ...}, lora: {path: ...}}`.
    fn model_name(&mut self, node: &Node) -> Option<String> {
        let name = match &node.value {
            Value::Mapping(entries) => self.long_name(entries, node.line)?,
            _ => self.text(node, "a model's name")?.to_owned(),
        };
        if !Path::new(&name).exists() && super::split_adapter(&name).iter().any(|part| part.contains('@')) {
            self.wrong(
                node.line,
                format!("model {name}: a revision after @ is not supported; pull it to a folder first"),
            );
        }
        Some(name)
    }

    fn long_name(&mut self, entries: Entries<'_>, line: usize) -> Option<String> {
        self.only_keys(entries, &["model", "lora", "override_architecture", "path", "revision"], "a model");
        for key in ["override_architecture", "revision"] {
            if let Some(node) = find(entries, key) {
                self.wrong(node.line, format!("{key} of a model is not supported"));
            }
        }
        let mut part = |key: &str| -> Option<String> {
            let node = find(entries, key)?;
            match &node.value {
                Value::Mapping(inner) => self.long_name(inner, node.line),
                _ => self.text(node, key).map(str::to_owned),
            }
        };
        if let Some(path) = part("path") {
            return Some(path);
        }
        let (model, lora) = (part("model"), part("lora"));
        if model.is_none() {
            self.wrong(line, "a model without `model` or `path`");
        }
        model.map(|model| lora.map_or(model.clone(), |lora| format!("{model}+{lora}")))
    }

    fn dtype(&mut self, entries: Entries<'_>, key: &str) -> Option<MergeDtype> {
        let node = find(entries, key)?;
        let name = self.text(node, key)?;
        match name.strip_prefix("torch.").unwrap_or(name) {
            "bfloat16" => return Some(MergeDtype::Bfloat16),
            "float16" => return Some(MergeDtype::Float16),
            "float32" => return Some(MergeDtype::Float32),
            "float64" => {
                self.wrong(node.line, format!("{key} {name} is not supported; use bfloat16, float16 or float32"));
            }
            _ => self.wrong(node.line, format!("unknown {key} {name}; use bfloat16, float16 or float32")),
        }
        None
    }

    fn chat_template(&mut self, entries: Entries<'_>) -> Option<ChatTemplateChoice> {
        let node = find(entries, "chat_template")?;
        let text = self.text(node, "chat_template")?;
        if text == "auto" {
            return Some(ChatTemplateChoice::Auto);
        }
        if text.contains('{') {
            if let Err(error) = aloe_text::ChatTemplate::new(text, "chat_template") {
                self.wrong(node.line, error.to_string());
                return None;
            }
            return Some(ChatTemplateChoice::Jinja(text.to_owned()));
        }
        if named_template::named(text).is_some() {
            return Some(ChatTemplateChoice::Named(text.to_owned()));
        }
        self.wrong(node.line, named_template::unknown(text));
        None
    }
}
