//! Credit (§5.10.6.3): how much each side may send before the other has said that there is room again.
//!
//! Counters are 32 bits wide and wrap. What the guest says about itself is checked against what it was sent: a count
//! that runs ahead of that, or goes back, is a lie, and ends the connection.

/// What the guest may send, and has sent.
#[derive(Debug)]
pub(super) struct Window {
    /// Bytes that it may have under way: our buf_alloc.
    size: u32,
    /// Bytes that came.
    received: u32,
    /// Bytes that went on to the host: our fwd_cnt.
    forwarded: u32,
    /// What it was last told of these two.
    told_size: u32,
    told: u32,
}

impl Window {
    pub fn new(size: u32) -> Self {
        Self { size, received: 0, forwarded: 0, told_size: size, told: 0 }
    }

    pub fn size(&self) -> u32 {
        self.size
    }

    /// More room from now on.
    pub fn grow(&mut self, size: u32) {
        self.size = self.size.max(size);
    }

    /// `len` bytes came; whether they were allowed to.
    pub fn receive(&mut self, len: u32) -> bool {
        let under_way = self.received.wrapping_sub(self.forwarded);
        if len > self.size.saturating_sub(under_way) {
            return false;
        }
        self.received = self.received.wrapping_add(len);
        true
    }

    /// `len` bytes went on.
    pub fn forward(&mut self, len: usize) {
        self.forwarded = self.forwarded.wrapping_add(len as u32);
    }

    /// Whether the guest thinks that there is less than half the room, and is wrong.
    pub fn is_stale(&self) -> bool {
        let used = self.received.wrapping_sub(self.told);
        let news = self.told != self.forwarded || self.told_size != self.size;
        news && used > self.told_size / 2
    }

    /// What a packet says: buf_alloc and fwd_cnt.
    pub fn tell(&mut self) -> (u32, u32) {
        (self.told_size, self.told) = (self.size, self.forwarded);
        (self.size, self.forwarded)
    }
}

/// What we may send, and have sent.
#[derive(Debug, Default)]
pub(super) struct Allowance {
    /// The guest's buf_alloc and fwd_cnt, as it said last.
    size: u32,
    forwarded: u32,
    sent: u32,
}

impl Allowance {
    /// What the guest says; `None` if it cannot be.
    pub fn update(&mut self, size: u32, forwarded: u32) -> Option<()> {
        if forwarded.wrapping_sub(self.forwarded) > self.under_way() {
            return None;
        }
        self.size = size;
        self.forwarded = forwarded;
        Some(())
    }

    /// The guest's buf_alloc.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Bytes that were sent, ever, without what is beyond 32 bits.
    pub fn sent(&self) -> u32 {
        self.sent
    }

    fn under_way(&self) -> u32 {
        self.sent.wrapping_sub(self.forwarded)
    }

    /// Bytes that may be sent now. None, if the guest has made its buffer smaller than what is under way.
    pub fn left(&self) -> usize {
        self.size.saturating_sub(self.under_way()) as usize
    }

    /// `len` bytes were sent, no more than were [`left`](Self::left).
    pub fn send(&mut self, len: usize) {
        self.sent = self.sent.wrapping_add(len as u32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_what_it_says_across_the_wrap() {
        let mut window = Window::new(1000);
        // Past 2³² twice.
        for _ in 0..9_000_000 {
            assert!(window.receive(1000));
            assert!(!window.receive(1));
            window.forward(1000);
            window.tell();
        }
    }

    #[test]
    fn the_guest_is_told_once_half_is_used_and_has_gone_on() {
        let mut window = Window::new(1000);
        assert!(window.receive(500));
        window.forward(500);
        assert!(!window.is_stale());
        assert!(window.receive(1));
        assert!(window.is_stale());
        assert_eq!(window.tell(), (1000, 500));
        assert!(!window.is_stale());
        // Used, but nothing to tell.
        assert!(window.receive(999));
        assert!(!window.is_stale());
        window.grow(2000);
        assert!(window.is_stale());
        assert_eq!(window.tell(), (2000, 500));
    }

    #[test]
    fn a_count_that_runs_ahead_or_back_is_a_lie() {
        let mut allowance = Allowance::default();
        assert_eq!(allowance.update(100, 1), None);
        assert_eq!(allowance.update(100, 0), Some(()));
        allowance.send(60);
        assert_eq!(allowance.left(), 40);
        assert_eq!(allowance.update(100, 61), None);
        assert_eq!(allowance.update(100, 60), Some(()));
        assert_eq!(allowance.update(100, 59), None);
        assert_eq!(allowance.left(), 100);
    }

    #[test]
    fn a_buffer_that_shrinks_below_what_is_under_way_leaves_nothing() {
        let mut allowance = Allowance::default();
        allowance.update(100, 0).unwrap();
        allowance.send(60);
        allowance.update(10, 0).unwrap();
        assert_eq!(allowance.left(), 0);
        allowance.update(10, 55).unwrap();
        assert_eq!(allowance.left(), 5);
    }
}
