//! What is not valid is refused: with its exit code, by name, with a hint, and without a change.

mod stage;

use anyhow::{Result, ensure};
use perennial_testkit::cli::Perennial;
use perennial_testkit::host::{run, wait_until};
use stage::{MODES, SOON, Stage, complains, text, texts, write};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

/// A stage with a container of two generations.
fn two_generations() -> Result<Stage> {
    let stage = Stage::new()?;
    stage.sh_ok("web", "echo 1 >/root/f")?;
    stage.sh_ok("web", "echo 2 >/root/f")?;
    Ok(stage)
}

#[test]
fn unknown_names_are_not_found() -> Result<()> {
    let stage = two_generations()?;
    let name = "nobody";
    for args in [
        &["start", name][..],
        &["run", name],
        &["stop", name],
        &["exec", name, "true"],
        &["attach", name],
        &["logs", name],
        &["inspect", name],
        &["rm", name],
        &["rm", "--force", name],
        &["set", name, "--keep", "3"],
        &["generations", name],
        &["rollback", name, "--to", "1"],
        &["rollback", name, "--undo"],
        &["pin", "nobody@1"],
        &["unpin", "nobody@1"],
        &["mark", "nobody@1", "good"],
        &["fork", name, "twig"],
        &["fork", "nobody@1", "twig"],
        &["events", name],
        &["image", "inspect", name],
        &["image", "rm", name],
        &["create", "new", "--image", name],
        &["run", "new", "--image", name],
    ] {
        stage.refused_with(args, 3, &[name])?;
    }
    for args in [
        &["rollback", "web", "--to", "9"][..],
        &["pin", "web@9"],
        &["mark", "web@9", "good"],
        &["fork", "web@9", "twig"],
    ] {
        stage.refused_unchanged(args, 3, &["there is no generation 9", "1, 2"])?;
    }
    stage.refused_unchanged(&["rollback", "web", "--undo"], 3, &["web"])
}

#[test]
fn errors_of_the_command_line_are_json_where_json_is_asked_for() -> Result<()> {
    let stage = Stage::empty()?;
    for (args, named) in [
        (&["--json", "run"][..], "<NAME>"),
        (&["run", "x", "--bogus", "--json"], "--bogus"),
        (&["--json"], "command"),
        (&["stop", "--json", "x", "--time", "-1"], "-1"),
    ] {
        let run = stage.run(args)?.code_is(2)?;
        assert_eq!(run.out(), "", "{args:?}");
        let told: serde_json::Value = serde_json::from_str(&run.err())?;
        assert_eq!(told["error"]["code"], "usage", "{args:?}");
        let message = text(&told, "/error/message")?;
        assert!(message.contains(named) && !message.contains('\n'), "{message}");
        text(&told, "/error/hint")?;
    }
    // What comes after `--` is for the container.
    let run = stage.run(&["run", "--bogus", "--", "--json"])?.code_is(2)?;
    assert!(run.err().starts_with("error: unexpected argument '--bogus'"), "{}", run.err());
    stage.ok(&["--json", "--help"])?;
    Ok(())
}

#[test]
fn command_that_makes_nothing_makes_no_root() -> Result<()> {
    let stage = Stage::empty()?;
    let file = stage.path("file");
    write(&file, "x")?;
    let missing = stage.root().display().to_string();
    for args in [
        &["ps"][..],
        &["generations", "web"],
        &["inspect", "web"],
        &["logs", "web"],
        &["diff", "web@1", "web@2"],
        &["df"],
        &["gc"],
        &["image", "ls"],
        &["doctor"],
        &["doctor", "--rebuild"],
        &["remote", "ls"],
        &["rm", "web"],
        &["start", "web"],
    ] {
        let told = stage.refused_with(args, 3, &["there is no root in", &missing, "--root"])?;
        assert!(told.contains("`create`, `run`"), "{told}");
        assert!(!stage.root().exists(), "{args:?} made a root");
    }
    let named = stage.command(&["ps"]).env_clear().env("PERENNIAL_ROOT", stage.path("typo")).output()?;
    assert_eq!(named.status.code(), Some(3));
    fs::create_dir(stage.root())?;
    stage.refused_with(&["ps"], 3, &[&missing])?;
    assert!(fs::read_dir(stage.root())?.next().is_none(), "an empty directory is no root either");
    stage.import(stage::box_tar()?, "box")?;
    stage.ok(&["ps"])?;
    Ok(())
}

