//! The standard library for a target that is not this machine's, so that code can be checked and
//! built for it.
//!
//! rustup has it, where rustup can be used and reaches its server. Elsewhere it is built from its
//! source, which Debian packages for many releases of Rust (`rust-src`), into a sysroot of its own
//! below `target/sysroot/`: half a minute, once per target and compiler. The libraries built are
//! the ones that every program has, none of them linked, so this needs no linker for the target.

use crate::packages::{self, Apt};
use crate::{cargo, host};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Where Debian keeps the source of more releases of Rust than one.
const SUITE: &str = "trixie-backports";

/// What programs, tests among them, can name; what these depend on comes along.
const CRATES: &str = "-Zbuild-std=std,test,proc_macro,panic_abort,panic_unwind";

/// An empty crate's manifest: with it, cargo builds the standard library and nothing else.
const MANIFEST: &str = "\
[package]
name = \"nothing\"
version = \"0.0.0\"
edition = \"2024\"

[lib]
path = \"lib.rs\"

[workspace]
";

/// Makes sure that there is a standard library for the target. Returns the sysroot that has it
/// (`rustc --sysroot`), or nothing if the compiler's own has it.
pub fn ensure(target: &str) -> Result<Option<PathBuf>> {
    let rustc = host::output(rustc().arg("-vV"))?;
    let rustc = String::from_utf8(rustc)?;
    let dir = host::target("sysroot")?;
    let sysroot = dir.join(target);
    let built = || fs::read_to_string(sysroot.join("stamp")).is_ok_and(|stamp| stamp == rustc);
    if is_in_compiler(target)? {
        return Ok(None);
    }
    if built() {
        return Ok(Some(sysroot));
    }
    let _lock = host::Lock::take(&dir.join("lock"))?;
    if is_in_compiler(target)? || rustup(target) {
        return Ok(None);
    }
    // Another xtask may have done it while this one waited for the lock.
    if !built() {
        let _ = fs::remove_dir_all(&sysroot);
        build(target, &source(&rustc, &dir)?, &dir, &sysroot)?;
        host::write_atomically(&sysroot.join("stamp"), rustc.as_bytes())?;
    }
    Ok(Some(sysroot))
}

fn rustc() -> Command {
    Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
}

fn is_in_compiler(target: &str) -> Result<bool> {
    let dir = host::output(rustc().args(["--print", "target-libdir", "--target", target]))?;
    let dir = String::from_utf8(dir)?;
    let Ok(files) = fs::read_dir(dir.trim()) else { return Ok(false) };
    let mut names = files.flatten().map(|file| file.file_name());
    Ok(names.any(|name| name.to_string_lossy().starts_with("libstd-")))
}

/// Asks rustup for it. Many machines have no rustup, or one that reaches nothing.
fn rustup(target: &str) -> bool {
    let Some(rustup) = host::find_tool("rustup") else { return false };
    eprintln!("xtask: fetching the standard library for {target}");
    let done = host::output(Command::new(rustup).args(["target", "add", target]));
    done.map_err(|error| eprintln!("xtask: {error:#}")).is_ok()
}

/// The standard library's source, of the compiler's own release.
fn source(rustc: &str, dir: &Path) -> Result<PathBuf> {
    let release = rustc.lines().find_map(|line| line.strip_prefix("release: "));
    let release = release.context("rustc does not tell its release")?;
    let library = dir.join(format!("library-{release}"));
    if !library.is_dir() {
        let sources = packages::sources_beside(&packages::suite()?, SUITE)?;
        let mut apt = Apt::elsewhere(dir.join("apt"), &sources, "amd64")?;
        let package = apt.unpack_version("rust-src", Some(release), dir)?;
        // Most of the package is other things' source.
        fs::rename(package.join(format!("usr/src/rustc-{release}/library")), &library)?;
        fs::remove_dir_all(&package)?;
    }
    Ok(library)
}

fn build(target: &str, library: &Path, dir: &Path, sysroot: &Path) -> Result<()> {
    eprintln!("xtask: building the standard library for {target}");
    let start = Instant::now();
    let work = dir.join("work");
    let _ = fs::remove_dir_all(&work);
    fs::create_dir_all(&work)?;
    fs::write(work.join("Cargo.toml"), MANIFEST)?;
    fs::write(work.join("lib.rs"), "")?;
    let mut cargo = cargo::cargo();
    cargo.current_dir(&work).env("RUSTC_BOOTSTRAP", "1");
    // cargo looks here for the source instead of in the compiler's sysroot.
    cargo.env("__CARGO_TESTS_ONLY_SRC_ROOT", library);
    for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"] {
        cargo.env_remove(name);
    }
    // What it depends on comes with it.
    let vendor = serde_json::to_string(&library.join("vendor").to_string_lossy())?;
    cargo.args(["--config", "source.crates-io.replace-with=\"vendor\""]);
    cargo.args(["--config", &format!("source.vendor.directory={vendor}")]);
    cargo.args(["build", "--quiet", "--release", "--offline", CRATES, "--target", target]);
    cargo.arg("--target-dir").arg(&work);
    host::output(&mut cargo)?;

    let libraries = sysroot.join("lib/rustlib").join(target).join("lib");
    fs::create_dir_all(&libraries)?;
    let deps = work.join(target).join("release/deps");
    let files = fs::read_dir(&deps).with_context(|| format!("cannot read {}", deps.display()))?;
    let mut count = 0;
    for path in files.flatten().map(|file| file.path()) {
        if let Some(name) = path.file_name()
            && path.extension().is_some_and(|ext| ext == "rlib")
        {
            fs::copy(&path, libraries.join(name))?;
            count += 1;
        }
    }
    ensure!(count > 0, "cargo has built no library for {target}");
    fs::remove_dir_all(&work)?;
    eprintln!("xtask: built it in {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::host;
    use std::fs;

    #[test]
    #[ignore = "it fetches 45 MB and computes for a minute"]
    fn a_standard_library_built_from_its_source_is_one_that_tests_compile_with() {
        let dir = host::target("sysroot").unwrap();
        let _lock = host::Lock::take(&dir.join("lock")).unwrap();
        let rustc = host::output(super::rustc().arg("-vV")).unwrap();
        let source = super::source(&String::from_utf8(rustc).unwrap(), &dir).unwrap();
        let (target, sysroot) = ("aarch64-apple-darwin", dir.join("test"));
        let _ = fs::remove_dir_all(&sysroot);
        super::build(target, &source, &dir, &sysroot).unwrap();

        let program = sysroot.join("program.rs");
        fs::write(&program, "#[test] fn t() { std::thread::spawn(|| println!(\"x\")); }").unwrap();
        let mut compile = super::rustc();
        compile.args(["--edition=2024", "--test", "--emit=metadata", "--target", target]);
        compile.arg("--sysroot").arg(&sysroot).arg("-o").arg(sysroot.join("program"));
        host::output(compile.arg(&program)).unwrap();
        fs::remove_dir_all(&sysroot).unwrap();
    }
}
