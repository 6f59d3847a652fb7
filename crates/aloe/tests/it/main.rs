//! Tests of the repository and of the binary as a user drives it.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test that cannot go on says so and stops")]

mod all_data;
mod answer_cache;
mod bad_input;
mod data_killed;
mod encoders;
mod endpoint;
mod faults;
mod full_disk;
mod handoff;
mod merge_out;
mod merge_search;
mod merging;
mod pins;
mod planned_memory;
mod planned_refusals;
mod quarantine;
mod recipes;
mod rendered;
mod requests;
mod revisions;
mod road;
mod serve;
mod stopped;
mod tidy;
mod toy;
mod training;
mod user;
mod verify;
mod view;
mod weights;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The binary under test.
pub(crate) fn aloe() -> Command {
    Command::new(env!("CARGO_BIN_EXE_aloe"))
}

/// Runs `aloe` with `args`; standard output, standard error and exit code.
pub(crate) fn run(args: &[&str]) -> (String, String, i32) {
    let Output { status, stdout, stderr } = aloe().args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (text(stdout), text(stderr), status.code().unwrap_or(-1))
}

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The folder of the stories260K model, or `None` (said aloud) where the data is not at hand.
pub(crate) fn stories() -> Option<PathBuf> {
    match std::env::var("ALOE_DATA") {
        Ok(data) => Some(PathBuf::from(data).join("models/stories260K")),
        Err(_) => {
            assert!(std::env::var("ALOE_REQUIRE").is_err(), "ALOE_DATA is not set");
            eprintln!("not run: ALOE_DATA is not set");
            None
        }
    }
}
