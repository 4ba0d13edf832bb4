//! One case for each rule. A tree is written as its names, one a word: `d/` a directory, `d!` an opaque one, `a=1` the
//! inode 1 (equal numbers are hard links), `-a` a whiteout.

use crate::model::{Dir, Held, Seen, blocks, merge_complete, merge_over};
use perennial_core::sealed::entry::DirectorySource as _;
use perennial_core::sealed::entry::{Directory, Item};
use perennial_core::sealed::merge::{Census, Merge, MergeError, Nothing, Problem, TreesError};

fn tree(tag: u32, words: &str) -> Dir {
    let mut root = Dir { tag, opaque: false, names: std::collections::BTreeMap::new() };
    for word in words.split_whitespace() {
        let trimmed = word.trim_start_matches('-');
        let (path, held) = if word == "!" {
            root.opaque = true;
            continue;
        } else if let Some((path, number)) = trimmed.split_once('=') {
            (path, Held::File(number.parse().unwrap()))
        } else if word.starts_with('-') {
            (trimmed, Held::Whiteout)
        } else {
            let dir = Dir { tag, opaque: word.ends_with('!'), ..Dir::default() };
            (trimmed.trim_end_matches(['/', '!']), Held::Dir(dir))
        };
        let (parents, name) = path.rsplit_once('/').map_or(("", path), |split| split);
        let parent = parents.split('/').filter(|name| !name.is_empty()).fold(&mut root, |dir, name| {
            let Some(Held::Dir(dir)) = dir.names.get_mut(name.as_bytes()) else { panic!("{word}: no parent") };
            dir
        });
        parent.names.insert(name.as_bytes().to_vec(), held);
    }
    root
}

/// Writes a merged tree in words: `path:tag/` a directory, `!` if it is opaque, `a=layer:inode` with `#group`, `a->group`.
fn words(blocks: &[Directory]) -> String {
    let mut words = vec![];
    for block in blocks {
        let path: Vec<_> = block.path.iter().map(|name| String::from_utf8_lossy(name)).collect();
        words.push(format!("/{}:{}{}", path.join("/"), block.attributes.uid, if block.opaque { "!" } else { "" }));
        for entry in &block.entries {
            let name = String::from_utf8_lossy(&entry.name);
            words.push(match &entry.item {
                Item::Directory => format!("{name}/"),
                Item::Whiteout => format!("-{name}"),
                Item::Link(group) => format!("{name}->{group}"),
                Item::Inode(inode) => {
                    let group = inode.links.map(|group| format!("#{group}")).unwrap_or_default();
                    let perennial_core::sealed::entry::Node::File(perennial_core::sealed::entry::Content::Inline(text)) =
                        &inode.node
                    else {
                        panic!("not a file")
                    };
                    format!("{name}={}{group}", String::from_utf8_lossy(text))
                }
            });
        }
    }
    words.join(" ")
}

