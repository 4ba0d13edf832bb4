//! Small images for tests, in the forms that `image import` takes.
//!
//! A *root file system* is a directory made here; a *layer* is such a directory or a difference in OCI form, with
//! `.wh.NAME` files for what it deletes; an *OCI layout* is a directory of blobs made from layers. Layers are packed
//! by GNU tar with xattrs, ACLs, holes and nanosecond times, so that an import can show that it keeps them.

use crate::bytes::hex;
use crate::host::{run, write};
use anyhow::{Context as _, Result, anyhow};
use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::fs::{self, File, Permissions};
use std::io::Read as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where Debian's package `busybox-static` puts its program.
const BUSYBOX: &str = "/bin/busybox";

/// Makes the directory `dir` a root file system of busybox alone, with its usual commands and two users:
/// `root` and `user` (1000:1000, also in the group `extra`, 2000).
pub fn busybox_rootfs(dir: &Path) -> Result<()> {
    for name in ["bin", "dev", "etc", "home/user", "proc", "root", "run", "sys", "tmp", "usr/bin", "var/log"] {
        fs::create_dir_all(dir.join(name)).with_context(|| format!("cannot make {name}"))?;
    }
    fs::set_permissions(dir, Permissions::from_mode(0o755))?;
    fs::set_permissions(dir.join("tmp"), Permissions::from_mode(0o1777))?;
    fs::set_permissions(dir.join("root"), Permissions::from_mode(0o700))?;
    std::os::unix::fs::chown(dir.join("home/user"), Some(1000), Some(1000))?;
    fs::copy(BUSYBOX, dir.join("bin/busybox")).context("cannot copy busybox (Debian package busybox-static)")?;
    let applets = run(Command::new(BUSYBOX).arg("--list"))?;
    for applet in String::from_utf8(applets.stdout)?.lines().filter(|applet| *applet != "busybox") {
        symlink("busybox", dir.join("bin").join(applet))?;
    }
    write(dir.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\n")?;
    write(dir.join("etc/group"), "root:x:0:\nuser:x:1000:\nextra:x:2000:user\n")?;
    write(dir.join("etc/os-release"), "NAME=busybox\nID=busybox\nVERSION_ID=1\n")
}

/// Copies a program into a root file system, with the dynamic libraries it needs where the loader looks for them.
pub fn add_program(rootfs: &Path, program: &Path, inside: &str) -> Result<()> {
    let target = rootfs.join(inside.trim_start_matches('/'));
    fs::create_dir_all(target.parent().ok_or_else(|| anyhow!("{inside} has no parent"))?)?;
    fs::copy(program, &target).with_context(|| format!("cannot copy {}", program.display()))?;
    fs::set_permissions(&target, Permissions::from_mode(0o755))?;
    let listed = Command::new("ldd").arg(program).output().context("cannot run ldd")?;
    // A static program needs none; ldd then says so and fails.
    for library in String::from_utf8_lossy(&listed.stdout).split_whitespace().filter(|word| word.starts_with('/')) {
        let target = rootfs.join(library.trim_start_matches('/'));
        if !target.exists() {
            fs::create_dir_all(target.parent().ok_or_else(|| anyhow!("{library} has no parent"))?)?;
            fs::copy(library, &target).with_context(|| format!("cannot copy {library}"))?;
        }
    }
    Ok(())
}

/// Packs a directory into a tar file with everything tar can carry. Sockets are left out (tar cannot).
pub fn pack(dir: &Path, tar: &Path) -> Result<()> {
    run(Command::new("tar")
        .args(["--format=posix", "--xattrs", "--xattrs-include=*", "--acls", "--sparse", "--numeric-owner"])
        .args(["--sort=name", "--warning=no-file-ignored", "-C"])
        .arg(dir)
        .arg("-cf")
        .arg(tar)
        .arg("."))?;
    Ok(())
}

/// How the layers of an OCI layout are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// By `gzip -1`.
    Gzip,
    /// By `zstd -1`.
    Zstd,
}

/// What an image says about running it: the object `config` of an OCI image configuration.
#[derive(Debug, Clone)]
pub struct ImageText(pub Value);

impl Default for ImageText {
    fn default() -> Self {
        Self(
            json!({ "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["/bin/sh"] }),
        )
    }
}

/// Writes an OCI layout of one image, tagged `latest`, into the directory `dir`; `layers` are directories or tar
/// files, lowest first. Returns the digest of its manifest.
pub fn oci_layout(dir: &Path, layers: &[&Path], config: &ImageText, compression: Compression) -> Result<String> {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let (suffix, mut diff_ids, mut descriptors) = (compression.suffix(), Vec::new(), Vec::new());
    for layer in layers {
        let tar = dir.join("layer.tar");
        if layer.is_dir() {
            pack(layer, &tar)?;
        } else {
            fs::copy(layer, &tar).with_context(|| format!("cannot copy {}", layer.display()))?;
        }
        diff_ids.push(Value::from(format!("sha256:{}", digest(&tar)?)));
        let packed = compression.apply(&tar)?;
        let media = format!("application/vnd.oci.image.layer.v1.tar{suffix}");
        descriptors.push(add_blob(&blobs, &packed, &media)?);
    }
    let text = json!({ "architecture": architecture(), "os": "linux", "config": config.0,
        "rootfs": { "type": "layers", "diff_ids": diff_ids } });
    let config = add_json(&blobs, &text, "application/vnd.oci.image.config.v1+json")?;
    let media = "application/vnd.oci.image.manifest.v1+json";
    let text = json!({ "schemaVersion": 2, "mediaType": media, "config": config, "layers": descriptors });
    let mut manifest = add_json(&blobs, &text, media)?;
    let digest = manifest.get("digest").and_then(Value::as_str).unwrap_or_default().to_owned();
    if let Some(fields) = manifest.as_object_mut() {
        fields.insert("annotations".into(), json!({ "org.opencontainers.image.ref.name": "latest" }));
    }
    let index =
        json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [manifest] });
    write(dir.join("index.json"), serde_json::to_vec(&index)?)?;
    write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(digest)
}

