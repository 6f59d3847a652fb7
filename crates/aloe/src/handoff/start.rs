//! What a training stage will start from, before it is there: its tokenizer, template and shape are those of the model that it is made
//! from, whose folder is at hand; the template may have been named on the way.

use crate::failure::Failure;
use crate::known;
use crate::recipe::checked::{Input, Recipe, Stage};
use crate::recipe::stage_config::{MergeStage, StageConfig};
use crate::stage::model_of;
use aloe_handoff::Cluster;
use aloe_handoff::plan::model_folder;
use aloe_merge::MergeConfig;
use aloe_merge::config::{TokenizerSource, split_adapter};
use aloe_model::{Config, ModelSource};
use aloe_text::TextModel;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where a training starts.
pub(crate) struct Start {
    /// Tokenizer and chat template.
    pub(crate) text: TextModel,
    /// The model's shape.
    pub(crate) config: Config,
    /// The checkpoint folder in the run folder, as it will be when the stage's job begins: f32 masters where there are any.
    pub(crate) weights: PathBuf,
    /// Digests of its configuration, tokenizer, template and weights, where it is a model of the site; of a copy of one those of the
    /// configuration and the tokenizer. Of anything else the stage's inputs have them, or an earlier stage makes it.
    pub(crate) digests: BTreeMap<String, String>,
    /// Digests by their paths in the run folder, of the text files of the model of the site whose tokenizer the rows are rendered with.
    pub(crate) of_site: BTreeMap<String, String>,
}

/// The start of `stage`, a training stage of a run folder's recipe; called in the run folder.
pub(crate) fn of(recipe: &Recipe, stage: &Stage, cluster: &Cluster) -> anyhow::Result<Start> {
    let input = named_model(stage)?;
    let weights = weights_of(recipe, input, cluster)?;
    let digests = match input {
        Input::Path(_) => {
            let folder = at_hand(&weights, cluster);
            let mut found = digests_of(&folder, Path::new(""), &TEXT_FILES)?;
            found.extend(digests_of_weights(&folder)?);
            found
        }
        // A copy has these as they were.
        Input::Stage(at) => match &recipe.stages[*at].config {
            StageConfig::Pull(config) => {
                digests_of(&at_hand(Path::new(&config.source), cluster), Path::new(""), &TEXT_FILES[..2])?
            }
            _ => BTreeMap::new(),
        },
    };
    let (named, on_the_way) = origin(recipe, input, tokenizer_input).map_err(|earlier| {
        let text = format!(
            "the tokenizer of stage {:?} is not that of one input; train it with trainer = \"aloe\"",
            earlier.name
        );
        Failure::usage(text)
    })?;
    let template = std::iter::once(stage).chain(on_the_way).find_map(template_of);
    let whole = at_hand(&named, cluster);
    let folder = model_of(&whole);
    if !folder.join("tokenizer.json").is_file() && !folder.is_file() {
        let text = format!(
            "{} is not at hand on this machine, and rows for a foreign trainer are rendered with its tokenizer; plan where it is",
            folder.display()
        );
        return Err(Failure::usage(text).into());
    }
    let text = match folder.is_file() {
        true => match ModelSource::open(&folder)?.gguf_metadata() {
            Some(metadata) => TextModel::from_gguf(metadata)?,
            None => TextModel::open(&folder)?,
        },
        false => TextModel::open(&folder)?,
    };
    let text = match template {
        Some(name) => text.with_template(name)?,
        None => text,
    };
    let config = shape_of(recipe, input, &text, cluster)?;
    let of_site = match folder.strip_prefix(&whole) {
        Ok(inside) => digests_of(&folder, &named.join(inside), &TEXT_FILES)?,
        Err(_) => BTreeMap::new(),
    };
    Ok(Start { text, config, weights, digests, of_site })
}

/// The folder of [`Start::weights`] alone.
pub(crate) fn weights(recipe: &Recipe, stage: &Stage, cluster: &Cluster) -> anyhow::Result<PathBuf> {
    weights_of(recipe, named_model(stage)?, cluster)
}

fn named_model(stage: &Stage) -> anyhow::Result<&Input> {
    model_input(stage).ok_or_else(|| Failure::usage("it has no input `model`").into())
}

