//! Accesses to devices: KVM's way of completing them, seen as the framework's.
//!
//! KVM ends a run with the address, the length and, for a store, the bytes. The bytes of a load are left in `kvm_run`,
//! and the next `KVM_RUN` puts them into the register, extends them and advances the program counter before
//! anything else. The framework ends a run with a syndrome, at the instruction, and its caller does all of that.
//!
//! In between stands an [`Access`]. It makes up the register of the syndrome; while the access is open, that register
//! holds what is stored, or takes what is loaded, and the program counter can be set to the next instruction,
//! which closes the access. KVM is told with the next run, or before the next look at a register.
//!
//! What is made up changes from access to access, so that every field of the syndrome matters: the register, with
//! XZR for some of the stores of zero, and for loads whether they extend the sign, and to how many bits.

/// The register number that is XZR in a syndrome. To the framework it is the program counter.
const XZR: u32 = 31;

/// A load or store that ended a run.
pub struct Access {
    register: u32,
    len: u32,
    kind: Kind,
}

enum Kind {
    /// Whether the sign is extended, whether to 64 bits, and what the caller has set.
    Load { sign: bool, wide: bool, value: Option<u64> },
    /// What the register holds.
    Store { value: u64 },
}

impl Access {
    /// A load of `len` bytes, the `turn`th access.
    pub fn load(len: u32, turn: u32) -> Self {
        let (sign, wide) = (turn & 1 != 0 && len < 8, turn & 2 != 0 || len == 8);
        Self { register: turn % XZR, len, kind: Kind::Load { sign, wide, value: None } }
    }

    /// A store of `data`, the `turn`th access. Above the stored bytes the register holds what happens to be there.
    pub fn store(data: &[u8], turn: u32) -> Self {
        let mut bytes = [0xa5; 8];
        for (to, from) in bytes.iter_mut().zip(data) {
            *to = *from;
        }
        let zero = data.iter().all(|byte| *byte == 0);
        let (register, value) = match zero && turn & 1 != 0 {
            true => (XZR, 0),
            false => (turn % XZR, u64::from_le_bytes(bytes)),
        };
        Self { register, len: data.len() as u32, kind: Kind::Store { value } }
    }

    /// ESR_EL2: a data abort from a lower exception level, translation fault at level 2 (Arm ARM, D24.2.39).
    pub fn syndrome(&self) -> u64 {
        let (sign, wide, store) = match self.kind {
            Kind::Load { sign, wide, .. } => (sign, wide, false),
            Kind::Store { .. } => (false, self.len == 8, true),
        };
        let class = 0x24 << 26 | 1 << 25;
        let valid = 1 << 24 | u64::from(self.len.ilog2()) << 22;
        let to = u64::from(sign) << 21 | u64::from(self.register) << 16 | u64::from(wide) << 15;
        class | valid | to | u64::from(store) << 6 | 0x06
    }

    /// What the register holds, if it is the one of this access.
    pub fn get(&self, register: u32) -> Option<u64> {
        match self.kind {
            _ if register != self.register || register == XZR => None,
            Kind::Load { value, .. } => value,
            Kind::Store { value } => Some(value),
        }
    }

    /// Sets the register; `false` if that is none that this access changes, or the value is not extended as the syndrome
    /// says.
    pub fn set(&mut self, register: u32, new: u64) -> bool {
        let Kind::Load { sign, wide, value } = &mut self.kind else {
            return false;
        };
        let unused = 64 - 8 * self.len;
        let extended = match *sign {
            true => ((new << unused) as i64 >> unused) as u64,
            false => new << unused >> unused,
        };
        let expected = if *wide { extended } else { extended & u64::from(u32::MAX) };
        *value = Some(new);
        register == self.register && new == expected
    }

    /// Whether everything is done but advancing the program counter.
    pub fn is_answered(&self) -> bool {
        !matches!(self.kind, Kind::Load { value: None, .. })
    }

    /// What a load found, for KVM.
    pub fn loaded(&self) -> Option<[u8; 8]> {
        match self.kind {
            Kind::Load { value: Some(value), .. } => Some(value.to_le_bytes()),
            _ => None,
        }
    }
}
