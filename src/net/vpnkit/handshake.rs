//! What a client and VPNKit say to each other before frames flow: version 22, all numbers with the lowest byte first.
//!
//! The client says which version it speaks, and the server does; the client says who it is and what it wants; the
//! server says what the network is like, or why there is none.

use std::net::Ipv4Addr;

use uuid::Uuid;

use crate::net::MacAddr;
use crate::net::stream::link::{Heard, LEAST};

const MAGIC: &[u8; 5] = b"VMN3T";
const VERSION: u32 = 22;
/// The commit that a client was built from: 40 characters that nobody looks at.
const COMMIT: [u8; 40] = [b'0'; 40];
const INIT: usize = MAGIC.len() + 4 + COMMIT.len();

const ETHERNET: u8 = 1;
const PREFERRED_IPV4: u8 = 8;

const REPLY: usize = 258;
const VIF: u8 = 1;
const DISCONNECT: u8 = 2;

/// The smallest MTU a card can have (§5.1.4): that of IPv4.
const LEAST_MTU: u16 = 68;

/// What the server says of its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Vif {
    pub mac: MacAddr,
    pub mtu: u16,
    pub max_packet_size: u16,
}

/// One conversation.
#[derive(Debug, Default)]
pub(super) enum Handshake {
    #[default]
    Version,
    Network,
}

impl Handshake {
    /// What the client begins with.
    pub fn begin(say: &mut Vec<u8>) -> Self {
        say.extend_from_slice(MAGIC);
        say.extend_from_slice(&VERSION.to_le_bytes());
        say.extend_from_slice(&COMMIT);
        Self::Version
    }

    /// Goes on with what the server said. The network is there once all is heard.
    pub fn hear(
        &mut self,
        heard: &[u8],
        command: &Command,
        say: &mut Vec<u8>,
    ) -> Result<(Heard, Option<Vif>), String> {
        match self {
            Self::Version => {
                // A server of another kind may never send as much as ours would.
                let begin = heard.get(..MAGIC.len()).unwrap_or(heard);
                if !MAGIC.starts_with(begin) {
                    return Err(format!("not a VPNKit server: it began with {}", text(begin)));
                }
                let Some(init) = heard.get(..INIT) else { return Ok((Heard::Part, None)) };
                let version = init.get(MAGIC.len()..).and_then(|rest| rest.first_chunk());
                let version = version.copied().map_or(0, u32::from_le_bytes);
                if version != VERSION {
                    // Some go on all the same; one that does not closes the connection.
                    log::warn!("net vpnkit: the server speaks version {version}, not {VERSION}");
                }
                command.put(say);
                *self = Self::Network;
                Ok((Heard::Some(INIT), None))
            }
            Self::Network => {
                let Some(reply) = heard.get(..REPLY) else { return Ok((Heard::Part, None)) };
                let (kind, rest) = reply.split_first().unwrap_or((&0, &[]));
                match *kind {
                    VIF => Ok((Heard::All(REPLY), Some(vif(rest)?))),
                    DISCONNECT => {
                        let (len, message) = rest.split_first().unwrap_or((&0, &[]));
                        let message = message.get(..usize::from(*len)).unwrap_or(message);
                        Err(format!("the server refuses: {}", text(message)))
                    }
                    kind => Err(format!("the server replied with a message of kind {kind}")),
                }
            }
        }
    }
}

/// What the client wants.
#[derive(Debug)]
pub(super) struct Command {
    pub uuid: Uuid,
    pub preferred_ipv4: Option<Ipv4Addr>,
}

impl Command {
    fn put(&self, say: &mut Vec<u8>) {
        let mut uuid = Uuid::encode_buffer();
        let uuid = self.uuid.hyphenated().encode_lower(&mut uuid);
        say.push(if self.preferred_ipv4.is_some() { PREFERRED_IPV4 } else { ETHERNET });
        say.extend_from_slice(uuid.as_bytes());
        say.extend_from_slice(&self.preferred_ipv4.map_or(0, u32::from).to_le_bytes());
    }
}

fn vif(bytes: &[u8]) -> Result<Vif, String> {
    let Some(&[a, b, c, d, ref mac @ ..]) = bytes.first_chunk::<10>() else {
        return Err("the server's reply is cut".into());
    };
    let (mtu, max_packet_size) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
    let mac = MacAddr(*mac);
    if mac.is_multicast() || mac == MacAddr([0; 6]) {
        return Err(format!("the server gives out {mac}, which is no address of one card"));
    }
    // Frames that the server would not take must not be made in the first place.
    let usable = mtu.min(max_packet_size.saturating_sub(LEAST as u16));
    if usable < LEAST_MTU {
        return Err(format!("the server's MTU is {mtu} in frames of {max_packet_size} bytes"));
    }
    Ok(Vif { mac, mtu: usable, max_packet_size })
}

/// Bytes of a peer, fit for a log.
fn text(bytes: &[u8]) -> String {
    format!("\"{}\"", bytes.escape_ascii())
}
