//! warmctl
fn main() {}