/// The root of the machine is made by what is made first; a person types `ps` before that.
#[test]
fn machine_without_a_root_lists_nothing() -> Result<()> {
    let stage = Stage::empty()?;
    let empty = stage.path("empty");
    fs::create_dir(&empty)?;
    // In a mount namespace of its own, where nothing is in /var/lib.
    let script = format!(
        "mount --bind {} /var/lib && unset PERENNIAL_ROOT && for what in ps 'image ls' 'remote ls'; do \
         {bin} --json $what && {bin} $what; done; {bin} generations web || echo $?; ls /var/lib",
        empty.display(),
        bin = env!("CARGO_BIN_EXE_perennial"),
    );
    let shown = run(Command::new("unshare").args(["--mount", "sh", "-ec", &script]))?;
    assert_eq!(String::from_utf8(shown.stdout)?, "[]\n[]\n[]\n3\n");
    Ok(())
}

#[test]
fn words_that_are_not_valid_are_usage_errors() -> Result<()> {
    let stage = two_generations()?;
    let before = stage.state()?;
    let long = "x".repeat(129);
    for name in ["a/b", "../web", "", ".hidden", "-x", "white space", "ümlaut", "a\nb", &long, "a@1"] {
        for args in [&["create", "--image", "box", "--", name][..], &["inspect", "--", name], &["rm", "--", name]] {
            stage.refused_with(args, 2, &[]).map_err(|error| error.context(format!("name {name:?}")))?;
        }
    }
    for args in [
        &["rollback", "web", "--to", "0"][..],
        &["rollback", "web", "--to", "-1"],
        &["rollback", "web", "--to", "two"],
        &["rollback", "web"],
        &["rollback", "web", "--to", "1", "--latest-good"],
        &["pin", "web"],
        &["pin", "web@"],
        &["rollback", "web", "--at", "yesterday"],
        &["rollback", "web", "--at", "2026-13-01T00:00:00Z"],
        &["rollback", "web", "--at", "2026-01-01"],
        &["rollback", "web", "--at", ""],
        &["mark", "web@1", "splendid"],
        &["set", "web"],
        &["set", "web", "--keep", "0"],
        &["set", "web", "--keep", "-3"],
        &["set", "web", "--keep", "1001"],
        &["set", "web", "--keep-bytes", "-5m"],
        &["set", "web", "--keep-bytes", "0"],
        &["set", "web", "--good-after", "x"],
        &["start", "web", "--mode", "magic"],
        &["stop", "web", "--time", "-1"],
        &["frobnicate"],
        &["generations"],
        &[],
    ] {
        stage.refused_with(args, 2, &[])?;
    }
    for option in [
        ["--keep", "0"],
        ["--keep-bytes", "99999999999999999999"],
        ["--memory", "-1"],
        ["--memory", "1k"],
        ["--memory", "lots"],
        ["--cpus", "0"],
        ["--cpus", "-1"],
        ["--pids-limit", "-1"],
        ["--env", ""],
        ["--env", "=x"],
        ["--workdir", "relative"],
        ["--volume", "/only-one"],
        ["--volume", "a:b"],
        ["--volume", "/a:/../b"],
        ["--volume", "/a:/"],
        ["--volume", "/a:/b:rx"],
        ["--cap-add", "CAP_FLY"],
        ["--cap-drop", "FLY"],
        ["--user", "a:b:c"],
        ["--user", ""],
        ["--stop-signal", "SIGNOTHING"],
        ["--network", "wide"],
        ["--health-interval", "1s"],
        ["--good-after", "-1s"],
        ["--stop-timeout", "never"],
    ] {
        let [name, value] = option;
        let joined = format!("{name}={value}");
        stage.refused_with(&["create", "new", "--image", "box", &joined], 2, &[name.trim_start_matches('-')])?;
    }
    before.assert_same(&stage.state()?)
}

