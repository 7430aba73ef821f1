//! The architectures of guests, and of the lab's machines.

/// An architecture of machines that are booted from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    X86_64,
    Arm64,
}

impl Arch {
    /// Where its guests are, below `target/`.
    pub fn folder(self) -> &'static str {
        match self {
            Arch::X86_64 => "guest",
            Arch::Arm64 => "guest/arm64",
        }
    }

    /// Debian's packages of the cloud kernel and of the generic one.
    pub fn kernels(self) -> [&'static str; 2] {
        match self {
            Arch::X86_64 => ["linux-image-cloud-amd64", "linux-image-amd64"],
            Arch::Arm64 => ["linux-image-cloud-arm64", "linux-image-arm64"],
        }
    }

    /// The module for the power button, ACPI's or a pin's of the machine's GPIO controller. The
    /// cloud kernel for arm64 has no driver for such keys.
    pub fn button(self) -> &'static str {
        match self {
            Arch::X86_64 => "button",
            Arch::Arm64 => "gpio_keys",
        }
    }

    /// The console on a machine's first serial port.
    pub fn console(self) -> &'static str {
        match self {
            Arch::X86_64 => "ttyS0",
            Arch::Arm64 => "ttyAMA0",
        }
    }
}
