//! See `hyperkit_fuzz::dns_dhcp`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hyperkit_fuzz::dns_dhcp::run(data));
