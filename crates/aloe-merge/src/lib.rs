//! Placeholder of `aloe-merge`.
