//! Images made by other tools, imported, mounted, and compared with what those tools show.

mod common;

use common::{Store, assert_same_listing, assert_same_tree, listing, sh};
use std::path::Path;

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
    let _ = assert_same_listing;
    let _ = listing;
}
