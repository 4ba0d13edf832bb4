//! Containers to registries and back.
//!
//! - [`remotes`]: places to send to. [`push`]: there; [`pull`]: back.
//! - [`publish`]: images as any engine can pull them. [`sender`]: what is sent by itself.
//! - `arrive`: what a pull makes of what is here; `there`: what a push finds at a remote.
//! - `link`: an open repository with what is known of its packs; `contents`: contents on their way out.
//! - [`keys`]: for whom what lies at some remotes is encrypted; `fetch`: out of packs, encrypted or not.
//!
//! What is on its way lies in `<root>/travel/`: whoever is cut off goes on there. It may be removed at any time.

mod arrive;
mod contents;
mod draft;
mod fetch;
mod image;
pub mod keys;
mod land;
mod link;
mod load;
pub mod publish;
pub mod pull;
pub mod push;
pub mod remotes;
mod send;
pub mod sender;
mod there;

use crate::cli::args::LoginArgs;
use crate::engine::Engine;
use crate::failure::{Code, Failure, Result};
use perennial_core::id::{ContainerName, Seq};
use perennial_core::travel::cipher::Dropping;
use perennial_registry::credentials::{self, Credentials, CredentialsError, Login};
use perennial_registry::repository::Traffic;
use perennial_registry::trust;
use perennial_store::layer;
use perennial_store::root::Wait;
use rustix::io::Errno;
use std::io::ErrorKind;
use std::path::PathBuf;

/// What is to travel, and where.
#[derive(Debug, Clone)]
pub struct Order {
    /// The container.
    pub name: ContainerName,
    /// The newest generation that goes; the newest of all where there is none.
    pub until: Option<Seq>,
    /// Its name at the other end, where that is another one.
    pub other_name: Option<ContainerName>,
    /// The remote's name; the only one there is where none is given.
    pub remote: Option<String>,
    /// The login.
    pub credentials: Credentials,
    /// Failures in a row after which a request is given up.
    pub tries_max: u32,
    /// Whether everything is sent again, because something there is damaged.
    pub is_whole: bool,
    /// Whether somebody may be left out who can read what is there.
    pub dropping: Dropping,
}

/// Tries where somebody waits.
pub const TRIES_ASKED: u32 = 6;

impl Order {
    /// Makes the order of a command.
    pub fn new(name: ContainerName, remote: Option<String>, login: &LoginArgs) -> Result<Self> {
        let credentials = login_of(login)?;
        let (tries_max, dropping) = (TRIES_ASKED, Dropping::Refused);
        Ok(Self { name, until: None, other_name: None, remote, credentials, tries_max, dropping, is_whole: false })
    }
}

/// Returns the login that was typed, or where it is looked for.
///
/// # Errors
/// Where it is not of the form USER:PASSWORD.
pub fn login_of(login: &LoginArgs) -> Result<Credentials> {
    Ok(match &login.creds {
        Some(text) => Credentials::Login(
            text.parse::<Login>().map_err(|error: CredentialsError| Failure::new(Code::Usage, error))?,
        ),
        None => stored_login(),
    })
}

/// Returns where other container tools keep logins.
pub fn stored_login() -> Credentials {
    Credentials::Files(credentials::files(&|name| std::env::var_os(name)))
}

/// Returns where other container tools keep certificates of registries.
pub fn certificates() -> Vec<PathBuf> {
    trust::directories(&|name| std::env::var_os(name))
}

impl Engine {
    /// Frees what was on its way and nobody is at: what a transfer that was cut off has left is fetched or packed again.
    ///
    /// # Errors
    /// Where it cannot be looked for.
    pub fn free_travellers(&self) -> Result<()> {
        let entries = match std::fs::read_dir(self.root.travel_dir()) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let has_remotes = !self.remotes()?.is_empty();
        for entry in entries {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if has_remotes && name == link::INDEXES {
                continue;
            }
            if let Some(lock) = self.root.lock_travel(&name, Wait::Never)? {
                layer::discard(&self.root, &self.root.travel_dir().join(&name), &format!("travel-{name}"))?;
                lock.remove_file();
            }
        }
        self.empty_trash();
        Ok(())
    }
}

impl Engine {
    /// Removes what was on its way where it has filled the disk: everything else on it needs the room more.
    fn unless_full<T>(&self, spool: &str, done: Result<T>) -> Result<T> {
        done.map_err(|failure| {
            if !is_full(&failure) {
                return failure;
            }
            self.clear_spool(spool);
            let root = self.root.path().display();
            failure.code(Code::Host).while_doing(format!("the file system of {root} is full")).hint(
                "nothing was changed, and what was on its way was removed again, so that it is not left full; free some space \
                 there, and try again",
            )
        })
    }
}

fn is_full(failure: &Failure) -> bool {
    failure.error.chain().any(|cause| {
        let kind = cause.downcast_ref().map(std::io::Error::kind);
        let errno = cause.downcast_ref::<Errno>().map(|errno| std::io::Error::from(*errno).kind());
        [kind, errno]
            .into_iter()
            .flatten()
            .any(|kind| matches!(kind, ErrorKind::StorageFull | ErrorKind::QuotaExceeded))
    })
}

/// Adds up what went over several connections.
pub fn add(sum: &mut Traffic, other: Traffic) {
    sum.sent_bytes = sum.sent_bytes.saturating_add(other.sent_bytes);
    sum.received_bytes = sum.received_bytes.saturating_add(other.received_bytes);
    sum.requests = sum.requests.saturating_add(other.requests);
}
