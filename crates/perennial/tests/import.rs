//! Images as generations: what was exported comes back, what was built on it too, and nothing else gets in.

#![expect(clippy::indexing_slicing, reason = "helpers of tests act like the tests")]

mod stage;

use anyhow::{Context as _, Result, ensure};
use perennial_testkit::host::run;
use perennial_testkit::image::{Compression, ImageText, oci_layout, pack};
use perennial_testkit::loopfs::{FsKind, LoopFs};
use perennial_testkit::traps;
use perennial_testkit::tree::ensure_equal_but;
use serde_json::{Value, json};
use stage::trapped::{Podman, Trapped, ensure_complete, is_named};
use stage::{IDLE, Stage, box_tar, text, texts, write};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Names that no layer of an image can hold, so that whole trees are compared where a base image has some.
const UNSPEAKABLE: [&str; 2] = ["lookalikes", "deep"];

/// Exports a trapped container and imports the image into it and into a new one: both show what it has left.
fn everything_returns(trapped: &Trapped, layered: (&str, usize)) -> Result<()> {
    let stage = &trapped.stage;
    // Eviction would fold the layers of the generation that is exported.
    stage.ok(&["pin", "web@1"])?;
    stage.ok(&["pin", "web@2"])?;
    let ways = [("layered", &[][..], layered), ("flat", &["--flatten"], ("difference", 1))];
    for (name, options, (taken, layers)) in ways {
        let destination = format!("oci:{}", stage.path(name).display());
        let said: Value = stage.json(&[&["export", "web@2", &destination], options].concat())?;
        ensure_complete(&said)?;
        for container in ["web", name] {
            let done: Value = stage.json(&["import", container, &destination])?;
            ensure!(done["taken"] == taken && done["is_new"] == (container == name), "{done:#}");
            ensure!(done["layers"].as_array().map(Vec::len) == Some(layers), "{done:#}");
            let generation = stage.generation(container, done["seq"].as_u64().context("seq")?)?;
            ensure!(generation["kind"] == "import" && generation["health"] == "unknown", "{generation:#}");
            stage.ok(&["start", container, "--detach"])?;
            let found = stage.seen_in(container)?;
            stage.ok(&["stop", container])?;
            stage.quiet()?;
            ensure_equal_but(&trapped.left, &found, &|difference| is_named(&said, difference))
                .with_context(|| format!("{container}, {name}: {:#}", said["not_said"]))?;
        }
        stage.ok(&["rm", name])?;
        fs::remove_dir_all(stage.path(name))?;
    }
    stage.ok(&["doctor"]).map(drop)
}

#[test]
fn what_was_exported_from_directories_returns_but_for_what_the_report_named() -> Result<()> {
    everything_returns(&Trapped::new("never", traps::capabilities())?, ("difference", 1))
}

#[test]
fn what_was_exported_from_sealed_layers_returns_but_for_what_the_report_named() -> Result<()> {
    let trapped = Trapped::sealed()?;
    trapped.stage.ok(&["seal"])?;
    everything_returns(&trapped, ("difference", 1))
}

#[test]
fn layers_return_as_layers_where_the_base_image_can_be_said_whole() -> Result<()> {
    let trapped = Trapped::without(&UNSPEAKABLE, "never", traps::capabilities())?;
    everything_returns(&trapped, ("layers", 2))?;
    trapped.stage.ok(&["seal", "--image", "box"])?;
    everything_returns(&trapped, ("layers", 2))
}

