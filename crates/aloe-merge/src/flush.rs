//! Sends what is written on its way to the disk while the next tensors are merged. The system would keep it in memory until the last byte
//! stands, and the sync at the end would wait for all of it.

use crate::Result;
use aloe_model::writer::TensorSlot;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

/// Bytes after which a file is synced.
const EVERY: u64 = 256 << 20;

/// A thread that syncs the files that it is told, begun when there is something to do.
#[derive(Default)]
pub(crate) struct Flusher {
    running: Option<(Sender<TensorSlot>, JoinHandle<Result<()>>)>,
    /// Since the last sync.
    n_bytes: u64,
}

impl Flusher {
    /// Tells that these tensors stand in their files.
    pub(crate) fn written(&mut self, slots: Vec<TensorSlot>) {
        self.n_bytes += slots.iter().map(TensorSlot::size_bytes).sum::<u64>();
        if self.n_bytes < EVERY {
            return;
        }
        self.n_bytes = 0;
        let (queue, _) = self.running.get_or_insert_with(|| {
            let (queue, received) = channel::<TensorSlot>();
            (queue, std::thread::spawn(move || received.into_iter().try_for_each(|slot| Ok(slot.sync()?))))
        });
        // A thread that ended has an error to tell, in `finish`.
        slots.into_iter().for_each(|slot| {
            let _ = queue.send(slot);
        });
    }

    /// Waits for what was begun. An error of the disk is told once per file: it must not be lost here.
    pub(crate) fn finish(self) -> Result<()> {
        let Some((queue, thread)) = self.running else { return Ok(()) };
        drop(queue);
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}
