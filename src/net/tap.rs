//! A tap: an interface of the host's kernel whose other end is the card.
//!
//! What the guest sends, the host's network stack receives on the interface, and the other way round; what happens with
//! it there (an address, a bridge, a firewall) is the host's business. Checksums and the cutting of large packets are
//! left to whoever comes last, in either direction.
//!
//! The interface is made and set up by whoever may, and used by whoever it was made for:
//!
//! ```text
//! ip tuntap add tap0 mode tap user me
//! ip address add 192.0.2.1/24 dev tap0
//! ip link set tap0 up
//! ```
//!
//! For more than one pair of queues it must be made with `multi_queue`.

use std::ffi::c_short;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Instant;

use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl};
use rustix::net::{AddressFamily, SocketType, socket};
use vm_memory::VolatileSlice;

use super::{Header, NetBackend, Offloads, Properties, Wake};
use crate::memory::{BufferList, Buffers};
use crate::virtio::{HostEvent, Interest, Sources};

const DEVICE: &str = "/dev/net/tun";
/// How an interface must have been made.
const KIND: c_short = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as c_short;
const MULTI_QUEUE: c_short = libc::IFF_MULTI_QUEUE as c_short;
/// The MTU, where the kernel does not tell.
const USUAL_MTU: u16 = 1500;
/// Queues that an interface can have, at most.
const MOST_QUEUES: u16 = 256;

/// Why a tap cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TapError {
    /// No interface can have this name.
    #[error(
        "{0:?} is no name for an interface: those have 1 to 15 bytes, no slashes and no blanks"
    )]
    Name(String),
    /// The number of queues is impossible.
    #[error("a tap has 1 to {MOST_QUEUES} queues, not {0}")]
    Queues(u16),
    /// The kernel's side of all taps cannot be opened.
    #[error(
        "cannot open {DEVICE}: {0} (it takes the kernel's tun module, and permission to read and write the device)"
    )]
    NoDevice(#[source] io::Error),
    /// The kernel cannot do what it takes.
    #[error(
        "the kernel's tun module lacks IFF_VNET_HDR or IFF_MULTI_QUEUE: one queue takes Linux 2.6.27 or later, \
         several take Linux 3.8"
    )]
    TooOld,
    /// The user may not use the interface, or may not make it.
    #[error(
        "not permitted to use tap {0:?}: it takes CAP_NET_ADMIN, or an interface that was made for this user: \
         ip tuntap add {0} mode tap user $USER"
    )]
    NotPermitted(String),
    /// Somebody else uses the interface.
    #[error("tap {0:?} is in use, or has fewer queues than wanted")]
    Busy(String),
    /// There is an interface of the name, but of another kind.
    #[error(
        "{name:?} is no tap that can be had with {queues} queues: more than one takes an interface made with \
         multi_queue, and one takes an interface made without"
    )]
    Kind {
        /// The name.
        name: String,
        /// The number of queues that were wanted.
        queues: u16,
    },
    /// A file descriptor is not an open tap of the right kind.
    #[error(
        "file descriptor {number} of those given is no tap with IFF_NO_PI and IFF_VNET_HDR{why}"
    )]
    NotTap {
        /// Which one, from 0 on.
        number: usize,
        /// More about it.
        why: &'static str,
    },
    /// Something else went wrong.
    #[error("tap {name:?}: {what}: {source}")]
    Io {
        /// The name.
        name: String,
        /// What was tried.
        what: &'static str,
        /// What the kernel says.
        source: io::Error,
    },
}

/// A tap on a Linux host.
#[derive(Debug)]
pub struct Tap {
    name: String,
    mtu: u16,
    offloads: Offloads,
    queues: Vec<Queue>,
    /// The interface is no more.
    gone: bool,
    /// The interface is set down.
    down: bool,
    /// When either was found out, until the card has been told.
    untold: Option<Instant>,
    /// Room for a list, to be used again.
    spare: BufferList<'static>,
}

#[derive(Debug)]
struct Queue {
    fd: OwnedFd,
    /// There may be frames.
    readable: bool,
}

