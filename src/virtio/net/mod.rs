//! The network card (§5.1).
//!
//! The card stands between the driver's queues and a [`NetBackend`]: it checks what goes through and moves nothing
//! itself, since frames are sent from guest memory and received into it. Either direction stops when the other side
//! cannot take more, and goes on when it can: the host side says so in a [`Wake`], the driver by a kick.
//!
//! ```no_run
//! use hyperkit::net::{MacAddr, NetBackend};
//! use hyperkit::virtio::net::{Card, Options};
//!
//! # fn card(backend: Box<dyn NetBackend>) {
//! let mac = MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
//! let card = Card::new(backend, mac, Options::default()).unwrap();
//! card.handle().set_link(false);
//! # }
//! ```

mod config;
mod control;
mod features;
mod filter;
mod handle;
mod header;
mod space;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use virtio_bindings::virtio_ids::VIRTIO_ID_NET;

use super::{Chain, ConfigSpace, Context, Error, HostEvent, Interest, Sources, VirtioDevice};
use crate::memory::BufferList;
use crate::net::{Header, MacAddr, NetBackend, Properties, Wake};
use crate::sys::Notifier;
use filter::Filter;
use handle::{Shared, Tally};
use header::Refused;
use space::{Room, Space, Wanted};

pub use features::Features;
pub use handle::{CardHandle, Counters, ReceiveDrops, SendDrops, Traffic};

/// The host descriptor that is the card's own; all other names are the host side's.
const CHANGED: u32 = u32::MAX;

/// Descriptors of a queue.
const QUEUE: u16 = 256;
/// Pairs of queues, at most.
const MOST_PAIRS: u16 = 16;

/// What one turn of a queue may cost: the bytes of its frames, and so much for each of them.
const TURN: usize = 512 << 10;
const FRAME: usize = 2 << 10;
/// Frames in a row that the host side loses before it is left alone until it calls.
const FAILURES: usize = 64;

/// How a card differs from others in front of the same host side.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct Options {
    /// Features that are not offered, though they could be.
    pub without: Features,
}

impl Options {
    /// A card without some features.
    pub fn without(features: Features) -> Self {
        Self { without: features }
    }
}

/// A network card.
pub struct Card {
    backend: Box<dyn NetBackend>,
    /// Its properties; `queues` are those of the card.
    properties: Properties,
    /// Queues of the host side.
    host_queues: u16,
    shared: Arc<Shared>,
    /// The address, unless the host side has a say in it.
    given: MacAddr,
    /// The address that the driver goes by.
    mac: MacAddr,
    queues: Vec<u16>,
    offered: Features,
    /// What the driver accepted; of this, what it wants to receive by now.
    accepted: Features,
    taken: Features,
    /// A driver is there.
    active: bool,
    /// The link, as the driver sees it.
    up: bool,
    /// Pairs of queues in use.
    pairs: u16,
    filter: Filter,
    /// For each pair, room to receive into.
    spaces: Vec<Space>,
    /// For each pair, whether the host side could not take a frame.
    stalled: Vec<bool>,
    /// Room for a list, to be used again.
    spare: BufferList<'static>,
}

/// What a queue is for.
enum Role {
    Receive(u16),
    Send(u16),
    Control,
}

/// What became of a frame of the driver's.
enum Sent {
    Done(usize),
    Full,
}

