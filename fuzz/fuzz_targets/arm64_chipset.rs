//! See `hyperkit_fuzz::arm64_chipset`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hyperkit_fuzz::arm64_chipset::run(data));
