//! Placeholder of `aloe-task`.