/// A stage with an image of two layers, `two`, and the container `web` on it with two generations.
fn grown() -> Result<Stage> {
    let stage = Stage::new()?;
    let upper = stage.path("upper");
    for dir in ["opt", "srv", "etc"] {
        fs::create_dir_all(upper.join(dir))?;
    }
    // What is mounted over in each run.
    for name in ["etc/hosts", "etc/hostname", "etc/resolv.conf"] {
        write(upper.join(name), "")?;
    }
    write(upper.join("opt/own"), "of the image")?;
    write(upper.join("opt/gone"), "of the image")?;
    let (layout, packed) = (stage.path("two"), stage.path("upper.tar"));
    fs::create_dir(&layout)?;
    // Once: a tar says when its files were last read.
    pack(&upper, &packed)?;
    oci_layout(&layout, &[box_tar()?, &packed], &ImageText::default(), Compression::Zstd)?;
    stage.import_from(&format!("oci:{}", layout.display()), "two")?;
    stage.ok(&["create", "web", "--image", "two", "--env", "NAME=value", "--", "sh", "-c", IDLE])?;
    run_in(&stage, "web", "echo 1 >/state; rm /opt/gone; mkdir /srv/d; echo x >/srv/d/x; ln /srv/d/x /srv/d/y")?;
    run_in(&stage, "web", "echo 2 >/state; rm /srv/d/x; chmod 700 /srv")?;
    stage.quiet()?;
    Ok(stage)
}

fn run_in(stage: &Stage, name: &str, script: &str) -> Result<String> {
    Ok(stage.ok(&["run", name, "--", "sh", "-c", script])?.out())
}

const SHOW: &str = "cat /state; ls /opt; ls /srv/d; stat -c %a /srv";
const SHOWN: &str = "2\nown\ny\n700\n";

fn export(stage: &Stage, generation: &str, to: &str, options: &[&str]) -> Result<String> {
    let destination = format!("oci:{}", stage.path(to).display());
    stage.ok(&[&["export", generation, &destination], options].concat())?;
    Ok(destination)
}

/// On another machine, the base image is known by its layers whatever digest it has there, or by what the image says.
#[test]
fn another_store_with_the_same_base_image_takes_it() -> Result<()> {
    let stage = grown()?;
    let other = Stage::empty()?;
    other.import_from(&format!("oci:{}", stage.path("two").display()), "same")?;
    for (to, options, taken) in [("layered", &[][..], "layers"), ("flat", &["--flatten"], "difference")] {
        let source = export(&stage, "web@2", to, options)?;
        let done: Value = other.json(&["import", to, &source])?;
        ensure!(done["image_name"] == "same" && done["taken"] == taken, "{done:#}");
        // Settings of the container come along: that is what it runs, with the environment it had.
        let spec = other.inspect(to)?;
        ensure!(spec["spec"]["env"] == json!(["NAME=value"]), "{spec:#}");
        ensure!(run_in(&other, to, SHOW)? == SHOWN, "{to}");
        let changed: Value = other.json(&["diff", &format!("{to}@1"), "image"])?;
        let paths: Vec<String> =
            changed["changes"].as_array().into_iter().flatten().map(|c| c["path"].to_string()).collect();
        let expected = ["/opt/gone", "/srv", "/srv/d", "/srv/d/y", "/state"].map(|path| format!("\"{path}\""));
        ensure!(paths == expected, "{to}: {paths:?}");
    }
    // The owner says on which image, where nothing else does.
    let rootfs = stage.rootfs("rootfs")?;
    let renamed = other.import(&rootfs, "box")?;
    let source = format!("oci:{}", stage.path("flat").display());
    let done: Value = other.json(&["import", "moved", &source, "--image", "box"])?;
    ensure!(done["image"] == json!(renamed) && done["taken"] == "difference", "{done:#}");
    ensure!(run_in(&other, "moved", SHOW)? == SHOWN);
    other.ok(&["doctor"]).map(drop)
}

