//! `doctor --rebuild`: the record store is lost, and made again from the layers alone.

mod stage;

use anyhow::{Result, ensure};
use serde_json::Value;
use stage::{Stage, texts};
use std::fs;
use std::path::PathBuf;

/// Removes the record store with its companions.
fn lose_records(stage: &Stage) -> Result<()> {
    for name in ["records.db", "records.db-wal", "records.db-shm"] {
        match fs::remove_file(stage.root().join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Two containers, one forked from the other, with a pinned generation and a rollback.
fn furnished() -> Result<Stage> {
    let stage = Stage::new()?;
    stage.ok(&["create", "web", "--image", "box", "--keep", "3", "--env", "COLOUR=green"])?;
    for number in 1..=5 {
        stage.sh_ok("web", &format!("echo {number} >/root/number"))?;
    }
    stage.ok(&["pin", "web@4"])?;
    stage.ok(&["fork", "web@4", "twig"])?;
    stage.sh_ok("twig", "echo twig >/root/twig")?;
    stage.ok(&["rollback", "web", "--to", "3"])?;
    stage.sh_ok("web", "echo again >>/root/number")?;
    stage.quiet()?;
    Ok(stage)
}

fn queue(stage: &Stage, name: &str) -> Result<Value> {
    stage.json(&["generations", name])
}

#[test]
fn a_lost_record_store_is_made_again_from_the_layers() -> Result<()> {
    let stage = furnished()?;
    let before = (queue(&stage, "web")?, queue(&stage, "twig")?, stage.json::<Value>(&["image", "ls"])?);
    lose_records(&stage)?;
    let refused = stage.run(&["ps"])?.code_is(6)?;
    ensure!(refused.err().contains("doctor --rebuild"), "{}", refused.err());
    let planned: Value = stage.json(&["doctor", "--rebuild", "--dry-run"])?;
    ensure!(!stage.root().join("records.db").exists(), "a dry run made a record store");
    let made: Value = stage.json(&["doctor", "--rebuild"])?;
    assert_eq!(made["findings"], serde_json::json!([]));
    for field in ["containers", "generations", "images", "layers"] {
        assert_eq!(planned[field], made[field]);
    }
    let after = (queue(&stage, "web")?, queue(&stage, "twig")?, stage.json::<Value>(&["image", "ls"])?);
    assert_eq!(after, before);
    assert_eq!(stage.sh_ok("web", "cat /root/number; echo $COLOUR")?, "3\nagain\ngreen\n");
    assert_eq!(stage.sh_ok("twig", "cat /root/number /root/twig")?, "4\ntwig\n");
    stage.ok(&["doctor"])?;
    // The image's layers are known again, too: importing it once more adds none.
    let layers = stage.layers()?;
    stage.import_from(&format!("rootfs:{}", stage::box_tar()?.display()), "box")?;
    assert_eq!(stage.layers()?, layers);
    Ok(())
}

#[test]
fn a_damaged_record_store_is_kept_aside_and_a_whole_one_is_left_alone() -> Result<()> {
    let stage = furnished()?;
    let before = queue(&stage, "web")?;
    stage.refused_unchanged(&["doctor", "--rebuild"], 4, &["records.db", "whole"])?;
    lose_records(&stage)?;
    stage::write(stage.root().join("records.db"), "no database at all, but some bytes of something else")?;
    stage.ok(&["doctor", "--rebuild"])?;
    assert_eq!(queue(&stage, "web")?, before);
    let aside = fs::read_dir(stage.root())?.flatten().find(|entry| {
        let name = entry.file_name();
        name.to_string_lossy().starts_with("records.db.lost-")
    });
    ensure!(aside.is_some(), "the damaged store is gone");
    stage.ok(&["doctor"])?;
    Ok(())
}

/// Copies of records beside layers.
fn copies(stage: &Stage, kind: &str) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut copies = Vec::new();
    for layer in fs::read_dir(stage.root().join("layers"))?.flatten() {
        for entry in fs::read_dir(layer.path())?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(kind) {
                copies.push((entry.path(), fs::read(entry.path())?));
            }
        }
    }
    Ok(copies)
}

fn forget_copies(stage: &Stage, kind: &str) -> Result<()> {
    for (path, _) in copies(stage, kind)? {
        fs::remove_file(path)?;
    }
    Ok(())
}

/// Whatever frees what nothing names does so: an exit, and a collection.
fn collect(stage: &Stage) -> Result<()> {
    stage.sh_ok("other", "echo other >/root/other")?;
    stage.quiet()?;
    stage.ok(&["gc"])?;
    Ok(())
}

#[test]
fn what_was_imported_after_the_last_copy_is_a_generation() -> Result<()> {
    let stage = Stage::new()?;
    stage.ok(&["create", "web", "--image", "box"])?;
    stage.sh_ok("web", "echo 1 >/root/number")?;
    stage.sh_ok("web", "echo 2 >/root/number; echo more >/root/more")?;
    stage.quiet()?;
    let image = format!("oci:{}", stage.path("exported").display());
    stage.ok(&["export", "web", &image])?;
    // As if the machine had died between the commit of an import and the copies: into a container that is there, and into
    // a new one.
    let copies = copies(&stage, "container-")?;
    stage.ok(&["import", "web", &image])?;
    stage.ok(&["import", "twig", &image])?;
    stage.quiet()?;
    forget_copies(&stage, "container-")?;
    for (path, bytes) in copies {
        stage::write(path, bytes)?;
    }
    lose_records(&stage)?;
    let made: Value = stage.json(&["doctor", "--rebuild"])?;
    let findings = made["findings"].as_array().cloned().unwrap_or_default();
    ensure!(findings.len() == 1 && findings[0]["object"] == "container twig", "{findings:?}");
    stage.ok(&["create", "other", "--image", "box"])?;
    collect(&stage)?;
    assert_eq!(stage.seqs("web")?, [1, 2, 3]);
    assert_eq!(stage.generation("web", 3)?["kind"], "import");
    for name in ["web", "twig"] {
        assert_eq!(stage.sh_ok(name, "cat /root/number /root/more")?, "2\nmore\n");
    }
    Ok(())
}

/// A root that has lost its records, and an image with its copy; a layer of `web` lies on that.
fn without_image() -> Result<(Stage, String)> {
    let stage = Stage::new()?;
    stage.ok(&["create", "web", "--image", "box"])?;
    stage.sh_ok("web", "echo 1 >/root/number")?;
    stage.quiet()?;
    let layer = texts(&stage.generation("web", 1)?, "/layers")?.remove(0);
    forget_copies(&stage, "image-")?;
    lose_records(&stage)?;
    Ok((stage, layer))
}

#[test]
fn a_layer_that_nobody_can_be_found_for_stays_until_it_is_let_go() -> Result<()> {
    let (stage, layer) = without_image()?;
    let made: Value = stage.json(&["doctor", "--rebuild"])?;
    let told = made["findings"].to_string();
    ensure!(told.contains(&layer) && told.contains("gc --held"), "{told}");
    stage.import_from(&format!("rootfs:{}", stage::box_tar()?.display()), "box")?;
    stage.ok(&["create", "other", "--image", "box"])?;
    collect(&stage)?;
    ensure!(stage.layers()?.contains(&layer), "it was freed: {:?}", stage.layers()?);
    let doctor: Value = stage.json(&["doctor"])?;
    ensure!(doctor.to_string().contains(&layer), "doctor does not tell of it");
    // The image is back, so a rebuild finds whose it is.
    lose_records(&stage)?;
    stage.ok(&["doctor", "--rebuild"])?;
    assert_eq!(stage.sh_ok("web", "cat /root/number")?, "1\n");
    Ok(())
}

#[test]
fn what_is_held_goes_when_nobody_wants_it() -> Result<()> {
    let (stage, layer) = without_image()?;
    stage.ok(&["doctor", "--rebuild"])?;
    let plan: Value = stage.json(&["gc", "--held", "--dry-run"])?;
    ensure!(plan.to_string().contains(&layer), "{plan}");
    ensure!(stage.layers()?.contains(&layer), "a dry run freed it");
    stage.ok(&["gc", "--held"])?;
    ensure!(!stage.layers()?.contains(&layer), "it is still there");
    Ok(())
}

#[test]
fn a_generation_saved_after_the_last_copy_is_found_by_its_layer() -> Result<()> {
    let stage = Stage::new()?;
    stage.ok(&["create", "web", "--image", "box"])?;
    for number in 1..=2 {
        stage.sh_ok("web", &format!("echo {number} >/root/number"))?;
        stage.quiet()?;
    }
    // As if the machine had died between the second exit and the copy of its record.
    let newest = stage.generation("web", 2)?;
    let layer = texts(&newest, "/layers")?.first().cloned().unwrap_or_default();
    for entry in fs::read_dir(stage.root().join("layers").join(layer))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("container-") {
            fs::remove_file(entry.path())?;
        }
    }
    lose_records(&stage)?;
    stage.ok(&["doctor", "--rebuild"])?;
    assert_eq!(stage.seqs("web")?, [1, 2]);
    assert_eq!(stage.generation("web", 2)?["kind"], "salvage");
    assert_eq!(stage.sh_ok("web", "cat /root/number")?, "2\n");
    Ok(())
}
