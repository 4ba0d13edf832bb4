//! What the tests share: a store in a temporary directory, union mounts, and listings of trees to compare.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]
#![allow(clippy::allow_attributes, reason = "whether a part is used differs from file to file")]

use perennial_core::id::Digest;
use perennial_registry::{
    Event, ImportError, ImportOptions, Imported, ImportedLayer, LayerKey, LayerTarget, LayerTree, Progress, Source,
    TargetError, import,
};
use sha2::Digest as _;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A store that keeps layers as directories named by number.
pub struct Store {
    pub dir: tempfile::TempDir,
    pub layers: BTreeMap<Digest, PathBuf>,
    pub aborted: usize,
    pub begun: usize,
}

impl Store {
    pub fn new() -> Self {
        Self::new_in(&std::env::temp_dir())
    }

    pub fn new_in(place: &Path) -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests need root");
        let dir = tempfile::tempdir_in(place).unwrap();
        for name in ["layers", "staging"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self { dir, layers: BTreeMap::new(), aborted: 0, begun: 0 }
    }

    pub fn staging(&self) -> PathBuf {
        self.dir.path().join("staging")
    }

    pub fn options(&self) -> ImportOptions {
        ImportOptions::new(&self.staging())
    }

    pub fn import(&mut self, source: &str) -> Result<Imported, ImportError> {
        let source = Source::parse(source, &|path| path.exists()).unwrap();
        let options = self.options();
        import(&source, &options, self, &perennial_registry::progress::Silent)
    }

    /// Returns the trees of an image, newest first.
    pub fn trees(&self, imported: &Imported) -> Vec<PathBuf> {
        imported.layers.iter().map(|layer| self.layers[&layer.key.chain_id].clone()).collect()
    }

    pub fn mount(&self, imported: &Imported) -> Mount {
        Mount::new(&self.trees(imported))
    }

    pub fn assert_staging_is_empty(&self) {
        let left: Vec<_> = self.staging().read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.is_empty(), "left in staging: {left:?}");
    }
}

impl LayerTarget for Store {
    fn find(&self, key: &LayerKey) -> Option<LayerTree> {
        self.layers.get(&key.chain_id).cloned().map(LayerTree::Dir)
    }

    fn begin(&mut self) -> Result<PathBuf, TargetError> {
        self.begun += 1;
        let path = self.staging().join(format!("tree-{}", self.begun));
        std::fs::create_dir(&path)?;
        Ok(path)
    }

    fn commit(&mut self, directory: PathBuf, layer: &ImportedLayer) -> Result<LayerTree, TargetError> {
        let path = self.dir.path().join("layers").join(self.layers.len().to_string());
        std::fs::rename(directory, &path)?;
        self.layers.insert(layer.key.chain_id.clone(), path.clone());
        Ok(LayerTree::Dir(path))
    }

    fn abort(&mut self, directory: PathBuf) {
        self.aborted += 1;
        run("rm", &["-rf", directory.to_str().unwrap()]);
    }
}

/// A file system in memory, for trees that would take long on a disk; ended when dropped.
pub struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        run("mount", &["-t", "tmpfs", "-o", "size=3G", "tmpfs", dir.path().to_str().unwrap()]);
        Self(dir)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: directories in it that are dropped later only find nothing.
        run("umount", &["-l", self.0.path().to_str().unwrap()]);
    }
}

/// A read-only union mount of some trees, ended when dropped.
pub struct Mount {
    pub dir: tempfile::TempDir,
    empty: tempfile::TempDir,
}

impl Mount {
    pub fn new(trees: &[PathBuf]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let empty = tempfile::tempdir().unwrap();
        let mut lowers: Vec<&str> = trees.iter().map(|tree| tree.to_str().unwrap()).collect();
        if lowers.len() == 1 {
            // A union of one directory needs a second: an empty one below, which does not show.
            lowers.push(empty.path().to_str().unwrap());
        }
        let options = format!("lowerdir={},metacopy=off,index=off,redirect_dir=off", lowers.join(":"));
        run("mount", &["-t", "overlay", "overlay", "-o", &options, dir.path().to_str().unwrap()]);
        Self { dir, empty }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        run("umount", &[self.dir.path().to_str().unwrap()]);
    }
}

/// Runs a program that must succeed, and returns what it printed.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {args:?}: {}\n{stdout}{stderr}", output.status);
    stdout.into_owned()
}

/// Runs a shell script in a directory; every command of it must succeed.
pub fn sh(dir: &Path, script: &str) -> String {
    let script = format!("set -eu; cd '{}'; {script}", dir.display());
    run("bash", &["-c", &script])
}

