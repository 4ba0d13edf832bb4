//! Acts inside a container what tests compare from outside: the trap stages and random scripts.
//!
//! ```text
//! trap-actor cases                     names the cases and what they need, as JSON
//! trap-actor stage N [ROOT] [--hold]   performs a stage of every trap case below ROOT (else /), reports as JSON
//! trap-actor stage-of-plain N [ROOT]   the same without the cases about inode flags
//! trap-actor script JSON [ROOT]        applies a stage of a random script below ROOT (else /model), reports as JSON
//! trap-actor listing [DIR]             prints a complete listing of DIR (else /), as JSON
//! trap-actor churn FILE                lets FILE grow and shrink until it is killed
//! trap-actor hold                      does nothing until it is killed
//! ```
//!
//! `--hold` waits to be killed after the work, so that a test can look at the tree of the running container.

use anyhow::{Context as _, Result, anyhow, bail};
use perennial_testkit::host::pause;
use perennial_testkit::model::{self, Stage};
use perennial_testkit::traps::{self, CASES};
use perennial_testkit::tree::TreeListing;
use serde::Serialize;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).filter(|arg| *arg != "--hold").collect();
    match words.as_slice() {
        ["cases"] => CASES.iter().try_for_each(|case| {
            let needs: Vec<&str> = case.needs.iter().map(|need| need.capability()).collect();
            print(&(case.name, needs))
        }),
        ["stage", stage, rest @ ..] => {
            let stage = stage.parse().with_context(|| format!("stage {stage}"))?;
            traps::mutate(root(rest, "/")?, stage)?.iter().try_for_each(print)
        }
        ["stage-of-plain", stage, rest @ ..] => {
            let stage = stage.parse().with_context(|| format!("stage {stage}"))?;
            let is_plain = |case: &traps::Case| !traps::FLAGGED.contains(&case.name);
            traps::perform(root(rest, "/")?, stage, &is_plain)?.iter().try_for_each(print)
        }
        ["script", json, rest @ ..] => {
            let stage: Stage = serde_json::from_str(json).context("script")?;
            print(&model::apply(root(rest, "/model")?, &stage)?)
        }
        ["listing", rest @ ..] => print(&TreeListing::of(root(rest, "/")?)?),
        ["churn", file] => churn(file.as_ref()),
        ["hold"] => hold(),
        _ => bail!("unknown command {words:?}; see the head of trap-actor.rs"),
    }?;
    if words.len() < args.len() { hold() } else { Ok(()) }
}

fn root<'a>(words: &[&'a str], default: &'static str) -> Result<&'a Path> {
    match words {
        [] => Ok(Path::new(default)),
        [root] => Ok(Path::new(*root)),
        _ => Err(anyhow!("more than one root: {words:?}")),
    }
}

fn print(value: &impl Serialize) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(&serde_json::to_vec(value)?)?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

fn hold() -> Result<()> {
    loop {
        pause(Duration::from_secs(3600));
    }
}

/// Every size it has is a multiple of 4,096 and every block holds the same byte, so that a torn copy shows.
fn churn(path: &Path) -> Result<()> {
    let file = std::fs::File::create(path)?;
    for round in 0_u64.. {
        let length = usize::try_from(round * 7919 % 4096)? * 4096;
        rustix::io::pwrite(&file, &vec![b'c'; length], 0)?;
        file.set_len(u64::try_from(length)?)?;
    }
    Ok(())
}
