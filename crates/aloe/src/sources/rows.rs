//! `hf:datasets/ORG/NAME[@REVISION]`: a data set's files of rows as the hub has them, counted. Nothing is converted: `aloe data run` reads them.
//!
//! Refuses a set whose train rows are not as many as were asked for or as the published set has.

use super::hf::{self, Hub};
use aloe_record::atomic::OutputDir;
use aloe_record::{Cancel, Progress, digest};
use anyhow::{Context as _, bail};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Component, Path};

/// What is written of one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct RowFile {
    pub(crate) sha256: String,
    /// Broken rows included.
    pub(crate) n_rows: usize,
    pub(crate) n_broken: usize,
}

/// What a pull of a data set wrote.
#[derive(Clone, Debug)]
pub(crate) struct PulledRows {
    /// The repository and commit.
    pub(crate) origin: String,
    /// Path in the repository to what it holds.
    pub(crate) files: BTreeMap<String, RowFile>,
    /// The rows counted: of files named for a train split, or of all.
    pub(crate) n_rows: usize,
    /// What they were compared with, and who says so.
    pub(crate) expected: Option<(usize, &'static str)>,
}

/// Rows of the train split as the sets' cards publish them.
const PUBLISHED: [(&str, usize); 2] = [("datasets/argilla/dpo-mix-7k", 6_750), ("datasets/nvidia/HelpSteer", 35_331)];

/// Whether `source` names a data set; then the repository.
pub(crate) fn repository(source: &str) -> Option<&str> {
    source.strip_prefix("hf:").filter(|repository| hf::is_data(repository.split('@').next().unwrap_or_default()))
}

/// Gets the rows of `repository` and writes them to `out`, which appears whole or not at all.
pub(crate) fn pull(repository: &str, expect: Option<usize>, out: &Path, cancel: &Cancel) -> anyhow::Result<PulledRows> {
    pull_from(repository, expect, out, &Hub::from_env()?, cancel)
}

pub(super) fn pull_from(
    repository: &str,
    expect: Option<usize>,
    out: &Path,
    hub: &Hub,
    cancel: &Cancel,
) -> anyhow::Result<PulledRows> {
    let (snapshot, origin) = hf::fetch(repository, hub, cancel)?;
    let mut names = Vec::new();
    list(&snapshot, &snapshot, &mut names)?;
    names.sort();
    let output = OutputDir::fresh(out)?;
    let progress = Progress::new("rows", names.len() as u64, "files");
    let mut files = BTreeMap::new();
    for name in names {
        cancel.check()?;
        let target = output.path().join(&name);
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        }
        std::fs::copy(snapshot.join(&name), &target).with_context(|| format!("cannot copy {name}"))?;
        if is_row_file(&name) {
            let (n_rows, n_broken) = aloe_data::count_rows(&target)?;
            files.insert(name, RowFile { sha256: digest::file(&target)?, n_rows, n_broken });
        }
        progress.advance(1);
    }
    let n_rows = n_counted(&files);
    let name = repository.split('@').next().unwrap_or_default();
    let published = PUBLISHED.iter().find(|(known, _)| *known == name).map(|(_, n)| (*n, "the published set has"));
    let expected = expect.map(|n| (n, "expect_rows is")).or(published);
    if let Some((wanted, who)) = expected.filter(|(wanted, _)| *wanted != n_rows) {
        let each: Vec<String> = files.iter().map(|(name, file)| format!("{name} {}", file.n_rows)).collect();
        bail!(
            "{origin} holds {n_rows} train rows, and {who} {wanted} ({}); nothing was written: name another revision, or say how many are \
             right with --expect-rows",
            each.join(", ")
        );
    }
    output.commit()?;
    progress.finish();
    Ok(PulledRows { origin, files, n_rows, expected })
}

fn n_counted(files: &BTreeMap<String, RowFile>) -> usize {
    let is_any_train = files.keys().any(|name| is_train(name));
    files.iter().filter(|(name, _)| !is_any_train || is_train(name)).map(|(_, file)| file.n_rows).sum()
}

/// Whether a path names the train split: a folder `train`, or a file whose name begins with it.
fn is_train(name: &str) -> bool {
    let mut parts = name.rsplit('/');
    let file = parts.next().unwrap_or_default();
    let is_split = file.strip_prefix("train").is_some_and(|rest| rest.starts_with(['.', '-', '_']));
    is_split || parts.any(|folder| folder == "train")
}

fn list(root: &Path, folder: &Path, names: &mut Vec<String>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
        if path.is_dir() {
            list(root, &path, names)?;
        } else if is_row_file(&name) || is_about(&name) {
            names.push(name);
        }
    }
    Ok(())
}

/// Whether a path of a repository is inside it and hides nothing.
fn is_plain(name: &str) -> bool {
    let path = Path::new(name);
    let is_hidden = |part: Component<'_>| part.as_os_str().to_string_lossy().starts_with('.');
    !name.contains(['\\', '\0'])
        && path.components().all(|part| matches!(part, Component::Normal(_)) && !is_hidden(part))
}

/// Files of rows; not the hub's own lists about a set.
pub(super) fn is_row_file(name: &str) -> bool {
    let base = name.rsplit('/').next().unwrap_or(name).to_lowercase();
    let stem = base.strip_suffix(".gz").unwrap_or(&base);
    let has_rows = [".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv"].iter().any(|end| stem.ends_with(end));
    let is_list = ["dataset_infos.json", "dataset_info.json", "state.json", "record.json"].contains(&stem);
    is_plain(name) && has_rows && !is_list
}

/// Card and licence, which say what may be done with the rows.
pub(super) fn is_about(name: &str) -> bool {
    is_plain(name)
        && !name.contains('/')
        && ["README.md", "LICENSE", "LICENCE", "NOTICE"].iter().any(|start| name.starts_with(start))
}
