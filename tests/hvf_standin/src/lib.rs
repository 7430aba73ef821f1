//! A stand-in for Hypervisor.framework on Apple silicon: the functions of it that hyperkit calls, by the same names and
//! with the same types, over KVM on arm64 Linux.
//!
//! With it the very code that runs on Macs, `src/accel/hvf`, is compiled, linked and driven on Linux: it creates
//! machines, runs vCPUs, takes syndromes apart, answers PSCI, is kicked, and boots unmodified kernels. It exists for
//! `RUSTFLAGS="--cfg hyperkit_hvf_standin"` and the target aarch64-unknown-linux-*; otherwise this crate is empty.
//!
//! # What it does as the framework does
//!
//! After Apple's headers (macOS 15 and later), and what other virtual machine monitors found out:
//!
//! * A process has one machine: the second `hv_vm_create` is `HV_BUSY`, and so is `hv_vm_destroy` while there are vCPUs.
//! * A vCPU belongs to the thread that made it, and a thread has one vCPU. Every call about it from another thread is
//!   `HV_BAD_ARGUMENT`, but `hv_vcpus_exit`.
//! * `hv_vcpus_exit` of a vCPU that is not running makes its next `hv_vcpu_run` return at once, canceled, without a guest
//!   instruction. Signals to the thread do not end a run.
//! * A load or store where no memory is ends the run as a data abort with the syndrome that the processor gives
//!   (ISV, SAS, SSE, SRT, SF, WnR), the guest at the instruction: the caller fetches the stored value from the
//!   register, sets the loaded one, and advances the program counter. See `access.rs`.
//! * HVC ends the run behind the instruction, SMC at it.
//! * `hv_vm_map` takes multiples of 16 KiB only.
//! * The interrupt controller is made after the machine and before its vCPUs, takes its place in memory from its
//!   configuration, and is not seen again: interrupts wake vCPUs, the virtual timer interrupts by itself, and WFI does not
//!   end a run. `hv_gic_set_spi` takes any interrupt that is neither private nor a message; for an edge `true` is the
//!   edge and `false` nothing. A vCPU has a redistributor once its MPIDR_EL1 was set.
//! * `os_release` frees configuration objects; the counter is `mach_absolute_time` less the offset.
//!
//! # What it asks for beyond the framework
//!
//! Calls that would only work by chance are refused, with a word on standard error: an access that is not completed,
//! a loaded value that is not extended as the syndrome says.
//!
//! # What it cannot do
//!
//! * KVM does not tell which register an instruction loads or stores: the number is made up, and changes from access to
//!   access. Nor does it tell the virtual address, which reads as 0.
//! * KVM answers in the kernel what the framework leaves to its caller: system registers that trap, WFI and WFE where there
//!   is no interrupt controller, instruction aborts, cache maintenance on devices. The exits for them never come, nor does
//!   `HV_EXIT_REASON_VTIMER_ACTIVATED`.
//! * PSCI calls come out where the kernel has KVM's SMCCC filter, Linux 6.4 and later. Before that KVM answers
//!   them itself, HVC never ends a run but for power-off and reset, and a machine has one vCPU. Calls of the SMCCC itself
//!   (`SMCCC_VERSION` and `SMCCC_ARCH_*`) are KVM's everywhere.
//! * The registers of the interrupt controller's message frame are not there, and what `hv_gic_set_icc_reg` writes
//!   is forgotten while another vCPU runs.
//! * The kind of processor, its errata and what its registers read at reset are those of the host.
//! * Registers that this processor lacks, or KVM does not show, read as zero and forget what is written. The framework
//!   refuses those that it does not know.
//! * Nothing is known of speed.

#![cfg(all(hyperkit_hvf_standin, target_os = "linux", target_arch = "aarch64"))]

mod abi;
mod access;
mod gic;
mod kick;
mod registers;
mod vcpu;
mod vm;