/// The generation is one like others: it is listed with who and when, and can be left again.
#[test]
fn what_was_imported_is_a_generation_like_others() -> Result<()> {
    let stage = grown()?;
    let source = export(&stage, "web@1", "one", &[])?;
    let said = stage.ok(&["import", "web", &source])?.out();
    ensure!(said.starts_with(&format!("web@3 is {source} on image two: 1 layer, ")), "{said}");
    let generation = stage.generation("web", 3)?;
    ensure!(generation["kind"] == "import" && generation["parent"].is_null(), "{generation:#}");
    ensure!(
        text(&generation, "/note")?.starts_with(&format!("imported from {source} (web@1, left at ")),
        "{generation:#}"
    );
    ensure!(!text(&generation, "/by")?.is_empty(), "{generation:#}");
    let events = stage.events("web")?;
    let event = events.last().context("no event")?;
    ensure!(event["action"] == "import" && event["to"] == 3, "{event:#}");
    ensure!(run_in(&stage, "web", "cat /state; ls /srv/d")? == "1\nx\ny\n");
    stage.ok(&["rollback", "web", "--to", "2"])?;
    ensure!(run_in(&stage, "web", SHOW)? == SHOWN);
    // It seals, can be checked and exported again, and the export is the same layer.
    stage.ok(&["rollback", "web", "--to", "3"])?;
    let before: Value = stage.json(&["export", "web@3", &format!("oci:{}", stage.path("dirs").display())])?;
    stage.ok(&["seal"])?;
    ensure!(stage.generation("web", 3)?["sealed_layers"] == json!([true]));
    stage.ok(&["verify", "--full"])?;
    let after: Value = stage.json(&["export", "web@3", &format!("oci:{}", stage.path("sealed").display())])?;
    ensure!(before["layers"] == after["layers"], "{before:#}\n{after:#}");
    stage.ok(&["doctor"]).map(drop)
}

/// A state without changes, and an image that shows just what the base image does.
#[test]
fn nothing_but_the_base_image_is_a_generation_without_layers() -> Result<()> {
    let stage = grown()?;
    stage.ok(&["create", "plain", "--image", "two"])?;
    ensure!(run_in(&stage, "plain", "true")?.is_empty());
    for (to, options) in [("layered", &[][..]), ("flat", &["--flatten"])] {
        let source = export(&stage, "plain", to, options)?;
        let done: Value = stage.json(&["import", "plain", &source])?;
        ensure!(done["layers"] == json!([]), "{to}: {done:#}");
        ensure!(run_in(&stage, "plain", "ls /opt")? == "gone\nown\n");
    }
    Ok(())
}

/// Engines build on what was exported: their layers come on top.
#[test]
fn an_image_that_podman_built_on_an_exported_one_is_imported() -> Result<()> {
    let stage = grown()?;
    let archive = stage.path("base.tar");
    stage.ok(&["export", "web@2", &format!("oci-archive:{}:localhost/web:2", archive.display())])?;
    let podman = Podman::new(stage.path("podman"), "vfs")?;
    podman.ok(&["load", "--input", archive.to_str().context("UTF-8")?])?;
    let context = stage.path("context");
    fs::create_dir(&context)?;
    write(context.join("built"), "by podman")?;
    write(context.join("Containerfile"), "FROM localhost/web:2\nCOPY built /srv/d/\nCMD [\"other\"]\n")?;
    podman.ok(&["build", "--tag", "localhost/built", "--network", "none", context.to_str().context("UTF-8")?])?;
    for form in ["oci-archive", "docker-archive"] {
        let saved = stage.path(&format!("{form}.tar"));
        podman.ok(&["save", "--format", form, "--output", saved.to_str().context("UTF-8")?, "localhost/built"])?;
        let said = stage.ok(&["import", "web", &format!("{form}:{}", saved.display())])?.out();
        ensure!(said.contains("web keeps its own settings, where the image has others: command"), "{said}");
        let newest = stage.inspect("web")?["current"].as_u64().context("current")?;
        let generation = stage.generation("web", newest)?;
        ensure!(texts(&generation, "/layers")?.len() == 3, "{form}: {generation:#}");
        let shown = run_in(&stage, "web", &format!("{SHOW}; cat /srv/d/built"))?;
        ensure!(shown == "2\nown\nbuilt\ny\n700\nby podman", "{form}: {shown}");
    }
    Ok(())
}

