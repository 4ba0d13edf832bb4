//! What a push says is there can be fetched: whatever it relies on, and whatever has gone from the registry meanwhile.

use crate::moving::{empty_linked, linked};
use crate::registry::{Proxy, Registry, at_most};
use crate::stage::Stage;
use anyhow::{Context as _, Result, ensure};
use perennial_store::records::sqlite::SqliteRecords;
use perennial_store::records::{RecordStore as _, Transaction, keys};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::Ordering;

/// Bytes of which a change is a small part.
pub(crate) const BIG: &str = "dd if=/dev/urandom of=/big bs=1M count=8";
/// The change.
pub(crate) const CHANGE: &str = "dd if=/dev/urandom of=/big bs=64k count=4 seek=40 conv=notrunc";

/// Pulls a container on a machine that has nothing, and compares the sum of a file.
pub(crate) fn comes_whole(address: &str, name: &str, sum: &str) -> Result<()> {
    let there = empty_linked(address)?;
    there.ok(&["pull", name])?;
    there.ok(&["verify", "--full"])?;
    let found = there.ok(&["run", name, "--", "sha256sum", "/big"])?.out();
    ensure!(found == sum, "{found} {sum}");
    Ok(())
}

/// Runs a script and returns the sum of the file.
pub(crate) fn changed(here: &Stage, name: &str, script: &str) -> Result<String> {
    Ok(here.ok(&["run", name, "--", "sh", "-c", &format!("{script}; sha256sum /big")])?.out())
}

/// A registry that `web` was pushed to, the machine that has pushed it, and the sum of what is in it.
fn pushed() -> Result<(Registry, Stage, String)> {
    let registry = Registry::start()?;
    let here = linked(&registry.address())?;
    here.ok(&["create", "web", "--image", "box"])?;
    let sum = changed(&here, "web", BIG)?;
    here.ok(&["push", "web"])?;
    Ok((registry, here, sum))
}

#[test]
fn contents_of_an_image_that_is_left_behind_are_sent_where_generations_need_them() -> Result<()> {
    let registry = Registry::start()?;
    let here = linked(&registry.address())?;
    let rootfs = here.rootfs("heavy")?;
    let output = format!("of={}", rootfs.join("big").display());
    ensure!(
        Command::new("dd").args(["if=/dev/urandom", "bs=1M", "count=8", "status=none", &output]).status()?.success()
    );
    here.import(&rootfs, "heavy")?;
    here.ok(&["create", "web", "--image", "heavy", "--keep", "1"])?;
    changed(&here, "web", CHANGE)?;
    here.ok(&["push", "web"])?;
    changed(&here, "web", "echo 2 > /n")?;
    here.ok(&["push", "web"])?;
    here.ok(&["rebase", "web", "--image", "box"])?;
    let sum = changed(&here, "web", "echo 4 > /n")?;
    here.ok(&["push", "web"])?;
    comes_whole(&registry.address(), "web", &sum)
}

/// A push that was cut off after it had packed a change.
fn cut_off(registry: &Registry) -> Result<(Stage, String)> {
    let proxy = Proxy::before(registry.port)?;
    let here = linked(&proxy.address())?;
    here.ok(&["create", "web", "--image", "box", "--keep", "1"])?;
    here.sh_ok("web", BIG)?;
    here.ok(&["push", "web"])?;
    let sum = changed(&here, "web", CHANGE)?;
    proxy.take();
    proxy.counts.cut_at.store(120_000, Ordering::SeqCst);
    ensure!(here.run(&["push", "web"])?.code() != 0, "it got through");
    let mut packs = Vec::new();
    crate::registry::files(&here.root().join("travel"), &mut packs)?;
    packs.retain(|path| path.extension().is_some_and(|extension| extension == "pack"));
    ensure!(!packs.is_empty(), "nothing was packed");
    here.ok(&["remote", "rm", "hub"])?;
    Ok((here, sum))
}

