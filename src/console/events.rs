//! The thread that moves bytes between a console's file descriptors and its device.
//!
//! One for all descriptors of a console. It waits in `poll`, which, unlike epoll, also takes regular files. When
//! nothing happens it sleeps without a timeout.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::endpoint::{Sink, Source};
use super::port::{Shared, Waker};
use super::queue::LINGER;
use super::stream::Feed;

/// How long the last output may take while the host side takes it.
pub(super) const FLUSH_TIME: Duration = Duration::from_secs(1);
/// How long a host side may take nothing before it is given up.
pub(super) const FLUSH_STALL: Duration = Duration::from_millis(400);

pub(super) struct EventLoop {
    pub shared: Arc<Shared>,
    pub waker: Arc<Waker>,
    pub sources: Vec<Source>,
    pub feeds: Vec<Arc<Feed>>,
    pub sinks: Vec<Sink>,
}

impl EventLoop {
    /// Works until the console closes.
    pub fn run(mut self) {
        let mut linger = false;
        while !self.waker.is_closing() {
            linger = self.turn(linger);
        }
        self.flush();
    }

    /// Waits for something to do, and does it. Tells whether output was written, so that more is likely.
    fn turn(&mut self, linger: bool) -> bool {
        let again = self.shared.call_if_due();
        for feed in &self.feeds {
            self.shared.push_input(&feed.take(self.shared.input_room()));
        }
        // No room, in the end, means that the port will wake us. Room means that nothing may be left lying.
        let room = self.shared.input_room() > 0;
        let sources = if room { self.sources.len() } else { 0 };
        let more = room && !self.feeds.iter().all(|feed| feed.is_empty());
        let pending: Vec<usize> =
            (0..self.sinks.len()).filter(|&at| self.sinks[at].queue().is_ready(linger)).collect();
        let mut fds = vec![PollFd::new(&self.waker, PollFlags::IN)];
        fds.extend(self.sources[..sources].iter().map(|fd| PollFd::new(fd, PollFlags::IN)));
        fds.extend(pending.iter().map(|&at| PollFd::new(&self.sinks[at], PollFlags::OUT)));
        let (more, linger) = (more.then_some(Duration::ZERO), linger.then_some(LINGER));
        wait(&mut fds, [again, more, linger].into_iter().flatten().min());

        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let (ready_sources, ready_sinks) = ready[1..].split_at(sources);
        if ready[0] {
            self.waker.clear();
        }
        let mut ready_sources = ready_sources.iter();
        let shared = &self.shared;
        self.sources.retain_mut(|source| {
            // Sources that were not polled have no entry, and nothing to say.
            !ready_sources.next().is_some_and(|&ready| ready)
                || source.pump(shared, shared.input_room())
        });
        let ready = pending.iter().zip(ready_sinks).filter(|(_, ready)| **ready);
        ready.fold(false, |wrote, (&at, _)| self.sinks[at].pump() | wrote)
    }

    /// Writes what is still there to those host sides that take it, for a bounded time.
    fn flush(&self) {
        let deadline = Instant::now() + FLUSH_TIME;
        loop {
            let pending: Vec<&Sink> =
                self.sinks.iter().filter(|sink| sink.queue().len() > 0).collect();
            let left = deadline.saturating_duration_since(Instant::now());
            if pending.is_empty() || left.is_zero() {
                break;
            }
            let mut fds: Vec<_> =
                pending.iter().map(|sink| PollFd::new(*sink, PollFlags::OUT)).collect();
            if !wait(&mut fds, Some(left.min(FLUSH_STALL))) {
                break;
            }
            for (sink, fd) in pending.iter().zip(&fds) {
                if !fd.revents().is_empty() {
                    sink.pump();
                }
            }
        }
        for sink in &self.sinks {
            sink.queue().kill();
        }
    }
}

/// `false` if nothing happened in time.
fn wait(fds: &mut [PollFd<'_>], timeout: Option<Duration>) -> bool {
    let timeout = timeout.map(|time| Timespec {
        tv_sec: time.as_secs() as i64,
        tv_nsec: time.subsec_nanos().into(),
    });
    // The only error to expect is an interruption, and then nothing is ready.
    poll(fds, timeout.as_ref()).unwrap_or_default() > 0
}
