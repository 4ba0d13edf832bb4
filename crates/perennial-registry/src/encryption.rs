//! Encryption of what lies in a registry, with age: parcels for the owner's keys, each pack for a key in its parcel.
//!
//! Nothing here reads or writes files by name. Memory: a document whole, of a pack one chunk of 64 KiB at a time.
//!
//! age shows that nothing was changed, left out or moved within a blob, but not who made it: whoever knows a recipient
//! can. It pads nothing: the length of a content shows.

mod chunks;

pub use chunks::PackReader;

use age::secrecy::ExposeSecret as _;
use age::x25519;
use age::{DecryptError, Decryptor, EncryptError, Encryptor};
use perennial_core::travel::cipher::{PackKey, Recipient};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};

/// What cannot be encrypted or decrypted.
#[derive(Debug, thiserror::Error)]
pub enum EncryptionError {
    /// A line of a file of keys is none.
    #[error("line {line} is no secret key of age, which begins with AGE-SECRET-KEY-1")]
    NoIdentity {
        /// Its number.
        line: usize,
    },
    /// A file of keys has none.
    #[error("there is no secret key in it")]
    NoKeys,
    /// A recipient is none.
    #[error("{recipient} is no key that age can encrypt for")]
    NoRecipient {
        /// The text.
        recipient: Recipient,
    },
    /// It is encrypted for other keys.
    #[error("it is encrypted for other keys")]
    OtherKeys,
    /// It was damaged, or put together by somebody else.
    #[error("its encryption shows that it was changed: {reason}")]
    Changed {
        /// What age says.
        reason: String,
    },
    /// It is longer than what is possible.
    #[error("it has more than {bytes_max} bytes")]
    TooLong {
        /// The bound.
        bytes_max: u64,
    },
    /// age cannot encrypt.
    #[error("it cannot be encrypted: {reason}")]
    Encrypt {
        /// What age says.
        reason: String,
    },
    /// A file cannot be read or written.
    #[error(transparent)]
    Disk(#[from] io::Error),
}

impl From<EncryptError> for EncryptionError {
    fn from(error: EncryptError) -> Self {
        if let EncryptError::Io(error) = error {
            return Self::Disk(error);
        }
        Self::Encrypt { reason: error.to_string() }
    }
}

impl From<DecryptError> for EncryptionError {
    fn from(error: DecryptError) -> Self {
        if matches!(error, DecryptError::NoMatchingKeys) {
            return Self::OtherKeys;
        }
        Self::Changed { reason: error.to_string() }
    }
}

/// The keys of a remote: our secret ones, and everybody's to encrypt for.
pub struct Keys {
    identities: Vec<x25519::Identity>,
    recipients: BTreeMap<Recipient, x25519::Recipient>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("recipients", &self.recipients.keys()).finish_non_exhaustive()
    }
}

impl Keys {
    /// Reads secret keys as `age-keygen` writes them, one on a line; what is encrypted can be read by `others`, too.
    ///
    /// # Errors
    /// [`EncryptionError`] where a line is no key, there is none, or a recipient is none.
    pub fn parse(text: &str, others: &[Recipient]) -> Result<Self, EncryptionError> {
        let mut identities = Vec::new();
        let mut recipients = BTreeMap::new();
        for (line, number) in text.lines().zip(1..).filter(|(line, _)| !line.is_empty() && !line.starts_with('#')) {
            let no_identity = EncryptionError::NoIdentity { line: number };
            let Ok(identity) = line.trim_end().parse::<x25519::Identity>() else { return Err(no_identity) };
            let public = identity.to_public();
            let Ok(recipient) = public.to_string().parse::<Recipient>() else { return Err(no_identity) };
            recipients.insert(recipient, public);
            identities.push(identity);
        }
        if identities.is_empty() {
            return Err(EncryptionError::NoKeys);
        }
        for other in others {
            recipients.insert(other.clone(), parse_recipient(other)?);
        }
        Ok(Self { identities, recipients })
    }

