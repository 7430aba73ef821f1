//! A guest's first process that tells of its first instructions, and nothing else.
//!
//! It writes [`MARKER`] to the port of COM1 itself, with no driver and no system call in between but `iopl`, and then
//! waits for ever. It is put into a copy of an initrd, in place of that one's `/init`: the kernel takes several
//! archives that follow each other, and the last file of a name stays.

/// What appears on COM1.
pub const MARKER: &[u8] = b"hyperkit-bench-init";

/// Where the program is loaded.
const BASE: u64 = 0x40_0000;
const HEADERS: usize = 64 + 56;

/// `initrd` with the program as its `/init`.
pub fn in_initrd(mut initrd: Vec<u8>) -> Vec<u8> {
    // An archive begins at a multiple of 4; zeros in between are passed over.
    initrd.resize(initrd.len().next_multiple_of(4), 0);
    initrd.extend(entry("init", 0o100_755, &program()));
    initrd.extend(entry("TRAILER!!!", 0, &[]));
    initrd
}

/// An ELF program of one segment.
fn program() -> Vec<u8> {
    let mut code: Vec<u8> = vec![
        0xb8,
        0xac,
        0x00,
        0x00,
        0x00, // mov eax, 172 (iopl)
        0xbf,
        0x03,
        0x00,
        0x00,
        0x00, // mov edi, 3
        0x0f,
        0x05, // syscall
        0x66,
        0xba,
        0xf8,
        0x03, // mov dx, 0x3f8
        0x48,
        0x8d,
        0x35,
        0x12,
        0x00,
        0x00,
        0x00, // lea rsi, [rip + 18]: the marker
        0xb9,
        MARKER.len() as u8,
        0x00,
        0x00,
        0x00, // mov ecx, its length
        0xac, // 1: lodsb
        0xee, // out dx, al
        0xe2,
        0xfc, // loop 1b
        0xb8,
        0x22,
        0x00,
        0x00,
        0x00, // 2: mov eax, 34 (pause)
        0x0f,
        0x05, // syscall
        0xeb,
        0xf7, // jmp 2b
    ];
    code.extend(MARKER);

    let len = (HEADERS + code.len()) as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend(2_u16.to_le_bytes()); // ET_EXEC
    file.extend(62_u16.to_le_bytes()); // EM_X86_64
    file.extend(1_u32.to_le_bytes());
    for value in [BASE + HEADERS as u64, 64, 0] {
        file.extend(value.to_le_bytes()); // entry point, program headers, section headers
    }
    file.extend(0_u32.to_le_bytes());
    for value in [64_u16, 56, 1, 0, 0, 0] {
        file.extend(value.to_le_bytes());
    }
    file.extend(1_u32.to_le_bytes()); // PT_LOAD
    file.extend(5_u32.to_le_bytes()); // readable, executable
    for value in [0, BASE, BASE, len, len, 0x1000] {
        file.extend(value.to_le_bytes());
    }
    file.extend(code);
    file
}

/// One file of a cpio archive, "newc" format.
fn entry(name: &str, mode: u32, data: &[u8]) -> Vec<u8> {
    let mut entry = b"070701".to_vec();
    let (inode, links, name_len) = (1, 1, name.len() as u32 + 1);
    for field in [inode, mode, 0, 0, links, 0, data.len() as u32, 0, 0, 0, 0, name_len, 0] {
        entry.extend(format!("{field:08x}").bytes());
    }
    for part in [[name.as_bytes(), b"\0"].concat(), data.to_vec()] {
        entry.extend(part);
        entry.resize(entry.len().next_multiple_of(4), 0);
    }
    entry
}
