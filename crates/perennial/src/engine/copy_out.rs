//! Copies a file or a tree out of a generation, as `cp` does: whole or not at all.

use super::{Engine, random};
use crate::failure::{Code, Failure, Result};
use perennial_core::id::{ContainerName, RunId, Seq};
use perennial_store::tree::copy_out::copy_out;
use perennial_store::tree::{self, Measure, TreeError};
use rustix::io::Errno;
use std::ffi::OsString;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

/// What was copied.
#[derive(Debug, Clone)]
pub struct Copied {
    /// Where it is now.
    pub target: PathBuf,
    /// How much it is.
    pub measure: Measure,
}

impl Engine {
    /// Copies `path` of a generation to `target`: into it where it is a directory, else under its name. A file is
    /// replaced at once when the copy is complete; a directory is replaced only while it is empty.
    ///
    /// # Errors
    /// Where the path does not exist, or the target cannot be written; the target is then as it was.
    pub fn copy_out(&self, name: &ContainerName, seq: Seq, path: &str, target: &Path) -> Result<Copied> {
        let view = self.open_shown(self.hold_layers(name, seq)?)?;
        let source = Path::new(path);
        let target = final_name(source, target, name)?;
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            Some(_) | None => Path::new("."),
        };
        if !parent.is_dir() {
            let message = format!("{} is not a directory", parent.display());
            return Err(Failure::new(Code::NotFound, message).hint("make it first, or name another target"));
        }
        refuse_full(&target)?;
        let partial = parent.join(format!(".perennial-{}", RunId::from_random(random()?)));
        let measure = copy_out(view.root.as_fd(), source, &partial).map_err(|error| missing(error, name, seq, path))?;
        if let Err(error) = std::fs::rename(&partial, &target) {
            tree::remove_tree(&partial)?;
            let message = format!("cannot replace {}", target.display());
            return Err(Failure::from(error).while_doing(message));
        }
        Ok(Copied { target, measure })
    }
}

/// Where the copy goes: an existing directory gets it inside, under its own name.
fn final_name(source: &Path, target: &Path, name: &ContainerName) -> Result<PathBuf> {
    if !target.is_dir() {
        // A trailing slash or `..` names a directory, and there is none.
        let is_named = target.file_name().is_some() && !target.as_os_str().as_encoded_bytes().ends_with(b"/");
        return if is_named {
            Ok(target.to_path_buf())
        } else {
            Err(Failure::new(Code::NotFound, format!("{} does not exist", target.display())).hint("make it first"))
        };
    }
    let last = source.file_name().map_or_else(|| OsString::from(name.as_str()), OsString::from);
    Ok(target.join(last))
}

fn refuse_full(target: &Path) -> Result<()> {
    let is_full = target.symlink_metadata().is_ok_and(|metadata| metadata.is_dir())
        && std::fs::read_dir(target)?.next().is_some();
    if is_full {
        let message = format!("{} is a directory that is not empty", target.display());
        return Err(Failure::new(Code::Conflict, message).hint("remove it first, or name another target"));
    }
    Ok(())
}

fn missing(error: TreeError, name: &ContainerName, seq: Seq, path: &str) -> Failure {
    match error.errno() {
        Some(Errno::NOENT | Errno::NOTDIR) => {
            Failure::new(Code::NotFound, format!("there is no {path} in {name}@{seq}"))
                .hint(format!("`perennial browse {name}@{seq} DIR` shows what there is"))
        }
        Some(_) | None => error.into(),
    }
}
