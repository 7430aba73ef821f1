//! Many connections, and much on them.

use super::*;
use crate::descriptors::allow_descriptors;

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Waits until as many connections are open.
#[track_caller]
fn wait_open(session: &Session, count: u64) {
    let end = Instant::now() + PATIENCE;
    while session.vm.vsock().counters().open != count {
        let counters = session.vm.vsock().counters();
        assert!(Instant::now() < end, "{counters:?}\n{}", session.screen.text());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
#[ignore = "takes long"]
fn two_thousand_connections_are_open_at_once() {
    if !in_lab() {
        return;
    }
    const COUNT: usize = 2000;
    allow_descriptors(3 * COUNT as u64);
    let script = format!(
        r#"
        my ($listener, @all) = (hear(400));
        push @all, take($listener) for 1 .. {COUNT};
        print "all are open\n";
        for my $s (@all) {{ put($s, get($s, 100)) }}
        $_ = '' for map {{ rest($_) }} @all;
        "#
    );
    let session = start(&script, Vsock::new());
    let mut streams = vec![connect(&session, 400)];
    while streams.len() < COUNT {
        streams.push(session.vm.vsock().connect(400).unwrap());
    }
    session.screen.wait_for("all are open", 0);
    let counters = session.vm.vsock().counters();
    assert!(counters.open >= COUNT as u64, "{counters:?}");
    for (n, stream) in streams.iter_mut().enumerate() {
        stream.write_all(&pattern(n as u64 * 100, 100)).unwrap();
    }
    for (n, stream) in streams.iter_mut().enumerate() {
        let mut got = [0; 100];
        stream.read_exact(&mut got).unwrap();
        assert!(got[..] == pattern(n as u64 * 100, 100), "wrong bytes on {n}");
    }
    drop(streams);
    finish(&session);
}

#[test]
fn a_burst_of_connections_leaves_nothing_behind() {
    if !in_lab() {
        return;
    }
    allow_descriptors(20_000);
    // HyperKit gave up on a guest that did this: its ring of replies was full.
    let script = r#"
        my $listener = hear(401);
        for my $part (1 .. 4) {
            next if fork;
            for (1 .. EACH) { my $s = dial(402) or die "dial: $!"; close $s }
            POSIX::_exit(0);
        }
        my $taken = 0;
        while ($taken < 4 * EACH) { close take($listener); $taken++ }
        for (1 .. 4) { wait; die "a child failed" if $? }
        print "burst is over\n";
        rest(take(hear(403)));
    "#;
    let each = long_or(2500, 400);
    let session = start(&script.replace("EACH", &each.to_string()), Vsock::new());
    let before = descriptors();
    let listener = session.vm.vsock().listen(402).unwrap();
    let accepting = std::thread::spawn(move || {
        for _ in 0..4 * each {
            drop(listener.accept().unwrap());
        }
    });
    drop(connect(&session, 401));
    // Until the guest listened.
    let refused = session.vm.vsock().counters().refused;
    std::thread::scope(|scope| {
        for part in 0..4 {
            let handle = session.vm.vsock();
            scope.spawn(move || {
                for _ in usize::from(part == 0)..each {
                    drop(handle.connect(401).unwrap());
                }
            });
        }
    });
    accepting.join().unwrap();
    session.screen.wait_for("burst is over", 0);
    wait_open(&session, 0);
    let (all, counters) = (4 * each as u64, session.vm.vsock().counters());
    assert!(counters.from_guest >= all && counters.to_guest >= all, "{counters:?}");
    assert_eq!((counters.refused, counters.resets), (refused, 0), "{counters:?}");
    let after = descriptors();
    assert!(after <= before, "{before} descriptors before, {after} after");
    drop(connect(&session, 403));
    finish(&session);
}

#[test]
fn much_goes_both_ways_at_once_and_arrives_whole_even_if_the_machine_pauses() {
    if !in_lab() {
        return;
    }
    const PIECE: usize = 1 << 20;
    let len = long_or(1_u64 << 30, 24 << 20);
    // What comes goes back, by as many processes as directions.
    let script = r#"
        my $s = take(hear(410));
        my ($n, $data);
        while ($n = sysread($s, $data, 262144)) { put($s, $data) or die "put: $!" }
        defined $n or die "sysread: $!";
    "#;
    let session = start(script, Vsock::new());
    let stream = connect(&session, 410);
    // Each piece has its number on it, so that none can stand for another.
    let mut sent = pattern(0, PIECE);
    let mut wanted = sent.clone();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = &stream;
            for at in (0..len).step_by(PIECE) {
                sent[..8].copy_from_slice(&at.to_le_bytes());
                stream.write_all(&sent).unwrap();
            }
            stream.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut stream = &stream;
        let mut got = vec![0; PIECE];
        for at in (0..len).step_by(PIECE) {
            stream.read_exact(&mut got).unwrap();
            wanted[..8].copy_from_slice(&at.to_le_bytes());
            assert!(got == wanted, "wrong bytes behind {at}");
            if at == len / 2 / PIECE as u64 * PIECE as u64 {
                session.vm.pause().unwrap();
                std::thread::sleep(Duration::from_millis(500));
                session.vm.resume().unwrap();
            }
        }
        assert_eq!(stream.read(&mut got).unwrap(), 0);
    });
    drop(stream);
    finish(&session);
}

#[test]
fn a_program_that_does_not_read_holds_up_nobody_else() {
    if !in_lab() {
        return;
    }
    let script = r#"
        my $listener = hear(420);
        my @slow = map { take($listener) } 1 .. 4;
        my $quick = take($listener);
        for my $s (@slow) {
            next if fork;
            put($s, 'x' x 65536) or last for 1 .. 64;
            shutdown($s, 1);
            POSIX::_exit(0);
        }
        close $_ for @slow;
        for my $n (1 .. 200) { put($quick, get($quick, 10) x 1000) }
        print "quick is done\n";
        wait for 1 .. 4;
    "#;
    let session = start(script, Vsock::new());
    let mut slow: Vec<_> = (0..4).map(|_| connect(&session, 420)).collect();
    let mut quick = connect(&session, 420);
    // Until the slow ones are stuck: each holds what a socket takes, and its credit.
    let sent = || session.vm.vsock().counters().sent;
    let mut last = sent();
    loop {
        std::thread::sleep(Duration::from_millis(500));
        match sent() {
            now if now == last && now > 0 => break,
            now => last = now,
        }
    }
    assert!(last < 4 * 64 * 65536, "the device took {last} bytes that nobody read");
    for n in 0..200 {
        let mark = format!("{n:010}");
        quick.write_all(mark.as_bytes()).unwrap();
        let mut got = vec![0; 10_000];
        quick.read_exact(&mut got).unwrap();
        assert!(got == mark.repeat(1000).as_bytes());
    }
    session.screen.wait_for("quick is done", 0);
    for stream in &mut slow {
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        assert_eq!(got.len(), 64 * 65536);
        assert!(got.iter().all(|&byte| byte == b'x'));
    }
    finish(&session);
}
