//! Networks under a stock kernel, beside QEMU's microvm: iperf3 between the guest and its host, datagrams that come back
//! in bursts, and a ping-pong of single bytes; the same kernel and initrd, one processor; the machines take turns.
//!
//! Three pairs. The user-mode network beside QEMU's own (libslirp). passt over its stream socket, with us and with QEMU;
//! it is given the largest packets it takes, as it knows no offloads. A tap, with us and with QEMU, without vhost.
//!
//! The machines share the lab's only processor with what the guest talks to, so a rate is one over the processor time
//! that a byte takes in all: the guest's stack, the host's and iperf3 weigh on every rate alike. iperf3's datagrams are a
//! flood, of which counts what arrives: what is left to the receiver of the one processor differs much from run to run,
//! so read those rates with care. The bursts wait for their end.

#[path = "../support/lab.rs"]
mod lab;

use std::env;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use hyperkit::net::{Net, Stream};
use lab::{Guest, median, rates};

const ROUNDS: usize = 3;
const MEMORY: u64 = 384 << 20;
const PATIENCE: Duration = Duration::from_secs(600);
/// Where iperf3 listens by itself.
const IPERF: u16 = 5201;
const TAP: &str = "hkb0";
/// An interface with a default route, which is what passt wants to see; nothing is sent to it.
const UPLINK: &str = "hkb1";
const PASST_MTU: u16 = 65_520;

/// What is measured, and its unit: by iperf3, whose options follow below, and by a script.
const JOBS: [(&str, &str); 6] = [
    ("TCP from guest", "Mbit/s"),
    ("TCP to guest", "Mbit/s"),
    ("UDP flood from guest", "Mbit/s"),
    ("UDP flood to guest", "Mbit/s"),
    ("TCP round trips", "1/s"),
    ("UDP bursts and back", "Mbit/s"),
];
const IPERF_OPTIONS: [&str; 4] = ["-b 0", "-R", "-u -b 0 -l 1400", "-u -b 0 -l 1400 -R"];

/// A network: the guest's address, the router's, and the one at which the guest finds its host.
struct Place {
    guest: [u8; 4],
    router: [u8; 4],
    host: [u8; 4],
    mtu: u16,
}

const USER: Place = Place {
    guest: [192, 168, 65, 3],
    router: [192, 168, 65, 1],
    host: [192, 168, 65, 2],
    mtu: 1500,
};
const SLIRP: Place =
    Place { guest: [10, 0, 2, 15], router: [10, 0, 2, 2], host: [10, 0, 2, 2], mtu: 1500 };
const PASST: Place =
    Place { guest: [10, 9, 8, 2], router: [10, 9, 8, 1], host: [10, 9, 8, 1], mtu: PASST_MTU };
const BY_TAP: Place =
    Place { guest: [10, 9, 7, 2], router: [10, 9, 7, 1], host: [10, 9, 7, 1], mtu: 1500 };

struct Setup {
    guest: Guest,
    /// For sockets.
    dir: PathBuf,
    /// Where messages are answered.
    echo: u16,
}

impl Setup {
    /// What the guest runs: a line `rate JOB N` for each. It has to fit on a command line. What fails is tried again, as
    /// a flood of datagrams may drown the words that iperf3 begins with. In the end eth0 is taken down: Linux's driver
    /// spins for ever if TCP wants to send when the device has been reset to power off.
    fn script(&self, place: &Place) -> String {
        let [guest, router, host] = [place.guest, place.router, place.host].map(Ipv4Addr::from);
        let (mtu, echo, jobs) = (place.mtu, self.echo, IPERF_OPTIONS.join("\n"));
        format!(
            r#"ip link set eth0 mtu {mtu} up
ip addr add {guest}/24 dev eth0
ip route add default via {router}
tool() {{ timeout 60 in-tools /dev/vda "$@"; }}
job=0
while read options; do
for try in 1 2 3; do
rate=$(tool iperf3 -c {host} -t 4 -f m $options </dev/null | awk '/receiver/{{print $7}}')
[ "$rate" ] && break
done
echo rate $job $rate
job=$((job+1))
done <<END
{jobs}
END
cat >/tmp/p <<'END'
use IO::Socket::INET; use Time::HiRes 'time';
@to = (PeerAddr => '{host}:{echo}');
$s = IO::Socket::INET->new(@to) or die; setsockopt($s, 6, 1, 1);
for ($t = time; time - $t < 4; $n++) {{ syswrite($s, 'x'); sysread($s, $b, 1) or die }}
print 'rate 4 ', $n / (time - $t), "\n";
$s = IO::Socket::INET->new(@to, Proto => 'udp') or die;
setsockopt($s, 1, 20, pack('l!l!', 0, 1e5));
$x = 'x' x 1400; $n = 0;
for ($t = time; time - $t < 4;) {{
send($s, $x, 0) for 1..32; for (1..32) {{ sysread($s, $b, 2000) or last; $n++ }} }}
print 'rate 5 ', $n * 0.0112 / (time - $t), "\n";
END
tool perl /tmp/p
ip link set eth0 down
"#
        )
    }

    fn hyperkit(&self, place: &Place, net: Net) -> String {
        self.guest.hyperkit(&self.script(place), |vm| vm.net(net), |_| {})
    }

