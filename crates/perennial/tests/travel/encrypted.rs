//! Encrypted remotes: who keeps the registry can read nothing, whoever has the key misses nothing, and plain and
//! encrypted are never taken for each other.

use crate::broken::{damages_refused, heavy, killed_pull, killed_push};
use crate::conflicts::{histories_joined, one_container_by_two};
use crate::moving::{empty_linked, linked, little_more_than_the_change};
use crate::registry::{Proxy, Registry, at_most};
use crate::stage::{IDLE, Stage, text};
use crate::whole::record_lost;
use anyhow::{Context as _, Result, bail, ensure};
use perennial_core::sealed::object::ObjectId;
use perennial_testkit::host::wait_until;
use perennial_testkit::tree::ensure_equal;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A stage with an encrypted remote and a key of its own.
pub(crate) fn locked(address: &str) -> Result<Stage> {
    let stage = Stage::new()?;
    stage.ok(&["remote", "add", "hub", &format!("{address}/team"), "--encrypt"])?;
    Ok(stage)
}

/// The file of the key a stage has made.
pub(crate) fn key(stage: &Stage) -> PathBuf {
    stage.root().join("keys/hub.txt")
}

/// What others encrypt for.
fn recipient(stage: &Stage) -> Result<String> {
    let file = fs::read_to_string(key(stage))?;
    let line = file.lines().find_map(|line| line.strip_prefix("# public key: "));
    Ok(line.context("it says what others encrypt for")?.to_owned())
}

/// A stage with an encrypted remote, the key of another, and no image.
pub(crate) fn with_key(address: &str, key: &Path) -> Result<Stage> {
    let stage = Stage::empty()?;
    let identity = key.display().to_string();
    stage.ok(&["remote", "add", "hub", &format!("{address}/team"), "--encrypt", "--identity", &identity])?;
    Ok(stage)
}

#[test]
fn an_encrypted_record_that_the_registry_has_lost_is_written_anew_by_a_whole_push() -> Result<()> {
    let registry = Registry::start()?;
    let here = locked(&registry.address())?;
    record_lost(&registry, &here, &|| with_key(&registry.address(), &key(&here)))
}

/// What nobody but the owner is to find: contents, settings, names of contents and of the image.
fn secrets(stage: &Stage) -> Result<Vec<Vec<u8>>> {
    let script = "head -c 100000 /dev/urandom > /roses; mkdir /bed-of-roses";
    stage.ok(&["create", "web", "--image", "box", "--env", "BED=under-the-oak", "--", "sh", "-c", script])?;
    stage.ok(&["start", "web"])?;
    let out = stage.path("roses");
    stage.ok(&["cp", "web@1:/roses", &out.to_string_lossy()])?;
    let roses = fs::read(out)?;
    let name = ObjectId::of(&roses);
    let image: Value = stage.json(&["image", "inspect", "box"])?;
    let image = text(&image, "/digest")?.trim_start_matches("sha256:").to_owned();
    Ok(vec![
        roses.get(5000..5064).context("it has 100,000 bytes")?.to_vec(),
        b"under-the-oak".to_vec(),
        stage.root().display().to_string().into_bytes(),
        name.as_bytes().to_vec(),
        image.into_bytes(),
    ])
}

#[test]
fn the_registry_has_nothing_that_can_be_read_and_the_key_regrows_everything() -> Result<()> {
    for (plain, registry) in
        [(Registry::start()?, Registry::start()?), (Registry::start_ours()?, Registry::start_ours()?)]
    {
        let here = locked(&registry.address())?;
        let secrets = secrets(&here)?;
        here.ok(&["remote", "add", "plain", &format!("{}/team", plain.address())])?;
        here.ok(&["push", "web", "plain"])?;
        here.ok(&["push", "web", "hub"])?;
        for secret in &secrets {
            let shown = String::from_utf8_lossy(secret);
            ensure!(plain.contains(secret)?, "a plain remote has no {shown:?}, so nothing is shown by its absence");
            ensure!(!registry.contains(secret)?, "the registry has {shown:?}");
        }
        here.sh_ok("web", "echo two > /two; rm -rf /etc/motd; ln /roses /more-roses")?;
        here.ok(&["push", "web", "hub"])?;
        let there = with_key(&registry.address(), &key(&here))?;
        let pulled: Value = there.json(&["pull", "web"])?;
        ensure!(pulled["new"] == json!([1, 2]) && pulled["current"] == 2, "{pulled}");
        for stage in [&here, &there] {
            stage.ok(&["start", "web", "--detach", "--", "sh", "-c", IDLE])?;
        }
        ensure_equal(&here.seen_in("web")?, &there.seen_in("web")?)?;
        there.ok(&["stop", "web"])?;
        there.ok(&["verify", "--full"])?;
    }
    Ok(())
}

