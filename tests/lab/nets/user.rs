//! The user-mode network.

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hyperkit::net::user::Forward;
use hyperkit::vm::Vm;

use super::super::disks::{root, scratch};
use super::*;

#[test]
fn a_guest_gets_an_address_names_and_answers_to_ping() {
    if !in_lab() {
        return;
    }
    let script = r#"
        . /tmp/lease
        echo "lease $ip $mask $router $dns $mtu"
        for name in host.internal gateway.internal; do
            echo "name $(in-tools /dev/vda getent ahostsv4 $name | head -1 | cut -d' ' -f1)"
        done
        in-tools /dev/vda getent hosts no.such.name.internal && exit 1
        ping -c 2 -q 192.168.65.1 || exit 1
        ping -c 2 -q -s 5000 192.168.65.2 || exit 1
        for _ in $(seq 600); do
            ip -6 addr show dev eth0 scope global | grep inet6 | grep -qv tentative && break
            sleep 0.1
        done
        ip -6 addr show dev eth0 scope global | grep inet6 || exit 1
        ip -6 route show default | grep via || exit 1
        ping6 -c 2 -q fd68:6b6e:6574:41::1 || exit 1
        ping6 -c 2 -q -s 5000 fd68:6b6e:6574:41::2 || exit 1
        echo "mac $(cat /sys/class/net/eth0/address) $(cat /sys/class/net/eth0/mtu)"
    "#;
    let text = run(script, [Net::from(Net::user()).mac("52:54:00:12:34:56".parse().unwrap())]);
    assert!(text.contains("lease 192.168.65.3 24 192.168.65.1 192.168.65.1 1500"), "{text}");
    assert!(text.contains("name 192.168.65.2\r\nname 192.168.65.1"), "{text}");
    assert!(text.contains("mac 52:54:00:12:34:56 1500"), "{text}");
}

#[test]
fn what_is_carried_each_way_arrives_whole() {
    if !in_lab() {
        return;
    }
    let len = long_or(1 << 30, 24 << 20);
    let (down, server) = serve(1, move |stream| answer_http(stream, len));
    let (up, sink) = serve(1, move |stream| take(stream, len, || ()));
    // The guest gets it whole first, and sends back what it got.
    let script = format!(
        "mount -o remount,size=100% /tmp\n\
         wget -q -O - http://192.168.65.2:{down}/file | tee /tmp/got | md5sum\n\
         nc 192.168.65.2 {up} < /tmp/got\n"
    );
    let script = scripted(QUIET, &format!("{DHCP}{script}"));
    let session = Session::start(|builder| {
        let kernel = Flavour::Cloud.kernel(&script);
        machine(builder, [Net::user().into()]).kernel(kernel).memory(len + (384 << 20))
    });
    session.end().unwrap();
    let text = session.screen.text();
    assert!(text.contains(&md5(len)), "{text}");
    assert!(text.contains("thanks"), "{text}");
    server.join().unwrap();
    sink.join().unwrap();
}

#[test]
fn two_hundred_connections_at_once() {
    if !in_lab() {
        return;
    }
    let open = std::sync::Arc::new((AtomicUsize::new(0), AtomicUsize::new(0)));
    let seen = open.clone();
    let (port, server) = serve(200, move |mut stream| {
        seen.0.fetch_add(1, Ordering::SeqCst);
        // All of them are there before the first is answered.
        while seen.0.load(Ordering::SeqCst) < 200 {
            std::thread::sleep(Duration::from_millis(200));
        }
        let mut bytes = [0; 1000];
        stream.read_exact(&mut bytes).unwrap();
        stream.write_all(&bytes).unwrap();
        seen.1.fetch_add(1, Ordering::SeqCst);
        // Until the guest has closed.
        assert_eq!(stream.read(&mut bytes).unwrap(), 0);
    });
    let script = format!(
        r#"cat > /tmp/many.pl <<'END'
use IO::Socket::INET;
my @all;
for my $n (1..200) {{
    my $s = IO::Socket::INET->new(PeerAddr => '192.168.65.2:{port}') or die "connect $n: $!";
    push @all, $s;
}}
my $n = 0;
for my $s (@all) {{ $n++; syswrite($s, sprintf("%-1000d", $n)) == 1000 or die; }}
$n = 0;
for my $s (@all) {{
    $n++;
    my ($got, $part) = ('', '');
    while (length($got) < 1000) {{ sysread($s, $part, 1000) or die "read $n: $!"; $got .= $part; }}
    $got eq sprintf("%-1000d", $n) or die "wrong bytes on $n";
}}
print "all $n\n";
END
in-tools /dev/vda perl /tmp/many.pl
"#
    );
    let text = run(&script, [Net::user().into()]);
    assert!(text.contains("all 200"), "{text}");
    server.join().unwrap();
    assert_eq!(open.1.load(Ordering::SeqCst), 200);
}

