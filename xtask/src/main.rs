//! The project's chores: `cargo xtask VERB`.
//!
//! Everything a checkout needs beyond cargo itself is fetched, built and run from here, so that a
//! fresh Debian machine with a Rust toolchain needs no other set-up. Each verb is a module, and the
//! table below is all the dispatch there is.
//!
//! The same executable is also the first process of the lab's machine (see [`lab`]): it recognises
//! that by being process 1.

mod bench;
mod boot;
mod cargo;
mod cross;
mod fuzz;
mod guest;
mod host;
mod lab;
mod macos;
mod packages;
mod sysroot;
mod test;

use std::process::ExitCode;

/// What a verb returns: the exit status to leave with.
type Verb = fn(lexopt::Parser) -> anyhow::Result<u8>;

const VERBS: &[(&str, &str, Verb)] = &[
    ("guest", "fetch stock Debian kernels and build initrds for them", guest::main),
    ("boot", "boot such a kernel to a shell on this terminal", boot::main),
    ("lab", "run a command in a Linux machine that has a working /dev/kvm", lab::main),
    ("build-arm64", "build programs for arm64 Linux, for the arm64 lab", cross::main),
    ("check-macos", "lint everything that a Mac compiles", macos::main),
    ("test", "run the tests", test::main),
    ("bench", "run the benches, on this machine and in the lab", bench::main),
    ("fuzz", "run the fuzz targets for a while", fuzz::main),
];

fn usage() -> String {
    let mut text = String::from("usage: cargo xtask VERB [--help] …\n\n");
    for (name, what, _) in VERBS {
        text += &format!("  {name:<11} {what}\n");
    }
    text
}

fn main() -> ExitCode {
    #[cfg(target_os = "linux")]
    // The kernel hands its first process whatever words of its command line it has no use for.
    if std::process::id() == 1 && std::env::args_os().next().is_some_and(|name| name == "/init") {
        lab::init();
    }
    let mut args = lexopt::Parser::from_env();
    let verb = match args.next() {
        Ok(Some(lexopt::Arg::Value(verb))) => verb,
        Ok(Some(lexopt::Arg::Long("help") | lexopt::Arg::Short('h'))) => {
            print!("{}", usage());
            return ExitCode::SUCCESS;
        }
        _ => {
            eprint!("{}", usage());
            return ExitCode::from(2);
        }
    };
    let Some((_, _, run)) = VERBS.iter().find(|(name, _, _)| verb == *name) else {
        eprint!("xtask: no verb {verb:?}\n{}", usage());
        return ExitCode::from(2);
    };
    match run(args) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("xtask {}: {error:#}", verb.display());
            ExitCode::from(host::FAILED)
        }
    }
}
