//! Debian packages: unpacked into the checkout without root, or installed where nothing else will do.
//!
//! `apt-get download` needs no privilege, only package lists. Where the machine has none, or they
//! are so old that the mirror no longer has what they name, private lists are fetched below
//! `target/`, so that fetching a guest never asks for root. Packages of another architecture or another
//! release always come by private lists: the machine's own apt is not told of those. Installing needs root.

mod install;
mod sources;

pub use install::{as_root, install};
pub use sources::{sources, sources_beside, suite, transport};

use crate::host;
use anyhow::{Context, Result, anyhow, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// apt as this process uses it: with the machine's lists, or with private ones.
pub struct Apt {
    /// Where private lists go.
    dir: PathBuf,
    /// What makes apt use those; nothing while it uses the machine's.
    options: Vec<String>,
    fetched: bool,
}

impl Apt {
    /// This machine's packages. `dir` is where private lists go, should they be needed.
    pub fn new(dir: PathBuf) -> Result<Apt> {
        ensure!(
            host::find_tool("apt-get").is_some(),
            "this needs a Debian machine: there is no apt-get"
        );
        Ok(Apt { dir, options: Vec::new(), fetched: false })
    }

    /// Packages of other sources, lines for a `sources.list`, for an architecture in Debian's spelling,
    /// with private lists of this moment.
    pub fn elsewhere(dir: PathBuf, sources: &str, architecture: &str) -> Result<Apt> {
        let mut apt = Apt::new(dir)?;
        fs::create_dir_all(&apt.dir)?;
        let list = apt.dir.join("sources.list");
        host::write_atomically(&list, sources.as_bytes())?;
        apt.options = apt.private();
        apt.options.extend([
            format!("Dir::Etc::SourceList={}", list.display()),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            format!("APT::Architecture={architecture}"),
            format!("APT::Architectures={architecture}"),
        ]);
        apt.refresh()?;
        Ok(apt)
    }

    fn private(&self) -> Vec<String> {
        let dir = self.dir.display();
        vec![
            format!("Dir::State={dir}/state"),
            format!("Dir::Cache={dir}/cache"),
            // Nothing is installed there.
            "Dir::State::status=/dev/null".to_owned(),
        ]
    }

    fn command(&self, tool: &str) -> Command {
        let mut command = Command::new(tool);
        command.env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
        command.args(["-o", "APT::Sandbox::User=root"]);
        for option in &self.options {
            command.args(["-o", option]);
        }
        command
    }

    /// The newest version of a package that can be fetched now; of `upstream`, its author's version,
    /// where only that will do.
    fn version(&self, package: &str, upstream: Option<&str>) -> Option<String> {
        if upstream.is_none() {
            let text = host::output(self.command("apt-cache").args(["policy", package])).ok()?;
            let text = String::from_utf8_lossy(&text).into_owned();
            let line = text.lines().find_map(|line| line.trim().strip_prefix("Candidate:"))?;
            return Some(line.trim().to_owned()).filter(|version| version != "(none)");
        }
        let text = host::output(self.command("apt-cache").args(["madison", package])).ok()?;
        let text = String::from_utf8_lossy(&text).into_owned();
        let mut versions = text.lines().filter_map(|line| Some(line.split('|').nth(1)?.trim()));
        versions.find(|version| upstream_version(version) == upstream).map(str::to_owned)
    }

    /// Fetches private lists and uses them from now on.
    fn refresh(&mut self) -> Result<()> {
        eprintln!("xtask: fetching Debian's package lists");
        for dir in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(self.dir.join(dir))?;
        }
        if self.options.is_empty() {
            self.options = self.private();
        }
        self.fetched = true;
        host::output(self.command("apt-get").args(["-q", "update"])).map(drop)
    }

    /// The first package that `meta` depends on whose name begins with `prefix`.
    pub fn resolve(&mut self, meta: &str, prefix: &str) -> Result<String> {
        if self.version(meta, None).is_none() && !self.fetched {
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
        self.unpack_version(package, None, into)
    }

    /// The same for a version that its author named so, where only that will do.
    pub fn unpack_version(
        &mut self,
        package: &str,
        upstream: Option<&str>,
        into: &Path,
    ) -> Result<PathBuf> {
        match self.try_unpack(package, upstream, into) {
            Err(error) if !self.fetched => {
                eprintln!("xtask: {error:#}");
                self.refresh()?;
                self.try_unpack(package, upstream, into)
            }
            done => done,
        }
    }

    fn try_unpack(&self, package: &str, upstream: Option<&str>, into: &Path) -> Result<PathBuf> {
        let version = self.version(package, upstream);
        let wanted = upstream.map(|version| format!(" {version}")).unwrap_or_default();
        let version = version.with_context(|| format!("no list names a {package}{wanted}"))?;
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

/// What the author called the version that Debian calls so: `2:1.95.0+dfsg1-2~bpo13+1` is 1.95.0.
fn upstream_version(version: &str) -> Option<&str> {
    let version = version.split_once(':').map_or(version, |(_, version)| version);
    version.split(['+', '-', '~']).next()
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_debian_adds_to_a_version_is_not_its_authors() {
        let upstream = super::upstream_version;
        assert_eq!(upstream("1.95.0+dfsg1-2~bpo13+1"), Some("1.95.0"));
        assert_eq!(upstream("1:7.2-1"), Some("7.2"));
        assert_eq!(upstream("5"), Some("5"));
    }
}
