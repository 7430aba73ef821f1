//! Network cards under a stock kernel, on networks that never leave the loopback interface, or an interface that the
//! test makes.

mod host;
mod passt;
mod tap;
mod user;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;

use hyperkit::net::Net;
use hyperkit::vm::VmBuilder;

use super::disks::tools;
use super::session::*;

/// A machine with tools as `vda`, and these cards.
pub fn machine(builder: VmBuilder, nets: impl IntoIterator<Item = Net>) -> VmBuilder {
    let builder = builder.disk(tools()).memory(384 << 20);
    nets.into_iter().fold(builder, VmBuilder::net)
}

/// Boots a guest with these cards, gets it an address, runs `script`, which has to succeed, and returns what was
/// printed.
#[track_caller]
pub fn run(script: &str, nets: impl IntoIterator<Item = Net>) -> String {
    finish(&start(script, nets))
}

/// The same, while it runs.
pub fn start(script: &str, nets: impl IntoIterator<Item = Net>) -> Session {
    start_bare(&format!("{DHCP}{script}"), nets)
}

/// The same without an address.
pub fn start_bare(script: &str, nets: impl IntoIterator<Item = Net>) -> Session {
    let kernel = Flavour::Cloud.kernel(&scripted(QUIET, script));
    Session::start(|builder| machine(builder, nets).kernel(kernel))
}

/// Waits until the guest has powered off, its script having succeeded, and returns what was printed.
#[track_caller]
pub fn finish(session: &Session) -> String {
    let end = session.end();
    let text = session.screen.text();
    assert_eq!(end.unwrap(), hyperkit::vm::End::PowerOff, "{text}");
    assert!(text.contains("hk-test: exit 0"), "{text}");
    text
}

/// `len` bytes, in pieces of which no two are the same.
pub fn pattern(len: u64) -> impl Iterator<Item = Vec<u8>> {
    const PIECE: u64 = 1 << 20;
    let mut bytes: Vec<u8> = (0..PIECE).map(|at| ((at * 31) >> 3) as u8).collect();
    (0..len.div_ceil(PIECE)).map(move |piece| {
        bytes[..8].copy_from_slice(&piece.to_le_bytes());
        bytes[..PIECE.min(len - piece * PIECE) as usize].to_vec()
    })
}

/// The md5 sum of a pattern, as the tool prints it.
pub fn md5(len: u64) -> String {
    let mut child =
        Command::new("md5sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    pattern(len).for_each(|piece| input.write_all(&piece).unwrap());
    drop(input);
    let output = child.wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_owned()
}

/// A server on the loopback interface that handles so many connections, each on a thread.
pub fn serve(
    connections: usize,
    handle: impl Fn(TcpStream) + Send + Sync + 'static,
) -> (u16, JoinHandle<()>) {
    serve_at(Ipv4Addr::LOCALHOST, connections, handle)
}

/// The same, at one of the host's addresses.
pub fn serve_at(
    address: Ipv4Addr,
    connections: usize,
    handle: impl Fn(TcpStream) + Send + Sync + 'static,
) -> (u16, JoinHandle<()>) {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = std::thread::spawn(move || {
        std::thread::scope(|scope| {
            for _ in 0..connections {
                let (stream, _) = listener.accept().unwrap();
                let handle = &handle;
                scope.spawn(move || handle(stream));
            }
        });
    });
    (port, thread)
}

/// Answers one request for a file, whatever its name, with `len` bytes of [`pattern`].
pub fn answer_http(stream: TcpStream, len: u64) {
    answer_http_with(stream, len, || ());
}

/// The same, doing something else half-way.
pub fn answer_http_with(mut stream: TcpStream, len: u64, half_way: impl FnOnce()) {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        request.push(byte[0]);
    }
    write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {len}\r\n\r\n").unwrap();
    let mut half_way = Some(half_way);
    let mut sent = 0;
    for piece in pattern(len) {
        stream.write_all(&piece).unwrap();
        sent += piece.len() as u64;
        if sent >= len / 2
            && let Some(half_way) = half_way.take()
        {
            half_way();
        }
    }
}

/// Takes `len` bytes of [`pattern`], doing something else half-way, and says thanks.
pub fn take(mut stream: TcpStream, len: u64, half_way: impl FnOnce()) {
    let mut half_way = Some(half_way);
    let mut taken = 0;
    for piece in pattern(len) {
        let mut got = vec![0; piece.len()];
        stream.read_exact(&mut got).unwrap();
        assert!(got == piece, "wrong bytes from the guest");
        taken += piece.len() as u64;
        if taken >= len / 2
            && let Some(half_way) = half_way.take()
        {
            half_way();
        }
    }
    stream.write_all(b"thanks").unwrap();
}
