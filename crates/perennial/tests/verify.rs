//! Row A29: whatever is damaged is found, named and marked, what is not damaged goes on, and nothing is deleted.
//!
//! Each kind of damage is done to each file of the store, in a copy of the same root, and the commands are asked. What
//! a start does not look at is in the table too: contents of objects, and what lies behind the head of a manifest.

#![expect(clippy::indexing_slicing, reason = "helpers of tests act like the tests")]

mod stage;

use anyhow::{Context as _, Result, ensure};
use perennial_store::records::sqlite::SqliteRecords;
use perennial_testkit::cli::Perennial;
use perennial_testkit::host::{self, now};
use serde_json::Value;
use stage::{Stage, complains, names, text, texts, write};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Exit code of what is refused because something is damaged.
const DAMAGED: i32 = 6;

/// What is done to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    Missing,
    Truncated,
    Flipped,
    Directory,
}

const DAMAGES: [Damage; 4] = [Damage::Missing, Damage::Truncated, Damage::Flipped, Damage::Directory];

/// Which file it is done to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Description,
    Manifest,
    Image,
    Object,
    Tree,
}

/// A root with sealed generations `web@1` to `web@3`, a fork `other` of the second, and `plain`, whose layer is a
/// directory.
struct Store {
    stage: Stage,
    /// The layer of `web@3` and that of `plain@1`.
    newest: String,
    plain: String,
    /// The object that only `web@3` has, below the root.
    object: PathBuf,
}

fn content(number: u64) -> String {
    format!("number {number} {}\n", "x".repeat(4000))
}

fn forms(cli: &Perennial, name: &str) -> Result<Vec<bool>> {
    let last = cli.generations(name)?.pop().context("a generation")?;
    Ok(last["sealed_layers"].as_array().into_iter().flatten().filter_map(Value::as_bool).collect())
}

impl Store {
    fn new() -> Result<Self> {
        let stage = Stage::new()?;
        stage.ok(&["seal"])?;
        for number in 1..=3 {
            let before = objects(stage.root())?;
            stage.sh_ok("web", &format!("cat >/srv.txt <<EOF\n{}EOF\necho {number} >/small", content(number)))?;
            stage.quiet()?;
            if number == 3 {
                let after = objects(stage.root())?;
                let new: Vec<&PathBuf> = after.difference(&before).collect();
                ensure!(new.len() == 1, "the run has made {new:?}");
                let object = new.first().context("an object")?.to_path_buf();
                ensure!(forms(&stage, "web")? == [true; 3], "{:?}", forms(&stage, "web")?);
                let newest = texts(&stage.generation("web", 3)?, "/layers")?.remove(0);
                stage.ok(&["fork", "web@2", "other"])?;
                stage.ok(&["create", "plain", "--image", "box", "--seal", "never", "--", "true"])?;
                stage.ok(&["run", "plain", "--", "sh", "-c", "echo plain >/plain"])?;
                stage.quiet()?;
                let plain = texts(&stage.generation("plain", 1)?, "/layers")?.remove(0);
                return Ok(Self { stage, newest, plain, object });
            }
        }
        anyhow::bail!("no third run")
    }

    /// Copies the root, so that it can be harmed.
    fn copy(&self, name: &str) -> Result<Copied> {
        let root = self.stage.path(name);
        host::run(Command::new("cp").arg("-a").arg(self.stage.root()).arg(&root))?;
        Ok(Copied { cli: Perennial::at(env!("CARGO_BIN_EXE_perennial"), root) })
    }

    fn file_of(&self, part: Part) -> PathBuf {
        let layer = |id: &str, name: &str| Path::new("layers").join(id).join(name);
        match part {
            Part::Description => layer(&self.newest, "layer.json"),
            Part::Manifest => layer(&self.newest, "manifest"),
            Part::Image => layer(&self.newest, "meta.erofs"),
            Part::Object => self.object.clone(),
            Part::Tree => layer(&self.plain, "tree"),
        }
    }

    /// What a message about the damage has to name.
    fn named(&self, part: Part) -> String {
        let object = || {
            let file = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            format!("{}{}", file(self.object.parent().unwrap_or(&self.object)), file(&self.object))
        };
        match part {
            Part::Description => "layer.json".to_owned(),
            Part::Manifest => "manifest".to_owned(),
            Part::Image => "meta.erofs".to_owned(),
            Part::Object => object(),
            Part::Tree => "tree".to_owned(),
        }
    }
}

