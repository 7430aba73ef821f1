//! See `hyperkit_fuzz::queue_vsock`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hyperkit_fuzz::queue_vsock::run(data));
