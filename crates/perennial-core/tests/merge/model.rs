//! Trees in memory, and what a stack of them shows, found the simple way: recursion over whole trees.

use perennial_core::sealed::entry::{Attributes, Content, Directory, DirectorySource, Entry, Inode, Item, Node};
use perennial_core::sealed::merge::{Census, Merge, Underneath};
use perennial_core::tree::Below;
use std::collections::BTreeMap;
use std::convert::Infallible;

/// A directory of a layer. `tag` stands for the attributes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Dir {
    pub(crate) tag: u32,
    pub(crate) opaque: bool,
    pub(crate) names: BTreeMap<Vec<u8>, Held>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Held {
    Dir(Dir),
    /// The inode of this number in its layer; names of the same number are hard links.
    File(u32),
    Whiteout,
}

/// What a stack shows: a file is known by its layer, counted from the oldest of all, and its inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Shown {
    Dir(u32, BTreeMap<Vec<u8>, Shown>),
    File(u32, u32),
}

/// A source of directories in memory.
#[derive(Debug)]
pub(crate) struct Blocks(std::vec::IntoIter<Directory>);

impl Blocks {
    pub(crate) fn new(blocks: &[Directory]) -> Self {
        Self(Vec::from(blocks).into_iter())
    }
}

impl DirectorySource for Blocks {
    type Error = Infallible;
    fn next_directory(&mut self) -> Result<Option<Directory>, Infallible> {
        Ok(self.0.next())
    }
}

pub(crate) fn attributes(tag: u32) -> Attributes {
    let xattrs = if tag.is_multiple_of(3) { vec![(b"user.tag".to_vec(), tag.to_le_bytes().to_vec())] } else { vec![] };
    Attributes { mode: 0o755, uid: tag, xattrs, ..Attributes::default() }
}

pub(crate) fn inode(layer: u32, number: u32, links: Option<u32>) -> Inode {
    let content = Content::Inline(format!("{layer}:{number}").into_bytes());
    Inode { attributes: attributes(number), node: Node::File(content), links }
}

/// Writes a layer in canonical order.
pub(crate) fn blocks(layer: u32, root: &Dir) -> Vec<Directory> {
    let mut counts = BTreeMap::new();
    count(root, &mut counts);
    let mut blocks = vec![];
    write(layer, root, &[], &mut (counts, BTreeMap::new()), &mut blocks);
    blocks
}

fn count(dir: &Dir, counts: &mut BTreeMap<u32, u32>) {
    for held in dir.names.values() {
        match held {
            Held::Dir(dir) => count(dir, counts),
            Held::File(number) => *counts.entry(*number).or_default() += 1,
            Held::Whiteout => {}
        }
    }
}

type Links = (BTreeMap<u32, u32>, BTreeMap<u32, u32>);

fn write(layer: u32, dir: &Dir, path: &[Vec<u8>], links: &mut Links, blocks: &mut Vec<Directory>) {
    let mut entries = vec![];
    for (name, held) in &dir.names {
        let item = match held {
            Held::Dir(_) => Item::Directory,
            Held::Whiteout => Item::Whiteout,
            Held::File(number) if links.0[number] == 1 => Item::Inode(inode(layer, *number, None)),
            Held::File(number) => {
                let next = u32::try_from(links.1.len()).unwrap();
                if let Some(group) = links.1.get(number) {
                    Item::Link(*group)
                } else {
                    links.1.insert(*number, next);
                    Item::Inode(inode(layer, *number, Some(next)))
                }
            }
        };
        entries.push(Entry { name: name.clone(), item });
    }
    blocks.push(Directory { path: path.to_vec(), attributes: attributes(dir.tag), opaque: dir.opaque, entries });
    for (name, held) in &dir.names {
        if let Held::Dir(child) = held {
            let path: Vec<Vec<u8>> = path.iter().chain([name]).cloned().collect();
            write(layer, child, &path, links, blocks);
        }
    }
}

/// Shows a stack, newest first; each layer comes with its number.
pub(crate) fn show(stack: &[(u32, &Dir)]) -> Shown {
    let end = stack.iter().position(|(_, dir)| dir.opaque).map_or(stack.len(), |position| position + 1);
    let stack = &stack[..end];
    let names: std::collections::BTreeSet<&Vec<u8>> = stack.iter().flat_map(|(_, dir)| dir.names.keys()).collect();
    let mut shown = BTreeMap::new();
    for name in names {
        let mut dirs = vec![];
        for (layer, held) in stack.iter().filter_map(|(layer, dir)| Some((*layer, dir.names.get(name)?))) {
            match held {
                Held::Dir(dir) => dirs.push((layer, dir)),
                Held::File(number) => {
                    if dirs.is_empty() {
                        shown.insert(name.clone(), Shown::File(layer, *number));
                    }
                    break;
                }
                Held::Whiteout => break,
            }
        }
        if !dirs.is_empty() {
            shown.insert(name.clone(), show(&dirs));
        }
    }
    Shown::Dir(stack.first().map_or(0, |(_, dir)| dir.tag), shown)
}

/// Returns what a stack shows at a path.
pub(crate) fn at<'a>(shown: &'a Shown, path: &[Vec<u8>]) -> Option<&'a Shown> {
    path.iter().try_fold(shown, |place, name| match place {
        Shown::Dir(_, names) => names.get(name),
        Shown::File(..) => None,
    })
}

