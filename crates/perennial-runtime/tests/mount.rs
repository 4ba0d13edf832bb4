//! Unions on the kernel (row A6): both ways to mount, their options, views for reading, unmounting (row A17).
#![cfg(test)]

use perennial_runtime::clock;
use perennial_runtime::mount::{
    Handing, LayerNeeds, Lower, MountApi, MountError, OverlayPlan, Upper, is_mounted, mount, mount_detached,
    mount_with, mounts_under, parse_mountinfo, recorded_options, syncfs, unmount,
};
use perennial_runtime::probe::{self, Ability};
use rustix::fs::{AtFlags, Mode, OFlags, openat, statat};
use std::path::{Path, PathBuf};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(5);
/// Every way to mount that this kernel has.
const APIS: [MountApi; 3] =
    [MountApi::Context(Handing::Descriptor), MountApi::Context(Handing::Attached), MountApi::Legacy];

struct Layers {
    dir: tempfile::TempDir,
}

impl Layers {
    fn new(lowers: usize) -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests mount and need root");
        let layers = Self { dir: tempfile::tempdir().unwrap() };
        for number in 0..lowers {
            let lower = layers.lower(number);
            std::fs::create_dir(&lower).unwrap();
            put(&lower.join(format!("from-{number}")), "x");
            put(&lower.join("same"), &number.to_string());
        }
        for name in ["upper", "work", "merged"] {
            std::fs::create_dir(layers.path(name)).unwrap();
        }
        layers
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn lower(&self, number: usize) -> PathBuf {
        self.path(&format!("lower{number}"))
    }

    fn lowers(&self, count: usize) -> Vec<Lower> {
        (0..count).map(|number| self.lower(number).into()).collect()
    }

    fn writable(&self, lowers: usize) -> OverlayPlan {
        let upper = Some(Upper { upper: self.path("upper"), work: self.path("work") });
        OverlayPlan { lowers: self.lowers(lowers), data: None, upper, read_only: false }
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        for entry in mounts_under(self.dir.path()).unwrap().into_iter().rev() {
            drop(unmount(&entry.target, PATIENCE));
        }
    }
}

