//! Any course of frames, commands and time: the engine loses, doubles and leaks nothing.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| spindle_engine::fuzz::run(data));
