//! Kernel files: any bytes, or a file that was good before some of its bytes were changed.
//!
//! What `check` accepts, `load` loads. Nothing below the first megabyte is written but what the boot protocols
//! say, so ACPI and SMBIOS tables stay as they are; and the initrd arrives whole, wherever the kernel's segments go.

use std::sync::{LazyLock, Mutex};

use arbitrary::Unstructured;
use hyperkit::arch::x86_64::layout;
use hyperkit::boot::{Kernel, LoadParams, Payload};
use hyperkit::memory::{Backing, GuestRam};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::fields;
use crate::file::{Scratch, change};

mod template;

fields! {
    /// The start of an input.
    pub struct Head {
        /// What the file is at first: the rest of the input, a bzImage, a vmlinux, or a vmlinux with a PVH note.
        pub kind: u8,
        /// Which of [`MEMORY`] the machine has.
        pub memory: u8,
        /// Length of the command line.
        pub cmdline: u16,
        /// Length of the initrd in units of 512 bytes; none if zero.
        pub initrd: u8,
    }
}

/// Sizes of memory: the least there can be, less than a kernel needs, enough, odd, up to the hole, beyond it.
pub const MEMORY: [u64; 6] =
    [2 << 20, 17 << 20, 64 << 20, (40 << 20) + 0x1000, 3 << 30, (4 << 30) + 0x20_0000];

/// No kernel may write these: everything in the first megabyte but what the boot protocols put there.
const UNTOUCHED: [(u64, u64); 3] = [
    (0, layout::GDT),
    (layout::PAGE_TABLES_END, layout::CMDLINE),
    (layout::CMDLINE + layout::CMDLINE_MAX, layout::HIGH_RAM),
];
/// What is there before.
static CANARY: [u8; LOW] = [0xc5; LOW];
const LOW: usize = layout::HIGH_RAM as usize;

/// Files that are made once, and have a name as long as the process lives.
static FILES: LazyLock<Mutex<[Scratch; 2]>> =
    LazyLock::new(|| Mutex::new([Scratch::new("fuzz-kernel"), Scratch::new("fuzz-initrd")]));

/// Carries out an input.
pub fn run(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let head: Head = u.arbitrary().unwrap_or_default();
    let file = make_file(head.kind, &mut u);
    // Numbered, so that a part in another's place is noticed.
    let initrd: Vec<u8> = (0..head.initrd).flat_map(|n| [n; 512]).collect();
    // After an input that failed the process ends, so a poisoned lock is never met.
    let mut files = FILES.lock().expect("no input has failed");
    let [kernel_file, initrd_file] = &mut *files;
    let mut kernel = Kernel::linux(kernel_file.fill(&file));
    if !initrd.is_empty() {
        kernel = kernel.initrd(initrd_file.fill(&initrd));
    }
    let cmdline = "c".repeat(head.cmdline.into());
    let Ok(payload) = kernel.open() else { return };
    let size = MEMORY[usize::from(head.memory) % MEMORY.len()];
    if payload.check(size, &cmdline).is_ok() {
        load(&payload, size, &cmdline, &initrd);
    }
}

fn make_file(kind: u8, u: &mut Unstructured<'_>) -> Vec<u8> {
    let (file, fields) = match kind % 4 {
        0 => return u.peek_bytes(u.len()).unwrap_or_default().to_vec(),
        1 => (template::bzimage(), template::SETUP_HEADER),
        2 => (template::vmlinux(false), template::PROGRAM_HEADERS),
        _ => (template::vmlinux(true), template::PROGRAM_HEADERS),
    };
    change(file, fields, u)
}

fn load(payload: &Payload, size: u64, cmdline: &str, initrd: &[u8]) {
    let regions = layout::ram_regions(size);
    let ram = GuestRam::new(&regions, Backing::Anonymous, false).expect("memory can be had");
    let memory = ram.memory();
    for (start, end) in UNTOUCHED {
        let canary = &CANARY[start as usize..end as usize];
        memory.write_slice(canary, GuestAddress(start)).expect("RAM is there");
    }
    payload.load(&ram, &LoadParams::new(cmdline)).expect("what was checked is loaded");

    let mut low = vec![0; LOW];
    memory.read_slice(&mut low, GuestAddress(0)).expect("RAM is there");
    for (start, end) in UNTOUCHED {
        let area = start as usize..end as usize;
        assert!(low[area.clone()] == CANARY[area], "{start:#x}..{end:#x} was written to");
    }
    let at = layout::CMDLINE as usize;
    assert_eq!(&low[at..at + cmdline.len() + 1], [cmdline.as_bytes(), b"\0"].concat());
    if !initrd.is_empty() {
        let mut loaded = vec![0; initrd.len()];
        memory.read_slice(&mut loaded, initrd_address(memory)).expect("the initrd is in RAM");
        assert!(loaded == initrd, "the initrd is not what it was");
    }
}

/// Where the kernel is told that its initrd is.
fn initrd_address(memory: &GuestMemoryMmap) -> GuestAddress {
    /// `XEN_HVM_START_MAGIC_VALUE`
    const PVH_MAGIC: u32 = 0x336e_c578;
    let read = |at| memory.read_obj::<u32>(GuestAddress(at)).expect("RAM is there");
    // Both are below 4 GiB, so that the lower halves of the addresses tell it all.
    let at = match read(layout::PVH_INFO) {
        // `paddr` of the first entry of `modlist_paddr`.
        PVH_MAGIC => read(u64::from(read(layout::PVH_INFO + 16))),
        // `ramdisk_image` of the setup header.
        _ => read(layout::ZERO_PAGE + 0x218),
    };
    GuestAddress(at.into())
}