#[test]
fn datagrams_of_every_sort_of_size_come_back() {
    if !in_lab() {
        return;
    }
    let echo = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = echo.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut bytes = vec![0; 65536];
        while let Ok((count, from)) = echo.recv_from(&mut bytes) {
            echo.send_to(&bytes[..count], from).unwrap();
        }
    });
    let more = long_or(200, 40);
    let script = format!(
        r#"cat > /tmp/echo.pl <<'END'
use IO::Socket::INET;
my $s = IO::Socket::INET->new(Proto => 'udp', PeerAddr => '192.168.65.2:{port}') or die "$!";
my $count = 0;
my %earlier;
for my $n (0, 1, 2, 511, 1471, 1472, 1473, 1474, 2951, 2952, 2953, 8192, 16384, 32768, 65000, 65506, 65507,
           map {{ $_ * 1237 % 65508 }} 1..{more}) {{
    my $sent = join('', map {{ chr(($_ * 7 + $n) % 251) }} 1..$n);
    my $got;
    TRY: for my $try (1..5) {{
        defined send($s, $sent, 0) or die "send $n: $!";
        while (1) {{
            my $bits = ''; vec($bits, fileno($s), 1) = 1;
            select($bits, undef, undef, 10) or next TRY;
            recv($s, $got, 65536, 0);
            # What was sent more than once comes back as often.
            last TRY unless defined $got && $got ne $sent && $earlier{{$got}};
        }}
    }}
    defined $got && $got eq $sent or die "size $n";
    $earlier{{$sent}} = 1;
    $count++;
}}
print "echoed $count\n";
END
in-tools /dev/vda perl /tmp/echo.pl
"#
    );
    let text = run(&script, [Net::user().into()]);
    assert!(text.contains(&format!("echoed {}\r\n", 17 + more)), "{text}");
}

#[test]
fn forwards_lead_into_the_guest_and_out_of_it() {
    if !in_lab() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let (outside, server) = serve(1, |mut stream| stream.write_all(b"from outside\n").unwrap());
    let user = Net::user()
        .forward(Forward::tcp(0, 7777))
        .forward(Forward::udp(0, 7778))
        .forward(Forward::unix(&path, 7777))
        .forward(Forward::tcp_to_host(9999, ([127, 0, 0, 1], outside).into()))
        .open()
        .unwrap();
    let handle = user.handle();
    let bound: Vec<_> = handle.forwards();
    let address = |at: usize| bound[at].address.expect("an address");
    let script = r#"
        nc 192.168.65.1 9999
        (nc -ll -p 7777 -e cat &)
        cat > /tmp/udp.pl <<'END'
use IO::Socket::INET;
my $s = IO::Socket::INET->new(Proto => 'udp', LocalPort => 7778) or die "$!";
while (my $from = recv($s, my $got, 65536, 0)) { send($s, $got, 0, $from); }
END
        (in-tools /dev/vda perl /tmp/udp.pl &)
        while ! netstat -lnu | grep -q 7778 || ! netstat -lnt | grep -q 7777; do sleep 0.2; done
        echo rea""dy
        sleep 1000
    "#;
    let session = start(script, [user.into()]);
    session.screen.wait_for("from outside", 0);
    session.screen.wait_for("ready", 0);

    fn talk(mut stream: impl Read + Write) {
        stream.write_all(b"hello in there").unwrap();
        let mut bytes = [0; 14];
        stream.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"hello in there");
    }
    let wait = Some(PATIENCE);
    let tcp = TcpStream::connect(address(0)).unwrap();
    tcp.set_read_timeout(wait).unwrap();
    talk(tcp);
    let unix = UnixStream::connect(&path).unwrap();
    unix.set_read_timeout(wait).unwrap();
    talk(unix);
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.connect(address(1)).unwrap();
    udp.set_read_timeout(wait).unwrap();
    udp.send(b"hello").unwrap();
    let mut bytes = [0; 100];
    assert_eq!(udp.recv(&mut bytes).unwrap(), 5);

    // Added and removed while the guest runs.
    let more = handle.forward(Forward::tcp(0, 7777)).unwrap();
    let stream = TcpStream::connect(more.address.unwrap()).unwrap();
    stream.set_read_timeout(wait).unwrap();
    talk(stream);
    assert!(handle.remove(more.id));
    assert!(TcpStream::connect(more.address.unwrap()).is_err());
    session.vm.stop();
    server.join().unwrap();
    drop(session);
    assert!(TcpStream::connect(address(0)).is_err(), "the port is closed with the machine");
    assert!(!path.exists(), "the socket is gone with the machine");
}

