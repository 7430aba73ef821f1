//! What a device leaves in its process, and how often its thread wakes, as /proc tells it.

use super::*;
use crate::bus::BusDevice;
use crate::console::Port;

/// The thread with the name that devices of this test have, if it is there.
fn thread(name: &str) -> Option<std::path::PathBuf> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks.filter_map(|task| Some(task.ok()?.path())).find(|task| {
        std::fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim() == name)
    })
}

struct Named(&'static str, Loopback);

impl VirtioDevice for Named {
    fn id(&self) -> u32 {
        1
    }
    fn name(&self) -> &str {
        self.0
    }
    fn queue_sizes(&self) -> &[u16] {
        &LOOPBACK_SIZES
    }
    fn queue_ready(&mut self, index: u16, cx: &mut Context<'_>) -> Result<(), Error> {
        self.1.queue_ready(index, cx)
    }
}

#[test]
fn an_idle_device_does_not_wake() {
    let mut guest = Guest::new(Named("idle", Loopback::new().0));
    let ring = &mut guest.start(0, 16)[0];
    ring.request(&[Buffer::In(0x10_0000, 1)]);
    guest.kick(ring);
    guest.wait(ring);
    let thread = thread("hk-virtio-idle").unwrap();
    let switches = || {
        let status = std::fs::read_to_string(thread.join("status")).unwrap();
        let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        count.unwrap().trim().parse::<u64>().unwrap()
    };
    let sleeps = || {
        let before = switches();
        std::thread::sleep(Duration::from_millis(300));
        switches() == before
    };
    // On a busy machine the thread may be late with what it still has to do.
    assert!((0..20).any(|_| sleeps()), "it wakes again and again");
}

#[test]
fn stopping_ends_the_thread_in_every_state() {
    for state in 0..4 {
        let mut guest = Guest::new(Named("stopping", Loopback::new().0));
        eventually("no thread", || thread("hk-virtio-stopp").is_some());
        if state > 0 {
            guest.start(0, 16);
        }
        if state == 2 {
            guest.transport.pause();
        }
        if state < 3 {
            guest.transport.stop();
            guest.transport.stop();
            eventually("still there", || thread("hk-virtio-stopp").is_none());
            // What can still be called does not wait for a thread that is gone.
            guest.transport.pause();
            guest.transport.resume();
            guest.reset();
            guest.start(0, 16);
            guest.transport.reset();
        }
        drop(guest);
        // The thread has been joined; the kernel may take a moment to forget it.
        eventually("still there", || thread("hk-virtio-stopp").is_none());
    }
}

/// In a process of its own, because other tests open and close descriptors at the same time.
#[test]
fn nothing_is_left_behind() {
    const CHILD: &str = "HYPERKIT_TEST_LEFT_BEHIND";
    if std::env::var_os(CHILD).is_none() {
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "virtio::tests::process_linux::nothing_is_left_behind",
                "--test-threads=1",
            ])
            .env(CHILD, "1")
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mapped = || std::fs::read_to_string("/proc/self/maps").unwrap().lines().count();
    let live = || std::fs::read_dir("/proc/self/task").unwrap().count();
    // These live on, as the host sides of consoles may.
    let ports: Vec<Port> = (0..201).map(|_| Port::default()).collect();
    let mut unused = ports.iter();
    let mut run = || {
        let mut machine = Machine::started();
        machine.controls.hold(true);
        machine.send(0, b"in flight");
        Guest::new(console::Console::new(unused.next().unwrap().clone())).start(0, 16);
    };
    run();
    let before = (open(), live());
    let maps = mapped();
    for _ in 0..200 {
        run();
    }
    assert_eq!(open(), before.0);
    eventually("threads are left", || live() == before.1);
    // The allocator may keep a region or two.
    assert!(mapped() <= maps + 4, "{} mappings, before {maps}", mapped());
}
