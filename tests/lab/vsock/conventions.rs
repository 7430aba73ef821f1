//! Each convention, both ways, all over one device.

use std::os::unix::net::UnixListener;

use super::*;

/// Says hello to whoever connects to a port, and sends back what comes.
const ECHO: &str = r#"
    $SIG{CHLD} = 'IGNORE';
    for my $port (100, 101, 102, 103, 104) {
        next if fork;
        my $listener = hear($port);
        while (1) {
            my $s = take($listener);
            next if fork;
            put($s, "hello");
            put($s, rest($s));
            POSIX::_exit(0);
        }
    }
"#;

#[test]
fn every_convention_works_both_ways_over_one_device() {
    if !in_lab() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let vsock = Vsock::new()
        .cid(42)
        .hyperkit(path("hk"))
        .hyperkit_forward(101)
        .hybrid(path("hybrid"))
        .guest_port(103, path("to-103"))
        .host_port(204, path("at-204"));
    std::fs::create_dir(path("hk")).unwrap();

    // From the guest to the host: who listens says what came, turned round.
    let listeners = [path("hk/00000002.000000c9"), path("hybrid_202"), path("at-204")];
    let servers = listeners.map(|path| {
        let listener = UnixListener::bind(path).unwrap();
        std::thread::spawn(move || {
            turn_round(listener.accept().unwrap().0);
        })
    });
    let script = format!(
        r#"{ECHO}
        for my $port (200, 201, 202, 204) {{
            my $s = dial($port) or die "dial $port: $!";
            put($s, "guest to $port");
            shutdown($s, 1);
            print "got ", rest($s), "\n";
        }}
        my $begun = POSIX::times();
        for (1 .. 20) {{ die "nobody is there" if dial(205); $!{{ECONNRESET}} or die "dial 205: $!" }}
        printf "refused within %.2f s\n", (POSIX::times() - $begun) / 100 / 20;
        rest(take(hear(110)));
        "#
    );
    let session = start(&script, vsock);
    let rust = session.vm.vsock().listen(200).unwrap();
    turn_round(rust.accept().unwrap().0);
    servers.into_iter().for_each(|server| server.join().unwrap());

    // From the host to the guest.
    let mut streams: Vec<UnixStream> = vec![
        greeting(&path("hk/connect"), "0000002a.00000064\n", "hello"),
        greeting(&path("hk/guest.00000065"), "", "hello"),
        greeting(&path("hk/0000002a.00000065"), "", "hello"),
        greeting(&path("to-103"), "", "hello"),
    ];
    let mut hybrid = greeting(&path("hybrid"), "CONNECT 102\n", "OK ");
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        hybrid.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    let line = String::from_utf8(line).unwrap();
    assert!(line.trim_end().parse::<u32>().is_ok_and(|port| port > 1023), "{line:?}");
    let mut hello = [0; 5];
    hybrid.read_exact(&mut hello).unwrap();
    assert_eq!(&hello, b"hello");
    streams.push(hybrid);
    for (n, stream) in streams.iter_mut().enumerate() {
        let sent = pattern(n as u64 * 100_000, 100_000);
        stream.write_all(&sent).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        assert!(got == sent, "{} bytes came back by way {n}", got.len());
    }
    let mut stream = connect(&session, 104);
    let mut hello = [0; 5];
    stream.read_exact(&mut hello).unwrap();
    stream.write_all(b"from rust").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut got = String::new();
    stream.read_to_string(&mut got).unwrap();
    assert_eq!(got, "from rust");

    let error = session.vm.vsock().connect(999).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{error}");
    drop(connect(&session, 110));
    let text = finish(&session);
    for port in [200, 201, 202, 204] {
        let turned: String = format!("guest to {port}").chars().rev().collect();
        assert!(text.contains(&format!("got {turned}\n")), "{text}");
    }
    let took = text.split("refused within ").nth(1).and_then(|rest| rest.split(' ').next());
    assert!(took.unwrap().parse::<f64>().unwrap() < 1.0, "{text}");

    // Nothing is left but what was somebody else's.
    drop(session);
    for gone in ["hk/connect", "hk/guest.00000065", "hk/0000002a.00000065", "hybrid", "to-103"] {
        assert!(path(gone).symlink_metadata().is_err(), "{gone} is still there");
    }
    assert!(path("at-204").exists());
}

/// Sends back, last byte first, what comes until its end.
fn turn_round(mut stream: impl Read + Write) {
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    got.reverse();
    stream.write_all(&got).unwrap();
}

#[test]
fn messages_keep_their_boundaries() {
    if !in_lab() {
        return;
    }
    let script = r#"
        my $s = dial(300, 5) or die "dial: $!";
        for my $n (1, 2, 1000, 4000, 5000, 60000) {
            send($s, chr(65 + $n % 26) x $n, 0) == $n or die "send $n: $!";
        }
        for my $n (1, 2, 1000, 4000, 5000, 60000) {
            my $got; recv($s, $got, 65536, 0); defined $got or die "recv: $!";
            print "message ", length $got, " ", substr($got, -1), "\n";
        }
        my $listener = hear(301, 5);
        my $c = take($listener);
        my $got; recv($c, $got, 100, 0);
        print "called $got\n";
    "#;
    let session = start(script, Vsock::new());
    let listener = session.vm.vsock().listen_seqpacket(300).unwrap();
    let (messages, _) = listener.accept().unwrap();
    let mut buffer = vec![0; 65536];
    for n in [1, 2, 1000, 4000, 5000, 60000] {
        assert_eq!(messages.recv(&mut buffer).unwrap(), n);
        assert!(buffer[..n].iter().all(|&byte| byte == b'A' + (n % 26) as u8));
    }
    for n in [1, 2, 1000, 4000, 5000, 60000] {
        messages.send(&vec![b'a' + (n % 26) as u8; n]).unwrap();
    }
    let end = Instant::now() + PATIENCE;
    let called = loop {
        match session.vm.vsock().connect_seqpacket(301) {
            Ok(called) => break called,
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    called.send(b"by the host").unwrap();
    let text = finish(&session);
    for n in [1, 2, 1000, 4000, 5000, 60000_u32] {
        let last = char::from(b'a' + (n % 26) as u8);
        assert!(text.contains(&format!("message {n} {last}\n")), "{text}");
    }
    assert!(text.contains("called by the host\n"), "{text}");
}
