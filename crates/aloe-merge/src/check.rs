//! `aloe merge --check`: the plan as text or JSON, without writing: models, sizes, memory, and the tensors grouped by equal parameters.

use crate::card::kind_of;
use crate::config::{
    MergeConfig, MergeDtype, Parameter, ParameterValue, TokenRow, TokenRule, TokenizerChoice, TokenizerSource,
};
use crate::error::size;
use crate::plan::{MergeOptions, MergePlan, PlannedTensor};
use aloe_model::Role;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

impl MergePlan {
    /// The plan as text.
    pub fn table(&self, options: &MergeOptions) -> String {
        let mut text = String::new();
        for earlier in &self.earlier {
            let own = MergeOptions { write_master: false, ..options.clone() };
            let _ = writeln!(text, "document {}", earlier.document.as_deref().unwrap_or("without a name"));
            earlier.table(&own).lines().for_each(|line| text += &format!("  {line}\n"));
        }
        for (index, model) in self.models.iter().enumerate() {
            let role = match self.base == Some(index) {
                true => "base ",
                false if model.gives_tokenizer_only() => "tokenizer",
                false => "model",
            };
            let _ = write!(text, "{role}  {}", model.name);
            if model.dir != std::path::Path::new(&model.name) {
                let _ = write!(text, "  ({})", model.dir.display());
            }
            if let Some(adapter) = &model.adapter {
                let _ = write!(text, " with adapter {}", adapter.dir.display());
            }
            text.push('\n');
        }
        let _ = writeln!(
            text,
            "{}: {} tensors, {} parameters, computed in {}, written in {} ({}{})",
            self.method_name(),
            self.tensors.len(),
            self.n_parameters(),
            self.dtype.name(),
            self.out_dtype.name(),
            size(self.model_bytes()),
            if options.write_master { ", and master/ in float32" } else { "" },
        );
        let _ = writeln!(
            text,
            "memory: at most {} MiB at the peak with {} threads, of a budget of {} MiB",
            self.memory_bytes(self.threads).div_ceil(1 << 20),
            self.threads,
            options.memory >> 20
        );
        let _ = writeln!(
            text,
            "disk: {}{}",
            size(self.disk_bytes(options)),
            if self.earlier.is_empty() { "" } else { " at once, earlier documents included" }
        );
        let names: Vec<&str> = self.files.iter().map(|(name, _)| name.as_str()).collect();
        let _ = writeln!(
            text,
            "beside the weights, from {}: {}; {} rows of the vocabulary",
            self.models[self.tokenizer].name,
            if names.is_empty() { "nothing".into() } else { names.join(", ") },
            self.config.vocab_size
        );
        self.groups(&mut text);
        self.notes.iter().for_each(|note| text += &format!("note: {note}\n"));
        text
    }

    /// The plan for scripts: everything resolved, per group of tensors with equal parameters and models; what applies to a tensor, and which
    /// tensor of which model it is made of, can be read off without knowing the rules of precedence. `config` is what was planned.
    pub fn json(&self, config: &MergeConfig, options: &MergeOptions) -> Value {
        let earlier = self.earlier.iter().filter_map(|plan| {
            let document = config.earlier.iter().find(|document| document.name == plan.document)?;
            Some(plan.json(document, options))
        });
        let models = self.models.iter().map(|model| {
            let adapter = model.adapter.as_ref().map(|adapter| adapter.dir.display().to_string());
            json!({"name": model.name, "folder": model.dir.display().to_string(), "adapter": adapter})
        });
        json!({
            "document": self.document,
            "earlier": earlier.collect::<Vec<_>>(),
            "method": self.method_name(),
            "dtype": self.dtype.name(),
            "out_dtype": self.out_dtype.name(),
            "models": models.collect::<Vec<_>>(),
            "tokenizer": config.tokenizer.as_ref().map(|choice| tokenizer_json(choice, config)),
            "tokenizer_files": self.models[self.tokenizer].name,
            "vocab_size": self.config.vocab_size,
            "n_parameters": self.n_parameters(),
            "weights_bytes": self.model_bytes(),
            "disk_bytes": self.disk_bytes(options),
            "memory_bytes": self.memory_bytes(self.threads),
            "threads": self.threads,
            "seed": self.seed,
            "groups": self.grouped().iter().map(|group| self.group_json(group)).collect::<Vec<_>>(),
            "notes": self.notes,
        })
    }

    fn group_json(&self, group: &[&PlannedTensor]) -> Value {
        let slice = &self.slices[group[0].slice];
        let input = |(at, model): (usize, &usize)| {
            json!({
                "model": self.models[*model].name,
                "tensors": group.iter().map(|tensor| &tensor.names[at]).collect::<Vec<_>>(),
                "parameters": parameters_json(&group[0].parameters.inputs[at]),
            })
        };
        json!({
            "tensors": group.iter().map(|tensor| &tensor.spec.hf_name).collect::<Vec<_>>(),
            "parameters": parameters_json(&group[0].parameters.shared),
            "base_model": slice.base.map(|base| &self.models[slice.models[base]].name),
            "inputs": slice.models.iter().enumerate().map(input).collect::<Vec<_>>(),
        })
    }

