//! Images made by other tools, imported, mounted, and compared with what those tools show.
#![expect(
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::too_many_lines,
    clippy::unwrap_used,
    reason = "a test may fail by a panic, and writes files that need not survive"
)]

mod common;

use common::{Mount, Store, Tar, assert_same_listing, assert_same_tree, layout, listing, sh, sha256, xattrs};
use perennial_registry::{ImportError, ManifestError, Platform, Source, SourceError, import};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Three layers made by umoci: files of every kind; removals, replacements and links; more of the same.
fn umoci_image(dir: &Path) {
    sh(
        dir,
        r#"
        export HOME=$PWD
        umoci init --layout img && umoci new --image img:base
        umoci unpack --image img:base b >/dev/null
        cd b/rootfs
        mkdir -p etc usr/bin opt/gone opt/kept/sub var/lib deep/a/b/c "names/with space" dir-to-file gone-tree/x/y
        echo base > etc/conf; echo secret > etc/shadow; chmod 600 etc/shadow; chown 33:44 etc/shadow
        cp /bin/true usr/bin/prog; chmod 4755 usr/bin/prog
        cp /bin/true usr/bin/cap; setcap cap_net_raw+ep usr/bin/cap
        echo linked > usr/one; ln usr/one usr/two; ln usr/one opt/three
        ln -s ../etc/conf usr/link; ln -s /nowhere/at/all dangling; ln -s usr/bin bin
        echo x > opt/gone/f; echo y > opt/kept/sub/f; echo z > opt/kept/f
        mkfifo fifo; mknod null c 1 3; mknod loop b 7 0
        setfattr -n user.note -v "$(printf 'two\nlines')" etc/conf
        setfattr -n trusted.mine -v t var/lib
        setfacl -m u:1234:rw etc/conf; setfacl -d -m g:77:rx var/lib
        chmod 1777 var; chmod 2755 var/lib
        echo data > "names/with space/ü ñ"; touch names/.hidden "names/new
line"
        head -c 300 /dev/urandom > deep/a/b/c/f; truncate -s 3M sparse; echo tail >> sparse
        echo f > dir-to-file/f; echo file > file-to-dir; touch gone-tree/x/y/z
        mkdir -p "$(printf 'long%.0s' {1..30})/$(printf 'name%.0s' {1..40})"; touch "$(printf 'long%.0s' {1..30})/$(printf 'name%.0s' {1..40})/f"
        touch -d '1969-07-20T20:17:40Z' deep/a; touch -d '2001-02-03T04:05:06Z' etc usr
        cd ../..
        umoci repack --refresh-bundle --image img:base b >/dev/null
        cd b/rootfs
        rm -r opt/gone gone-tree dir-to-file file-to-dir opt/three
        mkdir file-to-dir; echo in > file-to-dir/in; echo now-a-file > dir-to-file
        rm -r opt/kept; mkdir opt/kept; echo new > opt/kept/new
        echo more >> etc/conf; ln usr/one usr/four; rm usr/two; chown 5:6 deep/a/b
        cd ../..
        umoci repack --refresh-bundle --image img:second b >/dev/null
        cd b/rootfs
        rm -r deep etc; mkdir etc; echo again > etc/conf; chmod 700 usr; mkdir gone-tree; echo back > gone-tree/f
        cd ../..
        umoci repack --refresh-bundle --image img:third b >/dev/null
        umoci unpack --image img:third seen >/dev/null
        "#,
    );
}

