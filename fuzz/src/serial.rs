//! A serial port, of a PC or of an arm64 machine: any access to its registers while somebody types.
//!
//! At the end the port is reset, more is typed, and the guest polls as the simplest driver does: what it gets is what
//! was typed, without a byte lost or changed, as far back as it had not been taken before the reset.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use hyperkit::bus::{Bus, BusDevice, BusView};
use hyperkit::console::{Console, RingBuffer};
use hyperkit::device::pl011::Pl011;
use hyperkit::device::serial::Serial;
use hyperkit::virtio::testing::CountingLine;

use crate::ops::{access, parse};
use crate::{fields, operations};

fields! {
    /// The start of an input.
    pub struct Head {
        /// Bit 0: there is a keyboard. Bit 1: it is a PL011.
        pub kind: u8,
    }
}

operations! {
    /// What the guest and the user do.
    pub enum Op(4) {
        /// `in`.
        0 => Read { offset: u8, len: u8 },
        /// `out`.
        1 => Write { offset: u8, len: u8, value: u64 },
        /// So many bytes from `first` upwards are typed.
        2 => Type { count: u8, first: u8 },
        /// The machine's reset.
        3 => Reset {},
    }
}

/// A serial port as a driver sees it that polls.
struct Registers {
    /// Where accesses go, from 0 on.
    len: u64,
    data: u64,
    status: u64,
    /// The bit of the status that tells whether there is input, and its value if there is.
    input: u8,
    ready: u8,
}

const PC: Registers = Registers { len: 16, data: 0, status: 5, input: 1, ready: 1 };
const ARM: Registers = Registers { len: 0x100, data: 0, status: 0x18, input: 0x10, ready: 0 };
/// What is typed last.
const LAST_WORDS: &[u8] = b"\x00are you there?\xff";
/// How long nothing may come.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes, about: a receiver without a FIFO gets them one by one, a few hundred a second on a busy machine.
const MOST_TYPED: usize = 4 << 10;

/// What has been typed and not read.
#[derive(Default)]
struct Keys {
    pending: VecDeque<u8>,
    unplugged: bool,
}

#[derive(Clone, Default)]
struct Keyboard(Arc<(Mutex<Keys>, Condvar)>);

impl Keyboard {
    fn change(&self, change: impl FnOnce(&mut Keys)) {
        let (keys, changed) = &*self.0;
        change(&mut keys.lock().expect("nothing panics with it"));
        changed.notify_all();
    }

    fn type_bytes(&self, bytes: &[u8]) {
        self.change(|keys| keys.pending.extend(bytes));
    }
}

impl Read for Keyboard {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (keys, changed) = &*self.0;
        let keys = keys.lock().expect("nothing panics with it");
        let waiting = |keys: &mut Keys| keys.pending.is_empty() && !keys.unplugged;
        changed.wait_while(keys, waiting).expect("nothing panics with it").pending.read(buffer)
    }
}

/// Carries out an input.
pub fn run(data: &[u8]) {
    let (Head { kind }, ops) = parse(data);
    let keyboard = (kind & 1 != 0).then(Keyboard::default);
    let output = RingBuffer::new();
    let mut host = Console::ring(output.clone());
    if let Some(keyboard) = &keyboard {
        host = host.and(Console::input(keyboard.clone()));
    }
    let host = host.open().expect("the console opens");
    let line = Arc::new(CountingLine::default());
    let (serial, len, registers): (Arc<dyn BusDevice>, _, _) = match kind & 2 {
        0 => (Serial::new(host.port(), line), Serial::PORTS, PC),
        _ => (Pl011::new(host.port().clone(), line), Pl011::LEN, ARM),
    };
    let mut bus = Bus::new();
    bus.insert("serial port", 0, len, serial.clone()).expect("the bus is empty");
    let mut bus = BusView::new(Arc::new(bus));

    let mut typed = Vec::new();
    for op in ops {
        match op {
            Op::Read { offset, len } => {
                bus.read(u64::from(offset) % registers.len, access(&mut [0; 8], len));
            }
            Op::Write { offset, len, value } => {
                let at = u64::from(offset) % registers.len;
                let flow = bus.write(at, access(&mut value.to_le_bytes(), len));
                assert!(flow.is_continue(), "a serial port ends no run");
            }
            Op::Type { count, first } => {
                let keyboard = keyboard.as_ref().filter(|_| typed.len() < MOST_TYPED);
                if let Some(keyboard) = keyboard {
                    let bytes: Vec<u8> = (0..count).map(|n| first.wrapping_add(n)).collect();
                    keyboard.type_bytes(&bytes);
                    typed.extend(bytes);
                }
            }
            Op::Reset {} => serial.reset(),
        }
    }

    serial.reset();
    for byte in LAST_WORDS {
        assert!(bus.write(registers.data, &[*byte]).is_continue());
    }
    assert!(output.contents().ends_with(LAST_WORDS), "the output is not there");
    if let Some(keyboard) = keyboard {
        keyboard.type_bytes(LAST_WORDS);
        typed.extend(LAST_WORDS);
        let received = poll(&mut bus, &registers);
        assert!(typed.ends_with(&received), "typed {typed:x?}, received {received:x?}");
        keyboard.change(|keys| keys.unplugged = true);
    }
}

/// Reads what there is up to the last words.
fn poll(bus: &mut BusView, registers: &Registers) -> Vec<u8> {
    let mut read = |at| {
        let mut data = [0];
        bus.read(at, &mut data);
        data[0]
    };
    let (mut end, mut idle) = (Instant::now() + PATIENCE, 0_u32);
    let mut received = Vec::new();
    while !received.ends_with(LAST_WORDS) {
        if read(registers.status) & registers.input == registers.ready {
            received.push(read(registers.data));
            end = Instant::now() + PATIENCE;
        } else {
            assert!(Instant::now() < end, "received only {received:x?}");
            // The break between two bytes is far shorter than somebody else's turn on a busy machine.
            idle += 1;
            if idle.is_multiple_of(64) {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
    }
    received
}
