//! A stock guest of ours and the same under QEMU's microvm, which run a script and print `rate JOB NUMBER` for each job.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use hyperkit::boot::Kernel;
use hyperkit::console::{Console, RingBuffer};
use hyperkit::disk::Disk;
use hyperkit::vm::{Running, Vm, VmBuilder};

/// What a guest is made of. It has one processor, and the tools of a Debian as `/dev/vda`.
pub struct Guest {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    pub tools: PathBuf,
    /// Bytes of memory.
    pub memory: u64,
    /// How long it may take.
    pub patience: Duration,
}

impl Guest {
    /// One with the kernel and the initrd that the lab has under these names.
    pub fn new(kernel: &str, initrd: &str, memory: u64, patience: Duration) -> Self {
        let path =
            |name: &str| PathBuf::from(env::var_os(name).unwrap_or_else(|| panic!("{name}")));
        Self {
            kernel: path(kernel),
            initrd: path(initrd),
            tools: path("HK_ROOT"),
            memory,
            patience,
        }
    }

    /// Runs `script` under this crate in a machine that `add` has added to, and returns what was printed. `host` is
    /// called once it runs.
    pub fn hyperkit(
        &self,
        script: &str,
        add: impl FnOnce(VmBuilder) -> VmBuilder,
        host: impl FnOnce(&Running),
    ) -> String {
        let log = RingBuffer::new();
        let kernel = Kernel::linux(&self.kernel).initrd(&self.initrd).cmdline(cmdline(script));
        let vm = Vm::builder()
            .memory(self.memory)
            .kernel(kernel)
            .serial(Console::ring(log.clone()))
            .disk(Disk::raw(&self.tools).unwrap().read_only());
        let running = add(vm).build().unwrap().start().unwrap();
        host(&running);
        let end = running.wait_timeout(self.patience);
        let text = String::from_utf8_lossy(&log.contents()).into_owned();
        end.unwrap_or_else(|| panic!("the guest does not come to an end:\n{text}")).unwrap();
        text
    }

    /// Runs `script` under QEMU with these further arguments, and returns what was printed.
    pub fn qemu(&self, script: &str, arguments: &[&str]) -> String {
        let tools =
            format!("id=tools,file={},format=raw,if=none,readonly=on", self.tools.display());
        let output = Command::new("qemu-system-x86_64")
            .args(["-M", "microvm,acpi=on", "-accel", "kvm", "-cpu", "host", "-smp", "1"])
            .args(["-m", &format!("{}M", self.memory >> 20), "-nodefaults", "-no-user-config"])
            .args(["-display", "none", "-no-reboot", "-serial", "stdio"])
            .args(["-append", &cmdline(script)])
            .args([Path::new("-kernel"), &self.kernel, Path::new("-initrd"), &self.initrd])
            .args(["-drive", &tools, "-device", "virtio-blk-device,drive=tools"])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr)
    }
}

fn cmdline(script: &str) -> String {
    let run = base64::engine::general_purpose::STANDARD.encode(script);
    format!("console=ttyS0 quiet panic=-1 reboot=t hk.run={run}")
}

/// The rates in a guest's output, by job.
pub fn rates<const JOBS: usize>(text: &str) -> [f64; JOBS] {
    let mut rates = [None; JOBS];
    for line in text.lines() {
        if let ["rate", job, rate] = line.split_whitespace().collect::<Vec<_>>()[..]
            && let (Ok(job), Ok(rate)) = (job.parse::<usize>(), rate.parse::<f64>())
            && let Some(place) = rates.get_mut(job)
        {
            *place = Some(rate);
        }
    }
    rates.map(|rate| rate.unwrap_or_else(|| panic!("not all jobs have ended:\n{text}")))
}

/// The median of job `at` in several rounds.
pub fn median<const JOBS: usize>(rounds: &[[f64; JOBS]], at: usize) -> f64 {
    let mut rates: Vec<f64> = rounds.iter().map(|rates| rates[at]).collect();
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}
