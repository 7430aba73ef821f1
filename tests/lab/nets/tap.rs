//! A tap, whose other end is an interface of the host's.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use hyperkit::net::Net;

use super::host::{Interface, ip};
use super::*;

const NAME: &str = "hkt0";
const HOST: Ipv4Addr = Ipv4Addr::new(10, 9, 6, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 9, 6, 2);
const LEN: u64 = 8 << 20;

/// The guest's side of it. In the end it is taken down, as [`DHCP`] says.
const UP: &str = "
trap 'ip link set eth0 down' EXIT
ip addr add 10.9.6.2/24 dev eth0
ip link set eth0 up
";

fn interface() -> Interface {
    Interface::new(NAME, "10.9.6.1/24")
}

#[test]
fn a_tap_carries_pings_and_bytes_each_way_and_does_so_again_after_the_guest_has_taken_it_down() {
    if !in_lab() {
        return;
    }
    let _interface = interface();
    let (down, server) = serve_at(HOST, 1, |stream| answer_http(stream, LEN));
    let (up, sink) = serve_at(HOST, 1, |stream| take(stream, LEN, || ()));
    let script = format!(
        r#"{UP}
        ping -c 2 -q {HOST} || exit 1
        ping -c 2 -q -s 5000 {HOST} || exit 1
        wget -q -O - http://{HOST}:{down}/file | tee /tmp/got | md5sum
        ip link set eth0 down
        ping -c 1 -q {HOST} && exit 1
        ip link set eth0 up
        ping -c 2 -q {HOST} || exit 1
        nc {HOST} {up} < /tmp/got
        nc -l -p 7777 -e cat & listener=$!
        while ! netstat -lnt | grep -q 7777; do sleep 0.1; done
        echo rea""dy
        wait $listener
    "#
    );
    let session = start_bare(&script, [Net::tap(NAME)]);
    session.screen.wait_for("ready", 0);
    let mut stream = TcpStream::connect((GUEST, 7777)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"hello in there").unwrap();
    let mut bytes = [0; 14];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hello in there");
    drop(stream);
    let text = finish(&session);
    assert!(text.contains(&md5(LEN)), "{text}");
    assert!(text.contains("thanks"), "{text}");
    server.join().unwrap();
    sink.join().unwrap();
}

#[test]
#[ignore = "takes long"]
fn what_is_carried_survives_that_the_host_takes_the_interface_down_and_its_end_ends_the_link() {
    if !in_lab() {
        return;
    }
    fn down_and_up() {
        ip("link set hkt0 down");
        std::thread::sleep(Duration::from_secs(1));
        ip("link set hkt0 up");
    }
    let _interface = interface();
    let (down, server) = serve_at(HOST, 1, |stream| answer_http_with(stream, LEN, down_and_up));
    let (up, sink) = serve_at(HOST, 1, |stream| take(stream, LEN, down_and_up));
    let script = format!(
        r#"{UP}
        wget -q -O - http://{HOST}:{down}/file | tee /tmp/got | md5sum
        nc {HOST} {up} < /tmp/got
        ping -c 2 -q {HOST} || exit 1
        [ "$(cat /sys/class/net/eth0/carrier)" = 1 ] || exit 1
        echo car""rier
        while [ "$(cat /sys/class/net/eth0/carrier)" = 1 ]; do sleep 0.1; done
    "#
    );
    let session = start_bare(&script, [Net::tap(NAME)]);
    session.screen.wait_for("carrier", 0);
    ip("link delete hkt0");
    let text = finish(&session);
    assert!(text.contains(&md5(LEN)), "{text}");
    assert!(text.contains("thanks"), "{text}");
    server.join().unwrap();
    sink.join().unwrap();
}
