//! Files and folders that are either whole or absent: written beside their target, synced, renamed.
//!
//! Every writer of the workspace goes through here, so that a full disk or a kill at any moment leaves the old file valid.

use crate::{Error, Result};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Writes `path` through `fill`: a temporary sibling, flush, fsync, rename, fsync of the folder. On any failure the
/// sibling is removed and an older `path` is untouched.
pub fn write_with<E: From<Error>>(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let partial = sibling(path);
    let done = write_partial(&partial, fill).and_then(|()| rename(&partial, path).map_err(E::from));
    if done.is_err() {
        let _ = fs::remove_file(&partial);
    }
    done
}

/// Writes `bytes` to `path` atomically.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_with(path, |out| out.write_all(bytes).map_err(Error::io("write", path)))
}

/// Writes `value` as indented JSON with a final newline, atomically.
pub fn write_json<T: serde::Serialize>(path: &Path, value: &T) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|error| Error::Json { path: path.to_path_buf(), reason: error.to_string() })?;
    text.push('\n');
    write(path, text.as_bytes())
}

/// Reads a JSON file into `T`; the error names the file, line and column.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
    serde_json::from_str(&text).map_err(|error| Error::Json { path: path.to_path_buf(), reason: error.to_string() })
}

/// The absolute path without links, as far as it exists: where a file that is yet to be written would stand.
pub fn real(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    for above in path.ancestors() {
        if let (Ok(found), Ok(rest)) = (above.canonicalize(), path.strip_prefix(above)) {
            // Joining nothing would add a slash.
            return if rest.as_os_str().is_empty() { found } else { found.join(rest) };
        }
    }
    path
}

/// A folder that appears under its name only when [`OutputDir::commit`] is called.
///
/// Work goes into `.NAME.partial` beside the target. Dropping without a commit leaves the partial folder, so that a
/// stage can resume from it; [`OutputDir::fresh`] starts over, [`OutputDir::resume`] takes what is there.
pub struct OutputDir {
    target: PathBuf,
    partial: PathBuf,
}

impl OutputDir {
    /// Starts an empty partial folder; an older partial one is removed.
    pub fn fresh(target: &Path) -> Result<Self> {
        let partial = sibling(target);
        if partial.exists() {
            fs::remove_dir_all(&partial).map_err(Error::io("remove", &partial))?;
        }
        Self::resume(target)
    }

    /// Opens the partial folder of an interrupted run, or an empty one.
    pub fn resume(target: &Path) -> Result<Self> {
        let partial = sibling(target);
        fs::create_dir_all(&partial).map_err(Error::io("create", &partial))?;
        Ok(Self { target: target.to_path_buf(), partial })
    }

    /// Removes the partial folder of an interrupted run, where there is one.
    pub fn discard(target: &Path) -> Result<()> {
        let partial = sibling(target);
        match fs::remove_dir_all(&partial) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", &partial)(error)),
            _ => Ok(()),
        }
    }

    /// Ends a [`OutputDir::commit`] that was cut off: puts back an older target that stands under its other name, or removes
    /// it where the new one is already in its place.
    pub fn recover(target: &Path) -> Result<()> {
        let old = old_name(target);
        match (target.exists(), old.exists()) {
            (false, true) => rename(&old, target),
            (true, true) => fs::remove_dir_all(&old).map_err(Error::io("remove", &old)),
            (_, false) => Ok(()),
        }
    }

    /// Where to write until the commit.
    pub fn path(&self) -> &Path {
        &self.partial
    }

    /// Replaces the target folder by the partial one. An older target is removed only after the new one is complete.
    pub fn commit(self) -> Result<()> {
        sync_tree(&self.partial)?;
        if self.target.exists() {
            let old = old_name(&self.target);
            if old.exists() {
                fs::remove_dir_all(&old).map_err(Error::io("remove", &old))?;
            }
            fs::rename(&self.target, &old).map_err(Error::io("rename", &self.target))?;
            if let Err(error) = fs::rename(&self.partial, &self.target) {
                // Put the older one back; where even that fails, `recover` does it at the next run.
                let _ = fs::rename(&old, &self.target);
                return Err(Error::io("rename", &self.partial)(error));
            }
            sync_parent(&self.target)?;
            fs::remove_dir_all(&old).map_err(Error::io("remove", &old))
        } else {
            rename(&self.partial, &self.target)
        }
    }
}

/// Removes a folder so that no kill or fault leaves half of it under its name: it is first renamed to `.NAME.old`. What an
/// earlier attempt left under that name goes too.
pub fn remove_folder(path: &Path) -> Result<()> {
    let old = old_name(path);
    if old.exists() {
        fs::remove_dir_all(&old).map_err(Error::io("remove", &old))?;
    }
    if !path.exists() {
        return Ok(());
    }
    rename(path, &old)?;
    fs::remove_dir_all(&old).map_err(Error::io("remove", path))
}

