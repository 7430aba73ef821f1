//! See `hyperkit_fuzz::queue`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hyperkit_fuzz::queue::blk(data));
