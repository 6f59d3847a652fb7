//! Evaluation questions that a recipe scores on, known by their tasks: rows are compared with them though no file of theirs is named.
//! A recipe gives the list; who writes settings by hand names files with `decontaminate`.

use crate::held::Held;
use crate::{DataConfig, Result};
use aloe_task::open::OpenTask;
use aloe_task::{Split, Task};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Tasks of an evaluation stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scored {
    /// Folder with the benchmarks' files.
    pub data: PathBuf,
    /// As the stage names them; groups and open tasks too.
    pub tasks: Vec<String>,
    /// `test` or `validation`.
    pub split: String,
}

/// What a data stage is compared with, beside the files that its settings name: `test medmcqa`, `red team questions.jsonl`.
pub fn names(config: &DataConfig) -> Vec<String> {
    let tasks =
        config.scored.iter().flat_map(|one| one.tasks.iter().map(|task| format!("{} {}", one.split, task.trim())));
    let files = config.asked.iter().map(|path| crate::decontaminate::last_two(&path.display().to_string()));
    let mut names: Vec<String> = tasks.chain(files.map(|file| format!("red team {file}"))).collect();
    names.sort();
    names.dedup();
    names
}

/// Questions with the line of each, by file.
pub(crate) type Questions = BTreeMap<PathBuf, Vec<(String, Held)>>;

/// The questions of all of them, each once.
pub(crate) fn questions(scored: &[Scored]) -> Result<Questions> {
    let mut found = Questions::new();
    let mut seen: BTreeSet<(PathBuf, String)> = BTreeSet::new();
    let mut add = |data: &Path, source: &str, text: Held| {
        let (file, line) = source.split_at(source.rfind([':', '#']).unwrap_or(source.len()));
        let path = data.join(file);
        if seen.insert((path.clone(), line.to_owned())) {
            found.entry(path).or_default().push((line.to_owned(), text));
        }
    };
    for one in scored {
        let split = if one.split == "validation" { Split::Validation } else { Split::Test };
        for name in &one.tasks {
            if let Some(task) = OpenTask::parse(name) {
                for question in task.load(&one.data)? {
                    add(&one.data, &question.source, Held { stem: question.question, ..Held::default() });
                }
                continue;
            }
            for task in Task::parse(name.trim())? {
                // A user's own set lies beside its description.
                let own = task.own_files().first().and_then(|file| file.parent().map(Path::to_path_buf));
                let folder = own.unwrap_or_else(|| one.data.clone());
                for question in task.load(&one.data, split)? {
                    let options = if question.is_yes_no_maybe() { Vec::new() } else { question.choices };
                    let text = Held { stem: question.stem, context: question.context, options };
                    add(&folder, &question.source, text);
                }
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts of the starter set's README: 40 four-option test questions; a group's members count once.
    #[test]
    fn the_questions_of_named_tasks_are_read_once_with_their_files_and_lines() {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../starter");
        let scored = |tasks: &[&str], split: &str| Scored {
            data: data.clone(),
            tasks: tasks.iter().map(|task| (*task).to_owned()).collect(),
            split: split.into(),
        };
        let mcqa = data.join("mcqa/starter_mcqa_test.jsonl");
        let n_lines = std::fs::read_to_string(&mcqa).unwrap().lines().count();
        let found =
            questions(&[scored(&["starter", "starter_mcqa"], "test"), scored(&["starter_mcqa"], "test")]).unwrap();
        let names: Vec<&str> = found.keys().filter_map(|path| path.file_name()?.to_str()).collect();
        assert_eq!(names, ["starter_mcqa_test.jsonl", "starter_pubmedqa_test.jsonl"]);
        let (path, lines) = found.iter().next().unwrap();
        assert_eq!((path.canonicalize().unwrap(), lines.len()), (mcqa.canonicalize().unwrap(), n_lines));
        assert_eq!((lines[0].0.as_str(), lines[0].1.options.len()), (":1", 4));
        let validation = questions(&[scored(&["starter_mcqa"], "validation")]).unwrap();
        assert!(validation.keys().all(|path| path.ends_with("starter_mcqa_dev.jsonl")));
        assert!(questions(&[scored(&["no_such_task"], "test")]).is_err());
    }
}
