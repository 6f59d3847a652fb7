//! What a recipe's training rows are compared with: the questions that the recipe itself scores on. A data stage that says nothing is
//! compared with all of them, one that names files with those too, and one with `decontaminate = []` with none, which the plan tells.

use super::checked::{Input, Recipe, Stage};
use super::eval_stage::EvalStage;
use super::stage_config::StageConfig;
use aloe_data::{DataConfig, Scored};
use std::path::{Path, PathBuf};

/// Gives every data stage the questions of the evaluations; returns what is wrong, with the stage's place.
pub(super) fn compare(stages: &mut [Stage]) -> Vec<(usize, String)> {
    let (scored, asked) = (scored(stages), asked(stages));
    let mut mistakes = Vec::new();
    for (at, stage) in stages.iter_mut().enumerate() {
        let is_off = is_off(stage);
        let StageConfig::Data(config) = &mut stage.config else { continue };
        if !is_off {
            config.scored.clone_from(&scored);
            config.asked.clone_from(&asked);
        }
        let compares = !config.decontaminate.is_empty() || !config.scored.is_empty() || !config.asked.is_empty();
        let has_embedder = stage.from.iter().any(|(name, _)| name == "embedder");
        if !compares && has_embedder && config.dedup.semantic.is_none() {
            let text = "the input `embedder` needs questions to compare with (`decontaminate`, or an evaluation in the recipe), or \
                        `dedup.semantic`";
            mistakes.push((at, format!("stage {:?}: {text}", stage.name)));
        }
    }
    mistakes
}

/// `decontaminate = []`, as written.
fn is_off(stage: &Stage) -> bool {
    stage.written.get("decontaminate").and_then(|list| list.as_array()).is_some_and(Vec::is_empty)
}

/// The multiple-choice and open questions of all evaluations.
fn scored(stages: &[Stage]) -> Vec<Scored> {
    let of =
        |stage: &EvalStage| Scored { data: stage.data.clone(), tasks: stage.tasks.clone(), split: stage.split.clone() };
    let mut found: Vec<Scored> = Vec::new();
    for stage in stages {
        let one = match &stage.config {
            StageConfig::Eval(config) => of(config),
            StageConfig::MergeSearch(config) => of(&config.eval),
            _ => continue,
        };
        if !found.contains(&one) {
            found.push(one);
        }
    }
    found
}

/// The files of the red-team runs' questions, whose train split is no evaluation question.
fn asked(stages: &[Stage]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for stage in stages {
        if let StageConfig::Redteam(config) = &stage.config
            && !found.contains(&config.questions)
        {
            found.push(config.questions.clone());
        }
    }
    found
}

/// A sentence for each training stage whose rows nobody compared with what the recipe scores on; `out` is where finished stages lie.
pub(crate) fn notices(recipe: &Recipe, out: &Path) -> Vec<String> {
    let all = DataConfig { scored: scored(&recipe.stages), asked: asked(&recipe.stages), ..DataConfig::default() };
    let all = aloe_data::compared_with(&all);
    let mut found = Vec::new();
    for stage in recipe.stages.iter().filter(|stage| matches!(stage.config, StageConfig::Sft(_) | StageConfig::Dpo(_)))
    {
        let inputs = stage.from.iter().filter(|(name, _)| name == "data").flat_map(|(_, inputs)| inputs);
        for input in inputs {
            let (rows, missing) = match input {
                Input::Path(path) => {
                    let folder = if path.is_dir() { path.as_path() } else { path.parent().unwrap_or(Path::new(".")) };
                    let missing = written(folder).map_or_else(|| all.clone(), |known| without(&all, &known));
                    (path.display().to_string(), missing)
                }
                Input::Stage(at) => {
                    let made = &recipe.stages[*at];
                    let own = match &made.config {
                        StageConfig::Data(_) if is_off(made) => Vec::new(),
                        StageConfig::Data(config) => aloe_data::compared_with(config),
                        _ => Vec::new(),
                    };
                    let known = written(&out.join(&made.name)).unwrap_or(own);
                    (made.name.clone(), without(&all, &known))
                }
            };
            if !missing.is_empty() {
                let missing = missing.join(", ");
                found.push(format!(
                    "stage {:?} trains on {rows}, whose rows were not compared with what this recipe scores on: {missing}",
                    stage.name
                ));
            }
        }
    }
    found
}

/// What a finished data stage was compared with, by its manifest.
fn written(folder: &Path) -> Option<Vec<String>> {
    let manifest: serde_json::Value = aloe_record::atomic::read_json(&folder.join("manifest.json")).ok()?;
    let names = manifest.get("compared_with").and_then(|list| list.as_array()).cloned().unwrap_or_default();
    Some(names.iter().filter_map(|name| name.as_str().map(String::from)).collect())
}