#[test]
fn a_layout_and_both_archives_give_the_tree_umoci_unpacks() {
    let work = tempfile::tempdir().unwrap();
    umoci_image(work.path());
    sh(
        work.path(),
        "skopeo copy -q oci:img:third oci-archive:o.tar:third; skopeo copy -q oci:img:third docker-archive:d.tar:some/name:tag
         gzip -k1 o.tar; zstd -q d.tar",
    );
    let path = |name: &str| format!("{}/{name}", work.path().display());
    let mut digests = Vec::new();
    for source in [
        "oci:img:third",
        "oci-archive:o.tar",
        "docker-archive:d.tar:some/name:tag",
        "oci-archive:o.tar.gz:third",
        "docker-archive:d.tar.zst",
    ] {
        let (form, rest) = source.split_once(':').unwrap();
        let mut store = Store::new();
        let imported = store.import(&format!("{form}:{}", path(rest))).unwrap();
        assert_eq!(imported.layers.len(), 3, "{source}");
        assert_same_tree(store.mount(&imported).path(), &work.path().join("seen/rootfs"));
        store.assert_staging_is_empty();
        digests.push((imported.layers[0].key.clone(), imported.digest.clone()));
        // The same image again reads no layer.
        let again = store.import(&format!("{form}:{}", path(rest))).unwrap();
        assert!(again.layers.iter().all(|layer| layer.was_known));
        assert_eq!(again.digest, imported.digest);
    }
    assert!(digests.iter().all(|(key, _)| *key == digests[0].0), "the same layers have the same chain ids");
}

/// An image built by buildah: `RUN` steps, a configuration, gzip layers, and what `buildah mount` shows of it.
#[test]
fn an_image_of_buildah_gives_the_tree_and_the_configuration_buildah_shows() {
    let work = tempfile::tempdir().unwrap();
    sh(
        work.path(),
        r#"
        export BUILDAH_ISOLATION=chroot
        b() { buildah --root "$PWD/store" --runroot "$PWD/run" --storage-driver vfs "$@"; }
        mkdir -p ctx/etc ctx/app; echo one > ctx/etc/one; echo two > ctx/app/two; ln ctx/app/two ctx/app/two-again
        touch -d @1234567890 ctx/etc/one ctx/app ctx/etc
        c=$(b from scratch)
        b copy -q $c ctx / >/dev/null
        b commit -q --rm=false $c first >/dev/null
        d=$(b from first)
        m=$(b mount $d)
        rm -r $m/etc; mkdir $m/etc; echo new > $m/etc/new; chown 12:34 $m/app/two; mkfifo $m/app/pipe; setfattr -n user.x -v y $m/app
        b umount $d >/dev/null
        b config --entrypoint '["/bin/prog","-x"]' --cmd 'a b' --env A=1 --env B=two --user 5:6 --workingdir /app \
          --label z=last --label a=first --volume /data --stop-signal SIGUSR1 $d
        b commit -q --rm=false $d oci:img:v2 >/dev/null
        e=$(b from oci:img:v2); m=$(b mount $e); mkdir seen; cp -a "$m/." seen/; touch -r "$m" seen; b umount $e >/dev/null
        b unshare true 2>/dev/null || true; b rm -a >/dev/null
        "#,
    );
    let mut store = Store::new();
    let imported = store.import(&format!("oci:{}/img", work.path().display())).unwrap();
    // No layer describes the root, which engines then make each in its own way.
    let shown = |path: &Path| {
        let mut listing = listing(path);
        listing.remove("");
        listing
    };
    assert_same_listing(&shown(store.mount(&imported).path()), &shown(&work.path().join("seen")));
    let config = &imported.config;
    assert_eq!(config.entrypoint, ["/bin/prog", "-x"]);
    assert_eq!(config.cmd, ["a", "b"]);
    assert_eq!(config.env, ["A=1", "B=two"]);
    assert_eq!((config.user.as_deref(), config.workdir.as_deref()), (Some("5:6"), Some("/app")));
    assert_eq!(config.stop_signal.as_deref(), Some("SIGUSR1"));
    assert_eq!(config.volumes, ["/data"]);
    let labels: Vec<&str> =
        config.labels.iter().map(String::as_str).filter(|label| !label.starts_with("io.buildah")).collect();
    assert_eq!(labels, ["a=first", "z=last"]);
    assert_eq!(config.architecture.as_deref(), Some(Platform::host().architecture.as_str()));
}

