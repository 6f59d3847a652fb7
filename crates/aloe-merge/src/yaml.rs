//! A YAML document as a tree with line numbers, resolved as PyYAML's `safe_load` resolves it (YAML 1.1), because
//! mergekit's files are written for that reader.
//!
//! Refuses what a configuration file has no use for: language tags, duplicate keys, an alias to itself, more than
//! 100,000 nodes after aliases are followed ("billion laughs"), nesting deeper than 64. First step of the walk.

mod scalar;

use crate::error::Mistake;
use saphyr_parser::{Event, Parser, ScalarStyle, Tag};
pub use scalar::Scalar;
use std::collections::HashMap;

const MAX_NODES: usize = 100_000;
const MAX_DEPTH: usize = 64;
const CORE: &str = "tag:yaml.org,2002:";

/// A value and the line it starts at, from 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Line in the file, from 1.
    pub line: usize,
    /// What stands there.
    pub value: Value,
    /// Whether it has an anchor, for aliases to refer to.
    pub has_anchor: bool,
}

/// A YAML value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A scalar with its YAML 1.1 type.
    Scalar(Scalar),
    /// A sequence.
    Sequence(Vec<Node>),
    /// A mapping in the order of the file; `<<` entries come before the mapping's own keys, as PyYAML orders them.
    Mapping(Vec<(Node, Node)>),
}

impl Node {
    /// The type's name with its article, for messages.
    pub fn describe(&self) -> String {
        match &self.value {
            Value::Scalar(scalar) => scalar.describe(),
            Value::Sequence(_) => "a list".into(),
            Value::Mapping(_) => "a mapping".into(),
        }
    }

    /// Whether it or something in it has an anchor.
    pub fn holds_anchor(&self) -> bool {
        self.has_anchor
            || match &self.value {
                Value::Scalar(_) => false,
                Value::Sequence(items) => items.iter().any(Self::holds_anchor),
                Value::Mapping(entries) => entries.iter().any(|(_, value)| value.holds_anchor()),
            }
    }

    fn size(&self) -> usize {
        match &self.value {
            Value::Scalar(_) => 1,
            Value::Sequence(items) => 1 + items.iter().map(Node::size).sum::<usize>(),
            Value::Mapping(entries) => 1 + entries.iter().map(|(key, value)| key.size() + value.size()).sum::<usize>(),
        }
    }
}

/// Parses the documents of `text`; an empty text is one null.
pub fn parse(text: &str) -> Result<Vec<Node>, Mistake> {
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| mistake(error.marker().line(), error.info().to_owned()))?;
        builder.on_event(event, span.start.line())?;
    }
    builder.end_document();
    if builder.documents.is_empty() {
        builder.documents.push(Node { line: 1, value: Value::Scalar(Scalar::Null), has_anchor: false });
    }
    Ok(builder.documents)
}

fn mistake(line: usize, text: impl Into<String>) -> Mistake {
    Mistake { line: line.max(1), text: text.into() }
}

#[derive(Default)]
struct Builder {
    root: Option<Node>,
    documents: Vec<Node>,
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    n_nodes: usize,
}

/// A collection whose end has not been read. A mapping's items alternate between key and value.
struct Open {
    anchor: usize,
    line: usize,
    is_mapping: bool,
    items: Vec<Node>,
}

impl Builder {
    fn on_event(&mut self, event: Event<'_>, line: usize) -> Result<(), Mistake> {
        match event {
            Event::DocumentStart(_) => {
                self.end_document();
                Ok(())
            }
            Event::Alias(anchor) => {
                let Some(mut node) = self.anchors.get(&anchor).cloned() else {
                    return Err(mistake(line, "an alias that refers to the node it stands in"));
                };
                node.has_anchor = false;
                self.count(node.size(), line)?;
                self.place(node)
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.count(1, line)?;
                let scalar = resolve(&text, style, tag.as_deref(), line)?;
                self.finish(Node { line, value: Value::Scalar(scalar), has_anchor: anchor > 0 }, anchor)
            }
            Event::SequenceStart(anchor, tag) => self.open(anchor, line, false, tag.as_deref()),
            Event::MappingStart(anchor, tag) => self.open(anchor, line, true, tag.as_deref()),
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            _ => Ok(()),
        }
    }

    /// Anchors do not reach into the next document.
    fn end_document(&mut self) {
        self.anchors.clear();
        self.documents.extend(self.root.take());
    }

    fn open(&mut self, anchor: usize, line: usize, is_mapping: bool, tag: Option<&Tag>) -> Result<(), Mistake> {
        self.count(1, line)?;
        if self.open.len() >= MAX_DEPTH {
            return Err(mistake(line, format!("nested deeper than {MAX_DEPTH} levels")));
        }
        let own = if is_mapping { "map" } else { "seq" };
        if let Some(tag) = tag.filter(|tag| !is_non_specific(tag) && core_suffix(tag) != Some(own)) {
            return Err(mistake(line, format!("the tag {} has no place in a merge configuration", shown(tag))));
        }
        self.open.push(Open { anchor, line, is_mapping, items: Vec::new() });
        Ok(())
    }

