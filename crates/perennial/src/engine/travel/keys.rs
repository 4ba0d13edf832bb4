//! Keys of remotes at which everything is encrypted, and packs encrypted on their way there.
//!
//! The owner's secret key is a file as `age-keygen` writes one. Nothing here shows or copies it; without it nothing that
//! was encrypted for it can be read, by nobody.

use crate::engine::{Engine, random};
use crate::failure::{Code, Failure, Result};
use perennial_core::check::{Finding, Severity};
use perennial_core::id::RunId;
use perennial_core::sealed::object::ObjectId;
use perennial_core::travel::cipher::{Layout, PackCipher, PackKey, RECIPIENTS_MAX, Recipient};
use perennial_core::travel::remote::{Encryption, Remote};
use perennial_registry::encryption::{Keys, MadeKey, check_recipient, encrypt_pack, make_key, make_pack_key};
use perennial_store::atomic;
use rustix::fs::{RenameFlags, renameat_with};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, BufReader};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Name of the directory of keys that were made here.
const KEYS: &str = "keys";
/// Longest file of keys, in bytes.
const KEY_FILE_BYTES_MAX: u64 = 64 << 10;
/// Bytes of a pack read and written at once.
const PIECE_BYTES: usize = 256 << 10;
/// Name of the file of the key of packs that are on their way.
const PACK_KEY: &str = "pack.key";

/// What the keys of a remote are to be.
#[derive(Debug, Clone, Default)]
pub struct KeyOrder {
    /// Whether everything there is to be encrypted.
    pub encrypt: bool,
    /// The file with our secret key; one is made where none is named.
    pub identity: Option<PathBuf>,
    /// Who else can read it, where that is to change.
    pub recipients: Option<Vec<Recipient>>,
}

impl Engine {
    /// Decides how a remote is encrypted, and makes a key where one is needed; returns where that lies.
    pub(super) fn encryption(
        &self,
        remote: &str,
        before: Option<&Encryption>,
        order: &KeyOrder,
    ) -> Result<(Option<Encryption>, Option<PathBuf>)> {
        if before.is_none() && !order.encrypt {
            if order.identity.is_none() && order.recipients.is_none() {
                return Ok((None, None));
            }
            return Err(Failure::new(Code::Usage, format!("remote {remote} is not encrypted"))
                .hint("--encrypt encrypts everything that is sent there from now on"));
        }
        let made = self.root.path().join(KEYS).join(format!("{remote}.txt"));
        let (path, is_new) = match (&order.identity, before) {
            (Some(path), _) => (std::path::absolute(path)?, false),
            (None, Some(before)) => (PathBuf::from(&before.identity), false),
            (None, None) => (made.clone(), !made.exists()),
        };
        let identity = path.to_str().map(str::to_owned).ok_or_else(|| {
            Failure::new(Code::Usage, format!("the path {} is not UTF-8", path.display()))
                .hint("move the key elsewhere")
        })?;
        let recipients = match (&order.recipients, before) {
            (Some(recipients), _) => recipients.clone(),
            (None, Some(before)) => before.recipients.clone(),
            (None, None) => Vec::new(),
        };
        if recipients.len() >= RECIPIENTS_MAX {
            return Err(Failure::new(Code::Usage, format!("a remote has at most {RECIPIENTS_MAX} keys")));
        }
        for recipient in &recipients {
            check_recipient(recipient).map_err(|error| {
                Failure::from(error).code(Code::Usage).hint("`age-keygen -y FILE` prints what belongs to a key")
            })?;
        }
        let is_new = is_new && write_key(&made)?;
        read_keys(&path, &recipients)?;
        Ok((Some(Encryption { identity, recipients }), is_new.then_some(made)))
    }

    /// Returns what the doctor says of the keys of remotes.
    ///
    /// # Errors
    /// Where the records cannot be read.
    pub fn check_keys(&self) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        for remote in self.remotes()? {
            let Some(Encryption { identity, .. }) = &remote.encryption else { continue };
            let finding = |message, hint| {
                let object = format!("remote {}", remote.name);
                Finding { severity: Severity::Warning, object, message, hint }
            };
            if let Err(failure) = keys_of(&remote) {
                findings.push(finding(failure.one_line(), failure.advice().to_owned()));
                continue;
            }
            let mode = std::fs::metadata(identity)?.permissions().mode() & 0o777;
            if mode & 0o077 != 0 {
                let message = format!("its key in {identity} may be read by others than its owner (mode {mode:o})");
                findings.push(finding(message, format!("`chmod 600 {identity}` keeps it to its owner")));
            }
        }
        Ok(findings)
    }
}

