//! The kernel of the virtual machine: a package of it, unpacked, with the modules that the guest needs.

use crate::host::run;
use anyhow::{Context as _, Result, anyhow, bail};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where `./setup --test` unpacks a kernel.
const KERNEL: &str = "/var/cache/perennial-test/kernel";

/// An unpacked kernel.
#[derive(Debug)]
pub struct Kernel {
    /// What QEMU boots.
    pub image: PathBuf,
    /// Its release, such as `6.12.95+deb12-cloud-amd64`.
    pub release: String,
    modules: PathBuf,
}

/// A module as the guest loads it.
#[derive(Debug)]
pub struct Module {
    /// Its name.
    pub name: String,
    /// Its code.
    pub code: Vec<u8>,
}

impl Kernel {
    /// Finds the kernel that `./setup --test` has unpacked, or the one in the directory `PERENNIAL_GUEST_KERNEL`.
    pub fn find() -> Result<Self> {
        let home = std::env::var_os("PERENNIAL_GUEST_KERNEL").map_or_else(|| PathBuf::from(KERNEL), PathBuf::from);
        let boot = home.join("boot");
        let missing =
            || format!("no kernel for the virtual machine in {}: `./setup --test` puts it there", home.display());
        for entry in fs::read_dir(&boot).with_context(missing)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(release) = name.strip_prefix("vmlinuz-") {
                let modules = [home.join("lib/modules"), home.join("usr/lib/modules")].map(|dir| dir.join(release));
                let modules = modules.into_iter().find(|dir| dir.is_dir()).with_context(missing)?;
                return Ok(Self { image: entry.path(), release: release.to_owned(), modules });
            }
        }
        bail!(missing())
    }

    /// Returns modules and what they depend on, in the order in which they have to be loaded; what the kernel has
    /// built in is left out.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<Module>> {
        let builtin =
            fs::read_to_string(self.modules.join("modules.builtin")).context("the kernel's list of modules")?;
        let mut known: BTreeSet<String> = builtin.lines().map(|line| plain_name(Path::new(line))).collect();
        let mut files = Vec::new();
        collect(&self.modules, &mut files)?;
        let mut loaded = Vec::new();
        for name in names {
            self.add(name, &files, &mut known, &mut loaded)?;
        }
        Ok(loaded)
    }

    fn add(&self, name: &str, files: &[PathBuf], known: &mut BTreeSet<String>, to: &mut Vec<Module>) -> Result<()> {
        if !known.insert(name.to_owned()) {
            return Ok(());
        }
        let file = files.iter().find(|file| plain_name(file) == name);
        let file = file.ok_or_else(|| anyhow!("the kernel {} has no module {name}", self.release))?;
        let code = unpacked(file)?;
        for depended in depends(&code) {
            self.add(&depended, files, known, to)?;
        }
        to.push(Module { name: name.to_owned(), code });
        Ok(())
    }
}

/// The name of a module by its file, spelled as dependencies spell it.
fn plain_name(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    name.split('.').next().unwrap_or_default().replace('-', "_")
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), files)?;
        } else if entry.file_name().to_string_lossy().contains(".ko") {
            files.push(entry.path());
        }
    }
    Ok(())
}

fn unpacked(file: &Path) -> Result<Vec<u8>> {
    let program = match file.extension().and_then(|text| text.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        Some(_) | None => return Ok(fs::read(file)?),
    };
    Ok(run(Command::new(program).arg("-dc").arg(file))?.stdout)
}

/// Reads what a module says of itself: `depends=` and names between commas, ended by a NUL.
fn depends(code: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(at) = code.windows(key.len()).position(|window| window == key) else { return Vec::new() };
    let text = code.iter().skip(at + key.len()).take_while(|byte| **byte != 0).copied().collect();
    let text = String::from_utf8(text).unwrap_or_default();
    text.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}
