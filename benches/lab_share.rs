//! A shared folder under a stock kernel, beside QEMU's own server (`-virtfs local`) under its microvm: names made, looked
//! at, listed and removed, a file read and written in large and small pieces, and `git status` of a tree; the same
//! kernel and initrd, one processor, a tmpfs of the host, nothing cached in the guest. The machines take turns, and each
//! does everything but the last three times: the best counts, as the host may be slow for a while.

#[path = "support/lab.rs"]
mod lab;

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hyperkit::fs::Share;
use lab::{Guest, median, rates};

const ROUNDS: usize = 3;
const MEMORY: u64 = 512 << 20;
const PATIENCE: Duration = Duration::from_secs(600);

/// What is measured, and its unit.
const JOBS: [(&str, &str); 9] = [
    ("create", "1/s"),
    ("stat", "1/s"),
    ("list", "names/s"),
    ("unlink", "1/s"),
    ("write 128 KiB", "MiB/s"),
    ("read 128 KiB", "MiB/s"),
    ("write 4 KiB at random", "1/s"),
    ("read 4 KiB at random", "1/s"),
    ("git status", "1/min"),
];

/// In the shared folder, as `run`.
const SCRIPT: &str = r#"
in-tools /dev/vda true
cat > /tmp/p <<'END'
use strict; use Time::HiRes 'time'; use Fcntl;
my ($dir, $t, $n, @best) = ("/mnt/work/many", 0, 150);
sub rate { my $rate = $_[1] / (time - $t); $best[$_[0]] = $rate if $rate > ($best[$_[0]] // 0) }
for my $try (1 .. 3) {
    mkdir $dir or die;
    $t = time; for (1 .. $n) { open(my $f, '>', "$dir/$_") or die } rate(0, $n);
    $t = time; for (1 .. $n) { stat("$dir/$_") or die } rate(1, $n);
    $t = time; for (1 .. 5) { opendir(my $d, $dir) or die; my @all = readdir $d } rate(2, 5 * $n);
    $t = time; for (1 .. $n) { unlink("$dir/$_") or die } rate(3, $n);
    rmdir $dir or die;
    my $size = 32 << 20; my $data = 'x' x 131072; my $got;
    sysopen(my $f, "/mnt/work/file", O_RDWR | O_CREAT) or die;
    $t = time; for (1 .. $size / 131072) { syswrite($f, $data) == 131072 or die } rate(4, $size / 1048576);
    sysseek($f, 0, 0);
    $t = time; for (1 .. $size / 131072) { sysread($f, $got, 131072) == 131072 or die } rate(5, $size / 1048576);
    srand 7; my $some = 500; $data = 'y' x 4096;
    $t = time; for (1 .. $some) { sysseek($f, 4096 * int rand($size / 4096), 0); syswrite($f, $data) == 4096 or die } rate(6, $some);
    $t = time; for (1 .. $some) { sysseek($f, 4096 * int rand($size / 4096), 0); sysread($f, $got, 4096) == 4096 or die } rate(7, $some);
    close $f; unlink "/mnt/work/file" or die;
}
$ENV{HOME} = '/tmp'; chdir '/mnt/work/tree';
$t = time; print "changed: ", `git -c safe.directory=* status --short | wc -l`; rate(8, 60);
printf "rate %d %f\n", $_, $best[$_] for 0 .. $#best;
END
in-tools /dev/vda perl /tmp/p
"#;

/// Runs a guest with a share of this folder, and returns what it printed.
type Machine = fn(&Guest, &Path) -> String;

const BOOTSTRAP: &str = "mkdir /mnt/work; mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 work /mnt/work && \
                         sh /mnt/work/run";

fn hyperkit(guest: &Guest, dir: &Path) -> String {
    guest.hyperkit(BOOTSTRAP, |vm| vm.share(Share::new("work", dir)), |_| {})
}

fn qemu(guest: &Guest, dir: &Path) -> String {
    let folder = format!("local,id=work,path={},security_model=none", dir.display());
    let device = "virtio-9p-device,fsdev=work,mount_tag=work";
    guest.qemu(BOOTSTRAP, &["-fsdev", &folder, "-device", device])
}

/// A folder with the script, and a tree in git.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("run"), SCRIPT).unwrap();
    let tree = dir.path().join("tree");
    for n in 0..20 {
        let part = tree.join(format!("part{n}"));
        fs::create_dir_all(&part).unwrap();
        for m in 0..20 {
            fs::write(part.join(format!("file{m}")), format!("{n} {m}\n")).unwrap();
        }
    }
    for arguments in ["init -q .", "add .", "-c user.name=a -c user.email=a@b commit -q -m one"] {
        let mut git = Command::new("git");
        git.current_dir(&tree).args(arguments.split(' ')).env("HOME", dir.path());
        assert!(git.status().unwrap().success(), "git {arguments}");
    }
    dir
}

fn main() {
    if env::var_os("HYPERKIT_LAB").is_none() {
        println!("skipped: needs the lab (cargo xtask bench --lab)");
        return;
    }
    for program in ["qemu-system-x86_64", "git"] {
        if Command::new(program).arg("--version").output().is_err() {
            println!("skipped: there is no {program}");
            return;
        }
    }
    // The cloud kernel has no 9P.
    let guest = Guest::new("HK_KERNEL_GENERIC", "HK_INITRD_GENERIC", MEMORY, PATIENCE);
    let machines: [(&str, Machine); 2] = [("hyperkit", hyperkit), ("QEMU", qemu)];
    let mut all = machines.map(|_| Vec::new());
    for round in 1..=ROUNDS {
        for ((name, machine), all) in machines.iter().zip(&mut all) {
            let text = machine(&guest, folder().path());
            assert!(text.contains("changed: 0"), "git found changes, or nothing:\n{text}");
            let rates: [f64; JOBS.len()] = rates(&text);
            println!("round {round}: {name}: {rates:.1?}");
            all.push(rates);
        }
    }
    println!("\nmedians of {ROUNDS} rounds");
    println!("{:30}{:>12}{:>12}{:>10}", "", "hyperkit", "QEMU", "ratio");
    for (at, (job, unit)) in JOBS.iter().enumerate() {
        let [ours, qemu] = all.each_ref().map(|rounds| median(rounds, at));
        let job = format!("{job}, {unit}");
        println!("{job:30}{ours:>12.1}{qemu:>12.1}{:>10.2}", ours / qemu);
    }
}
