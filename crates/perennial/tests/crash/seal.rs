//! Sealing killed at its system calls, what follows an interrupted one, and runs over sealed layers: the old form or the
//! new one, every generation as it was, nothing left over.
//!
//! These sites lie on an ext4 of their own: a file system in memory cannot hold sealed layers.

use crate::world::{IMAGE, World};
use anyhow::{Context as _, Result, ensure};
use perennial_testkit::cli::Perennial;
use perennial_testkit::host::{now, pause, wait_until, wait_within};
use perennial_testkit::kill::{self, Fault, Outcome, Point, Points, Scenario, Victim};
use perennial_testkit::loopfs::{FsKind, LoopFs};
use perennial_testkit::tree::{TreeListing, ensure_equal};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Every how many-th system call is hit unless the environment says otherwise.
const EVERY: usize = 12;
const DISK_BYTES: u64 = 1 << 30;
/// Longest one command may take.
const LIMIT: Duration = Duration::from_secs(90);

/// What each run does: contents that become objects, shared and not, further names, and small ones.
fn change(number: u64) -> String {
    let before = number.saturating_sub(1);
    format!(
        "echo {number} > /state; dd if=/dev/zero of=/same bs=1000 count=3 2>/dev/null; seq {number} 900 > /own; \
         mkdir -p /d; seq {number} 300 > /d/f{number}; rm -f /d/f{before}; cat /own > /d/again; mv /keep /kept{number}; \
         mkdir /keep; touch /keep/new; echo x >> /own"
    )
}

/// Roots on a file system of their own, copied from one template.
struct Sites {
    disk: LoopFs,
    next: AtomicU32,
    template: World,
    /// The generations of `c` in the template: what each shows.
    shown: BTreeMap<u64, TreeListing>,
}

impl Sites {
    /// Makes the template: three generations in directories.
    fn new() -> Result<Self> {
        Self::with(FsKind::Ext4, &|world, number| world.ok(&["start", "c", "--", "/bin/sh", "-c", &change(number)]))
    }

    /// Makes a template of three generations.
    fn with(kind: FsKind, run: &dyn Fn(&World, u64) -> Result<()>) -> Result<Self> {
        let disk = LoopFs::new(kind, DISK_BYTES)?;
        let template = World::with_image(&disk.path().join("template"))?;
        template.add_container("c", 3, 0)?;
        for number in 1..=3 {
            run(&template, number)?;
        }
        check_rest(&template)?;
        let shown = shown(&template)?;
        ensure!(shown.len() == 3, "{:?}", shown.keys());
        Ok(Self { disk, next: AtomicU32::new(0), template, shown })
    }

    fn copy(&self) -> Result<World> {
        self.template.copy(&self.disk.path().join(format!("site{}", self.next.fetch_add(1, Ordering::Relaxed))))
    }
}

/// What each generation of `c` shows.
fn shown(world: &World) -> Result<BTreeMap<u64, TreeListing>> {
    let view: PathBuf = world.perennial.root().with_extension("view");
    fs::create_dir_all(&view)?;
    let path = view.to_str().context("UTF-8")?;
    let mut shown = BTreeMap::new();
    for seq in world.perennial.seqs("c")? {
        world.ok(&["browse", &format!("c@{seq}"), path])?;
        let listing = TreeListing::of(&view);
        world.ok(&["browse", "--unmount", path])?;
        shown.insert(seq, listing?);
    }
    fs::remove_dir(&view)?;
    Ok(shown)
}

/// What a layer's directory holds, without copies of records for a rebuild.
fn layer_files(world: &World, layer: &str) -> Result<BTreeSet<String>> {
    let mut found = names(world.perennial.root().join("layers").join(layer))?;
    found.retain(|name| name == "layer.json" || !name.ends_with(".json"));
    Ok(found)
}

fn names(dir: PathBuf) -> Result<BTreeSet<String>> {
    let entries = fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// Comes to rest and checks that nothing is left over but layers in one form or the other.
fn check_rest(world: &World) -> Result<()> {
    world.check_whole()?;
    let root = world.perennial.root();
    let parts = ["layer.json", "manifest", "meta.erofs", "tree"].map(str::to_owned).into();
    for layer in names(root.join("layers"))? {
        let found = layer_files(world, &layer)?;
        let is_temporary = |name: &&String| [".manifest.new", ".meta.erofs.new"].contains(&name.as_str());
        let odd: Vec<_> = found.difference(&parts).filter(|name| !is_temporary(name)).collect();
        ensure!(odd.is_empty(), "layer {layer} has {odd:?}");
    }
    ensure!(names(root.join("trash"))?.is_empty(), "left in the trash");
    Ok(())
}

/// Whether each layer of the current generation of `c` is sealed.
fn forms(world: &World) -> Result<Vec<bool>> {
    let last = world.perennial.generations("c")?.pop().context("a generation")?;
    Ok(last.get("sealed_layers").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_bool).collect())
}

