//! Digests of files that this process has hashed while it read or wrote them: nobody reads them once more to know who they are. They
//! are known while inode, size and time of the last write stay: a stage moves its files when it is done, which changes the rest of their
//! [`Stamp`].

use crate::digest;
use crate::stamp::{Renamed, Stamp};
use crate::{Error, Result};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

/// Remembers the SHA-256 of the whole file, which is written no more: [`digest_of`] knows it from now on.
pub fn remember(path: &Path, sha256: String) -> Result<()> {
    let stamp = Stamp::settled(path).map_err(Error::io("read", path))?;
    known().insert(stamp.renamed(), sha256);
    Ok(())
}

/// The digest of the file that has this stamp, if it is known.
pub fn remembered(stamp: &Stamp) -> Option<String> {
    known().get(&stamp.renamed()).cloned()
}

/// [`digest::file`], from what was hashed before where the file is still the same.
pub fn digest_of(path: &Path) -> Result<String> {
    let now = Stamp::of(path).map_err(Error::io("read", path))?;
    match remembered(&now) {
        Some(sha256) => Ok(sha256),
        None => digest::file(path),
    }
}

/// What this process has hashed.
fn known() -> MutexGuard<'static, HashMap<Renamed, String>> {
    static KNOWN: LazyLock<Mutex<HashMap<Renamed, String>>> = LazyLock::new(Mutex::default);
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt as _;

    /// Told a wrong digest, it believes it: so it did not read.
    #[test]
    fn a_file_is_known_under_another_name_and_read_again_once_a_byte_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weights");
        std::fs::write(&path, "four").unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        assert_eq!(digest_of(&path).unwrap(), digest::bytes(b"four"));
        remember(&path, "f".repeat(64)).unwrap();
        let renamed = dir.path().join("renamed");
        std::fs::rename(&path, &renamed).unwrap();
        assert_eq!(digest_of(&renamed).unwrap(), "f".repeat(64));
        file.write_all_at(b"x", 3).unwrap();
        assert_eq!(digest_of(&renamed).unwrap(), digest::bytes(b"foux"));
    }
}