impl Tap {
    /// Opens the interface `name` with so many queues. One that is not there is made, if that is permitted, and goes
    /// away when it is closed.
    pub fn open(name: &str, queues: u16) -> Result<Self, TapError> {
        let blank = |byte: u8| byte == b'/' || byte.is_ascii_whitespace() || byte == 0;
        if !(1..libc::IFNAMSIZ).contains(&name.len()) || name.bytes().any(blank) {
            return Err(TapError::Name(name.into()));
        }
        if !(1..=MOST_QUEUES).contains(&queues) {
            return Err(TapError::Queues(queues));
        }
        let mut request = Request::named(name);
        let kind = if queues > 1 { KIND | MULTI_QUEUE } else { KIND };
        let mut fds = Vec::new();
        for _ in 0..queues {
            let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let fd = rustix::fs::open(DEVICE, flags, Mode::empty())
                .map_err(|error| TapError::NoDevice(error.into()))?;
            let features = get_features(&fd).map_err(TapError::NoDevice)?;
            if features & kind as u32 & 0xffff != kind as u32 & 0xffff {
                return Err(TapError::TooOld);
            }
            request.set_flags(kind);
            // With `tap%d` the kernel puts the name in, and the other queues have to be of the same interface.
            request.set_interface(&fd).map_err(|error| match error.raw_os_error() {
                Some(libc::EPERM) => TapError::NotPermitted(name.into()),
                Some(libc::EBUSY | libc::E2BIG) => TapError::Busy(name.into()),
                Some(libc::EINVAL) => TapError::Kind { name: name.into(), queues },
                _ => TapError::Io { name: name.into(), what: "cannot open it", source: error },
            })?;
            fds.push(fd);
        }
        Self::new(request.name(), fds)
    }

    /// A tap that somebody else has opened, with IFF_NO_PI and IFF_VNET_HDR: one descriptor for each queue.
    pub fn from_fds(fds: Vec<OwnedFd>) -> Result<Self, TapError> {
        let count = u16::try_from(fds.len()).unwrap_or(u16::MAX);
        if !(1..=MOST_QUEUES).contains(&count) {
            return Err(TapError::Queues(count));
        }
        let mut name = None;
        for (number, fd) in fds.iter().enumerate() {
            let mut request = Request::named("");
            let wrong = |why| TapError::NotTap { number, why };
            request.get_interface(fd).map_err(|_| wrong(""))?;
            if request.flags() & KIND != KIND {
                return Err(wrong(""));
            }
            if *name.get_or_insert_with(|| request.name()) != request.name() {
                return Err(wrong(", of the same interface as those before it"));
            }
        }
        Self::new(name.unwrap_or_default(), fds)
    }

    fn new(name: String, fds: Vec<OwnedFd>) -> Result<Self, TapError> {
        let failed = |what| {
            let name = name.clone();
            move |source: io::Error| TapError::Io { name, what, source }
        };
        for fd in &fds {
            set_header(fd).map_err(failed("cannot set the size of the header"))?;
            fcntl_getfl(fd)
                .and_then(|flags| fcntl_setfl(fd, flags | OFlags::NONBLOCK))
                .map_err(|error| failed("cannot make it non-blocking")(error.into()))?;
        }
        let offloads = fds.first().map_or(Offloads::empty(), probe);
        let mtu = Request::named(&name).mtu().unwrap_or(USUAL_MTU);
        let queues = fds.into_iter().map(|fd| Queue { fd, readable: true }).collect();
        let spare = BufferList::default();
        Ok(Self { name, mtu, offloads, queues, gone: false, down: false, untold: None, spare })
    }

    /// The name of the interface.
    pub fn interface(&self) -> &str {
        &self.name
    }

    /// What an error of the kernel's means for the card.
    fn lost(&mut self, error: io::Error) -> io::Error {
        if error.raw_os_error() == Some(libc::EBADFD) {
            if !self.gone {
                log::warn!("tap {:?} is no more", self.name);
                self.untold = Some(Instant::now());
            }
            self.gone = true;
            return io::ErrorKind::WouldBlock.into();
        }
        error
    }

    /// The kernel takes no frame because the interface is down. It says when it is up again, but only to those who have
    /// looked since: to watch anew is to look.
    fn set_down(&mut self, number: u16, sources: Sources<'_>) -> io::Result<()> {
        let Some(queue) = self.queues.get(usize::from(number)) else { return Ok(()) };
        sources.change(&queue.fd, number.into(), Interest::READABLE | Interest::WRITABLE)?;
        if !self.down {
            log::info!("tap {:?} is set down", self.name);
            (self.down, self.untold) = (true, Some(Instant::now()));
        }
        Ok(())
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        let Some(queue) = self.queues.first() else { return Ok(()) };
        match set_offloads(&queue.fd, flags(offloads)) {
            Ok(()) => Ok(()),
            Err(error) => match self.lost(error) {
                error if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
                error => Err(error),
            },
        }
    }
}

