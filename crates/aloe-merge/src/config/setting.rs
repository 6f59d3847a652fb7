//! The value of a parameter: a constant, a gradient over the layers, or filters on tensor names.
//!
//! Source: mergekit 0.1.5, `config.py`, `evaluate_setting`.

use super::RescaleKind;

/// A parameter's value of its own type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ParameterValue {
    /// `weight`, `density`, `t` and the like.
    Number(f64),
    /// `normalize`, `rescale` and the like.
    Flag(bool),
    /// `rescale_kind`.
    Kind(RescaleKind),
}

impl std::fmt::Display for ParameterValue {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(value) => write!(out, "{value}"),
            Self::Flag(value) => write!(out, "{value}"),
            Self::Kind(kind) => write!(out, "{}", kind.name()),
        }
    }
}

/// A parameter as written, with its line.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// Line in the file.
    pub line: usize,
    /// How the value depends on the tensor.
    pub rule: Rule,
}

/// How a value depends on the tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Rule {
    /// The same everywhere.
    Constant(ParameterValue),
    /// Numbers are interpolated between the layers, first to last; other values are picked.
    Gradient(Vec<ParameterValue>),
    /// The first entry whose text occurs in the tensor's name; none or `*` always matches.
    Filtered(Vec<(Option<String>, Rule)>),
}

impl Rule {
    /// The value for `tensor` at place `t` (0 first layer, 1 last); nothing if no filter matches.
    pub fn evaluate(&self, tensor: &str, t: f64) -> Option<ParameterValue> {
        match self {
            Self::Constant(value) => Some(*value),
            Self::Gradient(values) => gradient(values, t),
            Self::Filtered(entries) => entries
                .iter()
                .find(|(filter, _)| filter.as_deref().is_none_or(|filter| filter == "*" || tensor.contains(filter)))
                .and_then(|(_, rule)| rule.evaluate(tensor, t)),
        }
    }

    /// Every value that stands in the rule.
    pub fn values(&self) -> Vec<ParameterValue> {
        match self {
            Self::Constant(value) => vec![*value],
            Self::Gradient(values) => values.clone(),
            Self::Filtered(entries) => entries.iter().flat_map(|(_, rule)| rule.values()).collect(),
        }
    }

    /// Whether a value is found for every tensor.
    pub fn is_total(&self) -> bool {
        match self {
            Self::Filtered(entries) => entries.iter().any(|(filter, _)| filter.as_deref().is_none_or(|f| f == "*")),
            _ => true,
        }
    }
}

fn gradient(values: &[ParameterValue], t: f64) -> Option<ParameterValue> {
    let last = values.len().checked_sub(1)?;
    let scaled = t * last as f64;
    let lower = (scaled as usize).min(last);
    let upper = (lower + 1).min(last);
    match (values[lower], values[upper]) {
        (ParameterValue::Number(from), ParameterValue::Number(to)) => {
            let part = scaled - lower as f64;
            Some(ParameterValue::Number((1.0 - part) * from + part * to))
        }
        (picked, _) => Some(picked),
    }
}
