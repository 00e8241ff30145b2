#![no_main]
//! See `protocol/tests/fuzz/targets.rs`.

#[path = "../../protocol/tests/fuzz/targets.rs"]
#[allow(dead_code, reason = "one target of several")]
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::incoming_bincode(bytes));