/// Checks that the generations that were there show what they did.
fn check_shown(world: &World, before: &BTreeMap<u64, TreeListing>) -> Result<()> {
    for (seq, listing) in shown(world)? {
        if let Some(before) = before.get(&seq) {
            ensure_equal(before, &listing).with_context(|| format!("generation {seq} shows something else"))?;
        }
    }
    Ok(())
}

/// Checks that everything beside objects belongs to one.
fn check_outboards(world: &World) -> Result<()> {
    let top = world.perennial.root().join("objects");
    for secret in names(top.clone())? {
        for prefix in names(top.join(&secret))? {
            let found = names(top.join(&secret).join(&prefix))?;
            let is_object = |name: &str| name.len() == 62;
            let has_object = |name: &str| name.strip_suffix(".outboard").is_some_and(|object| found.contains(object));
            let odd: Vec<_> = found.iter().filter(|name| !is_object(name) && !has_object(name)).collect();
            ensure!(odd.is_empty(), "left among the objects: {odd:?}");
        }
    }
    Ok(())
}

/// Seals what is not, and checks everything there is.
fn finish(world: &World) -> Result<()> {
    world.ok(&["seal"])?;
    world.ok(&["gc"])?;
    check_outboards(world)?;
    world.ok(&["verify", "--full"])?;
    ensure!(forms(world)?.iter().all(|sealed| *sealed), "{:?}", forms(world)?);
    let root = world.perennial.root();
    for layer in names(root.join("layers"))? {
        let found = layer_files(world, &layer)?;
        let sealed = ["layer.json", "manifest", "meta.erofs"].map(str::to_owned).into();
        ensure!(found == sealed, "layer {layer} has {found:?}");
    }
    world.ok(&["start", "c", "--", "/bin/sh", "-c", "cat /state /own /d/again > /dev/null 2>&1; true"])?;
    check_rest(world)
}

fn report(what: &str, points: &Points, report: &kill::Report) {
    println!(
        "{what}: {} of {} points checked ({points:?}), {} missed, {:?} each",
        report.hits,
        report.recorded,
        report.missed.len(),
        report.per_point()
    );
}

/// Cleans a site up, whatever came of its check.
fn done(site: &World, checked: Result<()>) -> Result<()> {
    if checked.is_err() {
        site.perennial.clean_up()?;
    }
    fs::remove_dir_all(site.perennial.root()).ok();
    checked
}

/// One command on the template, whole or with a seal that was interrupted before.
struct Killed {
    sites: Sites,
    args: &'static [&'static str],
    interrupted: Option<Point>,
}

impl Scenario for Killed {
    type Site = World;

    fn prepare(&self) -> Result<World> {
        let site = self.sites.copy()?;
        if let Some(point) = &self.interrupted {
            let seal = site.perennial.command(&["seal", "c"]);
            let outcome = kill::disturb(Victim::Command(seal), Fault::KillBeforeChanges, point)?;
            ensure!(outcome.hit.is_some(), "the seal was not interrupted: {outcome:?}");
        }
        Ok(site)
    }

    fn victim<'a>(&self, site: &'a World) -> Result<Victim<'a>> {
        Ok(Victim::Command(site.perennial.command(self.args)))
    }

    fn check(&self, site: World, outcome: &Outcome) -> Result<()> {
        let checked = (|| {
            if outcome.hit.is_none() {
                ensure!(outcome.code == Some(0), "it failed: {}", outcome.stderr);
            }
            check_rest(&site)?;
            let seqs = site.perennial.seqs("c")?;
            ensure!(seqs == [1, 2, 3], "generations {seqs:?}");
            check_shown(&site, &self.sites.shown)?;
            finish(&site)?;
            check_shown(&site, &self.sites.shown)
        })();
        done(&site, checked)
    }
}

fn kill_everywhere(args: &'static [&'static str], interrupted: Option<Point>) -> Result<()> {
    let killed = Killed { sites: Sites::new()?, args, interrupted };
    let points = Points::from_env(EVERY)?;
    let done = kill::run(&killed, Fault::KillBeforeChanges, &points, 2).with_context(|| format!("{args:?}"))?;
    report(&format!("{args:?} after {:?}", killed.interrupted), &points, &done);
    Ok(())
}