impl NetBackend for Tap {
    fn name(&self) -> &str {
        "tap"
    }

    fn properties(&self) -> Properties {
        // Not more than 256.
        let queues = self.queues.len() as u16;
        Properties { mac: None, mtu: self.mtu, offloads: self.offloads, queues }
    }

    fn start(&mut self, sources: Sources<'_>) -> io::Result<()> {
        let both = Interest::READABLE | Interest::WRITABLE;
        (0..).zip(&self.queues).try_for_each(|(source, queue)| sources.add(&queue.fd, source, both))
    }

    fn activate(&mut self, offloads: Offloads) -> io::Result<()> {
        self.set_offloads(offloads)
    }

    fn send(
        &mut self,
        queue: u16,
        header: &Header,
        frame: Buffers<'_>,
        sources: Sources<'_>,
    ) -> io::Result<()> {
        let Some(fd) = self.queues.get(usize::from(queue)).map(|queue| &queue.fd) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        if self.gone {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let mut bytes = header.to_bytes();
        let mut list = std::mem::take(&mut self.spare).recycle();
        list.push(VolatileSlice::from(&mut bytes[..]));
        frame.slices().for_each(|slice| list.push(slice));
        let sent = write(fd, list.all());
        self.spare = list.recycle();
        match sent {
            Ok(()) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EIO) => {
                self.set_down(queue, sources)?;
                Err(io::ErrorKind::NotConnected.into())
            }
            Err(error) => Err(self.lost(error)),
        }
    }

    fn receive(
        &mut self,
        queue: u16,
        header: &mut Header,
        space: Buffers<'_>,
        _sources: Sources<'_>,
    ) -> io::Result<usize> {
        let Some(queue) = self.queues.get_mut(usize::from(queue)) else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        if !queue.readable || self.gone {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut bytes = [0; Header::LEN];
        // The kernel cuts off what does not fit, and says nothing: one byte more tells.
        let mut behind = [0];
        let mut list = std::mem::take(&mut self.spare).recycle();
        list.push(VolatileSlice::from(&mut bytes[..]));
        let mut room = 0;
        for slice in space.slices().take(Buffers::MOST_PIECES - 2) {
            room += slice.len();
            list.push(slice);
        }
        list.push(VolatileSlice::from(&mut behind[..]));
        let got = read(&queue.fd, list.all());
        self.spare = list.recycle();
        let error = match got {
            Ok(count) => match count.checked_sub(Header::LEN) {
                Some(len) if len <= room => {
                    *header = Header::from_bytes(bytes);
                    return Ok(len);
                }
                _ => io::ErrorKind::InvalidData.into(),
            },
            Err(error) => error,
        };
        if error.kind() == io::ErrorKind::WouldBlock {
            queue.readable = false;
        }
        Err(self.lost(error))
    }

    fn host_ready(&mut self, event: HostEvent, _sources: Sources<'_>) -> Wake {
        if let Some(queue) = self.queues.get_mut(event.source as usize) {
            queue.readable |= event.readable;
        }
        // What is down can never be written to.
        let up = event.writable && std::mem::take(&mut self.down);
        Wake { receive: event.readable, send: event.writable, link: up }
    }

    fn deadline(&self) -> Option<Instant> {
        // What a call has found out is told at once.
        self.untold
    }

    fn timer(&mut self, _sources: Sources<'_>) -> Wake {
        Wake { link: self.untold.take().is_some(), ..Wake::default() }
    }

    fn link(&self) -> bool {
        !self.gone && !self.down
    }

    fn reset(&mut self) {
        // Frames that come while no driver is there are to suit the next one, whatever it takes.
        if let Err(error) = self.set_offloads(Offloads::empty()) {
            log::warn!("tap {:?}: cannot turn offloads off: {error}", self.name);
        }
    }
}

/// TUNSETOFFLOAD's flags for what the driver takes.
fn flags(offloads: Offloads) -> u32 {
    let udp = Offloads::GUEST_USO4 | Offloads::GUEST_USO6;
    [
        (Offloads::GUEST_CSUM, libc::TUN_F_CSUM),
        (Offloads::GUEST_TSO4, libc::TUN_F_TSO4),
        (Offloads::GUEST_TSO6, libc::TUN_F_TSO6),
        // The kernel does both or neither.
        (udp, libc::TUN_F_USO4 | libc::TUN_F_USO6),
    ]
    .iter()
    .filter(|(needed, _)| offloads.contains(*needed))
    .fold(0, |flags, (_, flag)| flags | flag)
}

/// What the kernel keeps for a tap; it takes whatever has a header.
fn probe(fd: &OwnedFd) -> Offloads {
    let send = Offloads::CSUM | Offloads::TSO4 | Offloads::TSO6;
    let receive = Offloads::GUEST_CSUM | Offloads::GUEST_TSO4 | Offloads::GUEST_TSO6;
    // Linux 6.2 knows large UDP packets in both directions, before that in none.
    let udp = Offloads::USO | Offloads::GUEST_USO4 | Offloads::GUEST_USO6;
    let kept = [send | receive | udp, send | receive, send]
        .into_iter()
        .find(|offloads| set_offloads(fd, flags(*offloads)).is_ok());
    // None until a driver wants them.
    let _ = set_offloads(fd, 0);
    kept.unwrap_or_default()
}

/// What the calls about interfaces go by.
struct Request(libc::ifreq);

impl Request {
    fn named(name: &str) -> Self {
        // SAFETY: it is a structure of numbers, for which zeros are fine.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // The last byte stays zero.
        let room = request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1);
        for (to, from) in room.zip(name.bytes()) {
            *to = from as _;
        }
        Self(request)
    }

