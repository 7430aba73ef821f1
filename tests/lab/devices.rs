//! Every virtio device in one machine, with nothing in the guest but busybox: what this architecture's interrupts and
//! doorbells carry. What each device can do is tested at length elsewhere.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;

use hyperkit::disk::Disk;
use hyperkit::fs::Share;
use hyperkit::net::Net;
use hyperkit::vm::End;
use hyperkit::vsock::Vsock;

use super::session::*;

/// Bytes of the disk, and of what is carried.
const LEN: usize = 512 << 10;

/// The port of the host that a program in the guest connects to.
const PORT: u32 = 77;

/// Tells this program that it is in the guest.
const IN_GUEST: &str = "HK_IN_GUEST";

#[test]
fn every_device_works_in_one_machine() {
    if !in_lab() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    fs::write(&disk, pattern(0, LEN)).unwrap();
    let shared = dir.path().join("shared");
    fs::create_dir(&shared).unwrap();
    let program = std::env::current_exe().unwrap();
    let (folder, name) = (program.parent().unwrap(), program.file_name().unwrap());

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut got = vec![0; LEN];
        stream.read_exact(&mut got).unwrap();
        stream.write_all(b"thanks for the bytes\n").unwrap();
        got
    });

    // The programs of an x86-64 host want its libraries; there sockets have tests with other programs.
    let sockets = if ARM {
        format!("{IN_GUEST}=1 /mnt/program/{} --exact", name.display())
    } else {
        ":".into()
    };
    let script = format!(
        r#"{DHCP}
mount_share() {{ mkdir -p /mnt/$1; mount -t 9p -o trans=virtio,version=9p2000.L $1 /mnt/$1 || exit 1; }}
mount_share shared; mount_share program
dd if=/dev/vda of=/mnt/shared/from-disk bs=64k || exit 1
touch /mnt/program/new && exit 1
echo "the network"
cp /mnt/shared/from-disk /tmp/from-disk
nc 192.168.65.2 {port} < /tmp/from-disk || exit 1
echo "the disk"
tr '\000-\377' '\001-\377\000' < /tmp/from-disk | dd of=/dev/vda bs=64k conv=fsync || exit 1
echo "the console"
cat /tmp/from-disk > /dev/hvc0
echo "sockets"
{sockets} devices::the_guests_side_of_a_socket --include-ignored --nocapture || exit 1
cat /proc/interrupts
"#
    );
    let (hvc0, hvc0_screen, _keyboard) = console();
    let session = Session::start(|builder| {
        builder
            .cpus(2)
            .memory(512 << 20)
            .kernel(Flavour::Generic.kernel(&scripted(QUIET, &script)))
            .disk(Disk::raw(&disk).unwrap())
            .net(Net::user())
            .share(Share::new("shared", &shared))
            .share(Share::new("program", folder).read_only())
            .console(hvc0)
            .vsock(Vsock::new())
    });
    let sockets = session.vm.vsock().listen(PORT).unwrap();
    if ARM {
        // One that the guest has given up is not the last. When the machine ends, there are none.
        let mut hello = [0; 14];
        let mut stream = loop {
            let (mut stream, _) = sockets.accept().unwrap();
            if stream.read_exact(&mut hello).is_ok() {
                break stream;
            }
        };
        assert_eq!(&hello, b"from the guest");
        stream.write_all(b"from the host").unwrap();
    }
    assert_eq!(session.end().unwrap(), End::PowerOff, "{}", session.screen.text());
    let text = session.screen.text();
    assert!(text.contains("hk-test: exit 0"), "{text}");
    assert!(text.contains("thanks for the bytes"), "{text}");
    assert_eq!(text.contains("heard from the host"), ARM, "{text}");
    // Raw, but for what the terminal makes of a newline.
    let printed = hvc0_screen.text().len();
    assert!(printed >= LEN, "{printed} bytes on hvc0");
    assert!(server.join().unwrap() == pattern(0, LEN));
    assert!(fs::read(shared.join("from-disk")).unwrap() == pattern(0, LEN));
    let turned: Vec<u8> = pattern(0, LEN).iter().map(|byte| byte.wrapping_add(1)).collect();
    assert!(fs::read(&disk).unwrap() == turned);
}

#[test]
#[ignore = "run in the guest by the test above"]
fn the_guests_side_of_a_socket() {
    if std::env::var_os(IN_GUEST).is_none() {
        eprintln!("skipped: not in the guest");
        return;
    }
    // Linux gives a connection two seconds, which is little where every instruction is emulated.
    let mut stream = loop {
        match vsock::VsockStream::connect_with_cid_port(2, PORT) {
            Err(error) if error.kind() == ErrorKind::TimedOut => {}
            stream => break stream.unwrap(),
        }
    };
    stream.write_all(b"from the guest").unwrap();
    let mut answer = [0; 13];
    stream.read_exact(&mut answer).unwrap();
    println!("heard {}", String::from_utf8_lossy(&answer));
}
