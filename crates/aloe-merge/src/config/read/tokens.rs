//! `tokenizer_source` and `tokenizer`: the vocabulary of the result and where rows of single tokens come from.
//!
//! Source: mergekit 0.1.5, `tokenizer/config.py`.

use super::{Entries, Reader, find, text_of};
use crate::config::{InputModel, TokenRow, TokenRule, TokenizerChoice, TokenizerSource};
use crate::yaml::{Node, Scalar, Value};
use std::collections::BTreeMap;

impl Reader {
    pub(super) fn tokenizer_choice(&mut self, entries: Entries<'_>, base: Option<usize>) -> Option<TokenizerChoice> {
        let simple = find(entries, "tokenizer_source");
        let Some(node) = find(entries, "tokenizer") else {
            let node = simple?;
            let source = self.tokenizer_source(node, base)?;
            return Some(TokenizerChoice {
                line: node.line,
                source,
                tokens: BTreeMap::new(),
                pad_to_multiple_of: None,
            });
        };
        if simple.is_some() {
            self.wrong(node.line, "only one of tokenizer and tokenizer_source can be given");
        }
        let inner = self.mapping(node, "tokenizer")?;
        self.only_keys(inner, &["source", "tokens", "pad_to_multiple_of"], "tokenizer");
        let source = match find(inner, "source") {
            Some(node) => self.tokenizer_source(node, base)?,
            None => TokenizerSource::Union,
        };
        let pad_to_multiple_of = find(inner, "pad_to_multiple_of").and_then(|node| {
            let count = self.count(node, "pad_to_multiple_of")?;
            if count == 0 {
                self.wrong(node.line, "pad_to_multiple_of must be at least 1");
            }
            Some(count).filter(|&count| count > 0)
        });
        let mut tokens = BTreeMap::new();
        if let Some(node) = find(inner, "tokens") {
            for (key, value) in self.mapping(node, "tokens").unwrap_or_default() {
                let Some(token) = text_of(key) else {
                    let found = key.describe();
                    self.wrong(key.line, format!("a key of tokens must be a text, found {found}; quote it"));
                    continue;
                };
                if let Some(rule) = self.token_rule(value, tokens.len()) {
                    tokens.insert(token.to_owned(), rule);
                }
            }
        }
        Some(TokenizerChoice { line: node.line, source, tokens, pad_to_multiple_of })
    }

    fn tokenizer_source(&mut self, node: &Node, base: Option<usize>) -> Option<TokenizerSource> {
        if let Value::Scalar(Scalar::Text(text)) = &node.value {
            match text.as_str() {
                "union" => return Some(TokenizerSource::Union),
                "base" if base.is_none() => {
                    self.wrong(node.line, "tokenizer_source base needs a base_model");
                    return None;
                }
                "base" => return Some(TokenizerSource::Base),
                _ => {}
            }
        }
        let name = self.model_name(node)?;
        let known = self.models.iter().position(|model| model.name == name);
        // mergekit takes the tokenizer of any model, one that is not merged too.
        let index = known.unwrap_or_else(|| {
            self.models.push(InputModel { name, line: node.line, gives_tokenizer_only: true });
            self.models.len() - 1
        });
        Some(TokenizerSource::Model(index))
    }

    fn token_rule(&mut self, node: &Node, place: usize) -> Option<TokenRule> {
        let entries = self.mapping(node, "a token")?;
        self.only_keys(entries, &["source", "force"], "a token");
        let force = match find(entries, "force").map(|node| &node.value) {
            None => false,
            Some(Value::Scalar(Scalar::Bool(force))) => *force,
            Some(_) => {
                self.wrong(node.line, "force must be true or false");
                false
            }
        };
        let source = match find(entries, "source") {
            Some(source) => Some(self.token_row(source)?),
            None => None,
        };
        if source.is_none() && force {
            self.wrong(node.line, "force without `source`: there is no row to force");
        }
        Some(TokenRule { place, line: node.line, source, force })
    }

    fn token_row(&mut self, node: &Node) -> Option<TokenRow> {
        let kind = match &node.value {
            Value::Mapping(entries) => find(entries, "kind").map(|kind| (entries, kind)),
            _ => None,
        };
        let Some((entries, kind)) = kind else {
            return self.known_model(node).map(TokenRow::Same);
        };
        match self.text(kind, "kind")? {
            "zero" => Some(TokenRow::Zero),
            "model_token" => {
                self.only_keys(entries, &["kind", "model", "token", "token_id"], "a token's source");
                let Some(model) = find(entries, "model") else {
                    self.wrong(node.line, "a token's source without `model`");
                    return None;
                };
                let model = self.known_model(model)?;
                match (find(entries, "token"), find(entries, "token_id")) {
                    (Some(token), None) => Some(TokenRow::Token(model, self.text(token, "token")?.to_owned())),
                    (None, Some(id)) => Some(TokenRow::Id(model, self.count(id, "token_id")?)),
                    _ => {
                        self.wrong(node.line, "a token's source needs either `token` or `token_id`");
                        None
                    }
                }
            }
            other => {
                self.wrong(
                    kind.line,
                    format!("unknown kind {other}; use zero, model_token or a model's name as source"),
                );
                None
            }
        }
    }

    fn known_model(&mut self, node: &Node) -> Option<usize> {
        let name = self.model_name(node)?;
        let found = self.models.iter().position(|model| model.name == name && !model.gives_tokenizer_only);
        if found.is_none() {
            self.wrong(node.line, format!("the source {name} is none of the models"));
        }
        found
    }
}