/// A layout of the base image's layers and one more, changed by a script.
fn layout(stage: &Stage, name: &str, script: &str) -> Result<String> {
    let dir = stage.path(name);
    let own = stage.path(&format!("{name}-own"));
    fs::create_dir_all(&dir)?;
    fs::create_dir(&own)?;
    write(own.join("file"), "own")?;
    let tar = stage.path(&format!("{name}.tar"));
    run(Command::new("sh").args(["-ec", script, "sh"]).arg(&own).arg(&tar))?;
    let upper = stage.path("upper.tar");
    oci_layout(&dir, &[box_tar()?, &upper, &tar], &ImageText::default(), Compression::None)?;
    Ok(format!("oci:{}", dir.display()))
}

/// Packs the directory, the layer of which is then changed.
const PACK: &str = "tar -C \"$1\" -cf \"$2\" .";

fn blob_of_last_layer(source: &str) -> Result<PathBuf> {
    let dir = Path::new(source.trim_start_matches("oci:"));
    let read = |path: PathBuf| -> Result<Value> { Ok(serde_json::from_slice(&fs::read(path)?)?) };
    let blob = |digest: &str| dir.join("blobs/sha256").join(digest.trim_start_matches("sha256:"));
    let index = read(dir.join("index.json"))?;
    let manifest = read(blob(text(&index, "/manifests/0/digest")?))?;
    let layers = manifest["layers"].as_array().context("layers")?;
    Ok(blob(text(layers.last().context("a layer")?, "/digest")?))
}

#[test]
fn what_is_no_good_is_refused_by_name_and_nothing_changes() -> Result<()> {
    let stage = grown()?;
    let good = layout(&stage, "good", PACK)?;
    let refused = |source: &str, code: i32, named: &[&str]| {
        for name in ["web", "new"] {
            let named = [&[source][..], named].concat();
            stage.refused_unchanged(&["import", name, source], code, &named).with_context(|| source.to_owned())?;
        }
        Ok::<_, anyhow::Error>(())
    };
    // Not an image.
    refused("oci:/nowhere", 3, &["there is no /nowhere"])?;
    refused(&format!("oci:{}", stage.path("upper").display()), 1, &["index.json"])?;
    refused(&format!("oci-archive:{}", box_tar()?.display()), 1, &["index.json"])?;
    stage.refused_unchanged(&["import", "web", "rootfs:/tmp"], 2, &["rootfs:/tmp"])?;
    stage.refused_unchanged(&["import", "web", "/tmp"], 2, &["/tmp"])?;
    stage.refused_unchanged(&["import", "a/b", &good], 2, &["a/b"])?;
    stage.refused_unchanged(&["import", "web", &format!("{good}:other")], 1, &["other"])?;
    stage.refused_unchanged(&["import", "web", &good, "--image", "nobody"], 3, &["nobody"])?;
    // Of another base image, and of one that is not here.
    let other = stage.path("other");
    fs::create_dir(&other)?;
    oci_layout(&other, &[&stage.path("upper.tar")], &ImageText::default(), Compression::Gzip)?;
    let other = format!("oci:{}", other.display());
    stage.refused_unchanged(&["import", "web", &other], 4, &["does not lie on image two", "--image"])?;
    stage.refused_unchanged(&["import", "new", &other], 3, &["not in the store", "--image", "image import"])?;
    // Damaged and hostile layers.
    let damaged = layout(&stage, "damaged", PACK)?;
    let blob = blob_of_last_layer(&damaged)?;
    let mut bytes = fs::read(&blob)?;
    bytes[600] ^= 1;
    write(&blob, &bytes)?;
    refused(&damaged, 1, &["is damaged", "sha256:"])?;
    write(&blob, &bytes[..1024])?;
    refused(&damaged, 1, &["1024 bytes long"])?;
    fs::remove_file(&blob)?;
    refused(&damaged, 1, &["is missing"])?;
    for (name, script, says) in [
        ("up", "tar -C \"$1\" --transform 's,file,../../evil,' -Pcf \"$2\" file", "evil"),
        ("zero", "mknod \"$1/zero\" c 0 0; tar -C \"$1\" -cf \"$2\" .", "device 0:0"),
        (
            "steering",
            "mkdir \"$1/d\"; setfattr -n trusted.overlay.redirect -v /etc \"$1/d\"; \
             tar -C \"$1\" --xattrs --xattrs-include='*' --format=posix -cf \"$2\" .",
            "steers the union mount",
        ),
        (
            "through",
            "ln -s / \"$1/l\"; tar -C \"$1\" -cf \"$2\" l; tar -C \"$1\" --transform 's,^file,l/evil,' -rf \"$2\" file",
            "symbolic link",
        ),
    ] {
        refused(&layout(&stage, name, script)?, 1, &[says])?;
    }
    ensure!(!Path::new("/evil").exists(), "something was written outside");
    // Running.
    stage.ok(&["start", "web", "--detach"])?;
    stage.refused_with(&["import", "web", &good], 4, &["web", "Running"])?;
    stage.ok(&["stop", "web"])?;
    stage.quiet()?;
    let taken: Value = stage.json(&["import", "web", &good])?;
    ensure!(taken["taken"] == "layers" && run_in(&stage, "web", "cat /file; ls /opt")? == "owngone\nown\n");
    stage.ok(&["doctor"]).map(drop)
}

