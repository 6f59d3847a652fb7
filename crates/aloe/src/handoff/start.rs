//! What a training stage will start from, before it is there: its tokenizer, template and shape are those of the model that it is made
//! from, whose folder is at hand; the template may have been named on the way.

use crate::failure::Failure;
use crate::recipe::checked::{Input, Recipe, Stage};
use crate::recipe::stage_config::StageConfig;
use crate::stage::model_of;
use aloe_handoff::Cluster;
use aloe_handoff::plan::model_folder;
use aloe_merge::MergeConfig;
use aloe_merge::config::TokenizerSource;
use aloe_model::{Config, ModelSource};
use aloe_text::TextModel;
use std::path::{Path, PathBuf};

/// Where a training starts.
pub(crate) struct Start {
    /// Tokenizer and chat template.
    pub(crate) text: TextModel,
    /// The model's shape.
    pub(crate) config: Config,
    /// The checkpoint folder in the run folder, as it will be when the stage's job begins: f32 masters where there are any.
    pub(crate) weights: PathBuf,
}

/// The start of `stage`, a training stage of a run folder's recipe; called in the run folder.
pub(crate) fn of(recipe: &Recipe, stage: &Stage, cluster: &Cluster) -> anyhow::Result<Start> {
    let input = model_input(stage).ok_or_else(|| Failure::usage("it has no input `model`"))?;
    let weights = weights_of(recipe, input);
    let mut template = template_of(stage).map(str::to_owned);
    let mut input = input;
    let folder = loop {
        match input {
            Input::Path(path) => break at_hand(path, cluster),
            Input::Stage(at) => {
                let earlier = &recipe.stages[*at];
                template = template.or_else(|| template_of(earlier).map(str::to_owned));
                input = match &earlier.config {
                    StageConfig::Pull(config) => break at_hand(Path::new(&config.source), cluster),
                    _ => tokenizer_input(earlier).ok_or_else(|| {
                        let text = format!(
                            "the tokenizer of stage {:?} is not that of one input; train it with trainer = \"aloe\"",
                            earlier.name
                        );
                        Failure::usage(text)
                    })?,
                };
            }
        }
    };
    let folder = model_of(&folder);
    if !folder.join("tokenizer.json").is_file() && !folder.is_file() {
        let text = format!(
            "{} is not at hand on this machine, and rows for a foreign trainer are rendered with its tokenizer; plan where it is",
            folder.display()
        );
        return Err(Failure::usage(text).into());
    }
    let source = ModelSource::open(&folder)?;
    let text = match source.gguf_metadata() {
        Some(metadata) => TextModel::from_gguf(metadata)?,
        None => TextModel::open(&folder)?,
    };
    let text = match template {
        Some(name) => text.with_template(&name)?,
        None => text,
    };
    Ok(Start { text, config: source.config().clone(), weights })
}

/// A path of the run folder as it is here: a model of the site is a link that only jobs have.
fn at_hand(path: &Path, cluster: &Cluster) -> PathBuf {
    let link = |name: &str| Path::new("./models").join(model_folder(name));
    let of_site = cluster.models.iter().find(|(name, _)| link(name) == *path);
    of_site.map_or_else(|| path.to_path_buf(), |(_, folder)| folder.clone())
}

fn model_input(stage: &Stage) -> Option<&Input> {
    stage.from.iter().find(|(name, _)| name == "model").and_then(|(_, inputs)| inputs.first())
}

fn template_of(stage: &Stage) -> Option<&str> {
    match &stage.config {
        StageConfig::Sft(config) => config.chat_template.as_deref(),
        StageConfig::Dpo(config) => config.chat_template.as_deref(),
        _ => None,
    }
}

/// The input that a stage's model has its tokenizer from; `None` where it is a union, or not known before.
fn tokenizer_input(stage: &Stage) -> Option<&Input> {
    let StageConfig::Merge(merge) = &stage.config else { return model_input(stage) };
    let config = MergeConfig::parse(&merge.yaml, Path::new("yaml")).ok()?;
    if config.chat_template.is_some() || !config.earlier.is_empty() {
        return None;
    }
    let at = match config.tokenizer.as_ref().map(|choice| choice.source) {
        Some(TokenizerSource::Model(at)) => at,
        Some(TokenizerSource::Base) | None => config.base.unwrap_or(0),
        Some(TokenizerSource::Union) => return None,
    };
    let name = &config.models.get(at)?.name;
    stage.from.iter().find(|(key, _)| key == name).and_then(|(_, inputs)| inputs.first())
}

/// The folder whose weights a stage will start from, relative to the run folder: the f32 masters that a training stage or a merge writes
/// beside its export.
fn weights_of(recipe: &Recipe, input: &Input) -> PathBuf {
    match input {
        Input::Path(path) => {
            aloe_train::start_weights(path).components().filter(|part| part.as_os_str() != ".").collect()
        }
        Input::Stage(at) => {
            let earlier = &recipe.stages[*at];
            let folder = Path::new("out").join(&earlier.name);
            match &earlier.config {
                StageConfig::Sft(_) | StageConfig::Dpo(_) => folder.join("master"),
                StageConfig::Merge(merge) if merge.master => folder.join("master"),
                StageConfig::MergeSearch(_) => folder.join("master"),
                _ => folder,
            }
        }
    }
}
