//! What an engine computed and held, for records, and so that tests and benches can see what sharing saved.

use serde::Serialize;

/// Counts over the life of a local engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EngineCounts {
    /// Tokens that would go through the decoder if every continuation and every sample were run on its own.
    pub n_requested_tokens: u64,
    /// Tokens that went through it.
    pub n_computed_tokens: u64,
    /// Tokens drawn.
    pub n_drawn_tokens: u64,
    /// Times a running sequence lost its keys and values to the memory budget.
    pub n_evictions: u64,
    /// Tokens of the largest pass: the activations of so many are held at one time.
    pub largest_pass_tokens: u64,
    /// The most bytes that keys and values may take.
    pub kv_budget_bytes: u64,
    /// The most bytes of keys and values held at one time, those of a pass under way included.
    pub peak_kv_bytes: u64,
}
