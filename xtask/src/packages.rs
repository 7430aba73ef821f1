//! Debian packages: unpacked into the checkout without root, or installed where nothing else will do.
//!
//! `apt-get download` needs no privilege, only package lists. Where the machine has none, or they
//! are so old that the mirror no longer has what they name, private lists are fetched below
//! `target/`, so that fetching a guest never asks for root. Installing does.

use crate::host;
use anyhow::{Context, Result, anyhow, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// apt as this process uses it: with the machine's lists, or with private ones.
pub struct Apt {
    dir: PathBuf,
    private: bool,
}

impl Apt {
    /// `dir` is where private lists go, should they be needed.
    pub fn new(dir: PathBuf) -> Result<Apt> {
        ensure!(
            host::find_tool("apt-get").is_some(),
            "this needs a Debian machine: there is no apt-get"
        );
        Ok(Apt { dir, private: false })
    }

    fn command(&self, tool: &str) -> Command {
        let mut command = Command::new(tool);
        command.env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
        command.args(["-o", "APT::Sandbox::User=root"]);
        if self.private {
            let dir = self.dir.display();
            command.args(["-o", &format!("Dir::State={dir}/state")]);
            command.args(["-o", &format!("Dir::Cache={dir}/cache")]);
            command.args(["-o", "Dir::State::status=/var/lib/dpkg/status"]);
        }
        command
    }

    /// The version of a package that would be fetched now.
    fn candidate(&self, package: &str) -> Option<String> {
        let text = host::output(self.command("apt-cache").args(["policy", package])).ok()?;
        let text = String::from_utf8_lossy(&text).into_owned();
        let line = text.lines().find_map(|line| line.trim().strip_prefix("Candidate:"))?;
        Some(line.trim().to_owned()).filter(|version| version != "(none)")
    }

    /// Fetches private lists and uses them from now on.
    fn refresh(&mut self) -> Result<()> {
        eprintln!("xtask: fetching Debian's package lists");
        for dir in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(self.dir.join(dir))?;
        }
        self.private = true;
        host::output(self.command("apt-get").args(["-q", "update"])).map(drop)
    }

    /// The first package that `meta` depends on whose name begins with `prefix`.
    pub fn resolve(&mut self, meta: &str, prefix: &str) -> Result<String> {
        if self.candidate(meta).is_none() && !self.private {
            self.refresh()?;
        }
        let text = host::output(self.command("apt-cache").args(["depends", meta]))?;
        let text = String::from_utf8_lossy(&text).into_owned();
        let depends = text.lines().filter_map(|line| line.trim().strip_prefix("Depends:"));
        depends
            .map(str::trim)
            .find(|name| name.starts_with(prefix))
            .map(str::to_owned)
            .ok_or_else(|| anyhow!("Debian's package {meta} depends on no {prefix}…"))
    }

    /// Fetches a package and unpacks it below `into`; returns its folder there, whose name holds
    /// its version. Nothing is fetched if that folder is there.
    pub fn unpack(&mut self, package: &str, into: &Path) -> Result<PathBuf> {
        match self.try_unpack(package, into) {
            Err(error) if !self.private => {
                eprintln!("xtask: {error:#}");
                self.refresh()?;
                self.try_unpack(package, into)
            }
            done => done,
        }
    }

    fn try_unpack(&self, package: &str, into: &Path) -> Result<PathBuf> {
        let version = self.candidate(package);
        let version = version.with_context(|| format!("no list names a package {package}"))?;
        let dir = into.join(format!("{package}_{}", version.replace(':', "-")));
        if dir.is_dir() {
            return Ok(dir);
        }
        eprintln!("xtask: fetching {package} {version}");
        let part = into.join(format!("{package}.part"));
        if part.exists() {
            fs::remove_dir_all(&part)?;
        }
        fs::create_dir_all(part.join("root"))?;
        let name = format!("{package}={version}");
        let mut download = self.command("apt-get");
        host::output(download.args(["-q", "download", &name]).current_dir(&part))?;
        let mut files = fs::read_dir(&part)?.flatten().map(|entry| entry.path());
        let deb = files.find(|path| path.extension().is_some_and(|ext| ext == "deb"));
        let deb = deb.with_context(|| format!("apt-get download {name} left no file"))?;
        host::output(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(part.join("root")))?;
        fs::rename(part.join("root"), &dir)?;
        fs::remove_dir_all(&part)?;
        Ok(dir)
    }
}

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

/// Where this machine's apt gets a release of Debian from, as lines for a `sources.list`.
pub fn sources(suite: &str) -> Result<String> {
    // apt's own reading of its configuration, which comes in two formats and many files.
    let uris = host::output(Command::new("apt-get").args(["update", "--print-uris"]))?;
    let lines = sources_of(&String::from_utf8_lossy(&uris), suite);
    ensure!(!lines.is_empty(), "apt on this machine has no source of Debian's {suite}");
    Ok(lines)
}

/// The release itself, its updates and security updates; what else a machine has is its own affair.
fn sources_of(uris: &str, suite: &str) -> String {
    let files = uris.lines().filter_map(|line| line.strip_prefix('\'')?.split('\'').next());
    let parts = files.filter_map(|file| file.strip_suffix("/InRelease")?.split_once("/dists/"));
    let of_suite = parts.filter(|(_, name)| {
        let rest = name.strip_prefix(suite);
        rest.is_some_and(|rest| ["", "-updates", "-security"].contains(&rest))
    });
    of_suite.map(|(mirror, name)| format!("deb {mirror} {name} main\n")).collect()
}

/// How this machine's apt reaches its mirrors: proxies and the like, as lines of its configuration.
pub fn transport() -> Result<String> {
    let all = host::output(Command::new("apt-config").arg("dump"))?;
    let all = String::from_utf8_lossy(&all);
    let wanted = ["http", "https", "Check-", "Retries"].map(|name| format!("Acquire::{name}"));
    let lines = all.lines().filter(|line| wanted.iter().any(|name| line.starts_with(name)));
    Ok(lines.map(|line| format!("{line}\n")).collect())
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_the_release_itself_is_a_source_of_it() {
        let uris = "'http://m/debian/dists/some/InRelease' m_debian_dists_some_InRelease 0 \n\
            'http://m/debian/dists/some-updates/InRelease' x 0 \n\
            'http://m/debian/dists/some-backports/InRelease' x 0 \n\
            'http://m/debian/dists/some/main/binary-amd64/Packages.xz' x 0 \n\
            'https://other/apt/dists/tool-some/InRelease' x 0 \n";
        let lines = "deb http://m/debian some main\ndeb http://m/debian some-updates main\n";
        assert_eq!(super::sources_of(uris, "some"), lines);
    }
}