#[test]
fn the_key_is_made_once_for_its_owner_alone_and_is_pointed_out() -> Result<()> {
    let stage = Stage::empty()?;
    let run = stage.ok(&["remote", "add", "hub", "registry.example/team", "--encrypt"])?;
    let (said, file) = (run.out() + &run.err(), key(&stage));
    let recipient = recipient(&stage)?;
    for named in [&file.display().to_string(), &recipient, "made now", "keep a copy", "nobody can ever read"] {
        ensure!(said.contains(named), "{named:?} is not in {said}");
    }
    ensure!(file.metadata()?.permissions().mode() & 0o7777 == 0o600);
    ensure!(file.parent().context("it is in a directory")?.metadata()?.permissions().mode() & 0o7777 == 0o700);
    ensure!(!said.contains("AGE-SECRET-KEY") && fs::read_to_string(&file)?.contains("AGE-SECRET-KEY-1"));
    // It is used again, and never overwritten.
    let before = fs::read(&file)?;
    stage.ok(&["remote", "rm", "hub"])?;
    let again: Value = stage.json(&["remote", "add", "hub", "registry.example/team", "--encrypt"])?;
    ensure!(again["key_made"].is_null() && again["encrypted_for"] == json!([recipient]), "{again}");
    ensure!(fs::read(&file)? == before, "the key was written anew");
    ensure!(stage.ok(&["remote", "ls"])?.out().contains("keys/hub.txt"));
    // What is no key is refused, and leaves nothing behind.
    let add = ["remote", "add", "other", "registry.example/team"];
    let wrong = [
        (&["--encrypt", "--recipient", "age1nobody"][..], 2, "age1nobody"),
        (&["--encrypt", "--recipient", "ssh-ed25519"], 2, "begins with age1"),
        (&["--encrypt", "--identity", "/nowhere/key"], 5, "/nowhere/key"),
        (&["--encrypt", "--identity", "/etc/passwd"], 2, "line 1"),
        (&["--recipient", &recipient], 2, "--encrypt"),
    ];
    for (options, code, named) in wrong {
        stage.refused_unchanged(&[&add, options].concat(), code, &[named])?;
    }
    stage.refused_with(&["remote", "set", "hub"], 2, &["--identity"])?;
    Ok(())
}

#[test]
fn without_the_right_key_nothing_is_fetched_or_changed() -> Result<()> {
    let registry = Registry::start()?;
    let here = locked(&registry.address())?;
    here.sh_ok("web", "echo one > /a")?;
    here.ok(&["push", "web"])?;
    let stranger = locked(&registry.address())?;
    let own = recipient(&stranger)?;
    stranger.refused_unchanged(
        &["pull", "web"],
        5,
        &["team/web", "remote hub", &own, "keys/hub.txt", "remote set hub"],
    )?;
    let without = empty_linked(&registry.address())?;
    without.refused_unchanged(&["pull", "web"], 4, &["team/web", "encrypted", "remote hub", "--encrypt --identity"])?;
    // Nobody overwrites what he cannot read.
    stranger.sh_ok("web", "echo other > /a")?;
    stranger.refused_with(&["push", "web"], 5, &["other keys", &own])?;
    let plain = linked(&registry.address())?;
    plain.sh_ok("web", "echo other > /a")?;
    plain.refused_with(&["push", "web"], 4, &["encrypted", "has no key"])?;
    // The remote is given the right one.
    let identity = key(&here).display().to_string();
    without.ok(&["remote", "set", "hub", "--encrypt", "--identity", &identity])?;
    without.ok(&["pull", "web"])?;
    ensure!(without.sh_ok("web", "cat /a")? == "one\n");
    // A key that is gone is named, and so is the way back.
    let kept = fs::read(key(&here))?;
    fs::remove_file(key(&here))?;
    here.sh_ok("web", "echo two > /a")?;
    here.refused_with(&["push", "web"], 5, &["remote hub", "keys/hub.txt", "--identity FILE"])?;
    here.refused_with(&["pull", "web"], 5, &["remote hub", "keys/hub.txt", "--identity FILE"])?;
    crate::stage::write(key(&here), kept)?;
    here.ok(&["push", "web"])?;
    Ok(())
}

