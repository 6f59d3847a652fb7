//! `MANIFEST.json`: sizes and digests of a folder's files, which tell a whole checkpoint from a broken one.
//!
//! The start script writes one into each checkpoint when it is whole; [`seal`] writes one into a folder that was checked. What a training
//! resumes from is the newest checkpoint whose manifest holds, and it is said why a newer one was passed over.

use super::Findings;
use aloe_record::{atomic, digest};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const NAME: &str = "MANIFEST.json";

#[derive(Debug, Default, Serialize, Deserialize)]
struct Manifest {
    step: u64,
    files: BTreeMap<String, Entry>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    size: u64,
    sha256: String,
}

/// The checkpoint to go on from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewestCheckpoint {
    /// Its folder and step; `None` starts at the beginning.
    pub found: Option<(PathBuf, u64)>,
    /// Newer ones that do not hold, each with the reason.
    pub passed_over: Vec<String>,
}

/// The newest `checkpoint-N` of an engine's folder whose manifest holds.
pub fn newest_checkpoint(work: &Path) -> NewestCheckpoint {
    let step = |path: &Path| path.file_name()?.to_str()?.strip_prefix("checkpoint-")?.parse::<u64>().ok();
    let entries = std::fs::read_dir(work).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut folders: Vec<(u64, PathBuf)> = entries.filter_map(|path| Some((step(&path)?, path))).collect();
    folders.sort();
    let mut newest = NewestCheckpoint::default();
    for (step, folder) in folders.into_iter().rev() {
        match faults(&folder) {
            Ok(faults) if faults.is_empty() => {
                newest.found = Some((folder, step));
                break;
            }
            Ok(faults) => newest.passed_over.push(format!("{}: {}", folder.display(), faults[0])),
            Err(reason) => newest.passed_over.push(format!("{}: {reason}", folder.display())),
        }
    }
    newest
}

/// Writes the manifest of a checked folder: its own files, without those of checkpoints, which have theirs.
pub fn seal(folder: &Path, step: u64) -> Result<(), aloe_record::Error> {
    let mut manifest = Manifest { step, ..Manifest::default() };
    let entries = std::fs::read_dir(folder).map_err(aloe_record::Error::io("list", folder))?;
    for entry in entries.flatten().filter(|entry| entry.path().is_file()) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == NAME || name.starts_with('.') {
            continue;
        }
        let size = entry.metadata().map_err(aloe_record::Error::io("read", &entry.path()))?.len();
        manifest.files.insert(name, Entry { size, sha256: digest::file(&entry.path())? });
    }
    atomic::write_json(&folder.join(NAME), &manifest)
}

/// A folder that was sealed must still be what it was.
pub(super) fn check(findings: &mut Findings<'_>) {
    let folder = findings.folder.to_path_buf();
    if !folder.join(NAME).exists() {
        return;
    }
    match faults(&folder) {
        Ok(faults) => {
            faults.into_iter().for_each(|fault| findings.add(NAME, fault, "as when it was written", "changed"))
        }
        Err(reason) => findings.add(NAME, "file", "a manifest", reason),
    }
}

/// Files that are not what the manifest says.
fn faults(folder: &Path) -> Result<Vec<String>, String> {
    let manifest: Manifest =
        atomic::read_json(&folder.join(NAME)).map_err(|error| match folder.join(NAME).exists() {
            true => error.to_string(),
            false => "has no MANIFEST.json: it was not finished".to_owned(),
        })?;
    let mut faults = Vec::new();
    for (name, entry) in &manifest.files {
        let path = folder.join(name);
        match path.metadata() {
            Err(_) => faults.push(format!("{name} is missing")),
            Ok(metadata) if metadata.len() != entry.size => {
                faults.push(format!("{name} has {} bytes, not {}", metadata.len(), entry.size));
            }
            Ok(_) => match digest::file(&path) {
                Ok(found) if found == entry.sha256 => {}
                Ok(found) => faults.push(format!("{name} has sha256 {}, not {}", &found[..16], &entry.sha256[..16])),
                Err(error) => faults.push(error.to_string()),
            },
        }
    }
    Ok(faults)
}
