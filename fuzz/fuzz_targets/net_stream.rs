//! See `hyperkit_fuzz::net_stream`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hyperkit_fuzz::net_stream::run(data));
