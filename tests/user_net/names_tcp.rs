//! The name server by TCP: the same answers as to datagrams, and the host's servers for the rest.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;

use hyperkit::net::user::{Flow, Protocol, Target, UserNet, Verdict};
use simple_dns::rdata::RData;
use simple_dns::{CLASS, Packet, RCODE, ResourceRecord, TYPE};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{Socket, State};

use crate::datagrams::GATEWAY;
use crate::flows::connect;
use crate::guest::Guest;
use crate::names::question;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);

fn by_tcp(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes(), message].concat()
}

fn server(guest: &mut Guest, port: u16) -> SocketHandle {
    connect(guest, port, SocketAddr::new(GATEWAY, 53))
}

fn say(guest: &mut Guest, handle: SocketHandle, bytes: &[u8]) {
    guest.until(|guest| {
        let socket = guest.sockets.get_mut::<Socket<'_>>(handle);
        (socket.send_capacity() - socket.send_queue() >= bytes.len() && socket.may_send())
            .then(|| assert_eq!(socket.send_slice(bytes).unwrap(), bytes.len()))
    });
}

fn hear(guest: &mut Guest, handle: SocketHandle) -> Vec<u8> {
    let mut heard = Vec::new();
    guest.until(|guest| {
        let socket = guest.sockets.get_mut::<Socket<'_>>(handle);
        assert!(socket.may_recv() || socket.can_recv() || socket.may_send(), "it has ended");
        while socket.can_recv() {
            let wanted = match heard.first_chunk::<2>() {
                Some(length) => 2 + usize::from(u16::from_be_bytes(*length)) - heard.len(),
                None => 2 - heard.len(),
            };
            if wanted == 0 {
                break;
            }
            let mut room = vec![0; wanted];
            let count = socket.recv_slice(&mut room).unwrap();
            heard.extend(&room[..count]);
        }
        let length = heard.first_chunk::<2>().map(|length| u16::from_be_bytes(*length));
        length.is_some_and(|length| heard.len() == 2 + usize::from(length)).then_some(())
    });
    heard.split_off(2)
}

/// The code of a reply, and the addresses in it.
fn read(reply: &[u8], id: u16) -> (RCODE, Vec<Ipv4Addr>) {
    let packet = Packet::parse(reply).unwrap();
    assert_eq!(packet.id(), id);
    let address = |record: &ResourceRecord<'_>| match &record.rdata {
        RData::A(a) => Ipv4Addr::from(a.address),
        other => panic!("{other:?}"),
    };
    (packet.rcode(), packet.answers.iter().map(address).collect())
}

fn next_question(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message)?;
    Ok(message)
}

fn answer(question: &[u8], count: usize) -> Vec<u8> {
    let packet = Packet::parse(question).unwrap();
    let mut reply = Packet::new_reply(packet.id());
    let name = packet.questions[0].qname.clone();
    reply.questions = packet.questions.clone();
    let record = ResourceRecord::new(name, CLASS::IN, 5, RData::A(ADDRESS.into()));
    reply.answers = vec![record; count];
    by_tcp(&reply.build_bytes_vec().unwrap())
}

/// A server of the host's, and what it does with one connection.
fn host_server<T: Send + 'static>(
    serve: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> (SocketAddr, JoinHandle<T>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    (address, std::thread::spawn(move || serve(listener.accept().unwrap().0)))
}

#[test]
fn names_that_are_known_here_are_known_by_tcp_too() {
    let config =
        UserNet::new().dns_servers([]).host_name("db.internal", "10.0.0.1".parse().unwrap());
    let mut guest = Guest::new(config);
    let handle = server(&mut guest, 40000);
    // Several at once, and one in two pieces.
    let known = by_tcp(&question(1, "host.internal", TYPE::A));
    let listed = by_tcp(&question(2, "db.internal", TYPE::A));
    let other = by_tcp(&question(3, "example.org", TYPE::A));
    say(&mut guest, handle, &[&known[..], &listed, &other[..9]].concat());
    let reply = hear(&mut guest, handle);
    assert_eq!(read(&reply, 1), (RCODE::NoError, vec!["192.168.65.2".parse().unwrap()]));
    let reply = hear(&mut guest, handle);
    assert_eq!(read(&reply, 2), (RCODE::NoError, vec!["10.0.0.1".parse().unwrap()]));
    say(&mut guest, handle, &other[9..]);
    let reply = hear(&mut guest, handle);
    assert_eq!(read(&reply, 3), (RCODE::ServerFailure, vec![]));
    // The end of the client's stream is the end of both.
    guest.sockets.get_mut::<Socket<'_>>(handle).close();
    guest.until(|guest| (guest.net.handle.counters().tcp_flows == 0).then_some(()));
    let counters = guest.net.handle.counters();
    assert_eq!((counters.dns_queries, counters.dns_local), (3, 3));
}