    /// Returns everybody for whom is encrypted, ourselves among them, in order.
    #[must_use]
    pub fn recipients(&self) -> Vec<Recipient> {
        self.recipients.keys().cloned().collect()
    }

    /// Returns those of whom the secret keys are here.
    #[must_use]
    pub fn own(&self) -> Vec<Recipient> {
        self.identities.iter().filter_map(|identity| identity.to_public().to_string().parse().ok()).collect()
    }

    /// Returns what names are made of that nobody else is to guess: the first secret key.
    #[must_use]
    pub fn secret(&self) -> String {
        self.identities.first().map(|identity| identity.to_string().expose_secret().to_owned()).unwrap_or_default()
    }

    /// Encrypts a document.
    ///
    /// # Errors
    /// [`EncryptionError`].
    pub fn encrypt(&self, bytes: &[u8]) -> Result<Vec<u8>, EncryptionError> {
        let recipients = self.recipients.values().map(|recipient| recipient as &dyn age::Recipient);
        let mut writer = Encryptor::with_recipients(recipients)?.wrap_output(Vec::new())?;
        writer.write_all(bytes)?;
        Ok(writer.finish()?)
    }

    /// Decrypts a document of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// [`EncryptionError`].
    pub fn decrypt(&self, bytes: &[u8], bytes_max: u64) -> Result<Vec<u8>, EncryptionError> {
        let identities = self.identities.iter().map(|identity| identity as &dyn age::Identity);
        let reader = Decryptor::new_buffered(bytes)?.decrypt(identities)?;
        let mut content = Vec::new();
        let changed = |error: io::Error| EncryptionError::Changed { reason: error.to_string() };
        reader.take(bytes_max.saturating_add(1)).read_to_end(&mut content).map_err(changed)?;
        if u64::try_from(content.len()).unwrap_or(u64::MAX) > bytes_max {
            return Err(EncryptionError::TooLong { bytes_max });
        }
        Ok(content)
    }
}

fn parse_recipient(recipient: &Recipient) -> Result<x25519::Recipient, EncryptionError> {
    recipient.as_str().parse().map_err(|_| EncryptionError::NoRecipient { recipient: recipient.clone() })
}

/// Returns whether age can encrypt for it.
///
/// # Errors
/// [`EncryptionError::NoRecipient`].
pub fn check_recipient(recipient: &Recipient) -> Result<(), EncryptionError> {
    parse_recipient(recipient).map(drop)
}

/// A secret key that was made.
#[derive(Debug)]
pub struct MadeKey {
    /// The file it is kept in, as `age-keygen` writes it but for the time.
    pub file: String,
    /// What is encrypted for it.
    pub recipient: String,
}

/// Makes a secret key.
#[must_use]
pub fn make_key() -> MadeKey {
    let identity = x25519::Identity::generate();
    let recipient = identity.to_public().to_string();
    let file = format!("# public key: {recipient}\n{}\n", identity.to_string().expose_secret());
    MadeKey { file, recipient }
}

/// Makes a key for packs.
///
/// # Errors
/// Never with an age that writes keys as it always did.
pub fn make_pack_key() -> Result<PackKey, EncryptionError> {
    let text = x25519::Identity::generate().to_string().expose_secret().to_owned();
    text.parse().map_err(|_| EncryptionError::NoKeys)
}

/// Encrypts a pack for its key.
///
/// # Errors
/// [`EncryptionError`].
pub fn encrypt_pack(key: &PackKey, mut from: impl Read, to: impl Write) -> Result<(), EncryptionError> {
    let public = identity_of(key)?.to_public();
    let mut writer = Encryptor::with_recipients(std::iter::once(&public as &dyn age::Recipient))?.wrap_output(to)?;
    io::copy(&mut from, &mut writer)?;
    writer.finish()?.flush()?;
    Ok(())
}

fn identity_of(key: &PackKey) -> Result<x25519::Identity, EncryptionError> {
    key.reveal().parse().map_err(|_| EncryptionError::NoKeys)
}