/// Makes a key, unless somebody else has just made it: none is ever overwritten.
fn write_key(path: &Path) -> Result<bool> {
    let unwritable = |error: io::Error| Failure::from(error).while_doing(format!("cannot write {}", path.display()));
    let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Err(unwritable(io::ErrorKind::InvalidInput.into()));
    };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(unwritable)?;
    let directory = atomic::open_directory(parent).map_err(unwritable)?;
    let MadeKey { file, .. } = make_key();
    let temporary = format!(".{name}-{}", RunId::from_random(random()?));
    // It belongs to the caller alone (0600), as all files that are written so.
    atomic::write(directory.as_fd(), &temporary, file.as_bytes()).map_err(unwritable)?;
    let is_made = match renameat_with(&directory, &temporary, &directory, name, RenameFlags::NOREPLACE) {
        Ok(()) => true,
        Err(Errno::EXIST) => {
            std::fs::remove_file(parent.join(&temporary)).map_err(unwritable)?;
            false
        }
        Err(error) => return Err(unwritable(error.into())),
    };
    atomic::sync_directory(parent).map_err(unwritable)?;
    parent.parent().map_or(Ok(()), atomic::sync_directory).map_err(unwritable)?;
    Ok(is_made)
}

fn parse(text: &str, recipients: &[Recipient], path: &Path) -> Result<Keys> {
    Keys::parse(text, recipients).map_err(|error| {
        Failure::from(error)
            .code(Code::Usage)
            .while_doing(format!("cannot use the key in {}", path.display()))
            .hint("`age-keygen -o FILE` makes a key, without a passphrase; --encrypt alone makes one, too")
    })
}

fn read_keys(path: &Path, recipients: &[Recipient]) -> Result<Keys> {
    let read = || {
        let mut text = String::new();
        io::Read::read_to_string(&mut io::Read::take(File::open(path)?, KEY_FILE_BYTES_MAX), &mut text)?;
        Ok(text)
    };
    let text = read().map_err(|error: io::Error| {
        Failure::from(error)
            .code(Code::Host)
            .while_doing(format!("the key in {} cannot be read", path.display()))
            .hint("nothing was changed; put the file with the secret key there again from its copy, or name another")
    })?;
    parse(&text, recipients, path)
}

/// Returns the keys of a remote, where everything there is encrypted.
pub(super) fn keys_of(remote: &Remote) -> Result<Option<Keys>> {
    let Some(Encryption { identity, recipients }) = &remote.encryption else { return Ok(None) };
    let keys = read_keys(Path::new(identity), recipients);
    let keys = keys.map_err(|failure| {
        let hint = format!("{}: `perennial remote set {} --identity FILE`", failure.advice(), remote.name);
        failure.while_doing(format!("the key of remote {} cannot be used", remote.name)).hint(hint)
    })?;
    Ok(Some(keys))
}

/// Returns whom a remote is encrypted for.
///
/// # Errors
/// Where the key cannot be read.
pub fn recipients_of(remote: &Remote) -> Result<Vec<Recipient>> {
    Ok(keys_of(remote)?.map(|keys| keys.recipients()).unwrap_or_default())
}

/// Encrypts packs in the directory where they lie until they have arrived. Those an earlier attempt has encrypted are
/// taken as they are, so that what has arrived of them is not sent again.
pub(super) struct Sealer {
    directory: PathBuf,
    key: PackKey,
}

impl Sealer {
    pub(super) fn open(directory: &Path) -> Result<Self> {
        let directory = directory.to_path_buf();
        let known = std::fs::read_to_string(directory.join(PACK_KEY)).ok().and_then(|text| text.parse().ok());
        let key = match known {
            Some(key) => key,
            None => {
                // Encrypted packs of a key that was lost are of no use.
                for entry in std::fs::read_dir(&directory)? {
                    let path = entry?.path();
                    if path.extension().is_some_and(|extension| extension == "age") {
                        std::fs::remove_file(path)?;
                    }
                }
                let key = make_pack_key()?;
                atomic::write(atomic::open_directory(&directory)?.as_fd(), PACK_KEY, key.reveal().as_bytes())?;
                key
            }
        };
        Ok(Self { directory, key })
    }

    /// Returns a pack as it is sent, and how it is encrypted.
    pub(super) fn seal(&self, id: &ObjectId, pack: &Path, bytes: u64) -> Result<(File, PackCipher)> {
        let path = self.directory.join(format!("{id}.age"));
        if let Ok(file) = File::open(&path)
            && let Some(layout) = Layout::of(file.metadata()?.len(), bytes)
        {
            return Ok((file, PackCipher { key: self.key.clone(), head_bytes: layout.head_bytes }));
        }
        let temporary = self.directory.join(".age.new");
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        let from = BufReader::with_capacity(PIECE_BYTES, File::open(pack)?);
        encrypt_pack(&self.key, from, io::BufWriter::with_capacity(PIECE_BYTES, &file))?;
        file.sync_all()?;
        std::fs::rename(&temporary, &path)?;
        let layout = Layout::of(file.metadata()?.len(), bytes)
            .ok_or_else(|| Failure::new(Code::Failed, format!("pack {id} changed while it was encrypted")))?;
        Ok((File::open(&path)?, PackCipher { key: self.key.clone(), head_bytes: layout.head_bytes }))
    }
}
