//! Digests of large files that were hashed before, kept between processes in `known-files.log` of the cache folder: a merge of three
//! 16-GB models, or an evaluation of one, begins at once the second time.
//!
//! A file is known by its [`Stamp`]. For inputs alone that no record vouches for, whose digest is a name and not a check: what a stage wrote is hashed
//! again whenever it is used, so that bytes which a disk lost are noticed.

use aloe_record::shared_log::SharedLog;
use aloe_record::stamp::Stamp;
use aloe_record::{digest, hashed};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Smaller files are hashed in less than a tenth of a second.
const SMALLEST_BYTES: u64 = 64 << 20;

/// A file that was changed more lately is hashed and not kept: some file systems tell times to two seconds, and a change within one would not
/// show.
const SETTLED: Duration = Duration::from_secs(3);

/// A line of the log.
#[derive(Serialize, Deserialize)]
struct Entry {
    #[serde(flatten)]
    stamp: Stamp,
    sha256: String,
}

/// [`digest::file`] or [`digest::folder`] of an input, large files not read again while they are known. `store` is the log; without
/// one, or where it cannot be used, everything is read.
pub(crate) fn digest(path: &Path, store: Option<&Path>) -> aloe_record::Result<String> {
    digest_settled(path, store, SETTLED)
}

fn digest_settled(path: &Path, store: Option<&Path>, settled: Duration) -> aloe_record::Result<String> {
    let known = entries(store);
    let of_file = |path: &Path| one(path, store, &known, settled);
    match path.is_dir() {
        true => digest::folder_by(path, &of_file),
        false => of_file(path),
    }
}

/// What the log holds; nothing where it cannot be used.
fn entries(store: Option<&Path>) -> Vec<Entry> {
    let mut entries = Vec::new();
    if let Some(mut log) = store.and_then(|store| SharedLog::open(store).ok()) {
        let _ = log.read_new(|_, json| entries.extend(serde_json::from_slice::<Entry>(json)));
    }
    entries
}

/// The stamp of a file that is large, and old enough to be known by it.
fn stamp(path: &Path, settled: Duration) -> Option<Stamp> {
    Stamp::of(path).ok().filter(|now| now.n_bytes() >= SMALLEST_BYTES && !now.changed_within(settled))
}

fn one(path: &Path, store: Option<&Path>, known: &[Entry], settled: Duration) -> aloe_record::Result<String> {
    let Some(before) = stamp(path, settled) else { return digest::file(path) };
    if let Some(entry) = known.iter().rev().find(|entry| entry.stamp == before) {
        return Ok(entry.sha256.clone());
    }
    let sha256 = match hashed::remembered(&before) {
        Some(sha256) => sha256,
        None => digest::file(path)?,
    };
    let is_unchanged = Stamp::of(path).is_ok_and(|after| after == before);
    if let Some(store) = store.filter(|_| is_unchanged) {
        let entry = Entry { stamp: before, sha256: sha256.clone() };
        // A log that cannot be written costs time, not truth.
        let line = serde_json::to_string(&entry).map_err(|error| error.to_string());
        let _ = line.map(|line| SharedLog::open(store).and_then(|mut log| log.append(&[line])));
    }
    Ok(sha256)
}

/// The files of an input, by device and inode, that [`digest()`] would read and that pay being hashed by who reads them anyway.
pub(crate) fn unread(path: &Path, store: Option<&Path>) -> BTreeSet<(u64, u64)> {
    unread_settled(path, store, SETTLED)
}

fn unread_settled(path: &Path, store: Option<&Path>, settled: Duration) -> BTreeSet<(u64, u64)> {
    let known = entries(store);
    let mut found = BTreeSet::new();
    let mut open = vec![path.to_path_buf()];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(std::fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        } else if let Some(now) = stamp(&path, settled)
            && hashed::remembered(&now).is_none()
            && known.iter().all(|entry| entry.stamp != now)
        {
            found.insert(now.inode());
        }
    }
    found
}

