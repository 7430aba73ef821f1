//! How large a disk is, on both sides: discarding, resizing, and what the guest is told.

use hyperkit::disk::Engine;

use super::*;

const MIB: u64 = 1 << 20;

#[test]
fn what_the_guest_discards_the_host_gets_back() {
    if !in_lab() {
        return;
    }
    let dir = scratch();
    for (format, engine) in [(Format::Raw, Engine::IoUring), (Format::Qcow2, Engine::Threads)] {
        let image = Image::new(&dir, "shrinking", format, 64 * MIB);
        let empty = image.taken();
        let mut guest = session([image.disk(engine)]);
        let filled =
            "dd if=/dev/urandom of=/dev/vdb bs=1M count=40 conv=fsync 2>/dev/null; echo $?";
        assert_eq!(guest.run(filled), "0\n");
        assert!(image.taken() >= 40 * MIB, "{} bytes", image.taken());
        assert_eq!(guest.run("in-tools /dev/vda blkdiscard /dev/vdb; sync; echo $?"), "0\n");
        let left = image.taken();
        assert!(left <= empty + MIB, "{format:?}: {left} bytes of {empty} after blkdiscard");
        assert_eq!(guest.run("cmp -n 67108864 /dev/vdb /dev/zero && echo zeros"), "zeros\n");

        let make = "in-tools /dev/vda mkfs.ext4 -q /dev/vdb && mount /dev/vdb /mnt; echo $?";
        assert_eq!(guest.run(make), "0\n");
        let fresh = image.taken();
        let write =
            "dd if=/dev/urandom of=/mnt/file bs=1M count=30 conv=fsync 2>/dev/null; echo $?";
        assert_eq!(guest.run(write), "0\n");
        assert!(image.taken() >= fresh + 29 * MIB);
        let trim = "rm /mnt/file; sync; in-tools /dev/vda fstrim /mnt; sync; echo $?";
        assert_eq!(guest.run(trim), "0\n");
        let left = image.taken();
        assert!(left <= fresh + 2 * MIB, "{format:?}: {left} bytes of {fresh} after fstrim");
        let unmounted =
            "umount /mnt; in-tools /dev/vda fsck.ext4 -fn /dev/vdb >/dev/null 2>&1; echo $?";
        assert_eq!(guest.run(unmounted), "0\n");
        drop(guest);
        image.check();
        std::fs::remove_file(image.path).unwrap();
    }
}

#[test]
fn zeroing_keeps_or_gives_back_storage_as_asked() {
    if !in_lab() {
        return;
    }
    let dir = scratch();
    let image = Image::new(&dir, "zeroed", Format::Raw, 32 * MIB);
    let mut guest = session([image.disk(Engine::Auto)]);
    let fill = "dd if=/dev/urandom of=/dev/vdb bs=1M count=32 conv=fsync 2>/dev/null; echo $?";
    assert_eq!(guest.run(fill), "0\n");
    // Without -n the kernel may not give storage back: BLKZEROOUT does not unmap.
    assert_eq!(guest.run("in-tools /dev/vda blkdiscard -z -o 1M -l 8M /dev/vdb; echo $?"), "0\n");
    assert!(image.taken() >= 31 * MIB, "{} bytes", image.taken());
    // FALLOC_FL_PUNCH_HOLE on a block device does.
    let punch = "in-tools /dev/vda fallocate -p -o 16M -l 8M /dev/vdb; sync; echo $?";
    assert_eq!(guest.run(punch), "0\n");
    assert!(image.taken() <= 25 * MIB, "{} bytes", image.taken());
    drop(guest);
    let bytes = image.bytes();
    let zeros = |from: u64, to: u64| {
        bytes[(from * MIB) as usize..(to * MIB) as usize].iter().all(|&byte| byte == 0)
    };
    assert!(zeros(1, 9) && zeros(16, 24), "not zeroed");
    assert!(!zeros(0, 1) && !zeros(9, 10) && !zeros(15, 16) && !zeros(24, 25), "zeroed too much");
}

