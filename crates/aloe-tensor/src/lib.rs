//! Placeholder of `aloe-tensor`.
