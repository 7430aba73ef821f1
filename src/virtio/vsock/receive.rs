//! Packets to the guest, and events.
//!
//! A driver gives buffers of one page, so a packet holds no more than that. To move more than a page with one system
//! call, the data of a socket is read into as many buffers at once as the last reads have filled.

use std::io;
use std::time::Instant;

use vm_memory::ByteValued;

use super::super::{Chain, Context, Error, Queue};
use super::connection::{Connection, LEAST_APPETITE};
use super::packet::{self, END_OF_MESSAGE, HEADER, Header, Op, Ports};
use super::{
    CLOSING_PATIENCE, EVENT, HOST, MOST_RESETS, RECEIVE, Reset, SocketDevice, TRANSMIT,
    TRANSPORT_RESET,
};
use crate::memory::BufferList;
use crate::sys::socket;
use crate::vsock::Kind;

/// Bytes of a connection that are moved before it is another one's turn.
const QUANTUM: usize = 64 << 10;
/// Buffers that one read fills at most.
const BATCH: usize = 64;
/// The longest message that a program on the host can send.
const LONGEST_MESSAGE: usize = 64 << 10;
/// What a connection keeps for its next message.
const KEEP: usize = 4 << 10;

/// How a turn ended.
enum Turn {
    /// There is nothing more to do, for now.
    Done,
    /// There may be.
    Again,
    /// The driver has given no more buffers.
    NoBuffers,
    /// The host's side is gone.
    Broken,
}

/// What turns need of the device beside the connection.
struct Desk<'a> {
    queue: &'a mut Queue,
    cid: u64,
    chains: &'a mut Vec<Chain>,
    room: &'a mut BufferList<'static>,
    scratch: &'a mut Vec<u8>,
}

impl SocketDevice {
    /// Gives the driver packets, as long as there are any and buffers for them.
    pub(super) fn receive(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        if let Some(queue) = cx.queue(RECEIVE) {
            self.packets(queue)?;
        }
        if self.held_up && self.resets.len() < MOST_RESETS {
            self.held_up = false;
            if let Some(queue) = cx.queue(TRANSMIT) {
                queue.end_turn();
            }
        }
        Ok(())
    }

    fn packets(&mut self, queue: &mut Queue) -> Result<(), Error> {
        loop {
            while let Some(reset) = self.resets.front() {
                let Some(chain) = queue.pop()? else { return Ok(()) };
                let Reset { cid, ports, kind } = *reset;
                let header = Header {
                    src_cid: cid.into(),
                    kind: kind.into(),
                    ..to_guest(self.cid, ports, Op::Reset)
                };
                put(queue, chain, header)?;
                self.resets.pop_front();
            }
            let Some(slot) = self.table.next_turn() else { return Ok(()) };
            let Some(connection) = self.table.get(slot) else { continue };
            let mut desk = Desk {
                queue,
                cid: self.cid,
                chains: &mut self.chains,
                room: &mut self.room,
                scratch: &mut self.scratch,
            };
            let before = connection.allowance.sent();
            let closing = connection.host_has_left();
            let turn = desk.turn(connection)?;
            self.tally.received.add(connection.allowance.sent().wrapping_sub(before).into());
            if connection.host_has_left() && !closing {
                self.table.set_alarm(slot, Some(Instant::now() + CLOSING_PATIENCE));
            }
            match turn {
                Turn::Done => {}
                Turn::Again => self.table.enqueue(slot),
                Turn::NoBuffers => {
                    self.table.turn_back(slot);
                    return Ok(());
                }
                Turn::Broken => self.break_off(slot),
            }
        }
    }

    /// Tells the driver that the transport was reset, if it was and there is a buffer to say so.
    pub(super) fn send_event(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        if !self.event {
            return Ok(());
        }
        let Some(queue) = cx.queue(EVENT) else { return Ok(()) };
        if let Some(chain) = queue.pop()? {
            let written = chain.writer().write(&TRANSPORT_RESET.to_le_bytes());
            queue.push(chain, written as u32)?;
            self.event = false;
        }
        Ok(())
    }
}

/// The header of a packet to the guest.
fn to_guest(guest: u64, ports: Ports, op: Op) -> Header {
    Header {
        src_cid: HOST.into(),
        dst_cid: guest.into(),
        src_port: ports.host.into(),
        dst_port: ports.guest.into(),
        op: op.number().into(),
        ..Header::default()
    }
}

/// Gives the driver a packet whose data is in `chain` already.
fn put(queue: &mut Queue, chain: Chain, header: Header) -> Result<(), Error> {
    if chain.writer().write(header.as_slice()) < HEADER {
        return Err(Error::Driver("a buffer for packets is shorter than a header"));
    }
    Ok(queue.push(chain, HEADER as u32 + u32::from(header.len))?)
}

/// Bytes of data that a buffer has room for.
fn room_of(chain: &Chain) -> Result<usize, Error> {
    match (chain.writable_len() as usize).checked_sub(HEADER) {
        Some(room) if room > 0 => Ok(room),
        _ => Err(Error::Driver("a buffer for packets has no room for data")),
    }
}