#[test]
fn other_names_are_asked_of_the_next_server_if_one_fails() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // One hangs up, one lies, and one gives a long reply in two pieces.
    let (rude, rude_thread) = host_server(|mut stream| next_question(&mut stream).unwrap());
    let (liar, liar_thread) = host_server(|mut stream| {
        let asked = next_question(&mut stream).unwrap();
        let mut reply = answer(&asked, 1);
        reply[2] ^= 1;
        stream.write_all(&reply).unwrap();
    });
    {
        let servers = vec![gone, rude, liar];
        let (good, good_thread) = host_server(|mut stream| {
            let asked = next_question(&mut stream).unwrap();
            let reply = answer(&asked, 300);
            assert!(reply.len() > 4096);
            stream.write_all(&reply[..1000]).unwrap();
            stream.write_all(&reply[1000..]).unwrap();
            // Nobody keeps the connection.
            assert!(next_question(&mut stream).is_err());
            asked
        });
        let mut guest = Guest::new(UserNet::new().dns_servers([servers, vec![good]].concat()));
        let handle = server(&mut guest, 40000);
        let message = question(9, "example.org", TYPE::A);
        say(&mut guest, handle, &by_tcp(&message));
        // All it wants to say has been said: the reply comes all the same.
        guest.sockets.get_mut::<Socket<'_>>(handle).close();
        let reply = hear(&mut guest, handle);
        assert_eq!(read(&reply, 9), (RCODE::NoError, vec![ADDRESS; 300]));
        assert_eq!(good_thread.join().unwrap(), message);
        guest.until(|guest| (guest.net.handle.counters().tcp_flows == 0).then_some(()));
        assert_eq!(guest.net.handle.counters().dns_failed, 0);
    }
    rude_thread.join().unwrap();
    liar_thread.join().unwrap();
}

#[test]
fn a_server_that_says_nothing_by_tcp_is_given_up() {
    let (mute, mute_thread) = host_server(|mut stream| {
        next_question(&mut stream).unwrap();
        // Until it is hung up on.
        stream.read(&mut [0]).map_err(|error| error.kind())
    });
    let (good, good_thread) = host_server(|mut stream| {
        let asked = next_question(&mut stream).unwrap();
        stream.write_all(&answer(&asked, 1)).unwrap();
    });
    let mut guest = Guest::new(UserNet::new().dns_servers([mute, good]));
    let handle = server(&mut guest, 40000);
    say(&mut guest, handle, &by_tcp(&question(9, "example.org", TYPE::A)));
    let reply = hear(&mut guest, handle);
    assert_eq!(read(&reply, 9), (RCODE::NoError, vec![ADDRESS]));
    assert!(matches!(mute_thread.join().unwrap(), Ok(0) | Err(ErrorKind::ConnectionReset)));
    good_thread.join().unwrap();
}

#[test]
fn a_policy_answers_for_names_by_tcp_too() {
    let (elsewhere, thread) = host_server(|mut stream| {
        let asked = next_question(&mut stream).unwrap();
        stream.write_all(&answer(&asked, 1)).unwrap();
    });
    let policy = move |flow: &Flow<'_>| match (flow.protocol, flow.name) {
        (Protocol::Dns, Some("refused.test")) => Verdict::Refuse,
        (Protocol::Dns, Some("dropped.test")) => Verdict::Drop,
        (Protocol::Dns, Some("elsewhere.test")) => Verdict::Redirect(Target::Address(elsewhere)),
        (Protocol::Dns, _) => Verdict::Allow,
        _ => Verdict::Refuse,
    };
    let mut guest = Guest::new(UserNet::new().dns_servers([]).policy(policy));
    let handle = server(&mut guest, 40000);
    for (id, name) in [(1, "refused.test"), (2, "dropped.test"), (3, "elsewhere.test")] {
        say(&mut guest, handle, &by_tcp(&question(id, name, TYPE::A)));
    }
    let reply = hear(&mut guest, handle);
    assert_eq!(read(&reply, 1), (RCODE::Refused, vec![]));
    let reply = hear(&mut guest, handle);
    assert_eq!(read(&reply, 3), (RCODE::NoError, vec![ADDRESS]));
    thread.join().unwrap();
}

#[test]
fn clients_by_tcp_are_bounded_and_nonsense_ends_them() {
    let mut guest = Guest::new(UserNet::new().dns_servers([]));
    let handles: Vec<_> = (0..40).map(|n| server(&mut guest, 40000 + n)).collect();
    let open = |guest: &Guest| {
        let state = |handle: &&SocketHandle| {
            guest.sockets.get::<Socket<'_>>(**handle).state() == State::Established
        };
        handles.iter().filter(state).count()
    };
    guest.until(|guest| (open(guest) == 32).then_some(()));
    let last = handles[39];
    // Too long to be a question.
    say(&mut guest, last, &[0x20, 0]);
    say(&mut guest, last, &[1; 0x2000]);
    guest.until(|guest| (!guest.sockets.get::<Socket<'_>>(last).may_recv()).then_some(()));
    assert_eq!(open(&guest), 31);
    assert_eq!(guest.net.handle.counters().malformed, 1);
}
