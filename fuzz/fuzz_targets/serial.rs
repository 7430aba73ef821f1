//! See `hyperkit_fuzz::serial`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hyperkit_fuzz::serial::run(data));