/// Where the log is: in the cache folder.
pub(crate) fn store() -> Option<PathBuf> {
    crate::sources::cache_root().ok().map(|root| root.join("known-files.log"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{File, FileTimes};
    use std::io::{Seek as _, Write as _};

    const TICK: Duration = Duration::from_millis(20);

    /// A sparse file that begins with `text`, changed longer ago than a tick.
    fn large(path: &Path, text: &str) -> File {
        let mut file = File::create(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.set_len(SMALLEST_BYTES).unwrap();
        std::thread::sleep(2 * TICK);
        file
    }

    #[test]
    fn a_known_file_is_not_read_again_and_a_changed_one_is() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, store) = (dir.path().join("model"), dir.path().join("known.log"));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("config.json"), "{}").unwrap();
        let path = folder.join("model.safetensors");
        let mut file = large(&path, "one");
        let first = digest_settled(&folder, Some(&store), TICK).unwrap();
        assert_eq!(first, digest::folder(&folder).unwrap());

        // Told another digest of that very stamp, it believes it: so it did not read.
        let forged = Entry { stamp: Stamp::of(&path).unwrap(), sha256: "f".repeat(64) };
        SharedLog::open(&store).unwrap().append(&[serde_json::to_string(&forged).unwrap()]).unwrap();
        assert_eq!(digest_settled(&path, Some(&store), TICK).unwrap(), "f".repeat(64));

        // Other bytes of the same length, the time of writing set back: the time of change tells.
        let written = path.metadata().unwrap().modified().unwrap();
        file.rewind().unwrap();
        file.write_all(b"two").unwrap();
        file.set_times(FileTimes::new().set_modified(written)).unwrap();
        std::thread::sleep(2 * TICK);
        let second = digest_settled(&folder, Some(&store), TICK).unwrap();
        assert_eq!(second, digest::folder(&folder).unwrap());
        assert_ne!(second, first);
    }

    /// A file that somebody hashed while it was read is not read again, and is known to other processes from then on.
    #[test]
    fn what_a_stage_hashed_while_it_read_it_is_not_read_again_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (path, store) = (dir.path().join("weights"), dir.path().join("known.log"));
        large(&path, "one");
        hashed::remember(&path, "f".repeat(64)).unwrap();
        assert_eq!(digest_settled(&path, Some(&store), TICK).unwrap(), "f".repeat(64));
        let kept = entries(Some(&store));
        assert_eq!((kept.len(), kept[0].sha256.as_str()), (1, "f".repeat(64).as_str()));
        assert_eq!(kept[0].stamp, Stamp::of(&path).unwrap());
    }

    #[test]
    fn files_that_nobody_knows_yet_are_named_by_inode_and_small_new_and_known_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, store) = (dir.path().join("model"), dir.path().join("known.log"));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("config.json"), "{}").unwrap();
        let path = folder.join("model.safetensors");
        large(&path, "one");
        let unread = |settled| unread_settled(&folder, Some(&store), settled);
        assert_eq!(unread(TICK), BTreeSet::from([Stamp::of(&path).unwrap().inode()]));
        assert!(unread(SETTLED).is_empty(), "a file of just now may change without a sign");
        digest_settled(&folder, Some(&store), TICK).unwrap();
        assert!(unread(TICK).is_empty());
    }

    #[test]
    fn a_file_of_just_now_is_hashed_and_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (path, store) = (dir.path().join("weights"), dir.path().join("known.log"));
        large(&path, "one");
        assert_eq!(digest(&path, Some(&store)).unwrap(), digest::file(&path).unwrap());
        assert_eq!(store.metadata().map_or(0, |metadata| metadata.len()), 0, "it may change within the second");
    }

    #[test]
    fn a_store_that_cannot_be_used_costs_no_digest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weights");
        large(&path, "one");
        let expected = digest::file(&path).unwrap();
        for store in [None, Some(dir.path().join("weights/below-a-file.log")), Some(dir.path().to_path_buf())] {
            assert_eq!(digest_settled(&path, store.as_deref(), TICK).unwrap(), expected, "{store:?}");
        }
        let torn = dir.path().join("torn.log");
        std::fs::write(&torn, "00000000 {\"device\": 1").unwrap();
        assert_eq!(digest_settled(&path, Some(&torn), TICK).unwrap(), expected);
    }
}
