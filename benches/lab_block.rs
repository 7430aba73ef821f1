//! Disks under a stock kernel, beside QEMU's microvm: fio in the guest, the same kernel, initrd, file and jobs, one
//! processor; the machines take turns.
//!
//! Each machine has two disks: a file on a tmpfs, and one on the file system of a disk. Both are in the host's page cache,
//! as disks that are in use mostly are: what is measured is the way there and back.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use hyperkit::boot::Kernel;
use hyperkit::console::{Console, RingBuffer};
use hyperkit::disk::{Disk, Engine};
use hyperkit::vm::Vm;

const ROUNDS: usize = 3;
const MEMORY: u64 = 384 << 20;
const SIZE: usize = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(600);

const DISKS: [(&str, &str); 2] = [("tmpfs", "vdb"), ("disk", "vdc")];

/// Name, fio's options, and where in its terse output the rate is (requests a second).
const JOBS: [(&str, &str, usize); 6] = [
    ("4k-randread-1", "--bs=4k --rw=randread --iodepth=1", 8),
    ("4k-randread-32", "--bs=4k --rw=randread --iodepth=32", 8),
    ("4k-randwrite-1", "--bs=4k --rw=randwrite --iodepth=1", 49),
    ("4k-randwrite-32", "--bs=4k --rw=randwrite --iodepth=32", 49),
    ("128k-read", "--bs=128k --rw=read --iodepth=4", 8),
    ("128k-write", "--bs=128k --rw=write --iodepth=4", 49),
];

struct Setup {
    kernel: PathBuf,
    initrd: PathBuf,
    tools: PathBuf,
    files: [PathBuf; 2],
    cmdline: String,
}

/// What the guest runs: a line `rate DISK JOB N` for each. It has to fit on a command line.
fn script() -> String {
    let disks = DISKS.map(|(disk, name)| format!("{disk}:{name}")).join(" ");
    let jobs = JOBS.map(|(job, options, field)| format!("{job} {field} {options}\n")).concat();
    format!(
        "fio='in-tools /dev/vda fio --minimal --name=j --direct=1 --ioengine=libaio --runtime=3 \
         --time_based'\n\
         for disk in {disks}; do\n\
         while read job field options; do\n\
         echo rate ${{disk%:*}} $job $($fio --filename=/dev/${{disk#*:}} $options </dev/null \
         | cut -d';' -f$field)\n\
         done <<END\n{jobs}END\ndone\n"
    )
}

fn hyperkit(setup: &Setup, engine: Engine) -> String {
    let log = RingBuffer::new();
    let kernel = Kernel::linux(&setup.kernel).initrd(&setup.initrd).cmdline(&setup.cmdline);
    let mut builder = Vm::builder()
        .memory(MEMORY)
        .kernel(kernel)
        .serial(Console::ring(log.clone()))
        .disk(Disk::raw(&setup.tools).unwrap().read_only());
    for file in &setup.files {
        builder = builder.disk(Disk::raw(file).unwrap().engine(engine));
    }
    let running = builder.build().unwrap().start().unwrap();
    running.wait_timeout(PATIENCE).expect("the guest does not come to an end").unwrap();
    String::from_utf8_lossy(&log.contents()).into_owned()
}

fn qemu(setup: &Setup, aio: &str) -> String {
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-M", "microvm,acpi=on", "-accel", "kvm", "-cpu", "host", "-smp", "1"])
        .args(["-m", &format!("{}M", MEMORY >> 20), "-nodefaults", "-no-user-config"])
        .args(["-display", "none", "-no-reboot", "-serial", "stdio", "-append", &setup.cmdline])
        .args([Path::new("-kernel"), &setup.kernel, Path::new("-initrd"), &setup.initrd]);
    let mut disk = |id: &str, file: &Path, options: &str| {
        let drive = format!("id={id},file={},format=raw,if=none,{options}", file.display());
        command.args(["-drive", &drive, "-device", &format!("virtio-blk-device,drive={id}")]);
    };
    disk("tools", &setup.tools, "readonly=on");
    for (file, (id, _)) in setup.files.iter().zip(DISKS) {
        disk(id, file, &format!("cache=writeback,aio={aio}"));
    }
    let output = command.stdin(Stdio::null()).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The rates in a guest's output, by disk and job.
fn rates(text: &str) -> BTreeMap<(String, String), f64> {
    let mut rates = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        if let ["rate", disk, job, rate] = words[..]
            && let Ok(rate) = rate.parse()
        {
            rates.insert((disk.to_owned(), job.to_owned()), rate);
        }
    }
    assert_eq!(rates.len(), DISKS.len() * JOBS.len(), "not all jobs have ended:\n{text}");
    rates
}

fn main() {
    if env::var_os("HYPERKIT_LAB").is_none() {
        println!("skipped: needs the lab (cargo xtask bench --lab)");
        return;
    }
    let path = |name: &str| PathBuf::from(env::var_os(name).unwrap_or_else(|| panic!("{name}")));
    if Command::new("qemu-system-x86_64").arg("--version").output().is_err() {
        println!("skipped: there is no qemu-system-x86_64 to compare with");
        return;
    }
    let tmpfs = tempfile::tempdir().unwrap();
    let scratch = tempfile::tempdir_in(path("HK_SCRATCH")).unwrap();
    let files = [tmpfs.path().join("disk.img"), scratch.path().join("disk.img")];
    for file in &files {
        fs::write(file, vec![0x5a; SIZE]).unwrap();
    }
    let run = base64::engine::general_purpose::STANDARD.encode(script());
    let setup = Setup {
        kernel: path("HK_KERNEL"),
        initrd: path("HK_INITRD"),
        tools: path("HK_ROOT"),
        files,
        cmdline: format!("console=ttyS0 quiet panic=-1 reboot=t hk.run={run}"),
    };
    let machines: [(&str, &dyn Fn() -> String); 4] = [
        ("hyperkit, io_uring", &|| hyperkit(&setup, Engine::IoUring)),
        ("hyperkit, threads", &|| hyperkit(&setup, Engine::Threads)),
        ("microvm, aio=io_uring", &|| qemu(&setup, "io_uring")),
        ("microvm, aio=threads", &|| qemu(&setup, "threads")),
    ];
    let mut all = machines.map(|_| Vec::new());
    for round in 1..=ROUNDS {
        for ((name, machine), all) in machines.iter().zip(&mut all) {
            println!("round {round}: {name}");
            all.push(rates(&machine()));
        }
    }
    println!(
        "\nrequests a second, medians of {ROUNDS} rounds; ratio: ours with io_uring over the better of QEMU's"
    );
    println!(
        "{:24}{:>10}{:>10}{:>14}{:>14}{:>8}",
        "", "io_uring", "threads", "QEMU io_uring", "QEMU threads", "ratio"
    );
    for (disk, _) in DISKS {
        for (job, ..) in JOBS {
            let key = (disk.to_owned(), job.to_owned());
            let [ring, threads, qemu_ring, qemu_threads] = all.each_ref().map(|rounds| {
                let mut rates: Vec<f64> = rounds.iter().map(|rates| rates[&key]).collect();
                rates.sort_by(f64::total_cmp);
                rates[rates.len() / 2]
            });
            let ratio = ring / qemu_ring.max(qemu_threads);
            println!(
                "{:24}{ring:>10.0}{threads:>10.0}{qemu_ring:>14.0}{qemu_threads:>14.0}{ratio:>8.2}",
                format!("{disk} {job}")
            );
        }
    }
}
