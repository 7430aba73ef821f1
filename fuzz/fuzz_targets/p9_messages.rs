//! See `hyperkit_fuzz::p9`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hyperkit_fuzz::p9::messages(data));
