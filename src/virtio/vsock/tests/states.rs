//! Every operation in every state of a connection: what is answered, and what becomes of the connection.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};

use super::super::packet::{NO_RECEIVE, NO_SEND, Op, Ports};
use super::support::*;
use crate::vsock::Vsock;

/// States of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// There is none.
    None,
    /// The guest has asked, and the host is busy.
    Dialing,
    /// The host has asked, and the guest has the request.
    Calling,
    Open,
    /// The guest has ended the one direction, or the other.
    GuestSentAll,
    GuestHeardAll,
    /// The host has ended its direction.
    HostSentAll,
    /// The host has left.
    HostLeft,
    /// The guest has left, and the host has not read everything.
    GuestLeft,
}

use State::*;

/// What the guest gets, and whether there is a connection after that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Nothing, and it goes on.
    Fine,
    /// This packet, and it goes on.
    Gets(Op),
    /// Nothing, and it is gone.
    Gone,
    /// A reset, and it is gone.
    Reset,
}

use Outcome::*;

/// Operations that there are, and two that there are not.
const OPS: [u16; 9] = [0, 1, 2, 3, 4, 5, 6, 7, 8];

/// By operation: invalid, request, response, reset, shutdown, data, credit update, credit request, unknown.
const TABLE: [(State, [Outcome; 9]); 9] = [
    (None, [Reset, Gets(Op::Response), Reset, Gone, Reset, Reset, Reset, Reset, Reset]),
    (Dialing, [Reset, Reset, Reset, Gone, Reset, Reset, Fine, Gets(Op::CreditUpdate), Reset]),
    (Calling, [Reset, Reset, Fine, Gone, Reset, Reset, Fine, Gets(Op::CreditUpdate), Reset]),
    (Open, [Reset, Reset, Reset, Gone, Fine, Fine, Fine, Gets(Op::CreditUpdate), Reset]),
    // A shutdown of the sending direction here.
    (GuestSentAll, [Reset, Reset, Reset, Gone, Fine, Reset, Fine, Gets(Op::CreditUpdate), Reset]),
    (GuestHeardAll, [Reset, Reset, Reset, Gone, Reset, Fine, Fine, Gets(Op::CreditUpdate), Reset]),
    // Both directions have ended then.
    (
        HostSentAll,
        [Reset, Reset, Reset, Gone, Gets(Op::Shutdown), Fine, Fine, Gets(Op::CreditUpdate), Reset],
    ),
    (HostLeft, [Reset, Reset, Reset, Gone, Fine, Fine, Fine, Gets(Op::CreditUpdate), Reset]),
    // What goes on without the guest is none of its business.
    (GuestLeft, [Reset, Gets(Op::Response), Reset, Gone, Reset, Reset, Reset, Reset, Reset]),
];

/// A machine with a connection in this state, and what the host has of it.
struct Case {
    machine: Machine,
    conn: Conn,
    /// Connections that there are before the operation.
    open: u64,
    _listener: UnixListener,
    streams: Vec<UnixStream>,
    _dir: tempfile::TempDir,
}