#[test]
fn each_rule_of_the_overlay_holds() {
    // Layers, newest first with tags 0, 1, …; what is below; the result; the result with nothing below.
    let table: &[(&[&str], &str, &str, &str)] = &[
        // Files: the newest wins.
        (&["a=1", "a=2 b=3"], "", "/:0 a=0:1 b=1:3", "/:0 a=0:1 b=1:3"),
        (&["", "a=1"], "a=9", "/:0 a=1:1", "/:0 a=1:1"),
        // Directories merge and have the attributes of the newest.
        (&["d/ d/x=1", "d/ d/y=1"], "d/", "/:0 d/ /d:0 x=0:1 y=1:1", "/:0 d/ /d:0 x=0:1 y=1:1"),
        (&["", "d/", "d/ d/y=1"], "", "/:0 d/ /d:1 y=2:1", "/:0 d/ /d:1 y=2:1"),
        // Opaque directories hide what is in older ones, and stay opaque.
        (&["d! d/x=1", "d/ d/y=1"], "", "/:0 d/ /d:0! x=0:1", "/:0 d/ /d:0 x=0:1"),
        (&["d/ d/x=1", "d! d/y=1", "d/ d/z=1"], "", "/:0 d/ /d:0! x=0:1 y=1:1", "/:0 d/ /d:0 x=0:1 y=1:1"),
        (&["!", "a=1"], "", "/:0!", "/:0"),
        // Whiteouts hide, and stay where something below has to be hidden.
        (&["-a", "a=1"], "a=2", "/:0 -a", "/:0"),
        (&["-a", "a=1"], "", "/:0", "/:0"),
        (&["-d", "d/ d/x=1"], "d/", "/:0 -d", "/:0"),
        (&["d/ -d/x", "d/ d/x=1"], "d/ d/x=5", "/:0 d/ /d:0 -x", "/:0 d/ /d:0"),
        (&["d/ -d/x", "d/ d/x=1"], "d=5", "/:0 d/ /d:0", "/:0 d/ /d:0"),
        (&["d! -d/x"], "d/ d/x=5", "/:0 d/ /d:0!", "/:0 d/ /d:0"),
        (&["d/ d/e/ -d/e/x", "d! d/e/"], "d/ d/e/ d/e/x=5", "/:0 d/ /d:0! e/ /d/e:0", "/:0 d/ /d:0 e/ /d/e:0"),
        (&["a=1", "-a"], "a=2", "/:0 a=0:1", "/:0 a=0:1"),
        (&["", "-a", "-a"], "a=2", "/:0 -a", "/:0"),
        // A directory over something else hides what is under that; something else over a directory hides it whole.
        (&["d/ d/x=1", "d=1", "d/ d/y=1"], "", "/:0 d/ /d:0! x=0:1", "/:0 d/ /d:0 x=0:1"),
        (&["d/ d/x=1", "-d", "d/ d/y=1"], "", "/:0 d/ /d:0! x=0:1", "/:0 d/ /d:0 x=0:1"),
        (&["d=1", "d/ d/e/ d/e/y=1 e=2"], "", "/:0 d=0:1 e=1:2", "/:0 d=0:1 e=1:2"),
        // Hard links: numbered anew across trees, in the order in which they appear.
        (&["c=1 d=1", "a=7 b=7"], "", "/:0 a=1:7#0 b->0 c=0:1#1 d->1", "/:0 a=1:7#0 b->0 c=0:1#1 d->1"),
        // A group that loses names: the first that is left carries the inode; of one name it is no group.
        (&["a=1", "a=2 b=2 c=2"], "", "/:0 a=0:1 b=1:2#0 c->0", "/:0 a=0:1 b=1:2#0 c->0"),
        (&["-a", "a=2 b=2"], "", "/:0 b=1:2", "/:0 b=1:2"),
        (&["-b", "a=2 b=2"], "", "/:0 a=1:2", "/:0 a=1:2"),
        (
            &["-d", "d/ d/e/ d/e/a=2 d/f=3 g=3 h/ h/a=2 h/b=2"],
            "",
            "/:0 g=1:3 h/ /h:1 a=1:2#0 b->0",
            "/:0 g=1:3 h/ /h:1 a=1:2#0 b->0",
        ),
        (
            &["a! a/x=1", "a/ a/y=5 a/z=6 b/ b/y=5 b/z=6 b/zz=6"],
            "",
            "/:0 a/ b/ /a:0! x=0:1 /b:1 y=1:5 z=1:6#0 zz->0",
            "/:0 a/ b/ /a:0 x=0:1 /b:1 y=1:5 z=1:6#0 zz->0",
        ),
        // Within one directory a hidden inode comes between those that show.
        (
            &["b=9", "a=1 b=2 c=2 d=1 e=2"],
            "",
            "/:0 a=1:1#0 b=0:9 c=1:2#1 d->0 e->1",
            "/:0 a=1:1#0 b=0:9 c=1:2#1 d->0 e->1",
        ),
        // Order of paths is by names, not by the joined text.
        (
            &["a/ a/x=1 a-=2 a.b/", "a/ a.b/ a.b/y=1"],
            "",
            "/:0 a/ a-=0:2 a.b/ /a:0 x=0:1 /a.b:0 y=1:1",
            "/:0 a/ a-=0:2 a.b/ /a:0 x=0:1 /a.b:0 y=1:1",
        ),
    ];
    for (layers, below, over, complete) in table {
        let dirs: Vec<Dir> = (0..).zip(*layers).map(|(tag, layer)| tree(tag, layer)).collect();
        let trees: Vec<_> = (0..).zip(&dirs).map(|(layer, dir)| blocks(layer, dir)).collect();
        let below = tree(99, below);
        assert_eq!(words(&merge_over(&trees, &mut Seen::new(&[(99, &below)]))), *over, "{layers:?}");
        assert_eq!(words(&merge_complete(&trees)), *complete, "{layers:?} with nothing below");
    }
}

