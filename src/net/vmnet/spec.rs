//! What a network card is to be, where vmnet is.

use super::Vmnet;
use crate::net::Net;

impl Net {
    /// Apple's vmnet: a network that the host shares with the machine. macOS only. [`Vmnet`] has others.
    pub fn vmnet() -> Vmnet {
        Vmnet::shared()
    }
}
