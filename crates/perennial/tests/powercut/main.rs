//! Nothing is lost when the power is cut: a virtual machine works on a disk of its own, all it writes is recorded, and
//! disks as cuts at random instants would have left them are started from again.
//!
//! - [`play`]: what the machine does, and what every generation must show.
//! - [`check`]: what must be true after a cut.
//!
//! Some of the disks are started in the machine again; what that writes is recorded too, so that the recovery is cut
//! off as well. `PERENNIAL_CUTS` says how many cuts there are, `PERENNIAL_CUTS_SEED` which; `cargo xtask powercuts` sets
//! both for a long run.

#![expect(clippy::print_stdout, reason = "a test tells how many cuts it has made, and the seed")]
#![expect(clippy::indexing_slicing, reason = "helpers of tests act like the tests")]

mod check;
mod play;

use anyhow::{Context as _, Result, ensure};
use check::{Fate, Found, FoundContainer, Site};
use perennial_testkit::actor;
use perennial_testkit::cli::Perennial;
use perennial_testkit::guest::{Boot, Machine};
use perennial_testkit::host::{need_root, now, pause};
use perennial_testkit::image;
use perennial_testkit::loopfs::{FsKind, LoopFs};
use perennial_testkit::writelog::{Loss, Replay, SECTOR_BYTES, WriteLog, copy_sparse};
use play::{KINDS, Play, lot};
use proptest::prelude::Rng as _;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The seed where none is given, so that what every change is tried with does not depend on luck.
const SEED_DEFAULT: u64 = 2027;

/// Cuts where nothing else is asked for.
const CUTS: usize = 6;
/// Cuts of one session, and its steps: a few in a short session by default, many in long ones.
const CUTS_PER_SESSION: usize = 40;
const STEPS_FEW: usize = 7;
const STEPS: usize = 18;
/// One cut in so many is started in the machine again, and that recovery is cut so many times.
const RESTART_EVERY: usize = 8;
const CUTS_OF_RESTART: usize = 2;
/// Bytes of the file system; behind it lies the sector for marks.
const DISK_BYTES: u64 = 384 << 20;
const MARK: u64 = DISK_BYTES / SECTOR_BYTES + 8;
/// Room behind the file system.
const TAIL_BYTES: u64 = 1 << 20;
/// Longest time from the last step to the cut: background work is on then.
const LINGER_MS: u32 = 1500;

fn number(name: &str) -> Result<Option<u64>> {
    let text = std::env::var(name).ok();
    text.map(|text| text.parse().with_context(|| format!("{name}={text} is no number"))).transpose()
}

#[test]
fn nothing_is_lost_when_the_power_is_cut() -> Result<()> {
    need_root()?;
    let cuts = usize::try_from(number("PERENNIAL_CUTS")?.unwrap_or(CUTS as u64))?;
    let seed = number("PERENNIAL_CUTS_SEED")?.unwrap_or(SEED_DEFAULT);
    let sessions = cuts.div_ceil(CUTS_PER_SESSION);
    let machine = Stagehand::new()?;
    println!("seed {seed}: {cuts} cuts in {sessions} sessions on Linux {}", machine.machine.kernel.release);
    let (mut made, mut report) = (0, Report::new());
    for session in 0..sessions {
        let share = (cuts - made).div_ceil(sessions - session);
        let steps = if sessions == 1 { STEPS_FEW } else { STEPS };
        // ext4 and XFS by turns; both have a journal, and recover differently.
        let fs = if session % 2 == 0 { FsKind::Ext4 } else { FsKind::Xfs };
        let seed = seed.wrapping_add(session as u64);
        let scratch = tempfile::Builder::new().prefix("perennial-powercut-").disable_cleanup(true).tempdir()?;
        let session = Session { machine: &machine, seed, fs, steps, scratch: scratch.path() };
        let played = session.play(share, &mut report);
        let kept = || format!("seed {seed}; its disks are kept in {}", scratch.path().display());
        made += played.with_context(kept)?;
        fs::remove_dir_all(scratch.path())?;
    }
    println!("{made} cuts checked; what was cut off, and what became of it:");
    for ((step, fate), count) in report {
        println!("{count:5} {step} {fate:?}");
    }
    ensure!(made >= cuts, "only {made} cuts were made");
    Ok(())
}

