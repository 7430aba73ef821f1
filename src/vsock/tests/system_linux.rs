//! What only Linux has: messages over unix sockets, and listeners that are busy rather than nobody.

use std::os::unix::net::UnixListener;
use std::thread;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};

use super::api::{HOST_PORT, kind};
use super::dial::{FROM, PORT, connected, dial, everything};
use super::*;

#[test]
fn a_listener_that_has_too_many_waiting_is_busy_until_it_accepts_one() {
    let dir = folder();
    let path = dir.path().join("own");
    let open = everything(dir.path()).open().unwrap();
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&socket, 1).unwrap();
    let mut waiting = Vec::new();
    loop {
        match dial(&open) {
            Dial::Connected(socket) => waiting.push(socket),
            Dial::Busy => break,
            Dial::Refused => panic!("refused"),
        }
        assert!(waiting.len() < 100);
    }
    assert!(!waiting.is_empty());
    let listener = UnixListener::from(socket);
    let _first = listener.accept().unwrap();
    connected(dial(&open));
}

#[test]
fn messages_go_to_sockets_for_messages_only() {
    let dir = folder();
    let open = everything(dir.path()).open().unwrap();
    let _stream = UnixListener::bind(dir.path().join("own")).unwrap();
    assert!(matches!(open.dial(Kind::SeqPacket, PORT, FROM), Dial::Refused));

    let path = SocketAddrUnix::new(dir.path().join("v_1024")).unwrap();
    let listener = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    rustix::net::bind(&listener, &path).unwrap();
    rustix::net::listen(&listener, 1).unwrap();
    let ours = connected(open.dial(Kind::SeqPacket, PORT, FROM));
    let theirs = rustix::net::accept(&listener).unwrap();
    for message in [&b"one"[..], b"two"] {
        rustix::io::write(&ours, message).unwrap();
    }
    assert_eq!(read_now(&theirs), b"one");
    assert_eq!(read_now(&theirs), b"two");
}

#[test]
fn messages_arrive_whole() {
    let mut rig = Rig::new(Vsock::new());
    let handle = rig.open.handle();
    let program = thread::spawn(move || handle.connect_seqpacket(PORT));
    let call = rig.call();
    assert_eq!((call.kind, call.port), (Kind::SeqPacket, PORT));
    call.answer.accept(&call.socket, HOST_PORT);
    let packets = program.join().unwrap().unwrap();
    assert_eq!((packets.local_port(), packets.peer_port()), (HOST_PORT, PORT));

    packets.send(b"one").unwrap();
    packets.send(&[2; VsockSeqPacket::LONGEST]).unwrap();
    let mut space = vec![0; VsockSeqPacket::LONGEST + 1];
    assert_eq!(rustix::io::read(&call.socket, &mut space), Ok(3));
    assert_eq!(rustix::io::read(&call.socket, &mut space), Ok(VsockSeqPacket::LONGEST));
    for wrong in [&[][..], &[0; VsockSeqPacket::LONGEST + 1]] {
        assert_eq!(kind(packets.send(wrong)), ErrorKind::InvalidInput);
    }

    for message in [&b"three"[..], b"is too long", b"four"] {
        rustix::io::write(&call.socket, message).unwrap();
    }
    let mut space = [0; 8];
    assert_eq!(packets.recv(&mut space).unwrap(), 5);
    assert_eq!(&space[..5], b"three");
    assert_eq!(kind(packets.recv(&mut space)), ErrorKind::InvalidData);
    assert_eq!(packets.recv(&mut space).unwrap(), 4);
    drop(call.socket);
    assert_eq!(packets.recv(&mut space).unwrap(), 0);
}

#[test]
fn a_port_for_messages_is_another_one_than_that_for_bytes() {
    let rig = Rig::new(Vsock::new());
    let handle = rig.open.handle();
    let bytes = handle.listen(1).unwrap();
    let messages = handle.listen_seqpacket(1).unwrap();
    let Dial::Connected(device) = rig.open.dial(Kind::SeqPacket, 1, 6) else { panic!("refused") };
    let (packets, from) = messages.accept().unwrap();
    assert_eq!(from, 6);
    packets.send(b"message").unwrap();
    assert_eq!(read_now(&device), b"message");
    bytes.set_nonblocking(true);
    assert_eq!(kind(bytes.accept()), ErrorKind::WouldBlock);
    drop(messages);
    assert!(matches!(rig.open.dial(Kind::SeqPacket, 1, 6), Dial::Refused));
    super::api::dial(&rig, 1, 6);
}
