//! Trees to write: a fixed one with a bit of everything, and random ones.

use perennial_core::sealed::entry::{
    Attributes, Content, Directory, DirectorySource, Entry, INLINE_BYTES_MAX, Inode, Item, Node, Timestamp,
};
use perennial_core::sealed::object::ObjectId;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::convert::Infallible;

/// A tree in memory.
#[derive(Debug, Clone)]
pub(crate) struct Memory<'tree>(std::slice::Iter<'tree, Directory>);

impl DirectorySource for Memory<'_> {
    type Error = Infallible;
    fn next_directory(&mut self) -> Result<Option<Directory>, Infallible> {
        Ok(self.0.next().cloned())
    }
}

pub(crate) fn source(tree: &[Directory]) -> Memory<'_> {
    Memory(tree.iter())
}

/// Reads a source to its end.
pub(crate) fn collect<S: DirectorySource>(source: &mut S) -> Result<Vec<Directory>, S::Error> {
    let mut tree = Vec::new();
    while let Some(directory) = source.next_directory()? {
        tree.push(directory);
    }
    Ok(tree)
}

pub(crate) fn attributes(mode: u32, seconds: i64) -> Attributes {
    Attributes { mode, uid: 0, gid: 0, mtime: Timestamp { seconds, nanoseconds: 5 }, xattrs: vec![] }
}

pub(crate) fn entry(name: &[u8], item: Item) -> Entry {
    Entry { name: name.to_vec(), item }
}

pub(crate) fn inode(node: Node, links: Option<u32>) -> Item {
    Item::Inode(Inode { attributes: attributes(0o644, 1_700_000_000), node, links })
}

pub(crate) fn object(content: &[u8], size: u64) -> Node {
    Node::File(Content::Object { id: ObjectId::of(content), size })
}

/// The least ACL, as the kernel takes it: owner, group, others.
fn acl(owner: u8) -> Vec<u8> {
    let entries = [(1, owner), (4, 5), (0x20, 4)];
    let entries = entries.iter().flat_map(|(tag, may)| [*tag, 0, *may, 0, 255, 255, 255, 255]);
    [2, 0, 0, 0].into_iter().chain(entries).collect()
}

/// One of everything.
pub(crate) fn everything() -> Vec<Directory> {
    let inline = |bytes: &[u8]| Node::File(Content::Inline(bytes.to_vec()));
    let capable = Attributes {
        mode: 0o4755,
        uid: u32::MAX - 1,
        gid: 70_000,
        mtime: Timestamp { seconds: -5_000_000_000, nanoseconds: 999_999_999 },
        xattrs: vec![
            (b"security.capability".to_vec(), [vec![1, 0, 0, 2], vec![0xff; 16]].concat()),
            (b"system.posix_acl_access".to_vec(), acl(7)),
            (b"trusted.overlay.overlay.opaque".to_vec(), b"y".to_vec()),
            (b"user.empty".to_vec(), vec![]),
        ],
    };
    let root = vec![
        entry(b"!before-the-dots", inode(inline(b""), None)),
        entry(b"a", inode(object(b"a", 1 << 33), Some(0))),
        entry(b"b", inode(Node::Symlink(vec![b'x'; 4095]), None)),
        entry(b"block", inode(Node::BlockDevice { major: 4095, minor: 1_048_575 }, None)),
        entry(b"bin", Item::Directory),
        entry(b"char", inode(Node::CharDevice { major: 5, minor: 1 }, None)),
        entry(b"gone", Item::Whiteout),
        entry(b"gone2", Item::Whiteout),
        entry(b"huge", inode(object(b"huge", 20 << 40), None)),
        entry(b"pipe", inode(Node::Fifo, None)),
        entry(b"same", inode(object(b"a", 1 << 33), None)),
        entry(b"socket", inode(Node::Socket, None)),
        entry(
            b"suid",
            Item::Inode(Inode { attributes: capable.clone(), node: inline(&[0; INLINE_BYTES_MAX]), links: None }),
        ),
        entry(b"usr", Item::Directory),
        entry(b"\xff\x01\n", inode(Node::Symlink(b"\xff".to_vec()), Some(1))),
    ];
    let mut root = Directory { path: vec![], attributes: attributes(0o755, 1), opaque: false, entries: root };
    root.entries.sort_by(|one, other| one.name.cmp(&other.name));
    let path = |names: &[&str]| names.iter().map(|name| name.as_bytes().to_vec()).collect();
    vec![
        root,
        Directory {
            path: path(&["bin"]),
            attributes: capable,
            opaque: true,
            entries: vec![
                entry(b"link", Item::Link(0)),
                entry(b"other", Item::Link(1)),
                entry(b"third", Item::Link(0)),
            ],
        },
        Directory {
            path: path(&["usr"]),
            attributes: attributes(0o1777, 0x1_0000_0000),
            opaque: false,
            entries: vec![entry(b"lib", Item::Directory)],
        },
        Directory { path: path(&["usr", "lib"]), attributes: Attributes::default(), opaque: true, entries: vec![] },
    ]
}

