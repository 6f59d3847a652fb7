//! SHA-256 of bytes, files and folders: the identity of weights, inputs and outputs.

use crate::{Error, Result};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// A running SHA-256.
#[derive(Clone, Default)]
pub struct Hasher(Sha256);

impl Hasher {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Adds a field with its length before it, so that ("ab", "c") and ("a", "bc") differ.
    pub fn field(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    /// The digest as 64 lower-case hexadecimal digits.
    pub fn hex(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// SHA-256 of `bytes` in hexadecimal.
pub fn bytes(bytes: &[u8]) -> String {
    let mut hasher = Hasher::default();
    hasher.update(bytes);
    hasher.hex()
}

/// SHA-256 of a file's content in hexadecimal.
pub fn file(path: &Path) -> Result<String> {
    let mut source = File::open(path).map_err(Error::io("open", path))?;
    let mut hasher = Hasher::default();
    // Half of a second-level cache: what was read is hashed from there.
    let mut block = vec![0u8; 1 << 18];
    loop {
        let n_bytes = source.read(&mut block).map_err(Error::io("read", path))?;
        if n_bytes == 0 {
            return Ok(hasher.hex());
        }
        hasher.update(&block[..n_bytes]);
    }
}

/// Whether a file or folder of that name in a stage's folder holds clock times, so that no two runs write the same bytes: the record,
/// and what a training stage writes for people who watch it. Digests leave these out.
pub fn bears_time(name: &str) -> bool {
    matches!(name, "record.json" | "timing.jsonl" | "tensorboard")
}

/// Digest of a folder: every file's relative path and content digest, in sorted order. What bears times, and names that begin with a
/// dot are left out.
pub fn folder(path: &Path) -> Result<String> {
    folder_by(path, &file)
}

/// [`folder`] with the digests of its files as `of_file` gives them, which may remember them.
pub fn folder_by(path: &Path, of_file: &(dyn Fn(&Path) -> Result<String> + Sync)) -> Result<String> {
    let mut paths = Vec::new();
    collect(path, &mut paths)?;
    paths.sort();
    let mut hasher = Hasher::default();
    for (found, digest) in paths.iter().zip(files(&paths, of_file)?) {
        let name = found.strip_prefix(path).unwrap_or(found).to_string_lossy().into_owned();
        hasher.field(name.as_bytes());
        hasher.field(digest.as_bytes());
    }
    Ok(hasher.hex())
}

/// The digests of several files, in their order, one file a processor at a time: hashing, not reading, is what takes long once weights
/// lie in memory.
fn files(paths: &[PathBuf], of_file: &(dyn Fn(&Path) -> Result<String> + Sync)) -> Result<Vec<String>> {
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from).min(paths.len());
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut done = Vec::new();
        while let Some((at, path)) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, paths.get(at)?)))
        {
            done.push((at, of_file(path)));
        }
        done
    };
    let mut done: Vec<(usize, Result<String>)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (1..n_threads).map(|_| scope.spawn(worker)).collect();
        let mut done = worker();
        for one in workers {
            done.extend(one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        done
    });
    done.sort_unstable_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, digest)| digest).collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let path = entry.map_err(Error::io("list", folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with('.') || bears_time(&name) {
            continue;
        }
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sha256_agrees_with_the_fips_180_example() {
        assert_eq!(bytes(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    /// By hand from the digests of the files, more of them than processors: their order is that of the names.
    #[test]
    fn a_folder_digest_is_that_of_its_names_and_file_digests_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let mut expected = Hasher::default();
        for name in (0..40).map(|at| format!("file-{at:02}")) {
            std::fs::write(dir.path().join(&name), name.repeat(1000)).unwrap();
            expected.field(name.as_bytes());
            expected.field(bytes(name.repeat(1000).as_bytes()).as_bytes());
        }
        assert_eq!(folder(dir.path()).unwrap(), expected.hex());
    }

    #[test]
    fn a_folder_digest_sees_names_and_contents_but_not_what_bears_times() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), b"1").unwrap();
        let before = folder(dir.path()).unwrap();
        for name in ["record.json", "timing.jsonl", ".hidden"] {
            std::fs::write(dir.path().join(name), b"{}").unwrap();
        }
        std::fs::create_dir(dir.path().join("tensorboard")).unwrap();
        std::fs::write(dir.path().join("tensorboard/events"), b"1").unwrap();
        assert_eq!(folder(dir.path()).unwrap(), before);
        std::fs::rename(dir.path().join("a"), dir.path().join("b")).unwrap();
        assert_ne!(folder(dir.path()).unwrap(), before);
    }
}