fn put(path: &Path, text: &str) {
    use std::io::Write as _;
    std::fs::File::create(path).unwrap().write_all(text.as_bytes()).unwrap();
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn the_newest_layer_wins_and_only_the_upper_is_written() {
    for api in APIS {
        let layers = Layers::new(3);
        let merged = layers.path("merged");
        let options = mount_with(&layers.writable(3), &merged, api).unwrap();
        assert_eq!(read(&merged.join("same")), "0", "{api:?}");
        assert!(merged.join("from-2").exists());
        put(&merged.join("same"), "changed");
        std::fs::remove_file(merged.join("from-1")).unwrap();
        assert_eq!(read(&layers.lower(0).join("same")), "0");
        assert_eq!(read(&layers.path("upper/same")), "changed");
        for option in ["metacopy=off", "index=off", "nfs_export=off"] {
            assert!(options.iter().any(|set| set == option), "{api:?}: {option} in {options:?}");
        }
        assert!(is_mounted(&merged).unwrap());
        syncfs(&merged).unwrap();
        unmount(&merged, PATIENCE).unwrap();
        assert!(!is_mounted(&merged).unwrap() && !merged.join("same").exists());
        unmount(&merged, PATIENCE).unwrap();
    }
}

#[test]
fn the_table_of_mounts_shows_layers_and_no_unwanted_option() {
    let layers = Layers::new(2);
    let merged = layers.path("merged");
    mount(&layers.writable(2), &merged).unwrap();
    let entries = mounts_under(layers.dir.path()).unwrap();
    assert_eq!(entries.len(), 1);
    let options = entries[0].super_options.to_str().unwrap();
    let first = options.find(layers.lower(0).to_str().unwrap()).unwrap();
    assert!(first < options.find(layers.lower(1).to_str().unwrap()).unwrap(), "newest first: {options}");
    for unwanted in ["index=on", "metacopy=on", "redirect_dir=on", "nfs_export=on", "volatile"] {
        assert!(!options.contains(unwanted), "{options}");
    }
    assert!(recorded_options(LayerNeeds::Nothing).iter().any(|option| options.contains(option.as_str())), "{options}");
}

#[test]
fn module_defaults_do_not_matter() {
    // The table does not print an option that equals the module's default, so what the upper gets is what counts.
    let layers = Layers::new(1);
    std::fs::create_dir(layers.lower(0).join("dir")).unwrap();
    let merged = layers.path("merged");
    mount(&layers.writable(1), &merged).unwrap();
    assert_eq!(std::fs::rename(merged.join("dir"), merged.join("moved")).unwrap_err().raw_os_error(), Some(18));
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(merged.join("same"), std::fs::Permissions::from_mode(0o600)).unwrap();
    unmount(&merged, PATIENCE).unwrap();
    assert_eq!(read(&layers.path("upper/same")), "0", "a changed mode copies the data too");
}

#[test]
fn views_for_reading_take_one_layer_or_many() {
    for count in [1, 2] {
        let layers = Layers::new(count);
        let merged = layers.path("merged");
        let plan = OverlayPlan::read_only(layers.lowers(count), None);
        for handing in [Handing::Descriptor, Handing::Attached] {
            mount_with(&plan, &merged, MountApi::Context(handing)).unwrap();
            assert_eq!(read(&merged.join("same")), "0");
            assert_eq!(std::fs::File::create(merged.join("new")).unwrap_err().raw_os_error(), Some(30), "{count}");
            unmount(&merged, PATIENCE).unwrap();
        }

        let detached = mount_detached(&plan).unwrap();
        assert!(statat(&detached, "same", AtFlags::empty()).is_ok());
        let created = openat(&detached, "new", OFlags::CREATE | OFlags::WRONLY, Mode::empty());
        assert_eq!(created.unwrap_err(), rustix::io::Errno::ROFS);
        assert!(mounts_under(layers.dir.path()).unwrap().is_empty());
    }
}

#[test]
fn long_paths_and_separators_in_names_are_no_obstacle() {
    let layers = Layers::new(0);
    let deep = layers.path(&format!("{}/{}", "d".repeat(200), "e".repeat(200)));
    let odd = layers.path("a:b,c\\d e");
    for lower in [&deep, &odd] {
        std::fs::create_dir_all(lower).unwrap();
    }
    put(&deep.join("deep"), "");
    put(&odd.join("odd"), "");
    let plan = OverlayPlan { lowers: vec![deep.into(), odd.into()], ..layers.writable(0) };
    for api in APIS {
        let merged = layers.path("merged");
        mount_with(&plan, &merged, api).unwrap_or_else(|error| panic!("{api:?}: {error}"));
        assert!(merged.join("deep").exists() && merged.join("odd").exists(), "{api:?}");
        unmount(&merged, PATIENCE).unwrap();
    }
}

#[test]
fn deep_stacks_mount_the_new_way_and_are_refused_clearly_the_old_way() {
    let layers = Layers::new(499);
    let merged = layers.path("merged");
    mount(&layers.writable(499), &merged).unwrap();
    assert!(merged.join("from-498").exists());
    unmount(&merged, PATIENCE).unwrap();
    let error = mount_with(&layers.writable(499), &merged, MountApi::Legacy).unwrap_err();
    assert!(matches!(error, MountError::OptionsTooLong { count: 499, bytes_max: 4095, .. }), "{error}");
    mount_with(&layers.writable(300), &merged, MountApi::Legacy).unwrap();
}

#[test]
fn refusals_carry_the_kernels_words() {
    let layers = Layers::new(1);
    let merged = layers.path("merged");
    let mut plan = layers.writable(1);
    plan.lowers.push(layers.path("missing").into());
    let error = mount(&plan, &merged).unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
    plan = layers.writable(1);
    plan.upper = Some(Upper { upper: layers.path("upper"), work: layers.path("upper/work") });
    std::fs::create_dir(layers.path("upper/work")).unwrap();
    let error = mount(&plan, &merged).unwrap_err().to_string();
    assert!(error.contains("workdir and upperdir"), "{error}");
    assert!(matches!(mount(&OverlayPlan::read_only(vec![], None), &merged), Err(MountError::NoLayers { .. })));
    assert!(mounts_under(layers.dir.path()).unwrap().is_empty());
}

#[test]
fn a_busy_union_is_told_in_time_and_stays() {
    let layers = Layers::new(1);
    let merged = layers.path("merged");
    mount(&layers.writable(1), &merged).unwrap();
    let open = std::fs::File::open(merged.join("same")).unwrap();
    let begin = clock::monotonic();
    let error = unmount(&merged, Duration::from_millis(200)).unwrap_err();
    let took = clock::monotonic() - begin;
    assert!(matches!(error, MountError::Busy { .. }), "{error}");
    assert!(took >= Duration::from_millis(200) && took < Duration::from_secs(2), "{took:?}");
    assert!(is_mounted(&merged).unwrap());
    drop(open);
    unmount(&merged, PATIENCE).unwrap();
}

#[test]
fn the_table_of_mounts_is_parsed_with_its_escapes() {
    let text =
        b"36 35 98:0 /mnt1 /mnt\\040two\\134 rw,noatime master:1 shared:2 - ext3 /dev/ro\\011ot rw,errors=continue\n\
        bad line\n37 35 0:5 / /p - proc proc rw\n38 1 0:6 / /x rw - tmpfs\n";
    let entries = parse_mountinfo(text);
    assert_eq!(entries.len(), 1, "{entries:?}");
    assert_eq!(entries[0].root, Path::new("/mnt1"));
    assert_eq!(entries[0].target, Path::new("/mnt two\\"));
    assert_eq!(entries[0].fs_type, "ext3");
    assert_eq!(entries[0].source, "/dev/ro\tot");
    assert!(entries[0].has_super_option("errors=continue") && !entries[0].has_super_option("errors"));
}

#[test]
fn abilities_are_found_by_trying() {
    let layers = Layers::new(0);
    let probe = probe::directory(layers.dir.path(), "trial").unwrap();
    for ability in [&probe.overlay, &probe.trusted_xattrs, &probe.whiteouts, &probe.d_type] {
        assert_eq!(*ability, Ability::Works, "{probe:?}");
    }
    assert!(!layers.path("trial").exists());
    let proc = probe::directory(Path::new("/proc"), "trial");
    assert!(proc.is_err());
    let host = probe::host("runc");
    assert!(host.runtime.unwrap().contains("runc"));
    assert!(probe::host("no-such-runtime").runtime.unwrap_err().contains("not installed"));
}