/// A real Debian, made once and kept under the build directory.
#[test]
fn a_debian_root_file_system_is_imported_from_its_archive_and_from_its_directory() {
    let work = common::Tmpfs::new();
    let cache = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("debian.tar");
    if !cache.exists() {
        let made = cache.with_extension("part.tar");
        sh(
            Path::new("/"),
            &format!(
                "mmdebstrap --quiet --variant=minbase --mode=root bookworm '{}'; mv '{0}' '{}'",
                made.display(),
                cache.display()
            ),
        );
    }
    sh(
        work.path(),
        &format!("mkdir tree; tar --xattrs --xattrs-include='*' --numeric-owner -xpf '{}' -C tree", cache.display()),
    );
    let tree = work.path().join("tree");
    let expected = listing(&tree);
    assert!(expected.len() > 5000);
    let mut store = Store::new_in(work.path());
    let from_tar = store.import(&format!("rootfs:{}", cache.display())).unwrap();
    assert_same_listing(&expected, &listing(&store.trees(&from_tar)[0]));
    let from_dir = store.import(&format!("rootfs:{}", tree.display())).unwrap();
    assert_same_listing(&expected, &listing(&store.trees(&from_dir)[0]));
    let again = store.import(&format!("rootfs:{}", tree.display())).unwrap();
    assert!(again.layers[0].was_known, "identical trees give the same layer");
    assert_eq!(again.digest, from_dir.digest);
    store.assert_staging_is_empty();
}

#[test]
fn a_directory_is_copied_with_everything_however_deep() {
    let work = tempfile::tempdir().unwrap();
    sh(
        work.path(),
        r#"mkdir -p src/a/b src/mnt; cd src
        echo x > a/f; ln a/f a/b/l; ln a/f z; ln -s ../../.. a/up; mkfifo p; mknod c c 5 1; mknod b b 7 7
        truncate -s 8M holes; printf mid | dd of=holes bs=1M seek=4 conv=notrunc status=none
        setfattr -n user.u -v 1 a/f; setfattr -n trusted.t -v 2 a; setfattr -n trusted.overlay.redirect -v /x a/b
        setfacl -m u:99:rwx a; cp /bin/true cap; setcap cap_chown+p cap; chmod 4755 a/f; chown -h 7:8 a/up
        python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("sock")'
        mount -t tmpfs none mnt; touch mnt/hidden
        d=$PWD; for i in $(seq 40); do n=$(printf 'deep%.0s' {1..50}); mkdir $n; cd $n; done; echo bottom > f; ln f g; cd "$d"
        touch -d '1950-01-01T00:00:00.123456789Z' a; touch -d '2100-01-01T00:00:00.5Z' ."#,
    );
    let src = work.path().join("src");
    let mut store = Store::new();
    let imported = store.import(&format!("rootfs:{}", src.display()));
    let unmounted = std::panic::catch_unwind(|| {
        sh(work.path(), "umount src/mnt; rm src/sock; touch -d '2100-01-01T00:00:00.5Z' src")
    });
    unmounted.unwrap();
    let imported = imported.unwrap();
    assert_eq!(imported.notes.len(), 2, "the socket and the mount point: {:?}", imported.notes);
    let tree = store.trees(&imported).remove(0);
    // Paths beyond PATH_MAX cannot be listed by path: compare them by `tar` and the rest by listing.
    let dump = |dir: &Path| {
        sh(
            dir,
            "tar --format=pax --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime --sort=name --xattrs --xattrs-include='*' --xattrs-exclude='trusted.overlay.*' -S -cf '{X}' . && tar --full-time --xattrs -tvvf '{X}'; tar -xOf '{X}' | sha256sum".replace("{X}", &work.path().join("x.tar").display().to_string()).as_str(),
        )
    };
    sh(work.path(), &format!("chmod 1777 src/mnt; touch -r src/mnt '{}/mnt'; touch -r src '{0}'", tree.display()));
    let (left, right) = (dump(&src), dump(&tree));
    let differing: Vec<_> = left.lines().zip(right.lines()).filter(|(l, r)| l != r).collect();
    assert!(differing.is_empty(), "{differing:#?}");
    assert!(tree.join("holes").metadata().unwrap().blocks() < 100);
    for path in ["a", "a/f", "a/b", "cap", "."] {
        assert_eq!(xattrs(&tree.join(path)), xattrs(&src.join(path)), "{path}");
    }
    sh(&tree, "! getfattr -n trusted.overlay.redirect a/b 2>/dev/null");
    // One change of content, mode, time, owner or attribute changes the layer.
    let mut seen = vec![];
    for change in [
        "true",
        "echo y > src/a/f",
        "chmod 700 src/a/b",
        "touch -d @5 src/a/f",
        "chown 1 src/z",
        "setfattr -n user.u -v 2 src/a/f",
    ] {
        sh(work.path(), change);
        let now = store.import(&format!("rootfs:{}", src.display())).unwrap();
        assert!(!seen.contains(&now.digest), "{change}");
        seen.push(now.digest);
    }
    sh(work.path(), "rm -rf src");
    for tree in store.layers.values() {
        sh(Path::new("/"), &format!("rm -rf '{}'", tree.display()));
    }
}