/// The shape of the model that a training starts from: of a merge it is its base's, or its first model's, with as many embeddings as the
/// tokenizer chosen for it has tokens. The model whose tokenizer that is may have another shape, or none.
fn shape_of(recipe: &Recipe, input: &Input, text: &TextModel, cluster: &Cluster) -> anyhow::Result<Config> {
    let (named, on_the_way) = origin(recipe, input, shape_input)
        .map_err(|earlier| Failure::usage(format!("stage {:?} has no model whose shape is its own", earlier.name)))?;
    let folder = model_of(&at_hand(&named, cluster));
    let mut config = ModelSource::open(&folder)?.config().clone();
    let chooses = |stage: &&Stage| matches!(&stage.config, StageConfig::Merge(merge) if parsed(merge).is_some_and(|yaml| yaml.tokenizer.is_some()));
    if on_the_way.iter().any(chooses) {
        config.vocab_size = config.vocab_size.max(text.tokenizer.vocab_size());
    }
    Ok(config)
}

/// The path that a model comes from by way of the stages' inputs that `next` names, and these stages, the latest first; the stage that
/// names none otherwise.
fn origin<'r>(
    recipe: &'r Recipe,
    mut input: &'r Input,
    next: fn(&'r Stage) -> Option<&'r Input>,
) -> Result<(PathBuf, Vec<&'r Stage>), &'r Stage> {
    let mut on_the_way = Vec::new();
    loop {
        let at = match input {
            Input::Path(path) => return Ok((path.clone(), on_the_way)),
            Input::Stage(at) => *at,
        };
        let earlier = &recipe.stages[at];
        on_the_way.push(earlier);
        input = match &earlier.config {
            StageConfig::Pull(config) => return Ok((PathBuf::from(&config.source), on_the_way)),
            _ => next(earlier).ok_or(earlier)?,
        };
    }
}

/// Files of a model that decide what rows mean and how the trained model is used; copies of a model have the first two as they were.
const TEXT_FILES: [&str; 6] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
];

/// Digests of the weights of a model of the site by their names; none of a folder that lies in the run folder.
fn digests_of_weights(folder: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().filter(|_| folder.is_absolute());
    for path in entries.map(|entry| entry.path()).filter(|path| path.is_file()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json") {
            found.insert(name, known::digest(&path, known::store().as_deref())?);
        }
    }
    Ok(found)
}

/// Refuses to train from a model of the site that is not the one that was planned with, as far as `digests` tell. Large files that were
/// hashed before and did not change since are not read again.
pub(crate) fn refuse_other(start: &Path, digests: &BTreeMap<String, String>) -> anyhow::Result<()> {
    for (name, planned) in digests {
        let path = start.join(name);
        let found = known::digest(&path, known::store().as_deref())?;
        if found != *planned {
            let text = format!(
                "{} is not the file that was planned with (sha256 {found}, not {planned}); plan anew, or put the other one back",
                path.display()
            );
            return Err(Failure::usage(text).into());
        }
    }
    Ok(())
}

/// Digests of those of `names` that are there, by their names below `named`; none of a folder that lies in the run folder.
fn digests_of(folder: &Path, named: &Path, names: &[&str]) -> anyhow::Result<BTreeMap<String, String>> {
    let files = names.iter().filter(|name| folder.is_absolute() && folder.join(name).is_file());
    let plain = |path: PathBuf| path.components().filter(|part| part.as_os_str() != ".").collect::<PathBuf>();
    let of = |name: &&str| {
        let path = plain(named.join(name)).to_string_lossy().into_owned();
        Ok((path, aloe_record::digest::file(&folder.join(name))?))
    };
    files.map(of).collect()
}

/// A path of the run folder as it is here: a model of the site is a link that only jobs have.
fn at_hand(path: &Path, cluster: &Cluster) -> PathBuf {
    let link = |name: &str| Path::new("models").join(model_folder(name));
    let path: PathBuf = path.components().filter(|part| part.as_os_str() != ".").collect();
    let below = |(name, folder): (&String, &PathBuf)| {
        let inside = path.strip_prefix(link(name)).ok()?;
        Some(if inside.as_os_str().is_empty() { folder.clone() } else { folder.join(inside) })
    };
    cluster.models.iter().find_map(below).unwrap_or(path)
}

fn model_input(stage: &Stage) -> Option<&Input> {
    stage.from.iter().find(|(name, _)| name == "model").and_then(|(_, inputs)| inputs.first())
}

/// The template that a training stage names itself.
pub(super) fn template_of(stage: &Stage) -> Option<&str> {
    match &stage.config {
        StageConfig::Sft(config) => config.chat_template.as_deref(),
        StageConfig::Dpo(config) => config.chat_template.as_deref(),
        _ => None,
    }
}

