//! A merge configuration, read whole and checked whole: mergekit's YAML.
//!
//! Source of the format: mergekit 0.1.5, `config.py`, `plan.py`, `parameter_resolver.py`, `scripts/multimerge.py`. What we do not do is
//! refused by name. Ours alone is the parameter `rescale_kind`.

mod method;
mod read;
mod resolve;
mod setting;

pub use method::{BaseUse, METHODS, Method, Parameter, ParameterSpec, Range, Scope, Sparsification};
pub use resolve::TensorParameters;
pub use setting::{ParameterValue, Rule, Setting};

use crate::{Error, Mistake, Result, yaml};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The type merging computes in and results are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MergeDtype {
    /// bfloat16: every operation's result is rounded, as torch does.
    Bfloat16,
    /// float16, likewise.
    Float16,
    /// float32.
    Float32,
}

impl MergeDtype {
    /// Torch's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bfloat16 => "bfloat16",
            Self::Float16 => "float16",
            Self::Float32 => "float32",
        }
    }

    /// The type in a file.
    pub(crate) fn stored(self) -> aloe_model::FileDtype {
        match self {
            Self::Bfloat16 => aloe_model::FileDtype::BF16,
            Self::Float16 => aloe_model::FileDtype::F16,
            Self::Float32 => aloe_model::FileDtype::F32,
        }
    }
}

/// How sparsified task vectors are scaled up again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RescaleKind {
    /// Divide by the probability of being kept: the DARE paper, and mergekit when the reference model was made (April 2024). Keeps the mean.
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

/// Whose tokenizer the result gets, with the embedding rows moved to its ids.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenizerChoice {
    /// Line in the file.
    pub line: usize,
    /// The vocabulary.
    pub source: TokenizerSource,
    /// Where the rows of single tokens come from.
    pub tokens: BTreeMap<String, TokenRule>,
    /// The number of rows is made a multiple of this.
    pub pad_to_multiple_of: Option<usize>,
}

/// A vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenizerSource {
    /// The base model's, or the first model's where there is no base.
    Base,
    /// That of the model at this index of [`MergeConfig::models`].
    Model(usize),
    /// The base's and what the others have beyond it.
    Union,
}

/// Where a token's row comes from in models that lack it, or in all with `force`.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenRule {
    /// Its place among the rules of the file, from 0: new tokens get their ids in this order.
    pub place: usize,
    /// Line in the file.
    pub line: usize,
    /// The row; none means mergekit's own choice.
    pub source: Option<TokenRow>,
    /// Whether models that have the token take the row as well.
    pub force: bool,
}

/// One row of one model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenRow {
    /// Zeros.
    Zero,
    /// The row that the same token has in a model.
    Same(usize),
    /// The row that another token has in a model.
    Token(usize, String),
    /// A row of a model by its number.
    Id(usize, usize),
}

/// The chat template the result gets in place of the tokenizer's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChatTemplateChoice {
    /// The one most input models carry.
    Auto,
    /// mergekit's of this name.
    Named(String),
    /// The template itself.
    Jinja(String),
}

/// One input model.
#[derive(Clone, Debug, PartialEq)]
pub struct InputModel {
    /// The path or name as written, `path+adapter` for one with a LoRA adapter.
    pub name: String,
    /// Line of its first mention.
    pub line: usize,
    /// Whether no slice merges it: `tokenizer_source` alone names it.
    pub gives_tokenizer_only: bool,
}

/// A stretch of layers of the result and where it comes from; the first also gives the embedding, the last the head.
#[derive(Clone, Debug, PartialEq)]
pub struct OutputSlice {
    /// Line in the file.
    pub line: usize,
    /// The inputs.
    pub sources: Vec<SliceSource>,
    /// Its base: an index of `sources`.
    pub base: Option<usize>,
    /// Parameters of the slice.
    pub settings: Vec<(Parameter, Setting)>,
}

/// One input of a slice.
#[derive(Clone, Debug, PartialEq)]
pub struct SliceSource {
    /// Index of [`MergeConfig::models`].
    pub model: usize,
    /// Line in the file.
    pub line: usize,
    /// First layer and the one after the last; none means all layers.
    pub layers: Option<(usize, usize)>,
    /// Its own parameters, which go before all others.
    pub settings: Vec<(Parameter, Setting)>,
}

