//! From the YAML tree to a [`MergeConfig`]; collects every mistake on the way instead of stopping at the first.

mod settings;

use super::{ChatTemplateChoice, InputModel, MergeConfig, MergeDtype, Method, Parameter, Setting, TokenizerSource};
use crate::Mistake;
use crate::yaml::{Node, Scalar, Value};
use std::path::Path;

const KEYS: &str = "models, merge_method, base_model, parameters, dtype, out_dtype, tokenizer_source, chat_template";

/// Methods of mergekit 0.1.5 that this version does not have.
const OTHER_METHODS: [&str; 17] = [
    "slerp",
    "nuslerp",
    "multislerp",
    "task_arithmetic",
    "dare_linear",
    "breadcrumbs",
    "breadcrumbs_ties",
    "della",
    "della_linear",
    "model_stock",
    "sce",
    "karcher",
    "passthrough",
    "nearswap",
    "arcee_fusion",
    "ram",
    "ramplus_tl",
];

/// Checks the whole tree.
pub(super) fn config(root: &Node, text: &str, path: &Path) -> Result<MergeConfig, Vec<Mistake>> {
    let mut reader = Reader::default();
    let Some(entries) = reader.mapping(root, "the configuration") else { return Err(reader.mistakes) };
    reader.refuse_unknown_keys(entries);
    let method = reader.method(entries, root.line);
    let base_name = find(entries, "base_model").and_then(|node| reader.model_name(node));
    let mut models = reader.models(entries, root.line, method);
    let settings = find(entries, "parameters").map_or_else(Vec::new, |node| reader.settings(node, method, None));
    let base = reader.place_base(&mut models, base_name, method, entries, root.line);
    reader.check_models(&models, &settings, base, method);
    let config = MergeConfig {
        path: path.to_path_buf(),
        text: text.to_owned(),
        method: method.unwrap_or(Method::Linear),
        dtype: reader.dtype(entries, "dtype"),
        out_dtype: reader.dtype(entries, "out_dtype"),
        tokenizer_source: reader.tokenizer_source(entries, &models, base),
        chat_template: reader.chat_template(entries),
        models,
        base,
        settings,
        notes: reader.notes,
    };
    if reader.mistakes.is_empty() { Ok(config) } else { Err(reader.mistakes) }
}

#[derive(Default)]
struct Reader {
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

impl Reader {
    fn wrong(&mut self, line: usize, text: impl Into<String>) {
        self.mistakes.push(Mistake { line, text: text.into() });
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

    fn text<'a>(&mut self, node: &'a Node, key: &str) -> Option<&'a str> {
        let found = text_of(node).filter(|text| !text.is_empty());
        if found.is_none() {
            self.wrong(node.line, format!("{key} must be a text, found {}; quote it", node.describe()));
        }
        found
    }

    fn refuse_unknown_keys(&mut self, entries: Entries<'_>) {
        for (key, value) in entries {
            let name = key_text(key);
            let is_null = value.value == Value::Scalar(Scalar::Null);
            match name.as_str() {
                "models" | "merge_method" | "base_model" | "parameters" | "dtype" | "out_dtype" | "tokenizer_source"
                | "chat_template" => {}
                "slices" | "modules" | "tokenizer" if is_null => {}
                "slices" => self.wrong(key.line, "slices (layers from several models) are not supported yet; list `models`"),
                "modules" => self.wrong(key.line, "modules are not supported yet; list `models`"),
                "tokenizer" => self.wrong(
                    key.line,
                    "tokenizer (sources per token, padding) is not supported yet; use `tokenizer_source: base` or a model's name",
                ),
                _ => self.wrong(key.line, format!("unknown key {name}; known are {KEYS}")),
            }
        }
    }

    fn method(&mut self, entries: Entries<'_>, line: usize) -> Option<Method> {
        let Some(node) = find(entries, "merge_method") else {
            self.wrong(line, "merge_method is missing; give dare_ties, ties or linear");
            return None;
        };
        match self.text(node, "merge_method")? {
            "linear" => return Some(Method::Linear),
            "ties" => return Some(Method::Ties),
            "dare_ties" => return Some(Method::DareTies),
            other if OTHER_METHODS.contains(&other) => self.wrong(
                node.line,
                format!(
                    "merge_method {other} of mergekit is not supported yet; this version has dare_ties, ties and linear"
                ),
            ),
            other => self
                .wrong(node.line, format!("unknown merge_method {other}; this version has dare_ties, ties and linear")),
        }
        None
    }

    fn models(&mut self, entries: Entries<'_>, line: usize, method: Option<Method>) -> Vec<InputModel> {
        let Some(node) = find(entries, "models") else {
            if find(entries, "slices").is_none() && find(entries, "modules").is_none() {
                self.wrong(line, "models is missing: a list of `- model: PATH`");
            }
            return Vec::new();
        };
        let Value::Sequence(items) = &node.value else {
            self.wrong(node.line, format!("models must be a list of `- model: PATH`, found {}", node.describe()));
            return Vec::new();
        };
        let mut models: Vec<InputModel> = Vec::new();
        for item in items {
            let Some(model) = self.model(item, method) else { continue };
            if let Some(first) = models.iter().find(|known| known.name == model.name) {
                self.wrong(item.line, format!("model {} is already on line {}", model.name, first.line));
            }
            models.push(model);
        }
        if items.is_empty() {
            self.wrong(node.line, "models is an empty list");
        }
        models
    }