/// Lists a tree with all that must be the same in a copy of it.
pub fn listing(root: &Path) -> BTreeMap<String, String> {
    let mut lines = BTreeMap::new();
    let mut first_names: BTreeMap<(u64, u64), String> = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(path) = todo.pop() {
        let full = root.join(&path);
        let meta = full.symlink_metadata().unwrap();
        let kind = meta.file_type();
        let mut content = String::new();
        if kind.is_dir() {
            let mut names: Vec<_> =
                full.read_dir().unwrap().map(|entry| path.join(entry.unwrap().file_name())).collect();
            names.sort();
            todo.extend(names.into_iter().rev());
        } else if kind.is_symlink() {
            content = format!("-> {:?}", full.read_link().unwrap());
        } else if kind.is_file() {
            let bytes = std::fs::read(&full).unwrap();
            content = format!("{} {:x?}", bytes.len(), &sha2::Sha256::digest(&bytes)[..8]);
        } else if kind.is_char_device() || kind.is_block_device() {
            content = format!("device {:#x}", meta.rdev());
        }
        if !kind.is_dir() && meta.nlink() > 1 {
            let name = path.display().to_string();
            let first = first_names.entry((meta.dev(), meta.ino())).or_insert(name);
            content.push_str(&format!(" same as {first}"));
        }
        let line = format!(
            "{:o} {}:{} {}.{:09} {:?} {content}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            meta.mtime_nsec(),
            xattrs(&full),
        );
        lines.insert(path.display().to_string(), line);
    }
    lines
}

pub fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = Vec::with_capacity(65536);
    rustix::fs::llistxattr(path, rustix::buffer::spare_capacity(&mut names)).unwrap();
    let mut all = BTreeMap::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let name_text = String::from_utf8_lossy(name).into_owned();
        if name_text.starts_with("trusted.overlay.") {
            continue;
        }
        let mut value = Vec::with_capacity(65536);
        rustix::fs::lgetxattr(path, OsStr::from_bytes(name), rustix::buffer::spare_capacity(&mut value)).unwrap();
        all.insert(name_text, value);
    }
    all
}

/// Fails with the differences between two trees, leaving out paths for which `skip` says so.
pub fn assert_same_tree(left: &Path, right: &Path) {
    assert_same_listing(&listing(left), &listing(right));
}

pub fn assert_same_listing(left: &BTreeMap<String, String>, right: &BTreeMap<String, String>) {
    let mut differences = Vec::new();
    for path in left.keys().chain(right.keys()).collect::<std::collections::BTreeSet<_>>() {
        if left.get(path) != right.get(path) {
            differences.push(format!("{path:?}:\n  left  {:?}\n  right {:?}", left.get(path), right.get(path)));
        }
    }
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
}

/// Remembers what it was told.
#[derive(Default)]
pub struct Told(pub RefCell<Vec<String>>);

impl Progress for Told {
    fn event(&self, event: Event<'_>) {
        self.0.borrow_mut().push(format!("{event:?}"));
    }
}

pub fn sha256(bytes: &[u8]) -> Digest {
    perennial_registry::digest::of_bytes(bytes)
}

/// A tar archive written header by header, so that it can say what no tool would write.
#[derive(Default)]
pub struct Tar(pub Vec<u8>);

impl Tar {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an entry with a raw name, type flag, link name and content.
    pub fn raw(mut self, name: &[u8], flag: u8, link: &[u8], content: &[u8]) -> Self {
        self.push((name, link), flag, content, 0o644);
        self
    }

    pub fn push(&mut self, (name, link): (&[u8], &[u8]), flag: u8, content: &[u8], mode: u32) {
        let mut header = tar::Header::new_ustar();
        let bytes = header.as_mut_bytes();
        bytes[..name.len()].copy_from_slice(name);
        bytes[156] = flag;
        bytes[157..157 + link.len()].copy_from_slice(link);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        header.set_device_major(0).unwrap();
        header.set_device_minor(0).unwrap();
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.data(content);
    }

    pub fn data(&mut self, content: &[u8]) {
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }

    pub fn file(self, name: &str, content: &[u8]) -> Self {
        self.raw(name.as_bytes(), b'0', b"", content)
    }

    pub fn dir(mut self, name: &str) -> Self {
        self.push((name.as_bytes(), b""), b'5', b"", 0o755);
        self
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.raw(name.as_bytes(), b'2', target.as_bytes(), b"")
    }

    pub fn link(self, name: &str, target: &str) -> Self {
        self.raw(name.as_bytes(), b'1', target.as_bytes(), b"")
    }

    /// Adds PAX records for the entry that follows.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            body.extend_from_slice(format!("{length} {key}=").as_bytes());
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        self.raw(b"pax", b'x', b"", &body)
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// Writes an OCI layout of uncompressed layers, oldest first.
pub fn layout(dir: &Path, layers: &[Vec<u8>]) {
    let blobs = dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = sha256(bytes);
        std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
        digest
    };
    let descriptors: Vec<String> = layers
        .iter()
        .map(|layer| {
            let digest = put(layer);
            let size = layer.len();
            format!(r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{digest}","size":{size}}}"#)
        })
        .collect();
    let diff_ids: Vec<String> = layers.iter().map(|layer| format!("\"{}\"", sha256(layer))).collect();
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        diff_ids.join(",")
    );
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":{}}},"layers":[{}]}}"#,
        put(config.as_bytes()),
        config.len(),
        descriptors.join(",")
    );
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{}","size":{}}}]}}"#,
        put(manifest.as_bytes()),
        manifest.len()
    );
    std::fs::write(dir.join("index.json"), index).unwrap();
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}
