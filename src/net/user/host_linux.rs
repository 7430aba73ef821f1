//! What Linux tells about datagrams that did not arrive, and how it hands echo replies over.

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use super::host::Failure;

/// Has the kernel keep errors, with whom they are from and what they are about.
pub fn prepare(socket: &UdpSocket) -> io::Result<()> {
    let (level, option) = match socket.local_addr()? {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_RECVERR),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
    };
    let on: libc::c_int = 1;
    // SAFETY: the option takes an int, and is given one.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The next error that was kept.
pub fn failure(socket: &UdpSocket) -> Option<Failure> {
    let mut data = [0u8; 512];
    let mut name = MaybeUninit::<libc::sockaddr_storage>::zeroed();
    // As aligned as what the kernel puts there.
    let mut control = [0u64; 64];
    let mut iovec = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
    // SAFETY: all of it may be zero, and more must not be said of fields that differ between C libraries.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = name.as_mut_ptr().cast();
    message.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    message.msg_iov = &raw mut iovec;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    // SAFETY: each pointer in the message is to memory of the length beside it, which outlives the call.
    let count = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    let count = usize::try_from(count).ok()?;
    // SAFETY: it was zero before the kernel wrote to it, and zeros are a value of this type.
    let destination = address(unsafe { name.assume_init_ref() })?;
    let mut found = None;
    // SAFETY: the kernel has filled in the message.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: it is null, or points to a header in `control`.
    while let Some(header) = unsafe { next.as_ref() } {
        // Its type is another one in other C libraries.
        #[allow(clippy::unnecessary_cast)]
        let length = header.cmsg_len as usize;
        let kind = (header.cmsg_level, header.cmsg_type);
        let ours = [(libc::IPPROTO_IP, libc::IP_RECVERR), (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)];
        let extended = size_of::<libc::sock_extended_err>();
        // SAFETY: only a length is computed.
        let least = unsafe { libc::CMSG_LEN(extended as u32) } as usize;
        if ours.contains(&kind) && length >= least {
            // SAFETY: there are as many bytes behind the header as its length says, which was just checked.
            let error =
                unsafe { libc::CMSG_DATA(next).cast::<libc::sock_extended_err>().read_unaligned() };
            let offender = (length >= least + size_of::<libc::sockaddr_in>())
                // SAFETY: the kernel puts the offender's address behind the error, and the length says how far.
                .then(|| unsafe { offender(next, extended, length) })
                .flatten();
            found = Some((error, offender));
        }
        // SAFETY: the header is in the message.
        next = unsafe { libc::CMSG_NXTHDR(&raw const message, next) };
    }
    let (error, offender) = found?;
    let icmp = [libc::SO_EE_ORIGIN_ICMP, libc::SO_EE_ORIGIN_ICMP6].contains(&error.ee_origin);
    Some(Failure {
        destination,
        kind: icmp.then_some((error.ee_type, error.ee_code)),
        errno: i32::try_from(error.ee_errno).unwrap_or(libc::EIO),
        info: error.ee_info,
        offender,
        data: data.get(..count).unwrap_or_default().to_vec(),
    })
}

/// Reads the address behind an error.
///
/// # Safety
///
/// `header` is of a control message of `length` bytes.
unsafe fn offender(header: *const libc::cmsghdr, at: usize, length: usize) -> Option<IpAddr> {
    let mut name = MaybeUninit::<libc::sockaddr_storage>::zeroed();
    // SAFETY: only an offset is computed.
    let before = unsafe { libc::CMSG_LEN(at as u32) } as usize;
    let count = length.checked_sub(before)?.min(size_of::<libc::sockaddr_storage>());
    // SAFETY: `count` bytes are in the message behind the error, and in `name`.
    unsafe {
        let from = libc::CMSG_DATA(header).add(at);
        from.copy_to_nonoverlapping(name.as_mut_ptr().cast(), count);
    }
    // SAFETY: zeros, and what was copied over them, are a value of this type.
    address(unsafe { name.assume_init_ref() }).map(|address| address.ip())
}

fn address(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says which type it is, and the storage is large enough and aligned for all.
            let name = unsafe { &*(&raw const *name).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from_bits(u32::from_be(name.sin_addr.s_addr));
            Some(SocketAddr::new(ip.into(), u16::from_be(name.sin_port)))
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let name = unsafe { &*(&raw const *name).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(name.sin6_addr.s6_addr);
            Some(SocketAddr::new(ip.into(), u16::from_be(name.sin6_port)))
        }
        _ => None,
    }
}

/// Whether an echo socket has received what answers its own requests, which have this identifier: the kernel sees to
/// that, with an identifier of its own in them.
pub fn is_answer(_message: &[u8], _identifier: u16) -> bool {
    true
}
