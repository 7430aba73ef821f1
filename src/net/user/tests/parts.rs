//! Packets in parts.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use smoltcp::wire::IpProtocol;

use crate::net::user::fragment::{Outcome, Reassembly};
use crate::net::user::frame::{Packet, Part};

fn packet(ident: u32) -> (Packet, impl Fn(usize, bool) -> Part) {
    let packet = Packet {
        source: Ipv4Addr::new(192, 168, 65, 3).into(),
        destination: Ipv4Addr::new(192, 168, 65, 2).into(),
        protocol: IpProtocol::Udp,
        hops: 64,
        whole: false,
        part: None,
        header: 20,
        payload: 0,
    };
    (packet, move |offset, more| Part { ident, offset, more })
}

#[test]
fn parts_come_together_in_any_order_and_twice() {
    let now = Instant::now();
    let whole: Vec<u8> = (0..40).collect();
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]] {
        let mut parts = Reassembly::default();
        let (packet, part) = packet(7);
        for (turn, n) in order.into_iter().enumerate() {
            let (start, end) = [(0, 16), (16, 32), (32, 40)][n];
            let bytes = &whole[start..end];
            let outcome = parts.add(&packet, part(start, n < 2), bytes, now);
            if turn == 2 {
                assert_eq!(outcome, Outcome::Whole(whole.clone()), "{order:?}");
            } else {
                assert_eq!(outcome, Outcome::Missing);
                assert_eq!(parts.add(&packet, part(start, n < 2), bytes, now), Outcome::Missing);
            }
        }
        assert_eq!(parts.deadline(), None);
    }
}

#[test]
fn parts_that_overlap_spoil_the_packet() {
    let now = Instant::now();
    let mut parts = Reassembly::default();
    let (packet, part) = packet(7);
    assert_eq!(parts.add(&packet, part(0, true), &[0; 16], now), Outcome::Missing);
    assert_eq!(parts.add(&packet, part(8, true), &[0; 16], now), Outcome::Failed(1));
    // What comes later does not begin anew.
    assert_eq!(parts.add(&packet, part(0, true), &[0; 16], now), Outcome::Failed(0));
    assert_eq!(parts.add(&packet, part(16, false), &[0; 16], now), Outcome::Failed(0));
    assert_eq!(parts.expire(now + Duration::from_secs(60)), 0);
    assert_eq!(parts.deadline(), None);
}

#[test]
fn a_part_behind_the_end_spoils_the_packet() {
    let now = Instant::now();
    for (first, second) in [((16, false), (24, true)), ((24, true), (16, false))] {
        let mut parts = Reassembly::default();
        let (packet, part) = packet(7);
        assert_eq!(parts.add(&packet, part(first.0, first.1), &[0; 8], now), Outcome::Missing);
        let outcome = parts.add(&packet, part(second.0, second.1), &[0; 8], now);
        assert_eq!(outcome, Outcome::Failed(1));
    }
}

#[test]
fn nonsense_is_refused() {
    let now = Instant::now();
    let mut parts = Reassembly::default();
    let (packet, part) = packet(7);
    assert_eq!(parts.add(&packet, part(0, true), &[0; 7], now), Outcome::Failed(1));
    assert_eq!(parts.add(&packet, part(8, false), &[], now), Outcome::Failed(1));
    assert_eq!(parts.add(&packet, part(65528, false), &[0; 8], now), Outcome::Failed(1));
    assert_eq!(parts.deadline(), None);
}

#[test]
fn few_packets_wait_and_not_for_long() {
    let now = Instant::now();
    let mut parts = Reassembly::default();
    let mut failed = 0;
    for ident in 0..100 {
        let (packet, part) = packet(ident);
        match parts.add(&packet, part(0, true), &[0; 8], now) {
            Outcome::Missing => {}
            Outcome::Failed(count) => failed += count,
            Outcome::Whole(_) => panic!("nothing is whole"),
        }
    }
    assert_eq!(failed, 84);
    assert_eq!(parts.expire(now), 0);
    assert_eq!(parts.expire(parts.deadline().unwrap()), 16);
}
