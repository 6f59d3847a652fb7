//! Placeholder of `aloe-eval`.
