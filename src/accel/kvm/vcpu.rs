//! A KVM vCPU: the inner half of the exit loop.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::NonNull;
use std::sync::Arc;

use kvm_bindings::*;
use kvm_ioctls::VcpuFd;

use super::arch::{self, Pristine};
use super::kick::Kicks;
use super::vm::Shared;
use crate::accel::{AccelVcpu, Error, Exit, ExitHandler, Kicker};
use crate::arch::CpuState;
use crate::bus::Flow;

vmm_sys_util::ioctl_io_nr!(KVM_RUN, KVMIO, 0x80);

/// A vCPU of a [`KvmVm`](super::KvmVm).
pub struct KvmVcpu {
    fd: VcpuFd,
    raw: RawFd,
    /// The `struct kvm_run` that the kernel shares with us, `run_size` bytes, mapped as long as `fd` lives.
    run: NonNull<kvm_run>,
    run_size: usize,
    id: u32,
    kicks: Kicks,
    pristine: Pristine,
    shared: Arc<Shared>,
}

impl KvmVcpu {
    pub(super) fn new(shared: Arc<Shared>, mut fd: VcpuFd, id: u32) -> Result<Self, Error> {
        let run = NonNull::from(fd.get_kvm_run());
        let kicks = Kicks::on_this_thread(&fd)?;
        let pristine = shared.platform.prepare_vcpu(&fd, id, shared.cpus)?;
        let run_size = shared.vm.run_size();
        Ok(Self { raw: fd.as_raw_fd(), fd, run, run_size, id, kicks, pristine, shared })
    }

    /// Answers a port access of one or more elements (`rep ins`, `rep outs`).
    #[inline]
    fn port(&mut self, io: &mut impl ExitHandler) -> Flow {
        // SAFETY: the kernel filled the `io` member for KVM_EXIT_IO and does not touch it until the next KVM_RUN.
        let exit = unsafe { self.run.as_ref().__bindgen_anon_1.io };
        let size = usize::from(exit.size).max(1);
        let offset = exit.data_offset as usize;
        let len = size * exit.count as usize;
        if offset.checked_add(len).is_none_or(|end| end > self.run_size) {
            return Flow::Continue(());
        }
        // SAFETY: the range lies in the mapping, as was just checked, behind `kvm_run`, to which no reference lives.
        let data = unsafe {
            std::slice::from_raw_parts_mut(self.run.as_ptr().cast::<u8>().add(offset), len)
        };
        if u32::from(exit.direction) == KVM_EXIT_IO_IN {
            for element in data.chunks_exact_mut(size) {
                io.pio_read(exit.port, element);
            }
            return Flow::Continue(());
        }
        data.chunks_exact(size).try_for_each(|element| io.pio_write(exit.port, element))
    }

    #[inline]
    fn mmio(&mut self, io: &mut impl ExitHandler) -> Flow {
        // SAFETY: the kernel filled the `mmio` member for KVM_EXIT_MMIO and does not touch it until the next KVM_RUN.
        let exit = unsafe { &mut self.run.as_mut().__bindgen_anon_1.mmio };
        let len = (exit.len as usize).min(exit.data.len());
        if exit.is_write == 0 {
            io.mmio_read(exit.phys_addr, &mut exit.data[..len]);
            return Flow::Continue(());
        }
        io.mmio_write(exit.phys_addr, &exit.data[..len])
    }

    /// Lets the kernel finish the instruction whose access was answered last, without running the next one.
    fn finish_instruction(&mut self) {
        self.fd.set_kvm_immediate_exit(1);
        // SAFETY: KVM_RUN takes no argument.
        unsafe { libc::ioctl(self.raw, KVM_RUN() as _, 0) };
        self.fd.set_kvm_immediate_exit(0);
    }

