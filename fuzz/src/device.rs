//! The virtio devices, with host sides that can be looked at, and the request that must work after everything.

use hyperkit::bus::{Bus, BusView};
use hyperkit::console::{Console, RingBuffer};
use hyperkit::virtio::testing::{Buffer, Guest};
use hyperkit::virtio::{MmioTransport, console, feature, rng};
use std::io::Read;
use std::sync::Arc;
use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use vm_memory::{Bytes, GuestAddress};

/// Queue of the console for output.
const TRANSMIT: usize = 1;
const LAST_WORDS: &[u8] = b"still here";

/// A device under test.
pub struct Device {
    /// The device and its registers.
    pub guest: Guest,
    /// What a console wrote; `None` for other devices.
    output: Option<RingBuffer>,
}

impl Device {
    /// An entropy device.
    pub fn rng() -> Self {
        Self { guest: Guest::new(rng::Rng::new()), output: None }
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
        (Self { guest, output: Some(output) }, host)
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
        match &self.output {
            None => {
                let ring = &mut rings[0];
                let head = ring.request(&[Buffer::In(at, 64)]);
                self.guest.kick(ring);
                assert_eq!(self.guest.wait(ring), (head, 64));
            }
            Some(output) => {
                let memory = &self.guest.memory;
                memory.write_slice(LAST_WORDS, GuestAddress(at)).expect("the buffer is in RAM");
                let ring = &mut rings[TRANSMIT];
                let head = ring.request(&[Buffer::Out(at, LAST_WORDS.len() as u32)]);
                self.guest.kick(ring);
                assert_eq!(self.guest.wait(ring), (head, 0));
                assert!(output.contents().ends_with(LAST_WORDS), "the output is not there");
            }
        }
        assert_eq!(self.guest.status() & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
    }
}
