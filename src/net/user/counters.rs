//! What a network has done so far.

use super::tcp::TcpCounters;
use crate::count::counters;

counters! {
    /// What a network has done so far.
    struct Counters {
        /// Frames from the guest.
        frames_out,
        /// Bytes in them.
        bytes_out,
        /// Frames that the guest took.
        frames_in,
        /// Bytes in them.
        bytes_in,
        /// Frames from the guest whose lengths, headers or contents made no sense.
        malformed,
        /// Packets from the guest with a wrong checksum.
        bad_checksums,
        /// Packets from an address that cannot be the guest's.
        spoofed,
        /// Packets of protocols, or to places, that this network does not know.
        unroutable,
        /// Packets from the guest whose way was too short, or that were too large.
        undeliverable,
        /// Packets from the guest put together from parts.
        reassembled,
        /// Packets of which parts were missing, wrong, or too many.
        reassembly_failed,
        /// Frames for the guest that it did not take in time, or had no room for.
        lost_in,
        /// Datagrams and echo requests from the guest that the host did not take.
        lost_out,
        /// Flows that the policy refused, dropped …
        denied,
        /// … or sent elsewhere.
        redirected,
        /// Flows of datagrams and of echo requests, and sessions of forwarded datagrams, there are now.
        udp_flows,
        /// How many of these there have been.
        udp_opened,
        /// How many made room for others.
        udp_evicted,
        /// How many could not be made, for want of a socket.
        udp_failed,
        /// Questions from the guest.
        dns_queries,
        /// Questions that were answered here.
        dns_local,
        /// Questions that no server answered.
        dns_failed,
        /// Replies that did not belong to the question.
        dns_false_replies,
        /// TCP connections there are now.
        tcp_flows,
        /// TCP connections that the guest opened …
        tcp_opened,
        /// … and that the host did.
        tcp_accepted,
        /// TCP connections of the guest that were refused or could not be made.
        tcp_refused,
        /// TCP connections that made room for others.
        tcp_evicted,
        /// TCP connections that were silent for too long, or stopped answering.
        tcp_timed_out,
        /// TCP connections that either side reset.
        tcp_reset,
        /// TCP segments that were sent to the guest again.
        tcp_retransmitted,
        /// TCP segments from the guest that were malformed or out of place.
        tcp_dropped,
        /// Bytes that the host's sockets took from the guest by TCP …
        tcp_bytes_out,
        /// … and the guest from them.
        tcp_bytes_in,
    }
}

impl Tally {
    /// Takes over what the TCP engine counts.
    pub fn tcp(&self, tcp: &TcpCounters) {
        self.tcp_flows.set(tcp.flows as u64);
        self.tcp_opened.set(tcp.opened);
        self.tcp_accepted.set(tcp.accepted);
        self.tcp_refused.set(tcp.refused);
        self.tcp_evicted.set(tcp.evicted);
        self.tcp_timed_out.set(tcp.timed_out);
        self.tcp_reset.set(tcp.reset);
        self.tcp_retransmitted.set(tcp.retransmitted);
        self.tcp_dropped.set(tcp.dropped);
        self.tcp_bytes_out.set(tcp.bytes_out);
        self.tcp_bytes_in.set(tcp.bytes_in);
    }
}
