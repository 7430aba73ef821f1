//! See `hyperkit_fuzz::kernel`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hyperkit_fuzz::kernel::run(data));
