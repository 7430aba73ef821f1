//! What connections leave in the process, as /proc tells it.

use std::io::Read;

use super::super::packet::{NO_RECEIVE, NO_SEND, Op};
use super::life::{alone, descriptors};
use super::support::*;
use crate::vsock::{Vsock, VsockStream};

/// KiB of memory that this process has.
fn memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn twenty_thousand_short_connections_leave_nothing() {
    alone(
        "virtio::vsock::tests::process_linux::twenty_thousand_short_connections_leave_nothing",
        || {
            let mut machine = Machine::new(Vsock::new());
            let listener = machine.handle.listen(SERVICE).unwrap();
            let ends: [fn(&mut Machine, &Conn, VsockStream); 4] = [
                |machine, conn, _stream| {
                    machine.send(&conn.packet(Op::Shutdown).flags(NO_SEND | NO_RECEIVE));
                    machine.next().expect(conn.ports, Op::Reset);
                },
                |machine, conn, _stream| machine.send(&conn.packet(Op::Reset)),
                |machine, conn, mut stream| {
                    stream.read_exact(&mut [0; 3]).unwrap();
                    drop(stream);
                    machine.next().expect(conn.ports, Op::Shutdown);
                    machine.send(&conn.packet(Op::Reset));
                },
                |machine, conn, stream| {
                    drop(stream);
                    machine.next().expect(conn.ports, Op::Reset);
                },
            ];
            let run = |machine: &mut Machine, n: u32| {
                let (mut conn, stream) = machine.open(&listener, n);
                machine.data(&mut conn, b"abc");
                ends[n as usize % ends.len()](machine, &conn, stream);
            };
            (0..1000).for_each(|n| run(&mut machine, n));
            machine.guest.settle();
            let before = (descriptors(), memory());
            (0..20_000).for_each(|n| run(&mut machine, n));
            machine.guest.settle();
            assert_eq!(descriptors(), before.0);
            assert_eq!(machine.handle.counters().open, 0);
            assert_eq!(machine.handle.counters().from_guest, 21_000);
            let grown = memory().saturating_sub(before.1);
            assert!(grown < 512, "{grown} KiB more");
            machine.works();
        },
    );
}
