//! The port, driven as Linux's 8250 driver drives it (`drivers/tty/serial/8250/8250_port.c`, `8250_core.c`).

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use super::*;
use crate::console::{Console, OpenConsole, RingBuffer};
use crate::device::testing::{Line, PATIENCE, Typed};

const IIR_NO_INT: u8 = 1;
const FCR: u64 = 2;
const MSR: u64 = 6;
const SCR: u64 = 7;

struct Guest {
    serial: Arc<Serial>,
    irq: Arc<Line>,
    output: RingBuffer,
    console: OpenConsole,
    /// What the driver's receive routine got.
    got: Vec<u8>,
}

impl Guest {
    fn new(input: impl Read + Send + 'static) -> Self {
        let (irq, output) = (Arc::new(Line::default()), RingBuffer::new());
        let console = Console::input(input).and(Console::ring(output.clone())).open().unwrap();
        let serial = Serial::new(console.port(), irq.clone());
        Self { serial, irq, output, console, got: Vec::new() }
    }

    fn silent() -> Self {
        Self::new(io::empty())
    }

    fn typed() -> (Self, Sender<Vec<u8>>) {
        let (typed, keys) = Typed::new();
        (Self::new(typed), keys)
    }

    fn inb(&self, register: u64) -> u8 {
        let mut data = [0xff];
        self.serial.read(register, &mut data);
        data[0]
    }

    fn outb(&self, register: u64, value: u8) {
        assert!(self.serial.write(register, &[value]).is_continue());
    }

    /// `autoconfig`: is there a UART, and which?
    fn autoconfig(&self) {
        let ier = self.inb(1);
        self.outb(1, 0);
        assert_eq!(self.inb(1) & 0xf, 0);
        self.outb(1, 0xf);
        assert_eq!(self.inb(1) & 0xf, 0xf);
        self.outb(1, ier);
        let (mcr, lcr) = (self.inb(4), self.inb(3));
        self.outb(4, MCR_LOOP | 0x08 | MCR_RTS);
        assert_eq!(self.inb(MSR) & 0xf0, 0x90, "loopback test failed");
        self.outb(4, mcr);
        self.outb(3, 0xbf);
        self.outb(2, 0);
        self.outb(3, 0);
        self.outb(FCR, 1);
        assert_eq!(self.inb(2) >> 6, 3, "not a 16550A");
        self.outb(3, lcr);
        self.clear_fifos();
        self.inb(0);
        self.outb(1, 0);
    }

    fn clear_fifos(&self) {
        for value in [1, 7, 0] {
            self.outb(FCR, value);
        }
    }

    fn clear_interrupts(&self) {
        for register in [5, 0, 2, MSR] {
            self.inb(register);
        }
    }

    /// `serial8250_do_startup`, then `uart_port_startup`: the port is open.
    fn startup(&self) {
        self.clear_fifos();
        self.clear_interrupts();
        self.outb(3, 3);
        self.outb(4, 0x08);
        // The transmitter's interrupt must come, and come again.
        for _ in 0..2 {
            self.outb(1, IER_TRANSMITTED);
            assert_eq!(self.inb(2) & IIR_NO_INT, 0, "no THRE interrupt");
            self.outb(1, 0);
        }
        self.clear_interrupts();
        self.outb(1, 0x05);
        self.outb(FCR, 0xc1);
        self.outb(4, 0x08 | MCR_RTS | 0x01);
    }

    /// `serial8250_console_write`, which masks interrupts meanwhile.
    fn console_write(&self, text: &[u8]) {
        let ier = self.inb(1);
        self.outb(1, 0);
        for &byte in text {
            assert_ne!(self.inb(5) & 0x20, 0);
            self.outb(0, byte);
        }
        assert_eq!(self.inb(5) & 0x60, 0x60);
        self.outb(1, ier);
    }

    /// `serial8250_interrupt`. Tells how often it went round; at 512 it would complain of too much work.
    fn interrupt(&mut self) -> usize {
        let mut rounds = 0;
        while self.inb(2) & IIR_NO_INT == 0 {
            rounds += 1;
            let mut most = 256;
            while most > 0 && self.inb(5) & LSR_READY != 0 {
                self.got.push(self.inb(0));
                most -= 1;
            }
        }
        rounds
    }

