//! Bare machine code.

#[cfg_attr(target_arch = "aarch64", path = "flat_aarch64.rs")]
#[cfg_attr(target_arch = "x86_64", path = "flat_x86_64.rs")]
mod native;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{Error, memory_error};
use crate::arch::CpuState;

/// Bare code, and the state it is entered in.
#[derive(Debug)]
pub(super) struct Flat {
    pub(super) bytes: Vec<u8>,
    pub(super) address: u64,
    pub(super) state: CpuState,
}

impl Flat {
    /// Whether the code fits into the memory of a machine with `ram_size` bytes.
    pub(super) fn check(&self, ram_size: u64) -> Result<(), Error> {
        let (address, len) = (self.address, self.bytes.len() as u64);
        let refuse = |why: String| Err(Error::CodeDoesNotFit { address, len, why });
        let in_ram = |end: u64| {
            native::ram_regions(ram_size)
                .iter()
                .any(|&(start, len)| address >= start && end <= start.saturating_add(len))
        };
        let Some(end) = address.checked_add(len).filter(|&end| in_ram(end)) else {
            return refuse(format!(
                "the machine has no memory there, of {ram_size:#x} bytes in all"
            ));
        };
        for (range, what) in native::reserved(&self.state) {
            if address < range.end && end > range.start {
                return refuse(format!("{range:#x?} is for {what}"));
            }
        }
        Ok(())
    }

    /// Puts the code, and what the state refers to, into memory.
    pub(super) fn load(&self, memory: &GuestMemoryMmap) -> Result<CpuState, Error> {
        memory
            .write_slice(&self.bytes, GuestAddress(self.address))
            .map_err(|error| memory_error("code", error))?;
        native::prepare(memory, &self.state).map_err(|error| memory_error("tables", error))?;
        Ok(self.state)
    }
}
