//! A recipe that stands on its own: the files it names are copied beside it, stages that were made beforehand become paths, and no string
//! leads out of the folder. What it computes is the same.
//!
//! Only strings that the stage's settings say are read as files are replaced; another absolute path is refused.

use crate::commands::run::is_address;
use crate::commands::stages;
use crate::recipe::checked::{Input, Recipe, Stage};
use crate::recipe::stage_config::StageConfig;
use aloe_handoff::plan::model_folder;
use aloe_handoff::{Cluster, Trainer};
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// The recipe of a run folder.
pub(crate) struct Rewritten {
    /// Its text.
    pub(crate) text: String,
    /// What is copied: from, and to below the run folder.
    pub(crate) files: Vec<(PathBuf, PathBuf)>,
}

/// Which stages are made while planning, in `out/`: models that the site has not, and data, unless it needs what only a job makes or is
/// divided among jobs.
pub(crate) fn made_here(recipe: &Recipe, cluster: &Cluster) -> Vec<bool> {
    let mut is_made: Vec<bool> = Vec::new();
    for stage in &recipe.stages {
        let mut inputs = stage.from.iter().flat_map(|(_, inputs)| inputs);
        is_made.push(match &stage.config {
            StageConfig::Data(_) => {
                let is_there = |input: &Input| match input {
                    Input::Stage(at) => is_made[*at],
                    Input::Path(_) => true,
                };
                cluster.shards("data", &stage.name) == 1 && inputs.all(is_there)
            }
            StageConfig::Pull(config) => !cluster.models.contains_key(&config.source),
            _ => false,
        });
    }
    is_made
}

/// Who trains a stage: what it says, what the recipe says, else `default`; `aloe` for all other kinds.
pub(crate) fn trainer_of(recipe: &Recipe, stage: &Stage, default: Trainer) -> Trainer {
    match &stage.config {
        StageConfig::Sft(_) | StageConfig::Dpo(_) => stage.trainer.or(recipe.trainer).unwrap_or(default),
        _ => Trainer::Aloe,
    }
}

/// Rewrites the recipe; the mistakes are strings that cannot be made relative. Called in the recipe's root, where its paths start.
pub(crate) fn rewrite(
    recipe: &Recipe,
    text: &str,
    cluster: &Cluster,
    default: Trainer,
) -> Result<Rewritten, Vec<String>> {
    let mut whole: Table = text.parse().map_err(|error| vec![format!("{error}")])?;
    let stages = match whole.remove("stage") {
        Some(Value::Array(stages)) => stages,
        _ => Vec::new(),
    };
    for key in ["root", "where", "trainer"] {
        whole.remove(key);
    }
    let is_made = made_here(recipe, cluster);
    let made = recipe.stages.iter().zip(&is_made).filter(|(_, made)| **made).map(|(stage, _)| stage.name.as_str());
    let mut moved = Moved { cluster, made: made.collect(), files: Vec::new(), mistakes: Vec::new() };
    let mut kept = Vec::new();
    for ((stage, value), made) in recipe.stages.iter().zip(stages).zip(&is_made) {
        let Value::Table(mut table) = value else { continue };
        if *made {
            continue;
        }
        let trainer = trainer_of(recipe, stage, default);
        table.remove("trainer");
        if trainer != Trainer::Aloe {
            table.insert("trainer".to_owned(), trainer.name().into());
        }
        moved.stage(recipe, stage, &is_made, &mut table);
        kept.push(Value::Table(table));
    }
    if !moved.mistakes.is_empty() {
        return Err(moved.mistakes);
    }
    whole.insert("stage".to_owned(), Value::Array(kept));
    let body = toml::to_string(&whole).map_err(|error| vec![error.to_string()])?;
    let text = format!(
        "# Written by `aloe plan` from a recipe: its files lie in files/, stages made beforehand in out/. The plan holds this file's digest.\n{body}"
    );
    Ok(Rewritten { text, files: moved.files })
}

struct Moved<'a> {
    cluster: &'a Cluster,
    /// Stages that were made beforehand.
    made: Vec<&'a str>,
    files: Vec<(PathBuf, PathBuf)>,
    mistakes: Vec<String>,
}

