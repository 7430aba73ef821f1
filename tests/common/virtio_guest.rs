//! The `virtio-drivers` crate as a guest in this process: its drivers, on our registers and our guest memory.

use std::cell::RefCell;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use hyperkit::bus::BusDevice;
use hyperkit::virtio::VirtioDevice;
use hyperkit::virtio::mmio::MmioTransport;
use hyperkit::virtio::testing::CountingLine;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Error, Hal, PAGE_SIZE, PhysAddr};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use zerocopy::{FromBytes, Immutable, IntoBytes};

const RAM: [(u64, usize); 2] = [(0, 8 << 20), (16 << 20, 8 << 20)];

/// Runs `test` on a thread of its own, which is the guest, and fails if that takes too long: drivers spin.
pub fn guest(test: impl FnOnce() + Send + 'static) {
    let (done, wait) = channel();
    let thread = std::thread::spawn(move || {
        test();
        let _ = done.send(());
    });
    match wait.recv_timeout(Duration::from_secs(60)) {
        Err(RecvTimeoutError::Timeout) => panic!("the driver got no answer"),
        _ => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
    }
}

/// The memory of the guest that runs on this thread: pages in use, each with the number of those that belong to it.
struct Arena {
    memory: GuestMemoryMmap,
    pages: Vec<bool>,
}

thread_local! {
    static ARENA: RefCell<Arena> = RefCell::new(Arena {
        memory: GuestMemoryMmap::from_ranges(&RAM.map(|(at, len)| (GuestAddress(at), len))).unwrap(),
        pages: vec![false; 2 * RAM[0].1 / PAGE_SIZE],
    });
}

impl Arena {
    /// The second half of the pages is in the second region. Page 0 is never given out.
    fn address(page: usize) -> u64 {
        let half = RAM[0].1 / PAGE_SIZE;
        RAM[page / half].0 + (page % half * PAGE_SIZE) as u64
    }

    fn page(address: u64) -> usize {
        let region = usize::from(address >= RAM[1].0);
        (address - RAM[region].0) as usize / PAGE_SIZE + region * RAM[0].1 / PAGE_SIZE
    }

    fn alloc(&mut self, count: usize) -> u64 {
        let half = RAM[0].1 / PAGE_SIZE;
        let fits = |&at: &usize| {
            at / half == (at + count - 1) / half && !self.pages[at..at + count].contains(&true)
        };
        let at = (1..=self.pages.len() - count).find(fits).expect("out of guest memory");
        self.pages[at..at + count].fill(true);
        Self::address(at)
    }

    fn free(&mut self, address: u64, count: usize) {
        let at = Self::page(address);
        assert!(self.pages[at..at + count].iter().all(|&used| used));
        self.pages[at..at + count].fill(false);
    }
}

/// Pages of guest memory in use on this thread.
pub fn pages_in_use() -> usize {
    ARENA.with_borrow(|arena| arena.pages.iter().filter(|&&used| used).count())
}

/// Guest memory of this thread, for drivers. Buffers are copied there and back, as an IOMMU-less guest with bounce
/// buffers does.
pub enum Ram {}

// SAFETY: pages come from a mapping that lives as long as the thread, page-aligned, and are given out once until they
// are returned; they are zeroed. The thread's drivers do not outlive it.
unsafe impl Hal for Ram {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        ARENA.with_borrow_mut(|arena| {
            let at = arena.alloc(pages);
            let zeros = vec![0; pages * PAGE_SIZE];
            arena.memory.write_slice(&zeros, GuestAddress(at)).unwrap();
            let host = arena.memory.get_host_address(GuestAddress(at)).unwrap();
            (at, NonNull::new(host).unwrap())
        })
    }

    unsafe fn dma_dealloc(at: PhysAddr, _host: NonNull<u8>, pages: usize) -> i32 {
        ARENA.with_borrow_mut(|arena| arena.free(at, pages));
        0
    }

    unsafe fn mmio_phys_to_virt(_at: PhysAddr, _size: usize) -> NonNull<u8> {
        unreachable!("registers are reached through the transport")
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        ARENA.with_borrow_mut(|arena| {
            let at = arena.alloc(buffer.len().div_ceil(PAGE_SIZE));
            if direction != BufferDirection::DeviceToDriver {
                // SAFETY: the caller passes a buffer that nobody else uses meanwhile.
                let bytes = unsafe { buffer.as_ref() };
                arena.memory.write_slice(bytes, GuestAddress(at)).unwrap();
            }
            at
        })
    }

    unsafe fn unshare(at: PhysAddr, mut buffer: NonNull<[u8]>, direction: BufferDirection) {
        ARENA.with_borrow_mut(|arena| {
            if direction != BufferDirection::DriverToDevice {
                // SAFETY: as above.
                let bytes = unsafe { buffer.as_mut() };
                arena.memory.read_slice(bytes, GuestAddress(at)).unwrap();
            }
            arena.free(at, buffer.len().div_ceil(PAGE_SIZE));
        });
    }
}