    /// Tensors of equal parameters and sources.
    fn grouped(&self) -> Vec<Vec<&PlannedTensor>> {
        let mut groups: Vec<Vec<&PlannedTensor>> = Vec::new();
        for tensor in &self.tensors {
            let fits = |group: &&mut Vec<&PlannedTensor>| {
                group[0].parameters == tensor.parameters && group[0].slice == tensor.slice
            };
            match groups.iter_mut().find(fits) {
                Some(group) => group.push(tensor),
                None => groups.push(vec![tensor]),
            }
        }
        groups
    }

    /// Tensors of equal parameters and sources, a line for each set of layers with the kinds of tensors that stand in all of them.
    fn groups(&self, text: &mut String) {
        for group in self.grouped() {
            let mut places: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
            for tensor in &group {
                places.entry(kind_of(&tensor.spec.hf_name)).or_default().extend(layer_of(tensor));
            }
            let mut lines: Vec<(&BTreeSet<usize>, Vec<&PlannedTensor>)> = Vec::new();
            for tensor in &group {
                let layers = &places[&kind_of(&tensor.spec.hf_name)];
                match lines.iter_mut().find(|(known, _)| *known == layers) {
                    Some((_, tensors)) => tensors.push(tensor),
                    None => lines.push((layers, vec![tensor])),
                }
            }
            lines.iter().for_each(|(layers, tensors)| self.group_line(layers, tensors, text));
        }
    }

    fn group_line(&self, layers: &BTreeSet<usize>, tensors: &[&PlannedTensor], text: &mut String) {
        let n: usize = tensors.iter().map(|tensor| tensor.spec.n_elements()).sum();
        let bytes = n * if self.out_dtype == MergeDtype::Float32 { 4 } else { 2 };
        let mut kinds: Vec<String> = Vec::new();
        for kind in tensors.iter().map(|tensor| kind_of(&tensor.spec.hf_name)) {
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        let slice = if self.n_slices() > 1 { format!("slice {}, ", tensors[0].slice + 1) } else { String::new() };
        let _ = writeln!(
            text,
            "{slice}{} tensor{} {} ({}), {n} parameters, {}: {}",
            tensors.len(),
            if tensors.len() == 1 { "" } else { "s" },
            shown_layers(layers),
            kinds.join(", "),
            size(bytes as u64),
            tensors[0].parameters.line()
        );
    }
}

fn layer_of(tensor: &PlannedTensor) -> Option<usize> {
    match tensor.spec.role {
        Role::Layer(layer, _) | Role::LoraA(layer, _) | Role::LoraB(layer, _) => Some(layer),
        Role::Embed | Role::FinalNorm | Role::Head => None,
    }
}

/// `of layers 0 to 3, 7`; `outside the layers` for none.
fn shown_layers(layers: &BTreeSet<usize>) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &layer in layers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == layer => *last = layer,
            _ => runs.push((layer, layer)),
        }
    }
    let runs: Vec<String> = runs
        .into_iter()
        .map(|(first, last)| if first == last { first.to_string() } else { format!("{first} to {last}") })
        .collect();
    match (layers.len(), runs.join(", ")) {
        (0, _) => "outside the layers".into(),
        (1, one) => format!("of layer {one}"),
        (_, several) => format!("of layers {several}"),
    }
}

fn parameters_json(values: &[(Parameter, ParameterValue)]) -> Map<String, Value> {
    let value = |value: &ParameterValue| match value {
        ParameterValue::Number(number) => json!(number),
        ParameterValue::Flag(flag) => json!(flag),
        ParameterValue::Kind(kind) => json!(kind.name()),
    };
    values.iter().map(|(parameter, found)| (parameter.name().to_owned(), value(found))).collect()
}

/// Whose vocabulary, and where the rows of single tokens come from.
fn tokenizer_json(choice: &TokenizerChoice, config: &MergeConfig) -> Value {
    let name = |model: usize| config.models[model].name.as_str();
    let source = match choice.source {
        TokenizerSource::Base => "base",
        TokenizerSource::Union => "union",
        TokenizerSource::Model(model) => name(model),
    };
    let row = |row: &TokenRow| match row {
        TokenRow::Zero => json!({"kind": "zero"}),
        TokenRow::Same(model) => json!(name(*model)),
        TokenRow::Token(model, token) => json!({"kind": "model_token", "model": name(*model), "token": token}),
        TokenRow::Id(model, id) => json!({"kind": "model_token", "model": name(*model), "token_id": id}),
    };
    let mut in_order: Vec<(&String, &TokenRule)> = choice.tokens.iter().collect();
    in_order.sort_by_key(|(_, rule)| rule.place);
    let rules = in_order.into_iter().map(|(token, rule)| {
        let value = json!({"source": rule.source.as_ref().map(row), "force": rule.force});
        (token.clone(), value)
    });
    json!({
        "source": source,
        "pad_to_multiple_of": choice.pad_to_multiple_of,
        "tokens": rules.collect::<Map<String, Value>>(),
    })
}