#[test]
fn what_the_host_refuses_the_guest_sees_refused() {
    if !in_lab() {
        return;
    }
    let script = r#"cat > /tmp/refused.pl <<'END'
use IO::Socket::INET;
sub try {
    my ($to) = @_;
    my $s = IO::Socket::INET->new(PeerAddr => $to);
    return $s ? 'connected' : $!{ECONNREFUSED} ? 'refused' : $!{ENETUNREACH} || $!{EHOSTUNREACH} ? 'unreachable' : "$!";
}
print 'host: ', try('192.168.65.2:9'), "\n";
print 'gateway: ', try('192.168.65.1:9'), "\n";
print 'outside: ', try('198.51.100.1:80'), "\n";
my $u = IO::Socket::INET->new(Proto => 'udp', PeerAddr => '192.168.65.2:9');
send($u, 'x', 0);
my $bits = ''; vec($bits, fileno($u), 1) = 1;
select($bits, undef, undef, 10);
my $got;
print 'udp: ', (defined recv($u, $got, 10, 0) ? 'answered' : $!{ECONNREFUSED} ? 'refused' : "$!"), "\n";
END
in-tools /dev/vda perl -MErrno /tmp/refused.pl
"#;
    let text = run(script, [Net::user().into()]).replace('\r', "");
    // The lab's host has no network but the loopback interface.
    for line in
        ["host: refused\n", "gateway: refused\n", "outside: unreachable\n", "udp: refused\n"]
    {
        assert!(text.contains(line), "no {line:?} in {text}");
    }
}

#[test]
#[ignore = "takes long"]
fn systemd_networkd_brings_the_card_up() {
    if !in_lab() {
        return;
    }
    let dir = scratch();
    let top = dir.path().join("root.qcow2");
    let (console, screen, keyboard) = console();
    let kernel = Flavour::Cloud.kernel(&format!("{QUIET} net.ifnames=0 hk.root=/dev/vda"));
    let builder = Vm::builder().memory(512 << 20).kernel(kernel).serial(console);
    let vm = builder.disk(root(&top)).net(Net::user()).build().unwrap().start().unwrap();
    let mut session = Session::on(vm, screen, keyboard);
    session.wait_for("hk login: ");
    session.type_in("root\n");
    session.wait_for("root@hk:~# ");
    session.type_in(
        "printf '[Match]\\nName=eth0\\n[Network]\\nDHCP=yes\\n' > /etc/systemd/network/eth0.network; \
         systemctl start systemd-networkd systemd-networkd-wait-online && echo on\"\"line\n",
    );
    session.wait_for("online\r\n");
    session.wait_for("root@hk:~# ");
    session
        .type_in("for n in $(seq 600); do ip -6 -o addr show eth0 scope global | grep -q fd68 && break; \
         sleep 0.5; done; ip -4 -o addr show eth0; ip -6 -o addr show eth0 scope global; echo e\"\"nd\n");
    session.wait_for("end\r\n");
    let text = session.screen.text();
    assert!(text.contains("192.168.65.3/24"), "{text}");
    assert!(text.contains("fd68:6b6e:6574:41:"), "{text}");
}
