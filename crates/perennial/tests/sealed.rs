//! Sealed layers through the command: what comes back from them, what they share, what frees them, and that nothing
//! waits for them.

mod stage;

use anyhow::{Context as _, Result, ensure};
use perennial_testkit::host::wait_until;
use perennial_testkit::loopfs::{FsKind, LoopFs};
use perennial_testkit::tree::{TreeListing, ensure_equal};
use serde_json::Value;
use stage::{IDLE, SOON, Stage, names, texts, write};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A content that is an object and not kept in the metadata.
const BIG_BYTES: usize = 4 << 20;
/// The most that a change of metadata may take on disk.
const SMALL_BYTES: u64 = 256 << 10;

/// Whether each own layer of a generation is sealed, newest first.
fn forms(stage: &Stage, name: &str, seq: u64) -> Result<Vec<bool>> {
    let generation = stage.generation(name, seq)?;
    let list = generation.get("sealed_layers").and_then(Value::as_array).cloned().unwrap_or_default();
    Ok(list.iter().filter_map(Value::as_bool).collect())
}

/// Ends a run and waits until the work after its exit is done: then its layer is sealed.
fn leave(stage: &Stage, name: &str) -> Result<()> {
    stage.ok(&["stop", name])?;
    stage.quiet()
}

fn bytes_of(stage: &Stage, name: &str, seq: u64) -> Result<u64> {
    stage.generation(name, seq)?.get("bytes").and_then(Value::as_u64).context("bytes")
}

/// Returns the paths of all objects.
fn objects(stage: &Stage) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let secrets = stage.root().join("objects");
    for secret in names(&secrets)? {
        for prefix in names(&secrets.join(&secret))? {
            let directory = secrets.join(&secret).join(prefix);
            found.extend(names(&directory)?.into_iter().map(|name| directory.join(name)));
        }
    }
    Ok(found)
}

