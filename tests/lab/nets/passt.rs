//! passt, over its stream socket.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hyperkit::net::Net;

use super::host::{Interface, Passt, ip};
use super::*;

const UPLINK: &str = "hkt1";
/// How much is fetched after the change.
const AGAIN: u64 = 1 << 20;

/// Takes whatever comes, and counts it.
fn sink() -> (u16, Arc<AtomicU64>) {
    let count = Arc::new(AtomicU64::new(0));
    let counted = count.clone();
    let port = often(move |mut stream| {
        let mut bytes = vec![0; 64 << 10];
        while let Ok(got @ 1..) = stream.read(&mut bytes) {
            counted.fetch_add(got as u64, Ordering::Relaxed);
        }
    });
    (port, count)
}

/// Handles connections, whether they last to the end or not.
fn often(handle: impl Fn(TcpStream) + Clone + Send + 'static) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let handle = handle.clone();
            std::thread::spawn(move || handle(stream));
        }
    });
    port
}

#[test]
fn passt_gives_an_address_carries_bytes_each_way_and_may_be_killed_and_replaced_under_load() {
    if !in_lab() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("passt.socket");
    let _interface = Interface::new(UPLINK, "10.9.8.2/24");
    ip("route add default via 10.9.8.1 dev hkt1");
    let passt = Passt::start(&path, UPLINK);

    let len = long_or(8 << 20, 1 << 20);
    let down = often(move |stream| answer_http(stream, len));
    let more = often(|stream| answer_http(stream, AGAIN));
    let up = often(move |stream| take(stream, len, || ()));
    let (load, loaded) = sink();
    // Now and then passt resets a connection in the middle: its own capture (--pcap) has the 60 packets before in order,
    // and acknowledged. And it loses the end of what the guest sends if the guest's own end comes close behind it. What
    // was only load is ended when it has done its work, as it would take all there is of a slow processor.
    let script = format!(
        r#"
        . /tmp/lease
        echo "lease $ip $mask $router"
        for try in 1 2 3 4 5; do
            timeout 300 wget -q -O /tmp/got http://10.9.8.1:{down}/file && break
        done
        md5sum < /tmp/got
        touch /tmp/answer
        for try in 1 2 3 4 5; do
            (cat /tmp/got; for n in $(seq 200); do grep -q thanks /tmp/answer && break; sleep 0.1; done) |
                nc 10.9.8.1 {up} > /tmp/answer
            grep -q thanks /tmp/answer && break
        done
        cat /tmp/answer
        (while :; do nc 10.9.8.1 {load} < /dev/zero; sleep 0.1; done) &
        load=$!
        while [ "$(cat /sys/class/net/eth0/carrier)" = 1 ]; do sleep 0.1; done
        echo link do""wn
        kill $load
        until timeout 300 wget -q -O /tmp/again http://10.9.8.1:{more}/file; do sleep 0.1; done
        md5sum < /tmp/again
    "#
    );
    let session = start(&script, [Net::stream(&path)]);
    session.screen.wait_for("thanks", 0);
    let limit = Instant::now() + PATIENCE;
    while loaded.load(Ordering::Relaxed) < 1 << 20 {
        assert!(Instant::now() < limit, "no load: {}", session.screen.text());
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(passt);
    session.screen.wait_for("link down", 0);
    let _passt = Passt::start(&path, UPLINK);
    let text = finish(&session);
    assert!(text.contains("lease 10.9.8.2 24 10.9.8.1"), "{text}");
    assert!(text.contains(&md5(len)), "{text}");
    assert!(text.contains(&md5(AGAIN)), "{text}");
}
