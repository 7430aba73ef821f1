//! The 9P transport (device ID 9 of §5, which says no more of it; the rest is as Linux's `virtio_9p.h` has it): folders of
//! the host in the guest.
//!
//! A request is a chain: a message of the 9P protocol to be read, then room for the reply. The device knows no more of
//! messages than where one ends and which it is; who answers them is behind an [`OpenShare`]: the crate's own server,
//! for which the device has threads, or [another process](crate::fs::RelayTo). Requests are answered as they
//! end, in any order.
//!
//! ```no_run
//! use hyperkit::fs::Share;
//! use hyperkit::virtio::p9::P9;
//!
//! # fn main() -> Result<(), hyperkit::fs::Error> {
//! let device = P9::new(Share::new("src", "/home/me/src").open()?)?;
//! # Ok(()) }
//! ```

mod local;
mod pool;
#[cfg(test)]
pub(crate) mod tests;

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::{Chain, ConfigSpace, Context, Error, HostEvent, Sources, VirtioDevice};
use crate::fs::{self, Answer, Export, HEADER, Header, OpenShare, Relay};
use local::Local;

/// VIRTIO_ID_9P.
const ID: u32 = 9;
/// VIRTIO_9P_MOUNT_TAG: the configuration space has a tag.
const MOUNT_TAG: u64 = 1 << 0;
/// The only queue.
const REQUESTS: u16 = 0;
const QUEUES: [u16; 1] = [128];
/// Bytes, or what takes as long, that are answered at once before the driver hears of it.
const TURN: usize = 512 << 10;

/// A 9P device.
pub struct P9 {
    config: Arc<ConfigSpace>,
    host: Host,
    /// What has ended and was not given back yet: room that is used again.
    answers: Vec<Answer>,
}

/// Who answers.
enum Host {
    Local(Local),
    Relay(Relay),
}

impl P9 {
    /// A device for `share`.
    pub fn new(share: OpenShare) -> Result<Self, fs::Error> {
        let (tag, export) = share.split();
        let host = match export {
            Export::Server(server) => {
                Host::Local(Local::new(server).map_err(fs::Error::NoNotifier)?)
            }
            Export::Relay(to) => Host::Relay(Relay::new(to)),
        };
        Ok(Self::with(&tag, host))
    }

    fn with(tag: &str, host: Host) -> Self {
        // struct virtio_9p_config: le16 tag_len, then the tag.
        let mut config = (tag.len() as u16).to_le_bytes().to_vec();
        config.extend(tag.bytes());
        Self { config: Arc::new(ConfigSpace::new(config)), host, answers: Vec::new() }
    }

    /// Gives back what has ended.
    fn finish(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        if let Host::Local(local) = &mut self.host {
            local.collect(&mut self.answers);
        }
        // A queue that was given up wants nothing back.
        let Some(queue) = cx.queue(REQUESTS) else {
            self.answers.clear();
            return Ok(());
        };
        for Answer { chain, written } in self.answers.drain(..) {
            queue.push(chain, written)?;
        }
        Ok(())
    }
}

/// The header of the message in a chain, if it can be answered at all.
fn header(chain: &Chain) -> Result<Header, Error> {
    let header = Header::read(chain);
    if (chain.writable_len() as usize) < HEADER {
        return Err(Error::Driver("a request has no room for a reply"));
    }
    header.ok_or(Error::Driver("a request is shorter than its header"))
}

impl VirtioDevice for P9 {
    fn id(&self) -> u32 {
        ID
    }

    fn name(&self) -> &str {
        "9p"
    }

    fn features(&self) -> u64 {
        MOUNT_TAG
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn config(&self) -> Arc<ConfigSpace> {
        self.config.clone()
    }

    fn start(&mut self, sources: Sources<'_>) -> io::Result<()> {
        match &self.host {
            Host::Local(local) => local.start(sources),
            Host::Relay(_) => Ok(()),
        }
    }

    fn queue_ready(&mut self, index: u16, cx: &mut Context<'_>) -> Result<(), Error> {
        let sources = cx.sources();
        let mut moved = 0;
        while let Some(queue) = cx.queue(index)
            && let Some(chain) = queue.pop()?
        {
            let header = header(&chain)?;
            match &mut self.host {
                Host::Local(local) => {
                    moved += local.request(chain, header, moved, &mut self.answers);
                }
                Host::Relay(relay) => relay.request(chain, header, &mut self.answers),
            }
            if moved >= TURN {
                queue.end_turn();
                break;
            }
        }
        if let Host::Relay(relay) = &mut self.host {
            relay.send(sources, &mut self.answers);
        }
        self.finish(cx)
    }

    fn host_ready(&mut self, event: HostEvent, cx: &mut Context<'_>) -> Result<(), Error> {
        match &mut self.host {
            Host::Local(local) => local.clear(),
            Host::Relay(relay) => relay.host_ready(event, cx.sources(), &mut self.answers),
        }
        self.finish(cx)
    }

    fn deadline(&self) -> Option<Instant> {
        match &self.host {
            Host::Local(_) => None,
            Host::Relay(relay) => relay.deadline(),
        }
    }

    fn timer(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        if let Host::Relay(relay) = &mut self.host {
            relay.timer(cx.sources(), &mut self.answers);
        }
        self.finish(cx)
    }

    /// Waits for the threads. What another process has not answered is not waited for: that may take for ever, and
    /// nobody but this thread touches the guest's memory for it.
    fn pause(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        loop {
            self.finish(cx)?;
            match &self.host {
                Host::Local(local) if local.is_busy() => local.wait(),
                _ => return Ok(()),
            }
        }
    }

    fn resume(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        if cx.queue(REQUESTS).is_none() {
            self.reset();
        }
        Ok(())
    }

    fn reset(&mut self) {
        match &mut self.host {
            Host::Local(local) => local.reset(),
            Host::Relay(relay) => relay.reset(),
        }
        self.answers.clear();
    }
}
