//! Checkpoints of a running stage: everything the next step depends on, so that a resumed run equals an uninterrupted one
//! bit for bit.
//!
//! `state/step-0000000040/` holds the arrays (raw little-endian f32), the logs so far, the cursor, and a manifest with
//! size and SHA-256 of each file and of itself. A checkpoint appears under its name only when complete and synced. When
//! resuming, the newest one that passes every check is taken; damaged ones are reported, never repaired and never used: they are set aside
//! as `state/damaged-0000000040/`, where they stand in the way of no sound one, and go with the next checkpoint.
//! `state/best-0000000040/` holds the weights alone after the step with the best held-out evaluation, in the same form; a checkpoint
//! whose best weights are damaged is damaged itself.

use crate::guard::Guard;
use crate::{Error, Result};
use aloe_record::digest::Hasher;
use aloe_record::{atomic, digest};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

/// Where a run stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cursor {
    /// Digest of settings, inputs, start weights, dtype and CPU path: a state continues only the run it came from.
    pub(crate) fingerprint: String,
    /// Optimizer steps done, over all chunks, skipped ones included.
    pub(crate) step: u64,
    /// Updates that AdamW has made since its moments were 0: skipped steps are none. Checkpoints of older programs lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) n_updates: Option<u64>,
    /// Tokens passed forward so far.
    pub(crate) n_tokens: u64,
    /// Tokens trained on so far.
    pub(crate) n_targets: u64,
    /// Recent losses and the counts of skipped steps.
    pub(crate) guard: Guard,
    /// Settings that may change between sessions as long as no step was treated by them.
    pub(crate) policy: String,
    /// The held-out evaluations so far.
    pub(crate) held_out: HeldOut,
}

/// What the held-out evaluations said.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct HeldOut {
    /// The step that was evaluated last, 0 at the start.
    pub(crate) last_step: Option<u64>,
    /// The step with the lowest value after the start, and the value's bits.
    pub(crate) best: Option<(u64, u64)>,
    /// Whether the best step's weights are kept under `state/`.
    pub(crate) is_kept: bool,
    /// Evaluations since the best one.
    pub(crate) n_without_better: u64,
    /// Whether that ended the training.
    pub(crate) has_stopped: bool,
}

/// Named f32 arrays of one file, in a fixed order: `weights`, `moment1`, `moment2`.
pub(crate) type Arrays<'a> = [(&'static str, Vec<&'a [f32]>)];

/// A checkpoint read back.
pub(crate) struct Loaded {
    /// Where the run stood.
    pub(crate) cursor: Cursor,
    /// Per file its arrays, in the order of the layout.
    pub(crate) arrays: Vec<Vec<Vec<f32>>>,
    /// The content of `metrics.jsonl` then.
    pub(crate) metrics: Vec<u8>,
    /// The content of `samples.jsonl` then.
    pub(crate) samples: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct FileEntry {
    size_bytes: u64,
    sha256: String,
}

type Manifest = BTreeMap<String, FileEntry>;

const CURSOR: &str = "cursor.json";
const METRICS: &str = "metrics.jsonl";
const SAMPLES: &str = "samples.jsonl";
const MANIFEST: &str = "manifest";
const STEP: &str = "step-";
const DAMAGED: &str = "damaged-";

/// What a run has written so far beside its weights.
#[derive(Clone, Copy, Default)]
pub(crate) struct Logs<'a> {
    /// `metrics.jsonl`.
    pub(crate) metrics: &'a [u8],
    /// `samples.jsonl`.
    pub(crate) samples: &'a [u8],
}

/// Writes the checkpoint of `cursor.step` and removes all but the newest `keep_last`, and the best weights that none of them names.
pub(crate) fn save(state: &Path, cursor: &Cursor, arrays: &Arrays<'_>, logs: Logs<'_>, keep_last: usize) -> Result<()> {
    let text = to_json(cursor, state)?;
    let texts = [(CURSOR, text.as_bytes()), (METRICS, logs.metrics), (SAMPLES, logs.samples)];
    write_folder(state, &step_name(cursor.step), arrays, &texts)?;
    for damaged in folders(state, DAMAGED)? {
        atomic::remove_folder(&damaged)?;
    }
    let mut kept = checkpoints(state)?;
    while kept.len() > keep_last.max(1) {
        atomic::remove_folder(&kept.remove(0))?;
    }
    remove_unnamed_best(state, &kept)
}

/// Whether the checkpoint of `step` is there.
pub(crate) fn has(state: &Path, step: u64) -> bool {
    state.join(step_name(step)).exists()
}

