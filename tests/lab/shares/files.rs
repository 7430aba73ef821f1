//! Files, folders, links, times, holes: seen from both sides.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;
use crate::descriptors::allow_descriptors;

#[test]
fn what_the_guest_does_is_done_on_the_host_and_the_other_way_round() {
    if !in_lab() {
        return;
    }
    let dir = scratch();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("from-host"), "hello guest\n").unwrap();
    let when = std::time::UNIX_EPOCH + std::time::Duration::new(1_500_000_000, 123_456_789);
    std::fs::File::options()
        .write(true)
        .open(path("from-host"))
        .unwrap()
        .set_modified(when)
        .unwrap();
    let long = "n".repeat(255);
    std::fs::write(path(&long), "long\n").unwrap();
    let many = long_or(300, 100);
    let script = r#"
        set -e
        share work
        cd /mnt/work
        cat from-host
        tool stat -c 'modified %.9Y' /mnt/work/from-host
        echo "hello host" > from-guest
        mkdir -p a/b/c; echo deep > a/b/c/file; mv a/b x; rmdir a
        ln -s x/c/file link; cat link; readlink link
        ln from-guest second; stat -c 'links %h' from-guest
        echo more >> second
        chmod 640 second
        touch -d '2001-02-03 04:05:06' old
        tool perl -e 'utime(1000000000, 1000000001, "/mnt/work/second") or die'
        dd if=/dev/zero of=sparse bs=1 count=1 seek=104857599 2>/dev/null
        echo 0123456789 > cut; tool truncate -s 4 /mnt/work/cut; cat cut; echo
        long=$(printf '%0255d' 0 | tr 0 n); cat "$long"
        printf 'umlaut' > 'grüße ☃'
        # A file that is gone is still there for whoever has it open.
        exec 3<> gone; echo ghost >&3; rm gone; tool perl -e '
            open(my $f, "+<&=", 3); seek($f, 0, 0); print "still ", scalar <$f>;
            print "links ", (stat $f)[3], "\n"; truncate($f, 2) or die; print "size ", -s $f, "\n"'
        exec 3>&-
        # Names come and go while they are listed.
        mkdir many; tool perl -e '
            for my $n (1 .. MANY) { open(my $f, ">", "/mnt/work/many/$n") or die }
            opendir(my $d, "/mnt/work/many") or die; my %seen;
            while (defined(my $name = readdir $d)) {
                next if $name =~ /^\./; $seen{$name}++ and die "twice $name";
                unlink "/mnt/work/many/$name" if $name % 2;
            }
            print scalar(keys %seen), " names\n"'
        ls many | wc -l
        rm -r many
        mkfifo fifo; stat -c %F fifo
        ! cat no-such-file 2>/dev/null
        ! rmdir x 2>/dev/null
        tool stat -f -c 'file system %T' /mnt/work
        sync
        umount /mnt/work 2>/dev/null || { cd /; umount /mnt/work; }
    "#;
    let text = run(&script.replace("MANY", &many.to_string()), [share(&dir)]);
    for line in [
        "hello guest\nmodified 1500000000.123456789",
        "deep\nx/c/file",
        "links 2",
        "0123\n",
        "long\n",
        "still ghost",
        "links 0",
        "size 2",
        &*format!("{many} names\n{}\n", many / 2),
        "fifo",
        "file system v9fs",
    ] {
        assert!(text.contains(line), "no {line:?} in:\n{text}");
    }
    assert_eq!(content(path("second")), "hello host\nmore\n");
    assert_eq!(content(path("x/c/file")), "deep\n");
    assert_eq!(content(path("grüße ☃")), "umlaut");
    assert_eq!(std::fs::read_link(path("link")).unwrap(), Path::new("x/c/file"));
    let second = path("second").metadata().unwrap();
    assert_eq!(second.permissions().mode() & 0o7777, 0o640);
    assert_eq!((second.nlink(), second.ino()), (2, path("from-guest").metadata().unwrap().ino()));
    // Linux sets times of 9P to whole seconds.
    assert_eq!(second.mtime(), 1_000_000_001);
    let sparse = path("sparse").metadata().unwrap();
    assert_eq!(sparse.len(), 100 << 20);
    assert!(sparse.blocks() < 1000, "{} blocks", sparse.blocks());
    assert_eq!(path("old").metadata().unwrap().mtime(), 981_173_106);
    assert!(!path("gone").exists() && !path("many").exists() && !path("a").exists());
}

