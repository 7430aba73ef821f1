//! Where everything is in guest-physical memory and on interrupt lines.
//!
//! ```text
//! 0x0800_0000  GIC: distributor, GICv2's processor interface, frame for messages
//! 0x0900_0000  serial ports, clock, power button
//! 0x0a00_0000  virtio-mmio register pages
//! 0x1000_0000  GICv3's redistributors
//! 0x2000_0000  registers of the caller's devices
//! 0x4000_0000  RAM: kernel, device tree, initrd, everything else
//! ```
//!
//! Interrupt lines are numbered as the device tree does, from the first shared peripheral interrupt: line 0 is
//! interrupt ID 32.

/// GIC distributor registers, 64 KiB.
pub const GIC_DISTRIBUTOR: u64 = 0x0800_0000;
/// Bytes of the distributor.
pub const GIC_DISTRIBUTOR_LEN: u64 = 0x1_0000;
/// GICv2's processor interface, 64 KiB of which two pages are used.
pub const GIC_CPU_INTERFACE: u64 = 0x0801_0000;
/// Bytes of the processor interface.
pub const GIC_CPU_INTERFACE_LEN: u64 = 0x1_0000;
/// The frame that a message-signalled interrupt is written to, where the accelerator has one.
pub const GIC_MESSAGES: u64 = 0x0802_0000;
/// GICv3's redistributors, one after the other.
pub const GIC_REDISTRIBUTORS: u64 = 0x1000_0000;
/// Bytes of one redistributor: a frame of 64 KiB for control, one for the private interrupts.
pub const GIC_REDISTRIBUTOR_LEN: u64 = 0x2_0000;
/// Room for redistributors.
pub const GIC_REDISTRIBUTORS_MAX: u64 = MMIO_START - GIC_REDISTRIBUTORS;
/// Most processors behind a GICv2.
pub const GIC_V2_MAX_CPUS: u32 = 8;
/// Most processors of a machine, each with a redistributor.
pub const MAX_CPUS: u32 = 512;

/// Registers of the serial ports, PL011, a page each.
pub const SERIAL: [u64; 4] = [0x0900_0000, 0x0900_1000, 0x0900_2000, 0x0900_3000];
/// Lines of the serial ports.
pub const SERIAL_LINES: [u32; 4] = [0, 1, 2, 3];
/// The clock, PL031.
pub const RTC: u64 = 0x0901_0000;
/// The clock's line.
pub const RTC_LINE: u32 = 4;
/// The power button, a pin of a PL061.
pub const GPIO: u64 = 0x0903_0000;
/// The PL061's line.
pub const GPIO_LINE: u32 = 5;
/// The pin of the PL061 that the power button pulls up.
pub const POWER_PIN: u32 = 3;
/// Bytes of one of these devices' registers.
pub const PERIPHERAL_LEN: u64 = 0x1000;

/// First virtio-mmio register page; the next devices follow at [`VIRTIO_MMIO_STRIDE`].
pub const VIRTIO_MMIO: u64 = 0x0a00_0000;
/// Distance from one virtio-mmio device to the next.
pub const VIRTIO_MMIO_STRIDE: u64 = 0x1000;
/// The first virtio device's line; the next devices have the next ones.
pub const VIRTIO_FIRST_LINE: u32 = 16;
/// Most virtio devices.
pub const VIRTIO_MAX: usize = 64;
/// Lines of the interrupt controller: with the 32 private interrupts a multiple of 32, as GICs have them.
pub const LINES: u32 = 96;

/// First address for registers of the caller's devices …
pub const MMIO_START: u64 = 0x2000_0000;
/// … and the address behind the last: RAM begins.
pub const RAM_START: u64 = 0x4000_0000;

/// Private interrupts of the processors' timers, as the device tree numbers them (interrupt ID less 16): secure
/// physical, physical, virtual, hypervisor's.
pub const TIMER_PPIS: [u32; 4] = [13, 14, 11, 10];

/// Where `size` bytes of RAM go: `(guest-physical address, length)` of the only region.
pub fn ram_regions(size: u64) -> Vec<(u64, u64)> {
    vec![(RAM_START, size)]
}
