//! A cpio archive in the kernel's `newc` format, made in memory.

use anyhow::{Context, Result};
use cpio::newc::{self, ModeFileType};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// An archive under construction. Folders are made as they are needed; a name given twice stays as
/// it was given first.
pub struct Archive {
    bytes: Vec<u8>,
    seen: BTreeSet<String>,
}

impl Archive {
    pub fn new() -> Archive {
        Archive { bytes: Vec::new(), seen: BTreeSet::new() }
    }

    fn add(
        &mut self,
        name: &str,
        kind: ModeFileType,
        mode: u32,
        device: (u32, u32),
        content: &[u8],
    ) -> Result<()> {
        let name = name.trim_matches('/');
        if let Some((parent, _)) = name.rsplit_once('/') {
            self.directory(parent)?;
        }
        if !self.seen.insert(name.to_owned()) {
            return Ok(());
        }
        let entry = newc::Builder::new(name)
            .ino(u32::try_from(self.seen.len())?)
            .mode(mode)
            .set_mode_file_type(kind)
            .rdev_major(device.0)
            .rdev_minor(device.1);
        let mut writer = entry.write(&mut self.bytes, u32::try_from(content.len())?);
        std::io::Write::write_all(&mut writer, content)?;
        writer.finish()?;
        Ok(())
    }

    pub fn directory(&mut self, name: &str) -> Result<()> {
        self.add(name, ModeFileType::Directory, 0o755, (0, 0), &[])
    }

    pub fn file(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.add(name, ModeFileType::Regular, mode, (0, 0), content)
    }

    /// Adds a file with the content of one of this machine's.
    pub fn copy(&mut self, name: &str, mode: u32, from: &Path) -> Result<()> {
        let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.file(name, mode, &content)
    }

    pub fn symlink(&mut self, name: &str, to: &str) -> Result<()> {
        self.add(name, ModeFileType::Symlink, 0o777, (0, 0), to.as_bytes())
    }

    pub fn character_device(&mut self, name: &str, major: u32, minor: u32) -> Result<()> {
        self.add(name, ModeFileType::Char, 0o600, (major, minor), &[])
    }

    /// The archive's bytes, a multiple of 512 so that another archive may follow.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        newc::trailer(&mut self.bytes)?;
        let length = self.bytes.len().next_multiple_of(512);
        self.bytes.resize(length, 0);
        Ok(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::Archive;

    #[test]
    fn folders_come_before_what_is_in_them_and_only_once() {
        let mut archive = Archive::new();
        archive.file("/a/b/c", 0o644, b"x").unwrap();
        archive.file("a/b/d", 0o755, b"yz").unwrap();
        archive.symlink("a/b/c", "/dev/null").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 512, 0);
        let mut names = Vec::new();
        let mut rest = &bytes[..];
        loop {
            let entry = cpio::newc::Reader::new(rest).unwrap();
            if entry.entry().is_trailer() {
                break;
            }
            names.push((entry.entry().name().to_owned(), entry.entry().mode()));
            rest = entry.finish().unwrap();
        }
        let expected =
            [("a", 0o040755), ("a/b", 0o040755), ("a/b/c", 0o100644), ("a/b/d", 0o100755)];
        assert_eq!(names, expected.map(|(name, mode)| (name.to_owned(), mode)));
    }
}
