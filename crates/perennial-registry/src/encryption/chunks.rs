//! Chunks of an encrypted pack, each decrypted as it comes, in whatever order.

use super::{EncryptionError, identity_of};
use age::Decryptor;
use age::stream::StreamReader;
use perennial_core::travel::cipher::{CHUNK_BYTES, Layout, PackCipher};
use std::cell::RefCell;
use std::io::{self, Read, Seek, SeekFrom};
use std::rc::Rc;

/// The head and one chunk of an encrypted file, at their places.
#[derive(Default)]
struct Present {
    head: Vec<u8>,
    chunk: Vec<u8>,
    chunk_at: u64,
}

/// An encrypted file of which only that is there.
struct Window {
    present: Rc<RefCell<Present>>,
    at: u64,
}

impl Read for Window {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let present = self.present.borrow();
        let within = |bytes: &[u8], start: u64| {
            let skipped = usize::try_from(self.at.checked_sub(start)?).ok()?;
            bytes.get(skipped..).filter(|rest| !rest.is_empty()).map(<[u8]>::to_vec)
        };
        let rest = within(&present.head, 0).or_else(|| within(&present.chunk, present.chunk_at)).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..count), rest.get(..count)) {
            to.copy_from_slice(from);
        }
        self.at = self.at.saturating_add(u64::try_from(count).unwrap_or(0));
        Ok(count)
    }
}

impl Seek for Window {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = match to {
            SeekFrom::Start(at) => at,
            SeekFrom::Current(by) => self.at.checked_add_signed(by).ok_or(io::ErrorKind::InvalidInput)?,
            SeekFrom::End(_) => return Err(io::ErrorKind::Unsupported.into()),
        };
        Ok(self.at)
    }
}

/// Decrypts chunks of a pack.
pub struct PackReader {
    reader: StreamReader<Window>,
    present: Rc<RefCell<Present>>,
    layout: Layout,
}

impl std::fmt::Debug for PackReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PackReader").field("layout", &self.layout).finish_non_exhaustive()
    }
}

impl PackReader {
    /// Opens a pack of `bytes` bytes by the head of its encrypted file.
    ///
    /// # Errors
    /// [`EncryptionError`] where the head is none, or not for the key.
    pub fn open(cipher: &PackCipher, bytes: u64, head: Vec<u8>) -> Result<Self, EncryptionError> {
        let layout = Layout { head_bytes: cipher.head_bytes, bytes };
        let present = Rc::new(RefCell::new(Present { head, ..Present::default() }));
        let mut window = Window { present: Rc::clone(&present), at: 0 };
        let identity = identity_of(&cipher.key)?;
        let decryptor = Decryptor::new(&mut window)?;
        drop(decryptor);
        if window.at != layout.head_bytes {
            let reason = "its head has another length than its parcel says".to_owned();
            return Err(EncryptionError::Changed { reason });
        }
        window.at = 0;
        let reader = Decryptor::new(window)?.decrypt(std::iter::once(&identity as &dyn age::Identity))?;
        Ok(Self { reader, present, layout })
    }

    /// Decrypts a chunk.
    ///
    /// # Errors
    /// [`EncryptionError::Changed`] where it is not what was written there.
    pub fn chunk(&mut self, number: u64, encrypted: Vec<u8>) -> Result<Vec<u8>, EncryptionError> {
        let content = self.layout.content(number);
        {
            let mut present = self.present.borrow_mut();
            present.chunk = encrypted;
            present.chunk_at = self.layout.stretch(&(number..number.saturating_add(1))).start;
        }
        let length = usize::try_from(content.end.saturating_sub(content.start).min(CHUNK_BYTES)).unwrap_or(0);
        let mut bytes = vec![0; length];
        let changed = |error: io::Error| EncryptionError::Changed { reason: error.to_string() };
        // Seeking to the first byte of a chunk, age looks for the end of the file; to the second one it does not.
        self.reader.seek(SeekFrom::Start(content.start.saturating_add(1))).map_err(changed)?;
        self.reader.seek(SeekFrom::Start(content.start)).map_err(changed)?;
        self.reader.read_exact(&mut bytes).map_err(changed)?;
        Ok(bytes)
    }
}
