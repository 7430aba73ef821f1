//! One connection: a socket on the host, a pair of ports in the guest, and how far each direction has come.
//!
//! What the guest sends goes to the socket at once; only what the socket does not take is kept, and the guest's credit
//! bounds that. What the host sends stays in the socket until the guest has buffers and room for it. So a program that
//! does not read holds up its own connection and no other.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use bitflags::bitflags;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::Shutdown;

use super::super::buffer::Reader;
use super::backlog::Backlog;
use super::credit::{Allowance, Window};
use super::packet::{NO_RECEIVE, NO_SEND, Op, Ports};
use crate::memory::BufferList;
use crate::vsock::{Answer, Kind};

bitflags! {
    /// Packets that the guest is to get.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Due: u8 {
        const REQUEST = 1 << 0;
        const RESPONSE = 1 << 1;
        const SHUTDOWN = 1 << 2;
        const CREDIT = 1 << 3;
        const CREDIT_REQUEST = 1 << 4;
    }
}

/// How far a connection is.
#[derive(Debug)]
pub(super) enum Phase {
    /// The guest wants it, and the host has not taken it yet.
    Dialing {
        /// For how long already.
        since: Instant,
    },
    /// The host wants it, and the guest has not answered yet.
    Calling(Answer),
    /// There.
    Open,
}

/// Something that ends a connection: the guest has broken its rules, or the host's side is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Broken;

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub ports: Ports,
    pub kind: Kind,
    pub phase: Phase,
    /// None while it is being dialled.
    socket: Option<OwnedFd>,
    pub window: Window,
    pub allowance: Allowance,
    due: Due,
    /// What the guest has said it is done with, and what the host is, in the flags of a SHUTDOWN packet.
    guest_over: u32,
    host_over: u32,
    /// The socket may have bytes, or an end.
    pub readable: bool,
    /// Bytes to be read at a time: as many as came the last times.
    pub appetite: usize,
    /// The guest has been asked for room.
    asked: bool,
    /// What the socket did not take.
    pub backlog: Backlog,
    /// The socket is watched for room.
    pub watched: bool,
    /// What is left of a message to the guest, and what of it has been sent.
    pub message: Vec<u8>,
    pub message_sent: usize,
}

/// What is read at a time from a host that is slow.
pub(super) const LEAST_APPETITE: usize = 1;

impl Connection {
    fn new(ports: Ports, kind: Kind, phase: Phase, due: Due, window: u32) -> Self {
        Self {
            ports,
            kind,
            phase,
            socket: None,
            window: Window::new(window),
            allowance: Allowance::default(),
            due,
            guest_over: 0,
            host_over: 0,
            readable: false,
            appetite: LEAST_APPETITE,
            asked: false,
            backlog: Backlog::default(),
            watched: false,
            message: Vec::new(),
            message_sent: 0,
        }
    }

    /// One that the guest wants.
    pub fn wanted(ports: Ports, kind: Kind, since: Instant, window: u32) -> Self {
        Self::new(ports, kind, Phase::Dialing { since }, Due::empty(), window)
    }

    /// One that the host wants.
    pub fn called(ports: Ports, kind: Kind, answer: Answer, socket: OwnedFd, window: u32) -> Self {
        let new = Self::new(ports, kind, Phase::Calling(answer), Due::REQUEST, window);
        Self { socket: Some(socket), ..new }
    }

    /// The host has taken it.
    pub fn dialled(&mut self, socket: OwnedFd) {
        self.socket = Some(socket);
        self.phase = Phase::Open;
        self.due |= Due::RESPONSE;
        self.readable = true;
    }

    /// The guest has answered; `None` if it was not asked.
    pub fn answered(&mut self) -> Option<()> {
        let socket = self.socket.as_ref()?;
        if self.due.contains(Due::REQUEST) || !matches!(self.phase, Phase::Calling(_)) {
            return None;
        }
        if let Phase::Calling(answer) = std::mem::replace(&mut self.phase, Phase::Open) {
            answer.accept(socket, self.ports.host);
        }
        self.readable = true;
        Some(())
    }

    /// Ends it; `why`, for a program that waits for an answer.
    pub fn refuse(self, why: io::Error) {
        if let Phase::Calling(answer) = self.phase {
            answer.refuse(why);
        }
    }

