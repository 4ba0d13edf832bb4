//! How many packs a container has at a remote.

use crate::encrypted::{key, locked, with_key};
use crate::moving::{empty_linked, linked};
use crate::registry::{Registry, at_most};
use crate::whole::{BIG, CHANGE, changed, comes_whole};
use anyhow::{Context as _, Result, ensure};
use perennial_core::sealed::object::ObjectId;
use perennial_core::travel::artifact::Artifact;
use perennial_core::travel::cipher::{Layout, PackCipher};
use perennial_core::travel::{PackAt, Parcel};
use perennial_registry::credentials::Credentials;
use perennial_registry::encryption::{Keys, encrypt_pack, make_pack_key};
use perennial_registry::progress::Silent;
use perennial_registry::repository::{Access, Expected, Repository, RepositoryOptions, Upload, sum};
use perennial_store::cold::{Known, Outgoing, OutgoingPack};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;

/// Gives a container at a remote so many packs more, each with a few bytes, as many small pushes would.
fn with_small_packs(address: &str, repository: &str, count: u32, keys: Option<&Keys>) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let options = RepositoryOptions {
        registry: address.to_owned(),
        repository: repository.to_owned(),
        credentials: Credentials::Anonymous,
        plain_http: true,
        certificates: Vec::new(),
        tries_max: 3,
    };
    let there = Repository::open(&options, Access::Push)?;
    let tagged = there.manifest("generations")?.context("no tag")?;
    let config = Artifact::decode(&tagged.bytes)?.config;
    let mut parcel = parcel_in(&there.document(&config.digest, config.size)?, keys)?;
    let key = make_pack_key()?;
    let mut uploads = Vec::new();
    for number in 0..count {
        let content = dir.path().join("content");
        crate::stage::write(&content, number.to_le_bytes())?;
        let place = dir.path().join(format!("{number}"));
        let mut outgoing = Outgoing::open(&place, Known::default())?;
        outgoing.object(ObjectId::of(&number.to_le_bytes()), &fs::File::open(&content)?)?;
        let OutgoingPack { id, path, bytes, index_offset, content_bytes } =
            outgoing.finish()?.pop().context("no pack")?;
        let mut file = fs::File::open(path)?;
        let mut cipher = None;
        if keys.is_some() {
            let encrypted = place.join("encrypted");
            encrypt_pack(&key, file, fs::File::create(&encrypted)?)?;
            file = fs::File::open(&encrypted)?;
            let layout = Layout::of(file.metadata()?.len(), bytes).context("it has another length")?;
            cipher = Some(PackCipher { key: key.clone(), head_bytes: layout.head_bytes });
        }
        let (digest, length) = sum(&file)?;
        parcel.packs.push(PackAt { id, digest: digest.clone(), bytes, index_offset, content_bytes, cipher });
        uploads.push(Upload { digest, file, bytes: length, name: id.to_string() });
    }
    there.send_blobs(&uploads, &Silent)?;
    let bytes = parcel.encode();
    let bytes = keys.map_or(Ok(bytes.clone()), |keys| keys.encrypt(&bytes))?;
    let blob = (there.send_document(&bytes)?, u64::try_from(bytes.len())?);
    let packs: Vec<_> = parcel.packs.iter().map(|pack| (pack.digest.clone(), pack.blob_bytes())).collect();
    let manifest = Artifact::new(parcel.secrecy(), blob, &packs, BTreeMap::new()).encode();
    there.put_manifest("generations", &manifest, &Expected::This(&tagged))?;
    Ok(())
}

fn parcel_in(bytes: &[u8], keys: Option<&Keys>) -> Result<Parcel> {
    Ok(match keys {
        Some(keys) => Parcel::decode(&keys.decrypt(bytes, 1 << 24)?)?,
        None => Parcel::decode(bytes)?,
    })
}

/// How many packs the parcel of a container names.
fn packs(registry: &Registry, repository: &str, keys: Option<&Keys>) -> Result<usize> {
    Ok(parcel_in(&fs::read(registry.parcel(repository, "generations")?)?, keys)?.packs.len())
}

#[test]
fn many_small_packs_that_are_encrypted_are_put_together_too() -> Result<()> {
    let registry = Registry::start()?;
    let here = locked(&registry.address())?;
    here.ok(&["create", "web", "--image", "box"])?;
    let sum = changed(&here, "web", BIG)?;
    here.ok(&["push", "web"])?;
    let keys = Keys::parse(&fs::read_to_string(key(&here))?, &[])?;
    with_small_packs(&registry.address(), "team/web", 300, Some(&keys))?;
    let before = packs(&registry, "team/web", Some(&keys))?;
    changed(&here, "web", "echo 2 > /n")?;
    here.ok(&["push", "web"])?;
    let after = packs(&registry, "team/web", Some(&keys))?;
    ensure!(before > 300 && after <= before - 299, "{before} packs before, {after} after");
    let there = with_key(&registry.address(), &key(&here))?;
    there.ok(&["pull", "web"])?;
    there.ok(&["verify", "--full"])?;
    ensure!(there.seqs("web")? == [1, 2]);
    ensure!(there.ok(&["run", "web", "--", "sha256sum", "/big"])?.out() == sum);
    Ok(())
}

#[test]
fn many_small_packs_are_put_together_by_a_push_also_where_only_the_registry_has_what_they_are_for() -> Result<()> {
    let registry = Registry::start()?;
    let here = linked(&registry.address())?;
    here.ok(&["create", "web", "--image", "box"])?;
    changed(&here, "web", BIG)?;
    let sum = changed(&here, "web", CHANGE)?;
    here.ok(&["push", "web"])?;
    let other = empty_linked(&registry.address())?;
    other.ok(&["pull", "web", "--current"])?;
    with_small_packs(&registry.address(), "team/web", 300, None)?;
    let before = packs(&registry, "team/web", None)?;
    ensure!(before > 300, "{before}");
    // The first generation is only in the registry for this one.
    other.sh_ok("web", "echo 3 > /n")?;
    let pushed: Value = other.json(&["push", "web"])?;
    at_most("sent", pushed["traffic"]["sent_bytes"].as_u64().context("no count")?, 400_000)?;
    let after = packs(&registry, "team/web", None)?;
    ensure!(after <= before - 299, "{before} packs before, {after} after");
    comes_whole(&registry.address(), "web", &sum)?;
    here.ok(&["pull", "web"])?;
    here.ok(&["verify", "--full"])?;
    let again: Value = other.json(&["push", "web"])?;
    ensure!(again["nothing_to_send"] == json!(true), "{again}");
    let third = empty_linked(&registry.address())?;
    third.ok(&["pull", "web"])?;
    ensure!(third.seqs("web")? == [1, 2, 3]);
    Ok(())
}
