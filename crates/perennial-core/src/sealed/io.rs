//! Where bytes of the formats go to and come from. The crates that have files implement these for them.

use alloc::vec::Vec;
use core::convert::Infallible;

/// Takes bytes in order.
pub trait Sink {
    /// Why it could not take them.
    type Error;

    /// Takes all of `bytes`.
    ///
    /// # Errors
    /// Where they could not be taken; nothing more is to be written then.
    fn write(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;
}

/// Gives bytes in order.
pub trait Source {
    /// Why it could not give them.
    type Error;

    /// Fills the start of `buffer` and returns how many bytes these are; 0 at the end only.
    ///
    /// # Errors
    /// Where they could not be read; nothing more is to be read then.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Self::Error>;
}

/// Gives bytes from anywhere.
pub trait ReadAt {
    /// Why it could not give them.
    type Error;

    /// Fills the start of `buffer` with what is at `offset`, in bytes, and returns how many bytes these are; 0 at or
    /// after the end only.
    ///
    /// # Errors
    /// Where they could not be read.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, Self::Error>;

    /// Returns how many bytes there are.
    ///
    /// # Errors
    /// Where that could not be found out.
    fn size(&self) -> Result<u64, Self::Error>;
}

impl Sink for Vec<u8> {
    type Error = Infallible;
    fn write(&mut self, bytes: &[u8]) -> Result<(), Infallible> {
        self.extend_from_slice(bytes);
        Ok(())
    }
}

impl<S: Sink + ?Sized> Sink for &mut S {
    type Error = S::Error;
    fn write(&mut self, bytes: &[u8]) -> Result<(), S::Error> {
        (**self).write(bytes)
    }
}

impl Source for &[u8] {
    type Error = Infallible;
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Infallible> {
        let count = self.len().min(buffer.len());
        let (head, rest) = self.split_at_checked(count).unwrap_or((self, &[]));
        for (to, from) in buffer.iter_mut().zip(head) {
            *to = *from;
        }
        *self = rest;
        Ok(count)
    }
}

impl<S: Source + ?Sized> Source for &mut S {
    type Error = S::Error;
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, S::Error> {
        (**self).read(buffer)
    }
}

impl ReadAt for [u8] {
    type Error = Infallible;
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, Infallible> {
        let mut rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..)).unwrap_or_default();
        rest.read(buffer)
    }
    fn size(&self) -> Result<u64, Infallible> {
        Ok(self.len() as u64)
    }
}

impl<R: ReadAt + ?Sized> ReadAt for &R {
    type Error = R::Error;
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, R::Error> {
        (**self).read_at(offset, buffer)
    }
    fn size(&self) -> Result<u64, R::Error> {
        (**self).size()
    }
}

/// Fills `buffer` with what is at `offset`, as far as there is something; returns how many bytes these are.
pub(super) fn fill_at<R: ReadAt + ?Sized>(from: &R, offset: u64, buffer: &mut [u8]) -> Result<usize, R::Error> {
    let mut filled = 0_usize;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        let room = rest.len();
        match from.read_at(offset.saturating_add(filled as u64), rest)? {
            0 => break,
            count => filled = filled.saturating_add(count.min(room)),
        }
    }
    Ok(filled)
}
