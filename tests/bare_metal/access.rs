//! Register accesses: ports, MMIO, string instructions, addresses that nobody has.

use hyperkit::vm::End;

use super::guest::*;

guest!(
    port_accesses,
    "mov dx, 0x500",
    "mov eax, 0x44332211",
    "out dx, al",
    "out dx, ax",
    "out dx, eax",
    "mov dx, 0x504",
    "out dx, al",
    // What is read is reported as it was read.
    "mov dx, 0x500",
    "xor eax, eax",
    "in al, dx",
    "out dx, eax",
    "in ax, dx",
    "out dx, eax",
    "in eax, dx",
    "out dx, eax",
    // Nobody has port 0x4f0.
    "mov dx, 0x4f0",
    "in eax, dx",
    "mov dx, 0x500",
    "out dx, eax",
    // Nor what lies half outside: 0x506 to 0x509.
    "mov dx, 0x506",
    "xor eax, eax",
    "in eax, dx",
    "mov dx, 0x500",
    "out dx, eax",
    // ACPI: sleep type 5, sleep enable.
    "mov dx, 0x604",
    "mov ax, 0x3400",
    "out dx, ax",
    "2: hlt",
    "jmp 2b",
);

#[test]
fn ports_of_every_width() {
    if !have_kvm() {
        return;
    }
    let (builder, reporter, received) = machine(port_accesses());
    reporter.lay_out(0xa4a3_a2a1);
    let end = builder.build().unwrap().start().unwrap().wait().unwrap();
    assert_eq!(end, End::PowerOff);
    assert_eq!(
        written(&received),
        [
            (0, vec![0x11]),
            (0, vec![0x11, 0x22]),
            (0, vec![0x11, 0x22, 0x33, 0x44]),
            (4, vec![0x11]),
            (0, vec![0xa1, 0, 0, 0]),
            (0, vec![0xa1, 0xa2, 0, 0]),
            (0, vec![0xa1, 0xa2, 0xa3, 0xa4]),
            (0, vec![0xff; 4]),
            (0, vec![0xff; 4]),
        ]
    );
}

guest!(
    memory_accesses,
    "mov rbx, 0xe0000000",
    "mov rax, 0x8877665544332211",
    "mov [rbx + 1], al",
    "mov [rbx + 2], ax",
    "mov [rbx + 4], eax",
    "mov [rbx + 8], rax",
    "xor eax, eax",
    "mov al, [rbx]",
    "mov [rbx], rax",
    "mov rax, [rbx]",
    "mov [rbx], rax",
    // The last byte of the range, and a load that leaves it.
    "mov [rbx + 0x7ff], al",
    "mov eax, [rbx + 0x7fd]",
    "mov [rbx], eax",
    // Nobody has 0xe1000000.
    "mov rax, [rbx + 0x1000000]",
    "mov [rbx], rax",
    "mov dx, 0x604",
    "mov ax, 0x3400",
    "out dx, ax",
    "2: hlt",
    "jmp 2b",
);

#[test]
fn memory_mapped_registers_of_every_width() {
    if !have_kvm() {
        return;
    }
    let (builder, reporter, received) = machine(memory_accesses());
    reporter.lay_out(0xa8a7_a6a5_a4a3_a2a1);
    let end = builder.build().unwrap().start().unwrap().wait().unwrap();
    assert_eq!(end, End::PowerOff);
    assert_eq!(
        written(&received),
        [
            (1, vec![0x11]),
            (2, vec![0x11, 0x22]),
            (4, vec![0x11, 0x22, 0x33, 0x44]),
            (8, vec![0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88]),
            (0, vec![0xa1, 0, 0, 0, 0, 0, 0, 0]),
            (0, vec![0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8]),
            (0x7ff, vec![0xa1]),
            (0, vec![0xff; 4]),
            (0, vec![0xff; 8]),
        ]
    );
}

guest!(
    string_accesses,
    "cld",
    "lea rsi, [rip + 5f]",
    "mov ecx, 5",
    "mov dx, 0x500",
    "rep outsb",
    "lea rsi, [rip + 5f]",
    "mov ecx, 2",
    "rep outsw",
    // Three bytes from the device, to memory and back.
    "mov edi, 0x200000",
    "mov ecx, 3",
    "rep insb",
    "mov esi, 0x200000",
    "mov ecx, 3",
    "rep outsb",
    "mov dx, 0x604",
    "mov ax, 0x3400",
    "out dx, ax",
    "2: hlt",
    "jmp 2b",
    "5: .ascii \"hello\"",
);

#[test]
fn string_instructions_reach_the_device_element_by_element() {
    if !have_kvm() {
        return;
    }
    let (builder, reporter, received) = machine(string_accesses());
    reporter.lay_out(0x7a);
    let end = builder.build().unwrap().start().unwrap().wait().unwrap();
    assert_eq!(end, End::PowerOff);
    let expected: Vec<_> = [&b"h"[..], b"e", b"l", b"l", b"o", b"he", b"ll", b"z", b"z", b"z"]
        .iter()
        .map(|bytes| (0, bytes.to_vec()))
        .collect();
    assert_eq!(written(&received), expected);
}
