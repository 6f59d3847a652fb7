//! Placeholder of `aloe-text`.
