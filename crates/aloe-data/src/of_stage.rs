//! Sources whose rows an earlier stage of the recipe makes: `path = "stage:NAME"`, or `stage:NAME/FILE` for another file than that stage's rows.
//! Who runs the stage says where that one's folder lies; settings, digests of settings and rows' names do not depend on it.

use crate::{DataConfig, Error, Quarantine, Result, SourceConfig};
use std::path::{Path, PathBuf};

/// How such a path begins.
const PREFIX: &str = "stage:";

impl SourceConfig {
    /// Name of the stage and of its file, if one is named, where a stage makes the rows.
    pub fn of_stage(&self) -> Option<(&str, Option<&str>)> {
        let named = self.path.to_str()?.strip_prefix(PREFIX)?;
        Some(named.split_once('/').map_or((named, None), |(name, file)| (name, Some(file))))
    }
}

impl DataConfig {
    /// Names of the stages that make rows of this one, each once.
    pub fn stages(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for (name, _) in self.sources.iter().filter_map(SourceConfig::of_stage) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    /// Settings that name a stage where only the `path` of a source may.
    pub(crate) fn misplaced_stages(&self) -> Vec<String> {
        let mut found: Vec<(String, &Path)> = Vec::new();
        for source in &self.sources {
            let key = || format!("source `{}`: `safe_answers`", source.name);
            found.extend(source.safe_answers.as_deref().map(|path| (key(), path)));
        }
        found.extend(self.decontaminate.iter().map(|path| ("`decontaminate`".to_owned(), path.as_path())));
        let quarantine = match &self.quarantine {
            Quarantine::File(path) => Some(path.as_path()),
            Quarantine::InFolder(_) => None,
        };
        let quality = self.quality.as_ref().and_then(|quality| quality.tokenizer.as_deref());
        let others = [
            ("`tokenizer`", self.tokenizer.as_deref()),
            ("`duplicates`", self.duplicates.as_deref()),
            ("`verdicts`", self.verdicts.as_deref()),
            ("`quarantine`", quarantine),
            ("`quality.tokenizer`", quality),
        ];
        found.extend(others.into_iter().filter_map(|(key, path)| Some((key.to_owned(), path?))));
        found.retain(|(_, path)| is_of_stage(path));
        let say = |(key, path): (String, &Path)| {
            format!("{key} is {path:?}: only the `path` of a source may name a stage; write where its folder lies")
        };
        found.into_iter().map(say).collect()
    }

    /// These settings with the files of `folders`, which are named like their stages, in place of the stages' names.
    pub fn with_stages(&self, folders: &[PathBuf]) -> Result<Self> {
        let (mut config, mut mistakes) = (self.clone(), Vec::new());
        for source in &mut config.sources {
            let Some((stage, file)) = source.of_stage() else { continue };
            match folders.iter().find(|folder| folder.file_name().is_some_and(|name| name == stage)) {
                Some(folder) => source.path = file.map_or_else(|| folder.clone(), |file| folder.join(file)),
                None => mistakes.push(format!(
                    "source `{}`: `path` names stage {stage:?}, and no recipe says where that one's rows are",
                    source.name
                )),
            }
        }
        if mistakes.is_empty() { Ok(config) } else { Err(Error::Config { mistakes }) }
    }
}

/// Whether a path stands for a stage's rows and not for a file.
pub(crate) fn is_of_stage(path: &Path) -> bool {
    path.to_str().is_some_and(|text| text.starts_with(PREFIX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(paths: &[&str]) -> DataConfig {
        let sources: Vec<_> = paths
            .iter()
            .enumerate()
            .map(|(at, path)| serde_json::json!({"name": format!("s{at}"), "path": path, "licence": "mit"}))
            .collect();
        serde_json::from_value(serde_json::json!({"sources": sources})).unwrap()
    }

    #[test]
    fn rows_of_a_stage_are_found_in_its_folder_and_are_no_file_of_the_settings() {
        let config = config(&["stage:cot", "a.jsonl", "stage:cot/attempts.jsonl"]);
        assert_eq!(config.stages(), ["cot"]);
        assert_eq!(config.files(), [PathBuf::from("a.jsonl")]);
        let found = config.with_stages(&["/out/other".into(), "/out/cot".into()]).unwrap();
        let paths: Vec<&str> = found.sources.iter().map(|source| source.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/out/cot", "a.jsonl", "/out/cot/attempts.jsonl"]);
        let refused = config.with_stages(&["/out/other".into()]).unwrap_err().to_string();
        assert!(refused.contains("source `s0`: `path` names stage \"cot\", and no recipe says where"), "{refused}");
    }

    #[test]
    fn a_stage_in_any_other_path_is_refused_by_the_keys_name() {
        let value = serde_json::json!({
            "sources": [{"name": "s", "path": "stage:cot", "licence": "mit", "safe_answers": "stage:safe"}], "output": "pairs",
            "decontaminate": ["q.jsonl", "stage:cot/x.jsonl"], "tokenizer": "stage:sft", "duplicates": "stage:d", "verdicts": "stage:v",
            "quarantine": "stage:q", "quality": {"tokenizer": "stage:t"}
        });
        let config: DataConfig = serde_json::from_value(value).unwrap();
        let refused = config.check().unwrap_err().to_string();
        for key in [
            "source `s`: `safe_answers`",
            "`decontaminate`",
            "`tokenizer`",
            "`duplicates`",
            "`verdicts`",
            "`quarantine`",
            "`quality.tokenizer`",
        ] {
            assert!(refused.contains(&format!("{key} is \"stage:")), "{key}: {refused}");
        }
        assert_eq!(config.misplaced_stages().len(), 7);
    }

    #[test]
    fn the_name_of_a_stage_is_not_made_a_path_of_the_recipes_folder() {
        let mut config = config(&["stage:cot", "a.jsonl"]);
        config.resolve_paths(Path::new("/recipes"));
        assert_eq!(config.sources[0].path, Path::new("stage:cot"));
        assert_eq!(config.sources[1].path, Path::new("/recipes/a.jsonl"));
    }
}
