//! A host side that does as it is told, and a guest that looks closely.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use vm_memory::{Bytes, GuestAddress};

use super::super::*;
use crate::memory::Buffers;
use crate::net::Offloads;
use crate::virtio::testing::{Buffer, Guest, PATIENCE, Ring};
use crate::virtio::{HostEvent, Interest, Sources, feature};

pub const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 1, 2, 3]);
pub const OTHER: MacAddr = MacAddr([0x52, 0x54, 0, 9, 9, 9]);

/// A byte that nobody writes.
const GUARD: u8 = 0xee;

#[derive(Default)]
pub struct State {
    /// Frames for the guest, for each queue.
    pub incoming: Vec<VecDeque<(Header, Vec<u8>)>>,
    /// Frames of the guest: queue, header, bytes.
    pub sent: Vec<(u16, Header, Vec<u8>)>,
    /// How many more frames may be sent; any number if `None`.
    pub room: Option<usize>,
    /// What `send` and `receive` fail with.
    pub fault: Option<io::ErrorKind>,
    pub down: bool,
    pub mac: Option<MacAddr>,
    pub activated: Vec<Offloads>,
    pub resets: usize,
    /// Calls of `receive`.
    pub asked: usize,
    /// Whether what is sent comes back.
    pub echo: bool,
    wake: Wake,
}

/// The host side, as the test sees it.
#[derive(Clone)]
pub struct Script {
    state: Arc<Mutex<State>>,
    notifier: Arc<Notifier>,
    properties: Properties,
}

impl Script {
    pub fn new(offloads: Offloads, queues: u16) -> Self {
        let incoming = vec![VecDeque::new(); queues.into()];
        Self {
            state: Arc::new(Mutex::new(State { incoming, ..State::default() })),
            notifier: Arc::new(Notifier::new().unwrap()),
            properties: Properties { mac: None, mtu: 1500, offloads, queues },
        }
    }

    pub fn mtu(self, mtu: u16) -> Self {
        Self { properties: Properties { mtu, ..self.properties }, ..self }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Wakes the card.
    pub fn wake(&self, wake: Wake) {
        {
            let all = &mut self.state().wake;
            all.receive |= wake.receive;
            all.send |= wake.send;
            all.link |= wake.link;
        }
        self.notifier.notify();
    }

    /// Has a frame for the guest.
    pub fn give(&self, queue: usize, header: Header, frame: &[u8]) {
        self.state().incoming[queue].push_back((header, frame.to_vec()));
        self.wake(Wake { receive: true, ..Wake::default() });
    }

    /// Takes so many frames more.
    pub fn allow(&self, frames: usize) {
        self.state().room = Some(frames);
        self.wake(Wake { send: true, ..Wake::default() });
    }

    pub fn set_link(&self, up: bool) {
        self.state().down = !up;
        self.wake(Wake { link: true, ..Wake::default() });
    }

    /// Frames for the guest that nobody has asked for.
    pub fn waiting(&self) -> usize {
        self.state().incoming.iter().map(VecDeque::len).sum()
    }
}

impl NetBackend for Script {
    fn name(&self) -> &str {
        "script"
    }

    fn properties(&self) -> Properties {
        Properties { mac: self.state().mac, ..self.properties }
    }

    fn start(&mut self, sources: Sources<'_>) -> io::Result<()> {
        sources.add(&*self.notifier, 0, Interest::READABLE)
    }

    fn activate(&mut self, offloads: Offloads) -> io::Result<()> {
        self.state().activated.push(offloads);
        Ok(())
    }

    fn send(
        &mut self,
        queue: u16,
        header: &Header,
        frame: Buffers<'_>,
        _sources: Sources<'_>,
    ) -> io::Result<()> {
        let mut state = self.state();
        if let Some(fault) = state.fault {
            return Err(fault.into());
        }
        if let Some(room) = &mut state.room {
            *room = room.checked_sub(1).ok_or(io::ErrorKind::WouldBlock)?;
        }
        let mut bytes = vec![0; frame.total()];
        frame.copy_to(&mut bytes);
        if state.echo {
            state.incoming[usize::from(queue)].push_back((*header, bytes.clone()));
        }
        state.sent.push((queue, *header, bytes));
        Ok(())
    }

