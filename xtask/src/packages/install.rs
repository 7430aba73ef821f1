//! Packages installed on this machine, for tools that many programs look for in their usual places.

use crate::host;
use anyhow::{Context, Result, ensure};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Makes sure that a tool is there, installing the package that has it if it is not.
pub fn install(tool: &str, package: &str) -> Result<PathBuf> {
    if let Some(path) = host::find_tool(tool) {
        return Ok(path);
    }
    ensure!(
        host::find_tool("apt-get").is_some(),
        "{tool} is not installed, and there is no apt-get to install it with"
    );
    as_root("env")
        .with_context(|| format!("{tool} is not installed; as root: apt-get install {package}"))?;
    eprintln!("xtask: {tool} is not installed: installing Debian's package {package}");
    let apt = |args: &[&str]| {
        let mut command = as_root("env")?;
        command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y"]);
        host::output(command.args(args).stdin(Stdio::null()))
    };
    let install = ["install", "--no-install-recommends", package];
    if apt(&install).is_err() {
        // No lists, or lists so old that the mirror no longer has what they name.
        apt(&["update"])?;
        apt(&install)?;
    }
    host::find_tool(tool).with_context(|| format!("package {package} has no {tool}"))
}

/// A command that runs with root's privileges.
pub fn as_root(program: &str) -> Result<Command> {
    if rustix::process::geteuid().is_root() {
        return Ok(Command::new(program));
    }
    let sudo = host::find_tool("sudo");
    let mut command = Command::new(sudo.context("this needs root, and there is no sudo")?);
    command.arg(program);
    Ok(command)
}