/// A checked configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct MergeConfig {
    /// The file, for messages.
    pub path: PathBuf,
    /// The YAML as written, for the card and `mergekit_config.yml`.
    pub text: String,
    /// The `name` of a document that a later one uses.
    pub name: Option<String>,
    /// Documents before the last, whose results the last may use by their names.
    pub earlier: Vec<MergeConfig>,
    /// The method.
    pub method: Method,
    /// Every model that is mentioned, in order; a base model that was not listed stands last, as in mergekit.
    pub models: Vec<InputModel>,
    /// Index of the base model in `models`.
    pub base: Option<usize>,
    /// What the result is made of. `models` of the YAML is one slice of all layers.
    pub slices: Vec<OutputSlice>,
    /// The parameters of the one module.
    pub module_settings: Vec<(Parameter, Setting)>,
    /// The global parameters.
    pub settings: Vec<(Parameter, Setting)>,
    /// What merging computes in; none means the widest of the inputs.
    pub dtype: Option<MergeDtype>,
    /// What the result is stored in; none means what merging computed in.
    pub out_dtype: Option<MergeDtype>,
    /// Whose tokenizer; none means that of the base model or the first one, and rows stay where they are.
    pub tokenizer: Option<TokenizerChoice>,
    /// A chat template to put in.
    pub chat_template: Option<ChatTemplateChoice>,
    /// What was accepted without effect, for the record.
    pub notes: Vec<String>,
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

    /// Checks `text`; `path` is for messages. Of several documents the one without a name is the result, or, where all have
    /// names, the one that no other uses.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let checked =
            yaml::parse(text).map_err(|mistake| vec![mistake]).and_then(|roots| read::documents(&roots, text, path));
        checked.map_err(|mut mistakes| {
            mistakes.sort_by_key(|mistake| mistake.line);
            Error::Config { path: path.to_path_buf(), mistakes }
        })
    }

    /// The name of the base model.
    pub fn base_name(&self) -> Option<&str> {
        self.base.map(|index| self.models[index].name.as_str())
    }

    /// What keys the random masks of each model, in the order of `models`: [`crate::mask_names`] of those that are merged, the base among
    /// them. One that gives its tokenizer alone changes no mask.
    pub fn mask_names(&self) -> Vec<String> {
        let merged: Vec<usize> = (0..self.models.len()).filter(|&at| !self.models[at].gives_tokenizer_only).collect();
        let names: Vec<&str> = merged.iter().map(|&at| self.models[at].name.as_str()).collect();
        let mut found: Vec<String> = self.models.iter().map(|model| model.name.clone()).collect();
        for (at, name) in merged.into_iter().zip(crate::mask_names(&names)) {
            found[at] = name;
        }
        found
    }

    /// The models and adapters that must exist before the merge: all names but those of earlier documents.
    pub fn outside_models(&self) -> Vec<String> {
        let own: Vec<&str> = self.earlier.iter().filter_map(|config| config.name.as_deref()).collect();
        let mut names: Vec<String> = Vec::new();
        for config in self.earlier.iter().chain([self]) {
            for part in config.models.iter().flat_map(|model| split_adapter(&model.name)) {
                if !own.contains(&part) && !names.iter().any(|known| known == part) {
                    names.push(part.to_owned());
                }
            }
        }
        names
    }

    /// The line where a model or adapter is first named.
    pub fn line_of(&self, name: &str) -> usize {
        let models = self.earlier.iter().chain([self]).flat_map(|config| &config.models);
        let named = models.filter(|model| split_adapter(&model.name).contains(&name));
        named.map(|model| model.line).min().unwrap_or(1)
    }

    /// The inputs that are merged, without the base where the method takes differences to it.
    pub fn merged_models(&self) -> Vec<&InputModel> {
        let is_base = |index: usize| self.base == Some(index) && self.method.base_use() != BaseUse::Ignored;
        let merged = self.models.iter().enumerate().filter(|(index, _)| !is_base(*index)).map(|(_, model)| model);
        merged.filter(|model| !model.gives_tokenizer_only).collect()
    }
}

/// `model+adapter` as its parts; a path that exists as a whole is one part.
pub fn split_adapter(name: &str) -> Vec<&str> {
    if Path::new(name).exists() {
        return vec![name];
    }
    match name.split_once('+') {
        Some((model, adapter)) if !model.is_empty() && !adapter.is_empty() => vec![model, adapter],
        _ => vec![name],
    }
}

#[cfg(test)]
mod tests;
