//! The device tree: how the guest learns of its processors, memory, interrupt controller and devices.
//!
//! The format is that of the Devicetree Specification 0.4, chapter 5; what nodes say, that of Linux's bindings
//! (`Documentation/devicetree/bindings`). Addresses and sizes have two cells. Where things are is
//! [`layout`]'s to say, and where the tree itself goes, the loader's.

use vm_fdt::{Error as WriteError, FdtWriter};

use super::{layout, mpidr};

#[cfg(test)]
mod tests;

/// Most bytes of a tree: Linux maps so many, and no more (`booting.rst`).
pub const MAX_LEN: usize = 2 << 20;

// Phandles, by which nodes name each other.
const GIC: u32 = 1;
const CLOCK: u32 = 2;
const GPIO: u32 = 3;

// Interrupt specifiers of the GIC (`arm,gic-v3.yaml`): the kind, then the number, then the trigger.
const SHARED: u32 = 0;
const PRIVATE: u32 = 1;
const EDGE_RISING: u32 = 1;
const LEVEL_HIGH: u32 = 4;
/// GICv2 also wants to know which processors have a private interrupt.
const PRIVATE_CPUS_SHIFT: u32 = 8;

/// Of the clock that the peripherals' registers run by. Nothing is faster or slower for it.
const CLOCK_HZ: u32 = 24_000_000;
/// `KEY_POWER`, `input-event-codes.h`.
const KEY_POWER: u32 = 116;
/// A pin that is high while the button is down, `dt-bindings/gpio/gpio.h`.
const ACTIVE_HIGH: u32 = 0;

/// The machine's interrupt controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Gic {
    /// Version 2: a distributor and a processor interface, for 8 processors at most.
    V2,
    /// Version 3: a distributor, and a redistributor for each processor.
    #[default]
    V3,
}

/// A virtio device with memory-mapped registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtioMmio {
    /// Guest-physical address of its registers.
    pub base: u64,
    /// How many bytes they take.
    pub len: u64,
    /// Its interrupt line, edge-triggered.
    pub line: u32,
}

/// What a machine has that the tree speaks of.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Number of processors; [`mpidr`] says what they are called.
    pub cpus: u32,
    /// Memory: start and length.
    pub memory: Vec<(u64, u64)>,
    /// Its interrupt controller.
    pub gic: Gic,
    /// Which of the serial ports there are. The first of them is where early messages go.
    pub serial: [bool; layout::SERIAL.len()],
    /// The virtio devices. Guests find them in this order.
    pub virtio_mmio: Vec<VirtioMmio>,
    /// The command line.
    pub cmdline: String,
    /// Where the initrd is: start and length.
    pub initrd: Option<(u64, u64)>,
    /// Random bytes for the guest's random number generator.
    pub rng_seed: Vec<u8>,
    /// A random number that says where the kernel puts itself; zero lets it stay.
    pub kaslr_seed: u64,
}

/// Why the tree could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The interrupt controller has no place for so many processors.
    #[error("a machine with this interrupt controller has at most {max} processors, not {cpus}")]
    TooManyCpus {
        /// How many were asked for.
        cpus: u32,
        /// How many there can be.
        max: u32,
    },
    /// The tree is larger than a guest reads.
    #[error("the device tree has {len} bytes, and a guest reads {MAX_LEN}; use fewer devices")]
    TooLarge {
        /// How long it is.
        len: usize,
    },
    /// Something cannot be said in a tree, such as a zero byte in the command line.
    #[error("cannot write the device tree: {0}")]
    Write(#[from] WriteError),
}

/// The tree's bytes.
pub fn build(config: &Config) -> Result<Vec<u8>, Error> {
    let max = match config.gic {
        Gic::V2 => layout::GIC_V2_MAX_CPUS,
        Gic::V3 => layout::MAX_CPUS,
    };
    if config.cpus > max {
        return Err(Error::TooManyCpus { cpus: config.cpus, max });
    }
    let tree = write(config)?;
    if tree.len() > MAX_LEN {
        return Err(Error::TooLarge { len: tree.len() });
    }
    Ok(tree)
}

fn write(config: &Config) -> Result<Vec<u8>, WriteError> {
    let mut tree = Tree(FdtWriter::new()?);
    tree.node("", |root| {
        root.string("compatible", "linux,dummy-virt")?;
        root.string("model", "hyperkit")?;
        root.cells("#address-cells", &[2])?;
        root.cells("#size-cells", &[2])?;
        root.cells("interrupt-parent", &[GIC])?;
        chosen(root, config)?;
        aliases(root, config)?;
        cpus(root, config)?;
        psci(root)?;
        for &(start, len) in &config.memory {
            memory(root, start, len)?;
        }
        gic(root, config)?;
        timer(root, config)?;
        peripherals(root, config)?;
        config.virtio_mmio.iter().try_for_each(|device| virtio(root, device))
    })?;
    tree.0.finish()
}

