//! The control queue (§5.1.6.5): what the driver wants to receive, under which address, and on how many queues.
//!
//! A command is a class, a number and its data, then a byte for the answer. One that does not exist, was not
//! negotiated, or has too much or too little data is answered with VIRTIO_NET_ERR and changes nothing.

use virtio_bindings::virtio_net::*;

use super::super::{Chain, Context, Error, Reader};
use super::filter::Table;
use super::{Card, Features, config};
use crate::net::MacAddr;

const OK: u8 = VIRTIO_NET_OK as u8;
const ERR: u8 = VIRTIO_NET_ERR as u8;

impl Card {
    /// Carries out the commands of queue `index`.
    pub(super) fn control(&mut self, index: u16, cx: &mut Context<'_>) -> Result<(), Error> {
        let before = self.pairs;
        loop {
            let Some(queue) = cx.queue(index) else { return Ok(()) };
            let Some(chain) = queue.pop()? else { break };
            let answer = self.command(&chain)?;
            if chain.writer().write(&[answer]) == 0 {
                return Err(Error::Driver("a command has no room for its answer"));
            }
            // The queue was there a moment ago.
            if let Some(queue) = cx.queue(index) {
                queue.push(chain, 1)?;
            }
        }
        // A frame may wait in front of a queue that has just become another's.
        match self.pairs == before {
            true => Ok(()),
            false => self.receive_all(cx),
        }
    }

    fn command(&mut self, chain: &Chain) -> Result<u8, Error> {
        let mut data = chain.reader();
        let done = match take(&mut data) {
            Some([class, command]) => self.carry_out(class, command, data)?,
            None => false,
        };
        Ok(if done { OK } else { ERR })
    }

    /// Carries out one command, and tells whether that could be done.
    fn carry_out(&mut self, class: u8, command: u8, data: Reader<'_>) -> Result<bool, Error> {
        let has = |feature| self.accepted.contains(feature);
        match (class.into(), command.into()) {
            (VIRTIO_NET_CTRL_RX, _) if has(Features::CTRL_RX) => {
                let extra = has(Features::CTRL_RX_EXTRA);
                Ok(all(data)
                    .is_some_and(|[on]: [u8; 1]| self.filter.set_mode(command, on != 0, extra)))
            }
            (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET) if has(Features::CTRL_RX) => {
                Ok(self.set_tables(data).is_some())
            }
            (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET) if has(Features::CTRL_MAC_ADDR) => {
                Ok(all(data).is_some_and(|address| self.set_mac(MacAddr(address))))
            }
            (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) if has(Features::MQ) => {
                Ok(all(data).is_some_and(|pairs| self.set_pairs(u16::from_le_bytes(pairs))))
            }
            (VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET)
                if has(Features::CTRL_GUEST_OFFLOADS) =>
            {
                match all(data) {
                    Some(bits) => self.set_offloads(u64::from_le_bytes(bits)),
                    None => Ok(false),
                }
            }
            _ => Ok(false),
        }
    }

    /// Both tables: each a number, and as many addresses.
    fn set_tables(&mut self, mut data: Reader<'_>) -> Option<()> {
        let mut table = || {
            let mut table = Table::default();
            let count = u32::from_le_bytes(take(&mut data)?) as usize;
            if count > data.remaining() / size_of::<MacAddr>() {
                return None;
            }
            // What does not fit is not even read.
            for n in 0..count {
                if !table.add(MacAddr(take(&mut data)?)) {
                    data.skip((count - n - 1) * size_of::<MacAddr>());
                    break;
                }
            }
            Some(table)
        };
        let (unicast, multicast) = (table()?, table()?);
        if data.remaining() > 0 {
            return None;
        }
        (self.filter.unicast, self.filter.multicast) = (unicast, multicast);
        Some(())
    }

    fn set_mac(&mut self, address: MacAddr) -> bool {
        if address.is_multicast() {
            return false;
        }
        self.mac = address;
        // The driver knows, so it is not told.
        self.shared.config.set(config::MAC, &address.0);
        true
    }

    fn set_pairs(&mut self, pairs: u16) -> bool {
        let possible = (1..=self.properties.queues).contains(&pairs);
        if possible {
            self.pairs = pairs;
        }
        possible
    }

    fn set_offloads(&mut self, bits: u64) -> Result<bool, Error> {
        let wanted = Features::from_bits_retain(bits);
        if !(self.accepted & Features::GUEST_OFFLOADS).contains(wanted) {
            return Ok(false);
        }
        self.taken = (self.accepted - Features::GUEST_OFFLOADS) | wanted.consistent();
        self.backend.activate(self.taken.offloads())?;
        Ok(true)
    }
}

/// The next bytes.
fn take<const N: usize>(data: &mut Reader<'_>) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    (data.read(&mut bytes) == N).then_some(bytes)
}

/// All bytes that are left.
fn all<const N: usize>(mut data: Reader<'_>) -> Option<[u8; N]> {
    if data.remaining() == N { take(&mut data) } else { None }
}
