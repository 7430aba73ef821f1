//! Real kernels, where they have been fetched.

use super::*;

#[test]
fn stock_kernels_are_accepted_and_loaded() {
    for path in fetched(false) {
        let payload = Kernel::linux(&path).cmdline("console=ttyS0").open().unwrap();
        let ram = ram(256 << 20);
        let state = payload.load(&ram, &LoadParams::new(payload.cmdline())).unwrap();
        let code = bytes_at(&ram, state.regs.rip, 16);
        assert!(code.iter().any(|&byte| byte != 0), "{} at {:#x}", path.display(), state.regs.rip);
        assert_low_memory_is_untouched(&ram);
        assert!(payload.check(16 << 20, "").is_err(), "{} runs in 16 MiB?", path.display());
    }
}