/// Section 3.6, and Linux's own (`booting.rst`, `chosen.yaml` of the schema).
fn chosen(root: &mut Tree, config: &Config) -> Result<(), WriteError> {
    root.node("chosen", |node| {
        node.string("bootargs", &config.cmdline)?;
        if let Some((start, len)) = config.initrd {
            node.addresses("linux,initrd-start", &[start])?;
            node.addresses("linux,initrd-end", &[start.saturating_add(len)])?;
        }
        if !config.rng_seed.is_empty() {
            node.0.property("rng-seed", &config.rng_seed)?;
        }
        if config.kaslr_seed != 0 {
            node.addresses("kaslr-seed", &[config.kaslr_seed])?;
        }
        match serial_ports(config).next() {
            Some((_, base, _)) => node.string("stdout-path", &format!("/{}", serial_name(base))),
            None => Ok(()),
        }
    })
}

/// Section 3.3: numbers the serial ports.
fn aliases(root: &mut Tree, config: &Config) -> Result<(), WriteError> {
    root.node("aliases", |node| {
        serial_ports(config).try_for_each(|(number, base, _)| {
            node.string(&format!("serial{number}"), &format!("/{}", serial_name(base)))
        })
    })
}

/// `arm/cpus.yaml`. There are fewer than 2^20, so affinities have one cell.
fn cpus(root: &mut Tree, config: &Config) -> Result<(), WriteError> {
    root.node("cpus", |node| {
        node.cells("#address-cells", &[1])?;
        node.cells("#size-cells", &[0])?;
        (0..config.cpus).map(mpidr::affinity).try_for_each(|affinity| {
            node.node(&format!("cpu@{affinity:x}"), |cpu| {
                cpu.string("device_type", "cpu")?;
                cpu.string("compatible", "arm,armv8")?;
                cpu.string("enable-method", "psci")?;
                cpu.cells("reg", &[affinity as u32])
            })
        })
    })
}

/// `arm/psci.yaml`.
fn psci(root: &mut Tree) -> Result<(), WriteError> {
    root.node("psci", |node| {
        node.strings("compatible", &["arm,psci-1.0", "arm,psci-0.2"])?;
        node.string("method", "hvc")
    })
}

/// Section 3.4.
fn memory(root: &mut Tree, start: u64, len: u64) -> Result<(), WriteError> {
    root.node(&format!("memory@{start:x}"), |node| {
        node.string("device_type", "memory")?;
        node.addresses("reg", &[start, len])
    })
}

/// `interrupt-controller/arm,gic-v3.yaml` and `arm,gic.yaml`.
fn gic(root: &mut Tree, config: &Config) -> Result<(), WriteError> {
    let base = layout::GIC_DISTRIBUTOR;
    let (compatible, [start, len]) = match config.gic {
        Gic::V2 => {
            ("arm,cortex-a15-gic", [layout::GIC_CPU_INTERFACE, layout::GIC_CPU_INTERFACE_LEN])
        }
        Gic::V3 => {
            let len = layout::GIC_REDISTRIBUTOR_LEN * u64::from(config.cpus);
            ("arm,gic-v3", [layout::GIC_REDISTRIBUTORS, len])
        }
    };
    root.node(&format!("interrupt-controller@{base:x}"), |node| {
        node.string("compatible", compatible)?;
        node.addresses("reg", &[base, layout::GIC_DISTRIBUTOR_LEN, start, len])?;
        node.flag("interrupt-controller")?;
        node.cells("#interrupt-cells", &[3])?;
        node.cells("#address-cells", &[0])?;
        node.0.property_phandle(GIC)
    })
}

/// `timer/arm,arch_timer.yaml`. The timers go on when processors sleep.
fn timer(root: &mut Tree, config: &Config) -> Result<(), WriteError> {
    let cpus = match config.gic {
        Gic::V2 => ((1 << config.cpus.min(layout::GIC_V2_MAX_CPUS)) - 1) << PRIVATE_CPUS_SHIFT,
        Gic::V3 => 0,
    };
    let interrupts = layout::TIMER_PPIS.map(|number| [PRIVATE, number, LEVEL_HIGH | cpus]);
    root.node("timer", |node| {
        node.string("compatible", "arm,armv8-timer")?;
        node.cells("interrupts", interrupts.as_flattened())?;
        node.flag("always-on")
    })
}

