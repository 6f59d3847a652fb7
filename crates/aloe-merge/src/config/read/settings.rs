//! The `parameters` of a configuration: which exist, where they may stand, and their values.

use super::{Reader, find, key_text};
use crate::config::{Method, Parameter, ParameterValue, RescaleKind, Rule, Setting};
use crate::yaml::{Node, Scalar, Value};

impl Reader {
    /// The `parameters` of a model (`model` is its name) or the global ones.
    pub(super) fn settings(
        &mut self,
        node: &Node,
        method: Option<Method>,
        model: Option<&str>,
    ) -> Vec<(Parameter, Setting)> {
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
