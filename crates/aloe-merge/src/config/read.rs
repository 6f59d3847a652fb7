//! From the YAML tree to a [`MergeConfig`]; collects every mistake on the way instead of stopping at the first.

use super::{
    ChatTemplateChoice, InputModel, MergeConfig, MergeDtype, Method, Parameter, ParameterValue, RescaleKind, Rule,
    Setting, TokenizerSource,
};
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

    /// The `parameters` of a model (`model` is its name) or the global ones.
    fn settings(&mut self, node: &Node, method: Option<Method>, model: Option<&str>) -> Vec<(Parameter, Setting)> {
        let mut settings = Vec::new();
        for (key, value) in self.mapping(node, "parameters").unwrap_or_default() {
            let name = key_text(key);
            let Some(parameter) = parameter(&name) else {
                self.wrong(
                    key.line,
                    format!("unknown parameter {name}; known are weight, density, lambda, normalize, rescale, rescale_kind, int8_mask"),
                );
                continue;
            };
            let is_per_model = matches!(parameter, Parameter::Weight | Parameter::Density);
            if let Some(model) = model.filter(|_| !is_per_model) {
                self.wrong(
                    key.line,
                    format!("{name} of model {model} has no effect there; move it to the global parameters"),
                );
            }
            if method == Some(Method::Linear)
                && !matches!(parameter, Parameter::Weight | Parameter::Normalize | Parameter::Int8Mask)
            {
                self.wrong(key.line, format!("{name} has no effect on merge_method linear"));
            }
            if let Some(rule) = self.rule(value, parameter, &name) {
                self.check_kind(&rule, method, value.line);
                settings.push((parameter, Setting { line: key.line, rule }));
            }
        }
        settings
    }

    fn check_kind(&mut self, rule: &Rule, method: Option<Method>, line: usize) {
        let divides = rule.values().contains(&ParameterValue::Kind(RescaleKind::Density));
        if method == Some(Method::Ties) && divides {
            self.wrong(
                line,
                "rescale_kind density is for random masks; what ties keeps is no random sample, so use l1",
            );
        }
    }

    fn rule(&mut self, node: &Node, parameter: Parameter, name: &str) -> Option<Rule> {
        match &node.value {
            Value::Scalar(_) => self.value(node, parameter, name).map(Rule::Constant),
            Value::Mapping(_) => Some(Rule::Filtered(vec![self.filter(node, parameter, name)?])),
            Value::Sequence(items) if items.is_empty() => {
                self.wrong(node.line, format!("{name} is an empty list"));
                None
            }
            Value::Sequence(items) if items.iter().all(|item| matches!(item.value, Value::Mapping(_))) => {
                let entries: Vec<_> = items.iter().map(|item| self.filter(item, parameter, name)).collect();
                entries.into_iter().collect::<Option<Vec<_>>>().map(Rule::Filtered)
            }
            Value::Sequence(items) => {
                let values: Vec<_> = items.iter().map(|item| self.value(item, parameter, name)).collect();
                values.into_iter().collect::<Option<Vec<_>>>().map(Rule::Gradient)
            }
        }
    }

    fn filter(&mut self, node: &Node, parameter: Parameter, name: &str) -> Option<(Option<String>, Rule)> {
        let entries = self.mapping(node, name)?;
        for (key, _) in entries {
            match key_text(key).as_str() {
                "filter" | "value" => {}
                other => {
                    self.wrong(key.line, format!("unknown key {other} in a filter of {name}; known are filter, value"))
                }
            }
        }
        let filter = match find(entries, "filter") {
            Some(node) => Some(self.text(node, "filter")?.to_owned()),
            None => None,
        };
        match find(entries, "value") {
            Some(value) if matches!(value.value, Value::Mapping(_)) => {
                self.wrong(value.line, format!("a filter of {name} cannot hold another filter"));
                None
            }
            Some(value) => Some((filter, self.rule(value, parameter, name)?)),
            None => {
                self.wrong(node.line, format!("a filter of {name} without `value`"));
                None
            }
        }
    }

    fn value(&mut self, node: &Node, parameter: Parameter, name: &str) -> Option<ParameterValue> {
        let found = match &node.value {
            Value::Scalar(scalar) => scalar_value(scalar, parameter),
            _ => None,
        };
        let expected = match parameter {
            Parameter::Weight | Parameter::Lambda => "a finite number",
            Parameter::Density => "a number above 0 and at most 1",
            Parameter::RescaleKind => "density or l1",
            _ => "true or false",
        };
        if found.is_none() {
            self.wrong(node.line, format!("{name} must be {expected}, found {}", node.describe()));
        }
        found
    }
}

fn parameter(name: &str) -> Option<Parameter> {
    match name {
        "weight" => Some(Parameter::Weight),
        "density" => Some(Parameter::Density),
        "lambda" => Some(Parameter::Lambda),
        "normalize" => Some(Parameter::Normalize),
        "int8_mask" => Some(Parameter::Int8Mask),
        "rescale" => Some(Parameter::Rescale),
        "rescale_kind" => Some(Parameter::RescaleKind),
        _ => None,
    }
}

/// A scalar as a value of the parameter's type. `1e-1` is text to YAML 1.1 and a number to mergekit, and so it is here.
fn scalar_value(scalar: &Scalar, parameter: Parameter) -> Option<ParameterValue> {
    let number = || match scalar {
        Scalar::Int(value) => Some(*value as f64),
        Scalar::Float(value) => Some(*value),
        Scalar::Text(text) => text.trim().parse::<f64>().ok(),
        _ => None,
    };
    match parameter {
        Parameter::Weight | Parameter::Lambda => number().filter(|v| v.is_finite()).map(ParameterValue::Number),
        Parameter::Density => number().filter(|&v| v > 0.0 && v <= 1.0).map(ParameterValue::Number),
        Parameter::RescaleKind => match scalar {
            Scalar::Text(text) if text == "density" => Some(ParameterValue::Kind(RescaleKind::Density)),
            Scalar::Text(text) if text == "l1" => Some(ParameterValue::Kind(RescaleKind::L1)),
            _ => None,
        },
        Parameter::Normalize | Parameter::Int8Mask | Parameter::Rescale => match scalar {
            Scalar::Bool(value) => Some(ParameterValue::Flag(*value)),
            Scalar::Int(0) => Some(ParameterValue::Flag(false)),
            Scalar::Int(1) => Some(ParameterValue::Flag(true)),
            _ => None,
        },
    }
}