#[test]
fn packs_of_a_push_that_was_cut_off_serve_no_other_name_and_no_other_registry() -> Result<()> {
    let registry = Registry::start()?;
    let (here, sum) = cut_off(&registry)?;
    here.ok(&["remote", "add", "hub", &format!("{}/team", registry.address())])?;
    here.ok(&["push", "web", "--as", "copy"])?;
    comes_whole(&registry.address(), "copy", &sum)?;
    let (here, sum) = cut_off(&Registry::start()?)?;
    let other = Registry::start()?;
    here.ok(&["remote", "add", "hub", &format!("{}/team", other.address())])?;
    here.ok(&["push", "web"])?;
    comes_whole(&other.address(), "web", &sum)
}

/// Files of the blobs, the longest first: the container's pack, then the image's.
fn by_length(registry: &Registry) -> Result<Vec<PathBuf>> {
    let mut blobs = Vec::new();
    for path in registry.blobs()? {
        blobs.push((path.metadata()?.len(), path));
    }
    blobs.sort();
    Ok(blobs.into_iter().rev().map(|(_, path)| path).collect())
}

#[test]
fn a_pack_that_the_registry_has_lost_is_sent_again_by_the_next_push() -> Result<()> {
    let registry = Registry::start()?;
    let here = linked(&registry.address())?;
    here.ok(&["create", "web", "--image", "box"])?;
    let sum = changed(&here, "web", BIG)?;
    here.ok(&["create", "db", "--image", "box"])?;
    let of_db = changed(&here, "db", "echo db > /big")?;
    here.ok(&["push", "web"])?;
    here.ok(&["push", "db"])?;
    for number in [0, 1] {
        fs::remove_file(by_length(&registry)?.get(number).context("no blob")?)?;
        let pushed: Value = here.json(&["push", "web"])?;
        ensure!(pushed["nothing_to_send"] == json!(false), "{number}: {pushed}");
        comes_whole(&registry.address(), "web", &sum)?;
        let again: Value = here.json(&["push", "web"])?;
        ensure!(again["nothing_to_send"] == json!(true), "{number}: {again}");
    }
    // The other container named the image as it was before.
    comes_whole(&registry.address(), "db", &of_db)
}

#[test]
fn what_is_damaged_in_the_registry_is_replaced_by_a_whole_push() -> Result<()> {
    let (registry, here, sum) = pushed()?;
    for number in [0, 1] {
        let blob = by_length(&registry)?.remove(number);
        let mut bytes = fs::read(&blob)?;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        crate::stage::write(&blob, &bytes)?;
        empty_linked(&registry.address())?.refused_with(&["pull", "web"], 6, &["push --whole"])?;
        here.ok(&["push", "web", "--whole"])?;
        comes_whole(&registry.address(), "web", &sum)?;
        // The damaged one is not named any more, and stays out of the next round.
        fs::remove_file(&blob)?;
    }
    Ok(())
}

#[test]
fn what_only_the_registry_had_and_has_lost_is_given_up_only_when_asked() -> Result<()> {
    let registry = Registry::start()?;
    let here = linked(&registry.address())?;
    here.sh_ok("web", BIG)?;
    here.sh_ok("web", "echo 2 > /big")?;
    here.ok(&["push", "web"])?;
    let other = empty_linked(&registry.address())?;
    other.ok(&["pull", "web", "--current"])?;
    fs::remove_file(by_length(&registry)?.remove(0))?;
    other.sh_ok("web", "echo 3 > /n")?;
    other.refused_with(&["push", "web"], 6, &["only there", "push --whole web"])?;
    other.ok(&["push", "web", "--whole"])?;
    let third = empty_linked(&registry.address())?;
    third.ok(&["pull", "web"])?;
    ensure!(third.seqs("web")? == [2, 3] && third.sh_ok("web", "cat /big /n")? == "2\n3\n");
    // The one that has it brings it back.
    here.ok(&["pull", "web"])?;
    here.ok(&["push", "web"])?;
    third.ok(&["pull", "web"])?;
    third.ok(&["verify", "--full"])?;
    Ok(())
}

