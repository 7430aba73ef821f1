//! See `hyperkit_fuzz::user_tcp`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hyperkit_fuzz::user_tcp::run(data));
