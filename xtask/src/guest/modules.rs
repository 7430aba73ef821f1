//! A kernel package's modules, and the order to load some of them in.
//!
//! The packages carry no `modules.dep` (depmod makes it when they are installed), so dependencies
//! are read from the modules themselves. Debian's newer kernels have them packed with xz.

use super::elf;
use super::vmlinux::filter;
use anyhow::{Context, Result};
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

/// All modules of one kernel.
pub struct Tree {
    root: PathBuf,
    by_name: BTreeMap<String, PathBuf>,
}

/// A module, unpacked, and its direct dependencies; the paths are relative to the tree's root.
pub struct Module {
    pub path: PathBuf,
    pub depends: Vec<PathBuf>,
    pub bytes: Vec<u8>,
}

impl Tree {
    /// `root` is the folder `lib/modules/RELEASE`.
    pub fn new(root: &Path) -> Result<Tree> {
        let mut by_name = BTreeMap::new();
        let mut todo = vec![root.join("kernel")];
        while let Some(dir) = todo.pop() {
            let list = fs::read_dir(&dir);
            for entry in list.with_context(|| format!("cannot read {}", dir.display()))? {
                let entry = entry?;
                let path = entry.path();
                if entry.file_type()?.is_dir() {
                    todo.push(path);
                } else if let Some(name) = module_name(&path) {
                    by_name.insert(plain(name), path);
                }
            }
        }
        Ok(Tree { root: root.to_path_buf(), by_name })
    }

    /// The modules named and all they depend on, each after its dependencies. Names that are no
    /// modules of this kernel are left out: one flavour builds in what the other has as a module.
    pub fn closure(&self, names: &[&str]) -> Result<Vec<Module>> {
        let mut order = Vec::new();
        let mut seen = HashSet::new();
        for name in names {
            self.visit(&plain(name), &mut seen, &mut order)?;
        }
        Ok(order)
    }

    fn visit(
        &self,
        name: &str,
        seen: &mut HashSet<String>,
        order: &mut Vec<Module>,
    ) -> Result<Option<PathBuf>> {
        let Some(file) = self.by_name.get(name) else { return Ok(None) };
        let mut path = file.strip_prefix(&self.root)?.to_path_buf();
        if path.extension().is_some_and(|ext| ext == "xz") {
            path.set_extension("");
        }
        if seen.insert(name.to_owned()) {
            let bytes = unpacked(file)?;
            let names = elf::module_depends(&bytes)
                .with_context(|| format!("cannot understand the module {}", file.display()))?;
            let mut depends = Vec::new();
            for dependency in names {
                depends.extend(self.visit(&plain(&dependency), seen, order)?);
            }
            order.push(Module { path: path.clone(), depends, bytes });
        }
        Ok(Some(path))
    }
}

/// The name of a module's file without what says that it is one.
fn module_name(path: &Path) -> Option<&str> {
    let name = path.file_name()?.to_str()?;
    name.strip_suffix(".xz").unwrap_or(name).strip_suffix(".ko")
}

fn unpacked(path: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    if bytes.starts_with(b"\xfd7zXZ") { filter(&["xz", "-dc"], &bytes) } else { Ok(bytes) }
}

/// Module names in the spelling the kernel uses.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}
