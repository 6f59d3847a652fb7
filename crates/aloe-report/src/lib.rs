//! Placeholder of `aloe-report`.
