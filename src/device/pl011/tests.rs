//! The port, driven as Linux's driver drives it (`drivers/tty/serial/amba-pl011.c`).

use std::io::{self, Read};
use std::sync::mpsc::Sender;
use std::time::Duration;

use super::*;
use crate::console::{Console, OpenConsole, RingBuffer};
use crate::device::testing::{Line, PATIENCE, Typed};

const CR_UARTEN: u32 = 1 << 0;
const CR_TXE: u32 = 1 << 8;
const CR_DTR: u32 = 1 << 10;
const FR_TXFF: u32 = 1 << 5;
const FR_BUSY: u32 = 1 << 3;

struct Guest {
    serial: Arc<Pl011>,
    irq: Arc<Line>,
    output: RingBuffer,
    console: OpenConsole,
    /// The driver's copy of IMSC.
    im: u32,
    /// What the driver's receive routine got.
    got: Vec<u8>,
}

impl Guest {
    fn new(input: impl Read + Send + 'static) -> Self {
        let (irq, output) = (Arc::new(Line::default()), RingBuffer::new());
        let console = Console::input(input).and(Console::ring(output.clone())).open().unwrap();
        let serial = Pl011::new(console.port().clone(), irq.clone());
        Self { serial, irq, output, console, im: 0, got: Vec::new() }
    }

    fn silent() -> Self {
        Self::new(io::empty())
    }

    fn typed() -> (Self, Sender<Vec<u8>>) {
        let (typed, keys) = Typed::new();
        (Self::new(typed), keys)
    }

    /// As the driver's accesses are without "arm,sbsa-uart": 16 bits.
    fn read(&self, register: u64) -> u32 {
        let mut data = [0xff; 2];
        self.serial.read(register, &mut data);
        u16::from_le_bytes(data).into()
    }

    fn write(&self, register: u64, value: u32) {
        assert!(self.serial.write(register, &(value as u16).to_le_bytes()).is_continue());
    }

    /// `pl011_early_write`.
    fn early_write(&self, text: &[u8]) {
        for &byte in text {
            assert_eq!(self.read(FR) & FR_TXFF, 0);
            self.serial_byte(byte);
            assert_eq!(self.read(FR) & FR_BUSY, 0);
        }
    }

    /// A store of one byte, as `pl011_putc` does.
    fn serial_byte(&self, byte: u8) {
        assert!(self.serial.write(DR, &[byte]).is_continue());
    }

    /// `pl011_hwinit` and `pl011_startup`; what the driver drains on the way is lost.
    fn startup(&mut self) {
        self.write(ICR, INT_OVERRUN | 0x380 | INT_RT | INT_RX);
        self.im = self.read(IMSC);
        self.write(IMSC, INT_RT | INT_RX);
        self.write(IMSC, self.im);
        self.write(IFLS, IFLS_RESET);
        let cr = self.read(CR) & (CR_RTS | CR_DTR);
        self.write(CR, cr | CR_UARTEN | CR_RXE | CR_TXE);
        self.write(ICR, INT_RT | INT_RX);
        for _ in 0..2 * FIFO {
            if self.read(FR) & FR_RXFE != 0 {
                break;
            }
            self.read(DR);
        }
        self.im = INT_RT | INT_RX;
        self.write(IMSC, self.im);
        self.set_termios();
        self.write(CR, self.read(CR) | CR_RTS | CR_DTR);
    }

    fn set_termios(&self) {
        let cr = self.read(CR);
        self.write(CR, 0);
        self.write(FBRD, 0x2c);
        self.write(IBRD, 0x0d);
        self.write(LCR_H, 0x60 | LCR_H_FEN);
        self.write(CR, cr);
    }

    /// `pl011_shutdown`, after which RTS and DTR go down.
    fn shutdown(&mut self) {
        self.im = 0;
        self.write(IMSC, 0);
        self.write(ICR, 0xffff);
        let cr = self.read(CR) & (CR_RTS | CR_DTR);
        self.write(CR, cr | CR_UARTEN | CR_TXE);
        self.write(LCR_H, self.read(LCR_H) & !LCR_H_FEN);
        self.write(CR, self.read(CR) & !(CR_RTS | CR_DTR));
    }

    /// `pl011_console_write`.
    fn console_write(&self, text: &[u8]) {
        let cr = self.read(CR);
        self.write(CR, cr | CR_UARTEN | CR_TXE);
        for &byte in text {
            assert_eq!(self.read(FR) & FR_TXFF, 0);
            self.write(DR, byte.into());
        }
        assert_eq!(self.read(FR) & FR_BUSY, 0);
        self.write(CR, cr);
    }

