//! `models`, `slices` and `modules`: what the result is made of, and whether the method can take it.

use super::{Entries, Reader, find, key_text};
use crate::config::{BaseUse, OutputSlice, Parameter, Scope, Setting, SliceSource};
use crate::yaml::{Node, Scalar, Value};

/// The slices and the parameters of the module around them.
#[derive(Default)]
pub(super) struct Parts {
    pub(super) slices: Vec<OutputSlice>,
    pub(super) module_settings: Vec<(Parameter, Setting)>,
}

impl Reader {
    /// Exactly one of `models`, `slices` and `modules`.
    pub(super) fn output(&mut self, entries: Entries<'_>, line: usize, base: Option<&(String, usize)>) -> Parts {
        let given: Vec<&Node> = ["models", "slices", "modules"].iter().filter_map(|key| find(entries, key)).collect();
        match given[..] {
            [] => self.wrong(line, "models is missing: a list of `- model: PATH` (or `slices` of layers)"),
            [_] => {}
            [_, second, ..] => self.wrong(second.line, "only one of models, slices and modules can be given"),
        }
        if let Some(node) = find(entries, "modules") {
            return self.modules(node, base);
        }
        Parts { slices: self.models_or_slices(entries, base), module_settings: Vec::new() }
    }

    /// The one module of a decoder, which mergekit calls `default`.
    fn modules(&mut self, node: &Node, base: Option<&(String, usize)>) -> Parts {
        let mut parts = Parts::default();
        for (key, value) in self.mapping(node, "modules").unwrap_or_default() {
            let name = key_text(key);
            if name != "default" {
                self.wrong(key.line, format!("unknown module {name}: a decoder has the one module `default`"));
                continue;
            }
            let entries = self.mapping(value, "a module").unwrap_or_default();
            self.only_keys(entries, &["models", "slices", "parameters"], "a module");
            if find(entries, "models").is_some() == find(entries, "slices").is_some() {
                self.wrong(value.line, "a module needs either models or slices");
            }
            parts.slices = self.models_or_slices(entries, base);
            parts.module_settings = find(entries, "parameters").map_or_else(Vec::new, |node| self.settings(node, None));
        }
        parts
    }

    fn models_or_slices(&mut self, entries: Entries<'_>, base: Option<&(String, usize)>) -> Vec<OutputSlice> {
        if let Some(node) = find(entries, "models") {
            return vec![self.whole_models(node, base)];
        }
        let Some(node) = find(entries, "slices") else { return Vec::new() };
        let items = self.list(node, "slices", "- sources: [...]");
        items.iter().filter_map(|item| self.slice(item, base)).collect()
    }

    /// `models`: one slice of all layers. A base that is not listed is appended, as mergekit does.
    fn whole_models(&mut self, node: &Node, base: Option<&(String, usize)>) -> OutputSlice {
        let mut sources: Vec<SliceSource> = Vec::new();
        for item in self.list(node, "models", "- model: PATH") {
            let Some(source) = self.source(item, false) else { continue };
            self.refuse_twice(&sources, &source);
            sources.push(source);
        }
        let index = base.map(|(name, line)| {
            let model = self.model_index(name.clone(), *line);
            sources.iter().position(|source| source.model == model).unwrap_or_else(|| {
                sources.push(SliceSource { model, line: *line, layers: None, settings: Vec::new() });
                sources.len() - 1
            })
        });
        OutputSlice { line: node.line, sources, base: index, settings: Vec::new() }
    }

    fn refuse_twice(&mut self, sources: &[SliceSource], source: &SliceSource) {
        if let Some(first) = sources.iter().find(|known| known.model == source.model) {
            let text = format!("model {} is already on line {}", self.models[source.model].name, first.line);
            self.wrong(source.line, text);
        }
    }

    fn slice(&mut self, item: &Node, base: Option<&(String, usize)>) -> Option<OutputSlice> {
        let entries = self.mapping(item, "an entry of slices")?;
        self.only_keys(entries, &["sources", "base_model", "residual_weight", "parameters"], "a slice");
        if find(entries, "residual_weight").is_some() {
            self.note("residual_weight has no effect, in mergekit neither".into());
        }
        let Some(node) = find(entries, "sources") else {
            self.wrong(item.line, "a slice without `sources`");
            return None;
        };
        let mut sources: Vec<SliceSource> = Vec::new();
        for source in self.list(node, "sources", "- {model: PATH, layer_range: [FIRST, END]}") {
            let Some(source) = self.source(source, true) else { continue };
            self.refuse_twice(&sources, &source);
            sources.push(source);
        }
        let lengths: Vec<usize> = sources.iter().filter_map(|s| s.layers).map(|(first, end)| end - first).collect();
        if lengths.windows(2).any(|pair| pair[0] != pair[1]) {
            self.wrong(item.line, format!("the sources of a slice have different numbers of layers: {lengths:?}"));
        }
        let own = find(entries, "base_model").and_then(|node| self.model_name(node).map(|name| (name, node.line)));
        let base = own.as_ref().or(base);
        let index = base.and_then(|(name, line)| {
            let model = self.model_index(name.clone(), *line);
            sources.iter().position(|source| source.model == model)
        });
        if let (Some((name, _)), None, true) = (base, index, self.uses_base()) {
            self.wrong(item.line, format!("the base model {name} is none of the sources of this slice"));
        }
        let settings = find(entries, "parameters").map_or_else(Vec::new, |node| self.settings(node, None));
        Some(OutputSlice { line: item.line, sources, base: index, settings })
    }

