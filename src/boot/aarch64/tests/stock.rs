//! Real kernels, where they have been fetched.

use super::*;

#[test]
fn stock_kernels_are_accepted_and_loaded() {
    for path in fetched(true) {
        let linux = Linux::open(&path, None).unwrap();
        let ram = ram(256 << 20);
        let state = load(&linux, &ram).unwrap();
        let header = bytes_at(&ram, state.pc, 64);
        assert_eq!(header[0x38..0x3c], *b"ARM\x64", "{}", path.display());
        // Debian's kernels can be started by EFI too: "MZ" is an instruction that does no harm.
        assert_eq!(header[..2], *b"MZ", "{}", path.display());
        assert!(linux.check(16 << 20, "").is_err(), "{} runs in 16 MiB?", path.display());
    }
}
