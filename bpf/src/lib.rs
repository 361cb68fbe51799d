//! The XDP programs (`*.bpf.c`, built by `build.rs`) and what loads them.

pub mod storm;