#[test]
fn bytes_that_are_no_text_are_refused_or_carried() -> Result<()> {
    let stage = two_generations()?;
    let odd = OsStr::from_bytes(b"w\xffb");
    let before = stage.state()?;
    for args in [
        vec![OsStr::new("inspect"), odd],
        vec![OsStr::new("create"), odd, OsStr::new("--image"), OsStr::new("box")],
        vec![OsStr::new("run"), OsStr::new("web"), OsStr::new("--"), OsStr::new("echo"), odd],
        vec![OsStr::new("rollback"), OsStr::new("web"), OsStr::new("--to"), odd],
    ] {
        complains(&stage.run(&args)?.code_is(2)?.err(), &[])?;
    }
    before.assert_same(&stage.state()?)?;
    // An environment of any bytes is no reason to fail: nothing of it goes into a container.
    for name in ["USER", "SUDO_USER", "PATH_OF_SOMETHING"] {
        let cli = stage.with_env("SUDO_UID", "7").env(name, odd);
        assert_eq!(cli.ok(&["run", "web", "--", "cat", "/root/f"])?.out(), "2\n");
    }
    let mut path = OsString::from(stage.path("r"));
    path.push(OsStr::from_bytes(b"\xfft"));
    let cli = Perennial::at(env!("CARGO_BIN_EXE_perennial"), &path);
    let listed = cli.run(&["ps"])?;
    ensure!(!listed.err().contains("panicked"), "{listed:?}");
    Ok(())
}

#[test]
fn sources_of_images_are_checked() -> Result<()> {
    let stage = two_generations()?;
    let (missing, text) = (stage.path("missing"), stage.path("text"));
    write(&text, "not an archive of any kind\n".repeat(100))?;
    let before = stage.state()?;
    for kind in ["oci", "oci-archive", "docker-archive", "rootfs"] {
        let source = format!("{kind}:{}", missing.display());
        stage.refused_with(&["image", "import", &source, "new"], 3, &["missing"])?;
        let run = stage.run(&["image", "import", &format!("{kind}:{}", text.display()), "new"])?;
        ensure!(run.code() != 0 && run.err().contains("text"), "{kind}: {run:?}");
    }
    for (source, name) in [("nothing", "new"), ("magic:/x", "new"), ("rootfs:", "new")] {
        stage.refused_with(&["image", "import", source, name], 2, &[])?;
    }
    for name in ["", "-x", "a b", "sha256:x", "ü"] {
        let source = format!("rootfs:{}", text.display());
        stage.refused_with(&["image", "import", &source, "--", name], 2, &[])?;
    }
    before.assert_same(&stage.state()?)?;
    assert!(stage::names(&stage.root().join("staging"))?.is_empty());
    Ok(())
}

#[test]
fn damaged_record_store_is_named_and_left_alone() -> Result<()> {
    let stage = two_generations()?;
    stage.quiet()?;
    let records = stage.root().join("records.db");
    drop((fs::remove_file(records.with_extension("db-wal")), fs::remove_file(records.with_extension("db-shm"))));
    let garbage = vec![b'g'; 20_000];
    write(&records, &garbage)?;
    for args in [&["ps"][..], &["run", "web", "--", "true"], &["rollback", "web", "--to", "1"], &["gc"], &["rm", "web"]]
    {
        stage.refused_with(args, 6, &["records.db"])?;
    }
    assert_eq!(fs::read(&records)?, garbage);
    assert_eq!(stage.layers()?.len(), 3);
    Ok(())
}

#[test]
fn format_that_is_not_known_is_refused_by_name() -> Result<()> {
    let stage = two_generations()?;
    stage.quiet()?;
    let file = stage.root().join("format.json");
    let good = fs::read_to_string(&file)?;
    let newer = good.replacen("\"version\": 1", "\"version\": 99", 1).replacen("\"version\":1", "\"version\":99", 1);
    let flag = "\"must_understand\": [\"sealed-layers\"]";
    let flagged = good.replacen("\"must_understand\": []", flag, 1).replacen("\"must_understand\":[]", flag, 1);
    assert!(newer != good && flagged != good, "{good}");
    for (text, named) in [("{ garbage", ""), ("", ""), (&newer, "99"), (&flagged, "sealed-layers"), ("[]", "")] {
        write(&file, text)?;
        for args in [&["ps"][..], &["run", "web", "--", "true"]] {
            let run = stage.run(args)?;
            ensure!([5, 6].contains(&run.code()), "{text:?}: {run:?}");
            complains(&run.err(), &["format.json", named])?;
        }
        assert_eq!(fs::read_to_string(&file)?, text);
    }
    write(&file, good)?;
    assert_eq!(stage.sh_ok("web", "cat /root/f")?, "2\n");
    Ok(())
}

