//! Sums of blobs by either algorithm.

use perennial_core::registry::name::{Algorithm, BlobDigest};
use sha2::{Digest as _, Sha256, Sha512};

/// A sum under way.
#[derive(Debug, Clone)]
pub(crate) enum Sum {
    /// SHA-256.
    Sha256(Sha256),
    /// SHA-512.
    Sha512(Sha512),
}

impl Sum {
    /// Begins a sum.
    pub(crate) fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(Sha512::new()),
        }
    }

    /// Returns the algorithm.
    pub(crate) fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// Adds bytes.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(sum) => sum.update(bytes),
            Self::Sha512(sum) => sum.update(bytes),
        }
    }

    /// Returns the digest.
    pub(crate) fn finish(self) -> BlobDigest {
        let algorithm = self.algorithm();
        let digest = match self {
            Self::Sha256(sum) => BlobDigest::from_sum(algorithm, &sum.finalize()),
            Self::Sha512(sum) => BlobDigest::from_sum(algorithm, &sum.finalize()),
        };
        digest.expect("a sum has the length of its algorithm")
    }

    /// Returns the digest of bytes in memory.
    pub(crate) fn of(algorithm: Algorithm, bytes: &[u8]) -> BlobDigest {
        let mut sum = Self::new(algorithm);
        sum.update(bytes);
        sum.finish()
    }
}