    fn receive(
        &mut self,
        queue: u16,
        header: &mut Header,
        space: Buffers<'_>,
        _sources: Sources<'_>,
    ) -> io::Result<usize> {
        let mut state = self.state();
        state.asked += 1;
        if let Some(fault) = state.fault {
            return Err(fault.into());
        }
        let next = state.incoming[usize::from(queue)].pop_front();
        let (its, bytes) = next.ok_or(io::ErrorKind::WouldBlock)?;
        if bytes.len() > space.total() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        *header = its;
        Ok(space.fill_from(&bytes))
    }

    fn host_ready(&mut self, _event: HostEvent, _sources: Sources<'_>) -> Wake {
        self.notifier.clear();
        std::mem::take(&mut self.state().wake)
    }

    fn link(&self) -> bool {
        !self.state().down
    }

    fn reset(&mut self) {
        self.state().resets += 1;
    }
}

/// A frame to `to` of `len` bytes, no two of which are alike.
pub fn frame_to(to: MacAddr, len: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len as u32).map(|n| (n.wrapping_mul(40503) >> 5) as u8).collect();
    frame[..6].copy_from_slice(&to.0);
    frame
}

pub fn frame(len: usize) -> Vec<u8> {
    frame_to(MAC, len)
}

/// A frame as the guest got it.
#[derive(Debug, PartialEq, Eq)]
pub struct Got {
    pub header: Header,
    pub bytes: Vec<u8>,
    /// The length that was told for each buffer.
    pub used: Vec<u32>,
}

/// A guest with a card, and its rings once it is started.
pub struct Machine {
    pub guest: Guest,
    pub handle: CardHandle,
    pub script: Script,
    pub rings: Vec<Ring>,
    /// The pieces of each chain that was posted: by queue and head.
    posted: HashMap<(usize, u16), Vec<(u64, u32)>>,
}

impl Machine {
    /// With all that is offered, EVENT_IDX too, but for `without`.
    pub fn new(script: Script, without: Features) -> Self {
        let mut machine = Self::off(script, Features::empty());
        machine.start(without);
        machine
    }

    /// Without a driver, and without features that the owner leaves out.
    pub fn off(script: Script, left_out: Features) -> Self {
        let card = Card::new(Box::new(script.clone()), MAC, Options::without(left_out)).unwrap();
        let handle = card.handle();
        let guest = Guest::new(card);
        Self { guest, handle, script, rings: Vec::new(), posted: HashMap::new() }
    }

    /// Resets, then starts with all that is offered but for `without`.
    pub fn start(&mut self, without: Features) {
        self.guest.reset();
        self.posted.clear();
        let transport = feature::INDIRECT_DESC | feature::EVENT_IDX;
        let features = (self.guest.offered() & feature::DEVICE & !without.bits()) | transport;
        self.rings = self.guest.start(features, 64);
        for ring in &mut self.rings {
            ring.event_idx = true;
        }
    }

    pub fn alloc(&mut self, len: usize) -> u64 {
        let at = self.guest.alloc(len.max(1));
        self.guest.memory.write_slice(&vec![GUARD; len], GuestAddress(at)).unwrap();
        at
    }

    fn pieces(&mut self, cut: &[usize]) -> Vec<(u64, u32)> {
        cut.iter().map(|&len| (self.alloc(len + 16), len as u32)).collect()
    }

    /// Posts a receive buffer that is cut so, without a kick.
    pub fn post_quietly(&mut self, pair: usize, cut: &[usize]) -> u16 {
        let pieces = self.pieces(cut);
        let buffers: Vec<_> = pieces.iter().map(|&(at, len)| Buffer::In(at, len)).collect();
        let head = self.rings[2 * pair].request(&buffers);
        self.posted.insert((2 * pair, head), pieces);
        head
    }

    pub fn post(&mut self, pair: usize, cut: &[usize]) -> u16 {
        let head = self.post_quietly(pair, cut);
        self.guest.kick(&mut self.rings[2 * pair]);
        head
    }

    /// Waits for the next frame.
    pub fn got(&mut self, pair: usize) -> Got {
        let (mut used, mut all) = (Vec::new(), Vec::new());
        let mut more = 1;
        while more > 0 {
            // All buffers of a frame come at once.
            let next = match used.is_empty() {
                true => self.guest.wait(&mut self.rings[2 * pair]),
                false => self.rings[2 * pair].used().expect("a frame is seen in part"),
            };
            let (head, len) = next;
            let bytes = self.read_back(2 * pair, head, len);
            all.extend(bytes);
            if used.is_empty() {
                more = u16::from_le_bytes([all[10], all[11]]);
            }
            used.push(len);
            more -= 1;
        }
        let header = Header::from_bytes(all[..10].try_into().unwrap());
        Got { header, bytes: all.split_off(header::BEFORE), used }
    }

