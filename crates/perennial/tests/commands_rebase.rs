//! `rebase`: the same state on another image (A30).

mod stage;

use anyhow::Result;
use perennial_testkit::host;
use serde_json::{Value, json};
use stage::{Stage, text, texts, write};
use std::fs;

/// Imports image `one` with a few files, and `two` after changes of the same tree, and makes the container `web` on
/// `one`; returns the images' digests.
fn two_images(stage: &Stage) -> Result<(String, String)> {
    let rootfs = stage.rootfs("rootfs")?;
    fs::create_dir_all(rootfs.join("opt/d"))?;
    for name in ["etc/same", "etc/both", "etc/gone", "opt/d/x"] {
        write(rootfs.join(name), format!("{name} one\n"))?;
    }
    let one = stage.import(&rootfs, "one")?;
    stage.ok(&["create", "web", "--image", "one"])?;
    for name in ["etc/both", "etc/new", "opt/d/y"] {
        write(rootfs.join(name), format!("{name} two\n"))?;
    }
    fs::remove_file(rootfs.join("etc/gone"))?;
    Ok((one, stage.import(&rootfs, "two")?))
}

fn run(stage: &Stage, script: &str) -> Result<String> {
    Ok(stage.ok(&["run", "web", "--", "sh", "-c", script])?.out())
}

#[test]
fn a30_a_moved_name_changes_nothing_until_a_rebase_which_can_be_undone() -> Result<()> {
    let stage = Stage::new()?;
    let (one, two) = two_images(&stage)?;
    run(&stage, "echo mine >/srv-file")?;
    // The name `one` now means the other image.
    stage.import(&stage.path("rootfs"), "one")?;
    assert_eq!(run(&stage, "cat /etc/both /srv-file")?, "etc/both one\nmine\n");
    assert_eq!(text(&stage.generation("web", 2)?, "/image")?, one);
    stage.refused_with(&["image", "rm", &one], 4, &["web"])?;
    let done: Value = stage.json(&["rebase", "web", "--image", "two"])?;
    assert_eq!((&done["from"], &done["seq"], &done["layers"]), (&json!(2), &json!(3), &json!("share")));
    assert_eq!(done["conflicts"], json!([]));
    let inspected = stage.inspect("web")?;
    assert_eq!((&inspected["image"], &inspected["image_name"]), (&json!(two), &json!("two")));
    let (before, after) = (stage.generation("web", 2)?, stage.generation("web", 3)?);
    assert_eq!(texts(&after, "/layers")?, texts(&before, "/layers")?);
    assert_eq!((&after["kind"], &after["parent"], &after["health"]), (&json!("rebase"), &json!(2), &json!("unknown")));
    assert_eq!(run(&stage, "cat /etc/both /etc/new /srv-file; ls /etc/gone 2>&1 || true")?.lines().count(), 4);
    stage.ok(&["rollback", "web", "--to", "2"])?;
    assert_eq!(stage.inspect("web")?["image"], json!(one));
    assert_eq!(run(&stage, "cat /etc/both /etc/gone /srv-file")?, "etc/both one\netc/gone one\nmine\n");
    let actions: Vec<_> = stage.events("web")?.iter().map(|event| event["action"].clone()).collect();
    assert!(actions.contains(&json!("rebase")), "{actions:?}");
    Ok(())
}

#[test]
fn a30_what_both_changed_is_told_and_the_containers_version_stays() -> Result<()> {
    let stage = Stage::new()?;
    two_images(&stage)?;
    run(&stage, "echo mine >/etc/both; echo mine >/etc/gone; echo mine >/etc/same; rm -r /opt/d; echo mine >/etc/own")?;
    let before = stage.state()?;
    let planned: Value = stage.json(&["rebase", "web", "--image", "two", "--dry-run"])?;
    before.assert_same(&stage.state()?)?;
    let expected = json!([
        {"path": "/etc/both", "container": "content", "image": "content"},
        {"path": "/etc/gone", "container": "content", "image": "removed"},
        {"path": "/opt/d", "container": "removed", "image": "added"},
    ]);
    assert_eq!((&planned["conflicts"], &planned["done"]), (&expected, &json!(false)));
    let told = stage.ok(&["rebase", "web", "--image", "two"])?.out();
    for line in ["conflict at /etc/both", "conflict at /etc/gone", "conflict at /opt/d", "rollback web --to 1"] {
        assert!(told.contains(line), "{told}");
    }
    assert_eq!(run(&stage, "cat /etc/both /etc/gone /etc/new; ls /opt")?, "mine\nmine\netc/new two\n");
    Ok(())
}

#[test]
fn a30_a_whiteout_that_hides_nothing_any_more_shows_no_ghost() -> Result<()> {
    let stage = Stage::new()?;
    two_images(&stage)?;
    run(&stage, "rm /etc/gone; echo mine >/etc/own; ln /etc/own /etc/hard; chmod 700 /etc/own")?;
    run(&stage, "echo more >>/etc/own")?;
    let done: Value = stage.json(&["rebase", "web", "--image", "two"])?;
    assert_eq!(done["layers"], json!("flatten"));
    let layers = texts(&stage.generation("web", 3)?, "/layers")?;
    assert_eq!(layers.len(), 1);
    assert!(!texts(&stage.generation("web", 2)?, "/layers")?.contains(&layers[0]));
    assert!(!stage.layer(&layers[0])?.entries.keys().any(|path| path.to_string() == "etc/gone"));
    let listed = run(&stage, "ls -a /etc 2>&1; stat -c '%a' /etc/own; cat /etc/own")?;
    assert!(!listed.contains("gone") && !listed.contains("No such"), "{listed}");
    assert!(listed.ends_with("700\nmine\nmore\n"), "{listed}");
    stage.quiet()?;
    let diagnosis: Value = stage.json(&["doctor"])?;
    assert_eq!(diagnosis["ok"], json!(true), "{diagnosis:#}");
    assert_eq!(host::run(std::process::Command::new("ls").arg(stage.root().join("staging")))?.stdout, b"");
    Ok(())
}

#[test]
fn a30_a_container_without_generations_just_begins_from_the_other_image() -> Result<()> {
    let stage = Stage::new()?;
    two_images(&stage)?;
    let done: Value = stage.json(&["rebase", "web", "--image", "two"])?;
    assert_eq!((&done["seq"], &done["from"], &done["layers"]), (&Value::Null, &Value::Null, &json!("nothing")));
    assert_eq!(run(&stage, "cat /etc/new")?, "etc/new two\n");
    Ok(())
}

#[test]
fn a30_a_rebase_that_makes_no_sense_is_refused() -> Result<()> {
    let stage = Stage::new()?;
    two_images(&stage)?;
    run(&stage, "touch /a")?;
    stage.refused_unchanged(&["rebase", "web", "--image", "one"], 4, &["web", "already"])?;
    stage.refused_unchanged(&["rebase", "web", "--image", "none"], 3, &["none"])?;
    stage.refused_unchanged(&["rebase", "nobody", "--image", "two"], 3, &["nobody"])?;
    stage.ok(&["start", "web", "--detach", "--", "sh", "-c", stage::IDLE])?;
    stage.refused_unchanged(&["rebase", "web", "--image", "two"], 4, &["Running", "stop"])?;
    stage.ok(&["stop", "web"])?;
    Ok(())
}