#[test]
fn trees_that_cannot_be_copied_are_refused() {
    let work = tempfile::tempdir().unwrap();
    sh(work.path(), "mkdir whiteout; mknod whiteout/w c 0 0");
    let mut store = Store::new();
    let error = store.import(&format!("rootfs:{}/whiteout", work.path().display())).unwrap_err();
    assert!(error.to_string().contains("whiteout"), "{error}");
    let error = store.import(&format!("rootfs:{}", store.dir.path().display())).unwrap_err();
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("into itself"), "{error:?}");
    let error = store.import("rootfs:/does/not/exist").unwrap_err();
    assert!(matches!(error, ImportError::Read { .. }), "{error:?}");
    store.assert_staging_is_empty();
}

#[test]
fn a_damaged_layout_is_refused_by_name() {
    let work = tempfile::tempdir().unwrap();
    let layer = Tar::new().file("f", &[5; 5000]).end();
    let (digest, image) = (sha256(&layer), work.path().join("img"));
    let check = |change: &str| {
        sh(work.path(), "rm -rf img");
        layout(&image, std::slice::from_ref(&layer));
        sh(&image, change);
        let mut store = Store::new();
        let error = store.import(&format!("oci:{}", image.display())).unwrap_err();
        store.assert_staging_is_empty();
        error
    };
    let blob = format!("blobs/sha256/{}", digest.hex());
    let error = check(&format!("printf x | dd of={blob} bs=1 seek=600 conv=notrunc status=none"));
    assert!(matches!(&error, ImportError::Digest { what: "layer", stated, .. } if *stated == digest), "{error:?}");
    let error = check(&format!("printf x | dd of={blob} bs=1 seek=3 conv=notrunc status=none"));
    assert!(matches!(&error, ImportError::Digest { what: "layer", .. }), "a damaged header too: {error:?}");
    let error = check(&format!("truncate -s 3000 {blob}"));
    assert!(matches!(error, ImportError::Size { found: 3000, .. }), "{error:?}");
    let error = check(&format!("rm {blob}"));
    assert!(matches!(error, ImportError::Missing { what: "layer", .. }), "{error:?}");
    let error = check("sed -i 's/\"size\":[0-9]*/\"size\":9/' index.json");
    assert!(matches!(error, ImportError::Size { what: "manifest", .. }), "{error:?}");
    let error = check("sed -i 's/sha256:/sha512:/' index.json");
    assert!(matches!(error, ImportError::DigestKind { .. }), "{error:?}");
    let error = check("for f in blobs/sha256/*; do sed -i 's/linux/Linux/' $f; done");
    assert!(matches!(error, ImportError::Digest { what: "configuration", .. }), "{error:?}");
    let error = check("rm index.json");
    assert!(matches!(error, ImportError::NotThat { missing: "index.json", .. }), "{error:?}");
    let error = check("echo '{' > index.json");
    assert!(matches!(error, ImportError::Manifest(ManifestError::Malformed { .. })), "{error:?}");
    let error = check("truncate -s 5M index.json");
    assert!(matches!(error, ImportError::DocumentTooLong { .. }), "{error:?}");
}