/// A directory with so many names that it has several blocks.
pub(crate) fn wide(names: usize) -> Vec<Directory> {
    let entries = (0..names).map(|number| {
        let name = format!("a-name-of-some-length-{number:08}");
        let item = if number % 500 == 7 { Item::Directory } else { inode(object(name.as_bytes(), 1000), None) };
        entry(name.as_bytes(), item)
    });
    let root = Directory { entries: entries.collect(), ..Directory::default() };
    let inner: Vec<Directory> = root.entries.iter().filter(|entry| entry.item == Item::Directory).map(inner).collect();
    std::iter::once(root).chain(inner).collect()
}

fn inner(entry: &Entry) -> Directory {
    Directory { path: vec![entry.name.clone()], attributes: attributes(0o700, 7), ..Directory::default() }
}

/// A tree as it grows: canonical order and groups of hard links come when it is flattened.
#[derive(Debug, Clone)]
pub(crate) enum Sprout {
    Leaf(Attributes, Node),
    /// A name of a hard link: groups of one name end as plain inodes.
    Linked(u8),
    Whiteout,
    Branch(Attributes, bool, BTreeMap<Vec<u8>, Sprout>),
}

fn names() -> impl Strategy<Value = Vec<u8>> {
    let short = vec(prop_oneof![b'!'..=b'.', Just(b'a'), any::<u8>()], 1..4);
    let long = (any::<u8>(), 1_usize..256).prop_map(|(byte, length)| vec![byte; length]);
    prop_oneof![8 => short, 1 => long].prop_filter("a name", |name| perennial_core::sealed::canonical::is_name(name))
}

fn metadata() -> impl Strategy<Value = Attributes> {
    let names = prop_oneof![
        Just(b"user.a".to_vec()),
        Just(b"user.b".to_vec()),
        Just(b"security.selinux".to_vec()),
        Just(b"trusted.overlay.overlay.x".to_vec()),
    ];
    let values = prop_oneof![4 => vec(any::<u8>(), 0..4), 1 => Just(vec![7; 5000])];
    let acls = (0_u8..8).prop_map(acl);
    let owners = prop_oneof![Just((0, 0)), any::<(u32, u32)>()];
    let times = (prop_oneof![any::<i64>(), -3_i64..3, Just(1_700_000_000)], 0_u32..1_000_000_000);
    let xattrs =
        (btree_map(names, values, 0..3), proptest::option::weighted(0.2, acls)).prop_map(|(mut xattrs, acl)| {
            xattrs.extend(acl.map(|acl| (b"system.posix_acl_access".to_vec(), acl)));
            xattrs
        });
    (0_u32..0o10000, owners, times, xattrs).prop_map(|(mode, (uid, gid), time, xattrs)| {
        let mtime = Timestamp { seconds: time.0, nanoseconds: time.1 };
        Attributes { mode, uid, gid, mtime, xattrs: xattrs.into_iter().collect() }
    })
}

fn nodes() -> impl Strategy<Value = Node> {
    let devices = || (0_u32..4096, 1_u32..1 << 20);
    prop_oneof![
        4 => (any::<u8>(), 0_u64..4).prop_map(|(id, power)| object(&[id], 129 + u64::from(id) * 16_u64.pow(u32::try_from(power * 4).unwrap()) % (1 << 40))),
        2 => vec(any::<u8>(), 0..=INLINE_BYTES_MAX).prop_map(|bytes| Node::File(Content::Inline(bytes))),
        2 => vec(1_u8.., 1..40).prop_map(Node::Symlink),
        1 => (3900_usize..4096).prop_map(|length| Node::Symlink(vec![b't'; length])),
        1 => devices().prop_map(|(major, minor)| Node::CharDevice { major, minor }),
        1 => devices().prop_map(|(major, minor)| Node::BlockDevice { major, minor }),
        1 => Just(Node::Fifo),
        1 => Just(Node::Socket),
    ]
}

