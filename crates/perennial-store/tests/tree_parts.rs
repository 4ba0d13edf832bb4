//! What is refused, stripped, removed and cut short.
#![cfg(test)]

mod common;

use common::sessions::{Lab, borrowed};
use common::{LoopFs, View, open, opened, traps};
use perennial_core::tree::Below;
use perennial_store::tree::below::{BelowView, Cut};
use perennial_store::tree::{self, Data, FoldLayers, TreeError};
use rustix::fd::AsFd as _;
use rustix::fs::{FileType, IFlags};
use std::fs;
use std::os::unix::fs::MetadataExt as _;

#[test]
fn attributes_the_mount_options_cannot_produce_are_refused_by_name() {
    let fs = LoopFs::ext4();
    let table: [(&str, &[u8], &[u8]); 7] = [
        ("dir", b"trusted.overlay.redirect", b"/other"),
        ("file", b"trusted.overlay.metacopy", b""),
        ("dir", b"trusted.overlay.opaque", b"x"),
        ("file", b"trusted.overlay.whiteout", b""),
        ("file", b"trusted.overlay.unheard-of", b"1"),
        ("", b"trusted.overlay.redirect", b"/"),
        ("dir/fifo", b"trusted.overlay.verity", b"1"),
    ];
    for (number, (path, name, value)) in table.into_iter().enumerate() {
        let root = fs.path().join(number.to_string());
        fs::create_dir_all(root.join("dir")).unwrap();
        traps::write(&root.join("file"), b"");
        traps::special(&root.join("dir/fifo"), FileType::Fifo, 0);
        traps::xattr(&root.join(path), name, value);
        let error = tree::measure_and_strip(open(&root).as_fd()).unwrap_err();
        let TreeError::Refused { attribute, path: found } = &error else { panic!("{error}") };
        assert!(attribute.starts_with(std::str::from_utf8(name).unwrap()), "{error}");
        assert_eq!(found.as_bytes(), path.as_bytes(), "{error}");
    }
}

#[test]
fn layers_that_cannot_be_looked_at_show_nothing_else_when_asked_again() {
    let fs = LoopFs::ext4();
    let layers = [fs.path().join("newer"), fs.path().join("older")];
    layers.iter().for_each(|layer| fs::create_dir_all(layer.join("dir/sub")).unwrap());
    traps::write(&layers[1].join("dir/sub/file"), b"");
    traps::xattr(&layers[1].join("dir"), b"trusted.overlay.redirect", b"/other");
    let opened = opened(&layers);
    let mut view = BelowView::new(&borrowed(&opened), Cut::Through).unwrap();
    view.enter(c"dir", Cut::Through);
    assert!(matches!(view.shows(c"sub"), Err(TreeError::Refused { .. })));
    view.enter(c"sub", Cut::Through);
    assert!(matches!(view.shows(c"file"), Err(TreeError::Refused { .. })));
    view.leave().unwrap();
    view.leave().unwrap();
    assert_eq!(view.shows(c"dir").unwrap(), Below::Visible);
}

#[test]
fn notes_of_the_mount_are_stripped_and_the_rest_is_kept() {
    let fs = LoopFs::ext4();
    let root = fs.path().join("tree");
    fs::create_dir_all(root.join("dir")).unwrap();
    traps::write(&root.join("dir/file"), &[1; 5000]);
    fs::hard_link(root.join("dir/file"), root.join("linked")).unwrap();
    traps::special(&root.join("gone"), FileType::CharacterDevice, 0);
    for name in [&b"trusted.overlay.origin"[..], b"trusted.overlay.uuid", b"trusted.overlay.impure"] {
        traps::xattr(&root, name, b"1");
        traps::xattr(&root.join("dir"), name, b"1");
    }
    traps::xattr(&root.join("dir/file"), b"trusted.overlay.nlink", b"U+1");
    traps::xattr(&root.join("dir/file"), b"trusted.overlay.protattr", b"i");
    traps::xattr(&root.join("dir"), b"trusted.overlay.opaque", b"y");
    traps::xattr(&root.join("dir"), b"trusted.overlay.overlay.origin", b"mine");
    traps::set_times(&root.join("dir"), 5, 5);
    let measure = tree::measure_and_strip(open(&root).as_fd()).unwrap();
    assert_eq!((measure.entries, measure.whiteouts, measure.stripped), (4, 1, 7));
    let once = ["", "dir", "dir/file"].map(|path| fs::metadata(root.join(path)).unwrap().blocks() * 512);
    // Before stripping, up to a block of attributes more for each.
    let bytes = once.iter().sum::<u64>();
    assert!((bytes..=bytes + 3 * 4096).contains(&measure.bytes), "{measure:?} {once:?}");
    assert_eq!(tree::measure(open(&root).as_fd()).unwrap().bytes, bytes);
    let names = |path: &str| common::xattrs(&root.join(path)).into_keys().collect::<Vec<_>>();
    assert_eq!(names("dir"), [b"trusted.overlay.opaque".to_vec(), b"trusted.overlay.overlay.origin".to_vec()]);
    assert_eq!(names("linked"), [b"trusted.overlay.protattr".to_vec()]);
    assert!(names("").is_empty());
    assert_eq!(
        fs::metadata(root.join("dir")).unwrap().modified().unwrap(),
        std::time::UNIX_EPOCH + std::time::Duration::new(5, 5)
    );
}

