//! The tree that travels: small files and a large one, half of it noise, and the change of a hundredth of it.

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

/// Bytes of a small file, and of a piece that is changed in the large one.
const SMALL_BYTES: u64 = 128 << 10;
const PIECE_BYTES: u64 = 64 << 10;
/// Of a piece of 4 KiB, so many bytes are noise; the rest is the same everywhere.
const BLOCK_BYTES: usize = 4096;
const NOISE_BYTES: usize = 2048;

/// Noise that is the same in each run.
#[derive(Debug)]
struct Noise(u64);

impl Noise {
    fn block(&mut self) -> Vec<u8> {
        let mut block = vec![b'x'; BLOCK_BYTES];
        for chunk in block.iter_mut().take(NOISE_BYTES) {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *chunk = self.0.to_be_bytes()[0];
        }
        block
    }

    fn fill(&mut self, file: &mut File, bytes: u64) -> anyhow::Result<()> {
        for _ in 0..bytes / BLOCK_BYTES as u64 {
            file.write_all(&self.block())?;
        }
        Ok(())
    }
}

/// The tree that travels.
#[derive(Debug)]
pub(super) struct Tree {
    path: PathBuf,
    files: u64,
    large_bytes: u64,
    noise: Noise,
}

impl Tree {
    /// Makes a tree of so many MiB, of which a quarter is one large file.
    pub(super) fn make(path: PathBuf, mib: u64) -> anyhow::Result<Self> {
        let (large_bytes, small_bytes) = ((mib << 20) / 4, (mib << 20) / 4 * 3);
        let mut tree = Self { path, files: small_bytes / SMALL_BYTES, large_bytes, noise: Noise(42) };
        std::fs::create_dir_all(&tree.path)?;
        tree.noise.fill(&mut File::create(tree.path.join("large"))?, large_bytes)?;
        for number in 0..tree.files {
            tree.small(number)?;
        }
        Ok(tree)
    }

    /// Returns where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn small(&mut self, number: u64) -> anyhow::Result<()> {
        let directory = self.path.join(format!("{}", number / 100));
        std::fs::create_dir_all(&directory)?;
        self.noise.fill(&mut File::create(directory.join(format!("{number}")))?, SMALL_BYTES)
    }

    /// Changes a hundredth: whole small files, and pieces all over the large one.
    pub(super) fn change(&mut self, round: u64) -> anyhow::Result<()> {
        for number in (0..self.files).skip(usize::try_from(round)?).step_by(100) {
            self.small(number)?;
        }
        let mut large = File::options().write(true).open(self.path.join("large"))?;
        let mut at = round * PIECE_BYTES;
        while at + PIECE_BYTES <= self.large_bytes {
            large.seek(SeekFrom::Start(at))?;
            self.noise.fill(&mut large, PIECE_BYTES)?;
            at += PIECE_BYTES * 100;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Returns the blocks of 64 KiB of all files below `path`.
    fn pieces(path: &Path) -> BTreeMap<(PathBuf, usize), Vec<u8>> {
        let mut all = BTreeMap::new();
        for entry in std::fs::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                all.extend(pieces(&path));
                continue;
            }
            let content = std::fs::read(&path).unwrap();
            let chunks = content.chunks(usize::try_from(PIECE_BYTES).unwrap()).enumerate();
            all.extend(chunks.map(|(at, chunk)| ((path.clone(), at), chunk.to_vec())));
        }
        all
    }

    #[test]
    fn each_round_changes_another_hundredth_and_leaves_the_rest() {
        let root = tempfile::tempdir().unwrap();
        let mut tree = Tree::make(root.path().join("tree"), 50).unwrap();
        let mut changed_before = Vec::new();
        let mut before = pieces(tree.path());
        assert_eq!(before.len(), 50 * 16);
        for round in 1..=2 {
            tree.change(round).unwrap();
            let after = pieces(tree.path());
            assert_eq!(after.len(), before.len(), "round {round}");
            let changed: Vec<_> = after.iter().filter(|(at, piece)| before[*at] != **piece).map(|(at, _)| at).collect();
            assert_eq!(changed.len(), 8, "round {round}: {changed:?}");
            assert!(changed.iter().all(|at| !changed_before.contains(*at)), "round {round}: {changed:?}");
            changed_before = changed.into_iter().cloned().collect();
            before = after;
        }
    }

    #[test]
    fn half_of_every_block_is_noise() {
        let mut noise = Noise(42);
        let (first, second) = (noise.block(), noise.block());
        assert_eq!(first.len(), BLOCK_BYTES);
        assert_ne!(first[..NOISE_BYTES], second[..NOISE_BYTES]);
        assert_eq!(first[NOISE_BYTES..], second[NOISE_BYTES..]);
    }
}