#[test]
fn seal() -> Result<()> {
    kill_everywhere(&["seal", "c"], None)
}

/// The first version of a big file is sealed with its outboard; two changed ones are to be.
#[test]
fn seal_of_a_big_file_that_was_changed_in_place() -> Result<()> {
    let sites = Sites::with(FsKind::Xfs, &|world, number| {
        let write = match number {
            1 => "dd if=/dev/urandom of=/big bs=1000000 count=9".to_owned(),
            _ => format!("dd if=/dev/urandom of=/big bs=4096 count=3 seek={number}00 conv=notrunc"),
        };
        world.ok(&["start", "c", "--", "/bin/sh", "-c", &format!("{write} 2>/dev/null")])?;
        if number == 1 { world.ok(&["seal", "c"]) } else { Ok(()) }
    })?;
    let killed = Killed { sites, args: &["seal", "c"], interrupted: None };
    let points = Points::from_env(EVERY)?;
    let done = kill::run(&killed, Fault::KillBeforeChanges, &points, 2).context("a seal of a big file")?;
    report("a seal of a big file that was changed in place", &points, &done);
    Ok(())
}

#[test]
fn gc_after_a_seal_that_was_cut_off_between_its_two_files() -> Result<()> {
    kill_everywhere(&["gc"], Some(Point { call: "renameat".to_owned(), nth: 2 }))
}

#[test]
fn gc_after_a_seal_that_was_cut_off_before_its_manifest() -> Result<()> {
    kill_everywhere(&["gc"], Some(Point { call: "renameat".to_owned(), nth: 1 }))
}

#[test]
fn seal_after_a_seal_that_was_cut_off() -> Result<()> {
    kill_everywhere(&["seal", "c"], Some(Point { call: "renameat".to_owned(), nth: 4 }))
}

/// A whole run over sealed layers: start, exit, commit with eviction, and the sealing and putting together after it.
struct SealedRun {
    sites: Sites,
}

impl Scenario for SealedRun {
    type Site = World;

    fn prepare(&self) -> Result<World> {
        self.sites.copy()
    }

    fn victim<'a>(&self, site: &'a World) -> Result<Victim<'a>> {
        let change = change(4);
        let args = ["__supervise", "c", "--mode", "mount", "--", "/bin/sh", "-c", &change];
        Ok(Victim::Command(site.perennial.command(&args)))
    }

    fn check(&self, site: World, outcome: &Outcome) -> Result<()> {
        let checked = (|| {
            check_rest(&site)?;
            let seqs = site.perennial.seqs("c")?;
            let whole = outcome.hit.is_none();
            ensure!(!whole || seqs == [2, 3, 4], "after an unharmed end there are {seqs:?}");
            ensure!([&[1, 2, 3][..], &[2, 3, 4], &[1, 2, 3, 4]].contains(&seqs.as_slice()), "generations {seqs:?}");
            check_shown(&site, &self.sites.shown)?;
            finish(&site)?;
            check_shown(&site, &self.sites.shown)
        })();
        done(&site, checked)
    }
}

#[test]
fn a_run_over_sealed_layers() -> Result<()> {
    let sites = Sites::new()?;
    sites.template.ok(&["seal"])?;
    sites.template.ok(&["set", "c", "--seal", "auto"])?;
    check_rest(&sites.template)?;
    check_shown(&sites.template, &sites.shown)?;
    let run = SealedRun { sites };
    let points = Points::from_env(EVERY)?;
    let done = kill::run(&run, Fault::KillBeforeChanges, &points, 2).context("a run over sealed layers")?;
    report("a run over sealed layers", &points, &done);
    Ok(())
}

