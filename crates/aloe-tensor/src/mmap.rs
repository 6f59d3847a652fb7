//! A file mapped read-only, so that weights are paged in and not copied.
//!
//! It refuses nothing but unreadable files; an empty file is an empty slice. Whoever changes a mapped file while we read it
//! changes our weights under us: outputs are therefore always written beside their target and renamed (`aloe_record::atomic`).

use crate::Error;
use memmap2::UncheckedAdvice;
use std::fs::File;
use std::ops::{Deref, Range};
use std::path::Path;

/// The bytes of a file, mapped.
#[derive(Debug)]
pub struct Mmap {
    map: Option<memmap2::Mmap>,
}

impl Mmap {
    /// Maps the file at `path`.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let fail = |source| Error::Map { path: path.to_path_buf(), source };
        let file = File::open(path).map_err(fail)?;
        if file.metadata().map_err(fail)?.len() == 0 {
            return Ok(Self { map: None });
        }
        // SAFETY: the map is read-only and private to us; a file shortened by another process while mapped would fault,
        // which writers in this workspace never do: they write beside the target and rename.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(fail)?;
        Ok(Self { map: Some(map) })
    }

    /// Gives back the pages that hold `range`: they no longer count as this process's memory, and are read anew when wanted. Only
    /// a hint: where the system refuses it, nothing changes.
    pub fn release(&self, range: Range<usize>) {
        if let Some(map) = &self.map {
            // SAFETY: the map is of a file, read-only: a dropped page is read again from the file with the same bytes.
            let _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len()) };
        }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }
}

impl Deref for Mmap {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_shows_the_bytes_of_the_file_and_an_empty_file_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, b"weights").unwrap();
        assert_eq!(&Mmap::open(&path).unwrap()[..], b"weights");
        std::fs::write(&path, b"").unwrap();
        assert!(Mmap::open(&path).unwrap().is_empty());
    }

    #[test]
    fn released_pages_are_read_again_from_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let bytes: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let map = Mmap::open(&path).unwrap();
        assert!(map[..] == bytes);
        map.release(5_000..90_001);
        assert!(map[..] == bytes);
    }

    #[test]
    fn a_missing_file_is_named_in_the_error() {
        let message = Mmap::open(Path::new("/nowhere/w.safetensors")).unwrap_err().to_string();
        assert!(message.contains("/nowhere/w.safetensors"), "{message}");
    }
}
