//! SHA-256 of a file that is being written: a thread reads behind the writers, from memory, so that nothing is left to hash when the last
//! byte stands. What was hashed so is remembered for this process while size and time of the last write stay: a stage moves its files
//! when it is done, which changes the rest of their [`Stamp`].

use crate::digest::{self, Hasher};
use crate::stamp::{Renamed, Stamp};
use crate::{Error, Result};
use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Bytes read at once.
const PIECE: usize = 1 << 18;

/// A file that is hashed while it is written.
pub struct Following {
    path: PathBuf,
    /// None once [`Self::finish`] has taken them.
    running: Option<(Sender<u64>, JoinHandle<Result<String>>)>,
    abandoned: Arc<AtomicBool>,
}

impl Following {
    /// Starts to follow a file that exists.
    pub fn start(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        let (ends, received) = channel();
        let abandoned = Arc::new(AtomicBool::new(false));
        let (own, is_abandoned) = (path.to_path_buf(), abandoned.clone());
        let thread = std::thread::Builder::new().name("digest".into());
        let thread = thread.spawn(move || follow(file, &own, &received, &is_abandoned));
        let thread = thread.map_err(Error::io("start a thread for", path))?;
        Ok(Self { path: path.to_path_buf(), running: Some((ends, thread)), abandoned })
    }

    /// Tells that all bytes before `end` are written for good; `end` never falls.
    pub fn written_to(&self, end: u64) {
        if let Some((ends, _)) = &self.running {
            // A thread that ended has an error to tell, in `finish`.
            let _ = ends.send(end);
        }
    }

    /// The digest of the whole file, which nobody writes any more; [`digest_of`] knows it from now on.
    pub fn finish(mut self) -> Result<String> {
        let stamp = Stamp::settled(&self.path).map_err(Error::io("read", &self.path))?;
        self.written_to(stamp.n_bytes());
        let Some((ends, thread)) = self.running.take() else { return digest::file(&self.path) };
        drop(ends);
        let sha256 = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        if Stamp::of(&self.path).is_ok_and(|now| now == stamp) {
            known().insert(stamp.renamed(), sha256.clone());
        }
        Ok(sha256)
    }
}

impl Drop for Following {
    /// A file that is given up is not read any further.
    fn drop(&mut self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }
}

fn follow(mut file: File, path: &Path, ends: &Receiver<u64>, abandoned: &AtomicBool) -> Result<String> {
    let mut hasher = Hasher::default();
    let mut piece = vec![0u8; PIECE];
    let mut at = 0u64;
    while let Ok(end) = ends.recv() {
        while at < end && !abandoned.load(Ordering::Relaxed) {
            let n = usize::try_from(end - at).map_or(PIECE, |left| left.min(PIECE));
            file.read_exact(&mut piece[..n]).map_err(Error::io("read", path))?;
            hasher.update(&piece[..n]);
            at += n as u64;
        }
    }
    Ok(hasher.hex())
}

/// [`digest::file`], from what was hashed while it was written where the file is still the same.
pub fn digest_of(path: &Path) -> Result<String> {
    let now = Stamp::of(path).map_err(Error::io("read", path))?;
    if let Some(sha256) = known().get(&now.renamed()) {
        return Ok(sha256.clone());
    }
    digest::file(path)
}

/// What this process has hashed while it was written.
fn known() -> MutexGuard<'static, HashMap<Renamed, String>> {
    static KNOWN: LazyLock<Mutex<HashMap<Renamed, String>>> = LazyLock::new(Mutex::default);
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt as _;

    #[test]
    fn a_followed_file_has_the_digest_of_its_bytes_and_a_changed_one_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weights");
        let file = File::create(&path).unwrap();
        let bytes: Vec<u8> = (0..3 * PIECE + 77).map(|at| (at * 7 % 251) as u8).collect();
        file.set_len(bytes.len() as u64).unwrap();
        let following = Following::start(&path).unwrap();
        // The later half first: it is not final for the thread before all is.
        let (first, second) = bytes.split_at(PIECE + 5);
        file.write_all_at(second, first.len() as u64).unwrap();
        file.write_all_at(first, 0).unwrap();
        following.written_to(first.len() as u64);
        let sha256 = following.finish().unwrap();
        assert_eq!(sha256, digest::bytes(&bytes));
        assert_eq!(digest_of(&path).unwrap(), sha256);
        // Known under another name (told a wrong digest, it believes it: so it did not read), and no longer once a byte changed.
        let renamed = dir.path().join("renamed");
        std::fs::rename(&path, &renamed).unwrap();
        assert_eq!(digest_of(&renamed).unwrap(), sha256);
        known().insert(Stamp::of(&renamed).unwrap().renamed(), "f".repeat(64));
        assert_eq!(digest_of(&renamed).unwrap(), "f".repeat(64));
        file.write_all_at(b"x", 3).unwrap();
        assert_eq!(digest_of(&renamed).unwrap(), digest::file(&renamed).unwrap());
    }

    #[test]
    fn a_file_cut_short_while_it_is_followed_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weights");
        let file = File::create(&path).unwrap();
        let following = Following::start(&path).unwrap();
        following.written_to(10);
        drop(file);
        assert!(following.finish().is_err());
    }
}
