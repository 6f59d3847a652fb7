//! What a model was trained on, as far as records tell: from its stage's record to the stages whose digests it names and that lie beside
//! it, down to the data stages.

use crate::input_digests::digest_of_stage;
use crate::stage::Inputs;
use aloe_record::Record;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The rows that a model has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lineage {
    /// `train.jsonl` of each data stage, in the order of the folders' names.
    pub(crate) rows: Vec<PathBuf>,
    /// Training stages whose data was not found: `sft-medical`.
    pub(crate) missing: Vec<String>,
    /// Whether the model has a record at all.
    pub(crate) is_known: bool,
}

/// The rows of a data stage's folder, or a file of rows itself.
pub(crate) fn rows_of(path: &Path) -> PathBuf {
    if path.is_dir() { path.join("train.jsonl") } else { path.to_owned() }
}

/// Follows the records from the stage of `model`: its folder, or the `model/` in it.
pub(crate) fn of(model: &Path) -> Lineage {
    let stage = [Some(model), model.parent()].into_iter().flatten().find(|folder| folder.join("record.json").is_file());
    let Some(stage) = stage else { return Lineage::default() };
    let siblings = stages_beside(stage);
    let mut found = Lineage { is_known: true, ..Lineage::default() };
    let mut rows = BTreeSet::new();
    let (mut open, mut seen) = (vec![stage.to_path_buf()], BTreeSet::new());
    while let Some(folder) = open.pop().filter(|_| seen.len() < 10_000) {
        if !seen.insert(folder.clone()) {
            continue;
        }
        let Ok(record) = Record::read(&folder) else { continue };
        if record.kind == "data" {
            rows.insert(folder.join("train.jsonl"));
            continue;
        }
        for (name, digest) in &record.inputs {
            let digests = digest.as_array().cloned().unwrap_or_else(|| vec![digest.clone()]);
            for digest in digests.iter().filter_map(Value::as_str) {
                match siblings.iter().find(|(known, _)| known == digest) {
                    Some((_, sibling)) => open.push(sibling.clone()),
                    None if matches!(record.kind.as_str(), "sft" | "dpo") && name == "data" => {
                        found.missing.push(record.name.clone());
                    }
                    None => {}
                }
            }
        }
    }
    found.rows = rows.into_iter().filter(|path| path.is_file()).collect();
    found.missing.sort();
    found.missing.dedup();
    found
}

/// The entry of an evaluation's results that holds [`Lineage::digests`].
pub(crate) const TRAINED_ROWS: &str = "trained_rows";

/// Whether a finished evaluation of the model in `inputs` was held against other training rows than records lead to now. The model can be
/// the same: a row's options, or what was held out, do not train. Rows that are gone since change nothing.
pub(crate) fn has_changed(record: &Record, inputs: &Inputs) -> bool {
    let noted = record.results.get(TRAINED_ROWS);
    let model = inputs.get("model").and_then(|paths| paths.first());
    let (Some(noted), Some(model)) = (noted, model) else { return false };
    of(model).digests().iter().any(|(name, digest)| noted[name] != digest.as_str())
}

/// Digest and folder of every finished stage beside `stage`, itself included.
fn stages_beside(stage: &Path) -> Vec<(String, PathBuf)> {
    let parent = stage.parent().unwrap_or(Path::new("."));
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let Ok(entries) = std::fs::read_dir(parent) else { return Vec::new() };
    let mut folders: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    folders.sort();
    folders.into_iter().filter_map(|folder| Some((digest_of_stage(&folder)?, folder))).collect()
}

impl Lineage {
    /// Digest of each data stage's rows, as its record has it.
    pub(crate) fn digests(&self) -> BTreeMap<String, String> {
        let of = |rows: &PathBuf| {
            let folder = rows.parent()?;
            let record = Record::read(folder).ok()?;
            Some((folder.file_name()?.to_str()?.to_owned(), record.outputs.get("train.jsonl")?.as_str()?.to_owned()))
        };
        self.rows.iter().filter_map(of).collect()
    }

