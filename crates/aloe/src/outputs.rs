//! The digests of a stage's outputs, and the check that an input folder still holds what its record says: a record vouches for
//! bytes only while they are there. A file or folder is hashed once per process as long as nothing in it changes.

use crate::failure::Failure;
use aloe_record::stamp::{Stamp, wait_for_tick};
use aloe_record::{Record, digest, hashed};
use anyhow::Context as _;
use serde_json::{Map, Value};
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

/// Output name to digest: everything in a stage's folder but its record, other files that bear times, and hidden working files.
pub(crate) fn digests(folder: &Path) -> anyhow::Result<Map<String, Value>> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .with_context(|| format!("cannot list {}", folder.display()))?
        .filter_map(|entry| entry.ok().map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .filter(|name| !digest::bears_time(name) && !name.starts_with('.'))
        .collect();
    names.sort();
    let mut digests = Map::new();
    for name in names {
        let found = digest_once(&folder.join(&name))?;
        digests.insert(name, Value::from(found));
    }
    Ok(digests)
}

/// Refuses a stage's folder whose outputs are not those of its record: what was computed from it would be told as computed from
/// other bytes.
pub(crate) fn check(folder: &Path, record: &Record) -> anyhow::Result<()> {
    let found = digests(folder)?;
    let names: BTreeSet<&String> = found.keys().chain(record.outputs.keys()).collect();
    let Some(name) = names.into_iter().find(|name| found.get(*name) != record.outputs.get(*name)) else {
        return Ok(());
    };
    Err(refusal(folder, record, name, found.contains_key(name)))
}

/// The same of one output alone: the others are not read.
pub(crate) fn check_one(folder: &Path, record: &Record, name: &str) -> anyhow::Result<()> {
    let path = folder.join(name);
    let found = path.exists().then(|| digest_once(&path)).transpose()?;
    match found.as_deref() == record.outputs.get(name).and_then(Value::as_str) {
        true => Ok(()),
        false => Err(refusal(folder, record, name, found.is_some())),
    }
}

/// Why `folder` is refused for its output `name`, which is there or not.
fn refusal(folder: &Path, record: &Record, name: &str, is_there: bool) -> anyhow::Error {
    let path = folder.join(name);
    let (state, itself) = match (is_there, record.outputs.contains_key(name)) {
        (true, true) => ("is not what the stage wrote", true),
        (true, false) => ("was not written by the stage", false),
        _ => ("is missing", false),
    };
    let mut text = format!("{} {state} (its record.json is of other bytes)", name_changed(&path, folder).display());
    text.push_str("; run the stage that made it again");
    if !itself {
        return Failure::usage(text).into();
    }
    if path.is_dir() {
        text.push_str(&format!(", or give {}/ itself as the input", path.display()));
    } else if folder.join("config.json").exists() {
        text.push_str(", or remove its record.json to take the folder as it is");
    } else {
        text.push_str(&format!(", or give {} itself as the input", path.display()));
    }
    Failure::usage(text).into()
}

/// The file of a changed folder that was written after the record, where just one was; the folder otherwise, since its digest is
/// of all its files.
fn name_changed(path: &Path, folder: &Path) -> PathBuf {
    let time = |path: &Path| path.metadata().and_then(|metadata| metadata.modified()).ok();
    let recorded = time(&folder.join("record.json"));
    let mut files = Vec::new();
    let _ = stamps(path, &mut files);
    let mut later = files.into_iter().map(|(path, _)| path).filter(|file| file.is_file() && time(file) > recorded);
    match (later.next(), later.next()) {
        (Some(only), None) => only,
        _ => path.to_path_buf(),
    }
}

/// Stamps and digest by device and inode, which a rename of the stage's folder keeps.
type Known = HashMap<(u64, u64), (Vec<(PathBuf, Stamp)>, String)>;

/// What this process has hashed.
fn known() -> MutexGuard<'static, Known> {
    static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// [`digest::file`] or [`digest::folder`], not repeated while names, sizes and times stay.
fn digest_once(path: &Path) -> anyhow::Result<String> {
    let mut now = Vec::new();
    stamps(path, &mut now).with_context(|| format!("cannot read {}", path.display()))?;
    if now.iter().any(|(_, stamp)| stamp.is_fresh()) {
        wait_for_tick();
        now.clear();
        stamps(path, &mut now).with_context(|| format!("cannot read {}", path.display()))?;
    }
    let key = now.first().map(|(_, stamp)| stamp.inode()).unwrap_or_default();
    // Paths below the entry: the folder above may be renamed between two looks.
    for (inner, _) in &mut now {
        *inner = inner.strip_prefix(path).unwrap_or(inner).to_path_buf();
    }
    if let Some((_, digest)) = known().get(&key).filter(|(then, _)| *then == now) {
        return Ok(digest.clone());
    }
    let found = match path.is_dir() {
        true => digest::folder_by(path, &hashed::digest_of)?,
        false => hashed::digest_of(path)?,
    };
    known().insert(key, (now, found.clone()));
    Ok(found)
}

/// The stamps of a file, or of a folder and all in it, the entry itself first, the others by name.
fn stamps(path: &Path, found: &mut Vec<(PathBuf, Stamp)>) -> std::io::Result<()> {
    found.push((path.to_path_buf(), Stamp::of(path)?));
    if path.is_dir() {
        let mut inner: Vec<PathBuf> = std::fs::read_dir(path)?.flatten().map(|entry| entry.path()).collect();
        inner.sort();
        inner.iter().try_for_each(|path| stamps(path, found))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_kept_for_the_process_notices_every_change_and_survives_a_rename() {
        let dir = tempfile::tempdir().unwrap();
        let (partial, out) = (dir.path().join("partial"), dir.path().join("out"));
        std::fs::create_dir_all(partial.join("model")).unwrap();
        let write = |folder: &Path, text: &str| std::fs::write(folder.join("model/weights"), text).unwrap();
        let of = |folder: &Path| digests(folder).unwrap()["model"].as_str().unwrap().to_owned();
        write(&partial, "aa");
        let first = of(&partial);
        assert_eq!(first, digest::folder(&partial.join("model")).unwrap());
        std::fs::rename(&partial, &out).unwrap();
        assert_eq!(of(&out), first);
        // As long as the first, and written at once after the look.
        for text in ["ab", "ac", "ad", "aa"] {
            write(&out, text);
            assert_eq!(of(&out), digest::folder(&out.join("model")).unwrap(), "{text}");
        }
        assert_eq!(of(&out), first);
    }
}