/// A root of its own, cleaned up when it is dropped.
struct Copied {
    cli: Perennial,
}

impl Drop for Copied {
    fn drop(&mut self) {
        drop(self.cli.clean_up());
        drop(fs::remove_dir_all(self.cli.root()));
    }
}

/// Objects, by their paths below the root.
fn objects(root: &Path) -> Result<BTreeSet<PathBuf>> {
    let top = Path::new("objects");
    let mut found = BTreeSet::new();
    for secret in names(&root.join(top))? {
        for prefix in names(&root.join(top).join(&secret))? {
            let directory = top.join(&secret).join(prefix);
            found.extend(names(&root.join(&directory))?.into_iter().map(|name| directory.join(name)));
        }
    }
    Ok(found)
}

/// Everything that holds data, by path below the root.
fn kept(root: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut found = objects(root)?;
    for layer in names(&root.join("layers"))? {
        let directory = Path::new("layers").join(layer);
        found.extend(names(&root.join(&directory))?.into_iter().map(|name| directory.join(name)));
    }
    Ok(found)
}

/// Does the damage; what was there is kept beside the root, for [`repair`].
fn harm(path: &Path, aside: &Path, damage: Damage) -> Result<()> {
    host::run(Command::new("cp").arg("-a").arg(path).arg(aside))?;
    let remove = |path: &Path| if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match damage {
        Damage::Missing => remove(path)?,
        Damage::Directory => {
            remove(path)?;
            fs::create_dir(path)?;
        }
        Damage::Truncated => {
            let bytes = fs::read(path)?;
            write(path, &bytes[..bytes.len() / 2])?;
        }
        Damage::Flipped => {
            let mut bytes = fs::read(path)?;
            // SQLite has checksums in its log only: of its file it sees what is wrong with its structure.
            let is_records = path.ends_with("records.db");
            let at = if is_records { 3 } else { bytes.len() / 2 };
            bytes[at] ^= 0x80;
            write(path, bytes)?;
        }
    }
    Ok(())
}

fn repair(path: &Path, aside: &Path) -> Result<()> {
    if path.is_dir() {
        fs::remove_dir_all(path)?;
    }
    host::run(Command::new("cp").arg("-aT").arg("--remove-destination").arg(aside).arg(path))?;
    Ok(())
}

/// Facts that did not hold, so that one run of the table tells all of them.
#[derive(Default)]
struct Wrong(Vec<String>);

impl Wrong {
    fn note(&mut self, what: &str, result: Result<()>) {
        if let Err(error) = result {
            self.0.push(format!("{what}: {error:#}"));
        }
    }

    fn none(self) -> Result<()> {
        ensure!(self.0.is_empty(), "{} facts do not hold:\n{}", self.0.len(), self.0.join("\n"));
        Ok(())
    }
}

/// Runs a command that has to say that something is damaged, and what.
fn told(cli: &Perennial, args: &[&str], named: &[&str]) -> Result<()> {
    let run = cli.run(args)?.code_is(DAMAGED)?;
    let said = format!("{}{}", run.out(), run.err());
    for name in named {
        ensure!(said.contains(name), "{args:?} does not name {name}:\n{said}");
    }
    ensure!(said.contains("hint"), "{args:?} gives no hint:\n{said}");
    Ok(())
}

fn shows(cli: &Perennial, name: &str, mode: &str, path: &str, expected: &str) -> Result<()> {
    let said = cli.ok(&["run", name, "--mode", mode, "--", "cat", path])?.out();
    ensure!(said == expected, "{name} in mode {mode} shows {said:.40?}");
    Ok(())
}

fn health(cli: &Perennial, name: &str, seq: u64) -> Result<String> {
    let found = cli.generations(name)?.into_iter().find(|generation| generation["seq"] == seq);
    Ok(text(&found.context("the generation")?, "/health")?.to_owned())
}

