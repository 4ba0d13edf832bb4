//! Unions with sealed layers: file systems from a file whose files have their content in a directory of data, what an
//! upper over them may hold, and who could put a content in another one's place.
#![cfg(test)]

use perennial_runtime::mount::{
    Handing, LayerNeeds, Lower, MountApi, MountError, OverlayPlan, Upper, leaves_redirects, mount, mount_detached,
    mount_with, mounts_under, recorded_options, unmount,
};
use perennial_runtime::probe;
use rustix::fs::{Mode, OFlags, XattrFlags, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(5);
/// How sealed layers reach overlayfs.
const HANDINGS: [Handing; 2] = [Handing::Descriptor, Handing::Attached];
/// Name of an object as the store spells it, and the secret directory in front of it.
const OBJECT: &str = "e6/28ca0000000000000000000000000000000000000000000000000000000000";
const SECRET: &str = "0123456789abcdef0123456789abcdef";
/// Larger than a page, so that a copy of the content would show.
const CONTENT_BYTES: usize = 1 << 20;

struct Stack {
    dir: tempfile::TempDir,
}

impl Stack {
    /// A sealed layer whose `big` and `dir/small` get their content from `redirect`, and an image below it.
    fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests mount and need root");
        let stack = Self { dir: tempfile::tempdir().unwrap() };
        for name in ["image", "upper", "work", "merged"] {
            std::fs::create_dir(stack.path(name)).unwrap();
        }
        put(&stack.path(&format!("objects/{SECRET}/{OBJECT}")), 'o');
        put(&stack.path(&format!("objects/{OBJECT}")), 'o');
        stack
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes an EROFS image of a layer whose files redirect there, and mounts it where nobody sees it.
    fn sealed(&self, redirect: &str) -> OwnedFd {
        let tree = self.path("tree");
        for file in ["big", "dir/small"] {
            put(&tree.join(file), 'o');
            let file = tree.join(file);
            let open = std::fs::File::options().write(true).open(&file).unwrap();
            open.set_len(0).unwrap();
            open.set_len(CONTENT_BYTES as u64).unwrap();
            let flags = XattrFlags::empty();
            rustix::fs::setxattr(&file, "trusted.overlay.metacopy", b"", flags).unwrap();
            rustix::fs::setxattr(&file, "trusted.overlay.redirect", redirect.as_bytes(), flags).unwrap();
        }
        let image = self.path("meta.erofs");
        let made = std::process::Command::new("mkfs.erofs").arg("--quiet").arg(&image).arg(&tree).output();
        let made = made.expect("mkfs.erofs is installed (package erofs-utils)");
        assert!(made.status.success(), "{made:?}");
        std::fs::remove_dir_all(tree).unwrap();
        let fs = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        fsconfig_set_string(&fs, "source", &image).unwrap();
        fsconfig_set_flag(&fs, "ro").unwrap();
        fsconfig_create(&fs).unwrap();
        fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY).unwrap()
    }

    fn plan(&self, redirect: &str) -> OverlayPlan {
        OverlayPlan {
            lowers: vec![Lower::of_fd(self.sealed(redirect)), self.path("image").into()],
            data: Some(self.path("objects")),
            upper: Some(Upper { upper: self.path("upper"), work: self.path("work") }),
            read_only: false,
        }
    }

    /// Mounts the layer over the image in every way and returns the first byte of what its file shows.
    fn shows(&self, redirect: &str) -> char {
        let merged = self.path("merged");
        let shown = HANDINGS.map(|handing| {
            mount_with(&self.plan(redirect), &merged, MountApi::Context(handing)).unwrap();
            let content = std::fs::read(merged.join("big")).unwrap();
            assert_eq!(content.len(), CONTENT_BYTES);
            unmount(&merged, PATIENCE).unwrap();
            char::from(content[0])
        });
        assert_eq!(shown[0], shown[1], "{HANDINGS:?}");
        shown[0]
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        for entry in mounts_under(self.dir.path()).unwrap().into_iter().rev() {
            drop(unmount(&entry.target, PATIENCE));
        }
    }
}