#[test]
fn damaged_layers_stop_the_start_that_needs_them() -> Result<()> {
    for (number, damage) in
        [remove as fn(&Path) -> Result<()>, replace_by_file, replace_by_link].into_iter().enumerate()
    {
        let stage = two_generations()?;
        let layer = texts(&stage.generation("web", 2)?, "/layers")?.remove(0);
        damage(&stage.body_of(&layer)?)?;
        for mode in MODES {
            let args = ["run", "web", "--mode", mode, "--", "echo", "started"];
            let refused = stage.refused_unchanged(&args, 6, &["web@2", &layer]);
            refused.map_err(|error| error.context(format!("damage {number}")))?;
        }
        stage.refused_unchanged(&["fork", "web", "twig"], 6, &["web@2", &layer])?;
        stage.ok(&["rollback", "web", "--to", "1"])?;
        assert_eq!(stage.sh_ok("web", "cat /root/f")?, "1\n");
        stage.refused_unchanged(&["rollback", "web", "--to", "2"], 6, &["web@2", &layer])?;
    }
    Ok(())
}

fn remove(tree: &Path) -> Result<()> {
    Ok(if tree.is_dir() { fs::remove_dir_all(tree) } else { fs::remove_file(tree) }?)
}

fn replace_by_file(tree: &Path) -> Result<()> {
    remove(tree)?;
    write(tree, "a file")
}

fn replace_by_link(tree: &Path) -> Result<()> {
    remove(tree)?;
    Ok(std::os::unix::fs::symlink("/etc", tree)?)
}

#[test]
fn missing_layer_of_the_image_stops_every_start_on_it() -> Result<()> {
    let stage = two_generations()?;
    let image: serde_json::Value = stage.json(&["image", "inspect", "box"])?;
    let layer = texts(&image, "/layers")?.remove(0);
    let tree = stage.body_of(&layer)?;
    fs::rename(&tree, stage.path("aside"))?;
    stage.refused_unchanged(&["run", "web", "--", "true"], 6, &[&layer])?;
    stage.ok(&["create", "new", "--image", "box"])?;
    stage.refused_with(&["run", "new", "--", "true"], 6, &[&layer])?;
    assert!(stage.seqs("new")?.is_empty());
    // Importing the same image again mends it.
    stage.import(stage::box_tar()?, "box")?;
    stage.run(&["run", "new", "--", "true"])?.ok()?;
    assert_eq!(stage.sh_ok("web", "cat /root/f")?, "2\n");
    Ok(())
}

#[test]
fn damaged_description_of_a_layer_does_not_cost_the_generation() -> Result<()> {
    let stage = two_generations()?;
    stage.quiet()?;
    let layer = texts(&stage.generation("web", 2)?, "/layers")?.remove(0);
    write(stage.root().join("layers").join(&layer).join("layer.json"), "{ garbage")?;
    assert_eq!(stage.sh_ok("web", "cat /root/f")?, "2\n");
    stage.ok(&["rollback", "web", "--to", "1"])?;
    assert_eq!(stage.sh_ok("web", "cat /root/f")?, "1\n");
    Ok(())
}

#[test]
fn roots_keep_apart_from_each_other_and_from_what_is_not_theirs() -> Result<()> {
    let (one, two) = (two_generations()?, Stage::new()?);
    two.sh_ok("web", "echo other >/root/f")?;
    assert_eq!(one.sh_ok("web", "cat /root/f")?, "2\n");
    assert_eq!(two.seqs("web")?, [1]);
    one.quiet()?;
    let at = |path: &Path| Perennial::at(env!("CARGO_BIN_EXE_perennial"), path);
    let (foreign, file) = (one.path("foreign"), one.path("file"));
    fs::create_dir(&foreign)?;
    write(foreign.join("letter"), "private")?;
    write(&file, "a file")?;
    let nested = [one.root().join("layers/inner"), one.root().join("inner/most")];
    for path in [&foreign, &file, &nested[0], &nested[1]] {
        let run = at(path).run(&["create", "x", "--image", "box"])?.code_is(2)?;
        complains(&run.err(), &[&path.display().to_string()]).or_else(|_| complains(&run.err(), &["root"]))?;
    }
    assert_eq!(stage::names(&foreign)?.len(), 1);
    assert!(!nested.iter().any(|path| path.exists()));
    let open = one.path("open");
    at(&open).run(&["create", "x", "--image", "box"])?.code_is(3)?;
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777))?;
    complains(&at(&open).run(&["ps"])?.code_is(5)?.err(), &["open", "777"])
}