#[test]
fn closed_immutable_and_odd_trees_are_removed_and_so_is_nothing() {
    let fs = LoopFs::ext4();
    let root = fs.path().join("tree");
    fs::create_dir_all(root.join("locked/inner")).unwrap();
    traps::write(&root.join("locked/file"), b"");
    traps::write(&root.join("appended"), b"");
    traps::special(&root.join("fifo"), FileType::Fifo, 0);
    traps::special(&root.join("socket"), FileType::Socket, 0);
    std::os::unix::fs::symlink("/etc", root.join("symlink")).unwrap();
    traps::chmod(&root.join("locked/inner"), 0);
    traps::flags(&root.join("locked/file"), IFlags::IMMUTABLE);
    traps::flags(&root.join("locked/inner"), IFlags::IMMUTABLE);
    traps::flags(&root.join("locked"), IFlags::APPEND);
    traps::flags(&root.join("appended"), IFlags::APPEND);
    traps::flags(&root, IFlags::IMMUTABLE);
    tree::remove_tree(&root).unwrap();
    assert!(!root.exists());
    tree::remove_tree(&root).unwrap();
    tree::remove_tree(&root.join("not/there")).unwrap();
    traps::write(&root, b"a file");
    tree::remove_tree(&root).unwrap();
    assert!(!root.exists());
}

#[test]
fn tree_with_a_mount_in_it_is_neither_removed_nor_walked_into() {
    let fs = LoopFs::ext4();
    let root = fs.path().join("tree");
    fs::create_dir_all(root.join("mnt")).unwrap();
    common::run(std::process::Command::new("mount").args(["-t", "tmpfs", "none"]).arg(root.join("mnt")));
    traps::write(&root.join("mnt/precious"), b"");
    let removed = tree::remove_tree(&root);
    let measured = tree::measure(open(&root).as_fd());
    let survived = root.join("mnt/precious").exists();
    common::run(std::process::Command::new("umount").arg(root.join("mnt")));
    assert!(survived);
    assert!(matches!(removed, Err(TreeError::OtherFilesystem { .. })), "{removed:?}");
    assert!(matches!(measured, Err(TreeError::OtherFilesystem { .. })), "{measured:?}");
    tree::remove_tree(&root).unwrap();
}

#[test]
fn names_in_the_trash_never_collide() {
    let fs = LoopFs::ext4();
    let (root, trash) = (fs.path().join("tree"), fs.path().join("trash"));
    fs::create_dir(&trash).unwrap();
    traps::write(&fs.path().join("keep"), b"");
    for name in ["a", "b", "c"] {
        fs::hard_link(fs.path().join("keep"), fs.path().join(name)).unwrap();
        let trashed = tree::move_to_trash(&fs.path().join(name), &trash).unwrap().unwrap();
        assert!(trashed.exists());
    }
    assert_eq!(fs::read_dir(&trash).unwrap().count(), 3);
    assert_eq!(tree::move_to_trash(&root, &trash).unwrap(), None);
}

#[test]
fn what_cannot_be_set_is_an_error_that_names_it() {
    let fs = LoopFs::ext4();
    let (layer, small) = (fs.path().join("layer"), LoopFs::new("xfs", 320));
    fs::create_dir(&layer).unwrap();
    traps::write(&layer.join("file"), b"");
    // ext4 with large attributes takes this, a file system mounted without them does not.
    traps::xattr(&layer.join("file"), b"user.large", &vec![1; 65_536]);
    let dst = small.path().join("dst");
    fs::create_dir(&dst).unwrap();
    let layers = opened(std::slice::from_ref(&layer));
    tree::materialize(&borrowed(&layers), &[], open(&dst).as_fd(), Data::Copy, &mut |_| {}).unwrap();
    assert_eq!(common::xattrs(&dst.join("file"))[b"user.large".as_slice()].len(), 65_536);
    let plain = LoopFs::plain_ext4();
    let dst = plain.path().join("dst");
    fs::create_dir(&dst).unwrap();
    let error = tree::materialize(&borrowed(&layers), &[], open(&dst).as_fd(), Data::Copy, &mut |_| {}).unwrap_err();
    assert_eq!(error.to_string(), "cannot set user.large of file");
    fs::remove_file(dst.join("file")).unwrap();
    let error = tree::materialize(&borrowed(&layers), &[], open(&dst).as_fd(), Data::Link, &mut |_| {}).unwrap_err();
    assert_eq!(error.errno(), Some(rustix::io::Errno::XDEV), "{error}");
}

