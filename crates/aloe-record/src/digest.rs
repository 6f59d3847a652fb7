//! SHA-256 of bytes, files and folders: the identity of weights, inputs and outputs.

use crate::{Error, Result};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

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
    let mut block = vec![0u8; 1 << 20];
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
    let mut files = Vec::new();
    collect(path, &mut files)?;
    files.sort();
    let mut hasher = Hasher::default();
    for found in files {
        let name = found.strip_prefix(path).unwrap_or(&found).to_string_lossy().into_owned();
        hasher.field(name.as_bytes());
        hasher.field(file(&found)?.as_bytes());
    }
    Ok(hasher.hex())
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
