//! Crashes a gateway and shows how it comes back. Being built.
fn main() {}
