//! What goes before each frame (struct virtio_net_hdr, §5.1.6): what a driver may say in it, and what it may be told.
//!
//! A host side, which may be the host's kernel, sees only headers that agree with the frame behind them and with what
//! was negotiated. So does the driver, whatever the host side makes up.

use super::features::Features;
use crate::net::Header;

/// Bytes before a frame in memory: a [`Header`], then the number of buffers.
pub(super) const BEFORE: usize = Header::LEN + size_of::<u16>();

/// The shortest frame: two addresses and a type.
pub(super) const SHORTEST: usize = 14;
/// What a frame has beside its packet: the addresses, the type, and a VLAN tag.
pub(super) const AROUND: usize = SHORTEST + 4;
/// The longest frame with a large packet in it: 65562 bytes with what goes before it (§5.1.6.3.1).
pub(super) const LONGEST: usize = 65562 - BEFORE;

/// Why a frame goes no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    Malformed,
    TooLarge,
}

/// What a host side may see of the header of a frame that the driver sends.
pub(super) fn from_driver(
    header: Header,
    len: usize,
    mtu: u16,
    accepted: Features,
) -> Result<Header, Refused> {
    let checked = checked(header, len, |feature| match feature {
        Large::Csum => accepted.contains(Features::CSUM),
        Large::Tcp4 => accepted.contains(Features::HOST_TSO4),
        Large::Tcp6 => accepted.contains(Features::HOST_TSO6),
        Large::Udp => accepted.contains(Features::HOST_USO),
    })?;
    let longest =
        if checked.gso_type == Header::GSO_NONE { usize::from(mtu) + AROUND } else { LONGEST };
    // Whether a checksum is right is nothing that a guest could vouch for.
    let checked = Header { flags: checked.flags & Header::NEEDS_CSUM, ..checked };
    if len > longest { Err(Refused::TooLarge) } else { Ok(checked) }
}

/// What the driver may see of the header of a frame that the host side has for it.
pub(super) fn for_driver(
    header: Header,
    len: usize,
    accepted: Features,
) -> Result<Header, Refused> {
    if header == Header::default() && len >= SHORTEST {
        return Ok(header);
    }
    let checked = checked(header, len, |feature| match feature {
        Large::Csum => accepted.contains(Features::GUEST_CSUM),
        Large::Tcp4 => accepted.contains(Features::GUEST_TSO4),
        Large::Tcp6 => accepted.contains(Features::GUEST_TSO6),
        // One type for both; the host side knows which of them it may give.
        Large::Udp => accepted.intersects(Features::GUEST_USO4 | Features::GUEST_USO6),
    })?;
    let flags = match accepted.contains(Features::GUEST_CSUM) {
        true => checked.flags & (Header::NEEDS_CSUM | Header::DATA_VALID),
        false => 0,
    };
    Ok(Header { flags, ..checked })
}

/// What has to be allowed.
enum Large {
    Csum,
    Tcp4,
    Tcp6,
    Udp,
}

/// A header that agrees with a frame of `len` bytes; what has no meaning in it is zero.
fn checked(header: Header, len: usize, allowed: impl Fn(Large) -> bool) -> Result<Header, Refused> {
    let Header { flags, gso_type, hdr_len, gso_size, csum_start, csum_offset } = header;
    if len < SHORTEST {
        return Err(Refused::Malformed);
    }
    let incomplete = flags & Header::NEEDS_CSUM != 0;
    let end = usize::from(csum_start) + usize::from(csum_offset) + size_of::<u16>();
    if incomplete && (!allowed(Large::Csum) || end > len) {
        return Err(Refused::Malformed);
    }
    let (csum_start, csum_offset) = if incomplete { (csum_start, csum_offset) } else { (0, 0) };
    let large = match gso_type {
        Header::GSO_NONE => {
            let header = Header { flags, csum_start, csum_offset, ..Header::default() };
            return Ok(header);
        }
        Header::GSO_TCPV4 => Large::Tcp4,
        Header::GSO_TCPV6 => Large::Tcp6,
        Header::GSO_UDP => Large::Udp,
        // Among them those with VIRTIO_NET_HDR_GSO_ECN, which goes with features that nobody offers.
        _ => return Err(Refused::Malformed),
    };
    // Pieces have checksums of their own, so that of the whole is never complete (§5.1.6.2.1).
    if !allowed(large) || !incomplete || gso_size == 0 || usize::from(hdr_len) > len {
        return Err(Refused::Malformed);
    }
    Ok(Header { flags, gso_type, hdr_len, gso_size, csum_start, csum_offset })
}