/// How often which step was cut off with which fate.
type Report = BTreeMap<(&'static str, Fate), usize>;

/// The machine, and the programs in it.
struct Stagehand {
    machine: Machine,
    actor: PathBuf,
}

impl Stagehand {
    fn new() -> Result<Self> {
        let (perennial, runc) = (Path::new(env!("CARGO_BIN_EXE_perennial")), Path::new("/usr/sbin/runc"));
        let machine = Machine::new(&[(perennial, "/usr/bin/perennial"), (runc, "/usr/bin/runc")])?;
        Ok(Self { machine, actor: actor::trap_actor()? })
    }
}

/// One recorded session and its cuts.
struct Session<'a> {
    machine: &'a Stagehand,
    seed: u64,
    fs: FsKind,
    steps: usize,
    scratch: &'a Path,
}

/// One cut.
#[derive(Debug, Clone, Copy)]
struct Cut {
    at: usize,
    loss: Loss,
    /// How many steps had returned.
    done: usize,
}

impl Session<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    /// Plays the session, cuts it so many times, and returns how many cuts were checked, those of restarts included.
    fn play(&self, cuts: usize, report: &mut Report) -> Result<usize> {
        let began = now();
        let (play, disk) = self.prepare().context("cannot prepare the disk")?;
        let log = self.record(&play, &disk).context("cannot record the session")?;
        let marks = log.marks(MARK)?;
        let numbers: Vec<usize> = marks.iter().map(|(_, number)| *number).collect();
        ensure!(numbers == (1..=self.steps).collect::<Vec<_>>(), "the session's marks are {numbers:?}");
        println!(
            "{:?}: {} steps, {} writes and flushes, recorded in {:?}",
            self.fs,
            self.steps,
            log.entries.len(),
            now() - began
        );
        let (mut lot, mut made, mut replay) = (lot(self.seed), 0, Replay::new(log, &disk, &self.path("replayed"))?);
        let cuts = self.draw(cuts, replay.log(), &mut lot);
        self.check_the_check(&play, &mut replay, &mut lot)?;
        for (number, at) in cuts.into_iter().enumerate() {
            let done = marks.iter().filter(|(entries, _)| *entries <= at).count();
            let cut = Cut { at, loss: Loss::draw(&mut lot), done };
            let image = self.path("cut");
            replay.cut(at, cut.loss, &mut lot, &image)?;
            let context = || format!("{:?} {cut:?} of {} entries", self.fs, replay.log().entries.len());
            made += 1;
            if made % 10 == 0 {
                println!("{made} cuts after {:?}", now() - began);
            }
            if number % RESTART_EVERY == RESTART_EVERY / 2 {
                made += self.restart(&play, cut, &image).with_context(context)?;
            } else {
                let fate = self.check(&play, cut, &image, None).with_context(context)?;
                let step = play.steps.get(done).map_or("what follows the last run", play::Step::word);
                *report.entry((step, fate)).or_default() += 1;
            }
        }
        println!("{made} cuts checked after {:?}", now() - began);
        Ok(made)
    }

    /// A check that cannot fail shows nothing: a disk that has forgotten the whole session, although it was told to keep
    /// it, must be found out.
    fn check_the_check(&self, play: &Play, replay: &mut Replay, lot: &mut impl proptest::prelude::Rng) -> Result<()> {
        let image = self.path("forgetful");
        replay.cut(0, Loss::Everything, lot, &image)?;
        let cut = Cut { at: 0, loss: Loss::Everything, done: self.steps };
        let found = self.check(play, cut, &image, None);
        let told = found.err().map(|error| format!("{error:#}")).unwrap_or_default();
        ensure!(told.contains("has [") && told.contains("not ["), "a forgetful disk is not found out: {told:?}");
        Ok(())
    }

    /// Draws where to cut, in order; half of the cuts beside a flush, where it matters most what came before.
    fn draw(&self, cuts: usize, log: &WriteLog, lot: &mut impl proptest::prelude::Rng) -> Vec<usize> {
        let flushes: Vec<usize> =
            log.entries.iter().enumerate().filter(|(_, entry)| entry.is_flush).map(|(index, _)| index).collect();
        let mut below = |end: usize| usize::try_from(lot.next_u64() % (end.max(1) as u64)).unwrap_or(0);
        let mut drawn: Vec<usize> = (0..cuts)
            .map(|number| match number % 2 {
                0 => below(log.entries.len() + 1),
                _ => flushes[below(flushes.len())] + below(2),
            })
            .collect();
        drawn.sort_unstable();
        drawn
    }

    /// Makes the disk with an image, containers, and generations of each.
    fn prepare(&self) -> Result<(Play, PathBuf)> {
        let disk = self.path("disk");
        File::create(&disk)?.set_len(DISK_BYTES)?;
        self.fs.make(&disk)?;
        File::options().write(true).open(&disk)?.set_len(DISK_BYTES + TAIL_BYTES)?;
        let mounted = LoopFs::of(&disk)?;
        let rootfs = mounted.path().join("rootfs");
        fs::create_dir(&rootfs)?;
        image::busybox_rootfs(&rootfs)?;
        image::add_program(&rootfs, &self.machine.actor, actor::ACTOR)?;
        fs::create_dir(rootfs.join("model"))?;
        let plain = mounted.path().join("plain");
        fs::create_dir(&plain)?;
        let play = Play::draw(self.seed, self.steps, &rootfs.join("model"), &plain)?;
        let perennial = Perennial::at(env!("CARGO_BIN_EXE_perennial"), mounted.path().join("root"));
        perennial.ok(&["image", "import", &format!("rootfs:{}", rootfs.display()), "box"])?;
        for kind in &KINDS {
            let keep = kind.keep.to_string();
            perennial.ok(&["create", kind.name, "--image", "box", "--keep", &keep, "--seal", kind.seal])?;
        }
        for (number, stage) in &play.prepared {
            let script = serde_json::to_string(stage)?;
            let kind = &KINDS[*number];
            perennial.ok(&["start", kind.name, "--mode", kind.mode, "--", actor::ACTOR, "script", &script])?;
        }
        fs::remove_dir_all(rootfs)?;
        fs::remove_dir_all(plain)?;
        perennial.assert_no_leaks(&[])?;
        mounted.unmount()?;
        Ok((play, disk))
    }

    /// Plays the steps in the machine and cuts its power while what follows the last one is still at work.
    fn record(&self, play: &Play, disk: &Path) -> Result<WriteLog> {
        let (played, log) = (self.path("played"), self.path("log"));
        copy_sparse(disk, &played)?;
        WriteLog::create(&log)?;
        let (script, files) = play.script()?;
        let script = format!("{script}echo 'guest: all done'\nsleep 1000\n");
        let boot = Boot { disk: &played, fs: self.fs, log: Some(&log), mark: MARK, script: &script, files: &files };
        let mut guest = self.machine.machine.boot(&boot)?;
        guest.wait_for("guest: all done")?;
        pause(Duration::from_millis(u64::from(lot(self.seed).next_u32() % LINGER_MS)));
        guest.cut()?;
        WriteLog::read(&log)
    }

    /// Starts from a cut disk in the machine, has it recover and run every container, and checks the disk afterwards;
    /// then cuts that recovery, and checks what is left. Returns how many cuts that were.
    fn restart(&self, play: &Play, cut: Cut, image: &Path) -> Result<usize> {
        let (restarted, log) = (self.path("restarted"), self.path("restart-log"));
        copy_sparse(image, &restarted)?;
        WriteLog::create(&log)?;
        let script = restart_script();
        let boot = Boot { disk: &restarted, fs: self.fs, log: Some(&log), mark: MARK, script: &script, files: &[] };
        self.machine.machine.boot(&boot)?.wait_for_end().context("the restart")?;
        let log = WriteLog::read(&log)?;
        let recovered = log.marks(MARK)?.into_iter().find(|(_, number)| *number == RECOVERED).context("no mark")?.0;
        self.check(play, cut, &restarted, Some(())).context("after a restart in the machine")?;
        let mut lot = lot(self.seed ^ cut.at as u64);
        let mut replay = Replay::new(log, image, &self.path("replayed-restart"))?;
        let mut cuts: Vec<usize> = (0..CUTS_OF_RESTART).map(|_| lot.next_u32() as usize % recovered).collect();
        cuts.sort_unstable();
        for at in &cuts {
            let (again, loss) = (self.path("cut-again"), Loss::draw(&mut lot));
            replay.cut(*at, loss, &mut lot, &again)?;
            let context = || format!("then its restart was cut before entry {at} of {recovered}, losing {loss:?}");
            self.check(play, cut, &again, None).with_context(context)?;
        }
        Ok(cuts.len())
    }

    /// Checks a cut disk on this host: its file system, and all that is in its root.
    fn check(&self, play: &Play, cut: Cut, image: &Path, restarted: Option<()>) -> Result<Fate> {
        let mounted = LoopFs::of(image).context("the file system cannot be mounted")?;
        let found = restarted.map(|()| found(&mounted.path().join("found"))).transpose()?;
        let scratch = mounted.path().join("scratch");
        fs::create_dir(&scratch)?;
        let fate = Site::new(&mounted.path().join("root"), play, cut.done, &scratch).check(found.as_ref())?;
        mounted.unmount()?;
        check_fs(self.fs, image)?;
        Ok(fate)
    }
}