/// Writes a file of a root file system, with the directories it lies in.
fn put(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> Result<()> {
    fs::create_dir_all(path.as_ref().parent().context("a directory")?)?;
    write(path, bytes)
}

/// A stage whose image has a big file and a directory with another one.
fn with_big_image() -> Result<Stage> {
    let stage = Stage::empty()?;
    let rootfs = stage.rootfs("rootfs")?;
    put(rootfs.join("srv/big"), vec![b'b'; BIG_BYTES])?;
    put(rootfs.join("srv/dir/deep/other"), vec![b'o'; BIG_BYTES])?;
    stage.import(&rootfs, "box")?;
    fs::remove_dir_all(&rootfs)?;
    Ok(stage)
}

#[test]
fn an_exit_is_sealed_and_the_next_start_finds_everything() -> Result<()> {
    let stage = Stage::new()?;
    stage.idle("web", &[])?;
    stage.inside(
        "web",
        "mkdir -p /srv/a; echo small >/srv/a/small; head -c 100000 /dev/zero >/srv/zero; rm /etc/group",
    )?;
    stage.inside("web", "ln /srv/zero /srv/linked; ln -s zero /srv/soft; mknod /srv/pipe p; chmod 4750 /srv/zero")?;
    let left = stage.seen_in("web")?;
    leave(&stage, "web")?;
    assert_eq!(forms(&stage, "web", 1)?, [true]);
    assert_eq!(stage.generation("web", 1)?["sealed"], true);
    for layer in stage.layers()? {
        let mut files = names(&stage.root().join("layers").join(&layer))?;
        files.retain(|name| !name.starts_with("container-") && !name.starts_with("image-"));
        let expected = ["layer.json", "manifest", "meta.erofs"].map(str::to_owned);
        assert_eq!(files, BTreeSet::from(expected), "the tree is gone where nothing uses it");
    }
    stage.ok(&["start", "web", "--detach"])?;
    ensure_equal(&left, &stage.seen_in("web")?)?;
    let options = texts(&stage.inspect("web")?, "/run/mount_options")?;
    assert!(options.contains(&"metacopy=on".to_owned()), "{options:?}");
    leave(&stage, "web")?;
    let unpacked = stage.ok(&["start", "web", "--detach", "--mode", "unpack"]);
    unpacked.context("the fallback takes sealed layers too")?;
    ensure_equal(&left, &stage.seen_in("web")?)?;
    leave(&stage, "web")?;
    assert_eq!(stage.ok(&["doctor"])?.out().lines().last(), Some("nothing is wrong"));
    Ok(())
}

#[test]
fn changed_metadata_and_moved_directories_cost_no_content() -> Result<()> {
    let stage = with_big_image()?;
    stage.ok(&["seal", "--image", "box"])?;
    stage.idle("web", &[])?;
    stage.inside("web", "chmod 600 /srv/big; touch -d @1000 /srv/big; mv /srv/dir /moved; echo x >/moved/new")?;
    let left = stage.seen_in("web")?;
    assert!(left.entries.len() > 1);
    leave(&stage, "web")?;
    let taken = bytes_of(&stage, "web", 1)?;
    assert!(taken < SMALL_BYTES, "{taken} bytes for a change of metadata");
    assert_eq!(forms(&stage, "web", 1)?, [true], "what refers to the layers below is resolved");
    for mode in stage::MODES {
        stage.ok(&["start", "web", "--detach", "--mode", mode])?;
        ensure_equal(&left, &stage.seen_in("web")?).with_context(|| mode.to_owned())?;
        // Once more on top of it.
        leave(&stage, "web")?;
    }
    stage.ok(&["start", "web", "--detach"])?;
    stage.inside("web", "mv /moved/deep /srv/deep; chmod 640 /srv/big; rm /moved/new")?;
    let left = stage.seen_in("web")?;
    leave(&stage, "web")?;
    stage.ok(&["start", "web", "--detach"])?;
    ensure_equal(&left, &stage.seen_in("web")?)?;
    leave(&stage, "web")
}

#[test]
fn what_refers_to_layers_below_is_understood_before_it_is_sealed() -> Result<()> {
    let stage = with_big_image()?;
    stage.ok(&["seal", "--image", "box"])?;
    stage.idle("web", &["--seal", "never"])?;
    stage.inside("web", "chmod 600 /srv/big; mv /srv/dir /moved")?;
    let left = stage.seen_in("web")?;
    leave(&stage, "web")?;
    assert_eq!(forms(&stage, "web", 1)?, [false], "nobody has asked for it");
    stage.ok(&["start", "web", "--detach"])?;
    ensure_equal(&left, &stage.seen_in("web")?)?;
    stage.inside("web", "touch /srv/more")?;
    let left = stage.seen_in("web")?;
    leave(&stage, "web")?;
    assert_eq!(forms(&stage, "web", 2)?, [false, false]);
    // A comparison reads layer by layer, so what refers to others is resolved first.
    let changes = stage.ok(&["diff", "web@1"])?.out();
    for change in ["M /srv/big (metadata)", "D /srv/dir", "A /moved", "A /moved/deep/other"] {
        assert!(changes.lines().any(|line| line == change), "{change} is not in\n{changes}");
    }
    assert_eq!(forms(&stage, "web", 2)?, [false, true]);
    stage.ok(&["start", "web", "--detach", "--mode", "unpack"])?;
    ensure_equal(&left, &stage.seen_in("web")?)?;
    leave(&stage, "web")?;
    let sealed: Value = stage.json(&["seal", "web"])?;
    assert!(sealed["sealed"].as_array().is_some_and(|layers| !layers.is_empty()), "{sealed}");
    assert_eq!(stage.ok(&["seal", "web"])?.out(), "nothing to seal\n");
    stage.ok(&["start", "web", "--detach"])?;
    ensure_equal(&left, &stage.seen_in("web")?)?;
    leave(&stage, "web")
}

#[test]
fn generations_are_used_sealed_as_they_are_as_directories() -> Result<()> {
    let stage = Stage::new()?;
    stage.sh_ok("web", "head -c 5000 /dev/zero >/first; echo 1 >/etc/own")?;
    stage.quiet()?;
    stage.sh_ok("web", "head -c 6000 /dev/zero >/second; echo 22 >/etc/own; rm /first")?;
    stage.quiet()?;
    assert_eq!(forms(&stage, "web", 2)?, [true, true]);
    let changes = stage.ok(&["diff", "web@2"])?.out();
    let changes: Vec<&str> = changes.lines().filter(|line| !line.ends_with("/etc/resolv.conf")).collect();
    assert_eq!(changes, ["M /etc/own", "D /first", "A /second"]);
    let copy = stage.path("copy");
    stage.ok(&["cp", "web@1:/first", copy.to_str().context("UTF-8")?])?;
    assert_eq!(fs::read(&copy)?, [0; 5000]);
    let view = stage.path("view");
    fs::create_dir(&view)?;
    stage.ok(&["browse", "web@1", view.to_str().context("UTF-8")?])?;
    assert_eq!(fs::read(view.join("first"))?.len(), 5000);
    assert_eq!(fs::read_to_string(view.join("etc/own"))?, "1\n");
    stage.ok(&["browse", "--unmount", view.to_str().context("UTF-8")?])?;
    stage.ok(&["fork", "web@1", "other"])?;
    assert_eq!(stage.sh_ok("other", "cat /etc/own; ls /first")?, "1\n/first\n");
    stage.ok(&["rollback", "web", "--to", "1"])?;
    assert_eq!(stage.sh_ok("web", "cat /etc/own; ls /first")?, "1\n/first\n");
    Ok(())
}

#[test]
fn layers_of_both_forms_stand_in_one_stack() -> Result<()> {
    let stage = Stage::new()?;
    stage.ok(&["create", "web", "--image", "box", "--seal", "never", "--", "sh", "-c", IDLE])?;
    for number in 1..=3 {
        stage.ok(&[
            "run",
            "web",
            "--",
            "sh",
            "-c",
            &format!("head -c 1000 /dev/zero >/f{number}; echo {number} >/own"),
        ])?;
    }
    stage.quiet()?;
    assert_eq!(forms(&stage, "web", 3)?, [false; 3]);
    // The policy takes effect with the next exit; what is older is sealed then too.
    stage.ok(&["fork", "web@2", "half"])?;
    stage.ok(&["set", "half", "--seal", "auto"])?;
    stage.ok(&["run", "half", "--", "sh", "-c", "echo half >/own"])?;
    stage.quiet()?;
    assert_eq!(forms(&stage, "web", 3)?, [false, true, true]);
    stage.ok(&["start", "web", "--detach"])?;
    assert_eq!(stage.inside("web", "cat /own; ls /f1 /f2 /f3")?, "3\n/f1\n/f2\n/f3\n");
    leave(&stage, "web")
}

#[test]
fn equal_contents_are_kept_once_and_go_with_the_last_that_has_them() -> Result<()> {
    let stage = Stage::new()?;
    stage.ok(&["seal"])?;
    let of_image = objects(&stage)?;
    assert!(!of_image.is_empty());
    let script = |own: &str| format!("head -c 70000 /dev/zero >/same; (echo {own}; head -c 70000 /dev/zero) >/own");
    for name in ["one", "two"] {
        stage.sh_ok(name, &script(name))?;
        stage.quiet()?;
    }
    let both = objects(&stage)?;
    let new = |all: &BTreeSet<PathBuf>| all.difference(&of_image).count();
    assert_eq!(new(&both), 3, "one content of both, one of each: {both:?}");
    stage.ok(&["rm", "one"])?;
    assert_eq!(new(&objects(&stage)?), 2);
    assert!(objects(&stage)?.is_subset(&both));
    assert_eq!(stage.sh_ok("two", "wc -c </same; head -c 3 /own")?, "70000\ntwo");
    stage.quiet()?;
    stage.ok(&["rm", "two"])?;
    stage.ok(&["gc"])?;
    assert_eq!(objects(&stage)?, of_image, "what the image has stays");
    // What a crash has left behind without a name.
    let stray = of_image.first().context("an object")?.with_file_name("0".repeat(62));
    write(&stray, "nobody names it")?;
    assert_eq!(stage.json::<Value>(&["gc", "--dry-run"])?["plan"]["objects"]["count"], 1);
    stage.ok(&["gc"])?;
    assert_eq!(objects(&stage)?, of_image);
    Ok(())
}

/// Seals a container and returns what the command has read, by the count the kernel keeps.
fn bytes_read_by_seal(stage: &Stage, name: &str) -> Result<u64> {
    let command = stage.command(&["seal", name]);
    let mut shell = Command::new("sh");
    // A shell's count has that of the commands it has waited for.
    shell.args(["-c", "\"$@\" >&2 && cat /proc/$$/io", "sh"]).arg(command.get_program()).args(command.get_args());
    let output = shell.output()?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{complaint}");
    let counts = String::from_utf8(output.stdout)?;
    let read = counts.lines().find_map(|line| line.strip_prefix("rchar: ")).context("rchar")?;
    Ok(read.parse()?)
}

#[test]
fn a_seal_reads_what_has_changed_in_a_big_file_where_the_file_system_shares_blocks() -> Result<()> {
    const FILE_BYTES: u64 = 64 << 20;
    const WRITES: u64 = 16;
    /// The records, the manifests, the programs themselves, the outboard.
    const REST_BYTES: u64 = 4 << 20;
    for kind in FsKind::ALL {
        let disk = LoopFs::new(kind, 1 << 30)?;
        let stage = Stage::empty_in(&disk.path())?;
        stage.import(stage::box_tar()?, "box")?;
        stage.create_idle("db", &["--seal", "never"])?;
        let run = |script: &str| -> Result<()> {
            stage.ok(&["run", "db", "--", "sh", "-c", script])?;
            stage.quiet()
        };
        run("dd if=/dev/urandom of=/big bs=1048576 count=64 2>/dev/null")?;
        let whole = bytes_read_by_seal(&stage, "db")?;
        ensure!((FILE_BYTES..FILE_BYTES + 2 * REST_BYTES).contains(&whole), "{kind:?}: {whole}");
        let write = "dd if=/dev/urandom of=/big bs=4096 count=1 seek=$((n * 1000 + 16)) conv=notrunc 2>/dev/null";
        run(&format!("for n in $(seq 0 {}); do {write}; done", WRITES - 1))?;
        let changed = bytes_read_by_seal(&stage, "db")?;
        println!("{kind:?}: first {whole}, changed {changed} bytes read");
        match kind {
            FsKind::Ext4 => ensure!((FILE_BYTES..FILE_BYTES + REST_BYTES).contains(&changed), "{changed}"),
            FsKind::Xfs | FsKind::Btrfs => {
                ensure!(changed <= 2 * WRITES * (64 << 10) + REST_BYTES, "{kind:?}: {changed}");
            }
        }
        // What was not read counts all the same.
        stage.ok(&["verify", "--full"])?;
        stage.ok(&["gc"])?;
        assert_eq!(stage.ok(&["doctor"])?.out().lines().last(), Some("nothing is wrong"));
        let big: Vec<PathBuf> =
            objects(&stage)?.into_iter().filter(|path| path.with_extension("outboard").exists()).collect();
        assert_eq!(big.len(), 4, "two versions and an outboard beside each: {big:?}");
        stage.ok(&["rm", "db"])?;
        stage.ok(&["gc"])?;
        assert!(!objects(&stage)?.iter().any(|path| path.extension().is_some()), "outboards go with their objects");
    }
    Ok(())
}

#[test]
fn images_share_contents_and_new_ones_are_applied_over_sealed_layers() -> Result<()> {
    let stage = with_big_image()?;
    stage.ok(&["seal"])?;
    let before = objects(&stage)?;
    let rootfs = stage.rootfs("again")?;
    put(rootfs.join("srv/big"), vec![b'b'; BIG_BYTES])?;
    put(rootfs.join("etc/more"), "more")?;
    stage.import(&rootfs, "more")?;
    stage.ok(&["seal", "--image", "more"])?;
    assert_eq!(objects(&stage)?, before, "nothing in it was new");
    let said = stage.ok(&["run", "web", "--image", "more", "--", "sh", "-c", "wc -c </srv/big; cat /etc/more"])?.out();
    assert_eq!(said, format!("{BIG_BYTES}\nmore"));
    Ok(())
}

#[test]
fn a_start_waits_for_no_seal() -> Result<()> {
    let stage = Stage::new()?;
    stage.create_idle("web", &["--seal", "never"])?;
    // Not a byte on disk, but a while to hash.
    stage.ok(&["run", "web", "--", "sh", "-c", "dd if=/dev/zero of=/huge bs=1 count=1 seek=20000000000"])?;
    stage.quiet()?;
    let mut sealing = stage.spawn(&["seal", "web"])?;
    let locks = stage.root().join("locks");
    wait_until("the layer is being sealed", SOON, || {
        Ok(names(&locks)?.iter().filter(|name| name.starts_with("seal-")).count() > 1)
    })?;
    stage.ok(&["start", "web", "--detach"])?;
    stage.inside("web", "ls /huge")?;
    let went_on = sealing.try_wait()?.is_none();
    sealing.kill()?;
    sealing.wait()?;
    assert!(went_on, "the seal was over before the start: nothing was shown");
    leave(&stage, "web")?;
    assert_eq!(forms(&stage, "web", 1)?, [false], "it was cut off");
    Ok(())
}

#[test]
fn a_tree_that_is_mounted_stays_until_it_is_not() -> Result<()> {
    let stage = Stage::new()?;
    stage.create_idle("web", &["--seal", "never"])?;
    stage.ok(&["run", "web", "--", "sh", "-c", "head -c 1000 /dev/zero >/file"])?;
    stage.ok(&["start", "web", "--detach"])?;
    let trees = || -> Result<usize> {
        let layers = stage.layers()?;
        Ok(layers.iter().filter(|layer| stage.root().join("layers").join(layer).join("tree").exists()).count())
    };
    let before = trees()?;
    stage.ok(&["seal", "web"])?;
    assert_eq!(forms(&stage, "web", 1)?, [true]);
    assert_eq!(trees()?, before, "the run has them mounted");
    stage.ok(&["gc"])?;
    assert_eq!(stage.inside("web", "wc -c </file")?, "1000\n");
    leave(&stage, "web")?;
    stage.ok(&["gc"])?;
    assert_eq!(trees()?, 0);
    assert_eq!(stage.sh_ok("web", "wc -c </file")?, "1000\n");
    Ok(())
}

#[test]
fn a_layer_that_knows_the_secret_name_does_not_come_in() -> Result<()> {
    let stage = Stage::new()?;
    stage.ok(&["seal"])?;
    let secrets = names(&stage.root().join("objects"))?;
    let secret = secrets.first().context("the directory of objects")?;
    let rootfs = stage.rootfs("hostile")?;
    put(rootfs.join(secret).join("ab/cd"), "not what it says")?;
    let error = stage.refused(&["image", "import", &format!("rootfs:{}", rootfs.display()), "hostile"])?;
    assert!(error.contains("secret name"), "{error}");
    Ok(())
}

#[test]
fn one_entry_that_only_a_directory_can_hold_keeps_the_layer_one() -> Result<()> {
    let stage = Stage::new()?;
    stage.idle("web", &["--cap-add", "CAP_LINUX_IMMUTABLE"])?;
    stage.inside("web", "touch /srv-file")?;
    let file = stage.merged("web")?.join("srv-file");
    ensure!(Command::new("chattr").arg("+i").arg(&file).status()?.success(), "chattr (e2fsprogs)");
    leave(&stage, "web")?;
    assert_eq!(forms(&stage, "web", 1)?, [false]);
    let kept: Value = stage.json(&["seal", "web"])?;
    assert!(kept["kept"][0]["reason"].as_str().is_some_and(|why| why.contains("stays in dir form")), "{kept}");
    stage.ok(&["start", "web", "--detach"])?;
    assert!(stage.run(&["exec", "web", "rm", "/srv-file"])?.code() != 0);
    leave(&stage, "web")
}

#[test]
fn many_exits_and_evictions_leave_one_shallow_sealed_stack() -> Result<()> {
    let stage = Stage::new()?;
    stage.create_idle("web", &["--keep", "2"])?;
    let mut left: Option<TreeListing> = None;
    for number in 0..24 {
        stage.ok(&["start", "web", "--detach"])?;
        if let Some(left) = &left {
            ensure_equal(left, &stage.seen_in("web")?).with_context(|| format!("start {number}"))?;
        }
        let script =
            format!("head -c {} /dev/zero >/f{number}; rm -f /f{}; mkdir -p /d/{number}", 1000 + number, number - 3);
        stage.inside("web", &script)?;
        left = Some(stage.seen_in("web")?);
        leave(&stage, "web")?;
    }
    let forms = forms(&stage, "web", 24)?;
    assert!(forms.len() <= perennial_core::layers::DEPTH_MAX, "{} layers", forms.len());
    ensure!(forms.iter().all(|sealed| *sealed), "{forms:?}");
    let files: Vec<PathBuf> = objects(&stage)?.into_iter().filter(|path| is_zeros(path)).collect();
    ensure!(files.len() <= 8, "the contents of evicted generations go: {} are left", files.len());
    Ok(())
}

/// Whether an object is one of the files of zeros that the test has written.
fn is_zeros(path: &Path) -> bool {
    fs::read(path).is_ok_and(|content| content.len() < 1100 && content.iter().all(|byte| *byte == 0))
}

/// The niceness of each thread of a process.
fn niceness(pid: &str) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for thread in names(&Path::new("/proc").join(pid).join("task"))? {
        // A thread that has ended since has none.
        let stat = fs::read_to_string(format!("/proc/{pid}/task/{thread}/stat")).unwrap_or_default();
        // The second field is a name in brackets, which may hold anything; the niceness is the 19th.
        let field = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(16));
        found.extend(field.map(str::parse::<i32>).transpose()?);
    }
    Ok(found)
}