    /// `pl011_int` with nothing to send. Tells how often it went round; after 256 times it would give up.
    fn interrupt(&mut self) -> usize {
        let mut rounds = 0;
        loop {
            let status = self.read(RIS) & self.im;
            if status == 0 {
                return rounds;
            }
            rounds += 1;
            self.write(ICR, status & !(INT_TX | INT_RT | INT_RX));
            if status & (INT_RT | INT_RX) == 0 {
                continue;
            }
            for _ in 0..256 {
                if self.read(FR) & FR_RXFE != 0 {
                    break;
                }
                let data = self.read(DR);
                assert_eq!(data & !0xff, 0, "an error was received");
                self.got.push(data as u8);
            }
        }
    }

    /// Serves interrupts until `count` bytes have come. Tells the longest stay in the handler.
    fn receive(&mut self, count: usize) -> usize {
        let mut longest = 0;
        while self.got.len() < count {
            assert!(self.irq.wait_high(PATIENCE), "stuck after {} bytes", self.got.len());
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
    guest.early_write(b"Booting ");
    guest.console_write(b"Linux");
    guest.startup();
    guest.receive(commands.len());
    assert_eq!(guest.got, commands);
    assert_eq!(guest.output.contents(), b"Booting Linux");
    assert!(!guest.irq.is_high());
}

#[test]
fn opening_the_port_again_loses_nothing() {
    let mut guest = Guest::new(&b"first second"[..]);
    guest.startup();
    assert!(guest.irq.wait_high(PATIENCE));
    for _ in 0..5 {
        let byte = guest.read(DR);
        guest.got.push(byte as u8);
    }
    for _ in 0..3 {
        guest.shutdown();
        assert!(!guest.irq.is_high());
        assert_ne!(guest.read(FR) & FR_RXFE, 0, "the driver would drain it");
        assert_eq!((guest.read(RIS) & (INT_RX | INT_RT), guest.read(DR)), (0, 0));
        guest.startup();
    }
    guest.receive(12);
    assert_eq!(guest.got, b"first second");
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
fn every_key_raises_the_line() {
    let (mut guest, keys) = Guest::typed();
    guest.startup();
    guest.interrupt();
    for key in 0..=255 {
        assert!(!guest.irq.is_high());
        keys.send(vec![key]).unwrap();
        guest.receive(usize::from(key) + 1);
    }
    assert_eq!(guest.got, (0..=255).collect::<Vec<u8>>());
}

#[test]
fn input_that_comes_while_interrupts_are_masked_raises_the_line_afterwards() {
    let (mut guest, keys) = Guest::typed();
    guest.startup();
    // `pl011_stop_rx`, as for a throttled terminal.
    guest.write(IMSC, 0);
    keys.send(b"key".to_vec()).unwrap();
    guest.wait_for_input(3);
    assert!(!guest.irq.is_high());
    guest.write(IMSC, guest.im);
    guest.receive(3);
    assert_eq!(guest.got, b"key");
}

#[test]
fn the_timeout_stays_pending_until_everything_is_read() {
    let (mut guest, keys) = Guest::typed();
    guest.startup();
    keys.send(b"abc".to_vec()).unwrap();
    assert!(guest.irq.wait_high(PATIENCE));
    // An early acknowledgement must not lose the interrupt.
    guest.write(ICR, 0x7ff);
    for byte in *b"abc" {
        assert!(guest.irq.is_high());
        assert_eq!((guest.read(RIS), guest.read(MIS)), (INT_RT, INT_RT));
        assert_eq!(guest.read(DR), u32::from(byte));
    }
    assert!(!guest.irq.is_high());
    assert_eq!((guest.read(RIS), guest.read(DR)), (0, 0));
    assert_ne!(guest.read(FR) & FR_RXFE, 0);
}

#[test]
fn the_receive_interrupt_comes_at_the_level_that_was_asked_for() {
    for (select, level) in [(0, 4), (1, 8), (2, 16), (3, 24), (4, 28), (5, 16), (7, 16)] {
        let (mut guest, keys) = Guest::typed();
        guest.startup();
        guest.write(IFLS, select << 3);
        keys.send(vec![b'x'; level]).unwrap();
        assert!(guest.irq.wait_high(PATIENCE));
        assert_eq!(guest.read(RIS), INT_RX | INT_RT);
        guest.read(DR);
        assert_eq!(guest.read(RIS), INT_RT, "{level} less one");
    }
}

#[test]
fn the_fifo_holds_32_bytes_and_one_if_it_is_disabled() {
    for (lcr_h, len) in [(0x70, 32), (0x60, 1)] {
        let (mut guest, keys) = Guest::typed();
        guest.startup();
        guest.write(LCR_H, lcr_h);
        keys.send((0..100).collect()).unwrap();
        assert!(guest.irq.wait_high(PATIENCE));
        assert_eq!(guest.read(RIS), INT_RX | INT_RT);
        assert_eq!(guest.read(FR) & FR_RXFF, FR_RXFF);
        assert_eq!(guest.console.port().waiting(), 100 - len);
        guest.receive(100);
        assert_eq!(guest.got, (0..100).collect::<Vec<u8>>());
    }
}

#[test]
fn the_transmitter_interrupts_until_there_is_nothing_to_send() {
    let mut guest = Guest::silent();
    guest.startup();
    // `pl011_start_tx`: the first bytes, then the interrupt for the rest.
    guest.write(DR, b'a'.into());
    assert!(!guest.irq.is_high());
    guest.im |= INT_TX;
    guest.write(IMSC, guest.im);
    for batch in 1..=3 {
        assert!(guest.irq.is_high());
        assert_eq!(guest.read(MIS), INT_TX);
        for _ in 0..FIFO / 2 {
            guest.write(DR, b'x'.into());
        }
        assert_eq!(guest.output.total(), 1 + batch * 16);
    }
    // `pl011_stop_tx`.
    guest.im &= !INT_TX;
    guest.write(IMSC, guest.im);
    assert!(!guest.irq.is_high());
    // A driver that acknowledges gets another with the next byte.
    guest.write(IMSC, INT_TX);
    guest.write(ICR, INT_TX);
    assert!(!guest.irq.is_high());
    guest.write(DR, b'y'.into());
    assert!(guest.irq.is_high());
}

#[test]
fn output_needs_no_enabled_uart_and_never_waits() {
    let guest = Guest::silent();
    assert_eq!(guest.read(CR) & CR_UARTEN, 0);
    guest.early_write(b"early");
    assert_eq!(guest.output.contents(), b"early");
    for _ in 0..10_000 {
        guest.write(DR, b'.'.into());
        assert_eq!(guest.read(FR) & (FR_TXFF | FR_BUSY | FR_TXFE), FR_TXFE);
    }
    assert_eq!(guest.output.total(), 10_005);
}

#[test]
fn a_guest_that_polls_gets_input() {
    let mut guest = Guest::new(&b"0123456789"[..]);
    guest.wait_for_input(10);
    for _ in 0..4000 {
        if guest.read(FR) & FR_RXFE == 0 {
            let byte = guest.read(DR) as u8;
            guest.got.push(byte);
            // An echo, as a boot loader's.
            guest.serial_byte(byte);
        }
    }
    assert_eq!(guest.got, b"0123456789");
    assert_eq!(guest.output.contents(), b"0123456789");
    assert!(!guest.irq.is_high());
}

#[test]
fn no_input_comes_to_a_receiver_that_is_disabled() {
    let (mut guest, keys) = Guest::typed();
    guest.startup();
    guest.write(CR, CR_UARTEN | CR_TXE | CR_RTS);
    keys.send(b"wait".to_vec()).unwrap();
    guest.wait_for_input(4);
    guest.interrupt();
    assert_eq!(guest.got, b"");
    guest.write(CR, CR_UARTEN | CR_TXE | CR_RXE | CR_RTS);
    guest.receive(4);
    assert_eq!(guest.got, b"wait");
}

#[test]
fn rts_stops_input_for_a_guest_that_uses_it() {
    let (mut guest, keys) = Guest::typed();
    guest.startup();
    let cr = guest.read(CR);
    guest.write(CR, cr & !CR_RTS);
    keys.send(b"wait".to_vec()).unwrap();
    guest.wait_for_input(4);
    guest.interrupt();
    assert_eq!(guest.got, b"");
    // Left to the hardware, it is up as long as there is room.
    guest.write(CR, cr & !CR_RTS | CR_RTSEN);
    guest.receive(4);
    assert_eq!(guest.got, b"wait");
}

#[test]
fn a_guest_that_never_touches_the_modem_lines_gets_input() {
    let mut guest = Guest::new(&b"bare"[..]);
    assert_eq!(guest.read(FR), FR_CTS | FR_DSR | FR_DCD | FR_RXFE | FR_TXFE);
    guest.im = INT_RT;
    guest.write(IMSC, INT_RT);
    guest.receive(4);
    assert_eq!(guest.got, b"bare");
}

#[test]
fn loopback_returns_what_was_sent_and_keeps_input_out() {
    let (mut guest, keys) = Guest::typed();
    guest.startup();
    let cr = guest.read(CR);
    guest.write(CR, cr | CR_LBE);
    keys.send(b"typed".to_vec()).unwrap();
    guest.wait_for_input(5);
    for byte in 0..32 {
        guest.write(DR, byte);
    }
    assert_eq!((guest.read(RSR), guest.read(RIS)), (0, INT_RX | INT_TX | INT_RT));
    guest.write(DR, 32);
    assert_eq!((guest.read(RSR), guest.read(RIS) & INT_OVERRUN), (RSR_OVERRUN, INT_OVERRUN));
    guest.write(ICR, INT_OVERRUN);
    guest.write(RSR, 0);
    assert_eq!((guest.read(RSR), guest.read(RIS) & INT_OVERRUN), (0, 0));
    for byte in 0..32 {
        assert_eq!(guest.read(DR), byte);
    }
    assert_eq!(guest.read(FR) & FR_RXFE, FR_RXFE);
    // RTS and DTR are up, the other two outputs are not.
    assert_eq!(guest.read(FR) & (FR_CTS | FR_DSR | FR_DCD | FR_RI), FR_CTS | FR_DSR);
    assert_eq!(guest.output.total(), 0);
    guest.write(CR, cr);
    guest.receive(5);
    assert_eq!(guest.got, b"typed");
}

#[test]
fn registers_keep_the_bits_that_they_have() {
    let guest = Guest::silent();
    for (register, reset, bits) in [
        (RSR, 0, 0),
        (ILPR, 0, 0xff),
        (IBRD, 0, 0xffff),
        (FBRD, 0, 0x3f),
        (LCR_H, 0, 0xff),
        (CR, 0x300, 0xffff),
        (IFLS, 0x12, 0x3f),
        (IMSC, 0, 0x7ff),
        (RIS, 0, 0),
        (MIS, 0, 0),
        (ICR, 0, 0),
        (DMACR, 0, 7),
    ] {
        assert_eq!(guest.read(register), reset, "{register:#x}");
        guest.write(register, 0xffff);
        assert_eq!(guest.read(register), bits, "{register:#x}");
        guest.write(register, 0);
    }
}

/// `amba_read_periphid` reads 32 bits of which each has a byte.
#[test]
fn is_found_as_a_pl011_with_fifos_of_32_bytes() {
    let guest = Guest::silent();
    let id = |first: u64| {
        (0..4).fold(0, |id, n| {
            let mut data = [0xff; 4];
            guest.serial.read(first + 4 * n, &mut data);
            id | u32::from_le_bytes(data) << (8 * n)
        })
    };
    assert_eq!(id(0xfe0) & 0xf_ffff, 0x4_1011);
    assert!(id(0xfe0) >> 20 & 0xf >= 3, "`get_fifosize_arm` takes 16");
    assert_eq!(id(0xff0), 0xb105_f00d);
}

#[test]
fn accesses_of_any_width_reach_the_register_they_begin_at() {
    let guest = Guest::silent();
    for len in [1, 2, 4] {
        assert!(guest.serial.write(DR, &b"w\0\0\0"[..len]).is_continue());
        let mut data = [0xff; 4];
        guest.serial.read(CR, &mut data[..len]);
        assert_eq!(data[..len], [0, 3, 0, 0][..len]);
    }
    // Eight bytes are two registers.
    assert!(guest.serial.write(IBRD, &[5, 0, 0, 0, 6, 0, 0, 0]).is_continue());
    let mut data = [0xff; 8];
    guest.serial.read(IBRD, &mut data);
    assert_eq!(data, [5, 0, 0, 0, 6, 0, 0, 0]);
    // What begins in the middle of one is none.
    for offset in 1..4 {
        assert!(guest.serial.write(DR + offset, b"no").is_continue());
        let mut data = [0xff; 2];
        guest.serial.read(CR + offset, &mut data);
        assert_eq!(data, [0, 0]);
    }
    assert_eq!(guest.output.contents(), b"www");
}

#[test]
fn every_access_is_answered() {
    let (guest, keys) = Guest::typed();
    keys.send(vec![1; 4096]).unwrap();
    for value in [0, 1, 0x55, 0x80, 0xaa, 0xff] {
        for offset in (0..0x100).chain(0xfc0..0x1010).chain([u64::MAX - 3, u64::MAX]) {
            for len in 0..=8 {
                let _ = guest.serial.write(offset, &[value; 8][..len]);
                guest.serial.read(offset, &mut [0xff; 8][..len]);
                assert!(guest.serial.uart().fifo.len() <= FIFO);
            }
        }
    }
}

#[test]
fn reset_is_power_on() {
    let (mut guest, keys) = Guest::typed();
    let registers = |guest: &Guest| {
        [RSR, FR, ILPR, IBRD, FBRD, LCR_H, CR, IFLS, IMSC, RIS, MIS, DMACR]
            .map(|register| guest.read(register))
    };
    let before = registers(&guest);
    guest.startup();
    guest.write(IMSC, INT_ALL);
    guest.write(DR, b'x'.into());
    assert!(guest.irq.is_high());
    guest.serial.reset();
    assert!(!guest.irq.is_high());
    assert_eq!(registers(&guest), before);
    keys.send(b"again".to_vec()).unwrap();
    guest.wait_for_input(5);
    guest.startup();
    guest.receive(5);
    assert_eq!(guest.got, b"again");
}
