//! Placeholder of `aloe-data`.
