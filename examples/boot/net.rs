//! What `--net` says.

#[cfg_attr(target_os = "macos", path = "net_macos.rs")]
#[cfg_attr(not(target_os = "macos"), path = "net_linux.rs")]
mod platform;

use std::net::SocketAddr;

use hyperkit::net::user::{Forward, UserNet};
use hyperkit::net::{Datagram, DatagramOptions, MacAddr, Net};

use super::words;

/// A card as `--net` describes it.
pub fn net(text: &str) -> Result<Net, String> {
    let mut words = words(text).into_iter();
    let kind = words.next().unwrap_or_default();
    let (mut mac, mut options) = (None::<MacAddr>, Vec::new());
    for word in words {
        match word.split_once('=') {
            Some(("mac", address)) => mac = Some(address.parse()?),
            _ => options.push(word),
        }
    }
    let net = match kind.split_once('=').unwrap_or((&kind, "")) {
        ("user", "") => user(&std::mem::take(&mut options))?.into(),
        (kind @ ("tap" | "vmnet"), value) => platform::net(kind, value, &mut options)?,
        ("stream", path) => Net::stream(path),
        ("datagram", path) => {
            let magic = options.iter().any(|option| option == "magic");
            options.retain(|option| option != "magic");
            Datagram::unix(path, DatagramOptions { magic, ..Default::default() }).into()
        }
        ("vpnkit", path) => {
            let mut vpnkit = Net::vpnkit(path);
            for option in std::mem::take(&mut options) {
                vpnkit = match option.split_once('=') {
                    Some(("uuid", uuid)) => {
                        vpnkit.uuid(uuid.parse().map_err(|error| format!("{uuid:?}: {error}"))?)
                    }
                    Some(("address", address)) => vpnkit.preferred_ipv4(parse(address)?),
                    Some(("mac-file", path)) => vpnkit.mac_file(path),
                    Some(("mtu", mtu)) => vpnkit.mtu(parse(mtu)?),
                    _ => return Err(format!("VPNKit's network has no option {option:?}")),
                };
            }
            vpnkit.into()
        }
        _ => return Err(format!("there is no network {kind:?}")),
    };
    if let Some(option) = options.first() {
        return Err(format!("the network {kind} has no option {option:?}"));
    }
    Ok(match mac {
        Some(mac) => net.mac(mac),
        None => net,
    })
}

fn user(options: &[String]) -> Result<UserNet, String> {
    let (mut net, mut servers) = (Net::user(), Vec::new());
    for option in options {
        net = match option.split_once('=').unwrap_or((option, "")) {
            ("forward", what) => net.forward(forward(what)?),
            ("reach", what) => net.forward(reach(what)?),
            ("dns", address) => {
                servers.push(SocketAddr::new(parse(address)?, 53));
                net
            }
            ("mtu", mtu) => net.mtu(parse(mtu)?),
            ("capture", path) => net.capture(path, 65535),
            ("no-loopback", "") => net.loopback(false),
            ("no-ipv6", "") => net.ipv6(None),
            _ => return Err(format!("the user-mode network has no option {option:?}")),
        };
    }
    Ok(if servers.is_empty() { net } else { net.dns_servers(servers) })
}

/// `tcp:[ADDRESS:]PORT:PORT`, `udp:` the same, or `unix:PATH:PORT`: from the host to the guest.
fn forward(what: &str) -> Result<Forward, String> {
    let wrong = || format!("a forward is tcp:[ADDRESS:]PORT:PORT or unix:PATH:PORT, not {what:?}");
    let (kind, rest) = what.split_once(':').ok_or_else(wrong)?;
    let (host, guest) = rest.rsplit_once(':').ok_or_else(wrong)?;
    let guest: u16 = parse(guest)?;
    if kind == "unix" {
        return Ok(Forward::unix(host, guest));
    }
    let host: SocketAddr = match host.parse::<u16>() {
        Ok(port) => SocketAddr::new([127, 0, 0, 1].into(), port),
        Err(_) => parse(host)?,
    };
    match kind {
        "tcp" => Ok(Forward::tcp(host, guest)),
        "udp" => Ok(Forward::udp(host, guest)),
        _ => Err(wrong()),
    }
}

/// `tcp:PORT:ADDRESS:PORT`, `udp:` the same, or `unix:PORT:PATH`: from a port of the gateway to the host.
fn reach(what: &str) -> Result<Forward, String> {
    let wrong = || format!("to reach is tcp:PORT:ADDRESS:PORT or unix:PORT:PATH, not {what:?}");
    let (kind, rest) = what.split_once(':').ok_or_else(wrong)?;
    let (port, to) = rest.split_once(':').ok_or_else(wrong)?;
    let port: u16 = parse(port)?;
    match kind {
        "tcp" => Ok(Forward::tcp_to_host(port, parse(to)?)),
        "udp" => Ok(Forward::udp_to_host(port, parse(to)?)),
        "unix" => Ok(Forward::tcp_to_unix(port, to)),
        _ => Err(wrong()),
    }
}

fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error| format!("{text:?}: {error}"))
}
