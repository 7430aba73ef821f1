//! What is written can be read again: by the guest, by the next one, and by others' tools.

use hyperkit::disk::Engine;

use super::*;

const ALL: [(&str, Format, Engine); 4] = [
    ("raw-ring", Format::Raw, Engine::IoUring),
    ("raw-threads", Format::Raw, Engine::Threads),
    ("qcow2-ring", Format::Qcow2, Engine::IoUring),
    ("qcow2-threads", Format::Qcow2, Engine::Threads),
];

fn images(dir: &TempDir, size: u64) -> Vec<(Image, Engine)> {
    let image = |(name, format, engine)| (Image::new(dir, name, format, size), engine);
    ALL.map(image).into()
}

/// All formats and engines side by side: four disks at once.
#[test]
fn fio_verifies_what_it_wrote_to_four_disks_at_once() {
    if !in_lab() {
        return;
    }
    let dir = scratch();
    let images = images(&dir, 48 << 20);
    let size = long_or(24, 4);
    let script = format!(
        r#"
        cat > /tmp/jobs <<END
[global]
direct=1
ioengine=libaio
iodepth=16
rw=randwrite
bssplit=512/10:4k/40:16k/20:64k/20:256k/10
bs_unaligned=0
size={size}M
verify=crc32c
verify_fatal=1
verify_backlog=64
fsync=32
END
        for disk in b c d e; do
            printf '[vd%s]\nfilename=/dev/vd%s\n' $disk $disk >> /tmp/jobs
        done
        in-tools /dev/vda fio --eta=never --output-format=terse /tmp/jobs | cut -c1-60 || exit 1
        in-tools /dev/vda fio --eta=never --verify_only=1 --output=/tmp/verified /tmp/jobs || exit 1
        grep -c 'err= 0' /tmp/verified
        ! grep -v 'err= 0' /tmp/verified | grep 'err='
    "#
    );
    let text = run(&script, images.iter().map(|(image, engine)| image.disk(*engine)));
    assert!(text.contains("\n4\r\n") || text.contains("\n4\n"), "{text}");
    for (image, _) in &images {
        image.check();
        assert!(image.bytes().iter().any(|&byte| byte != 0), "nothing in {image:?}");
    }
}