impl Moved<'_> {
    fn stage(&mut self, recipe: &Recipe, stage: &Stage, is_made: &[bool], table: &mut Table) {
        let mut read = stages::extra_files(&stage.config);
        if let StageConfig::Pull(config) = &stage.config {
            read.push(PathBuf::from(&config.source));
        }
        if let StageConfig::Sft(aloe_train::SftConfig { chat_template: Some(name), .. })
        | StageConfig::Dpo(aloe_train::DpoConfig { chat_template: Some(name), .. }) = &stage.config
        {
            read.extend(Path::new(name).is_file().then(|| PathBuf::from(name)));
        }
        let outside = stage.from.iter().flat_map(|(_, inputs)| inputs).filter_map(|input| match input {
            Input::Path(path) if !is_address(path) => Some(path.clone()),
            _ => None,
        });
        read.extend(outside);
        for (key, value) in table.iter_mut() {
            match key.as_str() {
                "name" | "kind" | "expect" => {}
                "from" => self.inputs(recipe, stage, is_made, &read, value),
                _ => self.value(&stage.name, key, &read, value),
            }
        }
    }

    /// `from`: stages made beforehand are folders now, paths are files like others.
    fn inputs(&mut self, recipe: &Recipe, stage: &Stage, is_made: &[bool], read: &[PathBuf], value: &mut Value) {
        let Value::Table(from) = value else { return };
        for (key, value) in from.iter_mut() {
            let given = stage.from.iter().find(|(name, _)| name == key).map_or(&[][..], |(_, inputs)| inputs);
            let single;
            let values = match value {
                Value::Array(values) => values.as_mut_slice(),
                value => {
                    single = std::slice::from_mut(value);
                    single
                }
            };
            for (value, input) in values.iter_mut().zip(given) {
                match input {
                    Input::Stage(at) if is_made[*at] => *value = format!("./out/{}", recipe.stages[*at].name).into(),
                    Input::Stage(_) => {}
                    Input::Path(_) => self.value(&stage.name, &format!("from.{key}"), read, value),
                }
            }
        }
    }

    fn value(&mut self, stage: &str, key: &str, read: &[PathBuf], value: &mut Value) {
        match value {
            Value::String(text) => {
                let expanded = expanded(text);
                if let Some((name, file)) = of_stage(key, text).filter(|(name, _)| self.made.contains(name)) {
                    *text = format!("./out/{name}/{file}");
                } else if read.iter().any(|path| path == Path::new(&expanded)) {
                    *text = self.moved(Path::new(&expanded));
                } else if Path::new(&expanded).is_absolute() && !key.ends_with("yaml") {
                    let mistake = format!("stage {stage:?}: `{key}` = {expanded:?} leads out of the run folder");
                    self.mistakes.push(mistake);
                } else if key == "yaml" || key.ends_with(".yaml") {
                    self.yaml(stage, key, read, text);
                } else {
                    *text = expanded;
                }
            }
            Value::Array(values) => values.iter_mut().for_each(|value| self.value(stage, key, read, value)),
            Value::Table(table) => {
                table.iter_mut().for_each(|(name, value)| self.value(stage, &format!("{key}.{name}"), read, value));
            }
            _ => {}
        }
    }

    /// A merge's YAML may name models of its own, which would have to be replaced inside it.
    fn yaml(&mut self, stage: &str, key: &str, read: &[PathBuf], text: &str) {
        if let Some(path) = read.iter().find(|path| text.contains(&*path.to_string_lossy())) {
            self.mistakes.push(format!(
                "stage {stage:?}: `{key}` names the model {}; give it a name in `from` and use that in the YAML",
                path.display()
            ));
        }
    }

    /// Where a file or folder stands in the run folder: a model of the site by its name, everything else as a copy.
    fn moved(&mut self, path: &Path) -> String {
        let as_named = path.to_string_lossy();
        let is_it = |(name, folder): &(&String, &PathBuf)| folder.as_path() == path || **name == as_named;
        if let Some((name, _)) = self.cluster.models.iter().find(is_it) {
            return format!("./models/{}", model_folder(name));
        }
        let whole = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        if let Some((_, known)) = self.files.iter().find(|(from, _)| *from == whole) {
            return format!("./{}", known.display());
        }
        let name = whole.file_name().map_or_else(|| "folder".into(), |name| name.to_string_lossy().into_owned());
        let to = PathBuf::from(format!("files/{:02}-{name}", self.files.len() + 1));
        self.files.push((whole, to.clone()));
        format!("./{}", to.display())
    }
}

/// Stage and file that the path of a data stage's source names.
fn of_stage<'t>(key: &str, text: &'t str) -> Option<(&'t str, &'t str)> {
    let named = text.strip_prefix("stage:").filter(|_| key == "sources.path")?;
    Some(named.split_once('/').unwrap_or((named, "train.jsonl")))
}

