//! Files of broken rows that lie elsewhere than in their data stage's folder: none may be lost to another stage, or to the folder of a stage,
//! which is replaced whole.

use super::checked::{Recipe, Stage};
use super::stage_config::StageConfig;
use crate::failure::Failure;
use aloe_data::Quarantine;
use aloe_record::{Record, atomic};
use std::path::{Path, PathBuf};

/// The file that a data stage's settings name.
fn file_of(stage: &Stage) -> Option<&Path> {
    match &stage.config {
        StageConfig::Data(config) => match &config.quarantine {
            Quarantine::File(path) => Some(path),
            Quarantine::InFolder(_) => None,
        },
        _ => None,
    }
}

/// Stages that name the file of an earlier one, with their places. Relative paths start at `root`.
pub(super) fn shared(stages: &[Stage], root: &Path) -> Vec<(usize, String)> {
    let files: Vec<Option<PathBuf>> =
        stages.iter().map(|stage| file_of(stage).map(|path| atomic::real(&root.join(path)))).collect();
    let mut found = Vec::new();
    for (at, file) in files.iter().enumerate().filter(|(_, file)| file.is_some()) {
        if let Some(first) = files[..at].iter().position(|other| other == file) {
            found.push((
                at,
                format!(
                    "stage {:?}: `quarantine` is the file of stage {:?}, whose broken rows would be overwritten; name another",
                    stages[at].name, stages[first].name
                ),
            ));
        }
    }
    found
}

/// Refuses a file in the folder of any of the recipe's stages. Called in the recipe's root; `out` is where the stages' folders lie.
pub(crate) fn refuse_in_folders<'a>(
    recipe: &Recipe,
    of: impl IntoIterator<Item = &'a Stage>,
    out: &Path,
) -> anyhow::Result<()> {
    for (stage, file) in of.into_iter().filter_map(|stage| Some((stage, file_of(stage)?))) {
        let real = atomic::real(file);
        let is_in = |other: &&Stage| real.starts_with(atomic::real(&out.join(&other.name)));
        if let Some(other) = recipe.stages.iter().find(is_in) {
            let text = format!(
                "stage {:?}: `quarantine` {} lies in the folder of stage {:?}, which is replaced whole, and it would be lost. quarantine = true \
                 writes quarantine.jsonl into the stage's own folder; or name a file elsewhere",
                stage.name,
                file.display(),
                other.name
            );
            return Err(Failure::usage(text).into());
        }
    }
    Ok(())
}

/// Name of the result that vouches for the file.
pub(crate) const RESULT: &str = "quarantine";

/// Whether the file of a finished stage is there; a stage without one has nothing to lose. One that its user edited since counts: to make the
/// stage anew would write over the edits.
pub(crate) fn is_there(record: &Record) -> bool {
    let Some(file) = record.results.get(RESULT) else { return true };
    file["path"].as_str().map(Path::new).is_some_and(Path::is_file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use aloe_record::digest;

    fn recipe(files: [&str; 2]) -> String {
        let stage = |name: &str, file: &str| {
            format!(
                "[[stage]]\nkind = \"data\"\nname = \"{name}\"\nquarantine = \"{file}\"\n\
                 sources = [{{ name = \"s\", path = \"{name}.jsonl\", licence = \"mit\" }}]\n"
            )
        };
        format!("name = \"x\"\n{}{}", stage("one", files[0]), stage("two", files[1]))
    }

    #[test]
    fn a_finished_stage_is_known_by_its_file_of_broken_rows_too_and_edits_of_it_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("q.jsonl");
        let mut record = Record::start("data", "rows");
        assert!(is_there(&record), "it names none");
        std::fs::write(&path, "a").unwrap();
        record.result(RESULT, serde_json::json!({"path": path, "sha256": digest::bytes(b"a")})).unwrap();
        assert!(is_there(&record));
        std::fs::write(&path, "b").unwrap();
        assert!(is_there(&record), "its user mended rows in it");
        std::fs::remove_file(&path).unwrap();
        assert!(!is_there(&record));
    }

    #[test]
    fn a_file_of_two_stages_and_one_in_a_stages_folder_are_refused() {
        fn parse(files: [&str; 2]) -> anyhow::Result<Recipe> {
            Recipe::parse(Path::new("r.toml"), &recipe(files))
        }
        let refused = parse(["q.jsonl", "./q.jsonl"]).map(|_| ()).unwrap_err().to_string();
        assert!(refused.contains("r.toml:7: stage \"two\": `quarantine` is the file of stage \"one\""), "{refused}");
        let dir = tempfile::tempdir().unwrap();
        let refused = |files: [&str; 2]| {
            let files = files.map(|file| dir.path().join(file).display().to_string());
            let recipe = parse([&files[0], &files[1]]).unwrap();
            refuse_in_folders(&recipe, &recipe.stages, dir.path()).err().map(|error| error.to_string())
        };
        assert_eq!(refused(["one.jsonl", "broken/two.jsonl"]), None);
        let own = refused(["q.jsonl", "two/broken/q.jsonl"]).unwrap();
        assert!(own.contains("stage \"two\"") && own.contains("in the folder of stage \"two\""), "{own}");
        assert!(refused(["two/q.jsonl", "q.jsonl"]).unwrap().contains("in the folder of stage \"two\""));
    }
}
