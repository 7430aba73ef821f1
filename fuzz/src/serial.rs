//! A serial port: any access to its registers while somebody types.
//!
//! At the end the port is reset, more is typed, and the guest polls as the simplest driver does: what it gets is what
//! was typed, without a byte lost or changed, as far back as it had not been taken before the reset.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use hyperkit::bus::{Bus, BusDevice, BusView};
use hyperkit::console::{Console, RingBuffer};
use hyperkit::device::serial::Serial;
use hyperkit::virtio::testing::CountingLine;

use crate::ops::{access, parse};
use crate::{fields, operations};

fields! {
    /// The start of an input.
    pub struct Head {
        /// Bit 0: there is a keyboard.
        pub keyboard: u8,
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

const COM1: u64 = 0x3f8;
const DATA: u64 = COM1;
const LINE_STATUS: u64 = COM1 + 5;
const LINE_STATUS_READY: u8 = 1;
/// What is typed last.
const LAST_WORDS: &[u8] = b"\x00are you there?\xff";
const PATIENCE: Duration = Duration::from_secs(10);

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
    let (Head { keyboard }, ops) = parse(data);
    let keyboard = (keyboard & 1 != 0).then(Keyboard::default);
    let output = RingBuffer::new();
    let mut host = Console::ring(output.clone());
    if let Some(keyboard) = &keyboard {
        host = host.and(Console::input(keyboard.clone()));
    }
    let host = host.open().expect("the console opens");
    let serial = Serial::new(host.port(), Arc::new(CountingLine::default()));
    let mut bus = Bus::new();
    bus.insert("COM1", COM1, Serial::PORTS, serial.clone()).expect("the bus is empty");
    let mut bus = BusView::new(Arc::new(bus));

    let mut typed = Vec::new();
    for op in ops {
        match op {
            Op::Read { offset, len } => {
                bus.read(COM1 + u64::from(offset % 16), access(&mut [0; 8], len));
            }
            Op::Write { offset, len, value } => {
                let at = COM1 + u64::from(offset % 16);
                let flow = bus.write(at, access(&mut value.to_le_bytes(), len));
                assert!(flow.is_continue(), "a serial port ends no run");
            }
            Op::Type { count, first } => {
                if let Some(keyboard) = &keyboard {
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
        assert!(bus.write(DATA, &[*byte]).is_continue());
    }
    assert!(output.contents().ends_with(LAST_WORDS), "the output is not there");
    if let Some(keyboard) = keyboard {
        keyboard.type_bytes(LAST_WORDS);
        typed.extend(LAST_WORDS);
        let received = poll(&mut bus);
        assert!(typed.ends_with(&received), "typed {typed:x?}, received {received:x?}");
        keyboard.change(|keys| keys.unplugged = true);
    }
}

/// Reads what there is up to the last words.
fn poll(bus: &mut BusView) -> Vec<u8> {
    let mut read = |at| {
        let mut data = [0];
        bus.read(at, &mut data);
        data[0]
    };
    let end = Instant::now() + PATIENCE;
    let mut received = Vec::new();
    while !received.ends_with(LAST_WORDS) {
        if read(LINE_STATUS) & LINE_STATUS_READY != 0 {
            received.push(read(DATA));
        } else {
            assert!(Instant::now() < end, "received only {received:x?}");
            std::thread::yield_now();
        }
    }
    received
}
