//! What applies to one tensor: each parameter looked up from the input's own settings down to the defaults.
//!
//! Source: mergekit 0.1.5, `parameter_resolver.py` and `ConfigReader.parameter_sources`: source, slice, module, global, default. A filter
//! list without a match falls through to the next level.

use super::{BaseUse, MergeConfig, Method, Parameter, ParameterSpec, ParameterValue, RescaleKind, Scope, Setting};
use crate::Mistake;

/// The resolved parameters of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorParameters {
    /// The tensor's own.
    pub shared: Vec<(Parameter, ParameterValue)>,
    /// Per input of its slice; the base of a task-vector method has none.
    pub inputs: Vec<Vec<(Parameter, ParameterValue)>>,
}

impl TensorParameters {
    /// A number of the tensor; the method is known to have it.
    pub fn number(&self, parameter: Parameter) -> f64 {
        number(&self.shared, parameter)
    }

    /// A flag of the tensor.
    pub fn flag(&self, parameter: Parameter) -> bool {
        matches!(find(&self.shared, parameter), Some(ParameterValue::Flag(true)))
    }

    /// A number of an input.
    pub fn input(&self, input: usize, parameter: Parameter) -> f64 {
        number(&self.inputs[input], parameter)
    }

    /// How kept changes are scaled up.
    pub fn rescale(&self) -> Option<RescaleKind> {
        match find(&self.shared, Parameter::RescaleKind) {
            Some(ParameterValue::Kind(kind)) if self.flag(Parameter::Rescale) => Some(kind),
            _ => None,
        }
    }

    /// The parameters as one line of text.
    pub fn line(&self) -> String {
        let show = |values: &[(Parameter, ParameterValue)]| {
            let parts: Vec<String> =
                values.iter().map(|(parameter, value)| format!("{} {value}", parameter.name())).collect();
            parts.join(", ")
        };
        let mut parts = Vec::new();
        if !self.shared.is_empty() {
            parts.push(show(&self.shared));
        }
        for (index, values) in self.inputs.iter().enumerate().filter(|(_, values)| !values.is_empty()) {
            parts.push(format!("input {}: {}", index + 1, show(values)));
        }
        parts.join("; ")
    }
}

fn find(values: &[(Parameter, ParameterValue)], parameter: Parameter) -> Option<ParameterValue> {
    values.iter().find(|(known, _)| *known == parameter).map(|(_, value)| *value)
}

fn number(values: &[(Parameter, ParameterValue)], parameter: Parameter) -> f64 {
    match find(values, parameter) {
        Some(ParameterValue::Number(value)) => value,
        _ => panic!("{} was resolved for this method", parameter.name()),
    }
}

type Level<'a> = &'a [(Parameter, Setting)];

impl MergeConfig {
    /// The parameters of one tensor of a slice. `t` is the layer's place in the slice from 0 (first) to 1 (last), 0 outside the layers;
    /// `names` are the tensor's name in the result and in each input (layers of a slice are numbered differently).
    pub fn tensor_parameters(
        &self,
        slice: usize,
        name: &str,
        names: &[String],
        t: f64,
    ) -> Result<TensorParameters, Mistake> {
        let slice = &self.slices[slice];
        let below: [Level<'_>; 3] = [&slice.settings, &self.module_settings, &self.settings];
        let specs = self.method.parameters();
        let mut shared = Vec::new();
        for spec in specs.iter().filter(|spec| spec.scope == Scope::Shared) {
            let value = look_up(&below, spec, name, t);
            let line = slice.line;
            shared.push((spec.parameter, value.ok_or_else(|| missing(line, spec.parameter, self.method, None, name))?));
        }
        let mut inputs = Vec::new();
        for (index, source) in slice.sources.iter().enumerate() {
            let is_base = slice.base == Some(index) && self.method.base_use() != BaseUse::Ignored;
            let levels: [Level<'_>; 4] = [&source.settings, below[0], below[1], below[2]];
            let mut values = Vec::new();
            for spec in
                specs.iter().filter(|spec| spec.scope == Scope::Input || (spec.scope == Scope::NonBase && !is_base))
            {
                let model = &self.models[source.model].name;
                let value = look_up(&levels, spec, &names[index], t);
                let missing = || missing(source.line, spec.parameter, self.method, Some(model), &names[index]);
                values.push((spec.parameter, value.ok_or_else(missing)?));
            }
            inputs.push(values);
        }
        let parameters = TensorParameters { shared, inputs };
        self.check(&parameters, name, slice.line)?;
        Ok(parameters)
    }

    /// What only the resolved values show.
    fn check(&self, parameters: &TensorParameters, name: &str, line: usize) -> Result<(), Mistake> {
        let wrong = |text: String| Err(Mistake { line, text });
        let merged = || parameters.inputs.iter().enumerate().filter(|(_, values)| !values.is_empty()).map(|(i, _)| i);
        let sum = || merged().map(|input| parameters.input(input, Parameter::Weight)).sum::<f64>();
        match self.method {
            Method::Linear if parameters.flag(Parameter::Normalize) && sum() == 0.0 => {
                wrong(format!("the weights of {name} sum to zero, which cannot be normalized"))
            }
            Method::Multislerp if parameters.flag(Parameter::NormalizeWeights) && sum() == 0.0 => {
                wrong(format!("the weights of {name} sum to zero, which cannot be normalized"))
            }
            Method::Della | Method::DellaLinear => {
                for input in merged() {
                    let density = parameters.input(input, Parameter::Density);
                    let epsilon = parameters.input(input, Parameter::Epsilon);
                    if density > 0.0 && density < 1.0 && (density + epsilon >= 1.0 || density - epsilon <= 0.0) {
                        return wrong(format!(
                            "density {density} with epsilon {epsilon} for {name}: density - epsilon and density + epsilon must lie \
                             between 0 and 1"
                        ));
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn look_up(levels: &[Level<'_>], spec: &ParameterSpec, name: &str, t: f64) -> Option<ParameterValue> {
    let at_level = |level: &Level<'_>| {
        level.iter().find(|(known, _)| *known == spec.parameter).and_then(|(_, setting)| setting.rule.evaluate(name, t))
    };
    levels.iter().find_map(at_level).or(spec.default)
}

fn missing(line: usize, parameter: Parameter, method: Method, model: Option<&str>, tensor: &str) -> Mistake {
    let name = parameter.name();
    let text = match model {
        Some(model) => format!("model {model} has no {name} for {tensor}: give `parameters: {{{name}: ...}}`"),
        None => {
            format!("merge_method {} has no {name} for {tensor}: give `parameters: {{{name}: ...}}`", method.name())
        }
    };
    Mistake { line, text }
}
