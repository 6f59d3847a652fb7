//! Who the inputs of a stage are, for its record and for the question whether it is done: the digest that a stage's record gives, of anything else
//! that of its bytes. Refuses what is not there, and a stage's folder that is not what its record says.

use crate::failure::Failure;
use crate::recipe::stage_config::outside_models;
use crate::stage::Job;
use crate::{known, outputs};
use aloe_record::{Record, digest};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The digests of a stage's inputs, by name, and of other files that its settings name.
pub(crate) fn input_digests(job: &Job<'_>) -> anyhow::Result<Map<String, Value>> {
    let mut digests = Map::new();
    for (name, paths) in job.inputs {
        let found: Vec<Value> = paths.iter().map(|path| digest_of(path).map(Value::from)).collect::<Result<_, _>>()?;
        digests.insert(name.clone(), if found.len() == 1 { found[0].clone() } else { Value::from(found) });
    }
    let names = names_of_files(job);
    for (at, path) in files_beside_tasks(job).enumerate() {
        let name = names.get(at).cloned().unwrap_or_else(|| format!("file {}", at + 1));
        digests.insert(name, Value::from(digest_of(path)?));
    }
    if !job.task_files.is_empty() {
        digests.insert(TASK_FILES.to_owned(), digests_by_task(job)?);
    }
    Ok(digests)
}

/// The entry that holds the digests of what an evaluation's tasks read, by task and path.
pub(crate) const TASK_FILES: &str = "task_files";

fn digests_by_task(job: &Job<'_>) -> anyhow::Result<Value> {
    let mut by_task = Map::new();
    for (task, files) in &job.task_files {
        let digest = |path: &PathBuf| Ok((path.display().to_string(), Value::from(digest_of(path)?)));
        let digests: Map<String, Value> = files.iter().map(digest).collect::<anyhow::Result<_>>()?;
        by_task.insert(task.clone(), Value::Object(digests));
    }
    Ok(Value::Object(by_task))
}

/// Files that the settings name, in their order. Where tasks say what they read, without those, without the folder of benchmarks, which holds
/// more, and without an endpoint, which the settings say.
pub(crate) fn files_beside_tasks<'a>(job: &'a Job<'_>) -> impl Iterator<Item = &'a PathBuf> {
    let data = job.used["data"].as_str().map(Path::new);
    let is_said = move |path: &PathBuf| {
        let of_task = job.task_files.values().flatten().any(|file| file == path);
        of_task || data == Some(path.as_path()) || path.to_string_lossy().starts_with("http")
    };
    job.extra_files.iter().filter(move |path| job.task_files.is_empty() || !is_said(path))
}

/// The names of the models that the YAML of a merge or of a search over merges names itself, as it writes them, in the order of the job's files.
fn names_of_files(job: &Job<'_>) -> Vec<String> {
    let yaml = job.used["yaml"].as_str().filter(|_| matches!(job.kind, "merge" | "merge-search"));
    let given: Vec<String> = job.inputs.keys().cloned().collect();
    let models = yaml.map(|yaml| outside_models(yaml, &given)).unwrap_or_default();
    models.into_iter().map(|(name, _)| name).collect()
}

/// Digest of a stage's folder as later stages' records name it; `None` for another folder. Its outputs are not read.
pub(crate) fn digest_of_stage(folder: &Path) -> Option<String> {
    let record = Record::read(folder).ok()?;
    Some(digest::bytes(serde_json::to_string(&record.outputs).ok()?.as_bytes()))
}

/// Digest of a stage folder from its record, which its outputs are held against; of anything else from its bytes, large
/// files that no stage wrote once.
fn digest_of(path: &Path) -> anyhow::Result<String> {
    check_input(path)?;
    if path.to_string_lossy().starts_with("http") {
        return Ok(path.to_string_lossy().into_owned());
    }
    if Record::read(path).is_ok() {
        return digest_of_stage(path).ok_or_else(|| Failure::usage(format!("{} has no record", path.display())).into());
    }
    Ok(known::digest(path, store_for(path).as_deref())?)
}

/// Refuses an input that is not there, or not what its record says.
pub(crate) fn check_input(path: &Path) -> anyhow::Result<()> {
    if path.to_string_lossy().starts_with("http") {
        return Ok(());
    }
    if let Ok(record) = Record::read(path) {
        return outputs::check(path, &record);
    }
    match path.exists() {
        true => Ok(()),
        false => Err(Failure::usage(format!("{} does not exist", path.display())).into()),
    }
}

/// Refuses a stage's folder of whose outputs the one that `opened` is, or lies in, is not what its record says; the others are not read. Where
/// `opened` is no single output, all are held against it.
pub(crate) fn check_opened(folder: &Path, opened: &Path) -> anyhow::Result<()> {
    let inside = opened.strip_prefix(folder).ok().and_then(|inside| inside.iter().next());
    match (inside.and_then(|name| name.to_str()), Record::read(folder)) {
        (Some(name), Ok(record)) => outputs::check_one(folder, &record, name),
        _ => check_input(folder),
    }
}

/// The log of known files; none for what lies in a stage's folder, which was written by it and is read every time.
fn store_for(path: &Path) -> Option<PathBuf> {
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let is_output = whole.ancestors().skip(1).take(2).any(|above| above.join("record.json").is_file());
    known::store().filter(|_| !is_output)
}

/// Large files of inputs, by device and inode, that the record's digests are of and that nobody has read yet.
pub(crate) fn unread_files<'a>(paths: impl Iterator<Item = &'a Path>) -> BTreeSet<(u64, u64)> {
    let paths = paths.filter(|path| Record::read(path).is_err());
    paths.flat_map(|path| known::unread(path, store_for(path).as_deref())).collect()
}