fn case(state: State) -> Case {
    let dir = tempfile::tempdir().unwrap();
    let (service, call) = (dir.path().join("service"), dir.path().join("call"));
    let vsock = Vsock::new().host_port(SERVICE, &service).guest_port(80, &call).buffer(8192);
    let mut machine = Machine::new(vsock);
    let listener = UnixListener::bind(&service).unwrap();
    let mut conn = Conn::new(PORTS, STREAM);
    let mut streams = Vec::new();
    match state {
        None => {}
        Dialing => {
            rustix::net::listen(&listener, 0).unwrap();
            streams.push(UnixStream::connect(&service).unwrap());
            machine.send(&conn.packet(Op::Request));
        }
        Calling => {
            streams.push(UnixStream::connect(&call).unwrap());
            conn = Conn::new(machine.next().ports, STREAM);
        }
        _ => {
            conn = machine.request(PORTS, STREAM);
            streams.push(listener.accept().unwrap().0);
        }
    }
    match state {
        GuestSentAll => machine.send(&conn.packet(Op::Shutdown).flags(NO_SEND)),
        GuestHeardAll => machine.send(&conn.packet(Op::Shutdown).flags(NO_RECEIVE)),
        HostSentAll => {
            streams[0].shutdown(Shutdown::Write).unwrap();
            machine.next().expect(PORTS, Op::Shutdown);
        }
        HostLeft => {
            streams.clear();
            machine.next().expect(PORTS, Op::Shutdown);
        }
        GuestLeft => {
            while conn.credit() > 0 {
                let len = conn.credit().min(4096) as usize;
                machine.data(&mut conn, &vec![0; len]);
                machine.guest.settle();
                while let Some(update) = machine.poll() {
                    conn.take(&update);
                }
            }
            machine.send(&conn.packet(Op::Shutdown).flags(NO_SEND | NO_RECEIVE));
            machine.next().expect(PORTS, Op::Reset);
            conn = Conn::new(PORTS, STREAM);
        }
        _ => {}
    }
    machine.guest.settle();
    let open = machine.handle.counters().open;
    assert_eq!(open, u64::from(state != None), "{state:?}");
    Case { machine, conn, open, _listener: listener, streams, _dir: dir }
}

#[test]
fn every_operation_in_every_state_has_its_answer() {
    for (state, outcomes) in TABLE {
        for (op, expected) in OPS.into_iter().zip(outcomes) {
            let Case { mut machine, conn, open, streams, _listener, _dir } = case(state);
            let packet = conn.packet(Op::Data).flags(NO_SEND);
            let packet = Packet { op, ..packet };
            let packet = if op == Op::Data.number() { packet.with(b"data") } else { packet };
            machine.send(&packet);
            machine.guest.settle();
            let answer = machine.poll();
            let after = machine.handle.counters().open;
            // The states without a connection have none to lose.
            let unknown = u64::from(matches!(state, None | GuestLeft));
            let (op_expected, open_expected) = match expected {
                Fine => (Option::None, open),
                Gets(Op::Response) => (Some(Op::Response), open + 1),
                Gets(op) => (Some(op), open),
                Gone => (Option::None, open + unknown - 1),
                Reset => (Some(Op::Reset), open + unknown - 1),
            };
            let got = answer.as_ref().map(|packet| Op::from_number(packet.op).unwrap());
            assert_eq!(got, op_expected, "operation {op} in {state:?}");
            assert_eq!(after, open_expected, "operation {op} in {state:?}");
            if let Some(packet) = answer {
                assert_eq!((packet.ports, packet.kind), (conn.ports, STREAM), "{packet:?}");
            }
            machine.quiet();
            drop(streams);
            // Whatever it was, another connection works.
            let ports = Ports { host: 99, guest: 99 };
            let listener = machine.handle.listen(99).unwrap();
            let mut other = Conn::new(ports, STREAM);
            machine.send(&other.packet(Op::Request));
            other.take(&machine.next_of(ports).expect(ports, Op::Response));
            let (mut stream, _) = listener.accept().unwrap();
            machine.data(&mut other, b"x");
            stream.read_exact(&mut [0]).unwrap();
            stream.write_all(b"y").unwrap();
            assert_eq!(machine.next_of(ports).data, b"y");
        }
    }
}

/// What is not for a connection that there is, but has its ports.
#[test]
fn a_packet_of_another_kind_ends_the_connection() {
    for kind in [0, SEQPACKET, 3, u16::MAX] {
        let Case { mut machine, conn, streams, _listener, _dir, .. } = case(Open);
        let packet = conn.packet(Op::CreditUpdate);
        machine.send(&Packet { kind, ..packet });
        machine.next().expect(conn.ports, Op::Reset);
        machine.quiet();
        assert_eq!(machine.handle.counters().open, 0, "kind {kind}");
        assert_eq!((&streams[0]).read(&mut [0]).unwrap(), 0);
    }
}