    /// Serves interrupts until `count` bytes have come. Tells the longest stay in the handler.
    fn receive(&mut self, count: usize) -> usize {
        let mut longest = 0;
        while self.got.len() < count {
            assert!(self.irq.wait_pulse(PATIENCE), "stuck after {} bytes", self.got.len());
            longest = longest.max(self.interrupt());
        }
        longest
    }

    /// Waits until input is on its way to the receiver.
    fn wait_for_input(&self, count: usize) {
        let port = self.console.port();
        let start = Instant::now();
        while port.waiting() < count {
            assert!(start.elapsed() < PATIENCE);
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn input_from_before_the_driver_arrives_whole() {
    let commands = b"uname -r; nproc; poweroff -f\n";
    let mut guest = Guest::new(&commands[..]);
    guest.wait_for_input(commands.len());
    guest.autoconfig();
    guest.console_write(b"Linux version");
    guest.startup();
    guest.receive(commands.len());
    assert_eq!(guest.got, commands);
    assert_eq!(guest.output.contents(), b"Linux version");
}

#[test]
fn a_paste_of_a_mebibyte_arrives_whole_and_in_small_pieces() {
    let paste: Vec<u8> =
        (0..1_u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut guest = Guest::new(io::Cursor::new(paste.clone()));
    guest.startup();
    let rounds = guest.receive(paste.len());
    assert!(guest.got == paste, "bytes are lost or changed");
    // Linux gives up after 256. Without breaks it would be thousands.
    assert!(rounds <= 64, "the handler went round {rounds} times");
}

#[test]
fn every_key_raises_an_interrupt() {
    let (mut guest, keys) = Guest::typed();
    guest.startup();
    guest.interrupt();
    for key in 0..=255 {
        keys.send(vec![key]).unwrap();
        guest.receive(usize::from(key) + 1);
    }
    assert_eq!(guest.got, (0..=255).collect::<Vec<u8>>());
}

#[test]
fn input_that_comes_while_interrupts_are_masked_raises_one_afterwards() {
    let (mut guest, keys) = Guest::typed();
    guest.startup();
    guest.outb(1, 0);
    keys.send(b"key".to_vec()).unwrap();
    guest.wait_for_input(3);
    guest.irq.wait_pulse(Duration::ZERO);
    assert_eq!(guest.inb(2) & IIR_NO_INT, IIR_NO_INT, "IIR shows a masked condition");
    guest.outb(1, 0x05);
    guest.receive(3);
    assert_eq!(guest.got, b"key");
}

#[test]
fn iir_shows_received_data_until_it_is_read() {
    let (guest, keys) = Guest::typed();
    guest.startup();
    keys.send(b"abc".to_vec()).unwrap();
    assert!(guest.irq.wait_pulse(PATIENCE));
    while guest.inb(5) & LSR_READY == 0 {
        assert!(guest.irq.wait_pulse(PATIENCE));
    }
    for byte in *b"abc" {
        assert_eq!((guest.inb(2), guest.inb(2)), (0xc4, 0xc4));
        assert_eq!(guest.inb(0), byte);
    }
    assert_eq!(guest.inb(2), 0xc1);
    assert_eq!(guest.inb(5) & LSR_READY, 0);
}

#[test]
fn received_data_does_not_hide_the_transmitter() {
    let (guest, keys) = Guest::typed();
    guest.startup();
    guest.outb(1, 0x07);
    keys.send(b"a".to_vec()).unwrap();
    while guest.inb(5) & LSR_READY == 0 {
        std::thread::yield_now();
    }
    assert_eq!(guest.inb(2), 0xc4);
    assert_eq!(guest.inb(0), b'a');
    assert_eq!(guest.inb(2), 0xc2);
    assert_eq!(guest.inb(2), 0xc1);
}

#[test]
fn the_transmitter_interrupts_once_for_each_batch() {
    let guest = Guest::silent();
    guest.startup();
    let before = guest.irq.pulses();
    guest.outb(1, 0x07);
    for batch in 1..=3 {
        assert_eq!(guest.irq.pulses(), before + batch);
        assert_eq!(guest.inb(2), 0xc2);
        for _ in 0..16 {
            guest.outb(0, b'x');
        }
    }
    assert_eq!(guest.output.total(), 48);
    // What was pending does not show once it is disabled, and comes back when it is enabled.
    guest.outb(1, 0x05);
    assert_eq!(guest.inb(2), 0xc1);
    guest.outb(1, 0x07);
    assert_eq!(guest.inb(2), 0xc2);
}

#[test]
fn a_guest_that_polls_gets_input() {
    let mut guest = Guest::new(&b"0123456789"[..]);
    guest.wait_for_input(10);
    for _ in 0..400 {
        if guest.inb(5) & LSR_READY != 0 {
            let byte = guest.inb(0);
            guest.got.push(byte);
            // An echo, as a boot loader's.
            guest.outb(0, byte);
        }
    }
    assert_eq!(guest.got, b"0123456789");
    assert_eq!(guest.output.contents(), b"0123456789");
}

#[test]
fn rts_stops_input_for_a_guest_that_uses_it() {
    let (mut guest, keys) = Guest::typed();
    guest.startup();
    guest.outb(4, 0x09);
    keys.send(b"wait".to_vec()).unwrap();
    guest.wait_for_input(4);
    guest.interrupt();
    assert_eq!(guest.got, b"");
    guest.outb(4, 0x09 | MCR_RTS);
    guest.receive(4);
    assert_eq!(guest.got, b"wait");
}

#[test]
fn a_guest_that_never_touches_the_modem_lines_gets_input() {
    let mut guest = Guest::new(&b"xv6"[..]);
    // A loopback test is no use of the lines.
    guest.outb(4, MCR_LOOP | MCR_RTS);
    guest.outb(4, 0);
    guest.outb(1, IER_RECEIVED);
    guest.receive(3);
    assert_eq!(guest.got, b"xv6");
}

#[test]
fn loopback_returns_what_was_sent_and_keeps_input_out() {
    let (mut guest, keys) = Guest::typed();
    guest.startup();
    guest.outb(4, MCR_LOOP | MCR_RTS);
    keys.send(b"typed".to_vec()).unwrap();
    guest.wait_for_input(5);
    for byte in 0..100 {
        guest.outb(0, byte);
    }
    for byte in 0..64 {
        assert_ne!(guest.inb(5) & LSR_READY, 0);
        assert_eq!(guest.inb(0), byte);
    }
    assert_eq!(guest.inb(5) & LSR_READY, 0);
    assert_eq!(guest.output.total(), 0);
    guest.outb(4, 0x0b);
    guest.receive(5);
    assert_eq!(guest.got, b"typed");
}

#[test]
fn the_divisor_latch_hides_data_and_interrupt_enable() {
    let guest = Guest::silent();
    guest.startup();
    guest.outb(3, LCR_DLAB | 3);
    guest.outb(0, 1);
    guest.outb(1, 0);
    assert_eq!((guest.inb(0), guest.inb(1)), (1, 0));
    guest.outb(3, 3);
    assert_eq!(guest.inb(1), 5);
    assert_eq!(guest.output.total(), 0);
}

#[test]
fn wide_accesses_are_accesses_to_neighbours() {
    let guest = Guest::silent();
    assert!(guest.serial.write(0, &[b'w', 0x05]).is_continue());
    assert_eq!(guest.output.contents(), b"w");
    guest.outb(SCR, 0x5a);
    let mut data = [0xff; 4];
    guest.serial.read(4, &mut data);
    assert_eq!(data, [0x08, 0x60, 0xb0, 0x5a]);
    guest.serial.read(1, &mut data[..1]);
    assert_eq!(data[0], 0x05);
}

#[test]
fn every_access_is_answered() {
    let (guest, keys) = Guest::typed();
    keys.send(vec![1; 4096]).unwrap();
    for value in 0..=255 {
        for offset in (0..9).chain([u64::MAX]) {
            for len in 0..=8 {
                let _ = guest.serial.write(offset, &[value; 8][..len]);
                guest.serial.read(offset, &mut [0xff; 8][..len]);
            }
        }
    }
}

#[test]
fn reset_is_power_on() {
    let (mut guest, keys) = Guest::typed();
    let registers = |guest: &Guest| [1, 2, 3, 4, 5, 6, 7].map(|register| guest.inb(register));
    let before = registers(&guest);
    guest.startup();
    guest.outb(SCR, 0x77);
    guest.outb(3, 0x83);
    guest.serial.reset();
    assert_eq!(registers(&guest), before);
    keys.send(b"again".to_vec()).unwrap();
    guest.wait_for_input(5);
    guest.autoconfig();
    guest.startup();
    guest.receive(5);
    assert_eq!(guest.got, b"again");
}
