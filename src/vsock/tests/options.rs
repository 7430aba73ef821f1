//! What can be asked for, and what cannot.

use super::*;

#[track_caller]
fn refused(vsock: Vsock, why: &str) {
    match vsock.open() {
        Err(error @ Error::Config(_)) => assert!(error.to_string().contains(why), "{error}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn unless_something_is_said_the_guest_is_three_with_8192_connections() {
    let open = Vsock::new().open().unwrap();
    let expected = Settings { cid: 3, connections: 8192, buffer: 256 << 10, memory: 64 << 20 };
    assert_eq!(*open.settings(), expected);
}

#[test]
fn what_is_said_is_what_the_device_keeps_to() {
    let spec = Vsock::new().cid(0xffff_fffe).connections(65_536).buffer(4096).memory(4096);
    let open = spec.open().unwrap();
    let expected = Settings { cid: 0xffff_fffe, connections: 65_536, buffer: 4096, memory: 4096 };
    assert_eq!(*open.settings(), expected);
    assert_eq!(open.handle().cid(), 0xffff_fffe);
}

#[test]
fn options_that_make_no_sense_are_refused() {
    for cid in [0, 1, 2, u32::MAX] {
        refused(Vsock::new().cid(cid), "3 to 0xfffffffe");
    }
    for connections in [0, 65_537] {
        let why = format!("1 to 65536 connections, not {connections}");
        refused(Vsock::new().connections(connections), &why);
    }
    refused(Vsock::new().buffer(4095), "at least 4096 bytes, not 4095");
    refused(
        Vsock::new().buffer(8192).memory(8191),
        "the memory of one at least: 8192 bytes, not 8191",
    );
    refused(Vsock::new().hyperkit_forward(7), "to port 7, needs its folder");
    let twice = Vsock::new().host_port(1, "a").host_port(2, "b").host_port(1, "c");
    refused(twice, "the same port of the host, 1");
}