/// The priority of input and output of each thread of a process, as `ionice` says it.
fn io_priorities(pid: &str) -> Result<Vec<String>> {
    let threads = names(&Path::new("/proc").join(pid).join("task"))?;
    let mut found = Vec::new();
    for thread in threads {
        let said = Command::new("ionice").args(["-p", &thread]).output()?;
        // A thread that has ended since has none.
        if said.status.success() {
            found.push(String::from_utf8_lossy(&said.stdout).trim().to_owned());
        }
    }
    Ok(found)
}

fn supervisor_of(stage: &Stage) -> Result<Option<String>> {
    let root = stage.root().display().to_string();
    for pid in names(Path::new("/proc"))?.into_iter().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())) {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        if words.contains(&b"__supervise".as_slice()) && words.contains(&root.as_bytes()) {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

/// Every thread that seals does so as nice as can be; what is asked for is not held back.
#[test]
fn sealing_by_itself_has_the_lowest_priority() -> Result<()> {
    let stage = Stage::new()?;
    // What is set for whoever starts it is inherited, and then does not follow from how nice it is.
    let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
    let status = Command::new("ionice").args(["-c", "2", "-n", "0", "-p", &thread]).status()?;
    ensure!(status.success(), "ionice: {status}");
    let many = "mkdir /many; for i in $(seq 1500); do head -c 5000 /dev/zero >/many/$i; echo $i >>/many/$i; done";
    stage.sh_ok("web", many)?;
    let layer = texts(&stage.generation("web", 1)?, "/layers")?.remove(0);
    let directory = stage.root().join("layers").join(&layer);
    let is_sealing = || directory.join(".manifest.new").exists();
    let mut samples = 0;
    wait_until("it is sealed", SOON, || {
        if let Some(pid) = supervisor_of(&stage)?
            && is_sealing()
        {
            let (nice, io) = (niceness(&pid)?, io_priorities(&pid)?);
            // It may have ended meanwhile.
            if is_sealing() && !nice.is_empty() && !io.is_empty() {
                ensure!(nice.iter().all(|nice| *nice == 19), "{nice:?}");
                ensure!(io.iter().all(|io| io == "best-effort: prio 7"), "{io:?}");
                samples += 1;
            }
        }
        Ok(directory.join("meta.erofs").exists())
    })?;
    ensure!(samples > 0, "it was not seen sealing");
    stage.quiet()
}