#[test]
fn the_guest_sees_a_disk_grow_and_shrink() {
    if !in_lab() {
        return;
    }
    let dir = scratch();
    for format in [Format::Raw, Format::Qcow2] {
        let image = Image::new(&dir, "growing", format, 16 * MIB);
        let mut guest = session([image.disk(Engine::Auto)]);
        let disk = guest.vm.disks()[1].clone();
        let size = |guest: &mut Session| {
            guest.run("cat /sys/block/vdb/size").trim().parse::<u64>().unwrap() * 512
        };
        assert_eq!(size(&mut guest), 16 * MIB);
        let make = "in-tools /dev/vda mkfs.ext4 -q /dev/vdb && mount /dev/vdb /mnt; echo $?";
        assert_eq!(guest.run(make), "0\n");
        disk.resize(40 * MIB).unwrap();
        guest.wait_for_size(40 * MIB);
        let grow = "in-tools /dev/vda resize2fs /dev/vdb 2>/dev/null; \
                    dd if=/dev/zero of=/mnt/large bs=1M count=24 conv=fsync 2>/dev/null; echo $?";
        assert!(guest.run(grow).ends_with("0\n"), "{}", guest.screen.text());
        assert_eq!(guest.run("umount /mnt; echo $?"), "0\n");

        // While the machine is paused, too.
        guest.vm.pause().unwrap();
        disk.resize(48 * MIB).unwrap();
        guest.vm.resume().unwrap();
        guest.wait_for_size(48 * MIB);
        if format == Format::Raw {
            disk.resize(8 * MIB).unwrap();
            guest.wait_for_size(8 * MIB);
            let behind = "dd if=/dev/vdb of=/dev/null bs=1M skip=8 count=1 2>&1 | grep -c '^0+0'";
            assert_eq!(guest.run(behind), "2\n");
        }
        assert_eq!(disk.size(), size(&mut guest));
        assert!(disk.resize(1000).is_err(), "no multiple of 512");
        drop(guest);
        assert!(disk.resize(16 * MIB).is_err(), "the machine has ended");
        image.check();
        std::fs::remove_file(image.path).unwrap();
    }
}

impl Session {
    #[track_caller]
    fn wait_for_size(&mut self, size: u64) {
        let sectors = size / 512;
        let wait = format!(
            "for n in $(seq 3000); do [ $(cat /sys/block/vdb/size) = {sectors} ] && break; \
             sleep 0.1; done; cat /sys/block/vdb/size"
        );
        assert_eq!(self.run(&wait), format!("{sectors}\n"));
    }
}

#[test]
fn the_guest_is_told_what_a_disk_is_like() {
    if !in_lab() {
        return;
    }
    let dir = scratch();
    let image = Image::new(&dir, "plain", Format::Raw, 16 * MIB);
    let looks = "cd /sys/block/vdb; cat serial; echo; cat ro queue/logical_block_size \
                 queue/physical_block_size queue/write_cache; ls mq | wc -l; \
                 echo 'write through' > cache_type; cat queue/write_cache; \
                 dd if=/dev/zero of=/dev/vdb bs=64k count=4 oflag=direct 2>/dev/null; echo $?";
    let look = |disk: Disk| {
        let kernel = Flavour::Cloud.kernel(&scripted(QUIET, looks));
        let session = Session::start(|builder| machine(builder, [disk]).kernel(kernel).cpus(2));
        session.end().unwrap();
        session.screen.text().replace('\r', "")
    };
    let expected = "\n0\n512\n4096\nwrite back\n2\nwrite through\n0\n";
    let named = look(image.disk(Engine::Auto).serial("a-name-of-20-bytes.."));
    assert!(named.contains(&format!("a-name-of-20-bytes..{expected}")), "{named}");

    let serial = |text: &str| {
        let line =
            text.lines().find(|line| line.contains("hk-")).unwrap_or_else(|| panic!("{text}"));
        line.to_owned()
    };
    let first = serial(&look(image.disk(Engine::Auto)));
    let moved = Image { path: dir.path().join("elsewhere"), ..image };
    std::fs::rename(dir.path().join("plain"), &moved.path).unwrap();
    let other = Image::new(&dir, "plain", Format::Raw, 16 * MIB);
    assert_eq!(serial(&look(moved.disk(Engine::Threads).queues(2))), first);
    assert_ne!(serial(&look(other.disk(Engine::Auto))), first);
}