/// A device in the machine of this thread, as its driver sees it.
#[derive(Clone)]
pub struct Slot {
    pub device: Arc<MmioTransport>,
    pub line: Arc<CountingLine>,
}

impl Slot {
    /// Plugs `device` in.
    pub fn new(device: impl VirtioDevice + 'static) -> Self {
        let memory = ARENA.with_borrow(|arena| arena.memory.clone());
        let line = Arc::new(CountingLine::default());
        let device = MmioTransport::new(Box::new(device), memory, line.clone()).unwrap();
        Self { device, line }
    }

    /// What a driver is given.
    pub fn transport(&self) -> Registers {
        Registers(self.clone())
    }

    pub fn read(&self, register: u64) -> u32 {
        let mut data = [0xff; 4];
        self.device.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn write(&self, register: u64, value: u32) {
        assert!(self.device.write(register, &value.to_le_bytes()).is_continue());
    }
}

/// The registers of a device: what a driver's accesses become.
pub struct Registers(Slot);

const CONFIG: usize = 0x100;

impl Transport for Registers {
    fn device_type(&self) -> DeviceType {
        self.0.read(0x008).try_into().unwrap()
    }

    fn read_device_features(&mut self) -> u64 {
        [1, 0].iter().fold(0, |sum, &select| {
            self.0.write(0x014, select);
            sum << 32 | u64::from(self.0.read(0x010))
        })
    }

    fn write_driver_features(&mut self, features: u64) {
        for select in [0, 1] {
            self.0.write(0x024, select);
            self.0.write(0x020, (features >> (32 * select)) as u32);
        }
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.0.write(0x030, queue.into());
        self.0.read(0x034)
    }

    fn notify(&mut self, queue: u16) {
        self.0.write(0x050, queue.into());
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_truncate(self.0.read(0x070))
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.0.write(0x070, status.bits());
    }

    fn set_guest_page_size(&mut self, _size: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(&mut self, queue: u16, size: u32, table: u64, driver: u64, device: u64) {
        self.0.write(0x030, queue.into());
        self.0.write(0x038, size);
        for (register, address) in [(0x080, table), (0x090, driver), (0x0a0, device)] {
            self.0.write(register, address as u32);
            self.0.write(register + 4, (address >> 32) as u32);
        }
        self.0.write(0x044, 1);
    }

    /// As the crate's own MMIO transport does it, spinning included.
    fn queue_unset(&mut self, queue: u16) {
        self.0.write(0x030, queue.into());
        self.0.write(0x044, 0);
        while self.0.read(0x044) != 0 {}
        for register in [0x038, 0x080, 0x084, 0x090, 0x094, 0x0a0, 0x0a4] {
            self.0.write(register, 0);
        }
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.0.write(0x030, queue.into());
        self.0.read(0x044) != 0
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        let status = self.0.read(0x060);
        self.0.write(0x064, status);
        InterruptStatus::from_bits_truncate(status)
    }

    fn read_config_generation(&self) -> u32 {
        self.0.read(0x0fc)
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, Error> {
        let mut value = T::new_zeroed();
        self.0.device.read((CONFIG + offset) as u64, value.as_mut_bytes());
        Ok(value)
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: T,
    ) -> Result<(), Error> {
        let _ = self.0.device.write((CONFIG + offset) as u64, value.as_bytes());
        Ok(())
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        self.set_status(DeviceStatus::empty());
    }
}
