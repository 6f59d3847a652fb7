//! Placeholder of `aloe-train`.
