//! The decoder's and the encoder's arithmetic against outside oracles: golden files of `oracles/`, finite differences, laws.
#![allow(clippy::print_stderr, reason = "tests say what they measured and what did not run")]

#[path = "compute/encoder.rs"]
mod encoder;
#[path = "compute/golden.rs"]
mod golden;
#[path = "compute/gradients.rs"]
mod gradients;
#[path = "compute/laws.rs"]
mod laws;
#[path = "compute/parity.rs"]
mod parity;
#[path = "compute/tree.rs"]
mod tree;

use aloe_model::{Decoder, ModelSource};
use aloe_tensor::{Device, Dtype};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A file below the folder that an environment variable names; without it the test says so and does nothing, or fails when
/// `ALOE_REQUIRE=1`.
fn outside(variable: &str, path: &str) -> Option<PathBuf> {
    let found = std::env::var_os(variable).map(|dir| Path::new(&dir).join(path)).filter(|path| path.exists());
    if found.is_none() {
        assert!(std::env::var("ALOE_REQUIRE").as_deref() != Ok("1"), "{variable}/{path} is required");
        eprintln!("not run: {variable}/{path} is not there");
    }
    found
}

fn read_json(path: &Path) -> Value {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn golden(name: &str) -> Value {
    read_json(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name))
}

fn open(path: &Path, dtype: Dtype) -> Decoder {
    let source = ModelSource::open(path).unwrap_or_else(|e| panic!("{e}"));
    Decoder::open(&source, dtype, &Device::cpu(0)).unwrap_or_else(|e| panic!("{e}"))
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("a list of ids").iter().map(|v| v.as_u64().expect("an id") as u32).collect()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list of numbers").iter().map(|v| v.as_f64().expect("a number")).collect()
}

fn documents(value: &Value) -> Vec<Vec<u32>> {
    value.as_array().expect("a list of documents").iter().map(ids).collect()
}

fn slices(documents: &[Vec<u32>]) -> Vec<&[u32]> {
    documents.iter().map(Vec::as_slice).collect()
}

/// Largest difference and where it is.
fn largest_difference(a: impl IntoIterator<Item = f64>, b: impl IntoIterator<Item = f64>) -> f64 {
    a.into_iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// Rows and targets of a packed batch's trained tokens: `mask[t]` says that token t is a target.
fn targets(pieces: &[std::ops::Range<usize>], documents: &[Vec<u32>], masks: &Value) -> (Vec<usize>, Vec<u32>) {
    let mut out = (Vec::new(), Vec::new());
    for ((piece, document), mask) in pieces.iter().zip(documents).zip(masks.as_array().expect("masks")) {
        for t in (1..document.len()).filter(|&t| mask[t].as_u64() == Some(1)) {
            out.0.push(piece.start + t - 1);
            out.1.push(document[t]);
        }
    }
    out
}
