//! Where a peer is to be found, and when to look for it again.

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The wait after the first failure; each one doubles it …
const FIRST: Duration = Duration::from_millis(100);
/// … up to this.
const LAST: Duration = Duration::from_secs(5);

/// A connection that held for so long starts the waits anew. One that breaks right away does not: a peer that turns
/// everybody away is not to be asked ten times a second.
const HELD: Duration = Duration::from_secs(1);

/// How long a card that has lost a frame may leave the next ones where they are.
pub(crate) const AGAIN: Duration = Duration::from_millis(1);

/// How long a peer may take to answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Where a peer is to be found.
#[derive(Debug)]
pub(crate) enum Target {
    Unix(PathBuf),
    Tcp(SocketAddr),
    /// A descriptor that came connected. There is no way back to such a peer.
    Given(Option<OwnedFd>),
}

impl fmt::Display for Target {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(out, "{}", path.display()),
            Self::Tcp(address) => write!(out, "{address}"),
            Self::Given(_) => out.write_str("the given socket"),
        }
    }
}

/// When to try again, and what has been said about failures.
#[derive(Debug)]
pub(crate) struct Backoff {
    wait: Duration,
    up: Option<Instant>,
    complaint: String,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { wait: FIRST, up: None, complaint: String::new() }
    }
}

impl Backoff {
    /// The peer of `who` is there.
    pub fn connected(&mut self, who: &dyn fmt::Display, target: &Target) {
        log::info!("{who}: connected to {target}");
        self.up = Some(Instant::now());
    }

    /// It has gone, or cannot be reached: when to try again.
    pub fn failed(
        &mut self,
        who: &dyn fmt::Display,
        target: &Target,
        why: &dyn fmt::Display,
    ) -> Option<Instant> {
        let now = Instant::now();
        let up = self.up.take();
        if up.is_some_and(|up| now.duration_since(up) >= HELD) {
            self.wait = FIRST;
            self.complaint.clear();
        }
        let (complaint, again) = (why.to_string(), !matches!(target, Target::Given(_)));
        if complaint != self.complaint {
            let what = if up.is_some() { "lost" } else { "no connection to" };
            let next = if again { "; trying again" } else { "" };
            log::warn!("{who}: {what} {target}: {complaint}{next}");
            self.complaint = complaint;
        }
        let wait = self.wait;
        self.wait = wait.saturating_mul(2).min(LAST);
        again.then(|| now + wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_five_seconds_and_a_given_socket_is_not_tried_again() {
        let target = Target::Unix("/nowhere".into());
        let mut backoff = Backoff::default();
        let mut waits = Vec::new();
        for _ in 0..9 {
            waits.push(backoff.wait.as_millis());
            assert!(backoff.failed(&"test", &target, &"why").is_some());
        }
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000]);
        assert_eq!(backoff.failed(&"test", &Target::Given(None), &"why"), None);
    }

    #[test]
    fn only_a_connection_that_held_starts_the_waits_anew() {
        let target = Target::Unix("/nowhere".into());
        let mut backoff = Backoff::default();
        backoff.connected(&"test", &target);
        backoff.failed(&"test", &target, &"gone");
        backoff.connected(&"test", &target);
        backoff.failed(&"test", &target, &"gone");
        assert_eq!(backoff.wait, FIRST * 4);
        backoff.up = Instant::now().checked_sub(HELD);
        backoff.failed(&"test", &target, &"gone");
        assert_eq!(backoff.wait, FIRST * 2);
    }
}
