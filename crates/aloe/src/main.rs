//! aloe
fn main() {}
