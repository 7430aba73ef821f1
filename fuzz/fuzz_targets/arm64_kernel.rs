//! See `hyperkit_fuzz::arm64_kernel`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hyperkit_fuzz::arm64_kernel::run(data));