#[test]
fn a_record_that_the_registry_has_lost_is_written_anew_by_a_whole_push() -> Result<()> {
    let registry = Registry::start()?;
    record_lost(&registry, &linked(&registry.address())?, &|| empty_linked(&registry.address()))
}

pub(crate) fn record_lost(registry: &Registry, here: &Stage, empty: &dyn Fn() -> Result<Stage>) -> Result<()> {
    here.ok(&["create", "web", "--image", "box"])?;
    let sum = changed(here, "web", BIG)?;
    here.ok(&["push", "web"])?;
    for is_damaged in [false, true] {
        let parcel = registry.parcel("team/web", "generations")?;
        if is_damaged {
            let mut bytes = fs::read(&parcel)?;
            bytes.get_mut(100).map(|byte| *byte ^= 1).context("it is longer than that")?;
            crate::stage::write(&parcel, &bytes)?;
        } else {
            fs::remove_file(&parcel)?;
        }
        empty()?.refused_with(&["pull", "web"], 6, &["record is lost", "push --whole"])?;
        let said = ["record is lost", "push --whole web", "everything that was there is here"];
        here.refused_with(&["push", "web"], 6, &said)?;
        let pushed: Value = here.json(&["push", "web", "--whole"])?;
        ensure!(pushed.get("lost") == Some(&json!([])) && pushed.get("new") == Some(&json!([1])), "{pushed}");
        let there = empty()?;
        there.ok(&["pull", "web"])?;
        there.ok(&["verify", "--full"])?;
        ensure!(there.ok(&["run", "web", "--", "sha256sum", "/big"])?.out() == sum);
        let again: Value = here.json(&["push", "web"])?;
        ensure!(again.get("nothing_to_send") == Some(&json!(true)), "{again}");
    }
    Ok(())
}

#[test]
fn what_is_lost_with_a_record_is_named() -> Result<()> {
    let registry = Registry::start()?;
    let here = linked(&registry.address())?;
    here.sh_ok("web", "echo 1 > /n")?;
    here.sh_ok("web", "echo 2 > /n")?;
    here.ok(&["push", "web"])?;
    let other = empty_linked(&registry.address())?;
    other.ok(&["pull", "web", "--current"])?;
    fs::remove_file(registry.parcel("team/web", "generations")?)?;
    other.refused_with(&["push", "web"], 6, &["web@1 was not brought here", "push --whole web"])?;
    here.sh_ok("web", "echo 3 > /n")?;
    let pushed: Value = here.json(&["push", "web", "--whole"])?;
    ensure!(pushed["lost"] == json!([]), "{pushed}");
    // The other one has not seen what was sent since.
    fs::remove_file(registry.parcel("team/web", "generations")?)?;
    other.refused_with(&["push", "web"], 6, &["web@1 was not brought here, and what others have sent since"])?;
    let told = other.ok(&["push", "web", "--whole"])?.err();
    ensure!(told.contains("web@1 was only in") && told.contains("what others had sent"), "{told}");
    // Nobody who has it loses anything.
    here.ok(&["push", "web"])?;
    other.ok(&["pull", "web"])?;
    ensure!(other.seqs("web")? == [1, 2, 3], "{:?}", other.seqs("web")?);
    ensure!(other.sh_ok("web", "cat /n")? == "3\n");
    Ok(())
}

#[test]
fn an_image_whose_record_the_registry_has_lost_is_sent_again_by_the_next_push() -> Result<()> {
    let (registry, here, sum) = pushed()?;
    let digest = crate::stage::text(&here.inspect("web")?, "/image")?.trim_start_matches("sha256:").to_owned();
    fs::remove_file(registry.parcel(&format!("team/perennial-images/{digest}"), "image")?)?;
    empty_linked(&registry.address())?.refused_with(&["pull", "web"], 6, &["record is lost"])?;
    here.ok(&["push", "web"])?;
    comes_whole(&registry.address(), "web", &sum)
}