    fn close(&mut self) -> Result<(), Mistake> {
        let Some(open) = self.open.pop() else { return Ok(()) };
        let value = if open.is_mapping { mapping(open.items)? } else { Value::Sequence(open.items) };
        if let Value::Sequence(items) = &value {
            for item in items {
                refuse_special(item)?;
            }
        }
        self.finish(Node { line: open.line, value, has_anchor: open.anchor > 0 }, open.anchor)
    }

    fn finish(&mut self, node: Node, anchor: usize) -> Result<(), Mistake> {
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        self.place(node)
    }

    fn place(&mut self, node: Node) -> Result<(), Mistake> {
        match self.open.last_mut() {
            Some(open) => open.items.push(node),
            None => {
                refuse_special(&node)?;
                self.root = Some(node);
            }
        }
        Ok(())
    }

    fn count(&mut self, n: usize, line: usize) -> Result<(), Mistake> {
        self.n_nodes += n;
        if self.n_nodes > MAX_NODES {
            return Err(mistake(line, format!("more than {MAX_NODES} values once aliases are followed")));
        }
        Ok(())
    }
}

/// Pairs up a mapping's items, follows `<<`, refuses a key given twice (PyYAML would keep the last in silence).
fn mapping(items: Vec<Node>) -> Result<Value, Mistake> {
    let mut merged: Vec<(Node, Node)> = Vec::new();
    let mut own: Vec<(Node, Node)> = Vec::new();
    let mut items = items.into_iter();
    while let (Some(mut key), Some(value)) = (items.next(), items.next()) {
        match &key.value {
            Value::Scalar(Scalar::MergeKey) => {
                for inherited in merge_sources(value)? {
                    set(&mut merged, inherited);
                }
                continue;
            }
            Value::Scalar(Scalar::ValueKey) => key.value = Value::Scalar(Scalar::Text("=".into())),
            Value::Scalar(_) => {}
            _ => return Err(mistake(key.line, format!("{} cannot be a key", key.describe()))),
        }
        refuse_special(&value)?;
        if let Some((first, _)) = own.iter().find(|(known, _)| known.value == key.value) {
            return Err(mistake(key.line, format!("{} stands here and on line {}", key.describe(), first.line)));
        }
        own.push((key, value));
    }
    for entry in own {
        set(&mut merged, entry);
    }
    Ok(Value::Mapping(merged))
}

/// Replaces the entry of an equal key in place, as a Python dictionary does, or appends.
fn set(entries: &mut Vec<(Node, Node)>, entry: (Node, Node)) {
    match entries.iter_mut().find(|(key, _)| key.value == entry.0.value) {
        Some(known) => known.1 = entry.1,
        None => entries.push(entry),
    }
}

/// The entries that `<<: value` brings in, weakest first: of a list, earlier mappings win.
fn merge_sources(value: Node) -> Result<Vec<(Node, Node)>, Mistake> {
    match value.value {
        Value::Mapping(entries) => Ok(entries),
        Value::Sequence(items) => {
            let mut all = Vec::new();
            for item in items.into_iter().rev() {
                match item.value {
                    Value::Mapping(entries) => all.extend(entries),
                    _ => return Err(mistake(item.line, format!("`<<` needs mappings, found {}", item.describe()))),
                }
            }
            Ok(all)
        }
        _ => {
            Err(mistake(value.line, format!("`<<` needs a mapping or a list of mappings, found {}", value.describe())))
        }
    }
}

/// `<<` and `=` are keys only; PyYAML has no value for them either.
fn refuse_special(node: &Node) -> Result<(), Mistake> {
    match node.value {
        Value::Scalar(Scalar::MergeKey | Scalar::ValueKey) => {
            Err(mistake(node.line, "`<<` and `=` are no values; quote them to write text"))
        }
        _ => Ok(()),
    }
}

fn resolve(text: &str, style: ScalarStyle, tag: Option<&Tag>, line: usize) -> Result<Scalar, Mistake> {
    let result = match tag {
        None if style == ScalarStyle::Plain => scalar::plain(text),
        None => Ok(Scalar::Text(text.to_owned())),
        // PyYAML types a scalar under `!` as if it stood there plain.
        Some(tag) if is_non_specific(tag) => scalar::plain(text),
        Some(tag) => match core_suffix(tag) {
            Some(kind) => scalar::tagged(kind, text),
            None => Err(format!("the tag {} has no place in a merge configuration", shown(tag))),
        },
    };
    result.map_err(|text| mistake(line, text))
}

/// The tag `!`, which asks for the kind's default type.
fn is_non_specific(tag: &Tag) -> bool {
    (tag.handle.is_empty() && tag.suffix == "!") || (tag.handle == "!" && tag.suffix.is_empty())
}

fn core_suffix(tag: &Tag) -> Option<&str> {
    if tag.handle == CORE { Some(&tag.suffix) } else { tag.suffix.strip_prefix(CORE).filter(|_| tag.handle.is_empty()) }
}

fn shown(tag: &Tag) -> String {
    core_suffix(tag).map_or_else(|| tag.to_string(), |suffix| format!("!!{suffix}"))
}

#[cfg(test)]
mod tests;
