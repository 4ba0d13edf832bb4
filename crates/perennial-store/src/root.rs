//! The directory that holds everything: opened or made, recognised by its `format.json`, and locked piece by piece.

use crate::atomic;
use perennial_core::format::{self, DecodeError, Format};
use perennial_core::id::{ContainerId, LayerId, RunId};
use perennial_core::time::Time;
use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Directories every root has.
const DIRECTORIES: [&str; 7] = ["layers", "runs", "locks", "staging", "trash", "oci", "objects"];

/// Bytes of a [`Secret`].
const SECRET_BYTES: usize = 16;

/// Name of the directory of objects: random, so that no tree holds a path that begins with it and could pass for an
/// object (the research calls it redirect hijack). As text 32 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Secret([u8; SECRET_BYTES]);

impl Secret {
    /// Makes one of random bytes.
    #[must_use]
    pub const fn from_random(random: [u8; SECRET_BYTES]) -> Self {
        Self(random)
    }

    /// Returns it as the encoder of metadata images takes it.
    #[must_use]
    pub const fn for_image(&self) -> perennial_core::sealed::erofs::Secret {
        perennial_core::sealed::erofs::Secret::from_random(self.0)
    }
}

impl std::fmt::Display for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl From<Secret> for String {
    fn from(secret: Secret) -> Self {
        secret.to_string()
    }
}

impl TryFrom<String> for Secret {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        let malformed = "the name of the directory of objects is not 32 lower-case hexadecimal digits";
        if text.len() != SECRET_BYTES * 2 {
            return Err(malformed);
        }
        let mut bytes = [0; SECRET_BYTES];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let [high, low] = *pair else { return Err(malformed) };
            let digit = |digit: u8| match digit {
                b'0'..=b'9' => Some(digit.wrapping_sub(b'0')),
                b'a'..=b'f' => Some(digit.wrapping_sub(b'a').wrapping_add(10)),
                _ => None,
            };
            let (high, low) = digit(high).zip(digit(low)).ok_or(malformed)?;
            *byte = (high << 4) | low;
        }
        Ok(Self(bytes))
    }
}

/// Body of `format.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootRecord {
    /// When the root was made.
    pub created_at: Time,
    /// How layers are stored: `dir`.
    pub layer_form: String,
    /// Name of the directory of objects; roots of older releases have none until they are opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objects: Option<Secret>,
}

/// An open root.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    secret: Secret,
}

/// Why a root cannot be used; nothing has changed in it.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// A system call failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The directory belongs to something else.
    #[error("{} is not empty and has no format.json: it is not a Perennial root", path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
    },
    /// The directory lies inside another root.
    #[error("{} lies inside the Perennial root {}", path.display(), outer.display())]
    Nested {
        /// The directory.
        path: PathBuf,
        /// The root around it.
        outer: PathBuf,
    },
    /// Not a directory.
    #[error("{} is not a directory", path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// Others may write in it.
    #[error("{} may be written by others (mode {mode:o}, owner {uid}): it must belong to the caller alone", path.display())]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// Its owner.
        uid: u32,
    },
    /// `format.json` is damaged or of a newer release.
    #[error("{}", path.display())]
    Format {
        /// Path of `format.json`.
        path: PathBuf,
        /// What is wrong with it.
        source: DecodeError,
    },
}

/// How long to wait for a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Until it is free.
    Forever,
    /// Not at all.
    Never,
}

/// Shared or exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockMode {
    /// Many may hold it.
    Shared,
    /// One holds it.
    Exclusive,
}

/// A held lock; the kernel releases it when the value, or the process, ends.
#[derive(Debug)]
pub struct Lock {
    fd: OwnedFd,
    path: PathBuf,
}

impl Lock {
    /// Lets programs that are started from now on hold the lock too, until they end.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn share_with_children(&self) -> std::io::Result<()> {
        Ok(rustix::io::fcntl_setfd(&self.fd, rustix::io::FdFlags::empty())?)
    }

    /// Ends [`Lock::share_with_children`] for programs that are started from now on.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn keep_from_children(&self) -> std::io::Result<()> {
        Ok(rustix::io::fcntl_setfd(&self.fd, rustix::io::FdFlags::CLOEXEC)?)
    }

    /// Removes the lock's file while holding it: the thing it guarded is gone.
    pub fn remove_file(self) {
        std::fs::remove_file(&self.path).ok();
    }
}

