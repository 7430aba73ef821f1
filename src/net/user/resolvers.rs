//! The servers that names are asked of: the caller's, or those of the host, which change when the host moves.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::router::DNS;

/// More servers are not asked.
const SERVERS: usize = 3;
/// A file that is larger is not read.
const LARGEST: u64 = 1 << 16;

/// What tells that a file has changed: inode, size, seconds and nanoseconds.
type Version = (u64, u64, i64, i64);

/// The servers.
#[derive(Debug)]
pub struct Resolvers {
    servers: Vec<SocketAddr>,
    /// Where they are from, unless the caller named them.
    file: Option<(PathBuf, Option<Version>)>,
}

impl Resolvers {
    /// `servers`, or those of the host.
    pub fn new(servers: Option<Vec<SocketAddr>>) -> Self {
        match servers {
            Some(servers) => Self { servers, file: None },
            None => Self::of(Path::new("/etc/resolv.conf")),
        }
    }

    /// Those that a file like resolv.conf names.
    pub fn of(path: &Path) -> Self {
        Self { servers: Vec::new(), file: Some((path.to_owned(), None)) }
    }

    /// As they are now.
    pub fn now(&mut self) -> &[SocketAddr] {
        if let Some((path, known)) = &mut self.file {
            let version = fs::metadata(&*path).ok().filter(|file| file.len() <= LARGEST);
            let version =
                version.map(|file| (file.ino(), file.len(), file.mtime(), file.mtime_nsec()));
            if version.is_none() || version != *known {
                let text = version.and_then(|_| fs::read_to_string(&*path).ok());
                self.servers = parse(&text.unwrap_or_default());
                *known = version;
            }
        }
        &self.servers
    }
}

fn parse(text: &str) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            return None;
        }
        let word = words.next()?;
        // An address on a link, such as fe80::1%eth0.
        let Some((address, scope)) = word.split_once('%') else {
            return Some(SocketAddr::new(word.parse().ok()?, DNS));
        };
        let scope = scope.parse().ok().or_else(|| interface(scope))?;
        match address.parse().ok()? {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(std::net::SocketAddrV6::new(address, DNS, 0, scope).into()),
        }
    };
    text.lines().filter_map(server).take(SERVERS).collect()
}

/// The number of an interface.
fn interface(name: &str) -> Option<u32> {
    let name = std::ffi::CString::new(name).ok()?;
    // SAFETY: the name ends in a zero.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    (index != 0).then_some(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_again_when_the_file_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let mut resolvers = Resolvers::of(&path);
        assert!(resolvers.now().is_empty());
        fs::write(&path, "# none\nsearch example.org\nnameserver 10.0.0.1\nnameserver ::5\n")
            .unwrap();
        let servers = ["10.0.0.1:53", "[::5]:53"].map(|server| server.parse().unwrap());
        assert_eq!(resolvers.now(), servers);
        fs::write(&path, "nameserver 10.0.0.22\nnameserver nonsense\nnameserver").unwrap();
        assert_eq!(resolvers.now(), ["10.0.0.22:53".parse().unwrap()]);
        fs::remove_file(&path).unwrap();
        assert!(resolvers.now().is_empty());
    }

    #[test]
    fn an_address_on_a_link_keeps_its_interface() {
        let servers = parse("nameserver fe80::1%7\nnameserver fe80::2%lo\nnameserver 1.2.3.4%9");
        let scopes: Vec<_> = servers
            .iter()
            .map(|server| match server {
                SocketAddr::V6(server) => server.scope_id(),
                SocketAddr::V4(_) => 0,
            })
            .collect();
        assert_eq!(scopes.first(), Some(&7));
        assert_eq!(scopes.len(), 2);
    }
}
