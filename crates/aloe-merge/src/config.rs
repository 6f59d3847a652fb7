//! A merge configuration, read whole and checked whole: mergekit's YAML for the methods this crate has.
//!
//! Source of the format: mergekit 0.1.5, `config.py` and `parameter_resolver.py`. Everything else mergekit knows (`slices`, `modules`,
//! per-token `tokenizer`, other methods, LoRA inputs) is refused by name. Ours alone is the parameter `rescale_kind`.

mod read;
mod setting;

pub use setting::{ParameterValue, Rule, Setting};

use crate::{Error, Mistake, Result, yaml};
use std::path::{Path, PathBuf};

/// How tensors are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Weighted mean of the models.
    Linear,
    /// TIES (arXiv 2306.01708): keep the largest changes, elect a sign, average what agrees.
    Ties,
    /// DARE (arXiv 2311.03099) in place of the trim of TIES: keep changes at random and rescale them.
    DareTies,
}

impl Method {
    /// mergekit's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Ties => "ties",
            Self::DareTies => "dare_ties",
        }
    }

    /// Whether the method works on differences to a base model.
    pub fn needs_base(self) -> bool {
        self != Self::Linear
    }
}

/// The type merging computes in and results are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MergeDtype {
    /// bfloat16: every operation's result is rounded, as torch does.
    Bfloat16,
    /// float32.
    Float32,
}

impl MergeDtype {
    /// Torch's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bfloat16 => "bfloat16",
            Self::Float32 => "float32",
        }
    }
}

/// How sparsified task vectors are scaled up again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RescaleKind {
    /// Divide by the density: the DARE paper, and mergekit when the reference model was made (April 2024). Keeps the mean.
    Density,
    /// Multiply so that the sum of magnitudes stays as it was: mergekit since February 2025.
    L1,
}

impl RescaleKind {
    /// The value of `rescale_kind`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Density => "density",
            Self::L1 => "l1",
        }
    }
}

/// Whose tokenizer the result gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenizerSource {
    /// The base model's.
    Base,
    /// That of the model at this index of [`MergeConfig::models`].
    Model(usize),
}

/// The chat template the result gets in place of the tokenizer's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChatTemplateChoice {
    /// The one most input models carry.
    Auto,
    /// One of ours by name.
    Named(String),
    /// The template itself.
    Jinja(String),
}

/// The parameters a method can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parameter {
    /// Factor of a model. Per model, required.
    Weight,
    /// Share of a task vector that is kept, in (0, 1]. Per model, 1 if not given.
    Density,
    /// Factor of the merged task vector, 1 if not given.
    Lambda,
    /// Whether to divide by the sum of the weights: true for `linear` and `ties`, false for `dare_ties` if not given.
    Normalize,
    /// The dtype of mergekit's masks: accepted, changes no number.
    Int8Mask,
    /// Whether to rescale what was kept: true for `dare_ties` if not given, false for `ties`.
    Rescale,
    /// Ours: `density` or `l1`.
    RescaleKind,
}

/// One input model.
#[derive(Clone, Debug, PartialEq)]
pub struct InputModel {
    /// The path or name as written.
    pub name: String,
    /// Line in the file.
    pub line: usize,
    /// Its own parameters, which go before the global ones.
    pub settings: Vec<(Parameter, Setting)>,
}

/// A checked configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct MergeConfig {
    /// The file, for messages.
    pub path: PathBuf,
    /// The YAML as written, for the card and `mergekit_config.yml`.
    pub text: String,
    /// The method.
    pub method: Method,
    /// The models in order; a base model that was not listed stands last, as in mergekit.
    pub models: Vec<InputModel>,
    /// Index of the base model in `models`.
    pub base: Option<usize>,
    /// The global parameters.
    pub settings: Vec<(Parameter, Setting)>,
    /// What merging computes in; none means the widest of the inputs.
    pub dtype: Option<MergeDtype>,
    /// What the result is stored in; none means what merging computed in.
    pub out_dtype: Option<MergeDtype>,
    /// Whose tokenizer; none means that of the base model or the first one.
    pub tokenizer_source: Option<TokenizerSource>,
    /// A chat template to put in.
    pub chat_template: Option<ChatTemplateChoice>,
    /// What was accepted without effect, for the record.
    pub notes: Vec<String>,
}

