//! KVM's interrupt controller on arm64: a GICv3 or, where the host's processor has no more, a GICv2
//! (`Documentation/virt/kvm/devices/arm-vgic-v3.rst` and `arm-vgic.rst`).
//!
//! The kernel has no call that resets it. A guest that boots again in place must not find interrupts of its last
//! life, so a reset writes to every register that has state what it is at power-on.

use kvm_bindings::*;
use kvm_ioctls::{DeviceFd, VmFd};

use crate::accel::{Controller, Error};
use crate::arch::aarch64::sysreg::GIC_INTERFACE;
use crate::arch::aarch64::{layout, mpidr};

/// The interrupt ID of line 0.
pub(super) const FIRST_LINE: u32 = 32;

/// All interrupts of the distributor, private ones included.
const INTERRUPTS: u32 = FIRST_LINE + layout::LINES;

/// A register per interrupt (IHI 0069, 12.9): its address, bits for each interrupt, and what is to be written to all of it.
type PerInterrupt = (u64, u32, u32);

/// Those that are the same in both, disabled first.
const PER_INTERRUPT: &[PerInterrupt] = &[
    (0x180, 1, u32::MAX), // GICD_ICENABLER: what is written is disabled
    (0x380, 1, u32::MAX), // GICD_ICACTIVER
    (0x400, 8, 0),        // GICD_IPRIORITYR
    (0xc00, 2, 0),        // GICD_ICFGR
];
/// Those of a GICv3. What is pending there KVM has from GICD_ISPENDR alone, exactly as it is written; and KVM's interrupts
/// begin in group 1.
const PER_INTERRUPT_V3: &[PerInterrupt] = &[
    (0x200, 1, 0),        // GICD_ISPENDR
    (0x080, 1, u32::MAX), // GICD_IGROUPR
];
/// Those of a GICv2, where GICD_ISPENDR only sets, and interrupts begin in group 0.
const PER_INTERRUPT_V2: &[PerInterrupt] = &[
    (0x280, 1, u32::MAX), // GICD_ICPENDR: what is written is not pending
    (0x080, 1, 0),        // GICD_IGROUPR
];
const GICD_CTLR: u64 = 0;
/// Routing of a shared interrupt, 64 bits each.
const GICD_IROUTER: u64 = 0x6000;

/// Redistributor registers: the control frame, and from [`SGI_FRAME`] on the private interrupts.
const GICR_CTLR: u64 = 0;
const GICR_PROPBASER: u64 = 0x70;
const GICR_PENDBASER: u64 = 0x78;
const SGI_FRAME: u64 = 0x1_0000;

/// GICv2's processor interface (IHI 0048, 4.4): control, priority mask, binary point, active priorities.
const GICC: &[u64] = &[0x00, 0x04, 0x08, 0x1c, 0xd0];
/// GICv2 routes by GICD_ITARGETSR, a byte each.
const GICD_ITARGETSR: u64 = 0x800;

pub(super) struct Gic {
    device: DeviceFd,
    controller: Controller,
    cpus: u32,
}

impl Gic {
    /// Makes the best that the host has, for a machine whose `cpus` vCPUs exist.
    pub fn create(vm: &VmFd, cpus: u32) -> Result<Self, Error> {
        let failed = |call, error: kvm_ioctls::Error| Error::Call {
            call,
            on: " for the interrupt controller".into(),
            source: error.into(),
        };
        let make = |type_| vm.create_device(&mut kvm_create_device { type_, ..Default::default() });
        let gic = match make(kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3) {
            Ok(device) => Self { device, controller: Controller::GicV3, cpus },
            Err(error) if error.errno() == libc::ENODEV => {
                let max = layout::GIC_V2_MAX_CPUS;
                if cpus > max {
                    return Err(Error::Unsupported(format!(
                        "this host's interrupt controller, a GICv2, is for {max} vCPUs at most, not {cpus}"
                    )));
                }
                let device = make(kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2)
                    .map_err(|error| failed("KVM_CREATE_DEVICE", error))?;
                Self { device, controller: Controller::GicV2, cpus }
            }
            Err(error) => return Err(failed("KVM_CREATE_DEVICE", error)),
        };
        gic.place().map_err(|error| failed("KVM_SET_DEVICE_ATTR", error))?;
        Ok(gic)
    }

