//! How connections end: in good order, one direction after the other, or because somebody is gone.

use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use super::*;

#[test]
fn each_direction_ends_on_its_own() {
    if !in_lab() {
        return;
    }
    let script = r#"
        # The host ends first, and still reads.
        my $s = take(hear(500));
        my $got = rest($s);
        put($s, "after the end: $got");
        close $s;
        # The guest ends first, and still reads.
        $s = dial(501) or die "dial: $!";
        put($s, "first");
        shutdown($s, 1);
        print "host said ", rest($s), "\n";
        close $s;
        # The host reads no more, and still writes.
        $s = dial(502) or die "dial: $!";
        my $n = 0;
        while (put($s, 'x' x 4096)) { die "nobody told us" if ++$n > 4096 }
        $!{EPIPE} or die "put: $!";
        print "then it said ", rest($s), "\n";
    "#;
    let session = start(script, Vsock::new());
    let first = session.vm.vsock().listen(501).unwrap();
    let deaf = session.vm.vsock().listen(502).unwrap();

    let mut stream = connect(&session, 500);
    stream.write_all(b"all of it").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut got = String::new();
    stream.read_to_string(&mut got).unwrap();
    assert_eq!(got, "after the end: all of it");

    let (mut stream, _) = first.accept().unwrap();
    got.clear();
    stream.read_to_string(&mut got).unwrap();
    assert_eq!(got, "first");
    stream.write_all(b"second").unwrap();
    drop(stream);

    let (mut stream, _) = deaf.accept().unwrap();
    stream.shutdown(Shutdown::Read).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    stream.write_all(b"goodbye").unwrap();
    drop(stream);

    let text = finish(&session);
    assert!(text.contains("host said second\n"), "{text}");
    assert!(text.contains("then it said goodbye\n"), "{text}");
}

#[test]
fn a_program_that_is_killed_is_the_end_of_its_connection_and_no_more() {
    if !in_lab() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("at-510");
    let script = r#"
        my $s = dial(510) or die "dial: $!";
        print "connected\n";
        my $got = rest($s);
        print "the host is gone: $got\n";
        my $n = 0;
        while (put($s, 'x' x 4096)) { die "nobody told us" if ++$n > 4096 }
        print "and does not listen\n";
        close $s;
        # A child of ours is killed in the middle of sending.
        my $listener = hear(511);
        my $child = fork;
        if (!$child) { my $c = take($listener); while (put($c, 'y' x 65536)) {} POSIX::_exit(1) }
        get(dial(512), 1);
        kill 9, $child; wait;
        print "killed\n";
        rest(take(hear(513)));
    "#;
    let session = start(script, Vsock::new().host_port(510, &path));
    let go = session.vm.vsock().listen(512).unwrap();

    // A process that has the connection, and leaves without a word.
    let listener = UnixListener::bind(&path).unwrap();
    let (stream, _) = listener.accept().unwrap();
    let mut child = Command::new("sleep")
        .arg("1000")
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(stream)))
        .spawn()
        .unwrap();
    session.screen.wait_for("connected", 0);
    child.kill().unwrap();
    child.wait().unwrap();
    session.screen.wait_for("and does not listen", 0);

    let mut stream = connect(&session, 511);
    let mut some = vec![0; 1 << 20];
    stream.read_exact(&mut some).unwrap();
    let (mut told, _) = go.accept().unwrap();
    told.write_all(b"!").unwrap();
    // The end comes, after whatever was sent.
    let mut rest = Vec::new();
    let outcome = stream.read_to_end(&mut rest);
    assert!(outcome.is_ok(), "{outcome:?}");
    assert!(rest.iter().all(|&byte| byte == b'y'));
    session.screen.wait_for("killed", 0);
    drop((stream, told));
    drop(connect(&session, 513));
    let text = finish(&session);
    assert!(text.contains("the host is gone: \n"), "{text}");
}

#[test]
fn the_end_of_the_guest_is_the_end_of_all_its_connections() {
    if !in_lab() {
        return;
    }
    let script = r#"
        my $listener = hear(520);
        my @all = map { take($listener) } 1 .. 10;
        print "ready\n";
        rest($all[0]);
        system("echo b > /proc/sysrq-trigger");
        sleep 1000;
    "#;
    let session = start(script, Vsock::new());
    let streams: Vec<_> = (0..10).map(|_| connect(&session, 520)).collect();
    session.screen.wait_for("ready", 0);
    streams[0].shutdown(Shutdown::Write).unwrap();
    for mut stream in streams {
        let mut rest = Vec::new();
        let outcome = stream.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{outcome:?}");
    }
    // The machine boots again, with the same device and no connection.
    let error = session.vm.vsock().connect(520).unwrap_err();
    assert!(
        matches!(
            error.kind(),
            std::io::ErrorKind::NotConnected | std::io::ErrorKind::ConnectionRefused
        ),
        "{error}"
    );
    let handle = session.vm.vsock().clone();
    session.vm.stop();
    let error = handle.connect(520).unwrap_err();
    assert!(error.to_string().contains("ended"), "{error}");
}

#[test]
fn a_reset_of_the_transport_ends_connections_and_leaves_listeners() {
    if !in_lab() {
        return;
    }
    let script = r#"
        my $listener = hear(530);
        my $s = take($listener);
        my $n = sysread($s, my $data, 10);
        print "reset: ", defined $n ? "end" : "$!", "\n";
        my $again = take($listener);
        put($again, "still here");
        close $again;
    "#;
    let session = start(script, Vsock::new());
    let mut old = connect(&session, 530);
    session.vm.vsock().reset_transport();
    let mut got = Vec::new();
    let _ = old.read_to_end(&mut got);
    assert!(got.is_empty());
    // A connection made before the guest has heard of the reset would go with the others.
    session.screen.wait_for("reset: ", 0);
    let mut new = connect(&session, 530);
    let mut got = String::new();
    new.read_to_string(&mut got).unwrap();
    assert_eq!(got, "still here");
    drop(new);
    let text = finish(&session);
    // The first is what Linux says to a read that was waiting, the second to one that came after.
    let told = ["Connection reset by peer", "Transport endpoint is not connected"];
    let said = |error| text.contains(&format!("reset: {error}\n"));
    assert!(told.into_iter().any(said), "{text}");
}