    /// One input: of `models`, or of a slice, where it has a `layer_range`.
    fn source(&mut self, item: &Node, is_slice: bool) -> Option<SliceSource> {
        let what = if is_slice { "an entry of sources" } else { "an entry of models" };
        let entries = self.mapping(item, what)?;
        self.only_keys(entries, &["model", "layer_range", "parameters"], "a model");
        let Some(node) = find(entries, "model") else {
            self.wrong(item.line, format!("{what} without `model: PATH`"));
            return None;
        };
        let name = self.model_name(node)?;
        let settings = find(entries, "parameters").map_or_else(Vec::new, |node| self.settings(node, Some(&name)));
        let layers = match (is_slice, find(entries, "layer_range")) {
            (false, Some(_)) => {
                self.note(format!(
                    "layer_range of {name} under `models` has no effect, in mergekit neither: all layers are merged (`slices` takes some of them)"
                ));
                None
            }
            (false, None) => None,
            (true, Some(node)) => Some(self.layer_range(node)?),
            (true, None) => {
                self.wrong(item.line, format!("model {name} without `layer_range: [FIRST, END]`"));
                return None;
            }
        };
        let model = self.model_index(name, node.line);
        Some(SliceSource { model, line: item.line, layers, settings })
    }

    fn layer_range(&mut self, node: &Node) -> Option<(usize, usize)> {
        let range = match &node.value {
            Value::Sequence(items) => match &items[..] {
                [first, end] => match (&first.value, &end.value) {
                    (Value::Scalar(Scalar::Int(first)), Value::Scalar(Scalar::Int(end))) => {
                        usize::try_from(*first).ok().zip(usize::try_from(*end).ok())
                    }
                    _ => None,
                },
                _ => None,
            },
            _ => None,
        };
        let range = range.filter(|(first, end)| first < end);
        if range.is_none() {
            self.wrong(
                node.line,
                "layer_range must be two whole numbers [FIRST, END], END being one after the last layer",
            );
        }
        range
    }

    /// Whether the method can merge these inputs, and whether each has the parameters it must have.
    pub(super) fn check_slices(
        &mut self,
        parts: &Parts,
        settings: &[(Parameter, Setting)],
        has_base: bool,
        line: usize,
    ) {
        let Some(method) = self.method else { return };
        let any_base = has_base || parts.slices.iter().any(|slice| slice.base.is_some());
        if method.base_use() == BaseUse::Required && !any_base {
            self.wrong(line, format!("base_model is missing: {} merges differences to a base", method.name()));
            return;
        }
        let n_besides = |slice: &OutputSlice| {
            let uses_base = slice.base.is_some() && method.base_use() != BaseUse::Ignored;
            (slice.sources.len().saturating_sub(usize::from(uses_base)), uses_base)
        };
        let merges_some = parts.slices.iter().any(|slice| n_besides(slice).0 > 0);
        for slice in &parts.slices {
            let (n, uses_base) = n_besides(slice);
            let (least, most) = method.n_inputs();
            // No difference to the base is merged: these layers are the base's.
            let is_base_alone = n == 0 && uses_base && method.base_use() == BaseUse::Required;
            if is_base_alone && merges_some {
                self.check_given(parts, slice, settings);
            } else if n == 0 && uses_base {
                self.wrong(slice.line, "no model besides the base: there is nothing to merge");
            } else if (n < least || n > most) && !slice.sources.is_empty() {
                let beside = if uses_base { " besides the base" } else { "" };
                let wanted = if least == most { format!("{least}") } else { format!("at least {least}") };
                self.wrong(
                    slice.line,
                    format!("merge_method {} merges {wanted} models{beside}, found {n}", method.name()),
                );
            } else {
                self.check_given(parts, slice, settings);
            }
        }
    }

    fn check_given(&mut self, parts: &Parts, slice: &OutputSlice, settings: &[(Parameter, Setting)]) {
        let Some(method) = self.method else { return };
        let given = |level: &[(Parameter, Setting)], parameter| level.iter().any(|(known, _)| *known == parameter);
        for spec in method.parameters().iter().filter(|spec| spec.default.is_none()) {
            let (parameter, name) = (spec.parameter, spec.parameter.name());
            if [&slice.settings, &parts.module_settings, settings].iter().any(|level| given(level, parameter)) {
                continue;
            }
            if spec.scope == Scope::Shared {
                self.wrong(slice.line, format!("merge_method {} needs `parameters: {{{name}: ...}}`", method.name()));
                continue;
            }
            for (index, source) in slice.sources.iter().enumerate() {
                let is_base = slice.base == Some(index) && spec.scope == Scope::NonBase;
                if !is_base && !given(&source.settings, parameter) {
                    let model = &self.models[source.model].name;
                    let text = format!("model {model} has no {name}: give `parameters: {{{name}: ...}}`");
                    self.wrong(source.line, text);
                }
            }
        }
        if let Some(base) = slice.base.filter(|_| self.uses_base())
            && !slice.sources[base].settings.is_empty()
        {
            let name = self.models[slice.sources[base].model].name.clone();
            self.note(format!("parameters of the base model {name} have no effect"));
        }
    }
}