fn without(all: &[String], known: &[String]) -> Vec<String> {
    all.iter().filter(|name| !known.contains(name)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(data: &str, train: &str) -> Recipe {
        let text = format!(
            "name = \"x\"\n[[stage]]\nkind = \"data\"\nname = \"rows\"\n{data}\nsources = [{{ name = \"s\", path = \"s.jsonl\", licence = \"MIT\" }}]\n\
             [[stage]]\nkind = \"sft\"\nname = \"sft\"\nfrom = {{ model = \"./m\", data = \"{train}\" }}\nepochs = 1\n\
             [[stage]]\nkind = \"eval\"\nname = \"before\"\nfrom = {{ model = \"./m\" }}\ndata = \"d\"\ntasks = [\"medmcqa\", \"careqa_en\"]\n\
             [[stage]]\nkind = \"eval\"\nname = \"after\"\nfrom = {{ model = \"sft\" }}\ndata = \"d\"\ntasks = [\"medmcqa\", \"careqa_en\"]\n\
             [[stage]]\nkind = \"eval\"\nname = \"chosen\"\nfrom = {{ model = \"sft\" }}\ndata = \"d\"\ntasks = [\"medmcqa\"]\nsplit = \"validation\"\n\
             [[stage]]\nkind = \"redteam\"\nname = \"red\"\nfrom = {{ model = \"sft\" }}\nquestions = \"q.jsonl\"\n"
        );
        Recipe::parse(Path::new("r.toml"), &text).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn a_data_stage_is_compared_with_all_that_the_recipe_scores_on_unless_it_says_otherwise() {
        let compared = |data: &str| {
            let recipe = recipe(data, "rows");
            let StageConfig::Data(config) = &recipe.stages[0].config else { panic!("a data stage") };
            assert_eq!(serde_json::to_value(config).unwrap().get("scored"), None, "an evaluation more undoes no stage");
            let n_notices = notices(&recipe, Path::new("nowhere")).len();
            (aloe_data::compared_with(config), config.decontaminate.clone(), n_notices)
        };
        let all =
            ["red team q.jsonl", "test careqa_en", "test medmcqa", "validation medmcqa"].map(String::from).to_vec();
        assert_eq!(compared(""), (all.clone(), vec![], 0));
        assert_eq!(compared("decontaminate = [\"own.jsonl\"]"), (all, vec![PathBuf::from("own.jsonl")], 0));
        assert_eq!(compared("decontaminate = []"), (vec![], vec![], 1));
    }

    /// A file from elsewhere, a data stage that compares with nothing, and one that was finished before an evaluation was added.
    #[test]
    fn a_training_stage_on_rows_that_were_not_compared_is_named_with_the_benchmarks() {
        let dir = tempfile::tempdir().unwrap();
        let of = |data: &str, train: &str| notices(&recipe(data, train), dir.path()).join("; ");
        let text = of("", "other/train.jsonl");
        assert!(text.starts_with("stage \"sft\" trains on other/train.jsonl, whose rows were not compared"), "{text}");
        assert!(text.ends_with(": red team q.jsonl, test careqa_en, test medmcqa, validation medmcqa"), "{text}");
        assert!(of("decontaminate = []", "rows").contains("trains on rows, whose"));
        std::fs::create_dir(dir.path().join("rows")).unwrap();
        let manifest = r#"{"compared_with": ["red team q.jsonl", "test careqa_en", "validation medmcqa"]}"#;
        std::fs::write(dir.path().join("rows/manifest.json"), manifest).unwrap();
        assert!(of("", "rows").ends_with("scores on: test medmcqa"), "{}", of("", "rows"));
    }

    #[test]
    fn an_embedder_without_anything_to_compare_with_is_a_mistake_of_the_recipe() {
        let text = "name = \"x\"\n[[stage]]\nkind = \"data\"\nname = \"rows\"\nfrom = { embedder = \"./e\" }\n\
                    sources = [{ name = \"s\", path = \"s.jsonl\", licence = \"MIT\" }]\n";
        let error = Recipe::parse(Path::new("r.toml"), text).err().unwrap().to_string();
        assert!(error.contains("r.toml:2: stage \"rows\": the input `embedder` needs questions"), "{error}");
        let evaluated = "[[stage]]\nkind = \"eval\"\nname = \"a\"\nfrom = { model = \"./m\" }\ndata = \"d\"\ntasks = [\"medmcqa\"]\n";
        assert!(Recipe::parse(Path::new("r.toml"), &format!("{text}{evaluated}")).is_ok());
    }
}