/// What applies to one tensor, all parameters resolved.
#[derive(Clone, Debug, PartialEq)]
pub enum TensorParameters {
    /// For [`Method::Linear`].
    Linear {
        /// One per model of [`MergeConfig::models`].
        weights: Vec<f64>,
        /// Whether to divide by their sum.
        normalize: bool,
    },
    /// For [`Method::Ties`] and [`Method::DareTies`].
    Consensus {
        /// One per model other than the base, in order.
        weights: Vec<f64>,
        /// One per model other than the base, in (0, 1].
        densities: Vec<f64>,
        /// Whether to divide by the sum of the weights that agree.
        normalize: bool,
        /// Factor of the merged task vector.
        lambda: f64,
        /// How to scale up what was kept.
        rescale: Option<RescaleKind>,
    },
}

impl MergeConfig {
    /// Reads and checks a file; the error lists every mistake.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        match String::from_utf8(bytes) {
            Ok(text) => Self::parse(&text, path),
            Err(error) => {
                let line =
                    1 + error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|&&b| b == b'\n').count();
                Err(Error::Config {
                    path: path.to_path_buf(),
                    mistakes: vec![Mistake { line, text: "not UTF-8".into() }],
                })
            }
        }
    }

    /// Checks `text`; `path` is for messages.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let checked =
            yaml::parse(text).map_err(|mistake| vec![mistake]).and_then(|root| read::config(&root, text, path));
        checked.map_err(|mut mistakes| {
            mistakes.sort_by_key(|mistake| mistake.line);
            Error::Config { path: path.to_path_buf(), mistakes }
        })
    }

    /// The name of the base model.
    pub fn base_name(&self) -> Option<&str> {
        self.base.map(|index| self.models[index].name.as_str())
    }

    /// The parameters of one tensor. `t` is the layer's place from 0 (first) to 1 (last), 0 outside the layers.
    pub fn tensor_parameters(&self, tensor: &str, t: f64) -> Result<TensorParameters, Mistake> {
        let weights = self.per_model(Parameter::Weight, tensor, t)?;
        let normalize = self.shared_flag(Parameter::Normalize, tensor, t).unwrap_or(self.method != Method::DareTies);
        if self.method == Method::Linear {
            if normalize && weights.iter().sum::<f64>() == 0.0 {
                let line = self.models.first().map_or(1, |model| model.line);
                return Err(Mistake {
                    line,
                    text: format!("the weights of {tensor} sum to zero, which cannot be normalized"),
                });
            }
            return Ok(TensorParameters::Linear { weights, normalize });
        }
        let is_dare = self.method == Method::DareTies;
        let kind = match self.shared(Parameter::RescaleKind, tensor, t) {
            Some(ParameterValue::Kind(kind)) => kind,
            _ if is_dare => RescaleKind::Density,
            _ => RescaleKind::L1,
        };
        let rescale = self.shared_flag(Parameter::Rescale, tensor, t).unwrap_or(is_dare);
        let lambda = match self.shared(Parameter::Lambda, tensor, t) {
            Some(ParameterValue::Number(lambda)) => lambda,
            _ => 1.0,
        };
        let densities = self.per_model(Parameter::Density, tensor, t)?;
        Ok(TensorParameters::Consensus { weights, densities, normalize, lambda, rescale: rescale.then_some(kind) })
    }

    /// A per-model number: the model's own setting, else the global one, else the default (mergekit's `resolve_parameter`). A
    /// filter list without a match falls through. The base of a task-vector method is left out.
    fn per_model(&self, parameter: Parameter, tensor: &str, t: f64) -> Result<Vec<f64>, Mistake> {
        let mut values = Vec::new();
        for (index, model) in self.models.iter().enumerate() {
            if self.method.needs_base() && self.base == Some(index) {
                continue;
            }
            let found = evaluate(&model.settings, parameter, tensor, t).or_else(|| self.shared(parameter, tensor, t));
            match found {
                Some(ParameterValue::Number(value)) => values.push(value),
                _ if parameter == Parameter::Density => values.push(1.0),
                _ => {
                    let text =
                        format!("model {} has no weight for {tensor}: give `parameters: {{weight: ...}}`", model.name);
                    return Err(Mistake { line: model.line, text });
                }
            }
        }
        Ok(values)
    }

    fn shared(&self, parameter: Parameter, tensor: &str, t: f64) -> Option<ParameterValue> {
        evaluate(&self.settings, parameter, tensor, t)
    }

    fn shared_flag(&self, parameter: Parameter, tensor: &str, t: f64) -> Option<bool> {
        match self.shared(parameter, tensor, t) {
            Some(ParameterValue::Flag(flag)) => Some(flag),
            _ => None,
        }
    }
}

fn evaluate(settings: &[(Parameter, Setting)], parameter: Parameter, tensor: &str, t: f64) -> Option<ParameterValue> {
    settings.iter().find(|(known, _)| *known == parameter).and_then(|(_, setting)| setting.rule.evaluate(tensor, t))
}

#[cfg(test)]
mod tests;