    fn name(&self) -> String {
        let bytes = self.0.ifr_name.iter().map(|&byte| byte as u8).take_while(|&byte| byte != 0);
        String::from_utf8_lossy(&bytes.collect::<Vec<_>>()).into_owned()
    }

    fn set_flags(&mut self, flags: c_short) {
        self.0.ifr_ifru.ifru_flags = flags;
    }

    fn flags(&self) -> c_short {
        // SAFETY: a number, whatever was written.
        unsafe { self.0.ifr_ifru.ifru_flags }
    }

    /// Makes `fd` a queue of the interface, and takes over its name.
    fn set_interface(&mut self, fd: &OwnedFd) -> io::Result<()> {
        // SAFETY: the call reads and writes a structure of this kind, which is there.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut self.0) })
    }

    /// Finds out which interface `fd` is a queue of.
    fn get_interface(&mut self, fd: &OwnedFd) -> io::Result<()> {
        // SAFETY: the call writes a structure of this kind, which is there. Descriptors of other kinds refuse it.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &raw mut self.0) })
    }

    /// The MTU of the interface.
    fn mtu(&mut self) -> Option<u16> {
        let any = socket(AddressFamily::INET, SocketType::DGRAM, None).ok()?;
        let fd = any.as_fd().as_raw_fd();
        // SAFETY: the call reads and writes a structure of this kind, which is there.
        check(unsafe { libc::ioctl(fd, libc::SIOCGIFMTU as _, &raw mut self.0) }).ok()?;
        // SAFETY: a number, whatever was written.
        u16::try_from(unsafe { self.0.ifr_ifru.ifru_mtu }).ok()
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn get_features(fd: &OwnedFd) -> io::Result<u32> {
    let mut features: libc::c_uint = 0;
    // SAFETY: the call writes a number of this size.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETFEATURES, &raw mut features) })?;
    Ok(features)
}

fn set_header(fd: &OwnedFd) -> io::Result<()> {
    let size = Header::LEN as libc::c_int;
    // SAFETY: the call reads a number of this size.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) })
}

fn set_offloads(fd: &OwnedFd, flags: u32) -> io::Result<()> {
    // SAFETY: the call takes a number, not an address.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) })
}

/// Bytes that a call has moved.
fn moved(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn write(fd: &OwnedFd, from: Buffers<'_>) -> io::Result<()> {
    let iovecs = from.iovecs();
    let count = libc::c_int::try_from(iovecs.len()).unwrap_or(libc::c_int::MAX);
    // SAFETY: the pieces are memory that may be read as long as `from` is there.
    moved(unsafe { libc::writev(fd.as_raw_fd(), iovecs.as_ptr(), count) }).map(|_| ())
}

fn read(fd: &OwnedFd, to: Buffers<'_>) -> io::Result<usize> {
    let iovecs = to.iovecs();
    let count = libc::c_int::try_from(iovecs.len()).unwrap_or(libc::c_int::MAX);
    // SAFETY: the pieces are memory that may be written as long as `to` is there.
    moved(unsafe { libc::readv(fd.as_raw_fd(), iovecs.as_ptr(), count) })
}

#[cfg(test)]
#[path = "tap_tests.rs"]
mod tests;
