//! Sealed layers on the kernel that `./setup --test` unpacks, the oldest one on which layers are sealed: a container made
//! on this host starts over them in a virtual machine, and every other way to them works there too.

use anyhow::{Context as _, Result, ensure};
use perennial_testkit::cli::Perennial;
use perennial_testkit::guest::{Boot, Machine};
use perennial_testkit::host::need_root;
use perennial_testkit::image;
use perennial_testkit::loopfs::{FsKind, LoopFs};
use serde_json::Value;
use std::fs::{self, File};
use std::path::Path;

const DISK_BYTES: u64 = 128 << 20;
/// Behind the file system.
const MARK: u64 = DISK_BYTES / 512 + 8;

/// What the machine does; what it finds it writes to the disk.
const SCRIPT: &str = "
export PERENNIAL_ROOT=/data/root
p() { name=$1; shift; step 1 sh -c \"perennial $* >/data/found/$name\"; }
mkdir /data/found /data/view
p doctor doctor
p before generations c --json
p started start c -- sh -c \"'cat /big | wc -c; cat /moved/small; echo third >/state'\"
p sealed seal
p after generations c --json
p again start c -- cat /state
p browsed browse c@1 /data/view
step 2 sh -c 'cat /data/view/state >/data/found/viewed'
p unmounted browse --unmount /data/view
p differs diff c@1 2
p copied cp c@1:/state /data/found/copy
p quiet gc
step 3 sh -c 'cat /proc/mounts >/data/found/mounts'
p verified verify --full
";

/// A disk with two generations that are sealed, the second with a moved directory and changed metadata.
fn prepare(disk: &Path) -> Result<()> {
    File::create(disk)?.set_len(DISK_BYTES)?;
    FsKind::Ext4.make(disk)?;
    File::options().write(true).open(disk)?.set_len(DISK_BYTES + (1 << 20))?;
    let mounted = LoopFs::of(disk)?;
    let rootfs = mounted.path().join("rootfs");
    fs::create_dir(&rootfs)?;
    image::busybox_rootfs(&rootfs)?;
    let perennial = Perennial::at(env!("CARGO_BIN_EXE_perennial"), mounted.path().join("root"));
    perennial.ok(&["image", "import", &format!("rootfs:{}", rootfs.display()), "box"])?;
    perennial.ok(&["create", "c", "--image", "box", "--seal", "never"])?;
    let first = "seq 100000 >/big; mkdir /d; echo small >/d/small; echo first >/state";
    perennial.ok(&["start", "c", "--", "sh", "-c", first])?;
    perennial.ok(&["seal"])?;
    perennial.ok(&["seal", "--image", "box"])?;
    perennial.ok(&["start", "c", "--", "sh", "-c", "mv /d /moved; chmod 600 /big; echo second >/state"])?;
    perennial.ok(&["seal"])?;
    perennial.assert_no_leaks(&[])?;
    mounted.unmount()
}

/// Returns how `doctor` calls the way in which a kernel of this release takes sealed layers.
fn way(release: &str) -> Result<&'static str> {
    let mut numbers = release.split(['.', '-', '+']).map(str::parse::<u32>);
    let mut number = || numbers.next().context("a release has two numbers")?.context("a number");
    Ok(if (number()?, number()?) < (6, 15) { "yes, attached for each mount" } else { "yes, by descriptor" })
}

#[test]
fn sealed_generations_are_used_on_the_oldest_kernel_that_can() -> Result<()> {
    need_root()?;
    let dir = tempfile::tempdir()?;
    let disk = dir.path().join("disk");
    prepare(&disk).context("cannot prepare the disk")?;
    let (perennial, runc) = (Path::new(env!("CARGO_BIN_EXE_perennial")), Path::new("/usr/sbin/runc"));
    let machine = Machine::new(&[(perennial, "/usr/bin/perennial"), (runc, "/usr/bin/runc")])?;
    let boot = Boot { disk: &disk, fs: FsKind::Ext4, log: None, mark: MARK, script: SCRIPT, files: &[] };
    machine.boot(&boot)?.wait_for_end()?;

    let mounted = LoopFs::of(&disk)?;
    let found = |name: &str| {
        fs::read_to_string(mounted.path().join("found").join(name)).with_context(|| format!("what was found: {name}"))
    };
    let doctor = found("doctor")?;
    let line = format!("sealed layers: {}", way(&machine.kernel.release)?);
    ensure!(doctor.contains(&line), "the doctor does not say {line:?}:\n{doctor}");
    let sealed = |name: &str, count: usize| -> Result<()> {
        let listed: Value = serde_json::from_str(&found(name)?)?;
        let generations = listed.get("generations").and_then(Value::as_array).context("a list")?;
        let sealed = generations.iter().filter(|generation| generation.get("sealed") == Some(&Value::Bool(true)));
        ensure!(generations.len() == count && sealed.count() == count, "{name}: {listed:#}");
        Ok(())
    };
    sealed("before", 2)?;
    sealed("after", 3)?;
    let big: usize = (1..=100_000).map(|number: u32| number.to_string().len() + 1).sum();
    ensure!(found("started")? == format!("{big}\nsmall\n"), "{}", found("started")?);
    ensure!(found("again")? == "third\n", "{}", found("again")?);
    ensure!(found("viewed")? == "first\n", "{}", found("viewed")?);
    ensure!(found("copy")? == "first\n", "{}", found("copy")?);
    ensure!(found("differs")?.contains("/moved"), "{}", found("differs")?);
    let mounts = found("mounts")?;
    let left = mounts.lines().filter(|line| line.contains("erofs") || line.contains("overlay")).count();
    ensure!(left == 0, "mounts are left:\n{mounts}");
    Ok(())
}