#[test]
fn file_system_that_cannot_hold_an_upper_is_named() -> Result<()> {
    let stage = Stage::empty()?;
    let dirs = ["lower", "upper", "work", "merged"].map(|name| stage.path(name));
    for dir in &dirs {
        fs::create_dir(dir)?;
    }
    let [lower, upper, work, merged] = dirs.each_ref().map(|dir| dir.display().to_string());
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    run(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options, &merged]))?;
    let tried = start_on(&Perennial::at(env!("CARGO_BIN_EXE_perennial"), dirs[3].join("root")));
    // The supervisor of the failed start may still be on its way out.
    wait_until("it can be unmounted", SOON, || Ok(run(Command::new("umount").arg("-R").arg(&merged)).is_ok()))?;
    tried
}

/// Tries to start a container on a root where it cannot.
fn start_on(cli: &Perennial) -> Result<()> {
    let imported = cli.run(&["image", "import", &format!("rootfs:{}", stage::box_tar()?.display()), "box"])?;
    if imported.code() != 0 {
        return complains(&imported.err(), &["root"]);
    }
    let run = cli.run(&["run", "web", "--image", "box", "--", "true"])?;
    ensure!(![0, 126, 127].contains(&run.code()), "{run:?}");
    complains(&run.err(), &["merged"])?;
    assert!(cli.seqs("web")?.is_empty());
    cli.assert_no_leaks(&[])
}

#[test]
fn caller_without_privileges_is_told_so() -> Result<()> {
    let stage = two_generations()?;
    let before = stage.state()?;
    // The binary lies where nobody may look, so a copy is run.
    let (program, home) = (stage.path("perennial"), stage.path("."));
    fs::copy(env!("CARGO_BIN_EXE_perennial"), &program)?;
    fs::set_permissions(home, fs::Permissions::from_mode(0o755))?;
    for args in [&["ps"][..], &["run", "web", "--", "true"], &["rollback", "web", "--to", "1"], &["inspect", "web"]] {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
        let output = command.arg("--root").arg(stage.root()).args(args).output()?;
        assert_eq!(output.status.code(), Some(5), "{output:?}");
        complains(&String::from_utf8_lossy(&output.stderr), &["root", "65534"])?;
    }
    before.assert_same(&stage.state()?)
}

/// What the hint of refused settings says leads to a container with other settings and the same state.
#[test]
fn state_reaches_a_container_with_other_settings_as_the_hint_says() -> Result<()> {
    let stage = two_generations()?;
    let told = stage.refused_with(&["run", "web", "--volume", "/srv:/srv", "--", "true"], 4, &["--volume"])?;
    let (layout, volume) = (format!("oci:{}", stage.path("layout").display()), stage.path("volume"));
    for step in ["`perennial export web oci:DIR`", "`perennial image import oci:DIR IMAGE`", "`perennial create`"] {
        assert!(told.contains(step), "{told}");
    }
    fs::create_dir(&volume)?;
    write(volume.join("f"), "host\n")?;
    stage.ok(&["export", "web", &layout])?;
    stage.ok(&["image", "import", &layout, "moved"])?;
    let option = format!("{}:/data", volume.display());
    stage.ok(&["create", "other", "--image", "moved", "--volume", &option])?;
    assert_eq!(stage.ok(&["run", "other", "--", "cat", "/root/f", "/data/f"])?.out(), "2\nhost\n");
    Ok(())
}

#[test]
fn volume_without_its_source_is_named() -> Result<()> {
    let stage = Stage::new()?;
    let missing = stage.path("missing").display().to_string();
    stage.ok(&["create", "web", "--image", "box", "--volume", &format!("{missing}:/data")])?;
    for mode in MODES {
        let run = stage.run(&["run", "web", "--mode", mode, "--", "true"])?.code_is(125)?;
        complains(&run.err(), &[&missing, "make that file or directory on the host again"])?;
        assert!(!run.err().contains("rollback"), "it cannot help: {}", run.err());
    }
    assert!(stage.seqs("web")?.is_empty());
    assert!(!Path::new(&missing).exists());
    stage.assert_only_generations_left("web")
}

#[test]
fn working_directory_that_is_a_file_is_named() -> Result<()> {
    let stage = Stage::new()?;
    stage.ok(&["create", "web", "--image", "box", "--workdir", "/etc/os-release"])?;
    let run = stage.run(&["run", "web", "--", "true"])?;
    ensure!([125, 126, 127].contains(&run.code()), "{run:?}");
    complains(&run.err(), &["/etc/os-release"])?;
    assert!(stage.seqs("web")?.is_empty());
    Ok(())
}
