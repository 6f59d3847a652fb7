//! The files of evaluation questions: what they are called in evidence, and which of PubMedQA's instances are test instances.

use crate::{Result, source};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

/// The last two parts of a path: enough to find the file, and the same wherever the data lies.
pub(crate) fn last_two(path: &str) -> String {
    last(path, 2)
}

fn last(path: &str, n_parts: usize) -> String {
    let mut parts: Vec<&str> = path.rsplit('/').take(n_parts).collect();
    parts.reverse();
    parts.join("/")
}

/// A file of evaluation questions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HeldFile {
    pub(crate) path: PathBuf,
    /// What it is called wherever the data lies: the last two parts of its path, and as many more as tell it from the others.
    pub(crate) label: String,
    /// Whether its questions come from a task's reader, not from a reading of the whole file.
    pub(crate) is_scored: bool,
    /// Whether only a red-team run of the recipe names it: it may have no evaluation question at all, and its train rows are none.
    pub(crate) is_asked: bool,
}

impl HeldFile {
    /// The files at and below `paths`, read whole, and those of `scored` beside them, each once.
    pub(crate) fn all<'a>(paths: &[PathBuf], scored: impl IntoIterator<Item = &'a PathBuf>) -> Result<Vec<HeldFile>> {
        let canonical = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        let (mut found, mut seen) = (Vec::new(), HashSet::new());
        for path in paths {
            let files = source::files(path)?.into_iter().map(|file| file.path);
            found.extend(files.filter(|file| seen.insert(canonical(file))).map(|file| (file, false)));
        }
        found.extend(scored.into_iter().filter(|file| seen.insert(canonical(file))).map(|file| (file.clone(), true)));
        let texts: Vec<String> = found.iter().map(|(path, _)| path.display().to_string()).collect();
        let label = |text: &String| {
            let n_parts = text.split('/').count();
            let is_shared = |n: &usize| texts.iter().any(|other| other != text && last(other, *n) == last(text, *n));
            let n = (2..n_parts).find(|n| !is_shared(n)).unwrap_or(n_parts);
            last(text, n)
        };
        let labels: Vec<String> = texts.iter().map(label).collect();
        Ok(found
            .into_iter()
            .zip(labels)
            .map(|((path, is_scored), label)| HeldFile { path, label, is_scored, is_asked: false })
            .collect())
    }

    /// Those that the settings name in `named`, then those of red-team runs in `asked`, then those of `scored`.
    pub(crate) fn all_of<'a>(
        named: &[PathBuf],
        asked: &[PathBuf],
        scored: impl IntoIterator<Item = &'a PathBuf>,
    ) -> Result<Vec<HeldFile>> {
        let n_named = Self::all(named, [])?.len();
        let mut files = Self::all(&[named, asked].concat(), scored)?;
        for file in files.iter_mut().skip(n_named).filter(|file| !file.is_scored) {
            file.is_asked = true;
        }
        Ok(files)
    }
}

/// Where the list of test instances of `path` would stand: PubMedQA keeps train and test instances in one file, and the test ones are
/// those of `test_ground_truth.json` beside it.
pub(crate) fn test_list(path: &Path) -> Option<PathBuf> {
    (file_name(path) == "ori_pqal.json").then(|| path.with_file_name(source::TEST_LIST))
}

pub(super) fn tested_pmids(path: &Path) -> Result<Option<HashSet<String>>> {
    let Some(list) = test_list(path).filter(|list| list.exists()) else { return Ok(None) };
    let by_pmid: HashMap<String, String> = aloe_record::atomic::read_json(&list)?;
    Ok(Some(by_pmid.into_keys().collect()))
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_called_by_the_fewest_parts_of_its_path_from_two_on_that_no_other_file_has_and_is_read_once() {
        let dir = tempfile::tempdir().unwrap();
        let paths = ["a/datasets/test/q.jsonl", "b/datasets/test/q.jsonl", "b/datasets/dev/q.jsonl"];
        let paths = paths.map(|path| dir.path().join(path));
        for path in &paths {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "{}").unwrap();
        }
        let labels = |paths: &[PathBuf]| -> Vec<String> {
            HeldFile::all(paths, []).unwrap().into_iter().map(|file| file.label).collect()
        };
        assert_eq!(labels(&paths), ["a/datasets/test/q.jsonl", "b/datasets/test/q.jsonl", "dev/q.jsonl"]);
        assert_eq!(labels(&paths[1..]), ["test/q.jsonl", "dev/q.jsonl"]);
        let folder = dir.path().join("b");
        assert_eq!(labels(&[paths[1].clone(), folder]), ["test/q.jsonl", "dev/q.jsonl"]);
        let again = dir.path().join("b/./datasets/dev/q.jsonl");
        let files = HeldFile::all(&paths[..1], [&paths[0], &again, &paths[2]]).unwrap();
        assert_eq!(files.iter().map(|file| file.is_scored).collect::<Vec<_>>(), [false, true], "each once");
    }
}
