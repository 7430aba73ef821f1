//! What a guest is to share with the host, in a sentence.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use super::open::{Export, OpenShare};
use super::server::Server;
use super::tree::Tree;
use super::{Error, Owner};

/// Most bytes of a tag.
const LONGEST_TAG: usize = 255;

/// Unless it is set, most fids of a guest at a time.
const FIDS: usize = 65_536;

/// A folder that a machine is to have, or another program's 9P server.
///
/// ```no_run
/// # fn main() -> Result<(), hyperkit::fs::Error> {
/// use hyperkit::fs::{RelayTo, Share};
///
/// let source = Share::new("src", "/home/me/src").read_only();
/// let control = Share::relay("db", RelayTo::unix("/run/datakit.sock"));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use = "a share does nothing until a machine has it"]
pub struct Share {
    tag: String,
    source: Source,
    read_only: bool,
    owner: Option<Owner>,
    fids: Option<usize>,
}

#[derive(Debug, Clone)]
enum Source {
    Folder(PathBuf),
    Relay(RelayTo),
}

/// Where another program's 9P server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayTo(pub(super) Address);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl RelayTo {
    /// At a unix socket.
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self(Address::Unix(path.into()))
    }

    /// At a TCP port.
    pub fn tcp(address: SocketAddr) -> Self {
        Self(Address::Tcp(address))
    }
}

impl Share {
    fn of(tag: impl Into<String>, source: Source) -> Self {
        Self { tag: tag.into(), source, read_only: false, owner: None, fids: None }
    }

    /// The folder `dir` of the host, which the guest mounts by `tag`, 1 to 255 bytes. The guest sees what is in the
    /// folder, other file systems that are mounted there included, and nothing that is outside it: symbolic links are
    /// the guest's to follow, within what it sees.
    pub fn new(tag: impl Into<String>, dir: impl Into<PathBuf>) -> Self {
        Self::of(tag, Source::Folder(dir.into()))
    }

    /// What a 9P server in another process serves. Messages go to it as the guest sends them, whatever dialect they
    /// are of; and none of what else can be said here of a share holds for it.
    pub fn relay(tag: impl Into<String>, to: RelayTo) -> Self {
        Self::of(tag, Source::Relay(to))
    }

    /// Nothing of it is ever changed: on the host no file is opened for writing.
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Whose the files are; [`Owner::passthrough`] unless it is set.
    pub fn owner(mut self, owner: Owner) -> Self {
        self.owner = Some(owner);
        self
    }

    /// Most files that the guest may hold at a time, open or only looked up (fids, in the words of the protocol);
    /// 65,536 unless it is set. Beyond it the guest reads ENFILE.
    ///
    /// Each takes a descriptor or two of this process (RLIMIT_NOFILE). An eighth of what the process may have when the
    /// share is opened the guest does not get: it reads EMFILE.
    pub fn fids(mut self, most: usize) -> Self {
        self.fids = Some(most);
        self
    }

    /// Opens the folder. A machine does this when it is built.
    pub fn open(self) -> Result<OpenShare, Error> {
        let wrong = |what: String| Err(Error::Config(what));
        if !(1..=LONGEST_TAG).contains(&self.tag.len()) {
            return wrong(format!(
                "the tag of a share has 1 to {LONGEST_TAG} bytes, not {}",
                self.tag.len()
            ));
        }
        if self.fids == Some(0) {
            return wrong(format!("no file at all may be held of the share {}", self.tag));
        }
        let export = match self.source {
            Source::Folder(path) => {
                let owner = self.owner.unwrap_or(Owner::passthrough());
                let fids = self.fids.unwrap_or(FIDS);
                match Tree::open(&path, self.read_only, owner)
                    .and_then(|tree| Server::new(&tree, fids))
                {
                    Ok(server) => Export::Server(Arc::new(server)),
                    Err(source) => return Err(Error::Host { what: "share", path, source }),
                }
            }
            Source::Relay(_) if self.read_only || self.owner.is_some() || self.fids.is_some() => {
                return wrong(format!(
                    "what may be done with the share {} cannot be said here: its server decides that",
                    self.tag
                ));
            }
            Source::Relay(to) => Export::Relay(to),
        };
        Ok(OpenShare::new(self.tag, export))
    }
}