#[test]
fn what_somebody_has_put_there_as_it_is_is_not_taken_and_nothing_is_sent_to_it() -> Result<()> {
    let registry = Registry::start()?;
    let plain = linked(&registry.address())?;
    plain.sh_ok("web", "echo planted > /a")?;
    plain.ok(&["push", "web"])?;
    let here = locked(&registry.address())?;
    let secrets = secrets(&here)?;
    let before = registry.bytes()?;
    here.refused_with(&["push", "web"], 4, &["team/web", "not encrypted", "remote hub"])?;
    ensure!(registry.bytes()? == before, "something was sent");
    let empty = with_key(&registry.address(), &key(&here))?;
    empty.refused_unchanged(&["pull", "web"], 4, &["team/web", "not encrypted", "remote hub"])?;
    // The same where it was one's own.
    plain.ok(&["remote", "set", "hub", "--encrypt"])?;
    plain.sh_ok("web", "echo more > /b")?;
    plain.refused_with(&["push", "web"], 4, &["team/web", "not encrypted"])?;
    plain.refused_with(&["pull", "web"], 4, &["team/web", "not encrypted"])?;
    here.ok(&["push", "web", "--as", "web-locked"])?;
    for secret in &secrets[..4] {
        ensure!(!registry.contains(secret)?, "the registry has {:?}", String::from_utf8_lossy(secret));
    }
    empty.ok(&["pull", "web-locked"])?;
    // No way leads back to plain under the same name.
    empty.refused_with(&["remote", "add", "hub", &format!("{}/team", registry.address())], 4, &["hub"])?;
    Ok(())
}

#[test]
fn what_was_put_under_another_name_is_not_taken() -> Result<()> {
    let registry = Registry::start()?;
    let here = locked(&registry.address())?;
    here.sh_ok("old", "echo old > /a")?;
    here.ok(&["push", "old"])?;
    let copied = Command::new("cp")
        .arg("-a")
        .args([registry.repository_dir("team/old"), registry.repository_dir("team/web")])
        .status()?;
    ensure!(copied.success());
    let there = with_key(&registry.address(), &key(&here))?;
    there.refused_unchanged(&["pull", "web"], 6, &["team/web", "was sent as old"])?;
    there.ok(&["pull", "old", "web"])?;
    Ok(())
}

#[test]
fn a_change_of_a_megabyte_costs_little_more_when_it_is_encrypted() -> Result<()> {
    let registry = Registry::start()?;
    let proxy = Proxy::before(registry.port)?;
    let here = locked(&proxy.address())?;
    let there = with_key(&proxy.address(), &key(&here))?;
    little_more_than_the_change(&registry, &proxy, (&here, &there))?;
    // Two containers on one image send it once.
    here.sh_ok("other", "echo other > /n")?;
    proxy.take();
    here.ok(&["push", "other"])?;
    at_most("sent for the second container", proxy.take().0, 20_000)
}

#[test]
fn an_encrypted_push_that_is_killed_goes_on_with_what_is_not_there() -> Result<()> {
    let registry = Registry::start()?;
    let proxy = Proxy::before(registry.port)?;
    let here = heavy(locked(&proxy.address())?)?;
    killed_push(&registry, &here, &with_key(&registry.address(), &key(&here))?)
}

#[test]
fn an_encrypted_pull_that_is_killed_goes_on_with_what_is_not_here() -> Result<()> {
    let registry = Registry::start()?;
    let proxy = Proxy::before(registry.port)?;
    let here = heavy(locked(&registry.address())?)?;
    here.ok(&["push", "web"])?;
    killed_pull(&proxy, &with_key(&proxy.address(), &key(&here))?)
}

#[test]
fn what_is_damaged_of_the_encrypted_never_gets_in() -> Result<()> {
    let registry = Registry::start()?;
    let here = locked(&registry.address())?;
    damages_refused(&registry, &here, &|| with_key(&registry.address(), &key(&here)))
}