impl Desk<'_> {
    /// Sends what a connection has for the guest.
    fn turn(&mut self, connection: &mut Connection) -> Result<Turn, Error> {
        loop {
            while let Some((op, flags)) = connection.next_due() {
                let Some(chain) = self.queue.pop()? else { return Ok(Turn::NoBuffers) };
                let header = self.header(connection, op, flags, 0);
                put(self.queue, chain, header)?;
                connection.told(op);
            }
            if !connection.wants_to_read() {
                return Ok(Turn::Done);
            }
            let turn = match (connection.room(), connection.kind) {
                (0, _) => Turn::Done,
                (room, Kind::Stream) => self.stream(connection, room)?,
                (room, Kind::SeqPacket) => self.message(connection, room)?,
            };
            // The end of the data, or of the room, is to be told.
            if !connection.has_due() || matches!(turn, Turn::Broken) {
                return Ok(turn);
            }
        }
    }

    fn header(&self, connection: &mut Connection, op: Op, flags: u32, len: usize) -> Header {
        let (buf_alloc, fwd_cnt) = connection.window.tell();
        Header {
            len: (len as u32).into(),
            kind: packet::kind_number(connection.kind).into(),
            flags: flags.into(),
            buf_alloc: buf_alloc.into(),
            fwd_cnt: fwd_cnt.into(),
            ..to_guest(self.cid, connection.ports, op)
        }
    }

    /// Reads once from a socket that bytes come from, at most `room` bytes.
    fn stream(&mut self, connection: &mut Connection, room: usize) -> Result<Turn, Error> {
        let Some(socket) = connection.socket() else { return Ok(Turn::Done) };
        let wanted = connection.appetite.min(room);
        let mut found = 0;
        while found < wanted && self.chains.len() < BATCH {
            let Some(chain) = self.queue.pop()? else { break };
            found += room_of(&chain)?;
            self.chains.push(chain);
        }
        if found == 0 {
            return Ok(Turn::NoBuffers);
        }
        let offered = found.min(room);
        let mut list = std::mem::take(self.room).recycle();
        let mut left = offered;
        for chain in &*self.chains {
            let mut data = chain.writer().split_off(HEADER);
            while let Some(slice) = data.as_mut().and_then(|data| data.next_slice(left)) {
                left -= slice.len();
                list.push(slice);
            }
        }
        let outcome = socket::receive(socket, list.all(), 0);
        *self.room = list.recycle();

        let mut count = outcome.as_ref().map_or(0, |received| received.len).min(offered);
        let (mut filled, mut used) = (0, 0);
        while filled < count
            && let Some(chain) = self.chains.get(used)
        {
            filled += room_of(chain)?;
            used += 1;
        }
        for chain in self.chains.drain(used..).rev() {
            self.queue.put_back(chain)?;
        }
        connection.allowance.send(count);
        connection.appetite =
            if count == offered { (2 * count).min(QUANTUM) } else { count.max(LEAST_APPETITE) };
        let mut chains = std::mem::take(self.chains);
        for chain in chains.drain(..) {
            let len = room_of(&chain)?.min(count);
            count -= len;
            let header = self.header(connection, Op::Data, 0, len);
            put(self.queue, chain, header)?;
            connection.told(Op::Data);
        }
        *self.chains = chains;
        Ok(conclude(connection, outcome))
    }

    /// Sends a message, or what is left of one. It stays in the socket until the guest has room for all of it, so that at
    /// most one connection has a message in here: the one that waits for buffers.
    fn message(&mut self, connection: &mut Connection, room: usize) -> Result<Turn, Error> {
        if connection.message.is_empty() {
            let Some(socket) = connection.socket() else { return Ok(Turn::Done) };
            let nothing = BufferList::default();
            let length = socket::receive(socket, nothing.all(), libc::MSG_PEEK | libc::MSG_TRUNC);
            match length.as_ref().map_or(0, |message| message.len) {
                0 => return Ok(conclude(connection, length)),
                // What is larger than the guest's buffer will never fit.
                len if len > LONGEST_MESSAGE.min(connection.allowance.size() as usize) => {
                    return Ok(Turn::Broken);
                }
                len if len > room => {
                    connection.ask();
                    return Ok(Turn::Done);
                }
                _ => {}
            }
            self.scratch.resize(LONGEST_MESSAGE, 0);
            let list = BufferList::from(self.scratch.as_mut_slice());
            let outcome = socket::receive(socket, list.all(), 0);
            let message = match &outcome {
                Ok(message) => self.scratch.get(..message.len).unwrap_or_default(),
                Err(_) => return Ok(conclude(connection, outcome)),
            };
            connection.message.extend_from_slice(message);
        }
        while let Some(rest) = connection.message.get(connection.message_sent..)
            && !rest.is_empty()
        {
            let Some(chain) = self.queue.pop()? else { return Ok(Turn::NoBuffers) };
            let len = room_of(&chain)?.min(rest.len());
            if let Some(mut data) = chain.writer().split_off(HEADER) {
                data.write(rest.get(..len).unwrap_or_default());
            }
            connection.message_sent += len;
            connection.allowance.send(len);
            let last = connection.message_sent == connection.message.len();
            let flags = if last { END_OF_MESSAGE } else { 0 };
            let header = self.header(connection, Op::Data, flags, len);
            put(self.queue, chain, header)?;
            connection.told(Op::Data);
        }
        connection.message_sent = 0;
        connection.message.clear();
        connection.message.shrink_to(KEEP);
        Ok(Turn::Again)
    }
}

/// What a read means for the connection.
fn conclude(connection: &mut Connection, outcome: io::Result<socket::Received>) -> Turn {
    match outcome {
        Ok(received) if received.len > 0 => Turn::Again,
        Ok(_) => {
            connection.host_ended();
            Turn::Done
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            connection.readable = false;
            Turn::Done
        }
        Err(_) => Turn::Broken,
    }
}