impl Card {
    /// A card in front of `backend`, with the address `mac` unless the host side has one for it.
    pub fn new(backend: Box<dyn NetBackend>, mac: MacAddr, options: Options) -> io::Result<Self> {
        let mut properties = backend.properties();
        let host_queues = properties.queues.max(1);
        properties.queues = host_queues.min(MOST_PAIRS);
        let offered = Features::offered(&properties, options.without);
        if !offered.contains(Features::MQ) {
            properties.queues = 1;
        }
        let pairs = properties.queues;
        let control = u16::from(offered.contains(Features::CTRL_VQ));
        let address = properties.mac.unwrap_or(mac);
        let shared = Shared {
            config: Arc::new(config::space(address, pairs, properties.mtu)),
            plugged: AtomicBool::new(true),
            changed: Notifier::new()?,
            tally: Tally::default(),
        };
        Ok(Self {
            backend,
            properties,
            host_queues,
            shared: Arc::new(shared),
            given: mac,
            mac: address,
            queues: vec![QUEUE; usize::from(2 * pairs + control)],
            offered,
            accepted: Features::empty(),
            taken: Features::empty(),
            active: false,
            up: true,
            pairs: 1,
            filter: Filter::default(),
            spaces: (0..pairs).map(|_| Space::default()).collect(),
            stalled: vec![false; pairs.into()],
            spare: BufferList::default(),
        })
    }

    /// A handle on the card, for whoever owns the machine.
    pub fn handle(&self) -> CardHandle {
        CardHandle(self.shared.clone())
    }

    /// What queue `index` is for: the control queue comes after as many pairs as the driver knows of (§5.1.2).
    fn role(&self, index: u16) -> Option<Role> {
        let multi = self.accepted.contains(Features::MQ);
        let pairs = if multi { self.properties.queues } else { 1 };
        match index / 2 {
            pair if pair < pairs && index.is_multiple_of(2) => Some(Role::Receive(pair)),
            pair if pair < pairs => Some(Role::Send(pair)),
            _ if index == 2 * pairs && self.accepted.contains(Features::CTRL_VQ) => {
                Some(Role::Control)
            }
            _ => None,
        }
    }

    /// Sends what there is on a pair of queues, until the host side is full. Tells whether anything was sent.
    fn send(&mut self, pair: u16, cx: &mut Context<'_>) -> Result<bool, Error> {
        let sources = cx.sources();
        let Some(queue) = cx.queue(2 * pair + 1) else { return Ok(false) };
        let (mut cost, mut any) = (0, false);
        while let Some(chain) = queue.pop()? {
            match self.send_frame(pair, &chain, sources) {
                Sent::Done(len) => {
                    cost += len + FRAME;
                    any |= len > 0;
                    queue.push(chain, 0)?;
                }
                Sent::Full => {
                    queue.put_back(chain)?;
                    if let Some(stalled) = self.stalled.get_mut(usize::from(pair)) {
                        *stalled = true;
                    }
                    break;
                }
            }
            if cost >= TURN {
                queue.end_turn();
                break;
            }
        }
        Ok(any)
    }

