//! Placeholder of `aloe-model`.
