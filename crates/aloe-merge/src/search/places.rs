//! Where the values of a YAML text stand: each scalar's path (`models.0.parameters.density`) and its bytes, so that a number can be
//! changed and nothing else, comments and order included.
//!
//! Does not follow aliases: what stands behind one is changed at its anchor.

use saphyr_parser::{Event, Parser};
use std::ops::Range;

/// What stands at a path.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Place {
    /// A scalar and its bytes.
    Scalar(Range<usize>),
    /// A list or a mapping.
    Collection,
    /// An alias.
    Alias,
}

/// All places of all documents. Paths of a document with a `name`, of several, begin with that name.
pub(super) fn places(text: &str) -> Vec<(Vec<String>, Place)> {
    let mut walk =
        Walk { offsets: text.char_indices().map(|(at, _)| at).chain([text.len()]).collect(), ..Walk::default() };
    for event in Parser::new_from_str(text) {
        // `MergeConfig::parse` has read the text: there is no syntax error left.
        let Ok((event, span)) = event else { break };
        let bytes = walk.bytes(text, span.start.index(), span.end.index());
        walk.on_event(&event, bytes);
    }
    walk.end_document();
    let several = walk.documents.len() > 1;
    let named = |name: Option<String>, path: Vec<String>| match name {
        Some(name) if several => [vec![name], path].concat(),
        _ => path,
    };
    let documents = walk.documents.into_iter();
    documents
        .flat_map(|(name, places)| places.into_iter().map(move |(path, place)| (name.clone(), path, place)))
        .map(|(name, path, place)| (named(name, path), place))
        .collect()
}

type Places = Vec<(Vec<String>, Place)>;

#[derive(Default)]
struct Walk {
    /// Byte of each character.
    offsets: Vec<usize>,
    open: Vec<Open>,
    places: Places,
    name: Option<String>,
    documents: Vec<(Option<String>, Places)>,
}

/// A collection whose end has not come: its path, and the key or index that is next.
struct Open {
    path: Vec<String>,
    is_mapping: bool,
    key: Option<String>,
    n_items: usize,
}

impl Walk {
    fn bytes(&self, text: &str, start: usize, end: usize) -> Range<usize> {
        let last = self.offsets.len() - 1;
        let (start, end) = (self.offsets[start.min(last)], self.offsets[end.min(last)]);
        start..start + text[start..end].trim_end().len()
    }

    fn on_event(&mut self, event: &Event<'_>, bytes: Range<usize>) {
        match event {
            Event::DocumentStart(_) => self.end_document(),
            Event::Alias(_) => self.place(Place::Alias, "*"),
            Event::Scalar(value, ..) => self.place(Place::Scalar(bytes), value),
            Event::SequenceStart(..) | Event::MappingStart(..) => {
                let path = self.next_path();
                let is_mapping = matches!(event, Event::MappingStart(..));
                if let Some(path) = &path {
                    self.places.push((path.clone(), Place::Collection));
                }
                self.open.push(Open { path: path.unwrap_or_default(), is_mapping, key: None, n_items: 0 });
            }
            Event::SequenceEnd | Event::MappingEnd => {
                self.open.pop();
            }
            _ => {}
        }
    }

    /// A value, or a mapping's key.
    fn place(&mut self, place: Place, shown: &str) {
        if let Some(open) = self.open.last_mut().filter(|open| open.is_mapping && open.key.is_none()) {
            open.key = Some(shown.to_owned());
            return;
        }
        let Some(path) = self.next_path() else { return };
        if path == ["name"] {
            self.name = Some(shown.to_owned());
        }
        self.places.push((path, place));
    }

    /// The path of the value that comes now; the top of a document is the empty path.
    fn next_path(&mut self) -> Option<Vec<String>> {
        let Some(open) = self.open.last_mut() else { return Some(Vec::new()) };
        let step = match open.is_mapping {
            true => open.key.take()?,
            false => open.n_items.to_string(),
        };
        open.n_items += 1;
        Some([&open.path[..], &[step]].concat())
    }

    fn end_document(&mut self) {
        if !self.places.is_empty() {
            self.documents.push((self.name.take(), std::mem::take(&mut self.places)));
        }
        self.open.clear();
    }
}