#[test]
fn a_pack_that_was_cut_short_in_the_registry_is_sent_again_by_the_next_push() -> Result<()> {
    let (registry, here, sum) = pushed()?;
    for number in [0, 1] {
        let path = by_length(&registry)?.remove(number);
        fs::File::options().write(true).open(&path)?.set_len(path.metadata()?.len() - 1000)?;
        let pushed: Value = here.json(&["push", "web"])?;
        ensure!(pushed["nothing_to_send"] == json!(false), "{number}: {pushed}");
        comes_whole(&registry.address(), "web", &sum)?;
        // It is not named any more, and stays out of the next round.
        fs::remove_file(&path)?;
        let again: Value = here.json(&["push", "web"])?;
        ensure!(again["nothing_to_send"] == json!(true), "{number}: {again}");
    }
    Ok(())
}

#[test]
fn a_small_push_stays_small_where_the_registry_has_much_that_is_not_here() -> Result<()> {
    let registry = Registry::start()?;
    let here = linked(&registry.address())?;
    for _ in 0..4 {
        here.sh_ok("web", "dd if=/dev/urandom of=/big bs=1M count=40")?;
    }
    here.ok(&["push", "web"])?;
    let other = empty_linked(&registry.address())?;
    other.ok(&["pull", "web", "--current"])?;
    // What only the registry has is let go by and by.
    for number in 0..2 {
        other.sh_ok("web", &format!("echo {number} > /n"))?;
        let pushed: Value = other.json(&["push", "web"])?;
        at_most("sent", pushed["traffic"]["sent_bytes"].as_u64().context("no count")?, 1_000_000)?;
    }
    Ok(())
}

#[test]
fn a_name_with_control_characters_stops_nobody() -> Result<()> {
    let registry = Registry::start()?;
    let here = linked(&registry.address())?;
    here.with_env("USER", "ann\tb").ok(&["run", "web", "--image", "box", "--", "sh", "-c", "echo 1 > /n"])?;
    for number in 2..=3 {
        here.with_env("USER", "ann\tb").ok(&["push", "web"])?;
        here.sh_ok("web", &format!("echo {number} > /n"))?;
    }
    here.ok(&["push", "web"])?;
    let there = empty_linked(&registry.address())?;
    there.ok(&["pull", "web"])?;
    ensure!(there.seqs("web")? == [1, 2, 3]);
    // An older release wrote it down as it was.
    let web = crate::stage::text(&here.inspect("web")?, "/id")?.parse()?;
    {
        let records = SqliteRecords::open_or_create(&here.root().join("records.db"))?;
        let record = records.get(&keys::container(&web))?.context("no record")?;
        let written = String::from_utf8(record.bytes)?.replace("ann?b", "ann\\tb");
        ensure!(written.contains("ann\\tb"), "{written}");
        records.commit(&Transaction::new().put(keys::container(&web), written.into_bytes()))?;
    }
    here.sh_ok("web", "echo 4 > /n")?;
    here.ok(&["push", "web"])?;
    there.ok(&["pull", "web"])?;
    ensure!(there.seqs("web")? == [1, 2, 3, 4]);
    here.ok(&["pull", "web"])?;
    here.ok(&["push", "web", "--as", "copy"])?;
    empty_linked(&registry.address())?.ok(&["pull", "copy"])?;
    Ok(())
}

#[test]
fn what_one_registry_says_is_in_a_pack_is_not_believed_of_another() -> Result<()> {
    let (honest, other) = (Registry::start()?, Registry::start()?);
    let here = linked(&honest.address())?;
    here.sh_ok("web", BIG)?;
    here.ok(&["push", "web"])?;
    let kept = || crate::stage::names(&here.root().join("travel/indexes"));
    let of_one = kept()?;
    here.ok(&["remote", "add", "other", &format!("{}/team", other.address())])?;
    here.ok(&["push", "web", "other"])?;
    let of_both = kept()?;
    ensure!(!of_one.is_empty() && of_both.len() == 2 * of_one.len(), "{of_one:?} {of_both:?}");
    Ok(())
}
