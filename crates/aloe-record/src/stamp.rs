//! What changes when a file's content does: by it a digest is known to be still true.

use serde::{Deserialize, Serialize};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The kernel's clock for files ticks every 1 to 10 ms: a write within the tick of an earlier one leaves the same times.
const TICK: Duration = Duration::from_millis(20);

/// Device, inode, size and the times of the last write and the last change; the kernel sets the latter, and no program can set it back.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Stamp {
    device: u64,
    inode: u64,
    n_bytes: u64,
    written_ns: (i64, i64),
    changed_ns: (i64, i64),
}

/// [`Stamp::renamed`].
pub type Renamed = ((u64, u64), u64, (i64, i64));

impl Stamp {
    /// That of a file or folder now.
    pub fn of(path: &Path) -> std::io::Result<Self> {
        let metadata = path.metadata()?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            n_bytes: metadata.len(),
            written_ns: (metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    /// The same, where another change could not leave it: waits for the clock's tick after a change of just now.
    pub fn settled(path: &Path) -> std::io::Result<Self> {
        let now = Self::of(path)?;
        if !now.is_fresh() {
            return Ok(now);
        }
        wait_for_tick();
        Self::of(path)
    }

    /// Who the file is, whatever it holds: a rename keeps it.
    pub fn inode(&self) -> (u64, u64) {
        (self.device, self.inode)
    }

    /// What a rename keeps: inode, size and time of the last write.
    pub fn renamed(&self) -> Renamed {
        (self.inode(), self.n_bytes, self.written_ns)
    }

    /// Size.
    pub fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    /// Whether the file was changed so lately that a further change could leave the same times.
    pub fn is_fresh(&self) -> bool {
        self.changed_within(TICK)
    }

    /// Whether the last change is less than `time` ago.
    pub fn changed_within(&self, time: Duration) -> bool {
        let (seconds, nanoseconds) = self.changed_ns;
        let at = Duration::new(seconds.unsigned_abs(), u32::try_from(nanoseconds).unwrap_or_default());
        SystemTime::now().duration_since(UNIX_EPOCH).is_ok_and(|now| now < at + time)
    }
}

/// Waits until a change of before now would show in a stamp.
pub fn wait_for_tick() {
    std::thread::sleep(TICK);
}