    fn qemu(&self, place: &Place, netdev: &str) -> String {
        let device = "virtio-net-device,netdev=net";
        self.guest.qemu(&self.script(place), &["-netdev", netdev, "-device", device])
    }

    /// passt on a socket, and the socket's path.
    fn passt(&self) -> (Process, PathBuf) {
        let path = self.dir.join("passt");
        let _ = fs::remove_file(&path);
        let mut command = Command::new("passt");
        command.args(["--foreground", "--ipv4-only", "--runas", "0", "--quiet"]);
        command.args(["--mtu", &PASST_MTU.to_string(), "--interface", UPLINK]);
        let passt = Process::start(command.arg("--socket").arg(&path));
        until("passt's socket", || path.exists());
        (passt, path)
    }
}

/// A process that is ended with this.
struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> Self {
        Self(
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        )
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "{what} does not come");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Makes a tap. The lab is a machine of its own, so nothing has to be tidied away.
fn tap(name: &str, address: &str) {
    let ip = |arguments: &str| {
        let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
        assert!(status.success(), "ip {arguments}");
    };
    ip(&format!("tuntap add {name} mode tap"));
    ip(&format!("address add {address} dev {name}"));
    ip(&format!("link set {name} up"));
}

/// Sends back byte by byte, and datagram by datagram.
fn echo() -> u16 {
    fn answer(mut stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut byte = [0];
        while stream.read(&mut byte)? == 1 {
            stream.write_all(&byte)?;
        }
        Ok(())
    }
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let datagrams = UdpSocket::bind(("0.0.0.0", port)).unwrap();
    thread::spawn(move || {
        let mut bytes = [0; 2048];
        while let Ok((count, from)) = datagrams.recv_from(&mut bytes) {
            // Nor is it anything more if a guest does not listen any longer.
            let _ = datagrams.send_to(&bytes[..count], from);
        }
    });
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A guest that goes away is the end of its connection, and no more.
            let _ = answer(stream);
        }
    });
    port
}

pub fn main() {
    if env::var_os("HYPERKIT_LAB").is_none() {
        println!("skipped: needs the lab (cargo xtask bench --lab)");
        return;
    }
    for (program, version) in [
        ("qemu-system-x86_64", "--version"),
        ("iperf3", "--version"),
        ("passt", "--version"),
        ("ip", "-V"),
    ] {
        if Command::new(program).arg(version).output().is_err() {
            println!("skipped: there is no {program}");
            return;
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup {
        guest: Guest::new("HK_KERNEL", "HK_INITRD", MEMORY, PATIENCE),
        dir: dir.path().to_owned(),
        echo: echo(),
    };
    tap(TAP, "10.9.7.1/24");
    tap(UPLINK, "10.9.8.2/24");
    let route = ["route", "add", "default", "via", "10.9.8.1", "dev", UPLINK];
    assert!(Command::new("ip").args(route).status().unwrap().success());
    let _iperf = Process::start(Command::new("iperf3").arg("--server"));
    until("iperf3", || TcpStream::connect(("127.0.0.1", IPERF)).is_ok());

    let machines: [(&str, &dyn Fn() -> String); 6] = [
        ("user", &|| setup.hyperkit(&USER, Net::user().into())),
        ("libslirp", &|| setup.qemu(&SLIRP, "user,id=net")),
        ("passt", &|| {
            let (_passt, path) = setup.passt();
            setup.hyperkit(&PASST, Stream::unix(path).mtu(PASST_MTU).into())
        }),
        ("QEMU passt", &|| {
            let (_passt, path) = setup.passt();
            let address = format!("addr.type=unix,addr.path={}", path.display());
            setup.qemu(&PASST, &format!("stream,id=net,server=off,{address}"))
        }),
        ("tap", &|| setup.hyperkit(&BY_TAP, Net::tap(TAP))),
        ("QEMU tap", &|| {
            let scripts = "script=no,downscript=no";
            setup.qemu(&BY_TAP, &format!("tap,id=net,ifname={TAP},{scripts},vhost=off"))
        }),
    ];
    let mut all = machines.map(|_| Vec::new());
    for round in 1..=ROUNDS {
        for ((name, machine), all) in machines.iter().zip(&mut all) {
            let rates: [f64; JOBS.len()] = rates(&machine());
            println!("round {round}: {name}: {rates:.1?}");
            all.push(rates);
        }
    }
    println!("\nmedians of {ROUNDS} rounds");
    print!("{:30}", "");
    machines.iter().for_each(|(name, _)| print!("{name:>12}"));
    println!("{:>14}{:>12}{:>14}{:>12}", "user/libslirp", "user/passt", "passt/passt", "tap/tap");
    for (at, (job, unit)) in JOBS.iter().enumerate() {
        let medians = all.each_ref().map(|rounds| median(rounds, at));
        let [user, slirp, passt, qemu_passt, tap, qemu_tap] = medians;
        print!("{:30}", format!("{job}, {unit}"));
        medians.iter().for_each(|rate| print!("{rate:>12.1}"));
        let ratios = [user / slirp, user / qemu_passt, passt / qemu_passt, tap / qemu_tap];
        println!("{:>14.2}{:>12.2}{:>14.2}{:>12.2}", ratios[0], ratios[1], ratios[2], ratios[3]);
    }
}
