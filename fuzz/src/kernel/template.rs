//! Small files that are good kernels as far as a loader can tell.

/// Where a bzImage's setup header is.
pub const SETUP_HEADER: usize = 0x1f1;
/// Where an ELF file's program headers are.
pub const PROGRAM_HEADERS: usize = 64;
const PROGRAM_HEADER_LEN: usize = 56;
/// Where the kernels want to be.
const START: u64 = 0x100_0000;
/// Bytes of code.
const CODE: usize = 0x400;

/// A bzImage: protocol 2.15, one sector of setup code beyond the boot sector, a kernel of int3 instructions.
pub fn bzimage() -> Vec<u8> {
    const SETUP: usize = 2 * 512;
    let mut file = vec![0; SETUP];
    let mut set = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    set(0x1f1, &[1]); // setup_sects
    set(0x1f4, &(CODE as u32 / 16).to_le_bytes()); // syssize
    set(0x1fe, &0xaa55_u16.to_le_bytes());
    set(0x200, &[0xeb, 0x6a]); // a jump behind the header
    set(0x202, b"HdrS");
    set(0x206, &0x020f_u16.to_le_bytes());
    set(0x211, &[1]); // loadflags: LOADED_HIGH
    set(0x22c, &0x7fff_ffff_u32.to_le_bytes()); // initrd_addr_max
    set(0x230, &0x20_0000_u32.to_le_bytes()); // kernel_alignment
    set(0x234, &[1]); // relocatable_kernel
    set(0x236, &1_u16.to_le_bytes()); // xloadflags: KERNEL_64
    set(0x238, &2047_u32.to_le_bytes()); // cmdline_size
    set(0x258, &START.to_le_bytes()); // pref_address
    set(0x260, &0x1_0000_u32.to_le_bytes()); // init_size
    file.resize(SETUP + CODE, 0xcc);
    file
}

/// An ELF kernel with two segments, the second with room behind its bytes, and notes.
pub fn vmlinux(pvh: bool) -> Vec<u8> {
    let kinds = [1_u32, 1, 4];
    let code = (PROGRAM_HEADERS + kinds.len() * PROGRAM_HEADER_LEN) as u64;
    let notes = code + 2 * CODE as u64;
    let note = note(if pvh { 18 } else { 6 }, &(START as u32).to_le_bytes());
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend(2_u16.to_le_bytes()); // ET_EXEC
    file.extend(62_u16.to_le_bytes()); // EM_X86_64
    file.extend(1_u32.to_le_bytes());
    for value in [START, PROGRAM_HEADERS as u64, 0] {
        file.extend(value.to_le_bytes());
    }
    file.extend(0_u32.to_le_bytes());
    for value in [PROGRAM_HEADERS, PROGRAM_HEADER_LEN, kinds.len(), 0, 0, 0] {
        file.extend((value as u16).to_le_bytes());
    }
    for (kind, offset, address, in_file, in_memory) in [
        (kinds[0], code, START, CODE as u64, CODE as u64),
        (kinds[1], code + CODE as u64, START + 0x20_0000, CODE as u64, 0x1_0000),
        (kinds[2], notes, 0, note.len() as u64, note.len() as u64),
    ] {
        file.extend(kind.to_le_bytes());
        file.extend(5_u32.to_le_bytes());
        for value in [offset, address, address, in_file, in_memory, 4] {
            file.extend(value.to_le_bytes());
        }
    }
    file.resize(notes as usize, 0xcc);
    file.extend(note);
    file
}

/// A note of Xen's.
fn note(kind: u32, descriptor: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    for value in [4, descriptor.len() as u32, kind] {
        note.extend(value.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend(descriptor);
    note
}
