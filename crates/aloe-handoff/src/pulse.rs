//! That a job lives, told by the time of a file (`state/NAME/alive`): when a session dies without a word, its hours end at its last
//! beat and not at whatever is heard of it next, after a night in the queue.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Seconds between two beats.
const EVERY: Duration = Duration::from_secs(20);

/// Beats until it is dropped.
#[derive(Debug)]
pub(crate) struct Pulse {
    /// Closing it ends the thread.
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Pulse {
    /// Beats in `state/NAME/alive` of a stage.
    pub(crate) fn of(run: &Path, stage: &str) -> Self {
        let (path, (end, ended)) = (path_of(run, stage), channel::<()>());
        let thread = std::thread::spawn(move || {
            loop {
                // For the account alone: a full disk must not end the work.
                let _ = std::fs::write(&path, b"");
                if ended.recv_timeout(EVERY) != Err(RecvTimeoutError::Timeout) {
                    let _ = std::fs::write(&path, b"");
                    return;
                }
            }
        });
        Self { end: Some(end), thread: Some(thread) }
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        drop(self.end.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The file whose time is the last beat.
pub(crate) fn path_of(run: &Path, stage: &str) -> PathBuf {
    crate::state::folder(run, stage).join("alive")
}
