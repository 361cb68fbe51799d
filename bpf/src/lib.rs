//! The XDP programs (`*.bpf.c`, built by `build.rs`) and what loads them.

mod in_clear;
mod object;
pub mod steer;
pub mod storm;
