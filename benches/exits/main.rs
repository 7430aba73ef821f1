//! What the exit loop adds to an exit, with KVM on x86-64.

#[cfg_attr(all(target_os = "linux", target_arch = "x86_64"), path = "kvm.rs")]
#[cfg_attr(not(all(target_os = "linux", target_arch = "x86_64")), path = "../support/elsewhere.rs")]
mod bench;

fn main() {
    bench::main();
}