/// A manifest list with attestations, variants and a nested index; and names.
#[test]
fn the_image_for_the_platform_is_chosen() {
    let work = tempfile::tempdir().unwrap();
    let image = work.path().join("img");
    let blobs = image.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |text: &str| {
        let digest = sha256(text.as_bytes());
        std::fs::write(blobs.join(digest.hex()), text).unwrap();
        format!(r#""digest":"{digest}","size":{}"#, text.len())
    };
    let manifest = |mark: &str| {
        let config =
            put(&format!(r#"{{"architecture":"{mark}","os":"linux","config":null,"rootfs":{{"diff_ids":null}}}}"#));
        put(&format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json",{config}}},"layers":null}}"#
        ))
    };
    let entry = |mark: &str, platform: &str, annotations: &str| {
        format!(
            r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json",{},"platform":{{{platform}}},"annotations":{annotations}}}"#,
            manifest(mark)
        )
    };
    let entries = [
        entry(
            "attestation",
            r#""os":"unknown","architecture":"unknown""#,
            r#"{"vnd.docker.reference.type":"attestation-manifest"}"#,
        ),
        entry("windows", r#""os":"windows","architecture":"amd64""#, "null"),
        entry("arm5", r#""os":"linux","architecture":"arm","variant":"v5""#, "null"),
        entry("arm7", r#""os":"linux","architecture":"arm","variant":"v7""#, "{}"),
        entry("amd64v3", r#""os":"linux","architecture":"amd64","variant":"v3""#, "{}"),
        entry("amd64", r#""os":"linux","architecture":"amd64""#, "{}"),
        entry("arm64", r#""os":"linux","architecture":"arm64","variant":"v8""#, "{}"),
    ];
    let index = put(&format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(",")));
    let other = manifest("other");
    let top = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.index.v1+json",{index},"annotations":{{"org.opencontainers.image.ref.name":"docker.io/library/multi:v1"}}}},{{"mediaType":"application/vnd.oci.image.manifest.v1+json",{other},"annotations":{{"org.opencontainers.image.ref.name":"single"}}}}]}}"#
    );
    std::fs::write(image.join("index.json"), top).unwrap();
    let mut store = Store::new();
    let mut chosen = |tag: Option<&str>, platform: &str| {
        let mut options = store.options();
        options.platform = platform.parse().unwrap();
        let source = Source::Oci { path: image.clone(), tag: tag.map(str::to_owned) };
        import(&source, &options, &mut store, &perennial_registry::progress::Silent)
            .map(|i| i.config.architecture.unwrap())
    };
    let cases = [
        ("linux/amd64", "amd64"),
        ("linux/amd64/v3", "amd64v3"),
        ("linux/amd64/v2", "amd64"),
        ("linux/arm64", "arm64"),
        ("linux/arm/v7", "arm7"),
        ("linux/arm/v6", "arm5"),
    ];
    for (platform, expected) in cases {
        assert_eq!(chosen(Some("v1"), platform).unwrap(), expected, "{platform}");
    }
    assert_eq!(chosen(Some("single"), "linux/riscv64").unwrap(), "other", "an image that states no platform");
    let error = chosen(Some("v1"), "linux/riscv64").unwrap_err();
    assert!(
        matches!(&error, ImportError::Manifest(ManifestError::Platform { available, .. }) if available.contains("linux/arm/v7")),
        "{error}"
    );
    let error = chosen(None, "linux/amd64").unwrap_err();
    assert!(matches!(&error, ImportError::SeveralImages { available } if available.contains("single")), "{error}");
    let error = chosen(Some("v2"), "linux/amd64").unwrap_err();
    assert!(matches!(&error, ImportError::NoSuchTag { available, .. } if available.contains("multi:v1")), "{error}");
    for text in ["windows/amd64", "linux", "linux/", "linux/arm/v7/x"] {
        text.parse::<Platform>().unwrap_err();
    }
}

#[test]
fn sources_are_read_as_people_write_them() {
    let there = |path: &Path| path == Path::new("a:b");
    let parse = |text: &str| Source::parse(text, &there);
    let path = PathBuf::from;
    assert_eq!(parse("oci:dir").unwrap(), Source::Oci { path: path("dir"), tag: None });
    assert_eq!(parse("oci:dir:tag").unwrap(), Source::Oci { path: path("dir"), tag: Some("tag".into()) });
    assert_eq!(parse("oci:a:b").unwrap(), Source::Oci { path: path("a:b"), tag: None });
    let reference = Some("docker.io/x/y:1".to_owned());
    assert_eq!(
        parse("docker-archive:f.tar:docker.io/x/y:1").unwrap(),
        Source::DockerArchive { path: path("f.tar"), reference }
    );
    assert_eq!(parse("oci-archive:f.tar:").unwrap(), Source::OciArchive { path: path("f.tar"), tag: None });
    assert_eq!(parse("rootfs:/x:y").unwrap(), Source::Rootfs { path: path("/x:y") });
    for text in ["", "debian", "docker://x", "docker.io/debian:12", "OCI:dir"] {
        let error = parse(text).unwrap_err();
        assert!(error.to_string().contains("oci-archive:FILE"), "{error}");
    }
    assert!(matches!(parse("oci::tag"), Err(SourceError::NoPath { .. })));
    for text in ["oci:d:t", "rootfs:x", "docker-archive:f:n/m:t"] {
        assert_eq!(parse(text).unwrap().to_string(), text);
    }
}

#[test]
fn a_bare_path_is_taken_for_what_it_plainly_is() {
    let work = tempfile::tempdir().unwrap();
    layout(&work.path().join("img"), &[Tar::new().file("f", b"x").end()]);
    sh(
        work.path(),
        "skopeo copy -q oci:img oci-archive:o.tar; skopeo copy -q oci:img docker-archive:d.tar
         mkdir -p root/usr root/etc both/usr both/etc nothing; cp -r img/* both; tar cf r.tar.gz -z -C root .; echo hello > text",
    );
    let find = |name: &str| Source::find(work.path().join(name).to_str().unwrap());
    assert!(matches!(find("img"), Ok(Source::Oci { .. })));
    assert!(matches!(find("o.tar"), Ok(Source::OciArchive { .. })));
    assert!(matches!(find("d.tar"), Ok(Source::DockerArchive { .. })));
    assert!(matches!(find("root"), Ok(Source::Rootfs { .. })));
    assert!(matches!(find("r.tar.gz"), Ok(Source::Rootfs { .. })));
    for name in ["both", "nothing", "text"] {
        let error = find(name).unwrap_err();
        assert!(matches!(error, SourceError::Ambiguous { .. }), "{name}: {error}");
        assert!(error.to_string().contains("docker-archive:FILE"), "{error}");
    }
    assert!(matches!(find("missing"), Err(SourceError::Form { .. })));
}

#[test]
fn an_archive_of_docker_save_with_several_images_needs_a_name() {
    let work = tempfile::tempdir().unwrap();
    let layer = Tar::new().file("f", b"x").end();
    let config = format!(
        r#"{{"os":"linux","architecture":"amd64","rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
        sha256(&layer)
    );
    let name = format!("{}.json", sha256(config.as_bytes()).hex());
    let manifest = format!(
        r#"[{{"Config":"{name}","RepoTags":["one:latest"],"Layers":["l/layer.tar"]}},{{"Config":"{name}","RepoTags":["docker.io/library/two:v2"],"Layers":["real.tar"]}}]"#
    );
    let archive = Tar::new()
        .dir("l")
        .symlink("l/layer.tar", "../real.tar")
        .file("real.tar", &layer)
        .file(&name, config.as_bytes());
    let archive = archive.file("manifest.json", manifest.as_bytes()).end();
    let path = work.path().join("d.tar");
    std::fs::write(&path, &archive).unwrap();
    let mut store = Store::new();
    let mut import = |reference: &str| store.import(&format!("docker-archive:{}{reference}", path.display()));
    let error = import("").unwrap_err();
    assert!(
        matches!(&error, ImportError::SeveralImages { available } if available == "one:latest, docker.io/library/two:v2"),
        "{error}"
    );
    for reference in [":one", ":one:latest", ":docker.io/library/one", ":two:v2"] {
        let imported = import(reference).unwrap();
        assert_eq!(imported.digest, sha256(config.as_bytes()), "without a manifest, the configuration is the identity");
    }
    assert!(matches!(import(":three").unwrap_err(), ImportError::NoSuchTag { .. }));
    drop(Mount::new(&store.layers.values().cloned().collect::<Vec<_>>()));
}