/// A start or another use before anything has been verified: refused by name, or right.
fn unverified(cli: &Perennial, part: Part, damage: Damage, named: &str, wrong: &mut Wrong) {
    let container = if part == Part::Tree { "plain" } else { "web" };
    let newest = if part == Part::Tree { "plain\n".to_owned() } else { content(3) };
    let path = if part == Part::Tree { "/plain" } else { "/srv.txt" };
    let layer_is_told = match (part, damage) {
        (Part::Description, _) | (Part::Manifest, Damage::Flipped) | (Part::Object, _) => false,
        (Part::Tree | Part::Image, _) | (Part::Manifest, _) => true,
    };
    for mode in stage::MODES {
        let what = format!("{part:?} {damage:?}: start --mode {mode}");
        if layer_is_told || (part == Part::Object && mode == "unpack") {
            let args = ["start", container, "--detach", "--mode", mode];
            let named = if part == Part::Tree { "missing" } else { named };
            wrong.note(&what, told(cli, &args, &[named]));
        } else if part != Part::Object {
            wrong.note(&what, shows(cli, container, mode, path, &newest));
        }
    }
    if layer_is_told {
        let args = ["diff", if part == Part::Tree { "plain@1" } else { "web@3" }];
        wrong.note(&format!("{part:?} {damage:?}: diff"), told(cli, &args, &[]));
    }
}

/// What verification finds, marks, offers and clears again.
fn verified(store: &Store, copied: &Copied, part: Part, damage: Damage, wrong: &mut Wrong) -> Result<()> {
    let (cli, named) = (&copied.cli, store.named(part));
    let (container, seq) = if part == Part::Tree { ("plain", 1) } else { ("web", 3) };
    let what = |command: &str| format!("{part:?} {damage:?}: {command}");
    let only_full = part == Part::Object && damage == Damage::Flipped;
    if only_full {
        wrong.note(&what("verify"), cli.ok(&["verify"]).map(drop));
        ensure!(health(cli, container, seq)? != "damaged", "marked without a reason");
    } else {
        wrong.note(&what("verify"), told(cli, &["verify"], &[&named]));
    }
    wrong.note(&what("verify --full"), told(cli, &["verify", "--full"], &[&named]));
    wrong.note(
        &what("generations"),
        (|| {
            let health = health(cli, container, seq)?;
            ensure!(health == "damaged", "health is {health}");
            Ok(())
        })(),
    );
    let doctor = cli.run(&["doctor"])?;
    let finds = doctor.out().contains(&format!("{container}@{seq}")) || doctor.out().contains("damaged");
    wrong.note(&what("doctor"), if finds { Ok(()) } else { Err(anyhow::anyhow!("{}", doctor.out())) });
    for mode in stage::MODES {
        let args = ["start", container, "--detach", "--mode", mode];
        wrong.note(&what("marked start"), told(cli, &args, &[&format!("{container}@{seq}")]));
    }
    Ok(())
}

/// What is not damaged goes on, and what is stays where it is.
fn others_go_on(store: &Store, copied: &Copied, part: Part, damage: Damage, wrong: &mut Wrong) -> Result<()> {
    let cli = &copied.cli;
    let what = |command: &str| format!("{part:?} {damage:?}: {command}");
    let before = kept(cli.root())?;
    wrong.note(&what("other"), shows(cli, "other", "mount", "/srv.txt", &content(2)));
    wrong.note(
        &what("gc"),
        match cli.run(&["gc"])?.code() {
            0 | DAMAGED => Ok(()),
            code => Err(anyhow::anyhow!("code {code}")),
        },
    );
    if part != Part::Tree {
        let told = cli.run(&["verify"])?;
        let offered = told.out().contains("rollback web --to 2");
        let only_full = part == Part::Object && damage == Damage::Flipped;
        wrong.note(
            &what("the nearest"),
            if offered || only_full { Ok(()) } else { Err(anyhow::anyhow!("{}", told.out())) },
        );
        wrong.note(&what("rollback"), cli.ok(&["rollback", "web", "--to", "2"]).map(drop));
        for mode in stage::MODES {
            wrong.note(&what("an intact one"), shows(cli, "web", mode, "/srv.txt", &content(2)));
        }
    }
    let gone: Vec<PathBuf> = before.difference(&kept(cli.root())?).cloned().collect();
    wrong.note(&what("nothing is deleted"), if gone.is_empty() { Ok(()) } else { Err(anyhow::anyhow!("{gone:?}")) });
    let path = store.file_of(part);
    ensure!(damage == Damage::Missing || cli.root().join(&path).exists(), "{} is gone", path.display());
    Ok(())
}