fn step_name(step: u64) -> String {
    format!("{STEP}{step:010}")
}

/// Keeps the weights of the best step so far.
pub(crate) fn save_best(state: &Path, step: u64, weights: &Arrays<'_>) -> Result<()> {
    write_folder(state, &best_name(step), weights, &[])
}

/// The weights that [`save_best`] kept.
pub(crate) fn load_best(state: &Path, step: u64, layout: &(&'static str, Vec<usize>)) -> Result<Vec<Vec<f32>>> {
    let folder = state.join(best_name(step));
    let manifest = read_manifest(&folder.join(MANIFEST))?;
    read_arrays(&folder, &format!("{}.f32", layout.0), &layout.1, &manifest)
}

fn best_name(step: u64) -> String {
    format!("best-{step:010}")
}

fn write_folder(state: &Path, name: &str, arrays: &Arrays<'_>, texts: &[(&str, &[u8])]) -> Result<()> {
    let target = state.join(name);
    let out = atomic::OutputDir::fresh(&target)?;
    let done = fill(out.path(), arrays, texts).and_then(|()| Ok(out.commit()?));
    if done.is_err() {
        // Half a checkpoint is of no use, and the room that it takes may be what was missing.
        let _ = atomic::OutputDir::discard(&target);
    }
    done
}

fn fill(folder: &Path, arrays: &Arrays<'_>, texts: &[(&str, &[u8])]) -> Result<()> {
    let mut manifest = Manifest::new();
    for (name, parts) in arrays {
        let name = format!("{name}.f32");
        let entry = write_array(&folder.join(&name), parts)?;
        manifest.insert(name, entry);
    }
    for (name, bytes) in texts {
        atomic::write(&folder.join(name), bytes)?;
        manifest.insert((*name).to_owned(), FileEntry { size_bytes: bytes.len() as u64, sha256: digest::bytes(bytes) });
    }
    let body = to_json(&manifest, folder)?;
    Ok(atomic::write(&folder.join(MANIFEST), format!("{}\n{body}", digest::bytes(body.as_bytes())).as_bytes())?)
}

/// Removes the best weights that no checkpoint names. A checkpoint that cannot be read may name any, so all stay with it.
fn remove_unnamed_best(state: &Path, checkpoints: &[PathBuf]) -> Result<()> {
    let mut named = Vec::new();
    for checkpoint in checkpoints {
        let cursor = fs::read(checkpoint.join(CURSOR)).ok();
        match cursor.and_then(|bytes| serde_json::from_slice::<Cursor>(&bytes).ok()) {
            Some(cursor) => named.extend(cursor.held_out.best.map(|(step, _)| best_name(step))),
            None => return Ok(()),
        }
    }
    for path in folders(state, "best-")? {
        if !named.iter().any(|name| path.ends_with(name)) {
            atomic::remove_folder(&path)?;
        }
    }
    Ok(())
}

/// A checkpoint that failed a check.
#[derive(Debug)]
pub(crate) struct Damaged {
    folder: PathBuf,
    /// Which, and what is wrong, for the user.
    pub(crate) notice: String,
}

/// Takes damaged checkpoints out of the way: they count for none of those that are kept, and the next [`save`] removes them.
pub(crate) fn set_aside(damaged: &[Damaged]) -> Result<()> {
    for Damaged { folder, .. } in damaged {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().replacen(STEP, DAMAGED, 1);
        let aside = folder.with_file_name(name);
        atomic::remove_folder(&aside)?;
        fs::rename(folder, &aside).map_err(aloe_record::Error::io("rename", folder))?;
    }
    Ok(())
}

/// The newest checkpoint that passes every check, and the newer ones that do not. `layout` names each file
/// and the length of its arrays; a valid checkpoint of another run is [`Error::OtherRun`].
pub(crate) fn load_newest(
    state: &Path,
    fingerprint: &str,
    layout: &[(&'static str, Vec<usize>)],
) -> Result<(Option<Loaded>, Vec<Damaged>)> {
    let mut damaged = Vec::new();
    for checkpoint in checkpoints(state)?.iter().rev() {
        match load(checkpoint, fingerprint, layout) {
            Ok(loaded) => return Ok((Some(loaded), damaged)),
            Err(Error::State { path, reason }) => {
                let notice = format!("checkpoint not used: {}: {reason}", path.display());
                damaged.push(Damaged { folder: checkpoint.clone(), notice });
            }
            Err(error) => return Err(error),
        }
    }
    Ok((None, damaged))
}

/// The complete checkpoints' folders, oldest first. Leftovers of an interrupted save begin with a dot and are ignored.
fn checkpoints(state: &Path) -> Result<Vec<PathBuf>> {
    folders(state, STEP)
}

fn folders(state: &Path, prefix: &str) -> Result<Vec<PathBuf>> {
    if !state.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(state).map_err(aloe_record::Error::io("list", state))? {
        let path = entry.map_err(aloe_record::Error::io("list", state))?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn load(folder: &Path, fingerprint: &str, layout: &[(&'static str, Vec<usize>)]) -> Result<Loaded> {
    let manifest = read_manifest(&folder.join(MANIFEST))?;
    let cursor_bytes = read_checked(folder, CURSOR, &manifest)?;
    let cursor: Cursor =
        serde_json::from_slice(&cursor_bytes).map_err(|error| damaged(&folder.join(CURSOR), &error.to_string()))?;
    if cursor.fingerprint != fingerprint {
        return Err(Error::OtherRun {
            path: folder.to_path_buf(),
            found: cursor.fingerprint,
            expected: fingerprint.to_owned(),
        });
    }
    if let (Some((step, _)), true, Some(weights)) = (cursor.held_out.best, cursor.held_out.is_kept, layout.first()) {
        load_best(folder.parent().unwrap_or(folder), step, weights)?;
    }
    let metrics = read_checked(folder, METRICS, &manifest)?;
    let samples = read_checked(folder, SAMPLES, &manifest)?;
    let arrays = layout
        .iter()
        .map(|(name, lens)| read_arrays(folder, &format!("{name}.f32"), lens, &manifest))
        .collect::<Result<Vec<_>>>()?;
    Ok(Loaded { cursor, arrays, metrics, samples })
}

fn read_manifest(path: &Path) -> Result<Manifest> {
    let bytes = fs::read(path).map_err(|error| damaged(path, &error.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|_| damaged(path, "is not text"))?;
    let (sha256, body) = text.split_once('\n').ok_or_else(|| damaged(path, "has no checksum line"))?;
    if digest::bytes(body.as_bytes()) != sha256 {
        return Err(damaged(path, "fails its checksum"));
    }
    serde_json::from_str(body).map_err(|error| damaged(path, &error.to_string()))
}

fn entry<'a>(folder: &Path, name: &str, manifest: &'a Manifest) -> Result<&'a FileEntry> {
    manifest.get(name).ok_or_else(|| damaged(&folder.join(MANIFEST), &format!("does not list {name}")))
}

fn read_checked(folder: &Path, name: &str, manifest: &Manifest) -> Result<Vec<u8>> {
    let path = folder.join(name);
    let expected = entry(folder, name, manifest)?;
    let bytes = fs::read(&path).map_err(|error| damaged(&path, &error.to_string()))?;
    if digest::bytes(&bytes) != expected.sha256 {
        return Err(damaged(&path, "fails its checksum"));
    }
    Ok(bytes)
}

fn read_arrays(folder: &Path, name: &str, lens: &[usize], manifest: &Manifest) -> Result<Vec<Vec<f32>>> {
    let path = folder.join(name);
    let expected = entry(folder, name, manifest)?;
    let size_bytes = fs::metadata(&path).map_err(|error| damaged(&path, &error.to_string()))?.len();
    let needed_bytes = 4 * lens.iter().sum::<usize>() as u64;
    if size_bytes != expected.size_bytes || size_bytes != needed_bytes {
        let reason = format!("holds {size_bytes} bytes, expected {needed_bytes}");
        return Err(damaged(&path, &reason));
    }
    let file = File::open(&path).map_err(|error| damaged(&path, &error.to_string()))?;
    let mut reader = BufReader::with_capacity(BLOCK_BYTES, file);
    let mut hasher = Hasher::default();
    let arrays = lens
        .iter()
        .map(|&len| read_floats(&mut reader, len, &mut hasher).map_err(|error| damaged(&path, &error.to_string())))
        .collect::<Result<Vec<_>>>()?;
    if hasher.hex() != expected.sha256 {
        return Err(damaged(&path, "fails its checksum"));
    }
    Ok(arrays)
}

const BLOCK_BYTES: usize = 1 << 20;

fn read_floats(reader: &mut impl Read, len: usize, hasher: &mut Hasher) -> std::io::Result<Vec<f32>> {
    let mut values = Vec::with_capacity(len);
    let mut block = vec![0u8; BLOCK_BYTES.min(4 * len)];
    while values.len() < len {
        let n_bytes = block.len().min(4 * (len - values.len()));
        reader.read_exact(&mut block[..n_bytes])?;
        hasher.update(&block[..n_bytes]);
        values.extend(
            block[..n_bytes].chunks_exact(4).map(|word| f32::from_le_bytes([word[0], word[1], word[2], word[3]])),
        );
    }
    Ok(values)
}

fn write_array(path: &Path, parts: &[&[f32]]) -> Result<FileEntry> {
    let mut hasher = Hasher::default();
    let mut size_bytes = 0u64;
    atomic::write_with(path, |out| {
        let mut block = Vec::with_capacity(BLOCK_BYTES);
        for values in parts.iter().flat_map(|part| part.chunks(BLOCK_BYTES / 4)) {
            block.clear();
            block.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            hasher.update(&block);
            size_bytes += block.len() as u64;
            out.write_all(&block).map_err(aloe_record::Error::io("write", path))?;
        }
        Ok::<(), aloe_record::Error>(())
    })?;
    Ok(FileEntry { size_bytes, sha256: hasher.hex() })
}

fn to_json<T: Serialize>(value: &T, path: &Path) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|error| aloe_record::Error::Json { path: path.to_path_buf(), reason: error.to_string() }.into())
}

fn damaged(path: &Path, reason: &str) -> Error {
    Error::State { path: path.to_path_buf(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aloe_record::CounterRng;

    const WEIGHTS: [f32; 5] = [1.0, -2.5, 3.0e-39, f32::MAX, 0.1];
    const MOMENT: [f32; 5] = [0.5; 5];

    fn cursor(step: u64) -> Cursor {
        Cursor { fingerprint: "f".into(), step, n_tokens: 10 * step, n_targets: step, ..Cursor::default() }
    }

    fn save_step(state: &Path, step: u64) {
        let arrays = [("weights", vec![&WEIGHTS[..2], &WEIGHTS[2..]]), ("moment1", vec![&MOMENT[..]])];
        let logs = Logs { metrics: b"{\"step\":1}\n", samples: b"{\"text\":2}\n" };
        save(state, &cursor(step), &arrays, logs, 2).unwrap();
    }

    fn load_all(state: &Path) -> (Option<Loaded>, Vec<String>) {
        let (loaded, damaged) = load_newest(state, "f", &[("weights", vec![2, 3]), ("moment1", vec![5])]).unwrap();
        (loaded, damaged.into_iter().map(|one| one.notice).collect())
    }

    #[test]
    fn a_checkpoint_reads_back_bit_for_bit_and_only_the_last_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        for step in [2, 4, 6] {
            save_step(dir.path(), step);
        }
        let (loaded, notices) = load_all(dir.path());
        let loaded = loaded.unwrap();
        assert_eq!(loaded.cursor, cursor(6));
        assert_eq!(loaded.arrays[0], [WEIGHTS[..2].to_vec(), WEIGHTS[2..].to_vec()]);
        assert_eq!(loaded.metrics, b"{\"step\":1}\n");
        assert_eq!(loaded.samples, b"{\"text\":2}\n");
        assert!(notices.is_empty());
        assert_eq!(checkpoints(dir.path()).unwrap().len(), 2);
    }

    #[test]
    fn every_flipped_bit_every_truncation_and_every_missing_file_falls_back_to_the_older_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        save_step(dir.path(), 2);
        save_step(dir.path(), 4);
        let newest = dir.path().join("step-0000000004");
        let mut rng = CounterRng::new(1, "test", 0);
        for name in ["weights.f32", "moment1.f32", CURSOR, METRICS, SAMPLES, MANIFEST] {
            let path = newest.join(name);
            let whole = fs::read(&path).unwrap();
            for _ in 0..40 {
                let mut bytes = whole.clone();
                let at = rng.below(bytes.len());
                bytes[at] ^= 1 << rng.below(8);
                fs::write(&path, &bytes).unwrap();
                check_falls_back(dir.path(), name);
            }
            for len in [0, 1, whole.len() - 1] {
                fs::write(&path, &whole[..len]).unwrap();
                check_falls_back(dir.path(), name);
            }
            fs::remove_file(&path).unwrap();
            check_falls_back(dir.path(), name);
            fs::write(&path, &whole).unwrap();
        }
        assert_eq!(load_all(dir.path()).0.unwrap().cursor.step, 4);
    }

    fn check_falls_back(state: &Path, name: &str) {
        let (loaded, notices) = load_all(state);
        assert_eq!(loaded.unwrap().cursor.step, 2, "{name}");
        assert_eq!(notices.len(), 1);
        assert!(notices[0].contains("step-0000000004"), "{notices:?}");
    }

    /// Two of three checkpoints may be kept, and the newest of both is damaged: what comes next must find the older one behind it, and not
    /// be removed for the damaged one's sake, whose step is higher than its own.
    #[test]
    fn a_damaged_checkpoint_set_aside_counts_for_none_that_is_kept_and_goes_with_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        save_step(dir.path(), 40);
        save_step(dir.path(), 90);
        fs::write(dir.path().join("step-0000000090/weights.f32"), [0; 20]).unwrap();
        let layout = [("weights", vec![2, 3]), ("moment1", vec![5])];
        let set = || {
            let (loaded, damaged) = load_newest(dir.path(), "f", &layout).unwrap();
            set_aside(&damaged).unwrap();
            (loaded.map(|loaded| loaded.cursor.step), damaged.len())
        };
        let names = || {
            let mut names: Vec<String> = fs::read_dir(dir.path())
                .unwrap()
                .flatten()
                .map(|entry| entry.file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        assert_eq!(set(), (Some(40), 1));
        assert_eq!(names(), ["damaged-0000000090", "step-0000000040"]);
        // Damaged a second time before anything was saved: the first one set aside makes room.
        fs::create_dir(dir.path().join("step-0000000090")).unwrap();
        assert_eq!(set(), (Some(40), 1));
        save_step(dir.path(), 50);
        assert_eq!(names(), ["step-0000000040", "step-0000000050"]);
        save_step(dir.path(), 90);
        assert_eq!(names(), ["step-0000000050", "step-0000000090"]);
        assert!(has(dir.path(), 90) && !has(dir.path(), 40));
    }

    #[test]
    fn a_checkpoint_that_cannot_be_written_leaves_nothing_and_the_older_one_whole() {
        let dir = tempfile::tempdir().unwrap();
        save_step(dir.path(), 2);
        // The second file would lie in a folder of the first one's name.
        let arrays = [("weights", vec![&WEIGHTS[..]]), ("weights.f32/moment1", vec![&MOMENT[..]])];
        assert!(save(dir.path(), &cursor(4), &arrays, Logs::default(), 1).is_err());
        let names: Vec<String> =
            fs::read_dir(dir.path()).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap()).collect();
        assert_eq!(names, ["step-0000000002"]);
        assert_eq!(load_all(dir.path()).0.unwrap().cursor.step, 2);
    }

    #[test]
    fn a_state_of_other_settings_is_refused_and_a_half_written_one_ignored() {
        let dir = tempfile::tempdir().unwrap();
        save_step(dir.path(), 2);
        fs::create_dir(dir.path().join(".step-0000000004.partial")).unwrap();
        assert_eq!(load_all(dir.path()).0.unwrap().cursor.step, 2);
        let other = load_newest(dir.path(), "g", &[("weights", vec![2, 3]), ("moment1", vec![5])]);
        assert!(matches!(other, Err(Error::OtherRun { .. })));
    }

    #[test]
    fn best_weights_stay_as_long_as_a_kept_checkpoint_names_them_and_damaged_ones_make_it_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path();
        let save_with_best = |step: u64, best: u64| {
            let weights = [("weights", vec![&WEIGHTS[..2], &WEIGHTS[2..]])];
            if !state.join(best_name(best)).exists() {
                save_best(state, best, &weights).unwrap();
            }
            let held_out = HeldOut { best: Some((best, 0)), is_kept: true, ..HeldOut::default() };
            let arrays = [("weights", vec![&WEIGHTS[..2], &WEIGHTS[2..]]), ("moment1", vec![&MOMENT[..]])];
            save(state, &Cursor { held_out, ..cursor(step) }, &arrays, Logs::default(), 2).unwrap();
        };
        let best = || folders(state, "best-").unwrap().iter().map(|path| path.ends_with("best-0000000001")).collect();
        for (step, best) in [(2, 1), (4, 3), (6, 3)] {
            save_with_best(step, best);
        }
        assert_eq!((checkpoints(state).unwrap().len(), best()), (2, vec![false]));
        save_with_best(8, 7);
        let weights = ("weights", vec![2, 3]);
        assert_eq!(load_best(state, 7, &weights).unwrap().concat(), WEIGHTS);
        let path = state.join("best-0000000007/weights.f32");
        let mut bytes = fs::read(&path).unwrap();
        bytes[7] ^= 4;
        fs::write(&path, bytes).unwrap();
        let (loaded, notices) = load_all(state);
        assert_eq!((loaded.unwrap().cursor.step, notices.len()), (6, 1));
        assert!(notices[0].contains("best-0000000007") && notices[0].contains("checksum"), "{notices:?}");
    }
}