/// Mark that says that the machine has recovered.
const RECOVERED: usize = 1000;

/// What the machine does when it is started again.
fn restart_script() -> String {
    let perennial = "perennial --root /data/root";
    let mut script =
        format!("step 998 {perennial} ps --all\nstep 999 {perennial} gc\nstep {RECOVERED} {perennial} doctor\n");
    script.push_str(&format!("step 1001 {perennial} verify --full\nmkdir /data/found\n"));
    for kind in &KINDS {
        let start = format!("{perennial} start {} -- {} listing /model", kind.name, actor::ACTOR);
        let list = format!("{perennial} generations {} --json", kind.name);
        script.push_str(&format!("step 1002 sh -c '{list} >/data/found/{}.generations'\n", kind.name));
        script.push_str(&format!("step 1003 sh -c '{start} >/data/found/{}'\n", kind.name));
    }
    script
}

/// Reads what the machine found after the restart.
fn found(dir: &Path) -> Result<Found> {
    let read = |name: String| fs::read(dir.join(&name)).with_context(|| format!("what was found: {name}"));
    let of = |name: &'static str| -> Result<_> {
        let listed = serde_json::from_slice(&read(format!("{name}.generations"))?)?;
        Ok((name, FoundContainer { listed, shown: serde_json::from_slice(&read(name.to_owned())?)? }))
    };
    KINDS.iter().map(|kind| of(kind.name)).collect()
}

/// Has the file system's own checker look at it, so that no fault of the harness is taken for one of the product.
fn check_fs(fs: FsKind, image: &Path) -> Result<()> {
    let mut command = match fs {
        FsKind::Ext4 => Command::new("e2fsck"),
        FsKind::Xfs => Command::new("xfs_repair"),
        FsKind::Btrfs => Command::new("btrfs"),
    };
    match fs {
        FsKind::Ext4 => command.args(["-f", "-n"]),
        FsKind::Xfs => command.args(["-n", "-f"]),
        FsKind::Btrfs => command.arg("check"),
    };
    perennial_testkit::host::run(command.arg(image)).context("the file system is damaged").map(drop)
}
