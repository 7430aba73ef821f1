//! The reply that is being received: its header first, which says whose it is, then the rest, straight into the chain of
//! the request that it answers.

use std::io;
use std::os::fd::OwnedFd;

use super::Flight;
use crate::fs::envelope::{HEADER, Header};
use crate::memory::BufferList;
use crate::sys::socket;
use crate::virtio::Chain;

/// A reply, or as much of it as there is.
#[derive(Default)]
pub(super) struct Incoming {
    header: [u8; HEADER],
    /// Bytes that have come, the header's among them.
    have: usize,
    /// The request that it answers, once that is known.
    flight: Option<Flight>,
}

/// How far a reply has come.
pub(super) enum Progress {
    /// There is nothing more for now.
    Blocked,
    /// A part of it is missing.
    Part,
    /// Whose is it? The answer is for [`Incoming::expect`].
    Whose(Header),
    /// It is there, and in the chain of its request.
    Whole(Flight, Header),
}

impl Incoming {
    /// Receives once; `room` is for lists of memory.
    pub fn receive(
        &mut self,
        socket: &OwnedFd,
        room: &mut BufferList<'static>,
    ) -> io::Result<Progress> {
        let mut list = std::mem::take(room).recycle();
        match &self.flight {
            Some(flight) => places(&mut list, &flight.chain, self.have, self.header().size),
            None => list.push(self.header.get_mut(self.have..).unwrap_or_default().into()),
        }
        let result = socket::receive(socket, list.all(), 0);
        *room = list.recycle();
        match result {
            Ok(received) if received.len == 0 => {
                Err(io::Error::other("the server has closed the connection"))
            }
            Ok(received) => {
                self.have += received.len;
                Ok(self.progress())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Progress::Blocked),
            Err(error) => Err(error),
        }
    }

    /// The reply is for `flight`, which has room for it.
    pub fn expect(&mut self, flight: Flight) -> Progress {
        flight.chain.writer().write(&self.header);
        self.flight = Some(flight);
        self.progress()
    }

    /// Forgets the reply; the request goes back.
    pub fn abandon(&mut self) -> Option<Flight> {
        std::mem::take(self).flight
    }

    /// The request that it answers, if that is known.
    pub fn flight(&self) -> Option<&Flight> {
        self.flight.as_ref()
    }

    fn header(&self) -> Header {
        Header::decode(self.header)
    }

    fn progress(&mut self) -> Progress {
        let header = self.header();
        if self.have < HEADER {
            return Progress::Part;
        }
        let whole = self.have >= header.size as usize;
        match self.flight.take_if(|_| whole) {
            Some(flight) => {
                self.have = 0;
                Progress::Whole(flight, header)
            }
            None if self.flight.is_some() => Progress::Part,
            None => Progress::Whose(header),
        }
    }
}

/// Where the bytes from `start` to `end` of a reply go.
fn places<'a>(list: &mut BufferList<'a>, chain: &'a Chain, start: usize, end: u32) {
    let Some(mut rest) = chain.writer().split_off(start) else { return };
    let mut left = (end as usize).saturating_sub(start);
    while let Some(slice) = rest.next_slice(left) {
        left -= slice.len();
        list.push(slice);
    }
}