/// A leading `$NAME` replaced as the recipe's reader does it; it has told of those that are not set.
fn expanded(text: &str) -> String {
    let Some(rest) = text.strip_prefix('$') else { return text.to_owned() };
    let end = rest.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').unwrap_or(rest.len());
    match std::env::var(&rest[..end]) {
        Ok(value) => format!("{value}{}", &rest[end..]),
        Err(_) => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECIPE: &str = r#"
name = "x"
where = "slurm"
[[stage]]
kind = "pull"
name = "base"
source = "hf:a/b"
[[stage]]
kind = "pull"
name = "other"
source = "hf:c/d"
[[stage]]
kind = "data"
name = "rows"
sources = [{ name = "g", path = "g.jsonl", licence = "mit" }]
[[stage]]
kind = "sft"
name = "sft"
trainer = "aloe"
from = { model = "base", data = "rows" }
epochs = 1
lr = 1e-3
[[stage]]
kind = "eval"
name = "eval"
from = { model = "sft", compare = "./earlier/eval" }
tasks = ["starter_mcqa"]
data = "@DATA@"
"#;

    fn rewritten(text: &str) -> Result<Rewritten, Vec<String>> {
        let recipe = Recipe::parse(Path::new("r.toml"), text).unwrap();
        let cluster = "name = \"s\"\naloe = \"/bin/aloe\"\n[models]\n\"hf:c/d\" = \"/gpfs/d\"\n";
        rewrite(&recipe, text, &Cluster::parse(cluster).unwrap(), Trainer::Trl)
    }

    #[test]
    fn a_rewritten_recipe_names_no_path_outside_and_the_stages_made_beforehand_by_their_folders() {
        let dir = tempfile::tempdir().unwrap();
        let text = RECIPE.replace("@DATA@", dir.path().to_str().unwrap());
        let Rewritten { text, files } = rewritten(&text).unwrap();
        assert!(!text.contains(dir.path().to_str().unwrap()), "{text}");
        let name = dir.path().canonicalize().unwrap().file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(files[1].1, PathBuf::from(format!("files/02-{name}")));
        let again = Recipe::parse(Path::new("recipe.toml"), &text).unwrap();
        let names: Vec<&str> = again.stages.iter().map(|stage| stage.name.as_str()).collect();
        assert_eq!(names, ["other", "sft", "eval"], "a model of the site is pulled there");
        let inputs: Vec<String> = again.stages[1]
            .from
            .iter()
            .map(|(key, inputs)| match &inputs[..] {
                [Input::Path(path)] => format!("{key} {}", path.display()),
                _ => key.clone(),
            })
            .collect();
        assert_eq!(inputs, ["model ./out/base", "data ./out/rows"]);
        assert!(matches!(again.stages[2].from[0].1[0], Input::Stage(1)));
        assert!(text.contains("source = \"./models/hf-c-d\""), "{text}");
    }

    /// `a` is of files and made while planning; `b` is of a trained model's scores, `c` of both.
    #[test]
    fn data_that_needs_what_a_job_makes_is_a_job_and_reads_what_was_made_beforehand_as_files() {
        let data = |name: &str, more: &str, path: &str| {
            format!(
                "[[stage]]\nkind = \"data\"\nname = \"{name}\"\n{more}sources = [{{ name = \"g\", path = \"{path}\", licence = \"mit\" }}]\n"
            )
        };
        let base = "name = \"x\"\n[[stage]]\nkind = \"pull\"\nname = \"base\"\nsource = \"hf:a/b\"\n";
        let sft = "[[stage]]\nkind = \"sft\"\nname = \"sft\"\nfrom = { model = \"base\", data = \"a\" }\nlr = 1e-3\nepochs = 1\n";
        let scored = "from = { scorer = \"sft\" }\nquality = {}\n";
        let mixed = data("c", "", "stage:a")
            .replace("}]", "}, { name = \"h\", path = \"stage:b/hold_out.jsonl\", licence = \"mit\" }]");
        let text = [base, &data("a", "", "g.jsonl"), sft, &data("b", scored, "g.jsonl"), &mixed].concat();
        let recipe = Recipe::parse(Path::new("r.toml"), &text).unwrap();
        let cluster = Cluster::parse("name = \"s\"\naloe = \"/bin/aloe\"\n").unwrap();
        assert_eq!(made_here(&recipe, &cluster), [true, true, false, false, false]);
        let text = rewritten(&text).unwrap().text;
        assert!(text.contains("path = \"./out/a/train.jsonl\""), "{text}");
        let again = Recipe::parse(Path::new("recipe.toml"), &text).unwrap();
        let (key, inputs) = &again.stages[2].from[0];
        assert!(again.stages[2].name == "c" && key == "rows" && matches!(inputs[..], [Input::Stage(1)]), "{text}");
        let unknown = text.replace("stage:b", "stage:d");
        let refused = Recipe::parse(Path::new("r.toml"), &unknown).err().unwrap().to_string();
        assert!(refused.contains("names stage \"d\", which is no earlier stage"), "{refused}");
    }

    #[test]
    fn who_trains_is_written_down_and_an_absolute_path_that_is_no_input_is_refused() {
        let text = RECIPE.replace("trainer = \"aloe\"\n", "").replace("@DATA@", "./data");
        let found = rewritten(&text).unwrap().text;
        assert!(found.contains("trainer = \"trl\""), "{found}");
        let text = RECIPE
            .replace("@DATA@", "./data")
            .replace("epochs = 1", "epochs = 1\nsample_every = 1\nsample_prompts = [\"/etc\"]");
        let refused = rewritten(&text).err().unwrap();
        assert_eq!(refused, ["stage \"sft\": `sample_prompts` = \"/etc\" leads out of the run folder"]);
    }
}
