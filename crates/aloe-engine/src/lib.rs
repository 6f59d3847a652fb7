//! Placeholder of `aloe-engine`.
