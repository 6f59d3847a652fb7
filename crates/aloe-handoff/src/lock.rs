//! The lock of a stage: whoever works on it holds it, so that no stage ever runs twice at once, whatever schedulers and clients believe.
//!
//! It is the system's lock on `state/NAME/lock`. It goes with its holder and with the processes that were given it
//! ([`StageLock::share`]), so that the orphans of a killed holder keep it too. A shared file system must be mounted with locks that hold
//! between machines (GPFS; Lustre with `flock`; NFS 4).

use crate::{Result, state};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// A held lock; dropping it lets go.
#[derive(Debug)]
pub struct StageLock {
    file: File,
}

fn path_of(run: &Path, stage: &str) -> PathBuf {
    state::folder(run, stage).join("lock")
}

impl StageLock {
    /// Takes the lock for `holder`, waiting for it as long as `patience` and `goes_on` say. The inner error names who holds it.
    pub fn take(
        run: &Path,
        stage: &str,
        holder: &str,
        patience: Duration,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<Result<Self, String>> {
        take_file(&path_of(run, stage), holder, patience, goes_on)
    }

    /// The lock of the clients of a run folder: one submits at a time.
    pub fn of_client(run: &Path) -> Result<Result<Self, String>> {
        let holder = format!("process {}", std::process::id());
        take_file(&run.join("state").join("client.lock"), &holder, Duration::from_secs(5), &|| true)
    }

    /// The same without waiting, for those who only look: `None` where somebody submits.
    pub fn of_client_now(run: &Path) -> Result<Option<Self>> {
        let holder = format!("process {}", std::process::id());
        let taken = take_file(&run.join("state").join("client.lock"), &holder, Duration::ZERO, &|| true)?;
        Ok(taken.ok())
    }

    /// The lock as a child's standard input: the child and its children hold it too for as long as they live.
    pub fn share(&self) -> Result<Stdio> {
        let copy = self.file.try_clone().map_err(aloe_record::Error::io("share", Path::new("the stage's lock")))?;
        Ok(Stdio::from(copy))
    }
}

fn take_file(
    path: &Path,
    holder: &str,
    patience: Duration,
    goes_on: &dyn Fn() -> bool,
) -> Result<Result<StageLock, String>> {
    let mut file = open(path)?;
    let started = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if started.elapsed() < patience && goes_on() => {
                std::thread::sleep(Duration::from_millis(100));
            }
            Err(TryLockError::WouldBlock) => {
                let mut held_by = String::new();
                let _ = file.read_to_string(&mut held_by);
                return Ok(Err(held_by.trim().to_owned()));
            }
            Err(TryLockError::Error(error)) => return Err(aloe_record::Error::io("lock", path)(error).into()),
        }
    }
    // For messages only: the lock is the system's.
    file.set_len(0).map_err(aloe_record::Error::io("truncate", path))?;
    file.write_all(holder.as_bytes()).map_err(aloe_record::Error::io("write", path))?;
    Ok(Ok(StageLock { file }))
}

fn open(path: &Path) -> Result<File> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(aloe_record::Error::io("create", parent))?;
    }
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    Ok(file.map_err(aloe_record::Error::io("open", path))?)
}

/// Whether somebody works on the stage now.
pub fn is_held(run: &Path, stage: &str) -> Result<bool> {
    let path = path_of(run, stage);
    if !path.exists() {
        return Ok(false);
    }
    match open(&path)?.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(aloe_record::Error::io("lock", &path)(error).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn take(run: &Path, who: &str) -> Result<StageLock, String> {
        StageLock::take(run, "sft", who, Duration::ZERO, &|| true).unwrap()
    }

    /// Between its fork and its exec, a process that another test starts holds every lock of this one.
    fn comes_free(run: &Path) -> bool {
        let started = Instant::now();
        while is_held(run, "sft").unwrap() && started.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(5));
        }
        !is_held(run, "sft").unwrap()
    }

    #[test]
    fn of_two_that_take_a_stage_one_gets_it_and_the_other_hears_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_held(dir.path(), "sft").unwrap());
        let held = take(dir.path(), "job 1 on n1").unwrap();
        assert!(is_held(dir.path(), "sft").unwrap());
        assert_eq!(take(dir.path(), "job 2").unwrap_err(), "job 1 on n1");
        drop(held);
        assert!(comes_free(dir.path()));
        let patience = Duration::from_secs(10);
        StageLock::take(dir.path(), "sft", "a", patience, &|| true).unwrap().unwrap();
    }

    #[test]
    fn an_orphan_that_still_works_keeps_the_lock_of_its_killed_parent() {
        let dir = tempfile::tempdir().unwrap();
        let held = take(dir.path(), "job 1").unwrap();
        let mut child = Command::new("sleep").arg("60").stdin(held.share().unwrap()).spawn().unwrap();
        drop(held);
        assert!(is_held(dir.path(), "sft").unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(comes_free(dir.path()));
    }
}