    fn model(&mut self, item: &Node, method: Option<Method>) -> Option<InputModel> {
        let entries = self.mapping(item, "an entry of models")?;
        for (key, _) in entries {
            match key_text(key).as_str() {
                "model" | "parameters" => {}
                other => self.wrong(key.line, format!("unknown key {other} of a model; known are model, parameters")),
            }
        }
        let Some(node) = find(entries, "model") else {
            self.wrong(item.line, "an entry of models without `model: PATH`");
            return None;
        };
        let name = self.model_name(node)?;
        let settings =
            find(entries, "parameters").map_or_else(Vec::new, |node| self.settings(node, method, Some(&name)));
        Some(InputModel { name, line: item.line, settings })
    }

    fn model_name(&mut self, node: &Node) -> Option<String> {
        let name = self.text(node, "a model's name")?.to_owned();
        if !Path::new(&name).exists() {
            if name.contains('+') {
                self.wrong(
                    node.line,
                    format!("model {name}: LoRA inputs (model+lora) are not supported yet; merge the adapter first"),
                );
            } else if name.contains('@') {
                self.wrong(
                    node.line,
                    format!("model {name}: a revision after @ is not supported yet; pull it to a folder first"),
                );
            }
        }
        Some(name)
    }

    /// The base's index; a base that is not listed is appended, as mergekit does.
    fn place_base(
        &mut self,
        models: &mut Vec<InputModel>,
        base_name: Option<String>,
        method: Option<Method>,
        entries: Entries<'_>,
        line: usize,
    ) -> Option<usize> {
        let Some(name) = base_name else {
            if let Some(method) = method.filter(|method| method.needs_base() && find(entries, "base_model").is_none()) {
                self.wrong(line, format!("base_model is missing: {} merges differences to a base", method.name()));
            }
            return None;
        };
        if let Some(index) = models.iter().position(|model| model.name == name) {
            return Some(index);
        }
        let line = find(entries, "base_model").map_or(line, |node| node.line);
        models.push(InputModel { name, line, settings: Vec::new() });
        Some(models.len() - 1)
    }

    /// Every merged model needs a weight; the base of a task-vector method needs none.
    fn check_models(
        &mut self,
        models: &[InputModel],
        shared: &[(Parameter, Setting)],
        base: Option<usize>,
        method: Option<Method>,
    ) {
        let Some(method) = method else { return };
        let is_global = shared.iter().any(|(parameter, _)| *parameter == Parameter::Weight);
        for (index, model) in models.iter().enumerate() {
            if method.needs_base() && base == Some(index) {
                if !model.settings.is_empty() {
                    self.notes.push(format!("parameters of the base model {} have no effect", model.name));
                }
            } else if !is_global && model.settings.iter().all(|(parameter, _)| *parameter != Parameter::Weight) {
                self.wrong(
                    model.line,
                    format!("model {} has no weight: give `parameters: {{weight: ...}}`", model.name),
                );
            }
        }
        if method.needs_base() && base.is_some() && models.len() == 1 {
            self.wrong(models[0].line, "no model besides the base: there is nothing to merge");
        }
    }

    fn dtype(&mut self, entries: Entries<'_>, key: &str) -> Option<MergeDtype> {
        let node = find(entries, key)?;
        let name = self.text(node, key)?;
        match name.strip_prefix("torch.").unwrap_or(name) {
            "bfloat16" => return Some(MergeDtype::Bfloat16),
            "float32" => return Some(MergeDtype::Float32),
            "float16" | "float64" => {
                self.wrong(node.line, format!("{key} {name} is not supported; use bfloat16 or float32"));
            }
            _ => self.wrong(node.line, format!("unknown {key} {name}; use bfloat16 or float32")),
        }
        None
    }

    fn tokenizer_source(
        &mut self,
        entries: Entries<'_>,
        models: &[InputModel],
        base: Option<usize>,
    ) -> Option<TokenizerSource> {
        let node = find(entries, "tokenizer_source")?;
        match self.text(node, "tokenizer_source")? {
            "union" => self.wrong(node.line, "tokenizer_source union is not supported yet; use base or a model's name"),
            "base" if base.is_none() => self.wrong(node.line, "tokenizer_source base needs a base_model"),
            "base" => return Some(TokenizerSource::Base),
            name => match models.iter().position(|model| model.name == name) {
                Some(index) => return Some(TokenizerSource::Model(index)),
                None => self.wrong(
                    node.line,
                    format!("tokenizer_source {name} is none of the models; use base or a model's name"),
                ),
            },
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
            return Some(ChatTemplateChoice::Jinja(text.to_owned()));
        }
        if ["llama3", "chatml", "alpaca"].contains(&text) {
            return Some(ChatTemplateChoice::Named(text.to_owned()));
        }
        self.wrong(
            node.line,
            format!("unknown chat_template {text}; use auto, llama3, chatml, alpaca or the Jinja text itself"),
        );
        None
    }
}
