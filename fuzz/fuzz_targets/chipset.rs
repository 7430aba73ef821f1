//! See `hyperkit_fuzz::chipset`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hyperkit_fuzz::chipset::run(data));