fn put(path: &Path, letter: char) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut file = std::fs::File::create(path).unwrap();
    std::io::Write::write_all(&mut file, &vec![u8::try_from(letter).unwrap(); CONTENT_BYTES]).unwrap();
}

fn secret_redirect() -> String {
    format!("/{SECRET}/{OBJECT}")
}

#[test]
fn a_sealed_layer_shows_the_content_of_its_objects_and_no_object_by_name() {
    let stack = Stack::new();
    put(&stack.path("image/from-image"), 'i');
    assert_eq!(stack.shows(&secret_redirect()), 'o');
    let merged = stack.path("merged");
    for handing in HANDINGS {
        let options = mount_with(&stack.plan(&secret_redirect()), &merged, MountApi::Context(handing)).unwrap();
        check_union(&stack, &options);
        unmount(&merged, PATIENCE).unwrap();
    }
}

/// Checks the union of a sealed layer and an image at `merged`.
fn check_union(stack: &Stack, options: &[String]) {
    let merged = stack.path("merged");
    assert!(merged.join("from-image").exists());
    let mut names: Vec<_> = std::fs::read_dir(&merged).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["big", "dir", "from-image"], "nothing of the directory of data shows");
    assert!(!merged.join(SECRET).exists());
    let device = |path: &str| merged.join(path).symlink_metadata().unwrap().dev();
    assert_eq!(device("dir"), device("big"), "the union is one device");
    assert_eq!(device("from-image"), device("big"), "the union is one device");
    for option in ["metacopy=on", "redirect_dir=on", "index=off", "nfs_export=off", "uuid=null"] {
        assert!(options.iter().any(|set| set == option), "{option} in {options:?}");
    }
    assert_eq!(options, recorded_options(LayerNeeds::Data));
    assert!(leaves_redirects(options) && !leaves_redirects(&recorded_options(LayerNeeds::Nothing)));
}

#[test]
fn one_sealed_layer_alone_can_be_looked_at() {
    let stack = Stack::new();
    let plan =
        OverlayPlan::read_only(vec![Lower::of_fd(stack.sealed(&secret_redirect()))], Some(stack.path("objects")));
    let view = mount_detached(&plan).unwrap();
    let file = openat(&view, "dir/small", OFlags::RDONLY, Mode::empty()).unwrap();
    let mut content = Vec::new();
    std::io::Read::read_to_end(&mut std::fs::File::from(file), &mut content).unwrap();
    assert_eq!((content.len(), content[0]), (CONTENT_BYTES, b'o'));
}

/// The trap of data-only layers: an absolute redirect is looked up in the ordinary layers first, so a layer that holds
/// the name of an object replaces the content. What keeps it from doing so is that nobody inside knows the name.
#[test]
fn an_image_cannot_replace_an_object_unless_it_knows_the_secret() {
    let stack = Stack::new();
    put(&stack.path(&format!("image/{OBJECT}")), 'E');
    assert_eq!(stack.shows(&format!("/{OBJECT}")), 'E', "without a secret the image's file is shown");
    assert_eq!(stack.shows(&secret_redirect()), 'o', "with it the object is");
    put(&stack.path(&format!("image/{SECRET}/{OBJECT}")), 'E');
    assert_eq!(stack.shows(&secret_redirect()), 'E', "so a layer with that name must never come into a store");
}

