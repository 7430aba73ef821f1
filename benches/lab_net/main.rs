//! Networks under a stock kernel, taps among them.

#[cfg_attr(target_os = "linux", path = "linux.rs")]
#[cfg_attr(not(target_os = "linux"), path = "../support/elsewhere.rs")]
mod bench;

fn main() {
    bench::main();
}