    /// Sends the frame in a chain, or drops it, which is 0 bytes sent.
    fn send_frame(&mut self, pair: u16, chain: &Chain, sources: Sources<'_>) -> Sent {
        let tally = &self.shared.tally;
        if !self.up {
            tally.link_down.add(1);
            return Sent::Done(0);
        }
        let mut reader = chain.reader();
        let mut before = [0; Header::LEN];
        reader.read(&mut before);
        reader.skip(header::BEFORE - Header::LEN);
        let len = reader.remaining();
        let header = Header::from_bytes(before);
        let header = match header::from_driver(header, len, self.properties.mtu, self.accepted) {
            Ok(header) => header,
            Err(Refused::Malformed) => {
                tally.malformed_sent.add(1);
                return Sent::Done(0);
            }
            Err(Refused::TooLarge) => {
                tally.too_large.add(1);
                return Sent::Done(0);
            }
        };
        let mut list = std::mem::take(&mut self.spare).recycle();
        while let Some(slice) = reader.next_slice(usize::MAX) {
            list.push(slice);
        }
        let result = self.backend.send(pair, &header, list.all(), sources);
        self.spare = list.recycle();
        match result {
            Ok(()) => {
                tally.send(len);
                Sent::Done(len)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Sent::Full,
            Err(_) => {
                tally.failed_sends.add(1);
                Sent::Done(0)
            }
        }
    }

    /// Goes on where the host side was full. Tells whether anything was sent.
    fn send_stalled(&mut self, cx: &mut Context<'_>) -> Result<bool, Error> {
        let mut any = false;
        for pair in 0..self.properties.queues {
            if self.stalled.get_mut(usize::from(pair)).is_some_and(std::mem::take) {
                any |= self.send(pair, cx)?;
            }
        }
        Ok(any)
    }

    /// Receives on every pair of queues.
    fn receive_all(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        (0..self.pairs).try_for_each(|pair| self.receive(pair, cx))
    }

    /// Receives on a pair of queues, until the host side has nothing or the driver no room.
    fn receive(&mut self, pair: u16, cx: &mut Context<'_>) -> Result<(), Error> {
        if self.take_in(pair, cx)? && self.send_stalled(cx)? {
            // Where the host side was full of frames for the guest, either direction waits for the other.
            if let Some(queue) = cx.queue(2 * pair) {
                queue.end_turn();
            }
        }
        Ok(())
    }

    /// Does so, and tells whether there was anything.
    fn take_in(&mut self, pair: u16, cx: &mut Context<'_>) -> Result<bool, Error> {
        let sources = cx.sources();
        let (Some(queue), Some(space)) =
            (cx.queue(2 * pair), self.spaces.get_mut(usize::from(pair)))
        else {
            return Ok(false);
        };
        if !self.up || pair >= self.pairs {
            return Ok(false);
        }
        let wanted = match self.accepted.contains(Features::MRG_RXBUF) {
            true => {
                let usual = usize::from(self.properties.mtu) + header::AROUND;
                let large = self.taken.intersects(Features::GUEST_LARGE);
                let largest = if large { usual.max(header::LONGEST) } else { usual };
                Wanted::Bytes { largest, usual }
            }
            false => Wanted::Chain,
        };
        let filters = self.accepted.contains(Features::CTRL_RX);
        let tally = &self.shared.tally;
        let (mut cost, mut failures, mut any) = (0, 0, false);
        // Queues of the host side that have no counterpart in use share those that are.
        let mut source = pair;
        while source < self.host_queues {
            if cost >= TURN {
                queue.end_turn();
                break;
            }
            let room = space.fill(queue, wanted)?;
            if space.is_waiting() {
                let Some(len) = space.give_waiting(queue)? else { break };
                tally.receive(len);
                continue;
            }
            if room == Room::None {
                break;
            }
            let mut header = Header::default();
            let backend = &mut self.backend;
            let result =
                space.receive(room, |frame| backend.receive(source, &mut header, frame, sources));
            let (len, to) = match result {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    source = source.saturating_add(self.pairs);
                    continue;
                }
                Err(_) => {
                    tally.failed_receives.add(1);
                    failures += 1;
                    if failures == FAILURES {
                        break;
                    }
                    continue;
                }
            };
            any = true;
            failures = 0;
            cost += len + FRAME;
            let Ok(header) = header::for_driver(header, len, self.taken) else {
                tally.malformed_received.add(1);
                continue;
            };
            if filters && !self.filter.wants(to, self.mac) {
                tally.filtered.add(1);
                continue;
            }
            if !space.give(queue, room, header, len)? {
                break;
            }
            tally.receive(len);
        }
        Ok(any)
    }

    /// Does what the host side says is possible now.
    fn wake(&mut self, wake: Wake, cx: &mut Context<'_>) -> Result<(), Error> {
        if wake.link {
            self.look_at_link(cx)?;
        }
        let sent = wake.send && self.send_stalled(cx)?;
        if wake.receive || sent {
            self.receive_all(cx)?;
        }
        Ok(())
    }

    /// Finds out about link and address, and goes by them.
    fn look_at_link(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        if !self.active {
            self.take_address();
        }
        if !self.update_link(cx) {
            return Ok(());
        }
        // What waited goes on its way, or nowhere.
        self.send_stalled(cx)?;
        self.receive_all(cx)
    }

