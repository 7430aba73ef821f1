//! Packets from the guest.

use std::io;
use std::time::Instant;

use super::super::buffer::Reader;
use super::super::{Chain, Context, Error, Sources};
use super::connection::{Broken, Connection};
use super::packet::{self, END_OF_MESSAGE, Header, Op, Ports};
use super::{HOST, MOST_RESETS, Reset, SocketDevice, TRANSMIT};
use crate::vsock::Kind;

impl SocketDevice {
    /// Takes packets, as long as there are not too many answers waiting.
    pub(super) fn transmit(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        let sources = cx.sources();
        let Some(queue) = cx.queue(TRANSMIT) else { return Ok(()) };
        while self.resets.len() < MOST_RESETS {
            let Some(chain) = queue.pop()? else { return Ok(()) };
            self.packet(&chain, sources)?;
            queue.push(chain, 0)?;
        }
        self.held_up = true;
        Ok(())
    }

    fn packet(&mut self, chain: &Chain, sources: Sources<'_>) -> Result<(), Error> {
        let mut data = chain.reader();
        let Some(header) = data.read_obj::<Header>() else {
            return Err(Error::Driver("a packet is shorter than its header"));
        };
        let (from, to) = (u64::from(header.src_cid), u64::from(header.dst_cid));
        if from != self.cid {
            self.tally.dropped.add(1);
            return Ok(());
        }
        let number = u16::from(header.kind);
        let ports = Ports { host: u32::from(header.dst_port), guest: u32::from(header.src_port) };
        let op = Op::from_number(header.op.into());
        let kind = packet::kind_from_number(number).filter(|&kind| self.has(kind));
        let (Some(op), Some(kind), HOST) = (op, kind, to) else {
            if op == Some(Op::Reset) {
                // What there is not is not reset.
                return Ok(());
            }
            self.tally.dropped.add(1);
            match self.table.find(ports).filter(|_| to == HOST) {
                Some(slot) => self.break_off(slot),
                None => self.resets.push_back(Reset { cid: to, ports, kind: number }),
            }
            return Ok(());
        };
        match self.table.find(ports) {
            Some(slot) => match self.connection_packet(slot, kind, op, &header, data) {
                Ok(()) => self.look_after(slot, sources),
                Err(Broken) => self.break_off(slot),
            },
            None if op == Op::Request => self.request(ports, kind, &header, sources),
            None if op == Op::Reset => {}
            None => self.resets.push_back(Reset { cid: HOST, ports, kind: number }),
        }
        Ok(())
    }

    /// The guest wants a connection.
    fn request(&mut self, ports: Ports, kind: Kind, header: &Header, sources: Sources<'_>) {
        if !self.has_room() {
            self.tally.refused.add(1);
            let kind = packet::kind_number(kind);
            return self.resets.push_back(Reset { cid: HOST, ports, kind });
        }
        let window = self.table.share(0);
        let mut connection = Connection::wanted(ports, kind, Instant::now(), window);
        let (size, forwarded) = (header.buf_alloc.into(), header.fwd_cnt.into());
        let sane = connection.allowance.update(size, forwarded).is_some();
        let slot = self.table.insert(connection);
        self.tally.open.set(self.table.len() as u64);
        match sane {
            true => self.dial(slot, sources),
            false => self.break_off(slot),
        }
    }

    /// A packet for a connection that there is.
    fn connection_packet(
        &mut self,
        slot: u32,
        kind: Kind,
        op: Op,
        header: &Header,
        data: Reader<'_>,
    ) -> Result<(), Broken> {
        let connection = self.table.get(slot).ok_or(Broken)?;
        if op == Op::Reset {
            let called = !connection.is_open();
            self.tally.refused.add(called.into());
            let why = io::Error::new(io::ErrorKind::ConnectionRefused, "the guest refused");
            self.end(slot, why);
            return Ok(());
        }
        if connection.kind != kind {
            return Err(Broken);
        }
        let (size, forwarded) = (header.buf_alloc.into(), header.fwd_cnt.into());
        connection.hear_credit(size, forwarded).ok_or(Broken)?;
        match op {
            Op::Response => {
                connection.answered().ok_or(Broken)?;
                self.tally.to_guest.add(1);
                self.table.set_alarm(slot, None);
            }
            Op::Data => {
                let len = u32::from(header.len) as usize;
                if len > data.remaining() {
                    return Err(Broken);
                }
                let last = u32::from(header.flags) & END_OF_MESSAGE != 0;
                connection.take(data, len, last, &mut self.room)?;
                self.tally.sent.add(len as u64);
                if connection.has_due() {
                    self.table.grow(slot);
                }
            }
            Op::Shutdown if connection.is_open() => {
                connection.guest_is_over(header.flags.into());
                if connection.guest_has_left() {
                    self.leave(slot);
                }
            }
            Op::CreditUpdate => {}
            Op::CreditRequest => connection.credit_wanted(),
            Op::Request | Op::Shutdown | Op::Reset => return Err(Broken),
        }
        Ok(())
    }

    /// The guest is done with a connection. It is told at once that this is the end; whatever the host has not read yet
    /// stays for it.
    fn leave(&mut self, slot: u32) {
        let Some(connection) = self.table.get(slot) else { return };
        let kind = packet::kind_number(connection.kind);
        self.resets.push_back(Reset { cid: HOST, ports: connection.ports, kind });
        self.table.linger(slot);
    }
}