#[test]
fn what_is_below_is_asked_about_whiteouts_of_the_result_only() {
    let newest = tree(0, "-a -b c=1 d/ -d/x e! -e/x");
    let oldest = tree(1, "a=1 c=2 -f d/ d/y=1 e/ e/y=1");
    let below = tree(2, "a=1 d/ d/x=1");
    let mut seen = Seen::new(&[(2, &below)]);
    merge_over(&[blocks(0, &newest), blocks(1, &oldest)], &mut seen);
    let asked: Vec<String> = seen.asked.iter().map(|path| String::from_utf8(path.join(&b'/')).unwrap()).collect();
    assert_eq!(asked, ["a", "b", "f", "d/x"]);
}

#[test]
fn no_trees_make_no_tree() {
    assert_eq!(merge_complete(&[]), []);
}

/// A tree that ends with an error.
struct Broken(Vec<Directory>);

impl perennial_core::sealed::entry::DirectorySource for Broken {
    type Error = &'static str;
    fn next_directory(&mut self) -> Result<Option<Directory>, &'static str> {
        if self.0.is_empty() { Err("torn") } else { Ok(Some(self.0.remove(0))) }
    }
}

#[test]
fn trees_that_cannot_be_read_are_named() {
    let whole = blocks(0, &tree(0, "d/ d/a=1 d/b=1"));
    let census = || Census::take(vec![super::model::Blocks::new(&whole)]).unwrap();
    assert_eq!(Census::take(vec![Broken(vec![])]), Err(TreesError::Source { tree: 0, source: "torn" }));

    let malformed = |blocks: &[Directory], path: &str, problem| {
        let expected = TreesError::Malformed { tree: 1, path: path.to_owned(), problem };
        let sources = || vec![super::model::Blocks::new(&whole), super::model::Blocks::new(blocks)];
        assert_eq!(Census::take(sources()), Err(expected), "{path}");
    };
    malformed(&whole[..1], "d", Problem::MissingDirectory);
    malformed(&[], "", Problem::MissingDirectory);
    let mut misnumbered = blocks(0, &tree(0, "a=1 b=1"));
    misnumbered[0].entries.remove(0);
    malformed(&misnumbered, "", Problem::Links);

    let mut merge = Merge::over(vec![super::model::Blocks::new(&whole)], Census::default(), Nothing);
    merge.next_directory().unwrap();
    let expected = TreesError::Malformed { tree: 0, path: "d".to_owned(), problem: Problem::Changed };
    assert_eq!(merge.next_directory(), Err(MergeError::Trees(expected)));
    let mut merge = Merge::complete(vec![Broken(whole.clone())], census());
    assert_eq!(merge.next_directory().map(|found| found.map(|dir| dir.entries.len())), Ok(Some(1)));
    assert_eq!(merge.next_directory().map(|found| found.map(|dir| dir.entries.len())), Ok(Some(2)));
    // What is torn behind the last directory is found too.
    let torn = TreesError::Source { tree: 0, source: "torn" };
    assert_eq!(merge.next_directory(), Err(MergeError::Trees(torn)));
}