    pub fn socket(&self) -> Option<&OwnedFd> {
        self.socket.as_ref()
    }

    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open)
    }

    /// `len` bytes of data came from the guest; the last of a message, if `last`.
    pub fn take(
        &mut self,
        data: Reader<'_>,
        len: usize,
        last: bool,
        room: &mut BufferList<'static>,
    ) -> Result<(), Broken> {
        // A data packet that is no part of a window, or comes after the guest said there would be none.
        let allowed = u32::try_from(len).is_ok_and(|len| self.window.receive(len));
        if !allowed || self.guest_over & NO_SEND != 0 || !self.is_open() {
            return Err(Broken);
        }
        if self.host_over & NO_RECEIVE != 0 {
            // The guest has not heard yet that nobody listens.
            self.forwarded(len);
            return Ok(());
        }
        let Some(socket) = &self.socket else { return Err(Broken) };
        let outcome = match self.kind {
            Kind::Stream => self.backlog.take_stream(socket, data, len, room),
            Kind::SeqPacket => self.backlog.take_message(socket, data, len, last),
        };
        self.sent(outcome)
    }

    /// The socket may take more.
    pub fn flush(&mut self) -> Result<(), Broken> {
        let Some(socket) = &self.socket else { return Ok(()) };
        let outcome = self.backlog.flush(socket);
        self.sent(outcome)
    }

    fn sent(&mut self, outcome: io::Result<usize>) -> Result<(), Broken> {
        match outcome {
            Ok(count) => self.forwarded(count),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                // Nobody reads any more, but may still write.
                let lost = self.backlog.discard();
                self.forwarded(lost);
                self.host_is_over(NO_RECEIVE);
            }
            Err(_) => return Err(Broken),
        }
        self.end_sending();
        Ok(())
    }

    fn forwarded(&mut self, count: usize) {
        self.window.forward(count);
        if self.window.is_stale() {
            self.due |= Due::CREDIT;
        }
    }

    /// Once the guest has sent its last and the host has it, the host hears of the end.
    fn end_sending(&mut self) {
        if self.guest_over & NO_SEND != 0 && self.backlog.is_empty() {
            self.shut(Shutdown::Write);
            if self.host_over & NO_SEND != 0 {
                // Both directions have ended, so nothing is left to receive.
                self.host_is_over(NO_RECEIVE);
            }
        }
    }

    fn shut(&self, how: Shutdown) {
        if let Some(socket) = &self.socket {
            // What fails here is a connection that is over, which is found out by reading.
            let _ = rustix::net::shutdown(socket, how);
        }
    }

    /// The guest says that it is done with one direction, or both.
    pub fn guest_is_over(&mut self, flags: u32) {
        let new = flags & !self.guest_over;
        self.guest_over |= flags & (NO_SEND | NO_RECEIVE);
        if new & NO_RECEIVE != 0 {
            self.shut(Shutdown::Read);
            self.message = Vec::new();
            self.look_for_hang_up();
        }
        self.end_sending();
    }

    /// Whether the guest is done with both directions.
    pub fn guest_has_left(&self) -> bool {
        self.guest_over == NO_SEND | NO_RECEIVE
    }

    /// Whether the guest has heard of it, and thinks that it is there.
    pub fn guest_has_it(&self) -> bool {
        !self.due.contains(Due::REQUEST) && !self.guest_has_left()
    }

    /// Whether the host is, and the guest has heard so.
    pub fn host_has_left(&self) -> bool {
        self.host_over == NO_SEND | NO_RECEIVE && !self.due.contains(Due::SHUTDOWN)
    }

    fn host_is_over(&mut self, flags: u32) {
        if flags & !self.host_over != 0 {
            self.host_over |= flags;
            self.due |= Due::SHUTDOWN;
        }
    }

    /// The host has sent its last.
    pub fn host_ended(&mut self) {
        self.readable = false;
        self.host_is_over(NO_SEND);
        self.look_for_hang_up();
        self.end_sending();
    }

    /// After the end of the direction to the guest, looks whether the other has ended too: whether there is anybody left
    /// on the host.
    pub fn look_for_hang_up(&mut self) {
        if self.host_over & NO_SEND == 0 && self.guest_over & NO_RECEIVE == 0 {
            return;
        }
        let Some(socket) = &self.socket else { return };
        let mut fds = [PollFd::new(socket, PollFlags::empty())];
        if poll(&mut fds, Some(&Timespec::default())).is_ok()
            && let [fd] = fds
            && fd.revents().contains(PollFlags::HUP)
        {
            let lost = self.backlog.discard();
            self.forwarded(lost);
            self.host_is_over(NO_SEND | NO_RECEIVE);
        }
    }

    /// Whether there may be something to read for the guest, and it wants it.
    pub fn wants_to_read(&self) -> bool {
        let wanted = self.guest_over & NO_RECEIVE == 0 && self.host_over & NO_SEND == 0;
        self.is_open() && wanted && (self.readable || !self.message.is_empty())
    }

    /// Bytes that can be sent to the guest. If there are none, the guest is asked, once, how much room it has.
    pub fn room(&mut self) -> usize {
        let left = self.allowance.left();
        if left == 0 {
            self.ask();
        }
        left
    }

    /// What the guest says of its buffer; `None` if it cannot be.
    pub fn hear_credit(&mut self, size: u32, forwarded: u32) -> Option<()> {
        let before = self.allowance.left();
        self.allowance.update(size, forwarded)?;
        // One that only repeats itself is not asked again and again.
        self.asked &= self.allowance.left() == before;
        Some(())
    }

    /// Asks the guest how much room it has, unless it was asked and has said nothing new since.
    pub fn ask(&mut self) {
        if !std::mem::replace(&mut self.asked, true) {
            self.due |= Due::CREDIT_REQUEST;
        }
    }

    /// Whether the guest is to get anything but data.
    pub fn has_due(&self) -> bool {
        !self.due.is_empty() && !self.guest_has_left()
    }

    /// The next packet that the guest is to get, and its flags.
    pub fn next_due(&self) -> Option<(Op, u32)> {
        if !self.has_due() {
            return None;
        }
        let (_, due) = self.due.iter_names().next()?;
        Some(match due {
            Due::REQUEST => (Op::Request, 0),
            Due::RESPONSE => (Op::Response, 0),
            Due::SHUTDOWN => (Op::Shutdown, self.host_over),
            Due::CREDIT => (Op::CreditUpdate, 0),
            _ => (Op::CreditRequest, 0),
        })
    }

    /// The guest has got it. Every packet says what the window is.
    pub fn told(&mut self, op: Op) {
        self.due -= Due::CREDIT;
        self.due -= match op {
            Op::Request => Due::REQUEST,
            Op::Response => Due::RESPONSE,
            Op::Shutdown => Due::SHUTDOWN,
            Op::CreditRequest => Due::CREDIT_REQUEST,
            _ => Due::empty(),
        };
    }

    /// The guest wants to know the window.
    pub fn credit_wanted(&mut self) {
        self.due |= Due::CREDIT;
    }
}
