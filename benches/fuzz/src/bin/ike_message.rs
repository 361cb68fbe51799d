//! Any octets parse as an IKE message or are refused, and what parses survives a round trip.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| spindle_ike::wire::fuzz(data));