#[test]
fn entries_that_are_one_file_in_both_layers_are_folded() {
    let fs = LoopFs::ext4();
    let mut lab = Lab::new(fs.path().join("lab"), |root| traps::write(&root.join("image"), b"i"), |_| {});
    lab.session(|root| {
        traps::write(&root.join("file"), b"one");
        traps::remove(&root.join("image"));
    });
    // The same files once more in a layer above.
    let (linked, _) = lab.flatten(Data::Link);
    let expected = lab.list_all();
    lab.own.insert(0, linked);
    common::assert_same(&expected, &lab.list_all(), "linked above itself");
    lab.fold(0, &mut || false);
    let top = lab.own.remove(0);
    assert_eq!(fs::read_dir(top).unwrap().count(), 0);
    common::assert_same(&expected, &lab.list_all(), "folded");
}

#[test]
fn whiteout_that_hides_nothing_does_not_show_up_as_a_ghost() {
    let fs = LoopFs::ext4();
    let mut lab = Lab::new(fs.path().join("lab"), |_| {}, |_| {});
    lab.session(|root| {
        fs::create_dir(root.join("dir")).unwrap();
        traps::write(&root.join("dir/file"), b"");
        traps::write(&root.join("top"), b"");
    });
    lab.session(|root| {
        traps::remove(&root.join("dir/file"));
        traps::remove(&root.join("top"));
    });
    let (flat, measure) = lab.flatten(Data::Copy);
    assert_eq!((measure.entries, measure.whiteouts), (1, 0));
    assert_eq!(fs::read_dir(flat.join("dir")).unwrap().count(), 0);
    lab.fold(0, &mut || false);
    assert_eq!(tree::measure(open(&lab.own[1]).as_fd()).unwrap().entries, 1);
}

#[test]
fn whiteouts_that_share_one_inode_and_files_with_many_names_are_flattened() {
    let fs = LoopFs::ext4();
    let mut lab = Lab::new(
        fs.path().join("lab"),
        |root| (0..300).for_each(|number| traps::write(&root.join(format!("f{number}")), b"")),
        |_| {},
    );
    lab.session(|root| {
        (0..300).for_each(|number| traps::remove(&root.join(format!("f{number}"))));
        traps::write(&root.join("many"), b"many");
        (0..300).for_each(|number| fs::hard_link(root.join("many"), root.join(format!("n{number}"))).unwrap());
        traps::write(&root.join(".perennial-links"), b"the user's own");
    });
    let expected = lab.list_all();
    for data in [Data::Copy, Data::Link] {
        let (flat, measure) = lab.flatten(data);
        assert_eq!((measure.entries, measure.whiteouts), (602, 300));
        let found = lab.list(&[flat.clone(), lab.image[0].clone(), lab.image[1].clone()]);
        common::assert_same(&expected, &found, "flattened");
        assert_eq!(fs::read_dir(flat).unwrap().count(), 602);
    }
}

#[test]
fn fold_refuses_a_newer_layer_that_hides_everything() {
    let fs = LoopFs::ext4();
    let (top, bottom) = (fs.path().join("top"), fs.path().join("bottom"));
    fs::create_dir(&top).unwrap();
    fs::create_dir(&bottom).unwrap();
    traps::xattr(&top, b"trusted.overlay.opaque", b"y");
    let fds = opened(&[top, bottom]);
    let layers = FoldLayers { top: fds[0].as_fd(), bottom: fds[1].as_fd(), below: &[] };
    let refused = tree::fold(layers, open(&fs.path()).as_fd(), &mut || false);
    assert!(matches!(refused, Err(TreeError::Refused { .. })));
}

#[test]
fn small_layers_are_measured_in_a_millisecond() {
    let fs = LoopFs::ext4();
    let mut lab = Lab::new(fs.path().join("lab"), |_| {}, |_| {});
    lab.session(|root| (0..50).for_each(|number| traps::write(&root.join(number.to_string()), b"x")));
    let layer = open(&lab.own[0]);
    let times = (0..20).map(|_| {
        #[expect(clippy::disallowed_methods, reason = "a time is measured")]
        let begun = std::time::Instant::now();
        tree::measure_and_strip(layer.as_fd()).unwrap();
        begun.elapsed()
    });
    let best = times.min().unwrap();
    assert!(best.as_micros() < 3000, "{best:?} in a debug build");
    println!("50 entries: {best:?}");
    drop(View::of(&lab.stack(), &lab.dir.join("empty")));
}