/// What is attached for the call is attached for nobody else, and no longer than the call.
#[test]
fn layers_that_were_attached_for_a_union_are_mounted_nowhere() {
    let stack = Stack::new();
    let merged = stack.path("merged");
    // Other tests mount at the same time, but none attaches a layer where this one looks.
    let layers = || {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        table.lines().filter(|line| line.contains(" - erofs ") || line.contains(" /proc/fs ")).count()
    };
    mount_with(&stack.plan(&secret_redirect()), &merged, MountApi::Context(Handing::Attached)).unwrap();
    assert_eq!(layers(), 0);
    assert_eq!(mounts_under(stack.dir.path()).unwrap().len(), 1, "the union and nothing else");
    unmount(&merged, PATIENCE).unwrap();
    assert!(mounts_under(stack.dir.path()).unwrap().is_empty());
}

#[test]
fn how_sealed_layers_are_handed_over_is_found_by_trying() {
    let stack = Stack::new();
    std::fs::create_dir_all(stack.path("objects")).unwrap();
    let layer = || Ok::<_, Box<dyn std::error::Error>>(stack.sealed(&secret_redirect()));
    let found = probe::sealed(layer, &stack.path("objects"), &stack.path("trial")).unwrap();
    // Linux 6.15 and newer; what older kernels take is tried on them, in a virtual machine.
    assert_eq!(found, Handing::Descriptor);
    let refused = probe::sealed(layer, &stack.path("no-objects"), &stack.path("trial")).unwrap_err();
    assert!(refused.to_string().contains("no-objects"), "{refused}");
    assert!(!stack.path("trial").exists());
}

#[test]
fn changed_metadata_and_moved_directories_copy_no_content() {
    let stack = Stack::new();
    let merged = stack.path("merged");
    mount(&stack.plan(&secret_redirect()), &merged).unwrap();
    std::fs::set_permissions(merged.join("big"), std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::rename(merged.join("dir"), merged.join("moved")).unwrap();
    assert_eq!(std::fs::read(merged.join("moved/small")).unwrap()[0], b'o');
    unmount(&merged, PATIENCE).unwrap();
    let upper = stack.path("upper");
    let attribute = |path: &str, name: &str| {
        let mut value = [0_u8; 256];
        let length = rustix::fs::lgetxattr(upper.join(path), name, &mut value).unwrap();
        String::from_utf8(value[..length].to_vec()).unwrap()
    };
    let allocated = upper.join("big").metadata().unwrap().blocks() * 512;
    assert!(allocated <= 4096, "only metadata, perhaps a block of attributes: {allocated} bytes");
    drop(attribute("big", "trusted.overlay.metacopy"));
    // Relative, because its parent directory is the same.
    assert_eq!(attribute("moved", "trusted.overlay.redirect"), "dir");
    // The same layers under the same changes, once more.
    let mut plan = stack.plan(&secret_redirect());
    plan.lowers.insert(0, upper.into());
    plan.upper = Some(Upper { upper: stack.path("upper2"), work: stack.path("work2") });
    std::fs::create_dir(stack.path("upper2")).unwrap();
    std::fs::create_dir(stack.path("work2")).unwrap();
    mount(&plan, &merged).unwrap();
    assert_eq!(merged.join("big").metadata().unwrap().mode() & 0o7777, 0o600);
    assert_eq!(std::fs::read(merged.join("big")).unwrap().len(), CONTENT_BYTES);
    assert_eq!(std::fs::read(merged.join("moved/small")).unwrap()[0], b'o');
    unmount(&merged, PATIENCE).unwrap();
}

#[test]
fn the_old_way_refuses_sealed_layers_and_refusals_carry_the_kernels_words() {
    let stack = Stack::new();
    let merged = stack.path("merged");
    let error = mount_with(&stack.plan(&secret_redirect()), &merged, MountApi::Legacy).unwrap_err();
    assert!(matches!(error, MountError::NeedsContext { .. }), "{error}");
    let mut plan = stack.plan(&secret_redirect());
    plan.data = Some(stack.path("no-objects"));
    let error = mount(&plan, &merged).unwrap_err().to_string();
    assert!(error.contains("datadir+") && error.contains("no-objects"), "{error}");
    assert!(mounts_under(stack.dir.path()).unwrap().is_empty());
}
