//! What every stage leaves behind and how it stays true: atomic output folders, digests, a checksummed append-only log,
//! the counter-based generator all randomness comes from, and the two handles every spine is given, [`Progress`] and
//! [`Cancel`].
//!
//! Knows no model and no text. Reading order: `atomic`, `digest`, `stamp`, `hashed`, `log`, `shared_log`, `rng`, `progress`, `record`,
//! `disk`.

pub mod atomic;
pub mod digest;
pub mod disk;
mod error;
pub mod hashed;
pub mod log;
pub mod progress;
pub mod record;
pub mod rng;
pub mod shared_log;
pub mod stamp;

pub use error::{Error, is_storage};
pub use progress::{Cancel, Progress, tell};
pub use record::{Record, peak_rss_bytes};
pub use rng::CounterRng;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
