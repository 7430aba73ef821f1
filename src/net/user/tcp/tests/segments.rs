//! Single segments, right and wrong ones.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use rustix::net::sockopt;

use super::super::flow::Phase;
use super::super::segment::{ACK, FIN, PSH, RST, SYN};
use super::super::{Config, Route, Tcp};
use super::peer::Peer;
use super::{ALL, GUEST4, Lab, REMOTE4, listener, noise};
use crate::net::Offloads;
use crate::virtio::Sources;

fn pair() -> (Peer, TcpStream) {
    let listener = listener();
    Peer::connected(Lab::to(&listener), &listener)
}

fn read(stream: &mut TcpStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

fn reset(stream: TcpStream) {
    sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
}

#[test]
fn a_syn_is_answered_with_our_options_once_the_host_has_connected() {
    for (options, scale) in [(&[2, 4, 5, 0xb4, 3, 3, 7][..], Some(4)), (&[], None)] {
        let listener = listener();
        let mut peer = Peer::new(Lab::to(&listener));
        peer.send_with(SYN, options, b"");
        assert!(peer.poll().is_none());
        let got = peer.next().segment;
        assert_eq!((got.flags, got.mss, got.scale), (SYN | ACK, Some(1460), scale));
        assert_eq!(got.window, 0xffff);
        assert_eq!(got.acknowledged, peer.sequence.wrapping_add(1));
        assert_eq!(peer.lab.routed, [(peer.key.guest, peer.key.remote)]);
        listener.accept().unwrap();
    }
}

#[test]
fn a_syn_that_is_repeated_is_answered_again() {
    let listener = listener();
    let mut peer = Peer::new(Lab::to(&listener));
    peer.send(SYN, b"");
    peer.send(SYN, b"");
    let first = peer.next().segment;
    peer.send(SYN, b"");
    assert_eq!(peer.next().segment, first);
    peer.nothing();
    assert_eq!(peer.lab.routed.len(), 1);
}

#[test]
fn another_syn_from_the_same_port_takes_the_place_of_one_that_the_host_has_not_answered() {
    let listener = listener();
    let mut peer = Peer::new(Lab::to(&listener));
    peer.send(SYN, b"");
    peer.sequence = 77;
    peer.send(SYN, b"");
    assert_eq!(peer.next().segment.acknowledged, 78);
    assert_eq!(peer.lab.flows(), 1);
}

#[test]
fn data_in_a_syn_is_left_for_later() {
    let listener = listener();
    let mut peer = Peer::new(Lab::to(&listener));
    peer.send(SYN, b"early");
    let got = peer.next().segment;
    assert_eq!(got.acknowledged, peer.sequence.wrapping_add(1));
}

#[test]
fn the_largest_segment_is_what_the_guest_says_within_reason() {
    let cases: [(&[u8], usize); 5] = [
        (&[], 536),
        (&[2, 4, 0, 0], 48),
        (&[2, 4, 0xff, 0xff], 1460),
        (&[2, 4, 2, 0], 512),
        (&[1, 1, 2, 3, 9, 9, 9, 9], 536),
    ];
    for (options, mss) in cases {
        for offloads in [Offloads::empty(), ALL] {
            let listener = listener();
            let to = Route::Host(listener.local_addr().unwrap());
            let lab = Lab::new(Config::default(), offloads, to);
            let (mut peer, mut stream) = Peer::connected_with(lab, &listener, options);
            stream.write_all(&noise(40_000, 9)).unwrap();
            peer.until(|tcp| tcp.has_frames());
            let got = peer.next();
            match offloads.is_empty() {
                true => assert_eq!(got.data.len(), mss),
                false => assert_eq!(usize::from(got.gso_size), mss),
            }
        }
    }
}

#[test]
fn a_large_frame_of_the_guest_goes_to_the_host_in_one_go() {
    let (mut peer, mut stream) = pair();
    let data = noise(65_495, 10);
    peer.push(&data);
    assert_eq!(peer.next().segment.acknowledged, peer.sequence);
    assert_eq!(read(&mut stream, data.len()), data);
}

#[test]
fn many_frames_of_the_host_are_large_and_within_the_window() {
    let listener = listener();
    let lab = Lab::to(&listener);
    let options = [2, 4, 5, 0xb4, 1, 3, 3, 3];
    let (mut peer, mut stream) = Peer::connected_with(lab, &listener, &options);
    peer.window = 7000;
    peer.send(ACK, b"");
    let data = noise(100_000, 11);
    stream.write_all(&data).unwrap();
    // A rest that is less than a segment waits for the window to open.
    let mut got = peer.take(56_000 - 1459, false);
    peer.nothing();
    peer.send(ACK, b"");
    if got.len() < data.len() {
        got.extend(peer.take(data.len() - got.len(), true));
    }
    assert!(got == data);
}

#[test]
fn segments_that_overlap_are_cut() {
    let (mut peer, mut stream) = pair();
    let data = noise(1000, 12);
    let begin = peer.sequence;
    for (from, to) in [(0, 300), (100, 400), (0, 400), (399, 401), (401, 1000), (0, 1000)] {
        let sequence = begin.wrapping_add(from as u32);
        peer.send_at(sequence, peer.acknowledged, ACK, &[], &data[from..to]);
        peer.next();
    }
    peer.sequence = begin.wrapping_add(1000);
    peer.end();
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    assert!(got == data);
}

#[test]
fn segments_ahead_of_time_are_not_taken_and_asked_for_again() {
    let (mut peer, mut stream) = pair();
    let begin = peer.sequence;
    for ahead in [100, 200, 300, 400, 0x7fff_ffff] {
        peer.send_at(begin.wrapping_add(ahead), peer.acknowledged, ACK, &[], &[1; 100]);
    }
    for _ in 0..3 {
        let got = peer.next();
        assert_eq!((got.segment.flags, got.segment.acknowledged), (ACK, begin));
    }
    peer.nothing();
    peer.push(&[2; 500]);
    assert_eq!(peer.next().segment.acknowledged, begin.wrapping_add(500));
    assert_eq!(read(&mut stream, 500), [2; 500]);
}

#[test]
fn what_goes_beyond_our_window_is_not_taken() {
    let listener = listener();
    let (mut peer, mut stream) = Peer::connected_with(Lab::to(&listener), &listener, &[]);
    // Without a shift, the window is 64 KiB less one.
    peer.send(ACK | FIN, &vec![3; 66_000]);
    let expected = peer.sequence.wrapping_add(65_535);
    assert_eq!(peer.next().segment.acknowledged, expected);
    peer.sequence = expected;
    peer.push(b"rest");
    peer.end();
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    assert_eq!((got.len(), got.ends_with(b"\x03rest")), (65_539, true));
}

#[test]
fn acknowledgements_of_what_was_never_sent_are_corrected() {
    let (mut peer, mut stream) = pair();
    let right = peer.acknowledged;
    for wrong in [1, 0x1000, 0x7fff_ffff] {
        peer.send_at(peer.sequence, right.wrapping_add(wrong), ACK, &[], b"data");
        let got = peer.next().segment;
        assert_eq!((got.flags, got.sequence, got.acknowledged), (ACK, right, peer.sequence));
    }
    // An old one is none that hurts.
    peer.send_at(peer.sequence, right.wrapping_sub(5), ACK, &[], b"data");
    assert_eq!(read(&mut stream, 4), b"data");
}

#[test]
fn a_reset_of_the_guest_resets_the_host_if_its_number_is_right() {
    let (mut peer, mut stream) = pair();
    for wrong in [u32::MAX, 0x8000_0000, 0x10_0000] {
        peer.send_at(peer.sequence.wrapping_add(wrong), 0, RST, &[], b"");
        peer.nothing();
    }
    // Within the window, it may be a guess.
    peer.send_at(peer.sequence.wrapping_add(1), 0, RST, &[], b"");
    assert_eq!(peer.next().segment.acknowledged, peer.sequence);
    assert_eq!(peer.lab.flows(), 1);
    peer.send(RST, b"");
    assert_eq!(peer.lab.flows(), 0);
    peer.nothing();
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_syn_within_a_connection_changes_nothing() {
    let (mut peer, mut stream) = pair();
    for flags in [SYN, SYN | ACK, SYN | FIN, SYN | PSH | ACK] {
        peer.send_at(peer.sequence.wrapping_add(9), peer.acknowledged, flags, &[], b"x");
        let got = peer.next().segment;
        assert_eq!((got.flags, got.acknowledged), (ACK, peer.sequence));
    }
    peer.push(b"still");
    assert_eq!(read(&mut stream, 5), b"still");
}

#[test]
fn a_reset_of_the_host_resets_the_guest_after_what_was_sent_before() {
    let (mut peer, mut stream) = pair();
    stream.write_all(b"last words").unwrap();
    assert_eq!(peer.take(10, true), b"last words");
    reset(stream);
    let got = peer.next().segment;
    assert_eq!((got.flags, got.sequence), (RST | ACK, peer.acknowledged));
    assert_eq!(peer.lab.flows(), 0);
}

#[test]
fn urgent_data_of_the_host_is_data() {
    let (mut peer, mut stream) = pair();
    stream.write_all(b"one ").unwrap();
    rustix::net::send(&stream, b"two ", rustix::net::SendFlags::OOB).unwrap();
    stream.write_all(b"three").unwrap();
    assert_eq!(peer.take(13, false), b"one two three");
    peer.lab.pass();
    // The same once more.
    peer.acknowledged = peer.acknowledged.wrapping_sub(13);
    assert_eq!(peer.take(13, true), b"one two three");
    stream.write_all(b" four").unwrap();
    assert_eq!(peer.take(5, true), b" four");
}

#[test]
fn a_host_that_ends_without_reading_all_resets_the_guest() {
    let (mut peer, stream) = pair();
    peer.push(b"never read");
    peer.next();
    drop(stream);
    let begun = peer.next().segment;
    assert!(begun.has(RST | FIN));
    peer.acknowledged = peer.acknowledged.wrapping_add(u32::from(begun.has(FIN)));
    if begun.has(FIN) {
        peer.send(ACK, b"");
        peer.push(b"more");
    }
    peer.until(|tcp| tcp.counters().flows == 0 || !tcp.has_frames());
}

#[test]
fn the_guest_may_end_first() {
    let (mut peer, mut stream) = pair();
    peer.push(b"question");
    peer.end();
    assert_eq!(peer.next().segment.acknowledged, peer.sequence);
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"question");
    stream.write_all(b"answer").unwrap();
    assert_eq!(peer.take(6, true), b"answer");
    drop(stream);
    peer.take_end();
    // The guest is the one to remember it.
    assert_eq!(peer.lab.flows(), 0);
    peer.nothing();
}

#[test]
fn the_host_may_end_first() {
    let (mut peer, mut stream) = pair();
    stream.write_all(b"hello").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(peer.take(5, true), b"hello");
    peer.take_end();
    peer.push(b"still there");
    assert_eq!(read(&mut stream, 11), b"still there");
    peer.end();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert_eq!(peer.next().segment.acknowledged, peer.sequence);
    // It is remembered for a while, in case that the guest has not heard it.
    peer.send_at(peer.sequence.wrapping_sub(1), peer.acknowledged, FIN | ACK, &[], b"");
    assert_eq!(peer.next().segment.acknowledged, peer.sequence);
    assert_eq!(peer.lab.flows(), 1);
    while peer.lab.flows() > 0 {
        peer.lab.pass();
    }
    assert_eq!(peer.lab.tcp.deadline(), None);
    peer.nothing();
}

#[test]
fn both_may_end_at_once() {
    let (mut peer, stream) = pair();
    stream.shutdown(Shutdown::Write).unwrap();
    let got = peer.next().segment;
    assert!(got.has(FIN));
    // Not knowing of it:
    peer.end();
    assert_eq!(peer.next().segment.acknowledged, peer.sequence);
    peer.acknowledged = peer.acknowledged.wrapping_add(1);
    peer.send(ACK, b"");
    assert_eq!(peer.lab.flows(), 0);
}

#[test]
fn a_connection_that_is_over_makes_room_for_the_next_between_the_same_ports() {
    let listener = listener();
    let (mut peer, stream) = Peer::connected(Lab::to(&listener), &listener);
    drop(stream);
    peer.take_end();
    peer.end();
    peer.next();
    assert_eq!(peer.lab.flows(), 1);
    peer.sequence = peer.sequence.wrapping_add(1000);
    peer.connect_with(&[]);
    let (mut stream, _) = listener.accept().unwrap();
    peer.push(b"again");
    assert_eq!(read(&mut stream, 5), b"again");
}

#[test]
fn what_is_not_acknowledged_is_sent_again_and_at_last_given_up() {
    let (mut peer, mut stream) = pair();
    stream.write_all(b"hello").unwrap();
    let first = peer.next();
    assert_eq!(first.data, b"hello");
    peer.nothing();
    let mut times = 0;
    loop {
        peer.lab.pass();
        let Some(got) = peer.poll() else { continue };
        if got.segment.has(RST) {
            break;
        }
        assert_eq!((got.segment.sequence, &got.data), (first.segment.sequence, &first.data));
        times += 1;
    }
    assert_eq!(times, 12);
    assert_eq!(peer.lab.flows(), 0);
    assert_eq!(peer.lab.tcp.counters().timed_out, 1);
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn an_end_that_is_lost_is_sent_again() {
    let (mut peer, stream) = pair();
    drop(stream);
    let first = peer.next().segment;
    assert!(first.has(FIN));
    peer.lab.pass();
    assert_eq!(peer.next().segment, first);
    peer.acknowledged = peer.acknowledged.wrapping_add(1);
    peer.send(ACK, b"");
    peer.nothing();
}

#[test]
fn three_equal_acknowledgements_bring_back_what_was_lost_and_no_more() {
    let listener = listener();
    let to = Route::Host(listener.local_addr().unwrap());
    let lab = Lab::new(Config::default(), Offloads::empty(), to);
    let (mut peer, mut stream) = Peer::connected(lab, &listener);
    let data = noise(1460 * 6, 13);
    stream.write_all(&data).unwrap();
    let sent: Vec<_> = (0..6).map(|_| peer.next().segment.sequence).collect();
    assert!(sent.iter().enumerate().all(|(n, at)| at.wrapping_sub(sent[0]) == n as u32 * 1460));
    // The first and the third were lost.
    for _ in 0..5 {
        peer.send(ACK, b"");
    }
    let again = peer.next();
    assert_eq!((again.segment.sequence, &again.data[..]), (sent[0], &data[..1460]));
    peer.nothing();
    peer.acknowledged = sent[2];
    peer.send(ACK, b"");
    let again = peer.next();
    assert_eq!((again.segment.sequence, &again.data[..]), (sent[2], &data[2920..4380]));
    peer.acknowledged = sent[5].wrapping_add(1460);
    peer.send(ACK, b"");
    peer.nothing();
    stream.write_all(b"on").unwrap();
    assert_eq!(peer.take(2, true), b"on");
}

#[test]
fn a_closed_window_is_probed_until_it_opens() {
    let (mut peer, mut stream) = pair();
    peer.window = 0;
    peer.send(ACK, b"");
    stream.write_all(b"waiting").unwrap();
    peer.nothing();
    for _ in 0..40 {
        peer.lab.pass();
        let Some(got) = peer.poll() else { continue };
        assert_eq!((got.segment.flags, got.data.len()), (ACK, 0));
        assert_eq!(got.segment.sequence, peer.acknowledged.wrapping_sub(1));
        peer.send(ACK, b"");
    }
    peer.nothing();
    peer.window = 3;
    peer.send(ACK, b"");
    assert_eq!(peer.take(3, true), b"wai");
    peer.window = 100;
    peer.send(ACK, b"");
    assert_eq!(peer.take(4, true), b"ting");
}

#[test]
fn a_window_may_be_taken_back() {
    let (mut peer, mut stream) = pair();
    let data = noise(5000, 14);
    stream.write_all(&data).unwrap();
    let got = peer.next();
    assert!(data.starts_with(&got.data));
    // None of it was taken.
    peer.window = 0;
    peer.send(ACK, b"");
    peer.lab.pass();
    let probe = peer.next();
    assert_eq!((probe.segment.flags, probe.data.len()), (ACK, 0));
    peer.send(ACK, b"");
    peer.window = 2000;
    peer.send(ACK, b"");
    let mut got = Vec::new();
    while got.len() < data.len() {
        while let Some(next) = peer.poll() {
            let at = next.segment.sequence.wrapping_sub(peer.acknowledged);
            if at == 0 {
                peer.acknowledged = peer.acknowledged.wrapping_add(next.data.len() as u32);
                got.extend(next.data);
                peer.send(ACK, b"");
            }
        }
        if got.len() < data.len() {
            peer.lab.pass();
            peer.lab.host(Duration::ZERO);
        }
    }
    assert!(got == data);
}

#[test]
fn our_window_closes_when_the_host_does_not_read_and_opens_again() {
    let listener = listener();
    let options = [2, 4, 5, 0xb4, 1, 3, 3, 0];
    let (mut peer, mut stream) = Peer::connected_with(Lab::to(&listener), &listener, &options);
    let chunk = noise(60_000, 15);
    let mut sent = 0_usize;
    let mut window = 0xffff_u32;
    while window > 0 {
        let len = chunk.len().min(window as usize);
        peer.push(&chunk[..len]);
        sent += len;
        assert!(sent < 64 << 20, "nothing stops the guest");
        let got = peer.next().segment;
        assert_eq!(got.acknowledged, peer.sequence);
        window = u32::from(got.window) << 4;
    }
    peer.drain(&mut stream, sent);
    while let Some(update) = peer.poll() {
        window = u32::from(update.segment.window) << 4;
    }
    assert!(window >= 0x4_0000);
}

#[test]
fn segments_without_a_connection_are_reset() {
    let mut peer = Peer::new(Lab::new(Config::default(), ALL, Route::Drop));
    peer.acknowledged = 55;
    peer.send(ACK | PSH, b"data");
    let got = peer.next().segment;
    assert_eq!((got.flags, got.sequence), (RST, 55));
    peer.send(FIN, b"data");
    let got = peer.next().segment;
    assert_eq!((got.flags, got.sequence), (RST | ACK, 0));
    assert_eq!(got.acknowledged, peer.sequence.wrapping_add(5));
    peer.send(RST | ACK, b"");
    peer.send(SYN, b"");
    peer.nothing();
    assert_eq!(peer.lab.routed.len(), 1);
}

#[test]
fn malformed_headers_are_dropped() {
    let mut lab = Lab::new(Config::default(), ALL, Route::Refuse);
    let good = [0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, SYN, 0xff, 0xff, 0, 0, 0, 0];
    for len in 0..good.len() {
        lab.input(GUEST4, REMOTE4, &good[..len]);
    }
    for offset in [0, 1, 4, 6, 15] {
        let mut wrong = good;
        wrong[12] = offset << 4;
        lab.input(GUEST4, REMOTE4, &wrong);
    }
    assert!(lab.output().is_none());
    assert_eq!(lab.tcp.counters().dropped, 25);
    lab.input(GUEST4, REMOTE4, &good);
    assert!(lab.output().is_some());
}

/// What a connection can be at when a segment comes.
const STATES: [&str; 8] = [
    "nothing",
    "connecting",
    "syn received",
    "syn sent",
    "open",
    "guest ended",
    "host ended",
    "time wait",
];

fn at(state: &str, listener: &TcpListener) -> (Peer, Option<TcpStream>) {
    let lab = Lab::to(listener);
    match state {
        "nothing" => (Peer::new(lab), None),
        "connecting" | "syn received" => {
            let mut peer = Peer::new(lab);
            peer.send(SYN, b"");
            peer.sequence = peer.sequence.wrapping_add(1);
            if state == "syn received" {
                peer.acknowledged = peer.next().segment.sequence.wrapping_add(1);
            }
            (peer, None)
        }
        "syn sent" => {
            let (mut peer, stream) = Peer::accepted(lab, listener);
            peer.acknowledged = peer.next().segment.sequence.wrapping_add(1);
            (peer, Some(stream))
        }
        _ => {
            let (mut peer, stream) = Peer::connected(lab, listener);
            if state == "guest ended" {
                peer.end();
                peer.next();
            } else if state != "open" {
                stream.shutdown(Shutdown::Write).unwrap();
                peer.take_end();
            }
            if state == "time wait" {
                peer.end();
                peer.next();
            }
            (peer, Some(stream))
        }
    }
}

#[test]
fn all_flags_in_all_states_leave_it_in_order() {
    let listener = listener();
    for state in STATES {
        for flags in 0..64 {
            let (mut peer, stream) = at(state, &listener);
            for sequence in [0, 1, u32::MAX, 0x2_0000, 0x8000_0000] {
                for acknowledged in [0, 1, u32::MAX, 0x8000_0000] {
                    for data in [&b""[..], b"some data"] {
                        peer.send_at(
                            peer.sequence.wrapping_add(sequence),
                            peer.acknowledged.wrapping_add(acknowledged),
                            flags,
                            &[],
                            data,
                        );
                        let mut answers = 0;
                        while peer.poll().is_some() {
                            answers += 1;
                        }
                        assert!(answers <= 3, "{state}, {flags:#x}: {answers} answers");
                        assert!(peer.lab.flows() <= 1);
                    }
                }
            }
            peer.lab.host(Duration::ZERO);
            let sources = Sources::new(peer.lab.poll.registry());
            peer.lab.tcp.reset(sources);
            assert_eq!(peer.lab.flows(), 0);
            assert_eq!(peer.lab.tcp.deadline(), None);
            assert!(!peer.lab.tcp.has_frames());
            drop(stream);
            // Keep the listener's queue from filling up.
            listener.set_nonblocking(true).unwrap();
            while listener.accept().is_ok() {}
            listener.set_nonblocking(false).unwrap();
        }
    }
}

#[test]
fn a_connection_of_the_host_is_opened_by_the_guests_answer_only() {
    let listener = listener();
    let (mut peer, mut stream) = Peer::accepted(Lab::to(&listener), &listener);
    stream.write_all(b"hello").unwrap();
    let syn = peer.next().segment;
    assert_eq!((syn.flags, syn.mss, syn.scale), (SYN, Some(1460), Some(4)));
    let right = syn.sequence.wrapping_add(1);
    for wrong in [0, 2, 0x8000_0000] {
        peer.send_at(peer.sequence, syn.sequence.wrapping_add(wrong), SYN | ACK, &[], b"");
        let got = peer.next().segment;
        assert_eq!((got.flags, got.sequence), (RST, syn.sequence.wrapping_add(wrong)));
    }
    // It is repeated, too.
    peer.lab.pass();
    assert_eq!(peer.next().segment, syn);
    let phase = |tcp: &mut Tcp| tcp.table.get(0).unwrap().phase;
    assert_eq!(phase(&mut peer.lab.tcp), Phase::SynSent);
    peer.acknowledged = right;
    peer.send(SYN | ACK, b"");
    assert_eq!(phase(&mut peer.lab.tcp), Phase::Open);
    peer.sequence = peer.sequence.wrapping_add(1);
    assert_eq!(peer.take(5, true), b"hello");
    peer.push(b"hi");
    assert_eq!(read(&mut stream, 2), b"hi");
}

#[test]
fn what_the_host_cannot_reach_is_reported() {
    let route = Route::Host((IpAddr::from([255, 255, 255, 255]), 80).into());
    let mut peer = Peer::new(Lab::new(Config::default(), ALL, route));
    peer.send(SYN, b"");
    peer.nothing();
    let report = peer.lab.tcp.unreachable().unwrap();
    assert_eq!((report.guest, report.remote), (peer.key.guest, peer.key.remote));
    assert_eq!((report.sequence, report.kind), (peer.sequence, ErrorKind::NetworkUnreachable));
    assert_eq!(peer.lab.flows(), 0);
    assert!(peer.lab.tcp.unreachable().is_none());
}
