//! See `hyperkit_fuzz::user_frames`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hyperkit_fuzz::user_frames::run(data));