#[test]
fn what_is_cut_off_or_exchanged_is_named_and_nothing_is_kept_of_it() -> Result<()> {
    let registry = Registry::start()?;
    let here = locked(&registry.address())?;
    for number in [1, 2] {
        here.sh_ok("web", &format!("head -c 300000 /dev/urandom > /{number}"))?;
        here.ok(&["push", "web"])?;
    }
    // The packs of the two generations are the only blobs of that length.
    let mut packs = registry.blobs()?;
    packs.retain(|blob| blob.metadata().is_ok_and(|metadata| (300_000..400_000).contains(&metadata.len())));
    let [one, other] = packs.as_slice() else { bail!("there are {packs:?}") };
    let whole = [fs::read(one)?, fs::read(other)?];
    let [first, second] = &whole;
    let begun = [first.get(..200_000).context("it is longer")?, &vec![0; 100_000]].concat();
    for (wrong, other_wrong) in [(second, first), (&first[..100].to_vec(), second), (&begun, second)] {
        crate::stage::write(one, wrong)?;
        crate::stage::write(other, other_wrong)?;
        let there = with_key(&registry.address(), &key(&here))?;
        let run = there.run(&["pull", "web"])?;
        ensure!(run.code() != 0, "it was taken");
        crate::stage::complains(&run.err(), &["team/web"])?;
        ensure!(there.json::<Value>(&["ps"])? == json!([]));
        there.ok(&["doctor"])?;
    }
    crate::stage::write(one, first)?;
    crate::stage::write(other, second)?;
    with_key(&registry.address(), &key(&here))?.ok(&["pull", "web"])?;
    Ok(())
}

#[test]
fn two_machines_with_one_key_are_told_of_each_other_as_without() -> Result<()> {
    for registry in [Registry::start()?, Registry::start_ours()?] {
        let here = locked(&registry.address())?;
        one_container_by_two(&here, &with_key(&registry.address(), &key(&here))?)?;
        let here = locked(&format!("{}/joined", registry.address()))?;
        histories_joined(&here, &with_key(&format!("{}/joined", registry.address()), &key(&here))?)?;
    }
    Ok(())
}

#[test]
fn another_key_is_let_in_without_sending_everything_again_and_is_left_out_only_on_purpose() -> Result<()> {
    let registry = Registry::start()?;
    let proxy = Proxy::before(registry.port)?;
    let one = locked(&proxy.address())?;
    one.sh_ok("web", "dd if=/dev/urandom of=/a bs=1M count=4")?;
    one.ok(&["push", "web"])?;
    let other = locked(&proxy.address())?;
    let (first, second) = (recipient(&one)?, recipient(&other)?);
    other.refused_with(&["pull", "web"], 5, &["other keys"])?;
    one.ok(&["remote", "set", "hub", "--recipient", &second])?;
    proxy.take();
    let pushed: Value = one.json(&["push", "web"])?;
    at_most("sent to let a key in", proxy.take().0, 30_000)?;
    ensure!(pushed["new"] == json!([]), "{pushed}");
    let again: Value = one.json(&["push", "web"])?;
    ensure!(again["nothing_to_send"] == true, "{again}");
    other.ok(&["pull", "web"])?;
    // Whoever goes on leaves nobody out by oversight, and sends no image again.
    other.sh_ok("web", "echo two > /two")?;
    other.refused_with(&["push", "web"], 4, &[&first, "remote set hub", "--drop-recipients"])?;
    other.ok(&["remote", "set", "hub", "--recipient", &first])?;
    proxy.take();
    other.ok(&["push", "web"])?;
    at_most("sent after a small change", proxy.take().0, 60_000)?;
    one.ok(&["pull", "web"])?;
    ensure!(one.sh_ok("web", "cat /two")? == "two\n");
    // One of the two is left out: what comes from now on it cannot read.
    one.ok(&["remote", "set", "hub", "--recipient", "none"])?;
    one.refused_with(&["push", "web"], 4, &[&second])?;
    one.ok(&["push", "web", "--drop-recipients"])?;
    other.refused_with(&["pull", "web"], 5, &["other keys"])?;
    with_key(&registry.address(), &key(&one))?.ok(&["pull", "web"])?;
    Ok(())
}