fn sprouts() -> impl Strategy<Value = Sprout> {
    let leaf = prop_oneof![
        6 => (metadata(), nodes()).prop_map(|(attributes, node)| Sprout::Leaf(attributes, node)),
        2 => (0_u8..6).prop_map(Sprout::Linked),
        1 => Just(Sprout::Whiteout),
    ];
    leaf.prop_recursive(4, 60, 8, |inner| {
        (metadata(), any::<bool>(), btree_map(names(), inner, 0..8))
            .prop_map(|(attributes, opaque, inner)| Sprout::Branch(attributes, opaque, inner))
    })
}

/// Random trees, in canonical order.
pub(crate) fn trees() -> impl Strategy<Value = Vec<Directory>> {
    let shared = vec((metadata(), nodes()), 6);
    (metadata(), any::<bool>(), btree_map(names(), sprouts(), 0..10), shared).prop_map(
        |(attributes, opaque, root, shared)| {
            let root = Sprout::Branch(attributes, opaque, root);
            let mut uses = BTreeMap::new();
            count(&root, &mut uses);
            let mut flat = Flat { shared, uses, numbers: BTreeMap::new(), sizes: BTreeMap::new(), tree: vec![] };
            flat.add(vec![], &root);
            flat.tree
        },
    )
}

fn count(sprout: &Sprout, uses: &mut BTreeMap<u8, u32>) {
    match sprout {
        Sprout::Linked(which) => *uses.entry(*which).or_default() += 1,
        Sprout::Branch(_, _, inner) => inner.values().for_each(|sprout| count(sprout, uses)),
        Sprout::Leaf(..) | Sprout::Whiteout => {}
    }
}

struct Flat {
    shared: Vec<(Attributes, Node)>,
    uses: BTreeMap<u8, u32>,
    numbers: BTreeMap<u8, u32>,
    /// The first size that came with an object.
    sizes: BTreeMap<ObjectId, u64>,
    tree: Vec<Directory>,
}

impl Flat {
    fn add(&mut self, path: Vec<Vec<u8>>, sprout: &Sprout) {
        let Sprout::Branch(attributes, opaque, inner) = sprout else { return };
        let entries = inner.iter().map(|(name, sprout)| entry(name, self.item(sprout))).collect();
        self.tree.push(Directory { path: path.clone(), attributes: attributes.clone(), opaque: *opaque, entries });
        for (name, sprout) in inner {
            self.add([path.as_slice(), std::slice::from_ref(name)].concat(), sprout);
        }
    }

    fn item(&mut self, sprout: &Sprout) -> Item {
        let mut make = |attributes: &Attributes, node: &Node, links| {
            let mut node = node.clone();
            if let Node::File(Content::Object { id, size }) = &mut node {
                *size = *self.sizes.entry(*id).or_insert(*size);
            }
            let mut attributes = attributes.clone();
            if !matches!(node, Node::File(_)) {
                // Linux has these on files and directories alone.
                attributes.xattrs.retain(|(name, _)| name.starts_with(b"security.") || name.starts_with(b"trusted."));
            }
            Item::Inode(Inode { attributes, node, links })
        };
        match sprout {
            Sprout::Branch(..) => Item::Directory,
            Sprout::Whiteout => Item::Whiteout,
            Sprout::Leaf(attributes, node) => make(attributes, node, None),
            Sprout::Linked(which) => {
                let (attributes, node) = &self.shared[usize::from(*which)];
                if let Some(number) = self.numbers.get(which) {
                    return Item::Link(*number);
                }
                let next = u32::try_from(self.numbers.len()).unwrap();
                let links = (self.uses[which] > 1).then_some(next);
                if links.is_some() {
                    self.numbers.insert(*which, next);
                }
                make(attributes, node, links)
            }
        }
    }
}
