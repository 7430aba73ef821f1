//! VPNKit, and others that speak its Ethernet protocol, such as gvproxy.
//!
//! The server has the last word on the card's address, and says it when it answers: until then the card has none. It
//! says its MTU then, too, when a guest may have been told one already, which cannot be taken back: a server's smaller
//! one is kept here, by losing what is larger, and whoever knows it beforehand can say so. Whoever wants the same addresses again, from the same server, comes back with the same UUID.

mod handshake;
#[cfg(test)]
mod tests;

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use uuid::Uuid;

use self::handshake::{Command, Handshake, Vif};
use super::reconnect::Target;
use super::stream::link::{Heard, LEAST, Link, Protocol};
use super::stream::{MTU, backend_of_link};
use super::{Header, NetBackend, Offloads, Properties, Wake};
use crate::memory::Buffers;
use crate::virtio::{HostEvent, Sources};

/// Bytes around a packet: an Ethernet header, with a VLAN's tag.
const AROUND: usize = LEAST + 4;
/// The shortest frame of an Ethernet, without its check sequence.
const SHORTEST: usize = 60;

/// The host side of a card whose peer is VPNKit.
///
/// A server that is not there, goes away or refuses is asked again: after 100 ms at first, every five seconds at
/// last. Until it agrees the card's link is down.
pub struct Vpnkit(Link<Version22>);

impl Vpnkit {
    /// The server that listens on `path`. It will know the card by a random UUID.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let command = Command { uuid: Uuid::new_v4(), preferred_ipv4: None };
        let handshake = Handshake::default();
        let protocol = Version22 { command, handshake, mtu: MTU, vif: None, mac_file: None };
        Self(Link::new(Target::Unix(path.into()), protocol))
    }

    /// What the server is to know the card by.
    pub fn uuid(mut self, uuid: Uuid) -> Self {
        self.0.protocol.command.uuid = uuid;
        self
    }

    /// The address that the guest would like to have. A server that cannot give it to this UUID refuses.
    pub fn preferred_ipv4(mut self, address: Ipv4Addr) -> Self {
        self.0.protocol.command.preferred_ipv4 = Some(address);
        self
    }

    /// The MTU that the guest is told, in bytes: the server's, if it is known; 1500 if nothing is said. Frames of the
    /// guest that are larger than the server's MTU allows are lost, and counted as failed.
    pub fn mtu(mut self, mtu: u16) -> Self {
        self.0.protocol.mtu = mtu;
        self
    }

    /// Where to write the address of the card, as text, each time the server has said it.
    pub fn mac_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.0.protocol.mac_file = Some(path.into());
        self
    }
}

struct Version22 {
    command: Command,
    handshake: Handshake,
    /// What the guest is told.
    mtu: u16,
    /// What the server said last.
    vif: Option<Vif>,
    mac_file: Option<PathBuf>,
}

impl Protocol for Version22 {
    const PREFIX: usize = 2;
    const NAME: &'static str = "vpnkit";

    fn decode([low, high, ..]: [u8; 4]) -> usize {
        u16::from_le_bytes([low, high]).into()
    }

    fn encode(length: usize) -> [u8; 4] {
        (length as u32).to_le_bytes()
    }

    fn properties(&self) -> Properties {
        let mac = self.vif.map(|vif| vif.mac);
        Properties { mac, mtu: self.mtu, offloads: Offloads::empty(), queues: 1 }
    }

    fn most(&self) -> usize {
        let most = |vif: Vif| (AROUND + usize::from(vif.mtu)).min(vif.max_packet_size.into());
        self.vif.map_or(0, most)
    }

    fn least(&self) -> usize {
        SHORTEST
    }

    fn greet(&mut self, say: &mut Vec<u8>) -> bool {
        self.handshake = Handshake::begin(say);
        true
    }

    fn hear(&mut self, heard: &[u8], say: &mut Vec<u8>) -> Result<Heard, String> {
        let (heard, vif) = self.handshake.hear(heard, &self.command, say)?;
        if let Some(vif) = vif {
            log::info!("net vpnkit: the card is {}, the MTU {}", vif.mac, vif.mtu);
            if vif.mtu < self.mtu {
                let (theirs, ours) = (vif.mtu, self.mtu);
                log::warn!(
                    "net vpnkit: larger packets than {theirs} bytes are lost, and the guest knows of {ours}"
                );
            }
            self.vif = Some(vif);
            if let Some(path) = &self.mac_file
                && let Err(error) = write(path, &vif.mac.to_string())
            {
                log::warn!("net vpnkit: cannot write the address to {}: {error}", path.display());
            }
        }
        Ok(heard)
    }
}

/// Puts a file with this content in the place of `path`, whole or not at all.
fn write(path: &Path, content: &str) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", Uuid::new_v4().simple()));
    let draft = path.with_file_name(name);
    let mut file = OpenOptions::new().write(true).create_new(true).open(&draft)?;
    let done = file.write_all(content.as_bytes()).and_then(|()| fs::rename(&draft, path));
    if done.is_err() {
        // It is of no use, and nothing can be done about one that stays.
        let _ = fs::remove_file(&draft);
    }
    done
}

backend_of_link!(Vpnkit);