/// Reads a merged tree back as a layer whose files know where they came from; checks that it is canonical.
pub(crate) fn read(blocks: &[Directory]) -> (Dir, BTreeMap<u32, (u32, u32)>) {
    assert!(blocks.windows(2).all(|pair| pair[0].path < pair[1].path), "blocks are not in canonical order");
    let mut groups: Vec<(u32, u32)> = vec![];
    let mut origins = BTreeMap::new();
    let mut dirs: Vec<(Vec<Vec<u8>>, Dir)> = vec![];
    for block in blocks {
        assert!(block.entries.windows(2).all(|pair| pair[0].name < pair[1].name), "names are not sorted");
        let mut dir = Dir { tag: block.attributes.uid, opaque: block.opaque, names: BTreeMap::new() };
        assert_eq!(block.attributes, attributes(dir.tag));
        for entry in &block.entries {
            let held = match &entry.item {
                Item::Directory => Held::Dir(Dir::default()),
                Item::Whiteout => Held::Whiteout,
                Item::Link(group) => Held::File(number_of(groups[*group as usize])),
                Item::Inode(found) => {
                    let origin = origin_of(found);
                    assert_eq!(*found, inode(origin.0, origin.1, found.links));
                    if let Some(group) = found.links {
                        assert_eq!(group as usize, groups.len(), "groups are not in order");
                        groups.push(origin);
                    }
                    let new = origins.insert(number_of(origin), origin).is_none();
                    assert!(new, "an inode appears twice");
                    Held::File(number_of(origin))
                }
            };
            dir.names.insert(entry.name.clone(), held);
        }
        dirs.push((block.path.clone(), dir));
    }
    let mut counts = BTreeMap::new();
    while dirs.len() > 1 {
        let (path, dir) = dirs.pop().unwrap();
        let (name, parent) = path.split_last().unwrap();
        let (_, above) = dirs.iter_mut().find(|(path, _)| path == parent).unwrap();
        assert_eq!(above.names.insert(name.clone(), Held::Dir(dir)), Some(Held::Dir(Dir::default())));
    }
    let (_, root) = dirs.pop().unwrap();
    count(&root, &mut counts);
    for origin in groups {
        assert!(counts[&number_of(origin)] > 1, "a group of one name");
    }
    (root, origins)
}

/// Numbers of inodes in one layer stay below this.
const INODES: u32 = 1000;

fn number_of(origin: (u32, u32)) -> u32 {
    origin.0 * INODES + origin.1
}

fn origin_of(inode: &Inode) -> (u32, u32) {
    let Node::File(Content::Inline(text)) = &inode.node else { panic!("not a file of the model") };
    let (layer, number) = std::str::from_utf8(text).unwrap().split_once(':').unwrap();
    (layer.parse().unwrap(), number.parse().unwrap())
}

/// Shows a merged layer over others.
pub(crate) fn show_merged(blocks: &[Directory], below: &[(u32, &Dir)]) -> Shown {
    const MERGED: u32 = u32::MAX;
    let (root, origins) = read(blocks);
    let stack: Vec<(u32, &Dir)> = std::iter::once((MERGED, &root)).chain(below.iter().copied()).collect();
    restore(show(&stack), &origins, MERGED)
}

fn restore(shown: Shown, origins: &BTreeMap<u32, (u32, u32)>, merged: u32) -> Shown {
    match shown {
        Shown::File(layer, number) if layer == merged => Shown::File(origins[&number].0, origins[&number].1),
        Shown::File(layer, number) => Shown::File(layer, number),
        Shown::Dir(tag, names) => {
            Shown::Dir(tag, names.into_iter().map(|(name, shown)| (name, restore(shown, origins, merged))).collect())
        }
    }
}

/// What is below, as a merge asks for it.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) shown: Shown,
    pub(crate) asked: Vec<Vec<Vec<u8>>>,
}

impl Seen {
    pub(crate) fn new(below: &[(u32, &Dir)]) -> Self {
        Self { shown: show(below), asked: vec![] }
    }
}

impl Underneath for &mut Seen {
    type Error = Infallible;
    fn shows(&mut self, directory: &[Vec<u8>], name: &[u8]) -> Result<Below, Infallible> {
        let path: Vec<Vec<u8>> = directory.iter().cloned().chain([name.to_vec()]).collect();
        self.asked.push(path.clone());
        Ok(if at(&self.shown, &path).is_some() { Below::Visible } else { Below::Absent })
    }
}

fn sources(trees: &[Vec<Directory>]) -> Vec<Blocks> {
    trees.iter().map(|tree| Blocks::new(tree)).collect()
}

pub(crate) fn collect<S: DirectorySource>(mut source: S) -> Vec<Directory>
where
    S::Error: std::fmt::Debug,
{
    let mut blocks = vec![];
    while let Some(block) = source.next_directory().unwrap() {
        blocks.push(block);
    }
    blocks
}

pub(crate) fn merge_over(trees: &[Vec<Directory>], below: &mut Seen) -> Vec<Directory> {
    let census = Census::take(sources(trees)).unwrap();
    collect(Merge::over(sources(trees), census, below))
}

pub(crate) fn merge_complete(trees: &[Vec<Directory>]) -> Vec<Directory> {
    let census = Census::take(sources(trees)).unwrap();
    collect(Merge::complete(sources(trees), census))
}