fn restored(copied: &Copied, part: Part, damage: Damage, wrong: &mut Wrong) {
    let cli = &copied.cli;
    let what = |command: &str| format!("{part:?} {damage:?}: put back: {command}");
    wrong.note(&what("verify --full"), cli.ok(&["verify", "--full"]).map(drop));
    let (container, seq) = if part == Part::Tree { ("plain", 1) } else { ("web", 3) };
    wrong.note(
        &what("mark"),
        (|| {
            let health = health(cli, container, seq)?;
            ensure!(health == "unknown", "health is {health}");
            cli.ok(&["rollback", container, "--to", &seq.to_string()])?;
            if part == Part::Tree {
                shows(cli, "plain", "mount", "/plain", "plain\n")
            } else {
                shows(cli, "web", "mount", "/srv.txt", &content(3))
            }
        })(),
    );
    wrong.note(&what("doctor"), cli.ok(&["doctor"]).map(drop));
}

fn damage_of(part: Part) -> Result<()> {
    let store = Store::new()?;
    let mut wrong = Wrong::default();
    for damage in DAMAGES {
        if part == Part::Tree && matches!(damage, Damage::Flipped | Damage::Truncated | Damage::Directory) {
            // A directory has neither bytes nor another kind; what is in it has no checksums before it is sealed.
            continue;
        }
        let (first, second) = (store.copy("first")?, store.copy("second")?);
        let path = store.file_of(part);
        for copied in [&first, &second] {
            let aside = copied.cli.root().with_extension("aside");
            drop(fs::remove_dir_all(&aside));
            drop(fs::remove_file(&aside));
            harm(&copied.cli.root().join(&path), &aside, damage)?;
        }
        unverified(&first.cli, part, damage, &store.named(part), &mut wrong);
        verified(&store, &second, part, damage, &mut wrong)?;
        others_go_on(&store, &second, part, damage, &mut wrong)?;
        repair(&second.cli.root().join(&path), &second.cli.root().with_extension("aside"))?;
        restored(&second, part, damage, &mut wrong);
    }
    wrong.none()
}

#[test]
fn damage_to_a_description_is_found() -> Result<()> {
    damage_of(Part::Description)
}

#[test]
fn damage_to_a_manifest_is_found() -> Result<()> {
    damage_of(Part::Manifest)
}

#[test]
fn damage_to_an_image_is_found() -> Result<()> {
    damage_of(Part::Image)
}

#[test]
fn damage_to_an_object_is_found() -> Result<()> {
    damage_of(Part::Object)
}

#[test]
fn damage_to_a_directory_is_found() -> Result<()> {
    damage_of(Part::Tree)
}

/// Without records or the store's own description nothing is done, and nothing is deleted.
#[test]
fn damage_to_the_store_itself_is_refused() -> Result<()> {
    let store = Store::new()?;
    let mut wrong = Wrong::default();
    let commands: [&[&str]; 9] = [
        &["verify"],
        &["verify", "--full"],
        &["start", "web", "--detach"],
        &["start", "web", "--detach", "--mode", "unpack"],
        &["generations", "web"],
        &["rollback", "web", "--to", "1"],
        &["diff", "web@3"],
        &["gc"],
        &["doctor"],
    ];
    for file in ["records.db", "format.json"] {
        for damage in DAMAGES {
            let copied = store.copy("harmed")?;
            let root = copied.cli.root();
            let before = kept(root)?;
            let aside = root.with_extension("aside");
            drop(fs::remove_dir_all(&aside));
            drop(fs::remove_file(&aside));
            // The log is folded into the file, so that the file alone is the store.
            SqliteRecords::open_or_create(&root.join("records.db"))?.close_whole()?;
            harm(&root.join(file), &aside, damage)?;
            for args in commands {
                let what = format!("{file} {damage:?}: {args:?}");
                wrong.note(&what, refused(&copied.cli, args, file, damage));
            }
            let gone: Vec<PathBuf> = before.difference(&kept(root)?).cloned().collect();
            wrong.note(
                &format!("{file} {damage:?}"),
                if gone.is_empty() { Ok(()) } else { Err(anyhow::anyhow!("{gone:?} is gone")) },
            );
            // A log that was begun meanwhile would be played over what is put back.
            for rest in ["records.db-wal", "records.db-shm"] {
                if file == "records.db" {
                    drop(fs::remove_file(root.join(rest)));
                }
            }
            repair(&root.join(file), &aside)?;
            wrong.note(&format!("{file} {damage:?} put back"), copied.cli.ok(&["verify", "--full"]).map(drop));
            wrong.note(
                &format!("{file} {damage:?} put back"),
                shows(&copied.cli, "web", "mount", "/srv.txt", &content(3)),
            );
        }
    }
    wrong.none()
}