    pub fn controller(&self) -> Controller {
        self.controller
    }

    fn place(&self) -> Result<(), kvm_ioctls::Error> {
        let address =
            |kind: u32, address: u64| self.set(KVM_DEV_ARM_VGIC_GRP_ADDR, kind.into(), &address);
        match self.controller {
            Controller::GicV2 => {
                address(KVM_VGIC_V2_ADDR_TYPE_DIST, layout::GIC_DISTRIBUTOR)?;
                address(KVM_VGIC_V2_ADDR_TYPE_CPU, layout::GIC_CPU_INTERFACE)?;
            }
            _ => {
                address(KVM_VGIC_V3_ADDR_TYPE_DIST, layout::GIC_DISTRIBUTOR)?;
                address(KVM_VGIC_V3_ADDR_TYPE_REDIST, layout::GIC_REDISTRIBUTORS)?;
            }
        }
        self.set(KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, &INTERRUPTS)?;
        let init = kvm_device_attr {
            group: KVM_DEV_ARM_VGIC_GRP_CTRL,
            attr: KVM_DEV_ARM_VGIC_CTRL_INIT.into(),
            ..Default::default()
        };
        self.device.set_device_attr(&init)
    }

    /// Sets an attribute; how many bytes of `value` the kernel reads is the attribute's affair.
    fn set<T>(&self, group: u32, attr: u64, value: &T) -> Result<(), kvm_ioctls::Error> {
        let addr = std::ptr::from_ref(value) as u64;
        self.device.set_device_attr(&kvm_device_attr { flags: 0, group, attr, addr })
    }

    /// Puts it back to its power-on state. No vCPU runs meanwhile, and devices have let their lines down: as long as a line
    /// is up, its interrupt is pending whatever is written here.
    pub fn reset(&self) -> Result<(), Error> {
        let result = match self.controller {
            Controller::GicV2 => self.reset_v2(),
            _ => self.reset_v3(),
        };
        result.map_err(|error| Error::Call {
            call: "KVM_SET_DEVICE_ATTR",
            on: " to reset the interrupt controller".into(),
            source: error.into(),
        })
    }

    fn reset_v3(&self) -> Result<(), kvm_ioctls::Error> {
        let distributor =
            |register: u64, value: u32| self.set(KVM_DEV_ARM_VGIC_GRP_DIST_REGS, register, &value);
        distributor(GICD_CTLR, 0)?;
        for (register, value) in per_interrupt(PER_INTERRUPT_V3, FIRST_LINE..INTERRUPTS) {
            distributor(register, value)?;
        }
        for interrupt in u64::from(FIRST_LINE)..INTERRUPTS.into() {
            let register = GICD_IROUTER + interrupt * 8;
            distributor(register, 0)?;
            distributor(register + 4, 0)?;
        }
        for cpu in 0..self.cpus {
            // KVM numbers its vCPUs in the same way.
            let vcpu = mpidr::affinity(cpu) << KVM_DEV_ARM_VGIC_V3_MPIDR_SHIFT;
            let redistributor = |register: u64, value: u32| {
                self.set(KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, vcpu | register, &value)
            };
            for register in [GICR_CTLR, GICR_PROPBASER, GICR_PENDBASER] {
                redistributor(register, 0)?;
            }
            for (register, value) in per_interrupt(PER_INTERRUPT_V3, 0..FIRST_LINE) {
                redistributor(SGI_FRAME + register, value)?;
            }
            for register in GIC_INTERFACE {
                let attribute = vcpu | u64::from(register.pack());
                self.set(KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, attribute, &0_u64)?;
            }
        }
        Ok(())
    }

