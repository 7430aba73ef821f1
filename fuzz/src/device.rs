//! The virtio devices, with host sides that can be looked at, and the request that must work after everything.

use hyperkit::bus::{Bus, BusView};
use hyperkit::console::{Console, RingBuffer};
use hyperkit::disk::{Disk, Engine, MemoryDisk};
use hyperkit::virtio::testing::{Buffer, Guest, Ring};
use hyperkit::virtio::{MmioTransport, blk, console, feature, rng, vsock};
use hyperkit::vsock::{Vsock, VsockHandle};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use vm_memory::{Bytes, GuestAddress};

use crate::packet::recover;

/// Queue of the console for output.
const TRANSMIT: usize = 1;
const LAST_WORDS: &[u8] = b"still here";
/// The size of a disk, and its queues.
const DISK: u64 = 1 << 20;
/// Queues of a disk.
pub const DISK_QUEUES: u8 = 2;

/// A device under test.
pub struct Device {
    /// The device and its registers.
    pub guest: Guest,
    kind: Kind,
}

enum Kind {
    Rng,
    /// What it wrote.
    Console(RingBuffer),
    Disk {
        read_only: bool,
        /// What is under it, if that is a file.
        file: Option<File>,
    },
    Sockets(VsockHandle),
}

impl Device {
    /// An entropy device.
    pub fn rng() -> Self {
        Self { guest: Guest::new(rng::Rng::new()), kind: Kind::Rng }
    }

    /// A console that `input` is typed on.
    pub fn console(input: Option<Box<dyn Read + Send>>) -> (Self, hyperkit::console::OpenConsole) {
        let output = RingBuffer::new();
        let mut host = Console::ring(output.clone());
        if let Some(input) = input {
            host = host.and(Console::input(input));
        }
        let host = host.open().expect("the console opens");
        let guest = Guest::new(console::Console::new(host.port()));
        (Self { guest, kind: Kind::Console(output) }, host)
    }

    /// A disk: in memory, or in a file through one of the engines, as the lowest bits of `how` say; only to be read if
    /// bit 2 is set.
    pub fn disk(how: u8) -> Self {
        let engine = [None, None, Some(Engine::Auto), Some(Engine::Threads)][usize::from(how % 4)];
        let read_only = how & 4 != 0;
        let file = engine.map(|_| {
            let file = memfd_create("disk", MemfdFlags::CLOEXEC).expect("memfds can be had");
            ftruncate(&file, DISK).expect("a memfd grows");
            File::from(file)
        });
        let disk = match (&file, engine) {
            (Some(file), Some(engine)) => {
                let path = format!("/proc/self/fd/{}", file.as_raw_fd());
                Disk::raw(path).expect("a memfd is a file").engine(engine)
            }
            _ => Disk::backend(MemoryDisk::new(DISK as usize)),
        };
        let disk = disk.serial("fuzz").queues(DISK_QUEUES.into());
        let disk = if read_only { disk.read_only() } else { disk };
        let disk = disk.open().expect("the disk opens");
        let guest = Guest::new(blk::Block::new(disk, 1).expect("there is an engine"));
        Self { guest, kind: Kind::Disk { read_only, file } }
    }

    /// Sockets that nobody on the host has anything to do with.
    pub fn sockets() -> Self {
        let host = Vsock::new().open().expect("the host side opens");
        let kind = Kind::Sockets(host.handle());
        Self { guest: Guest::new(vsock::SocketDevice::new(host)), kind }
    }

    /// A vCPU's way to the registers, at address 0.
    pub fn bus(&self) -> BusView {
        let mut bus = Bus::new();
        let transport = self.guest.transport.clone();
        bus.insert("device", 0, MmioTransport::SIZE, transport).expect("the bus is empty");
        BusView::new(Arc::new(bus))
    }

    /// Waits until kicks that came before are seen to: the first order is taken together with them, the
    /// second after them.
    pub fn settle(&self) {
        for _ in 0..2 {
            self.guest.transport.pause();
            self.guest.transport.resume();
        }
    }

    /// Resets the device; it must do a good request then.
    pub fn recover(&mut self) {
        self.guest.reset();
        self.guest.transport.resume();
        let rings = &mut self.guest.start(feature::INDIRECT_DESC, 64);
        let at = self.guest.alloc(64);
        match &self.kind {
            Kind::Rng => {
                let ring = &mut rings[0];
                let head = ring.request(&[Buffer::In(at, 64)]);
                self.guest.kick(ring);
                assert_eq!(self.guest.wait(ring), (head, 64));
            }
            Kind::Console(output) => {
                let memory = &self.guest.memory;
                memory.write_slice(LAST_WORDS, GuestAddress(at)).expect("the buffer is in RAM");
                let ring = &mut rings[TRANSMIT];
                let head = ring.request(&[Buffer::Out(at, LAST_WORDS.len() as u32)]);
                self.guest.kick(ring);
                assert_eq!(self.guest.wait(ring), (head, 0));
                assert!(output.contents().ends_with(LAST_WORDS), "the output is not there");
            }
            Kind::Sockets(handle) => recover(&mut self.guest, rings, handle),
            Kind::Disk { read_only, file } => {
                let at = self.guest.alloc(0x1000);
                recover_disk(&self.guest, &mut rings[0], at, *read_only);
                if let Some(mut file) = file.as_ref().filter(|_| *read_only) {
                    let mut bytes = Vec::new();
                    file.read_to_end(&mut bytes).expect("a memfd can be read");
                    assert!(bytes == [0; DISK as usize], "a disk that is only read was written to");
                }
                if let Some(file) = file {
                    assert_eq!(file.metadata().expect("a memfd has a size").len(), DISK);
                }
            }
        }
        assert_eq!(self.guest.status() & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
    }
}

/// The last sector of a disk is written, if it can be, and read.
fn recover_disk(guest: &Guest, ring: &mut Ring, at: u64, read_only: bool) {
    let [header, data, back, status] = [0, 0x200, 0x400, 0x600].map(|offset| at + offset);
    let mut ask = |kind: u32, buffer| {
        let header_bytes = [u64::from(kind), DISK / 512 - 1].map(u64::to_le_bytes).concat();
        guest.memory.write_slice(&header_bytes, GuestAddress(header)).expect("it is in RAM");
        let head = ring.request(&[Buffer::Out(header, 16), buffer, Buffer::In(status, 1)]);
        guest.kick(ring);
        assert_eq!(guest.wait(ring).0, head);
        guest.memory.read_obj::<u8>(GuestAddress(status)).expect("it is in RAM")
    };
    guest.memory.write_slice(&[0x5a; 512], GuestAddress(data)).expect("it is in RAM");
    assert_eq!(ask(VIRTIO_BLK_T_OUT, Buffer::Out(data, 512)), read_only.into());
    assert_eq!(ask(VIRTIO_BLK_T_IN, Buffer::In(back, 512)), 0);
    let mut bytes = [0xff; 512];
    guest.memory.read_slice(&mut bytes, GuestAddress(back)).expect("it is in RAM");
    assert_eq!(bytes, [if read_only { 0 } else { 0x5a }; 512]);
}
