//! Tests of the repository and of the binary as a user drives it.

mod tidy;