/// What there is before virtio, and the clock that all of it wants to name.
fn peripherals(root: &mut Tree, config: &Config) -> Result<(), WriteError> {
    root.node("apb-pclk", |node| {
        node.string("compatible", "fixed-clock")?;
        node.cells("#clock-cells", &[0])?;
        node.cells("clock-frequency", &[CLOCK_HZ])?;
        node.0.property_phandle(CLOCK)
    })?;
    for (_, base, line) in serial_ports(config) {
        root.peripheral(&serial_name(base), "arm,pl011", base, line, |node| {
            node.cells("clocks", &[CLOCK, CLOCK])?;
            node.strings("clock-names", &["uartclk", "apb_pclk"])
        })?;
    }
    let name = format!("rtc@{:x}", layout::RTC);
    root.peripheral(&name, "arm,pl031", layout::RTC, layout::RTC_LINE, |node| {
        node.cells("clocks", &[CLOCK])?;
        node.string("clock-names", "apb_pclk")
    })?;
    let name = format!("gpio@{:x}", layout::GPIO);
    root.peripheral(&name, "arm,pl061", layout::GPIO, layout::GPIO_LINE, |node| {
        node.cells("clocks", &[CLOCK])?;
        node.string("clock-names", "apb_pclk")?;
        node.flag("gpio-controller")?;
        node.cells("#gpio-cells", &[2])?;
        node.flag("interrupt-controller")?;
        node.cells("#interrupt-cells", &[2])?;
        node.cells("#address-cells", &[0])?;
        node.0.property_phandle(GPIO)
    })?;
    // `input/gpio-keys.yaml`.
    root.node("gpio-keys", |node| {
        node.string("compatible", "gpio-keys")?;
        node.node("power", |key| {
            key.string("label", "Power button")?;
            key.cells("linux,code", &[KEY_POWER])?;
            key.cells("gpios", &[GPIO, layout::POWER_PIN, ACTIVE_HIGH])
        })
    })
}

/// `virtio/mmio.yaml`. What the device writes to memory, processors see.
fn virtio(root: &mut Tree, device: &VirtioMmio) -> Result<(), WriteError> {
    let &VirtioMmio { base, len, line } = device;
    root.node(&format!("virtio_mmio@{base:x}"), |node| {
        node.string("compatible", "virtio,mmio")?;
        node.addresses("reg", &[base, len])?;
        node.cells("interrupts", &[SHARED, line, EDGE_RISING])?;
        node.flag("dma-coherent")
    })
}

/// The number, address and line of each serial port there is.
fn serial_ports(config: &Config) -> impl Iterator<Item = (usize, u64, u32)> {
    (0..)
        .zip(config.serial)
        .zip(layout::SERIAL.into_iter().zip(layout::SERIAL_LINES))
        .filter_map(|((number, present), (base, line))| present.then_some((number, base, line)))
}

fn serial_name(base: u64) -> String {
    format!("serial@{base:x}")
}

/// What is being written: properties go to the node begun last, before its own nodes.
struct Tree(FdtWriter);

impl Tree {
    fn node(
        &mut self,
        name: &str,
        content: impl FnOnce(&mut Self) -> Result<(), WriteError>,
    ) -> Result<(), WriteError> {
        let node = self.0.begin_node(name)?;
        content(self)?;
        self.0.end_node(node)
    }

    /// A device from Arm's cell library: a page of registers, a level for an interrupt.
    fn peripheral(
        &mut self,
        name: &str,
        compatible: &str,
        base: u64,
        line: u32,
        content: impl FnOnce(&mut Self) -> Result<(), WriteError>,
    ) -> Result<(), WriteError> {
        self.node(name, |node| {
            node.strings("compatible", &[compatible, "arm,primecell"])?;
            node.addresses("reg", &[base, layout::PERIPHERAL_LEN])?;
            node.cells("interrupts", &[SHARED, line, LEVEL_HIGH])?;
            content(node)
        })
    }

    fn flag(&mut self, name: &str) -> Result<(), WriteError> {
        self.0.property_null(name)
    }

    fn string(&mut self, name: &str, value: &str) -> Result<(), WriteError> {
        self.0.property_string(name, value)
    }

    fn strings(&mut self, name: &str, values: &[&str]) -> Result<(), WriteError> {
        self.0.property_string_list(name, values.iter().map(|&value| value.into()).collect())
    }

    fn cells(&mut self, name: &str, cells: &[u32]) -> Result<(), WriteError> {
        self.0.property_array_u32(name, cells)
    }

    /// Numbers of two cells.
    fn addresses(&mut self, name: &str, values: &[u64]) -> Result<(), WriteError> {
        self.0.property_array_u64(name, values)
    }
}
