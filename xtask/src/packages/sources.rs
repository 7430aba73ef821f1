//! Where packages come from: this machine's release of Debian, and the mirrors it is told to use.

use crate::host;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::process::Command;

/// Debian's name for this machine's release.
pub fn suite() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let name = name.context("/etc/os-release names no release (VERSION_CODENAME)")?;
    Ok(name.trim_matches('"').to_owned())
}

/// Where this machine's apt gets a release of Debian from, as lines for a `sources.list`.
pub fn sources(suite: &str) -> Result<String> {
    // apt's own reading of its configuration, which comes in two formats and many files.
    let uris = host::output(Command::new("apt-get").args(["update", "--print-uris"]))?;
    let lines = sources_of(&String::from_utf8_lossy(&uris), suite);
    ensure!(!lines.is_empty(), "apt on this machine has no source of Debian's {suite}");
    Ok(lines)
}

/// Another suite of Debian's, from the mirror that this machine's release comes from.
pub fn sources_beside(suite: &str, other: &str) -> Result<String> {
    let lines = sources(suite)?;
    let mirror = mirror(&lines, suite);
    let mirror = mirror.with_context(|| format!("there is no mirror of Debian's {suite}"))?;
    Ok(format!("deb {mirror} {other} main\n"))
}

fn mirror<'a>(lines: &'a str, suite: &str) -> Option<&'a str> {
    let rest = format!(" {suite} main");
    lines.lines().find_map(|line| line.strip_prefix("deb ")?.strip_suffix(&rest))
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
    const URIS: &str = "'http://m/debian/dists/some/InRelease' m_debian_dists_some_InRelease 0 \n\
        'http://m/debian/dists/some-updates/InRelease' x 0 \n\
        'http://m/debian/dists/some-backports/InRelease' x 0 \n\
        'http://m/debian/dists/some/main/binary-amd64/Packages.xz' x 0 \n\
        'https://other/apt/dists/tool-some/InRelease' x 0 \n";

    #[test]
    fn only_the_release_itself_is_a_source_of_it() {
        let lines = "deb http://m/debian some main\ndeb http://m/debian some-updates main\n";
        assert_eq!(super::sources_of(URIS, "some"), lines);
    }

    #[test]
    fn a_release_comes_from_one_mirror() {
        let lines = "deb http://s/security some-security main\ndeb http://m/debian some main\n";
        assert_eq!(super::mirror(lines, "some"), Some("http://m/debian"));
        assert_eq!(super::mirror(lines, "other"), None);
    }
}