#[test]
fn a_key_is_exchanged_for_a_new_one_by_having_both_for_a_while() -> Result<()> {
    let registry = Registry::start()?;
    let here = locked(&registry.address())?;
    here.sh_ok("web", "echo one > /a")?;
    here.ok(&["push", "web"])?;
    let (old, new) = (fs::read_to_string(key(&here))?, fs::read_to_string(key(&locked(&registry.address())?))?);
    let old_recipient = recipient(&here)?;
    crate::stage::write(key(&here), format!("{new}{old}"))?;
    let pushed: Value = here.json(&["push", "web"])?;
    at_most("sent to exchange a key", pushed["traffic"]["sent_bytes"].as_u64().unwrap_or(u64::MAX), 30_000)?;
    crate::stage::write(key(&here), &new)?;
    here.refused_with(&["push", "web"], 4, &[&old_recipient, "--drop-recipients"])?;
    here.ok(&["push", "web", "--drop-recipients"])?;
    with_key(&registry.address(), &key(&here))?.ok(&["pull", "web"])?;
    let file = here.path("old-key");
    crate::stage::write(&file, old)?;
    with_key(&registry.address(), &file)?.refused_unchanged(&["pull", "web"], 5, &["other keys", &old_recipient])?;
    Ok(())
}

#[test]
fn what_is_sent_by_itself_is_encrypted_and_a_missing_key_shows() -> Result<()> {
    const SENT: Duration = Duration::from_secs(60);
    let registry = Registry::start()?;
    let here = locked(&registry.address())?;
    here.ok(&["create", "web", "--image", "box", "--push", "hub", "--env", "BED=under-the-oak"])?;
    here.sh_ok("web", "echo one > /a")?;
    wait_until("it is sent", SENT, || Ok(here.inspect("web")?["not_sent"].is_null()))?;
    ensure!(!registry.contains(b"under-the-oak")?);
    let kept = fs::read(key(&here))?;
    fs::set_permissions(key(&here), fs::Permissions::from_mode(0o644))?;
    ensure!(here.json::<Value>(&["doctor"])?["findings"].to_string().contains("mode 644"));
    fs::remove_file(key(&here))?;
    ensure!(here.json::<Value>(&["doctor"])?["findings"].to_string().contains("the key of remote hub cannot be used"));
    let before = registry.bytes()?;
    here.sh_ok("web", "echo two > /a")?;
    wait_until("a try has failed", SENT, || Ok(here.inspect("web")?["not_sent"]["failures"].as_u64() > Some(0)))?;
    let shown = here.inspect("web")?;
    let message = text(&shown, "/conditions/0/message")?;
    ensure!(message.contains("keys/hub.txt"), "{message}");
    ensure!(registry.bytes()? == before, "something was sent");
    crate::stage::write(key(&here), kept)?;
    here.ok(&["push", "web"])?;
    let there = with_key(&registry.address(), &key(&here))?;
    there.ok(&["pull", "web"])?;
    ensure!(there.sh_ok("web", "cat /a")? == "two\n");
    Ok(())
}

/// Decrypts a file with Debian's age.
fn age(identity: &Path, file: &Path) -> Result<Option<Vec<u8>>> {
    let output = Command::new("age").arg("-d").arg("-i").arg(identity).arg(file).output()?;
    Ok(output.status.success().then_some(output.stdout))
}

#[test]
fn age_and_zstd_alone_read_what_lies_in_the_registry() -> Result<()> {
    let registry = Registry::start()?;
    let here = locked(&registry.address())?;
    here.sh_ok("web", "echo a rose by any other name > /a; head -c 200000 /dev/urandom > /b")?;
    here.ok(&["push", "web"])?;
    let mut found = String::new();
    for blob in registry.blobs()? {
        let Some(parcel) = age(&key(&here), &blob)? else { continue };
        let parcel: Value = serde_json::from_slice(&parcel)?;
        for pack in parcel["body"]["packs"].as_array().context("it has packs")? {
            let identity = here.path("pack-key");
            crate::stage::write(&identity, text(pack, "/cipher/key")?)?;
            let digest = text(pack, "/digest")?.trim_start_matches("sha256:").to_owned();
            let blob = registry.blobs()?.into_iter().find(|path| path.to_string_lossy().contains(&digest));
            let content = age(&identity, &blob.context("the pack is there")?)?.context("it is for that key")?;
            let packed = here.path("pack");
            crate::stage::write(&packed, content)?;
            let unpacked = Command::new("zstd").args(["-d", "-c"]).arg(&packed).output()?;
            ensure!(unpacked.status.success());
            found.push_str(&String::from_utf8_lossy(&unpacked.stdout));
        }
    }
    ensure!(found.contains("a rose by any other name"));
    Ok(())
}