/// Packs an OCI layout into one tar file, as `oci-archive:` takes it.
pub fn oci_archive(layout: &Path, archive: &Path) -> Result<()> {
    run(Command::new("tar").arg("-C").arg(layout).arg("-cf").arg(archive).args(["oci-layout", "index.json", "blobs"]))?;
    Ok(())
}

/// Writes a `docker save` archive of one image named `name`; `layers` are directories, lowest first.
pub fn docker_archive(archive: &Path, layers: &[&Path], config: &ImageText, name: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (mut files, mut diff_ids) = (Vec::new(), Vec::new());
    for (number, layer) in layers.iter().enumerate() {
        let file = format!("{number}/layer.tar");
        fs::create_dir(dir.path().join(number.to_string()))?;
        pack(layer, &dir.path().join(&file))?;
        diff_ids.push(format!("sha256:{}", digest(&dir.path().join(&file))?));
        files.push(file);
    }
    let text = json!({ "architecture": architecture(), "os": "linux", "config": config.0,
        "rootfs": { "type": "layers", "diff_ids": diff_ids } });
    write(dir.path().join("config.json"), serde_json::to_vec(&text)?)?;
    let manifest = json!([{ "Config": "config.json", "RepoTags": [name], "Layers": files }]);
    write(dir.path().join("manifest.json"), serde_json::to_vec(&manifest)?)?;
    run(Command::new("tar").arg("-C").arg(dir.path()).arg("-cf").arg(archive).arg("."))?;
    Ok(())
}

/// Writes an OCI layout of the busybox root file system into the directory `dir`, one layer, not compressed.
pub fn busybox_oci(dir: &Path) -> Result<String> {
    let rootfs = tempfile::tempdir()?;
    busybox_rootfs(rootfs.path())?;
    oci_layout(dir, &[rootfs.path()], &ImageText::default(), Compression::None)
}

/// Returns a tar file of a minimal Debian of this host's release, made by mmdebstrap once and kept in the
/// directory `PERENNIAL_TEST_CACHE` names, else in `target/testkit` of this workspace.
pub fn debian_rootfs() -> Result<PathBuf> {
    let cache = match std::env::var_os("PERENNIAL_TEST_CACHE") {
        Some(dir) => PathBuf::from(dir),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/testkit"),
    };
    fs::create_dir_all(&cache).with_context(|| format!("cannot make cache {}", cache.display()))?;
    let cache = cache.canonicalize()?;
    let release = release_name()?;
    let (done, part) = (cache.join(format!("{release}.tar")), cache.join(format!("{release}.part.tar")));
    let lock = File::create(cache.join("lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    if !done.exists() {
        run(Command::new("mmdebstrap").args(["--variant=minbase", "--quiet"]).arg(&release).arg(&part))
            .context("cannot make a minimal Debian (package mmdebstrap)")?;
        fs::rename(&part, &done)?;
    }
    Ok(done)
}

fn release_name() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release")?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(name.ok_or_else(|| anyhow!("/etc/os-release names no release"))?.trim_matches('"').to_owned())
}

impl Compression {
    fn suffix(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Gzip => "+gzip",
            Self::Zstd => "+zstd",
        }
    }

    fn apply(self, tar: &Path) -> Result<PathBuf> {
        let (program, extension) = match self {
            Self::None => return Ok(tar.to_owned()),
            Self::Gzip => ("gzip", "tar.gz"),
            Self::Zstd => ("zstd", "tar.zst"),
        };
        let packed = tar.with_extension(extension);
        let output = run(Command::new(program).args(["-1", "-c"]).arg(tar))?;
        write(&packed, output.stdout)?;
        fs::remove_file(tar)?;
        Ok(packed)
    }
}

fn add_blob(blobs: &Path, file: &Path, media: &str) -> Result<Value> {
    let (hash, size) = (digest(file)?, fs::metadata(file)?.len());
    fs::rename(file, blobs.join(&hash))?;
    Ok(json!({ "mediaType": media, "digest": format!("sha256:{hash}"), "size": size }))
}

fn add_json(blobs: &Path, text: &Value, media: &str) -> Result<Value> {
    let file = blobs.join("part");
    write(&file, serde_json::to_vec(text)?)?;
    add_blob(blobs, &file, media)
}

fn digest(file: &Path) -> Result<String> {
    let mut file = File::open(file)?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 18]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            length => hash.update(buffer.get(..length).unwrap_or_default()),
        }
    }
}

/// Returns this host's architecture by its name in images.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
