//! What sealing a first layer costs, and its bound: a walk of the tree and BLAKE3 of its bytes.
//!
//! - `seal_cost make ROOT FILES BYTES`: a layer of so many files, of so many bytes together, in directories of a hundred;
//! - `seal_cost bound ROOT`: walks it and hashes each file, with as many threads as there are processors;
//! - `seal_cost seal ROOT`: seals it from nothing; nothing of an earlier seal is left.
//!
//! The last two print a line of JSON: seconds on the clock and of processors, and the most memory held.
#![expect(clippy::print_stdout, reason = "a measurement talks to the person who started it")]
#![expect(clippy::disallowed_methods, reason = "a measurement reads the clock, and writes files that need not survive")]

use anyhow::{Context as _, bail};
use perennial_core::id::LayerId;
use perennial_store::objects::Objects;
use perennial_store::root::{Root, Secret};
use perennial_store::sealed::{self, Outcome, Request};
use perennial_store::tree;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc::sync_channel;
use std::time::Instant;

/// Files in a directory.
const IN_DIRECTORY: u64 = 100;
/// Ticks of the processor time that the kernel tells in a second.
const TICKS: f64 = 100.0;

fn main() -> anyhow::Result<()> {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let number = |at: usize| -> anyhow::Result<u64> {
        let word = words.get(at).and_then(|word| word.to_str()).context("give FILES and BYTES")?;
        word.parse().with_context(|| format!("{word} is no number"))
    };
    let place = PathBuf::from(words.get(1).context("give what to do, and ROOT")?);
    let now = "2026-01-01T00:00:00Z".parse().context("a time is RFC 3339")?;
    let root = Root::open_or_create(&place, now, Secret::from_random([7; 16]))?;
    let layer = LayerId::from_random([1; 8]);
    match words.first().and_then(|word| word.to_str()) {
        Some("make") => make(&root.layer_tree(&layer), number(2)?, number(3)?),
        Some("bound") => measured(|| bound(&root.layer_tree(&layer))),
        Some("seal") => {
            forget(&root, &layer)?;
            measured(|| seal(&root, &layer))
        }
        _ => bail!("give make, bound or seal"),
    }
}

fn make(tree: &Path, files: u64, bytes: u64) -> anyhow::Result<()> {
    let each = usize::try_from(bytes.checked_div(files).unwrap_or(0))?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for number in 0..files {
        let dir = tree.join(format!("d{:06}", number / IN_DIRECTORY));
        if number % IN_DIRECTORY == 0 {
            std::fs::create_dir_all(&dir)?;
        }
        let mut content = Vec::with_capacity(each);
        // From half of the average to half as much again, and no two alike.
        let length = if each == 0 { 0 } else { each / 2 + usize::try_from(number * 7919)? % each };
        while content.len() < length {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(number | 1);
            content.extend_from_slice(&state.to_le_bytes());
        }
        content.truncate(length);
        std::fs::write(dir.join(format!("f{number}")), content)?;
    }
    Ok(rustix::fs::syncfs(File::open(tree)?)?)
}

/// What a bound may not do without: names, metadata, and the bytes of each file once.
fn bound(tree: &Path) -> anyhow::Result<()> {
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let (jobs, inbox) = sync_channel::<PathBuf>(128);
    let inbox = Mutex::new(inbox);
    std::thread::scope(|scope| {
        let work = || -> anyhow::Result<()> {
            let mut buffer = vec![0; 256 * 1024];
            while let Ok(path) = inbox.lock().map_err(|_| anyhow::anyhow!("a worker panicked"))?.recv() {
                let (mut file, mut hasher) = (File::open(path)?, blake3::Hasher::new());
                loop {
                    match file.read(&mut buffer)? {
                        0 => break,
                        length => hasher.update(buffer.get(..length).unwrap_or_default()),
                    };
                }
                std::hint::black_box(hasher.finalize());
            }
            Ok(())
        };
        let handles: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let mut open = vec![tree.to_path_buf()];
        while let Some(directory) = open.pop() {
            for entry in std::fs::read_dir(&directory)? {
                let entry = entry?;
                let metadata = entry.metadata()?;
                if metadata.is_dir() {
                    open.push(entry.path());
                } else if metadata.len() > 0 {
                    jobs.send(entry.path())?;
                }
            }
        }
        drop(jobs);
        handles.into_iter().try_for_each(|handle| handle.join().map_err(|_| anyhow::anyhow!("a worker panicked"))?)
    })
}

/// Takes away what an earlier seal has made.
fn forget(root: &Root, layer: &LayerId) -> anyhow::Result<()> {
    for name in ["manifest", "meta.erofs"] {
        match std::fs::remove_file(root.layer_dir(layer).join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            Ok(()) | Err(_) => {}
        }
    }
    if let Ok(entries) = std::fs::read_dir(root.objects_dir()) {
        for entry in entries {
            std::fs::remove_dir_all(entry?.path())?;
        }
    }
    Ok(rustix::fs::syncfs(File::open(root.path())?)?)
}

fn seal(root: &Root, layer: &LayerId) -> anyhow::Result<()> {
    let (objects, tree) = (Objects::open(root)?, tree::open_tree(&root.layer_tree(layer))?);
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let request = Request { root, objects: &objects, layer, tree: tree.as_fd(), below: &[], workers };
    match sealed::seal(&request, &mut || false)? {
        Outcome::Sealed(_) => Ok(()),
        Outcome::GaveWay => bail!("sealing gave way to nobody"),
    }
}

fn measured(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let begin = Instant::now();
    work()?;
    let seconds = begin.elapsed().as_secs_f64();
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The second field is a name in brackets, which may hold anything; user and system time are the 14th and 15th.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(f64::NAN);
    let cpu = (ticks(11) + ticks(12)) / TICKS;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("there is no VmHWM")?;
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse().context("VmHWM is a number")?;
    println!("{{\"seconds\": {seconds:.3}, \"cpu_seconds\": {cpu:.2}, \"peak_kib\": {kib}}}");
    Ok(())
}