    /// Everything but port and memory accesses. `None` to go on.
    #[cold]
    fn other_exit(&mut self, reason: u32) -> Result<Option<Exit>, Error> {
        // SAFETY: a shared look at what the kernel filled in; each member is read only for its own exit reason.
        let union = unsafe { &self.run.as_ref().__bindgen_anon_1 };
        let vcpu = self.id;
        match reason {
            KVM_EXIT_INTR => Ok(self.kicks.take().then_some(Exit::Interrupted)),
            KVM_EXIT_HLT => Ok(Some(Exit::Halted)),
            KVM_EXIT_SHUTDOWN => Ok(Some(Exit::Crashed)),
            KVM_EXIT_SYSTEM_EVENT => {
                // SAFETY: as above.
                match unsafe { union.system_event.type_ } {
                    KVM_SYSTEM_EVENT_SHUTDOWN => Ok(Some(Exit::PowerOff)),
                    KVM_SYSTEM_EVENT_RESET => Ok(Some(Exit::Reset)),
                    KVM_SYSTEM_EVENT_CRASH => Ok(Some(Exit::Crashed)),
                    _ => Err(Error::UnexpectedExit { vcpu, reason }),
                }
            }
            KVM_EXIT_FAIL_ENTRY => {
                // SAFETY: as above.
                let entry = unsafe { union.fail_entry };
                Err(Error::FailEntry { vcpu, reason: entry.hardware_entry_failure_reason })
            }
            KVM_EXIT_INTERNAL_ERROR => {
                // SAFETY: as above; the two members share their first field.
                let (internal, emulation) = unsafe { (union.internal, union.emulation_failure) };
                // SAFETY: plain bytes behind a flag that says whether they are there.
                let told = unsafe { emulation.__bindgen_anon_1.__bindgen_anon_1 };
                let flag = u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES);
                let bytes = (internal.suberror == KVM_INTERNAL_ERROR_EMULATION
                    && emulation.ndata >= 3
                    && emulation.flags & flag != 0)
                    .then(|| {
                        let len = usize::from(told.insn_size).min(told.insn_bytes.len());
                        told.insn_bytes[..len].to_vec()
                    });
                Err(self.internal_error(internal.suberror, bytes))
            }
            _ => arch::other_exit(&self.fd, reason, vcpu),
        }
    }

    fn internal_error(&self, suberror: u32, bytes: Option<Vec<u8>>) -> Error {
        let pc = arch::program_counter(&self.fd);
        let reason = match suberror {
            KVM_INTERNAL_ERROR_EMULATION => "KVM cannot emulate the instruction".into(),
            KVM_INTERNAL_ERROR_SIMUL_EX => "two exceptions at once".into(),
            KVM_INTERNAL_ERROR_DELIVERY_EV => "an event could not be delivered".into(),
            other => format!("KVM_EXIT_INTERNAL_ERROR, suberror {other}"),
        };
        let bytes = bytes.unwrap_or_else(|| {
            let ram = self.shared.ram.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            ram.as_ref().map(|ram| arch::instruction_at(&self.fd, ram, pc)).unwrap_or_default()
        });
        Error::Internal { vcpu: self.id, reason, pc, bytes }
    }
}

/// For ioctls of the caller's own.
impl AsRawFd for KvmVcpu {
    fn as_raw_fd(&self) -> RawFd {
        self.raw
    }
}

impl AccelVcpu for KvmVcpu {
    #[inline]
    fn run(&mut self, io: &mut impl ExitHandler) -> Result<Exit, Error> {
        loop {
            // SAFETY: KVM_RUN takes no argument; guest memory that it writes is only accessed volatilely.
            if unsafe { libc::ioctl(self.raw, KVM_RUN() as _, 0) } != 0 {
                let source = io::Error::last_os_error();
                match source.raw_os_error() {
                    Some(libc::EINTR) if self.kicks.take() => return Ok(Exit::Interrupted),
                    // EAGAIN: an application processor was started and has to enter anew.
                    Some(libc::EINTR | libc::EAGAIN) => continue,
                    _ => {
                        let on = format!(" on vCPU {}", self.id);
                        return Err(Error::Call { call: "KVM_RUN", on, source });
                    }
                }
            }
            // SAFETY: the kernel wrote it before KVM_RUN returned.
            let flow = match unsafe { self.run.as_ref().exit_reason } {
                KVM_EXIT_IO => self.port(io),
                KVM_EXIT_MMIO => self.mmio(io),
                reason => match self.other_exit(reason)? {
                    Some(exit) => return Ok(exit),
                    None => continue,
                },
            };
            if let Flow::Break(exit) = flow {
                self.finish_instruction();
                return Ok(exit);
            }
        }
    }

    fn kicker(&self) -> Kicker {
        self.kicks.kicker()
    }

    fn reset(&mut self, state: Option<&CpuState>) -> Result<(), Error> {
        self.pristine.load(&self.fd, self.id)?;
        match state {
            Some(state) => arch::set_state(&self.fd, state, self.id),
            None => Ok(()),
        }
    }

    fn state(&self) -> Result<CpuState, Error> {
        arch::state(&self.fd, self.id)
    }
}