impl Root {
    /// Opens the root at `path`, making it where it does not exist or is empty.
    ///
    /// `random` becomes the name of the directory of objects where the root has none yet.
    ///
    /// # Errors
    /// [`RootError`], before anything is changed.
    pub fn open_or_create(path: &Path, now: Time, random: Secret) -> Result<Self, RootError> {
        let io = |action, path: &Path| {
            let path = path.to_path_buf();
            move |source| RootError::Io { action, path, source }
        };
        match std::fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_symlink() || metadata.is_dir() => {}
            Ok(_) => return Err(RootError::NotADirectory { path: path.to_path_buf() }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                refuse_nested(path)?;
                std::fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(path)
                    .map_err(io("create the root directory", path))?;
            }
            Err(error) => return Err(io("look at the root directory", path)(error)),
        }
        let path = std::fs::canonicalize(path).map_err(io("resolve the root directory", path))?;
        if !path.is_dir() {
            return Err(RootError::NotADirectory { path });
        }
        let recorded = match read_record(&path)? {
            Some(record) => record.objects,
            None => {
                Self::create(&path, now, random)?;
                read_record(&path)?.and_then(|record| record.objects)
            }
        };
        check_owner(&path)?;
        for directory in DIRECTORIES {
            let directory = path.join(directory);
            if !directory.is_dir() {
                make_directory(&directory)?;
            }
        }
        let secret = match recorded {
            Some(secret) => secret,
            None => add_secret(&path, random)?,
        };
        Ok(Self { path, secret })
    }

    fn create(path: &Path, now: Time, random: Secret) -> Result<(), RootError> {
        refuse_nested(path)?;
        let io = |action, source| RootError::Io { action, path: path.to_path_buf(), source };
        let directory = atomic::open_directory(path).map_err(|error| io("open", error))?;
        // Of several first commands one makes the root; the others find it made.
        rustix::fs::flock(&directory, FlockOperation::LockExclusive).map_err(|error| io("lock", error.into()))?;
        if path.join("format.json").symlink_metadata().is_ok() {
            return Ok(());
        }
        let leftovers = [".format.json.new", "lost+found"];
        let is_foreign = std::fs::read_dir(path).map_err(|error| io("read", error))?.flatten().any(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            !leftovers.contains(&name.as_ref()) && !DIRECTORIES.contains(&name.as_ref())
        });
        if is_foreign {
            return Err(RootError::Foreign { path: path.to_path_buf() });
        }
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
            .map_err(|error| io("set the permissions of", error))?;
        for directory in DIRECTORIES {
            make_directory(&path.join(directory))?;
        }
        let record = RootRecord { created_at: now, layer_form: "dir".into(), objects: Some(random) };
        atomic::write(directory.as_fd(), "format.json", &format::encode(Format::Root, &record))
            .map_err(|error| io("write format.json in", error))?;
        if let Some(parent) = path.parent() {
            atomic::sync_directory(parent).map_err(|error| io("sync the directory around", error))?;
        }
        Ok(())
    }

    /// Returns the root's own path, resolved.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the directory that overlayfs gets as its data-only layer: it holds the directory of objects, under its
    /// secret name.
    #[must_use]
    pub fn objects_dir(&self) -> PathBuf {
        self.path.join("objects")
    }

    /// Returns the name of the directory of objects.
    #[must_use]
    pub const fn secret(&self) -> &Secret {
        &self.secret
    }

    /// Returns the path of the record store.
    #[must_use]
    pub fn records_path(&self) -> PathBuf {
        self.path.join("records.db")
    }

    /// Returns the directory of a layer.
    #[must_use]
    pub fn layer_dir(&self, layer: &LayerId) -> PathBuf {
        self.path.join("layers").join(layer.as_str())
    }

    /// Returns the tree of a layer.
    #[must_use]
    pub fn layer_tree(&self, layer: &LayerId) -> PathBuf {
        self.layer_dir(layer).join("tree")
    }

    /// Returns the directory of a run.
    #[must_use]
    pub fn run_dir(&self, run: &RunId) -> PathBuf {
        self.path.join("runs").join(run.as_str())
    }

    /// Returns the directory things are renamed into before they are unlinked.
    #[must_use]
    pub fn trash_dir(&self) -> PathBuf {
        self.path.join("trash")
    }

    /// Returns the directory in which layers are made before they are published.
    #[must_use]
    pub fn staging_dir(&self) -> PathBuf {
        self.path.join("staging")
    }

    /// Returns the state directory of the OCI runtime.
    #[must_use]
    pub fn oci_dir(&self) -> PathBuf {
        self.path.join("oci")
    }

    /// Locks a container against other commands.
    ///
    /// # Errors
    /// [`RootError::Io`]; `Ok(None)` where it is held by another and `wait` is [`Wait::Never`].
    pub fn lock_container(&self, id: &ContainerId, wait: Wait) -> Result<Option<Lock>, RootError> {
        self.lock(&format!("container-{id}"), LockMode::Exclusive, wait)
    }

    /// Locks the graph of references between generations, images and layers: held only while a change of it is
    /// planned and committed.
    ///
    /// # Errors
    /// [`RootError::Io`].
    pub fn lock_graph(&self) -> Result<Lock, RootError> {
        let lock = self.lock("graph", LockMode::Exclusive, Wait::Forever)?;
        lock.ok_or_else(|| RootError::Io {
            action: "lock",
            path: self.path.join("locks/graph"),
            source: std::io::Error::from(std::io::ErrorKind::WouldBlock),
        })
    }

    /// Locks a run: its supervisor holds it for life, so that whoever gets it knows the supervisor is gone.
    ///
    /// # Errors
    /// [`RootError::Io`].
    pub fn lock_run(&self, run: &RunId, wait: Wait) -> Result<Option<Lock>, RootError> {
        self.lock(&format!("run-{run}"), LockMode::Exclusive, wait)
    }

    /// Locks a layer: shared by runs that mount it, exclusive for a fold that changes it.
    ///
    /// # Errors
    /// [`RootError::Io`].
    pub fn lock_layer(&self, layer: &LayerId, mode: LockMode, wait: Wait) -> Result<Option<Lock>, RootError> {
        self.lock(&format!("layer-{layer}"), mode, wait)
    }

    /// Locks images: shared by an import, whose layers nothing names yet, exclusive for freeing image layers.
    ///
    /// # Errors
    /// [`RootError::Io`]; `Ok(None)` where it is held by another and `wait` is [`Wait::Never`].
    pub fn lock_images(&self, mode: LockMode, wait: Wait) -> Result<Option<Lock>, RootError> {
        self.lock("images", mode, wait)
    }

    /// Locks the objects: shared while some are stored that no manifest on disk names yet, exclusive for removing those
    /// that none names.
    ///
    /// # Errors
    /// [`RootError::Io`]; `Ok(None)` where it is held by another and `wait` is [`Wait::Never`].
    pub fn lock_objects(&self, mode: LockMode, wait: Wait) -> Result<Option<Lock>, RootError> {
        self.lock("objects", mode, wait)
    }

    /// Locks the sealing of a layer: one process at a time does it.
    ///
    /// # Errors
    /// [`RootError::Io`]; `Ok(None)` where it is held by another.
    pub fn lock_seal(&self, layer: &LayerId) -> Result<Option<Lock>, RootError> {
        self.lock(&format!("seal-{layer}"), LockMode::Exclusive, Wait::Never)
    }

    /// Asks background work to give way, until the lock is dropped or its holder dies.
    ///
    /// # Errors
    /// [`RootError::Io`].
    pub fn ask_to_yield(&self) -> Result<Option<Lock>, RootError> {
        self.lock("yield", LockMode::Shared, Wait::Forever)
    }

    /// Tells whether anybody asks background work to give way.
    #[must_use]
    pub fn must_yield(&self) -> bool {
        matches!(self.lock("yield", LockMode::Exclusive, Wait::Never), Ok(None))
    }

    /// Locks the sending of something to a place, or its fetching: one process at a time does it.
    ///
    /// # Errors
    /// [`RootError::Io`]; `Ok(None)` where it is held by another and `wait` is [`Wait::Never`].
    pub fn lock_travel(&self, what: &str, wait: Wait) -> Result<Option<Lock>, RootError> {
        self.lock(&format!("travel-{what}"), LockMode::Exclusive, wait)
    }

    /// Returns the directory of what is on its way to or from a registry.
    #[must_use]
    pub fn travel_dir(&self) -> PathBuf {
        self.path.join("travel")
    }

    /// Locks the trash: one process at a time unlinks what is in it.
    ///
    /// # Errors
    /// [`RootError::Io`]; `Ok(None)` where another process is at it.
    pub fn lock_trash(&self) -> Result<Option<Lock>, RootError> {
        self.lock("trash", LockMode::Exclusive, Wait::Never)
    }

    /// Takes the lock `name`; where its file was removed meanwhile, starts over with the new one.
    fn lock(&self, name: &str, mode: LockMode, wait: Wait) -> Result<Option<Lock>, RootError> {
        let path = self.path.join("locks").join(name);
        let operation = match (mode, wait) {
            (LockMode::Shared, Wait::Forever) => FlockOperation::LockShared,
            (LockMode::Shared, Wait::Never) => FlockOperation::NonBlockingLockShared,
            (LockMode::Exclusive, Wait::Forever) => FlockOperation::LockExclusive,
            (LockMode::Exclusive, Wait::Never) => FlockOperation::NonBlockingLockExclusive,
        };
        let io =
            |source: rustix::io::Errno| RootError::Io { action: "lock", path: path.clone(), source: source.into() };
        loop {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let fd = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600)).map_err(io)?;
            match rustix::fs::flock(&fd, operation) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(io(error)),
            }
            let held = rustix::fs::fstat(&fd).map_err(io)?;
            let is_present =
                std::fs::symlink_metadata(&path).is_ok_and(|now| now.ino() == held.st_ino && now.dev() == held.st_dev);
            if is_present {
                return Ok(Some(Lock { fd, path }));
            }
        }
    }
}