/// Written through one engine, read through the other, in another machine.
#[test]
fn a_file_tree_is_the_same_in_the_next_machine() {
    if !in_lab() {
        return;
    }
    let dir = scratch();
    let images = images(&dir, 96 << 20);
    let write = r#"
        set -e
        for disk in vdb vdc vdd vde; do
            in-tools /dev/vda mkfs.ext4 -q /dev/$disk
            mount /dev/$disk /mnt
            cp -a /bin /etc /lib /mnt/
            mkdir /mnt/many
            for n in $(seq 200); do echo "$n on $disk" > /mnt/many/$n; done
            rm -rf /mnt/lib/modules/*/kernel/net
            (cd /mnt && find . -type f ! -name sums | sort | xargs sha256sum > sums)
            umount /mnt
        done
    "#;
    run(write, images.iter().map(|(image, engine)| image.disk(*engine)));
    images.iter().for_each(|(image, _)| image.check());

    let read = r#"
        for disk in vdb vdc vdd vde; do
            in-tools /dev/vda fsck.ext4 -fn /dev/$disk || exit 1
            mount -o ro /dev/$disk /mnt || exit 1
            (cd /mnt && sha256sum -c sums > /tmp/result) || { grep -v OK /tmp/result; exit 1; }
            [ $(grep -c OK /tmp/result) -gt 200 ] || exit 1
            umount /mnt
        done
    "#;
    let other = |engine| match engine {
        Engine::IoUring => Engine::Threads,
        _ => Engine::IoUring,
    };
    run(read, images.iter().map(|(image, engine)| image.disk(other(*engine)).read_only()));
    images.iter().for_each(|(image, _)| image.check());
}

#[test]
fn a_read_only_disk_is_not_written() {
    if !in_lab() {
        return;
    }
    let dir = scratch();
    let images = images(&dir, 4 << 20);
    let before: Vec<_> =
        images.iter().map(|(image, _)| std::fs::read(&image.path).unwrap()).collect();
    let script = r#"
        for disk in vdb vdc vdd vde; do
            [ $(cat /sys/block/$disk/ro) = 1 ] || exit 1
            # The kernel's own care for such disks is not to be relied on.
            echo 0 > /sys/block/$disk/ro 2>/dev/null
            in-tools /dev/vda blockdev --setrw /dev/$disk
            dd if=/dev/urandom of=/dev/$disk bs=4k count=4 conv=fsync && exit 1
            dd if=/dev/$disk of=/dev/null bs=64k || exit 1
        done
        true
    "#;
    run(script, images.iter().map(|(image, engine)| image.disk(*engine).read_only()));
    for ((image, _), before) in images.iter().zip(before) {
        assert!(std::fs::read(&image.path).unwrap() == before, "{image:?} has changed");
    }
}

#[test]
fn an_image_over_a_backing_file_has_both() {
    if !in_lab() {
        return;
    }
    let dir = scratch();
    let base = Image::new(&dir, "base", Format::Raw, 8 << 20);
    let mut bytes = vec![0; 8 << 20];
    bytes.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at / 4096) as u8);
    std::fs::write(&base.path, &bytes).unwrap();
    let top = Image { path: dir.path().join("top"), format: Format::Qcow2 };
    let create = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", base.path.to_str().unwrap()];
    qemu_img(create, &top.path, []);
    let script = "dd if=/dev/zero of=/dev/vdb bs=4k seek=100 count=3 conv=fsync";
    run(script, [top.disk(Engine::Auto).backing(base.disk(Engine::Auto))]);
    assert!(std::fs::read(&base.path).unwrap() == bytes, "the backing file has changed");
    bytes[100 * 4096..103 * 4096].fill(0);
    top.check();
    assert!(top.bytes() == bytes);
}

#[test]
fn a_host_that_is_full_fails_requests_and_nothing_else() {
    if !in_lab() {
        return;
    }
    let dir = scratch();
    let mount = |options: &str| {
        let mut command = Command::new("mount");
        let command = command.args(["-t", "tmpfs", "-o", options, "none"]).arg(dir.path());
        assert!(command.status().unwrap().success());
    };
    mount("size=8M");
    for (name, format, engine) in ALL {
        let image = Image::new(&dir, name, format, 32 << 20);
        let mut guest = session([image.disk(engine)]);
        let write = "dmesg -n 1; dd if=/bin/busybox of=/tmp/data bs=1M count=1 2>/dev/null; \
                     for n in $(seq 0 15); do \
                     dd if=/tmp/data of=/dev/vdb bs=1M seek=$n oflag=direct conv=fsync 2>/dev/null || \
                     { echo full; break; }; done";
        assert_eq!(guest.run(write), "full\n", "{format:?} {engine:?}");
        assert_eq!(guest.run("cmp -n 1000000 /tmp/data /dev/vdb && echo there"), "there\n");
        mount("remount,size=64M");
        let again = "dd if=/tmp/data of=/dev/vdb bs=1M seek=15 oflag=direct conv=fsync 2>/dev/null; \
                     echo $?; dd if=/dev/vdb bs=1M skip=15 count=1 2>/dev/null | \
                     cmp -n 1000000 - /tmp/data; echo $?";
        assert_eq!(guest.run(again), "0\n0\n", "{format:?} {engine:?}");
        drop(guest);
        image.check();
        std::fs::remove_file(&image.path).unwrap();
        mount("remount,size=8M");
    }
    let unmounted = Command::new("umount").arg(dir.path()).status().unwrap();
    assert!(unmounted.success());
}
