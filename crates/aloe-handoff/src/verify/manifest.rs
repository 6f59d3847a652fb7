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

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Manifest {
    step: u64,
    /// Digest of the stage's `inputs.sha256` and `rendered.sha256`, of checkpoints: what was trained on and how.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    inputs: Option<String>,
    files: BTreeMap<String, Entry>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    size: u64,
    sha256: String,
}

/// What a training's checkpoints must have been trained with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrainedWith {
    /// Digest of the stage's `inputs.sha256` and, where its own job rendered the rows, `rendered.sha256`.
    pub digest: String,
    /// Where it did, digest of `inputs.sha256` alone: all that a checkpoint tells that an earlier version saved.
    pub of_plan: Option<String>,
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
    newest_checkpoint_of(work, None)
}

/// The same, of a training with these inputs: one of other rows or settings is passed over, and one that does not tell its rows.
pub fn newest_checkpoint_of(work: &Path, inputs: Option<&TrainedWith>) -> NewestCheckpoint {
    let step = |path: &Path| path.file_name()?.to_str()?.strip_prefix("checkpoint-")?.parse::<u64>().ok();
    let entries = std::fs::read_dir(work).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut folders: Vec<(u64, PathBuf)> = entries.filter_map(|path| Some((step(&path)?, path))).collect();
    folders.sort();
    let mut newest = NewestCheckpoint::default();
    for (step, folder) in folders.into_iter().rev() {
        let found = read(&folder).and_then(|manifest| {
            let gaps = gaps(&manifest, step, inputs);
            // Digests of hundreds of gigabytes are read only where all else holds.
            if gaps.is_empty() { faults(&folder, &manifest) } else { Ok(gaps) }
        });
        match found {
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

/// Writes the manifest of a checked folder: its own files, without those of checkpoints, which have theirs. One that has this manifest is left as
/// it is: who may only read a folder that was sealed can check it too.
pub fn seal(folder: &Path, step: u64) -> Result<(), aloe_record::Error> {
    let mut manifest = Manifest { step, ..Manifest::default() };
    let entries = std::fs::read_dir(folder).map_err(aloe_record::Error::io("list", folder))?;
    for entry in entries.flatten().filter(|entry| entry.path().is_file()) {
        let name = entry.file_name().to_string_lossy().into_owned();
        // STOP comes and goes with a session that was told to save.
        if name == NAME || name == "STOP" || name.starts_with('.') {
            continue;
        }
        let size = entry.metadata().map_err(aloe_record::Error::io("read", &entry.path()))?.len();
        manifest.files.insert(name, Entry { size, sha256: digest::file(&entry.path())? });
    }
    match read(folder).is_ok_and(|sealed| sealed == manifest) {
        true => Ok(()),
        false => atomic::write_json(&folder.join(NAME), &manifest),
    }
}

/// Removes the manifest of a folder, where it has one: what is in it is not what is asked for any more.
pub fn unseal(folder: &Path) -> Result<bool, aloe_record::Error> {
    let path = folder.join(NAME);
    match std::fs::remove_file(&path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(aloe_record::Error::io("remove", &path)(error)),
    }
}

/// A folder that was sealed must still be what it was.
pub(super) fn check(findings: &mut Findings<'_>) {
    let folder = findings.folder.to_path_buf();
    if !folder.join(NAME).exists() {
        return;
    }
    match read(&folder).and_then(|manifest| faults(&folder, &manifest)) {
        Ok(faults) => {
            faults.into_iter().for_each(|fault| findings.add(NAME, fault, "as when it was written", "changed"))
        }
        Err(reason) => findings.add(NAME, "file", "a manifest", reason),
    }
}

fn read(folder: &Path) -> Result<Manifest, String> {
    atomic::read_json(&folder.join(NAME)).map_err(|error| match folder.join(NAME).exists() {
        true => error.to_string(),
        false => "has no MANIFEST.json: it was not finished".to_owned(),
    })
}

/// What a checkpoint's manifest lacks of one that a training can go on from, whatever its files hold.
fn gaps(manifest: &Manifest, step: u64, inputs: Option<&TrainedWith>) -> Vec<String> {
    let mut gaps = Vec::new();
    if manifest.step != step {
        gaps.push(format!("its manifest is of step {}", manifest.step));
    }
    let found = manifest.inputs.as_ref();
    if let Some(expected) = inputs
        && found != Some(&expected.digest)
    {
        // A run folder with work in it is not planned anew, so what was planned is what a checkpoint was trained with.
        let is_untold = found.is_none() || found == expected.of_plan.as_ref();
        if !is_untold {
            let text =
                "it was trained with other rows or settings than inputs.sha256 and rendered.sha256 of the stage say";
            gaps.push(text.to_owned());
        } else if expected.of_plan.is_some() {
            gaps.push(
                "an earlier version of aloe saved it without a note of the rows that it was trained with".to_owned(),
            );
        }
    }
    // `model.safetensors`, its shards, `pytorch_model_fsdp..`, `adapter_model..`; `optimizer.pt`, `optimizer.bin`, `optimizer_0/..`.
    let has =
        |part: &str| manifest.files.keys().any(|name| name.split('/').next().is_some_and(|name| name.contains(part)));
    for (what, part) in [("weights", "model"), ("optimizer", "optimizer"), ("trainer_state.json", "trainer_state.json")]
    {
        if !has(part) {
            gaps.push(format!("its manifest names no {what}"));
        }
    }
    gaps
}

/// Files that are not what the manifest says.
fn faults(folder: &Path, manifest: &Manifest) -> Result<Vec<String>, String> {
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
