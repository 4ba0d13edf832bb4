//! What one layer archive becomes: hostile ones are refused and leave nothing, honest ones keep everything.
#![expect(
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test may fail by a panic, and writes files that need not survive"
)]

mod common;

use common::{Store, Tar, assert_same_listing, layout, listing, sh, xattrs};
use perennial_registry::{ApplyError, ImportError, LinkReason, NameError, TarError};
use std::os::unix::fs::MetadataExt as _;

/// Imports layers, oldest first, from a layout.
fn import(store: &mut Store, layers: &[Vec<u8>]) -> Result<perennial_registry::Imported, ImportError> {
    let dir = tempfile::tempdir().unwrap();
    layout(dir.path(), layers);
    store.import(&format!("oci:{}", dir.path().display()))
}

/// Imports layers that are refused, and checks that nothing is left and nothing outside has changed.
fn refused(layers: &[Vec<u8>]) -> ApplyError {
    let mut store = Store::new();
    // The canary lies where `..`, absolute names and links of the archives point to.
    let canary = store.dir.path().join("canary");
    std::fs::create_dir(&canary).unwrap();
    std::fs::write(canary.join("file"), "untouched").unwrap();
    let before = listing(&canary);
    let error = import(&mut store, layers).unwrap_err();
    assert_same_listing(&before, &listing(&canary));
    store.assert_staging_is_empty();
    assert!(store.aborted > 0);
    match error {
        ImportError::Apply { source, .. } => source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn names_that_lead_outside_are_refused() {
    for name in ["../canary/file", "a/../../canary/x", "a/..", "..", "./../x"] {
        match refused(&[Tar::new().dir("a").file(name, b"x").end()]) {
            ApplyError::Name { entry, reason: NameError::DotDot } => assert_eq!(entry, name),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn names_that_name_nothing_are_refused() {
    let error = refused(&[Tar::new().file("", b"x").end()]);
    assert!(matches!(error, ApplyError::Name { reason: NameError::Empty, .. }), "{error:?}");
    for name in [".", "/", "./", "//."] {
        let error = refused(&[Tar::new().file(name, b"x").end()]);
        assert!(matches!(error, ApplyError::Root { .. }), "{name}: {error:?}");
    }
    let error = refused(&[Tar::new().pax(&[("path", b"a\0b")]).file("ab", b"x").end()]);
    assert!(matches!(error, ApplyError::Name { reason: NameError::Nul, .. }), "{error:?}");
    let long = "n".repeat(256);
    let error = refused(&[Tar::new().pax(&[("path", long.as_bytes())]).file("x", b"").end()]);
    assert!(matches!(error, ApplyError::Name { reason: NameError::TooLong, .. }), "{error:?}");
    let deep = "d/".repeat(3000);
    let error = refused(&[Tar::new().pax(&[("path", deep.as_bytes())]).dir("x").end()]);
    assert!(matches!(error, ApplyError::Name { reason: NameError::TooLong, .. }), "{error:?}");
}

#[test]
fn nothing_is_written_through_a_symbolic_link() {
    for target in ["../../canary", "/", "../..", "sub"] {
        for name in ["link/file", "link/sub/file", "link/.wh..wh..opq"] {
            let error = refused(&[Tar::new().dir("sub").symlink("link", target).file(name, b"x").end()]);
            match error {
                ApplyError::ThroughSymlink { entry } => assert!(name.starts_with(&entry) || entry == name, "{entry}"),
                other => panic!("{target} {name}: {other:?}"),
            }
        }
    }
    // A file where the link was is not written through it but replaces it.
    let mut store = Store::new();
    let layer = Tar::new().symlink("link", "../../canary").file("link", b"mine").end();
    let imported = import(&mut store, &[layer]).unwrap();
    assert_eq!(std::fs::read(store.trees(&imported)[0].join("link")).unwrap(), b"mine");
}

#[test]
fn hard_links_to_outside_are_refused() {
    let cases: [(&str, LinkReason); 5] = [
        ("../../canary/file", LinkReason::Name(NameError::DotDot)),
        ("/etc/passwd", LinkReason::Missing),
        ("nothing", LinkReason::Missing),
        ("sub", LinkReason::Directory),
        ("out/file", LinkReason::ThroughSymlink),
    ];
    for (link, expected) in cases {
        let layer = Tar::new().dir("sub").symlink("out", "../../canary").link("hard", link).end();
        match refused(&[layer]) {
            ApplyError::Link { entry, target, reason } => {
                assert_eq!((entry.as_str(), target.as_str(), reason), ("hard", link, expected));
            }
            other => panic!("{link}: {other:?}"),
        }
    }
}

#[test]
fn attributes_that_steer_the_union_are_refused() {
    for name in
        ["trusted.overlay.redirect", "trusted.overlay.opaque", "trusted.overlay.metacopy", "trusted.perennial.x"]
    {
        let key = format!("SCHILY.xattr.{name}");
        match refused(&[Tar::new().pax(&[(&key, b"/secret")]).file("f", b"x").end()]) {
            ApplyError::Steering { entry, attribute } => assert_eq!((entry.as_str(), attribute.as_str()), ("f", name)),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn whiteouts_that_hide_nothing_valid_are_refused() {
    for name in [".wh.", ".wh...", ".wh..", "a/.wh.", ".wh.dir/file"] {
        match refused(&[Tar::new().file(name, b"").end()]) {
            ApplyError::Whiteout { entry } => assert_eq!(entry, name),
            other => panic!("{name}: {other:?}"),
        }
    }
    let error = refused(&[Tar::new().raw(b"dev", b'3', b"", b"").end()]);
    assert!(matches!(error, ApplyError::DeviceZero { .. }), "{error:?}");
}

#[test]
fn archives_beyond_the_bounds_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let many = (0..50).fold(Tar::new(), |tar, n| tar.file(&format!("f{n}"), b"x")).end();
    let big = Tar::new().file("big", &vec![0; 1 << 20]).end();
    let mut bomb = Tar::new();
    bomb.push((b"bomb", b""), b'0', b"", 0o644);
    bomb.0[124..136].copy_from_slice(b"77777777777\0");
    let sum: u32 =
        bomb.0[..512].iter().enumerate().map(|(n, b)| if (148..156).contains(&n) { 32 } else { u32::from(*b) }).sum();
    bomb.0[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    for (name, layer) in [("many", many), ("big", big), ("bomb", bomb.end())] {
        let mut store = Store::new();
        let path = dir.path().join(name);
        layout(&path, &[layer]);
        let source = perennial_registry::Source::Oci { path, tag: None };
        let mut options = store.options();
        options.limits.entries_max = 20;
        options.limits.bytes_max = 100_000;
        let error = perennial_registry::import(&source, &options, &mut store, &perennial_registry::progress::Silent);
        let ImportError::Apply { source: error, .. } = error.unwrap_err() else { panic!() };
        match name {
            "many" => assert!(matches!(error, ApplyError::TooManyEntries { entries_max: 20 }), "{error:?}"),
            _ => assert!(matches!(&error, ApplyError::TooLarge { entry, .. } if entry == name), "{error:?}"),
        }
        store.assert_staging_is_empty();
    }
}

#[test]
fn damaged_archives_are_refused() {
    let whole = Tar::new().file("f", &[7; 2000]).end();
    let error = refused(&[whole[..1500].to_vec()]);
    assert!(matches!(error, ApplyError::Tar(TarError::Truncated { .. })), "{error:?}");
    let mut flipped = whole;
    flipped[3] ^= 1;
    let error = refused(&[flipped]);
    assert!(matches!(error, ApplyError::Tar(TarError::Checksum { .. })), "{error:?}");
    let error = refused(&[Tar::new().raw(b"v", b'V', b"", b"").end()]);
    assert!(matches!(error, ApplyError::Tar(TarError::Unsupported { flag: 'V', .. })), "{error:?}");
    let endless = (0..100).fold(Tar::new(), |tar, _| tar.raw(b"g", b'g', b"", b"9 a=bcde\n"));
    let error = refused(&[endless.file("f", b"").end()]);
    assert!(matches!(error, ApplyError::Tar(TarError::HeadersTooLong { .. })), "{error:?}");
}

#[test]
fn the_last_of_several_entries_of_one_name_counts() {
    let mut store = Store::new();
    let layer = Tar::new()
        .file("f", b"first")
        .file("f", b"second")
        .dir("d")
        .file("d/inside", b"x")
        .file("d", b"now a file")
        .file("e", b"a file")
        .dir("e")
        .file("e/inside", b"y")
        .symlink("s", "f")
        .dir("s")
        .dir("kept")
        .file("kept/f", b"z")
        .dir("kept")
        .end();
    let imported = import(&mut store, &[layer]).unwrap();
    let tree = &store.trees(&imported)[0];
    let read = |name: &str| String::from_utf8(std::fs::read(tree.join(name)).unwrap()).unwrap();
    assert_eq!(read("f"), "second");
    assert_eq!(read("d"), "now a file");
    assert_eq!(read("e/inside"), "y");
    assert_eq!(read("kept/f"), "z");
    assert!(tree.join("s").symlink_metadata().unwrap().is_dir());
}

#[test]
fn absolute_names_are_relative_and_links_may_point_anywhere() {
    let mut store = Store::new();
    let layer =
        Tar::new().file("/abs/./f//g", b"x").symlink("up", "../../../etc/passwd").link("/again", "/abs/f/g").end();
    let imported = import(&mut store, &[layer]).unwrap();
    let tree = &store.trees(&imported)[0];
    assert_eq!(std::fs::read(tree.join("again")).unwrap(), b"x");
    assert_eq!(tree.join("again").metadata().unwrap().nlink(), 2);
    assert_eq!(tree.join("up").read_link().unwrap().to_str(), Some("../../../etc/passwd"));
}

/// Image-spec, `layer.md`: whiteouts hide what is below, not what is in their own layer, wherever they stand.
#[test]
fn whiteouts_and_opaque_marks_work_in_any_order() {
    let base = Tar::new().dir("o").file("o/old", b"1").dir("o/sub").file("o/sub/old", b"2").file("gone", b"3").dir("r");
    let base = base.file("r/old", b"4").dir("w").file("w/a", b"5").file("w/b", b"6").end();
    let parts: [fn(Tar) -> Tar; 4] = [
        |tar| tar.dir("o").file("o/new", b"n"),
        |tar| tar.file("o/.wh..wh..opq", b"").file("o/.wh.old", b"").file("o/.wh.never", b""),
        |tar| tar.file(".wh.gone", b"").file(".wh.r", b"").file("w/.wh.a", b"").file("nowhere/.wh.x", b""),
        |tar| tar.dir("r").file("r/new", b"m"),
    ];
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]] {
        let mut store = Store::new();
        let upper = order.iter().fold(Tar::new(), |tar, part| parts[*part](tar)).end();
        let imported = import(&mut store, &[base.clone(), upper]).unwrap();
        let mount = store.mount(&imported);
        let names: Vec<String> = listing(mount.path()).into_keys().collect();
        assert_eq!(names, ["", "o", "o/new", "r", "r/new", "w", "w/b"], "{order:?}");
        // No ghost names: every name that is listed can be looked at; and no whiteout without a purpose was made.
        let whiteouts: Vec<_> =
            listing(&store.trees(&imported)[0]).into_iter().filter(|(_, l)| l.starts_with("20000")).collect();
        assert_eq!(whiteouts.len(), 2, "{whiteouts:?}");
    }
}

#[test]
fn an_opaque_root_hides_everything_below() {
    let base = Tar::new().dir("a").file("a/old", b"1").file("b", b"2").dir("c").end();
    let upper = Tar::new().file(".wh..wh..opq", b"").dir("a").file("a/new", b"3").end();
    let mut store = Store::new();
    let imported = import(&mut store, &[base, upper]).unwrap();
    let names: Vec<String> = listing(store.mount(&imported).path()).into_keys().collect();
    assert_eq!(names, ["", "a", "a/new"]);
}

#[test]
fn directories_a_layer_does_not_describe_keep_their_attributes() {
    let mut base = Tar::new();
    base.push((b"./", b""), b'5', b"", 0o751);
    base = base.pax(&[("SCHILY.xattr.user.mark", b"a\nb"), ("mtime", b"1234567890.123456789"), ("uid", b"70000")]);
    base.push((b"d", b""), b'5', b"", 0o2711);
    let base = base.dir("d/e").file("d/e/f", b"1").end();
    let upper = Tar::new().file("d/e/g", b"2").file("new/x", b"3").file("d/.wh.nothing", b"").end();
    let mut store = Store::new();
    let imported = import(&mut store, &[base, upper]).unwrap();
    let mount = store.mount(&imported);
    let d = mount.path().join("d");
    let meta = d.metadata().unwrap();
    assert_eq!(
        (meta.mode() & 0o7777, meta.uid(), meta.mtime(), meta.mtime_nsec()),
        (0o2711, 70000, 1_234_567_890, 123_456_789)
    );
    assert_eq!(xattrs(&d)["user.mark"], b"a\nb");
    assert_eq!(mount.path().metadata().unwrap().mode() & 0o7777, 0o751);
    assert_eq!(mount.path().join("new").metadata().unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn a_link_to_a_file_of_a_lower_layer_copies_it_up() {
    let base = Tar::new()
        .dir("d")
        .pax(&[("SCHILY.xattr.user.mark", b"kept"), ("mtime", b"-1.25")])
        .file("d/f", b"content")
        .symlink("d/s", "f")
        .end();
    let upper = Tar::new().link("x/again", "d/f").link("t", "d/s").end();
    let hiding = Tar::new().link("y", "d/f").file("d/.wh.f", b"").end();
    let mut store = Store::new();
    let imported = import(&mut store, &[base, upper, hiding]).unwrap();
    let mount = store.mount(&imported);
    let (x, y) = (mount.path().join("x/again"), mount.path().join("y"));
    assert_eq!(std::fs::read(&x).unwrap(), b"content");
    assert_eq!(xattrs(&y)["user.mark"], b"kept");
    assert_eq!((y.metadata().unwrap().mtime(), y.metadata().unwrap().mtime_nsec()), (-2, 750_000_000));
    assert!(!mount.path().join("d/f").exists(), "hidden by the last layer");
    assert_eq!(mount.path().join("t").read_link().unwrap().to_str(), Some("f"));
    let middle = &store.trees(&imported)[1];
    assert_eq!(middle.join("d/f").metadata().unwrap().ino(), middle.join("x/again").metadata().unwrap().ino());
}

/// Archives by GNU tar in its formats, with sparse files of every version, compared with the source tree.
#[test]
fn every_format_of_gnu_tar_gives_the_source_tree() {
    let work = tempfile::tempdir().unwrap();
    sh(
        work.path(),
        r#"mkdir -p src/d; cd src; echo hi > d/f; ln d/f d/l; ln -s f d/s; mkfifo p; mknod n c 1 3
        truncate -s 5M holes; printf start | dd of=holes conv=notrunc status=none; printf mid | dd of=holes bs=1M seek=2 conv=notrunc status=none
        truncate -s 1M empty-holes; for i in $(seq 0 60); do printf x | dd of=many bs=64K seek=$i conv=notrunc status=none; done
        chown 1000:2000 d/f; chmod 6711 d/f; f=$(printf 'n%.0s' {1..150}); touch "$f"; ln -s "$(printf 'l%.0s' {1..180})" longlink
        touch -d @1500000000 d/f n p holes empty-holes many longlink -h; touch -d @1500000000 -h d/s longlink "$f"; touch -d @1500000001 d .; cd ..
        for fmt in gnu pax oldgnu; do tar --numeric-owner --format=$fmt -S -cf $fmt.tar -C src .; done
        tar --format=pax -S --sparse-version=0.0 -cf pax00.tar -C src .; tar --format=pax -S --sparse-version=0.1 -cf pax01.tar -C src .
        tar --format=pax -cf whole.tar -C src .; gzip -k gnu.tar; zstd -q pax.tar; cat gnu.tar.gz > members.tar.gz; printf '' | gzip >> members.tar.gz
        head -c 4000 pax.tar | zstd -q > frames.tar.zst; tail -c +4001 pax.tar | zstd -q >> frames.tar.zst"#,
    );
    let expected = listing(&work.path().join("src"));
    let names = [
        "gnu.tar",
        "pax.tar",
        "oldgnu.tar",
        "pax00.tar",
        "pax01.tar",
        "whole.tar",
        "gnu.tar.gz",
        "pax.tar.zst",
        "members.tar.gz",
        "frames.tar.zst",
    ];
    for name in names {
        let mut store = Store::new();
        let imported = store.import(&format!("rootfs:{}/{name}", work.path().display())).unwrap();
        let tree = &store.trees(&imported)[0];
        assert_same_listing(&expected, &listing(tree));
        let blocks = tree.join("holes").metadata().unwrap().blocks();
        assert!(name == "whole.tar" || blocks < 200, "{name}: holes are kept, {blocks} blocks");
    }
}

#[test]
fn attributes_of_libarchive_and_of_other_systems() {
    let layer = Tar::new()
        .pax(&[
            ("LIBARCHIVE.xattr.user.a%20b", b"AAEC/w"),
            ("SCHILY.xattr.com.apple.quarantine", b"x"),
            ("SCHILY.xattr.user.overlay.origin", b"x"),
            ("SCHILY.xattr.security.capability", b"\x01\0\0\x02\0\x0a\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
        ])
        .file("f", b"x")
        .end();
    let mut store = Store::new();
    let imported = import(&mut store, &[layer]).unwrap();
    let all = xattrs(&store.trees(&imported)[0].join("f"));
    assert_eq!(all["user.a b"], [0, 1, 2, 255]);
    assert_eq!(all["security.capability"].len(), 20);
    assert_eq!(all.len(), 2, "{all:?}");
    assert_eq!(imported.notes.len(), 2, "{:?}", imported.notes);
}

#[test]
fn access_lists_are_kept_as_attributes_and_noted_as_text() {
    let work = tempfile::tempdir().unwrap();
    sh(
        work.path(),
        "mkdir src; touch src/f; setfacl -m u:1234:rw src/f; setfacl -d -m g:5:r src
         tar --xattrs --xattrs-include='*' -cf xattrs.tar -C src .; tar --acls -cf text.tar -C src .",
    );
    let mut store = Store::new();
    let imported = store.import(&format!("rootfs:{}/xattrs.tar", work.path().display())).unwrap();
    let tree = &store.trees(&imported)[0];
    for path in [".", "f"] {
        assert_eq!(xattrs(&tree.join(path)), xattrs(&work.path().join("src").join(path)));
    }
    assert_eq!(imported.notes, Vec::<String>::new());
    let imported = store.import(&format!("rootfs:{}/text.tar", work.path().display())).unwrap();
    assert_eq!(imported.notes.len(), 2, "{:?}", imported.notes);
}