/// The temporary name of `path`: `.NAME.partial` in the same folder.
pub fn sibling(path: &Path) -> PathBuf {
    path.with_file_name(format!(".{}.partial", file_name(path)))
}

/// The name that a partial folder will have, or any other path itself: what a message tells a user.
pub fn target(path: &Path) -> PathBuf {
    let name = file_name(path);
    match name.strip_prefix('.').and_then(|name| name.strip_suffix(".partial")) {
        Some(name) => path.with_file_name(name),
        None => path.to_path_buf(),
    }
}

fn old_name(target: &Path) -> PathBuf {
    target.with_file_name(format!(".{}.old", file_name(target)))
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(|| "out".into(), |name| name.to_string_lossy().into_owned())
}

fn write_partial<E: From<Error>>(
    partial: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    if let Some(parent) = partial.parent() {
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    let file = File::create(partial).map_err(Error::io("create", partial))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    fill(&mut out)?;
    let file = out.into_inner().map_err(|error| Error::io("write", partial)(error.into_error()))?;
    file.sync_all().map_err(Error::io("sync", partial))?;
    Ok(())
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(Error::io("rename", from))?;
    sync_parent(to)
}

fn sync_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_folder(parent),
        _ => sync_folder(Path::new(".")),
    }
}

fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|handle| handle.sync_all()).map_err(Error::io("sync", folder))
}

fn sync_tree(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let path = entry.map_err(Error::io("list", folder))?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            File::open(&path).and_then(|file| file.sync_all()).map_err(Error::io("sync", &path))?;
        }
    }
    sync_folder(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_keeps_the_old_file_and_leaves_no_partial_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        write(&path, b"old").unwrap();
        let failed = write_with(&path, |out| {
            out.write_all(b"half").unwrap();
            Err(Error::Cancelled)
        });
        assert!(failed.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_kill_between_the_two_renames_of_a_commit_loses_neither_folder() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("stage");
        fs::create_dir(&target).unwrap();
        write(&target.join("old"), b"x").unwrap();
        let out = OutputDir::fresh(&target).unwrap();
        write(&out.path().join("new"), b"x").unwrap();
        fs::rename(&target, old_name(&target)).unwrap();
        OutputDir::recover(&target).unwrap();
        assert!(target.join("old").exists());
        OutputDir::resume(&target).unwrap().commit().unwrap();
        assert!(target.join("new").exists() && !old_name(&target).exists());
    }

    #[test]
    fn a_commit_whose_last_step_failed_is_ended_by_the_next_run() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("stage");
        for folder in [&target, &old_name(&target)] {
            fs::create_dir(folder).unwrap();
            write(&folder.join("a"), folder.to_string_lossy().as_bytes()).unwrap();
        }
        OutputDir::recover(&target).unwrap();
        assert_eq!(fs::read(target.join("a")).unwrap(), target.to_string_lossy().as_bytes());
        assert!(!old_name(&target).exists());
    }

    #[test]
    fn a_folder_is_renamed_before_it_is_removed_and_what_an_earlier_attempt_left_goes_too() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("state");
        fs::create_dir_all(folder.join("inner")).unwrap();
        fs::create_dir(old_name(&folder)).unwrap();
        remove_folder(&folder).unwrap();
        remove_folder(&folder).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        // Where the other name cannot be taken, the folder stays whole under its own.
        fs::create_dir_all(folder.join("inner")).unwrap();
        fs::write(old_name(&folder), b"a file in the way").unwrap();
        assert!(remove_folder(&folder).is_err() && folder.join("inner").exists());
    }

    #[test]
    fn a_limit_on_file_size_and_a_full_disk_are_storage_and_a_missing_file_is_not() {
        use std::io::ErrorKind::{FileTooLarge, NotFound, StorageFull};
        let error = |kind: std::io::ErrorKind| Error::io("write", Path::new("a"))(kind.into());
        assert!(error(FileTooLarge).is_storage() && error(StorageFull).is_storage() && !error(NotFound).is_storage());
        assert!(crate::is_storage(&std::io::Error::from_raw_os_error(5)));
    }

    #[test]
    fn an_output_folder_is_invisible_until_commit_and_replaces_the_old_one_whole() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("stage");
        for round in ["one", "two"] {
            let out = OutputDir::fresh(&target).unwrap();
            write(&out.path().join(round), b"x").unwrap();
            assert!(!target.join(round).exists());
            out.commit().unwrap();
            assert!(target.join(round).exists());
        }
        assert!(!target.join("one").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
