//! A shared folder under a stock kernel, beside QEMU's own server (`-virtfs local`) under its microvm: names made, looked
//! at, listed and removed, a file read and written in large and small pieces, and `git status` of a tree; the same
//! kernel and initrd, one processor, a tmpfs of the host, nothing cached in the guest; the machines take turns.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use hyperkit::boot::Kernel;
use hyperkit::console::{Console, RingBuffer};
use hyperkit::disk::Disk;
use hyperkit::fs::Share;
use hyperkit::vm::Vm;

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
    ("git status", "1/s"),
];

/// In the shared folder, as `run`.
const SCRIPT: &str = r#"
in-tools /dev/vda true
cat > /tmp/p <<'END'
use strict; use Time::HiRes 'time'; use Fcntl;
my ($dir, $t, $n) = ("/mnt/work/many", 0, 1000);
sub rate { printf "rate %d %f\n", $_[0], $_[1] / (time - $t) }
mkdir $dir or die;
$t = time; for (1 .. $n) { open(my $f, '>', "$dir/$_") or die } rate(0, $n);
$t = time; for (1 .. $n) { stat("$dir/$_") or die } rate(1, $n);
$t = time; for (1 .. 5) { opendir(my $d, $dir) or die; my @all = readdir $d } rate(2, 5 * $n);
$t = time; for (1 .. $n) { unlink("$dir/$_") or die } rate(3, $n);
my $size = 64 << 20; my $data = 'x' x 131072; my $got;
sysopen(my $f, "/mnt/work/file", O_RDWR | O_CREAT) or die;
$t = time; for (1 .. $size / 131072) { syswrite($f, $data) == 131072 or die } rate(4, $size / 1048576);
sysseek($f, 0, 0);
$t = time; for (1 .. $size / 131072) { sysread($f, $got, 131072) == 131072 or die } rate(5, $size / 1048576);
srand 7; $n = 3000; $data = 'y' x 4096;
$t = time; for (1 .. $n) { sysseek($f, 4096 * int rand($size / 4096), 0); syswrite($f, $data) == 4096 or die } rate(6, $n);
$t = time; for (1 .. $n) { sysseek($f, 4096 * int rand($size / 4096), 0); sysread($f, $got, 4096) == 4096 or die } rate(7, $n);
$ENV{HOME} = '/tmp'; chdir '/mnt/work/tree';
$t = time; for (1 .. 3) { print "changed: ", `git -c safe.directory=* status --short | wc -l` } rate(8, 3);
END
in-tools /dev/vda perl /tmp/p
"#;

struct Setup {
    kernel: PathBuf,
    initrd: PathBuf,
    tools: PathBuf,
}

impl Setup {
    fn cmdline() -> String {
        let script = "mkdir /mnt/work; mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 work /mnt/work && \
                      sh /mnt/work/run";
        let run = base64::engine::general_purpose::STANDARD.encode(script);
        format!("console=ttyS0 quiet panic=-1 reboot=t hk.run={run}")
    }

    fn hyperkit(&self, dir: &Path) -> String {
        let log = RingBuffer::new();
        let kernel = Kernel::linux(&self.kernel).initrd(&self.initrd).cmdline(Self::cmdline());
        let vm = Vm::builder()
            .memory(MEMORY)
            .kernel(kernel)
            .serial(Console::ring(log.clone()))
            .disk(Disk::raw(&self.tools).unwrap().read_only())
            .share(Share::new("work", dir));
        let running = vm.build().unwrap().start().unwrap();
        let end = running.wait_timeout(PATIENCE);
        let text = String::from_utf8_lossy(&log.contents()).into_owned();
        end.unwrap_or_else(|| panic!("the guest does not come to an end:\n{text}")).unwrap();
        text
    }

    fn qemu(&self, dir: &Path) -> String {
        let tools =
            format!("id=tools,file={},format=raw,if=none,readonly=on", self.tools.display());
        let folder = format!("local,id=work,path={},security_model=none", dir.display());
        let output = Command::new("qemu-system-x86_64")
            .args(["-M", "microvm,acpi=on", "-accel", "kvm", "-cpu", "host", "-smp", "1"])
            .args(["-m", &format!("{}M", MEMORY >> 20), "-nodefaults", "-no-user-config"])
            .args(["-display", "none", "-no-reboot", "-serial", "stdio"])
            .args(["-append", &Self::cmdline()])
            .args([Path::new("-kernel"), &self.kernel, Path::new("-initrd"), &self.initrd])
            .args(["-drive", &tools, "-device", "virtio-blk-device,drive=tools"])
            .args(["-fsdev", &folder, "-device", "virtio-9p-device,fsdev=work,mount_tag=work"])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr)
    }
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

/// The rates in a guest's output, by job.
fn rates(text: &str) -> [f64; JOBS.len()] {
    let mut rates = [None; JOBS.len()];
    for line in text.lines() {
        if let ["rate", job, rate] = line.split_whitespace().collect::<Vec<_>>()[..]
            && let (Ok(job), Ok(rate)) = (job.parse::<usize>(), rate.parse::<f64>())
            && let Some(place) = rates.get_mut(job)
        {
            *place = Some(rate);
        }
    }
    assert!(text.contains("changed: 0"), "git found changes, or nothing:\n{text}");
    rates.map(|rate| rate.unwrap_or_else(|| panic!("not all jobs have ended:\n{text}")))
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
    let path = |name: &str| PathBuf::from(env::var_os(name).unwrap_or_else(|| panic!("{name}")));
    // The cloud kernel has no 9P.
    let setup = Setup {
        kernel: path("HK_KERNEL_GENERIC"),
        initrd: path("HK_INITRD_GENERIC"),
        tools: path("HK_ROOT"),
    };
    let names = ["hyperkit", "QEMU"];
    let mut all = names.map(|_| Vec::new());
    for round in 1..=ROUNDS {
        for (name, all) in names.iter().zip(&mut all) {
            let dir = folder();
            let ours = *name == "hyperkit";
            let text = if ours { setup.hyperkit(dir.path()) } else { setup.qemu(dir.path()) };
            let rates = rates(&text);
            println!("round {round}: {name}: {rates:.1?}");
            all.push(rates);
        }
    }
    println!("\nmedians of {ROUNDS} rounds");
    println!("{:30}{:>12}{:>12}{:>10}", "", "hyperkit", "QEMU", "ratio");
    for (at, (job, unit)) in JOBS.iter().enumerate() {
        let [ours, qemu] = all.each_ref().map(|rounds| {
            let mut rates: Vec<f64> = rounds.iter().map(|rates| rates[at]).collect();
            rates.sort_by(f64::total_cmp);
            rates[rates.len() / 2]
        });
        let job = format!("{job}, {unit}");
        println!("{job:30}{ours:>12.1}{qemu:>12.1}{:>10.2}", ours / qemu);
    }
}