    /// Tells the driver whether there is a link, and the caller whether that is news.
    fn update_link(&mut self, cx: &Context<'_>) -> bool {
        let up = self.link();
        let news = std::mem::replace(&mut self.up, up) != up;
        if news && self.shared.config.set(config::STATUS, &config::status(up)) {
            cx.config_changed();
        }
        news
    }

    fn link(&self) -> bool {
        self.shared.plugged.load(Ordering::Relaxed) && self.backend.link()
    }

    /// Gives the card the address that it has before a driver changes it.
    fn take_address(&mut self) {
        self.mac = self.backend.properties().mac.unwrap_or(self.given);
        self.shared.config.set(config::MAC, &self.mac.0);
    }
}

impl VirtioDevice for Card {
    fn id(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn name(&self) -> &str {
        "net"
    }

    fn features(&self) -> u64 {
        self.offered.bits()
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queues
    }

    fn config(&self) -> Arc<ConfigSpace> {
        self.shared.config.clone()
    }

    fn start(&mut self, sources: Sources<'_>) -> io::Result<()> {
        sources.add(&self.shared.changed, CHANGED, Interest::READABLE)?;
        self.backend.start(sources)?;
        self.take_address();
        self.up = self.link();
        self.shared.config.set(config::STATUS, &config::status(self.up));
        Ok(())
    }

    fn activate(&mut self, features: u64, cx: &mut Context<'_>) -> Result<(), Error> {
        self.update_link(cx);
        self.accepted = Features::from_bits_truncate(features).consistent();
        self.taken = self.accepted;
        self.active = true;
        Ok(self.backend.activate(self.taken.offloads())?)
    }

    fn queue_ready(&mut self, index: u16, cx: &mut Context<'_>) -> Result<(), Error> {
        match self.role(index) {
            Some(Role::Receive(pair)) => self.receive(pair, cx),
            Some(Role::Send(pair)) => match self.send(pair, cx)? {
                // Some host sides answer at once.
                true => self.receive(pair % self.pairs, cx),
                false => Ok(()),
            },
            Some(Role::Control) => self.control(index, cx),
            None => Ok(()),
        }
    }

    fn host_ready(&mut self, event: HostEvent, cx: &mut Context<'_>) -> Result<(), Error> {
        if event.source == CHANGED {
            self.shared.changed.clear();
            return self.look_at_link(cx);
        }
        let wake = self.backend.host_ready(event, cx.sources());
        self.wake(wake, cx)
    }

    fn deadline(&self) -> Option<Instant> {
        let rooms = self.spaces.iter().filter_map(Space::deadline);
        rooms.chain(self.backend.deadline()).min()
    }

    fn timer(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        let now = Instant::now();
        for pair in 0..self.properties.queues {
            let space = self.spaces.get_mut(usize::from(pair));
            if space.is_some_and(|space| space.give_up(now)) {
                self.shared.tally.failed_receives.add(1);
                self.receive(pair, cx)?;
            }
        }
        // Looked at after the deadline was asked for, which may be "now".
        if self.backend.deadline().is_some_and(|deadline| deadline <= Instant::now()) {
            let wake = self.backend.timer(cx.sources());
            self.wake(wake, cx)?;
        }
        Ok(())
    }

    fn pause(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        for (pair, space) in (0..).zip(&mut self.spaces) {
            space.put_back(cx.queue(2 * pair))?;
        }
        Ok(())
    }

    fn resume(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        self.send_stalled(cx)?;
        self.receive_all(cx)
    }

    fn reset(&mut self) {
        self.spaces.iter_mut().for_each(Space::clear);
        self.stalled.fill(false);
        self.filter = Filter::default();
        self.accepted = Features::empty();
        self.taken = Features::empty();
        self.pairs = 1;
        self.active = false;
        self.backend.reset();
        self.take_address();
    }
}
