//! The two things wanted from ELF files: what a kernel module depends on, and what libraries a
//! program loads.

use anyhow::{Context, Result, bail};
use object::read::elf::{Dyn, ElfFile64, FileHeader, SectionHeader};
use object::{Object, ObjectSection, elf};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Reads a module's `.modinfo` section: the names in its `depends=` entry.
pub fn module_depends(module: &[u8]) -> Result<Vec<String>> {
    let file = ElfFile64::<object::Endianness>::parse(module)?;
    let section = file.section_by_name(".modinfo").context("it has no .modinfo")?;
    let entries = section.data()?.split(|&byte| byte == 0);
    let depends = entries.filter_map(|entry| entry.strip_prefix(b"depends="));
    let names = depends.flat_map(|list| list.split(|&byte| byte == b','));
    let names = names.filter(|name| !name.is_empty());
    Ok(names.map(|name| String::from_utf8_lossy(name).into_owned()).collect())
}

/// The shared libraries a program of this machine loads, and its loader, at the paths where the
/// program will look for them.
pub fn needed_libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let mut found = BTreeSet::new();
    let mut todo = vec![program.to_path_buf()];
    while let Some(path) = todo.pop() {
        let (names, interpreter) =
            direct_needs(&path).with_context(|| format!("cannot understand {}", path.display()))?;
        let names = names.iter().map(|name| library(name));
        for path in names.chain(interpreter.map(|path| Ok(PathBuf::from(path)))) {
            let path = path?;
            if found.insert(path.clone()) {
                todo.push(path);
            }
        }
    }
    Ok(found.into_iter().collect())
}

/// Does a program run without a loader and without libraries?
pub fn is_static(program: &Path) -> Result<bool> {
    let (names, interpreter) = direct_needs(program)
        .with_context(|| format!("cannot understand {}", program.display()))?;
    Ok(names.is_empty() && interpreter.is_none())
}

fn direct_needs(path: &Path) -> Result<(Vec<String>, Option<String>)> {
    let bytes = fs::read(path)?;
    let header = elf::FileHeader64::<object::Endianness>::parse(&*bytes)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, &*bytes)?;
    let mut names = Vec::new();
    if let Some((entries, link)) = sections.dynamic(endian, &*bytes)? {
        let strings = sections.strings(endian, &*bytes, link)?;
        for entry in entries.iter().filter(|entry| entry.tag(endian) == elf::DT_NEEDED) {
            names.push(String::from_utf8_lossy(entry.string(endian, strings)?).into_owned());
        }
    }
    let mut interpreter = None;
    if let Some((_, section)) = sections.section_by_name(endian, b".interp") {
        let text = section.data(endian, &*bytes)?.split(|&byte| byte == 0).next();
        interpreter = text.map(|text| String::from_utf8_lossy(text).into_owned());
    }
    Ok((names, interpreter))
}

/// Where the loader finds a library, on a Debian machine without special settings.
fn library(name: &str) -> Result<PathBuf> {
    let arch = std::env::consts::ARCH;
    let dirs = [format!("/lib/{arch}-linux-gnu"), format!("/usr/lib/{arch}-linux-gnu")];
    let dirs = dirs.iter().map(String::as_str).chain(["/lib64", "/usr/lib64", "/lib", "/usr/lib"]);
    let mut paths = dirs.map(|dir| Path::new(dir).join(name));
    match paths.find(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => bail!("there is no library {name}"),
    }
}
