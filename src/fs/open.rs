//! A share, opened.

use std::fmt;
use std::sync::Arc;

use super::RelayTo;
use super::server::Server;

/// A share, opened. A [9P device](crate::virtio) has it.
pub struct OpenShare {
    tag: String,
    export: Export,
}

/// Who answers the messages of a share.
pub(crate) enum Export {
    /// The server of this crate.
    Server(Arc<Server>),
    /// Another process.
    Relay(RelayTo),
}

impl OpenShare {
    pub(super) fn new(tag: String, export: Export) -> Self {
        Self { tag, export }
    }

    /// What the guest mounts it by.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// The tag, and who answers.
    pub(crate) fn split(self) -> (String, Export) {
        (self.tag, self.export)
    }
}

impl fmt::Debug for OpenShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenShare").field("tag", &self.tag).finish_non_exhaustive()
    }
}