/// Random operations on a file of the share and the same on one in the guest's memory; the two must never differ.
#[test]
fn random_operations_do_what_they_do_on_another_file_system() {
    if !in_lab() {
        return;
    }
    let dir = scratch();
    // Of other steps with each of three caches.
    let steps = long_or(34_000, 80);
    let script = format!(
        r#"
        cat > /tmp/fsx.pl <<'END'
use strict; use Fcntl; srand(unpack("%32C*", shift));
my ($steps, $most) = ({steps}, 262144);
my @names = ("/mnt/work/fsx", "/tmp/fsx");
my @files = map {{ sysopen(my $f, $_, O_RDWR | O_CREAT) or die "$_: $!"; $f }} @names;
for my $step (1 .. $steps) {{
    my ($what, $at, $len) = (int rand 12, int rand $most, 1 + int rand 16384);
    if ($what < 5) {{
        my $data = pack("L", $step) x (1 + $len / 4);
        for (@files) {{ sysseek($_, $at, 0); syswrite($_, $data, $len) == $len or die "write: $!" }}
    }} elsif ($what < 9) {{
        my @got = map {{ sysseek($_, $at, 0); my $got = ''; sysread($_, $got, $len); $got }} @files;
        $got[0] eq $got[1] or die "step $step: read of $len at $at differs";
    }} elsif ($what == 9) {{
        for (@files) {{ truncate($_, $at) or die "truncate: $!" }}
    }} elsif ($what == 10) {{
        my @sizes = map {{ -s $_ }} @files;
        $sizes[0] == $sizes[1] or die "step $step: sizes $sizes[0] and $sizes[1]";
    }} else {{
        my $flags = O_RDWR | (rand 2 < 1 ? O_APPEND : 0);
        for my $n (0, 1) {{
            close $files[$n];
            sysopen($files[$n], $names[$n], $flags) or die "open: $!";
            syswrite($files[$n], "end") == 3 or die "write: $!";
            if ($flags & O_APPEND) {{ close $files[$n]; sysopen($files[$n], $names[$n], O_RDWR) or die }}
        }}
    }}
}}
print "$steps steps\n";
END
        for cache in none mmap loose; do
            share work cache=$cache
            rm -f /tmp/fsx /mnt/work/fsx
            tool perl /tmp/fsx.pl $cache || exit 1
            umount /mnt/work
            share work
            cmp /mnt/work/fsx /tmp/fsx || exit 1
            umount /mnt/work
        done
        "#
    );
    let text = run(&script, [share(&dir)]);
    assert_eq!(text.matches(&format!("{steps} steps\n")).count(), 3, "{text}");
}

#[test]
fn a_tree_of_many_files_is_the_same_after_going_there_and_back() {
    if !in_lab() {
        return;
    }
    let dir = scratch();
    // What the guest has in its cache takes a descriptor each.
    allow_descriptors(50_000);
    // Without a cache each file is looked up on the way to everything, which takes hours for 20,000 of them.
    let (count, cache) = long_or((20_000, "cache=loose"), (40, "cache=none"));
    let script = format!(
        r#"
        set -e
        tool perl -e '
            mkdir "/tmp/tree"; chdir "/tmp/tree";
            for my $n (1 .. {count}) {{
                my $d = "d" . ($n % 97); mkdir $d;
                open(my $f, ">", "$d/f$n") or die; print $f "$n\n" x ($n % 50); close $f;
                chmod 0600 | ($n % 64), "$d/f$n";
                symlink "../d0/f97", "$d/l$n" if $n % 10 == 0;
                link "$d/f$n", "$d/h$n" if $n % 15 == 0;
            }}'
        share work {cache}
        tar -C /tmp -cf - tree | tar -C /mnt/work -xf -
        umount /mnt/work
        share work {cache}
        tar -C /mnt/work -cf - tree | (mkdir /tmp/back; tar -C /tmp/back -xf -)
        sums() {{ (cd $1 && find . -type f | sort | xargs cat | md5sum; find . | sort | xargs stat -c '%n %a %F' | sed 's/ 755 d/ d/' | md5sum); }}
        sums /tmp/tree; sums /tmp/back/tree; sums /mnt/work/tree
        rm -r /mnt/work/tree
        umount /mnt/work
        "#
    );
    let text = run(&script, [share(&dir)]);
    let sums: Vec<_> = text.lines().filter(|line| line.ends_with("  -")).collect();
    assert_eq!(sums.len(), 6, "{text}");
    assert_eq!(sums[..2], sums[2..4], "{text}");
    assert_eq!(sums[..2], sums[4..], "{text}");
    assert_eq!(dir.path().read_dir().unwrap().count(), 0);
}