/// A seal that fails for want of space leaves a directory, and what it had written goes.
#[test]
fn a_seal_on_a_full_disk_changes_nothing() -> Result<()> {
    let disk = LoopFs::small()?;
    let world = World::with_image(&disk.path().join("root"))?;
    world.add_container("c", 3, 0)?;
    // Many names, so that the metadata has some size.
    let many = "mkdir /m; for n in $(seq 400); do seq $n 200 > /m/$n; done";
    world.ok(&["start", "c", "--", "/bin/sh", "-c", many])?;
    check_rest(&world)?;
    let before = shown(&world)?;
    for leave in [0, 8 << 10, 40 << 10] {
        let filler = disk.fill(leave)?;
        let sealed = world.perennial.run(&["seal", "c"])?;
        ensure!(sealed.code() != 0, "it was sealed without space ({leave} bytes): {}", sealed.out());
        ensure!(sealed.err().to_lowercase().contains("no space"), "{}", sealed.err());
        check_shown(&world, &before).or_else(|error| {
            // A view takes a record, for which there may be no space either.
            if format!("{error:#}").to_lowercase().contains("no space") { Ok(()) } else { Err(error) }
        })?;
        filler.release()?;
        world.ok(&["gc"])?;
        ensure!(!forms(&world)?.contains(&true), "{:?}", forms(&world)?);
        for layer in names(world.perennial.root().join("layers"))? {
            let found = layer_files(&world, &layer)?;
            ensure!(!found.iter().any(|name| name.starts_with('.')), "layer {layer} has {found:?}");
        }
        let staging = names(world.perennial.root().join("staging"))?;
        ensure!(staging.is_empty(), "left in staging: {staging:?}");
        check_shown(&world, &before)?;
    }
    // Exits go on.
    world.ok(&["start", "c", "--", "/bin/sh", "-c", "echo after > /state"])?;
    check_rest(&world)?;
    finish(&world)?;
    check_shown(&world, &before)
}

fn spawn(perennial: &Perennial, args: &[&str]) -> Result<std::process::Child> {
    let mut command = perennial.command(args);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().context("cannot start a command")
}

#[test]
fn several_seals_at_once_agree() -> Result<()> {
    let sites = Sites::new()?;
    for round in 0..4 {
        let site = sites.copy()?;
        let mut children = Vec::new();
        for args in [&["seal", "c"][..], &["seal"], &["seal", "c"], &["gc"]] {
            children.push((args, spawn(&site.perennial, args)?));
        }
        for (args, child) in &mut children {
            let status = wait_within(child, LIMIT)?.with_context(|| format!("{args:?} still runs"))?;
            ensure!([Some(0), Some(4)].contains(&status.code()), "round {round}: {args:?}: {status:?}");
        }
        let checked = check_rest(&site).and_then(|()| check_shown(&site, &sites.shown)).and_then(|()| finish(&site));
        done(&site, checked)?;
    }
    Ok(())
}

/// The seal is at work on a file that takes long to read when a container starts, changes something and ends.
#[test]
fn a_start_and_an_exit_wait_for_no_seal() -> Result<()> {
    let sites = Sites::new()?;
    let site = sites.copy()?;
    // Not a byte on disk.
    site.ok(&["start", "c", "--", "/bin/sh", "-c", "dd if=/dev/zero of=/huge bs=1 count=1 seek=40000000000"])?;
    site.check_whole()?;
    let mut sealing = spawn(&site.perennial, &["seal", "c"])?;
    wait_until("the last layer is being sealed", Duration::from_secs(40), || {
        ensure!(sealing.try_wait()?.is_none(), "the seal has ended: {:?}", forms(&site)?);
        let forms = forms(&site)?;
        Ok(forms.first() == Some(&false) && forms.iter().skip(1).all(|sealed| *sealed))
    })?;
    let begun = now();
    site.ok(&["start", "c", "--", "/bin/sh", "-c", "echo meanwhile > /state; mv /keep /gone"])?;
    let took = now() - begun;
    let went_on = sealing.try_wait()?.is_none();
    sealing.kill()?;
    sealing.wait()?;
    println!("a start and an exit during a seal took {took:?}");
    ensure!(went_on, "the seal was over before the exit: nothing was shown");
    pause(Duration::from_millis(50));
    let shown = site.perennial.ok(&["run", "c", "--", "/bin/sh", "-c", "cat /state; rm /huge"])?;
    ensure!(shown.out() == "meanwhile\n", "{:?}", shown.out());
    done(&site, check_rest(&site))
}

/// The image is sealed while containers run on it.
#[test]
fn an_image_is_sealed_under_running_containers() -> Result<()> {
    let sites = Sites::new()?;
    let site = sites.copy()?;
    site.ok(&["start", "c", "--detach"])?;
    site.ok(&["seal", "--image", IMAGE])?;
    site.ok(&["gc"])?;
    let listing = site.perennial.ok(&["exec", "c", "cat", "/own"])?;
    ensure!(!listing.out().is_empty(), "nothing is shown");
    site.ok(&["stop", "c"])?;
    let checked = check_rest(&site).and_then(|()| check_shown(&site, &sites.shown)).and_then(|()| finish(&site));
    done(&site, checked)
}