/// The input that a stage's model has its tokenizer from; `None` where it is a union, or not known before.
fn tokenizer_input(stage: &Stage) -> Option<&Input> {
    let StageConfig::Merge(merge) = &stage.config else { return model_input(stage) };
    let config = parsed(merge).filter(|config| config.chat_template.is_none() && config.earlier.is_empty())?;
    let at = match config.tokenizer.as_ref().map(|choice| choice.source) {
        Some(TokenizerSource::Model(at)) => at,
        Some(TokenizerSource::Base) | None => config.base.unwrap_or(0),
        Some(TokenizerSource::Union) => return None,
    };
    input_of_model(stage, &config, at)
}

/// The input that a stage's model has its shape from; `None` where it is not known before.
fn shape_input(stage: &Stage) -> Option<&Input> {
    let StageConfig::Merge(merge) = &stage.config else { return model_input(stage) };
    let config = parsed(merge).filter(|config| config.earlier.is_empty())?;
    input_of_model(stage, &config, config.base.unwrap_or(0))
}

fn parsed(merge: &MergeStage) -> Option<MergeConfig> {
    MergeConfig::parse(&merge.yaml, Path::new("yaml")).ok()
}

/// The input that a merge knows a model by; of `model+adapter` that of the model, whose shape and tokenizer an adapter leaves as they are.
fn input_of_model<'s>(stage: &'s Stage, config: &MergeConfig, at: usize) -> Option<&'s Input> {
    let name = config.models.get(at)?.name.as_str();
    let input = |name: &str| stage.from.iter().find(|(key, _)| key == name).and_then(|(_, inputs)| inputs.first());
    input(name).or_else(|| input(split_adapter(name)[0]))
}

/// The folder whose weights a stage will start from, relative to the run folder: the f32 masters that a training stage or a merge writes
/// beside its export.
fn weights_of(recipe: &Recipe, input: &Input, cluster: &Cluster) -> anyhow::Result<PathBuf> {
    Ok(match input {
        Input::Path(path) => {
            // A link to a model of the site is not there yet: what a stage's folder holds is looked for where it leads.
            let at_hand = at_hand(path, cluster);
            let chosen = aloe_train::start_weights(&at_hand);
            if chosen.is_file() {
                let text = format!(
                    "{} is no folder of f32 or bf16 weights, which a foreign trainer starts from; pull it as a stage of its own",
                    path.display()
                );
                return Err(Failure::usage(text).into());
            }
            let named = match chosen.strip_prefix(&at_hand) {
                Ok(inside) => path.join(inside),
                // The masters beside an export that the site names by itself are not reached by its link.
                Err(_) if at_hand.is_absolute() => path.clone(),
                Err(_) => chosen,
            };
            named.components().filter(|part| part.as_os_str() != ".").collect()
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
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECIPE: &str = r#"
name = "x"
[[stage]]
kind = "sft"
name = "sft"
trainer = "trl"
from = { model = "./models/site", data = "./out/rows" }
epochs = 1
lr = 1e-3
"#;

    /// The link `models/site` is made by jobs: what it will lead to decides, and the name in the run folder is kept.
    #[test]
    fn weights_inside_a_model_of_the_site_are_named_by_its_link_and_a_gguf_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let recipe = Recipe::parse(Path::new("r.toml"), RECIPE).unwrap();
        let weights = |folder: &str| {
            let site = dir.path().join(folder);
            let text = format!("name = \"s\"\naloe = \"/bin/aloe\"\n[models]\nsite = \"{}\"\n", site.display());
            weights_of(&recipe, model_input(&recipe.stages[0]).unwrap(), &Cluster::parse(&text).unwrap())
        };
        for (config, folder, expected) in [
            ("plain/config.json", "plain", "models/site"),
            ("stage/master/config.json", "stage", "models/site/master"),
            ("merged/model/config.json", "merged", "models/site/model"),
            ("stage/model/config.json", "stage/model", "models/site"),
        ] {
            let config = dir.path().join(config);
            std::fs::create_dir_all(config.parent().unwrap()).unwrap();
            std::fs::write(config, "{}").unwrap();
            assert_eq!(weights(folder).unwrap(), Path::new(expected), "{folder}");
        }
        std::fs::write(dir.path().join("model.gguf"), "GGUF").unwrap();
        let refused = weights("model.gguf").unwrap_err().to_string();
        assert!(refused.contains("models/site is no folder of f32 or bf16 weights"), "{refused}");
    }
}