    /// The first `len` bytes of a chain; those behind them must be as they were.
    fn read_back(&mut self, queue: usize, head: u16, len: u32) -> Vec<u8> {
        let mut left = len as usize;
        let mut all = Vec::new();
        for (at, len) in self.posted.remove(&(queue, head)).expect("it was posted") {
            let mut bytes = vec![0; len as usize + 16];
            self.guest.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
            let here = left.min(len as usize);
            assert!(bytes[here..].iter().all(|&byte| byte == GUARD), "written behind the end");
            bytes.truncate(here);
            all.extend(bytes);
            left -= here;
        }
        assert_eq!(left, 0, "more used than there is");
        all
    }

    /// Whether the guest has a frame that it has not looked at.
    pub fn has_frame(&mut self, pair: usize) -> bool {
        self.guest.settle();
        self.rings[2 * pair].used().is_some()
    }

    /// Sends bytes, header and all, cut so; what is left is the last piece. Without a kick.
    pub fn send_raw_quietly(&mut self, pair: usize, bytes: &[u8], cut: &[usize]) -> u16 {
        let mut rest = bytes;
        let mut buffers = Vec::new();
        for len in cut.iter().copied().chain([usize::MAX]) {
            let (piece, behind) = rest.split_at(len.min(rest.len()));
            rest = behind;
            if piece.is_empty() && len == usize::MAX && !buffers.is_empty() {
                break;
            }
            let at = self.alloc(piece.len());
            self.guest.memory.write_slice(piece, GuestAddress(at)).unwrap();
            buffers.push(Buffer::Out(at, piece.len() as u32));
        }
        self.rings[2 * pair + 1].request(&buffers)
    }

    /// Sends a frame on its way.
    pub fn send_quietly(&mut self, header: Header, frame: &[u8]) -> u16 {
        self.send_raw_quietly(0, &before(header, frame), &[header::BEFORE])
    }

    pub fn kick(&mut self, queue: usize) {
        self.guest.kick(&mut self.rings[queue]);
    }

    /// Sends a frame and waits until the device is done with it.
    pub fn send(&mut self, header: Header, frame: &[u8]) {
        self.send_quietly(header, frame);
        self.kick(1);
        let (_, len) = self.guest.wait(&mut self.rings[1]);
        assert_eq!(len, 0);
    }

    /// A command on the control queue, and its answer.
    pub fn command(&mut self, class: u32, command: u32, data: &[u8]) -> u8 {
        self.command_cut(&[&[class as u8, command as u8], data].concat(), &[2])
    }

    pub fn command_cut(&mut self, bytes: &[u8], cut: &[usize]) -> u8 {
        let answer = self.alloc(1);
        let at = self.alloc(bytes.len());
        self.guest.memory.write_slice(bytes, GuestAddress(at)).unwrap();
        let mut buffers = Vec::new();
        let mut done = 0;
        for len in cut.iter().copied().chain([usize::MAX]) {
            let len = len.min(bytes.len() - done);
            if len > 0 {
                buffers.push(Buffer::Out(at + done as u64, len as u32));
            }
            done += len;
        }
        buffers.push(Buffer::In(answer, 1));
        let ring = self.rings.last_mut().unwrap();
        ring.request(&buffers);
        self.guest.kick(ring);
        assert_eq!(self.guest.wait(ring).1, 1);
        self.guest.memory.read_obj(GuestAddress(answer)).unwrap()
    }

    /// Waits until something holds.
    pub fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(Instant::now() < end, "{what}");
            std::thread::yield_now();
        }
    }

    /// Offers the guest `bytes`, and tells whether it got them; there must be a buffer.
    pub fn passes(&mut self, bytes: &[u8]) -> bool {
        let before = self.handle.counters();
        self.script.give(0, Header::default(), bytes);
        self.until("the frame is seen to", |machine| {
            let after = machine.handle.counters();
            after.received != before.received || after.receive_drops != before.receive_drops
        });
        let passed = self.handle.counters().received != before.received;
        if passed {
            assert_eq!(self.got(0).bytes, bytes);
            self.post(0, &[2048]);
        }
        passed
    }
}

/// Header and frame, as a driver sends them.
pub fn before(header: Header, frame: &[u8]) -> Vec<u8> {
    [&header.to_bytes()[..], &[0, 0], frame].concat()
}
