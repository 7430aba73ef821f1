//! How a test writes a guest, runs it, and hears from it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use hyperkit::accel::kvm::Kvm;
use hyperkit::arch::CpuState;
use hyperkit::boot::Kernel;
use hyperkit::bus::{BusDevice, Flow};
use hyperkit::vm::{Vm, VmBuilder};

/// Where guests are loaded and entered.
pub const CODE: u64 = 0x10_0000;
/// The port that guests report on.
pub const PORT: u16 = 0x500;
/// More than any guest here needs, less than a person's patience.
pub const SOON: Duration = Duration::from_secs(20);

/// Assembles a guest: `guest!(NAME, "instruction", …)` gives `fn NAME() -> &'static [u8]`.
macro_rules! guest {
    ($name:ident, $($line:expr),+ $(,)?) => {
        std::arch::global_asm!(
            ".pushsection .rodata.guests, \"a\"",
            concat!(".globl guest_", stringify!($name), "_start, guest_", stringify!($name), "_end"),
            concat!("guest_", stringify!($name), "_start:"),
            $($line,)+
            concat!("guest_", stringify!($name), "_end:"),
            ".popsection",
        );
        fn $name() -> &'static [u8] {
            unsafe extern "C" {
                #[link_name = concat!("guest_", stringify!($name), "_start")]
                static START: u8;
                #[link_name = concat!("guest_", stringify!($name), "_end")]
                static END: u8;
            }
            let (start, end) = (&raw const START, &raw const END);
            // SAFETY: both symbols lie in one read-only section, in this order.
            unsafe { std::slice::from_raw_parts(start, end.offset_from(start) as usize) }
        }
    };
}
pub(crate) use guest;

/// Whether there is a KVM here; says that the test is skipped if not.
pub fn have_kvm() -> bool {
    match Kvm::open() {
        Ok(_) => true,
        Err(error) => {
            eprintln!("skipped: {error}");
            false
        }
    }
}

/// A device that hands every write to the test, and gives the guest what the test laid out.
pub struct Reporter {
    writes: Mutex<mpsc::Sender<(u64, Vec<u8>)>>,
    reads: AtomicU64,
    count: AtomicU64,
}

impl Reporter {
    pub fn new() -> (Arc<Self>, Writes) {
        let (writes, received) = mpsc::channel();
        let reporter = Self {
            writes: Mutex::new(writes),
            reads: AtomicU64::new(0x8877_6655_4433_2211),
            count: AtomicU64::new(0),
        };
        (Arc::new(reporter), received)
    }

    /// How many writes there were.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// What the next reads give, little-endian, whatever their offset.
    pub fn lay_out(&self, value: u64) {
        self.reads.store(value, Ordering::Relaxed);
    }
}

impl BusDevice for Reporter {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        let bytes = self.reads.load(Ordering::Relaxed).to_le_bytes();
        data.copy_from_slice(&bytes[..data.len()]);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Flow {
        self.count.fetch_add(1, Ordering::Relaxed);
        // The test may have heard enough.
        let _ = self.writes.lock().unwrap().send((offset, data.to_vec()));
        Flow::Continue(())
    }
}

/// What a [`Reporter`] hears: offset and data of each write.
pub type Writes = mpsc::Receiver<(u64, Vec<u8>)>;

/// A machine around `code` in 64-bit mode, with a [`Reporter`] on eight ports and 2 KiB of MMIO, and nothing else.
pub fn machine(code: &[u8]) -> (VmBuilder, Arc<Reporter>, Writes) {
    let (reporter, received) = Reporter::new();
    let builder = Vm::builder()
        .memory(16 << 20)
        .rng(false)
        .kernel(Kernel::flat(code, CODE, CpuState::long_mode(CODE)))
        .port_device("reporter", PORT, 8, reporter.clone())
        .mmio_device("reporter", 0xe000_0000, 0x800, reporter.clone());
    (builder, reporter, received)
}

/// Everything a guest wrote, up to now.
pub fn written(received: &Writes) -> Vec<(u64, Vec<u8>)> {
    received.try_iter().collect()
}