#[test]
fn an_image_for_another_machine_is_refused() -> Result<()> {
    let stage = grown()?;
    let source = layout(&stage, "alien", PACK)?;
    let dir = stage.path("alien");
    // Its documents are written again, with digests that fit.
    let script = r#"
        cd "$1/blobs/sha256"
        old=$(grep -l '"rootfs"' * | head -1); size=$(stat -c %s "$old")
        sed -i 's/"architecture":"[a-z0-9]*"/"architecture":"s390x"/' "$old"
        new=$(sha256sum <"$old" | cut -d' ' -f1); mv "$old" "$new"; new_size=$(stat -c %s "$new")
        manifest=$(grep -l '"schemaVersion"' * | head -1)
        sed -i "s/$old/$new/; s/\"size\":$size\b/\"size\":$new_size/" "$manifest"
        named=$(sha256sum <"$manifest" | cut -d' ' -f1); [ "$manifest" = "$named" ] || mv "$manifest" "$named"
        length=$(stat -c %s "$named")
        sed -i "s/$manifest/$named/; s/\"size\":[0-9]*/\"size\":$length/" ../../index.json
    "#;
    run(Command::new("sh").args(["-ec", script, "sh"]).arg(&dir))?;
    stage.refused_unchanged(&["import", "web", &source], 4, &["s390x", "web"])
}

/// Where it does not fit, nothing is left of it, and with space it succeeds.
#[test]
fn a_full_disk_leaves_nothing() -> Result<()> {
    let disk = LoopFs::new(FsKind::Ext4, 256 << 20)?;
    let stage = Stage::empty_in(&disk.path())?;
    stage.import(box_tar()?, "box")?;
    stage.sh_ok("web", "head -c 9000000 /dev/urandom >/noise; echo 1 >/state")?;
    stage.quiet()?;
    let elsewhere = tempfile::tempdir()?;
    for (to, options) in [("layered", &[][..]), ("flat", &["--flatten"])] {
        let destination = format!("oci:{}", elsewhere.path().join(to).display());
        stage.ok(&[&["export", "web@1", &destination], options].concat())?;
        let filler = disk.fill(4 << 20)?;
        let run = stage.run(&["import", "web", &destination])?.code_is(1)?;
        let error = run.err();
        ensure!(error.contains("free space") || error.contains("No space"), "{error}");
        filler.release()?;
        ensure!(stage.generations("web")?.len() == if to == "flat" { 2 } else { 1 });
        let staging = stage::names(&stage.root().join("staging"))?;
        ensure!(staging.is_empty(), "{staging:?}");
        stage.ok(&["doctor"])?;
        stage.ok(&["import", "web", &destination])?;
    }
    ensure!(stage.sh_ok("web", "cat /state")? == "1\n");
    Ok(())
}
