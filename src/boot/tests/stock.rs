//! Real kernels, where they have been fetched.

use super::*;

/// The kernels that `cargo xtask guest` has put under `target/guest`.
fn kernels() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guest");
    let mut folders = vec![folder];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(path),
                Ok(kind) if kind.is_file() && name.starts_with("vmlinu") => found.push(path),
                _ => {}
            }
        }
    }
    found
}

#[test]
fn stock_kernels_are_accepted_and_loaded() {
    let kernels = kernels();
    if kernels.is_empty() {
        eprintln!("skipped: no kernel under target/guest; `cargo xtask guest` fetches them");
    }
    for path in kernels {
        let payload = Kernel::linux(&path).cmdline("console=ttyS0").open().unwrap();
        let ram = ram(256 << 20);
        let state = payload.load(&ram, &LoadParams::new(payload.cmdline())).unwrap();
        let code = bytes_at(&ram, state.regs.rip, 16);
        assert!(code.iter().any(|&byte| byte != 0), "{} at {:#x}", path.display(), state.regs.rip);
        assert_low_memory_is_untouched(&ram);
        assert!(payload.check(16 << 20, "").is_err(), "{} runs in 16 MiB?", path.display());
    }
}