    /// What was compared with the questions, for the record: `n` files of rows, some of which the user may have named.
    pub(crate) fn words(&self, n: usize) -> String {
        let compared = match n {
            0 => "no training rows were compared with the questions".to_owned(),
            n => format!("the questions were compared with the training rows of {n} data sets"),
        };
        let unknown = match (self.is_known || n > 0, self.missing.as_slice()) {
            (false, _) => {
                "; the model has no record of this program, so what it was trained on is not known".to_owned()
            }
            (true, []) => "; what the base model was trained on is not known".to_owned(),
            (true, missing) => format!("; the data of {} were not found beside the model", missing.join(", ")),
        };
        compared + &unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::{Context, Job, execute};
    use serde_json::json;

    /// Writes a stage whose outputs are `output` and whose inputs are the digests of `from`.
    fn stage(runs: &Path, kind: &str, name: &str, from: &[(&str, &str)]) {
        let folder = runs.join(name);
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("train.jsonl"), name).unwrap();
        let mut record = Record::start(kind, name);
        record.outputs.insert("train.jsonl".into(), json!(aloe_record::digest::bytes(name.as_bytes())));
        for (input, other) in from {
            let digest = digest_of_stage(&runs.join(other)).map_or(json!("gone"), Value::from);
            record.inputs.insert((*input).into(), digest);
        }
        record.finish(&folder, std::time::Instant::now(), 0.0).unwrap();
    }

    /// The data stage is made anew with other rows that train to the same model.
    #[test]
    fn an_evaluation_is_made_anew_when_the_rows_its_model_was_trained_on_are_others_though_the_model_is_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let runs = dir.path();
        let inputs = Inputs::from([("model".to_owned(), vec![runs.join("sft")])]);
        let evaluate = || {
            let context = Context { seed: 1, threads: 1, dtype: None, servers: None, cancel: Default::default() };
            let (written, used, out) = (json!({}), json!({}), runs.join("eval"));
            let job = Job {
                kind: "eval",
                name: "eval",
                written,
                used,
                inputs: &inputs,
                extra_files: vec![],
                task_files: crate::stage::TaskFiles::new(),
                out: &out,
            };
            let done = execute(&context, &job, |folder, record| {
                std::fs::write(folder.join("results.json"), "{}")?;
                Ok(record.result(TRAINED_ROWS, of(&runs.join("sft")).digests())?)
            });
            done.unwrap().was_done
        };
        let train = || {
            let _ = std::fs::remove_dir_all(runs.join("sft"));
            stage(runs, "sft", "sft", &[("data", "rows")]);
        };
        stage(runs, "data", "rows", &[]);
        train();
        assert_eq!((evaluate(), evaluate()), (false, true));
        let mut record = Record::read(&runs.join("rows")).unwrap();
        std::fs::write(runs.join("rows/train.jsonl"), "others").unwrap();
        record.outputs.insert("train.jsonl".into(), json!(aloe_record::digest::bytes(b"others")));
        record.finish(&runs.join("rows"), std::time::Instant::now(), 0.0).unwrap();
        // Until the model is trained again the marks are of what it was trained on.
        assert!(evaluate());
        train();
        assert_eq!((evaluate(), evaluate()), (false, true));
        std::fs::remove_dir_all(runs.join("rows")).unwrap();
        assert!(evaluate(), "rows that are gone change nothing");
    }

    #[test]
    fn the_records_of_a_merged_and_aligned_model_lead_to_all_its_rows_and_to_none_of_others() {
        let dir = tempfile::tempdir().unwrap();
        let runs = dir.path();
        for name in ["medical", "general", "pairs", "unused"] {
            stage(runs, "data", name, &[]);
        }
        stage(runs, "pull", "base", &[]);
        stage(runs, "sft", "sft-a", &[("model", "base"), ("data", "medical")]);
        stage(runs, "sft", "sft-b", &[("model", "base"), ("data", "general")]);
        stage(runs, "merge", "merged", &[("models", "sft-a"), ("base", "sft-b")]);
        stage(runs, "dpo", "aligned", &[("model", "merged"), ("data", "pairs")]);
        std::fs::create_dir(runs.join("aligned/model")).unwrap();
        let names = |lineage: &Lineage| -> Vec<String> {
            let name = |path: &PathBuf| path.parent().unwrap().file_name().unwrap().to_string_lossy().into_owned();
            lineage.rows.iter().map(name).collect()
        };
        let found = of(&runs.join("aligned/model"));
        assert_eq!(
            (names(&found), found.missing.len()),
            (["general", "medical", "pairs"].map(String::from).to_vec(), 0)
        );
        assert_eq!(found, of(&runs.join("aligned")));
        assert!(names(&of(&runs.join("base"))).is_empty());
        std::fs::remove_dir_all(runs.join("medical")).unwrap();
        let found = of(&runs.join("aligned"));
        assert_eq!(
            (names(&found), found.missing.clone()),
            (vec!["general".into(), "pairs".into()], vec!["sft-a".into()])
        );
        assert!(found.words(2).contains("2 data sets; the data of sft-a were not found"), "{}", found.words(2));
        assert!(!of(Path::new("/nowhere/model")).is_known);
    }
}
