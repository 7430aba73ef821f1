//! Which processor is which: the affinities that guests know processors by (Arm ARM, MPIDR_EL1).
//!
//! Sixteen processors make a cluster, because GICv3 addresses its software interrupts to sixteen processors of the same
//! higher affinities at a time (Aff0 is below 16). Clusters are counted in Aff1, then Aff2, then Aff3.

/// Bits of Aff0 in use.
const AFF0_BITS: u32 = 4;
const AFF1_SHIFT: u32 = 8;
const AFF3_SHIFT: u32 = 32;
/// Bits of Aff1 and Aff2, which lie side by side.
const AFF12_BITS: u32 = 16;
/// Bit 31 of the register, which is one.
const RES1: u64 = 1 << 31;

/// Processors that can be told apart.
pub const MAX: u32 = 1 << (AFF0_BITS + AFF12_BITS + 8);

/// The affinity of a processor, as the device tree and PSCI have it: bits 39 to 32 and 23 to 0. Counts round at [`MAX`].
pub fn affinity(vcpu: u32) -> u64 {
    let [aff0, clusters] = [vcpu & ((1 << AFF0_BITS) - 1), (vcpu % MAX) >> AFF0_BITS];
    let aff12 = clusters & ((1 << AFF12_BITS) - 1);
    let aff3 = clusters >> AFF12_BITS;
    u64::from(aff0) | u64::from(aff12) << AFF1_SHIFT | u64::from(aff3) << AFF3_SHIFT
}

/// What a processor's MPIDR_EL1 reads.
pub fn mpidr(vcpu: u32) -> u64 {
    affinity(vcpu) | RES1
}

/// The processor with this affinity; `None` if no processor could have it.
pub fn vcpu(affinity: u64) -> Option<u32> {
    let aff0 = affinity as u32 & ((1 << AFF0_BITS) - 1);
    let aff12 = affinity as u32 >> AFF1_SHIFT & ((1 << AFF12_BITS) - 1);
    let aff3 = (affinity >> AFF3_SHIFT) as u32 & 0xff;
    let vcpu = aff0 | aff12 << AFF0_BITS | aff3 << (AFF0_BITS + AFF12_BITS);
    (self::affinity(vcpu) == affinity).then_some(vcpu)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::aarch64::layout::MAX_CPUS;
    use crate::random::Random;

    #[test]
    fn affinities_are_those_of_gic_v3() {
        for (n, expected) in [
            (0, 0),
            (15, 0xf),
            (16, 0x100),
            (MAX_CPUS - 1, 0x1f0f),
            (0xffff, 0xf_ff0f),
            (0xf_ffff, 0xff_ff0f),
            (0x10_0000, 0x1_0000_0000),
            (MAX - 1, 0xff_00ff_ff0f),
        ] {
            assert_eq!(affinity(n), expected, "processor {n}");
            assert_eq!(mpidr(n), expected | 0x8000_0000, "processor {n}");
            assert_eq!(vcpu(expected), Some(n), "affinity {expected:#x}");
        }
    }

    #[test]
    fn any_affinity_belongs_to_one_processor_or_none() {
        let mut random = Random(1);
        for _ in 0..100_000 {
            let any = random.next() >> random.below(64);
            match vcpu(any) {
                Some(n) => assert_eq!((affinity(n), n < MAX), (any, true)),
                // Aff0 above 15, or bits that are not affinity.
                None => assert_ne!(any & !0xff_00ff_ff0f, 0, "{any:#x}"),
            }
            assert!(vcpu(affinity(random.next() as u32)).is_some());
        }
    }
}
