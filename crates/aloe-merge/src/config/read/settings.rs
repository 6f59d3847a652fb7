//! The `parameters` of a configuration: which exist, where they may stand, and their values.

use super::{Reader, find, key_text, text_of};
use crate::config::{Parameter, ParameterValue, Range, RescaleKind, Rule, Scope, Setting, Sparsification};
use crate::yaml::{Node, Scalar, Value};

/// Parameters of files that people share and that no mergekit of today reads.
const WITHOUT_EFFECT: [&str; 1] = ["embed_slerp"];

impl Reader {
    /// The `parameters` of a model (`model` is its name), or of a slice, a module or the whole file.
    pub(super) fn settings(&mut self, node: &Node, model: Option<&str>) -> Vec<(Parameter, Setting)> {
        let mut settings = Vec::new();
        for (key, value) in self.mapping(node, "parameters").unwrap_or_default() {
            let name = key_text(key);
            if WITHOUT_EFFECT.contains(&name.as_str()) {
                self.note(format!("{name} has no effect, in mergekit neither"));
                continue;
            }
            let Some(parameter) = Parameter::of_name(&name) else {
                self.wrong(key.line, format!("unknown parameter {name}; known are {}", Parameter::names()));
                continue;
            };
            self.note_without_effect(parameter, model);
            // A wrong value was told and is given all the same: that it is missing would be a second mistake.
            let rule = self.rule(value, parameter, &name).unwrap_or(Rule::Constant(ParameterValue::Number(1.0)));
            self.check_kind(&rule, value.line);
            settings.push((parameter, Setting { line: key.line, rule }));
        }
        settings
    }

    /// mergekit takes parameters that its method does not have, or not there, and says nothing.
    fn note_without_effect(&mut self, parameter: Parameter, model: Option<&str>) {
        let (Some(method), name) = (self.method, parameter.name()) else { return };
        let specs = method.parameters();
        let Some(spec) = specs.iter().find(|spec| spec.parameter == parameter) else {
            if parameter != Parameter::Int8Mask {
                self.note(format!("{name} has no effect on merge_method {}", method.name()));
            }
            return;
        };
        if let (Some(model), Scope::Shared) = (model, spec.scope) {
            self.note(format!("{name} of model {model} has no effect there; move it to the global parameters"));
        }
    }

    fn check_kind(&mut self, rule: &Rule, line: usize) {
        let divides = rule.values().contains(&ParameterValue::Kind(RescaleKind::Density));
        let kept = self.method.and_then(crate::config::Method::sparsification);
        if divides && matches!(kept, Some(Sparsification::Magnitude | Sparsification::Outliers)) {
            self.wrong(
                line,
                "rescale_kind density is for random masks; what this method keeps is no random sample, so use l1",
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
            // Empty, it occurs in every name, as in mergekit.
            Some(node) if text_of(node) == Some("") => None,
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
        let expected = match parameter.range() {
            Range::Finite => "a finite number",
            Range::Share => "a number from 0 to 1",
            Range::Part => "a number from 0 on and below 1",
            Range::Positive => "a number above 0",
            Range::Count => "a whole number from 0 on",
            Range::Kind => "density or l1",
            Range::Flag => "true or false",
        };
        if found.is_none() {
            self.wrong(node.line, format!("{name} must be {expected}, found {}", node.describe()));
        }
        found
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
    let checked =
        |is_right: fn(f64) -> bool| number().filter(|&v| v.is_finite() && is_right(v)).map(ParameterValue::Number);
    match parameter.range() {
        Range::Finite => checked(|_| true),
        Range::Share => checked(|v| (0.0..=1.0).contains(&v)),
        Range::Part => checked(|v| (0.0..1.0).contains(&v)),
        Range::Positive => checked(|v| v > 0.0),
        Range::Count => checked(|v| v >= 0.0 && v.fract() == 0.0),
        Range::Kind => match scalar {
            Scalar::Text(text) if text == "density" => Some(ParameterValue::Kind(RescaleKind::Density)),
            Scalar::Text(text) if text == "l1" => Some(ParameterValue::Kind(RescaleKind::L1)),
            _ => None,
        },
        Range::Flag => match scalar {
            Scalar::Bool(value) => Some(ParameterValue::Flag(*value)),
            // As pydantic takes a number for a condition, 0 and 1 alone: mergekit-evolve writes `normalize: 1.0`.
            Scalar::Int(_) | Scalar::Float(_) => {
                number().filter(|v| *v == 0.0 || *v == 1.0).map(|v| ParameterValue::Flag(v == 1.0))
            }
            // Quoted, a word is text to YAML and a condition to mergekit (pydantic's words for one).
            Scalar::Text(text) => match text.to_lowercase().as_str() {
                "true" | "yes" | "on" | "t" | "y" | "1" => Some(ParameterValue::Flag(true)),
                "false" | "no" | "off" | "f" | "n" | "0" => Some(ParameterValue::Flag(false)),
                _ => None,
            },
            _ => None,
        },
    }
}