fn read_record(root: &Path) -> Result<Option<RootRecord>, RootError> {
    let path = root.join("format.json");
    match std::fs::read(&path) {
        Ok(bytes) => {
            let decoded = format::decode(Format::Root, &bytes);
            decoded.map(Some).map_err(|source| RootError::Format { path, source })
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(RootError::Io { action: "read", path, source }),
    }
}

/// Gives a root of an older release its directory of objects; of several first commands one does.
fn add_secret(root: &Path, random: Secret) -> Result<Secret, RootError> {
    let io = |action, source| RootError::Io { action, path: root.to_path_buf(), source };
    let directory = atomic::open_directory(root).map_err(|error| io("open", error))?;
    rustix::fs::flock(&directory, FlockOperation::LockExclusive).map_err(|error| io("lock", error.into()))?;
    let Some(mut record) = read_record(root)? else {
        return Err(io("find format.json in", std::io::ErrorKind::NotFound.into()));
    };
    if let Some(present) = record.objects {
        return Ok(present);
    }
    record.objects = Some(random);
    atomic::write(directory.as_fd(), "format.json", &format::encode(Format::Root, &record))
        .map_err(|error| io("write format.json in", error))?;
    Ok(random)
}

fn make_directory(path: &Path) -> Result<(), RootError> {
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(RootError::Io { action: "create", path: path.to_path_buf(), source }),
    }
}

fn check_owner(path: &Path) -> Result<(), RootError> {
    let metadata = std::fs::metadata(path).map_err(|source| RootError::Io {
        action: "look at",
        path: path.to_path_buf(),
        source,
    })?;
    let (mode, uid) = (metadata.mode() & 0o7777, metadata.uid());
    if mode & 0o022 != 0 || uid != rustix::process::geteuid().as_raw() {
        return Err(RootError::Unsafe { path: path.to_path_buf(), mode, uid });
    }
    Ok(())
}

/// Refuses a new root inside another: two roots would each take the other's directories for foreign.
fn refuse_nested(path: &Path) -> Result<(), RootError> {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    for outer in absolute.ancestors().skip(1) {
        let is_root = std::fs::read(outer.join("format.json"))
            .is_ok_and(|bytes| format::decode::<RootRecord>(Format::Root, &bytes).is_ok());
        if is_root {
            return Err(RootError::Nested { path: path.to_path_buf(), outer: outer.to_path_buf() });
        }
    }
    Ok(())
}