    fn reset_v2(&self) -> Result<(), kvm_ioctls::Error> {
        for cpu in 0..self.cpus {
            let vcpu = u64::from(cpu) << KVM_DEV_ARM_VGIC_CPUID_SHIFT;
            let distributor = |register: u64, value: u32| {
                self.set(KVM_DEV_ARM_VGIC_GRP_DIST_REGS, vcpu | register, &value)
            };
            distributor(GICD_CTLR, 0)?;
            // The private ones are this vCPU's; the others are written once for each.
            for (register, value) in per_interrupt(PER_INTERRUPT_V2, 0..INTERRUPTS) {
                distributor(register, value)?;
            }
            for interrupt in (FIRST_LINE..INTERRUPTS).step_by(4) {
                distributor(GICD_ITARGETSR + u64::from(interrupt), 0)?;
            }
            for register in GICC {
                self.set(KVM_DEV_ARM_VGIC_GRP_CPU_REGS, vcpu | register, &0_u32)?;
            }
        }
        Ok(())
    }
}

/// The registers of [`PER_INTERRUPT`] and of `own` for these interrupts, and what is to be written to each.
fn per_interrupt(
    own: &[PerInterrupt],
    interrupts: std::ops::Range<u32>,
) -> impl Iterator<Item = (u64, u32)> {
    PER_INTERRUPT.iter().chain(own).flat_map(move |&(first, bits, value)| {
        let words = interrupts.start * bits / 32..interrupts.end * bits / 32;
        words.map(move |word| (first + u64::from(word) * 4, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_register_of_every_interrupt_is_reset_once() {
        for own in [PER_INTERRUPT_V2, PER_INTERRUPT_V3] {
            let registers = |interrupts| -> Vec<_> {
                per_interrupt(own, interrupts).map(|(register, _)| register).collect()
            };
            let (private, shared) = (registers(0..FIRST_LINE), registers(FIRST_LINE..INTERRUPTS));
            assert!(shared.contains(&0x084) && shared.contains(&0x08c));
            assert!(shared.contains(&0x184) && shared.contains(&0x18c));
            assert!(shared.contains(&0x420) && shared.contains(&0x47c));
            assert!(shared.contains(&0xc08) && shared.contains(&0xc1c));
            for register in [0x080, 0x180, 0x41c, 0xc04] {
                assert!(private.contains(&register) && !shared.contains(&register));
            }
            let mut all = [shared, private].concat();
            all.sort_unstable();
            let len = all.len();
            all.dedup();
            assert_eq!(all.len(), len);
        }
    }

    /// What KVM makes of a write is not what the architecture does: `vgic_v2_dist_registers`, `vgic_v3_dist_registers`.
    #[test]
    fn pending_bits_go_by_the_register_that_kvm_listens_to() {
        let written = |own: &[PerInterrupt], first: u64| -> Vec<(u64, u32)> {
            let all = per_interrupt(own, 0..INTERRUPTS);
            all.filter(|(register, _)| (first..first + 0x10).contains(register)).collect()
        };
        let words = |first: u64, value: u32| [0, 4, 8, 12].map(|at| (first + at, value)).to_vec();
        assert_eq!(written(PER_INTERRUPT_V2, 0x280), words(0x280, u32::MAX));
        assert!(written(PER_INTERRUPT_V2, 0x200).is_empty());
        assert_eq!(written(PER_INTERRUPT_V2, 0x080), words(0x080, 0));
        assert_eq!(written(PER_INTERRUPT_V3, 0x200), words(0x200, 0));
        assert!(written(PER_INTERRUPT_V3, 0x280).is_empty());
        assert_eq!(written(PER_INTERRUPT_V3, 0x080), words(0x080, u32::MAX));
    }
}