fn refused(cli: &Perennial, args: &[&str], file: &str, damage: Damage) -> Result<()> {
    let run = cli.run(args)?;
    ensure!(run.code() != 0, "{args:?} succeeded:\n{}", run.out());
    ensure!([1, DAMAGED, 2].contains(&run.code()), "code {}: {}", run.code(), run.err());
    let said = format!("{}{}", run.out(), run.err());
    ensure!(damage == Damage::Missing || said.contains(file), "does not name {file}:\n{said}");
    if !said.contains("hint") {
        complains(&said, &[])?;
    }
    Ok(())
}

/// A scrub that is cut off by its time goes on where it stopped, and reads about as fast as it may.
#[test]
fn a_scrub_keeps_its_rate_and_goes_on_where_it_stopped() -> Result<()> {
    const FILES: u64 = 12;
    const FILE_BYTES: u64 = 1 << 20;
    let stage = Stage::new()?;
    let script = format!("for n in $(seq {FILES}); do (echo $n; head -c {} /dev/zero) >/f$n; done", FILE_BYTES - 16);
    stage.sh_ok("web", &script)?;
    stage.quiet()?;
    let total = stage.json::<Value>(&["verify", "--full"])?["bytes"].as_u64().context("bytes")?;
    ensure!(total > FILES * (FILE_BYTES - 16), "{total}");
    let (rate, seconds) = (4 << 20, 1);
    let mut read = 0;
    for turn in 0..20 {
        let begun = now();
        let found: Value = stage.json(&["scrub", "--rate", "4m", "--for", &seconds.to_string()])?;
        let took = (now() - begun).as_millis().max(1);
        let bytes = found["bytes"].as_u64().context("bytes")?;
        read += bytes;
        let is_complete = found["complete"] == true;
        // One file may be begun at the last instant, and the machine may be slow.
        ensure!(bytes <= rate * seconds + 2 * FILE_BYTES, "{bytes} bytes in a second");
        ensure!(is_complete || took < 8000, "it took {took} ms");
        ensure!(is_complete || bytes >= rate * seconds / 4, "only {bytes} bytes in a second");
        ensure!(read <= total + 2 * FILE_BYTES, "{read} of {total} bytes after turn {turn}: it began again");
        if is_complete {
            ensure!(turn >= 1, "it was too fast: {took} ms for {total} bytes");
            ensure!(read >= total, "{read} of {total} bytes were read");
            return Ok(());
        }
    }
    anyhow::bail!("it does not come to the end: {read} of {total} bytes")
}

/// A scrub finds what a look at names and lengths does not.
#[test]
fn a_scrub_finds_a_changed_byte() -> Result<()> {
    let store = Store::new()?;
    let copied = store.copy("scrubbed")?;
    harm(&copied.cli.root().join(&store.object), &copied.cli.root().with_extension("aside"), Damage::Flipped)?;
    told(&copied.cli, &["scrub"], &[&store.named(Part::Object), "web@3", "rollback web --to 2"])?;
    ensure!(health(&copied.cli, "web", 3)? == "damaged", "not marked");
    ensure!(health(&copied.cli, "web", 2)? != "damaged", "marked without a reason");
    Ok(())
}

/// What was committed last is in the log until it is long enough: a root that has lost it is not emptied.
#[test]
fn records_that_have_lost_their_log_are_refused() -> Result<()> {
    let store = Store::new()?;
    let copied = store.copy("lost")?;
    let root = copied.cli.root();
    let before = kept(root)?;
    let log = root.join("records.db-wal");
    ensure!(fs::metadata(&log)?.len() > 0, "everything is in the file already");
    fs::rename(&log, root.with_extension("aside"))?;
    drop(fs::remove_file(root.join("records.db-shm")));
    for args in [&["gc"][..], &["verify"], &["start", "web", "--detach"], &["generations", "web"]] {
        told(&copied.cli, args, &["records.db", "doctor --rebuild"])?;
    }
    let gone: Vec<PathBuf> = before.difference(&kept(root)?).cloned().collect();
    ensure!(gone.is_empty(), "{gone:?} is gone");
    copied.cli.ok(&["doctor", "--rebuild"])?;
    shows(&copied.cli, "web", "mount", "/srv.txt", &content(3))
}
