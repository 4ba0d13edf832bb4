//! Looking at a container's program in its tree: links stay inside, and what is mounted over is not judged.
#![cfg(test)]

use perennial_core::process::{ExecRefusal, Process, ProcessFacts, ResolvedUser, resolve};
use perennial_core::spec::{ContainerSpec, Volume};
use perennial_runtime::program::check;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

fn process(program: &str) -> Process {
    let facts = ProcessFacts { user: ResolvedUser::default(), hostname: "box".to_owned() };
    resolve(&ContainerSpec::default(), &Default::default(), Some(&[program.to_owned()]), &facts).unwrap()
}

fn script(root: &Path, path: &str, interpreter: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::File::create(&path).unwrap().write_all(format!("#!{interpreter}\n").as_bytes()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn volumes(targets: &[&str]) -> Vec<Volume> {
    let volume = |target: &&str| Volume { source: "/tmp".to_owned(), target: (*target).to_owned(), read_only: false };
    targets.iter().map(volume).collect()
}

#[test]
fn links_are_followed_inside_the_tree_only() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    script(root, "usr/bin/app", "/opt/there");
    fs::create_dir(root.join("opt")).unwrap();
    // Each of them leads out of the tree where somebody follows it on the host: /bin/sh is there.
    for target in ["/bin/sh", "../../../../../../../../../../bin/sh"] {
        symlink(target, root.join("opt/there")).unwrap();
        let refusal = check(root, &process("app"), &[], false).unwrap_err();
        assert!(matches!(refusal, ExecRefusal::InterpreterMissing { .. }), "{refusal:?}");
        fs::remove_file(root.join("opt/there")).unwrap();
    }
    symlink("../own/ld", root.join("opt/there")).unwrap();
    fs::create_dir(root.join("own")).unwrap();
    fs::copy("/proc/self/exe", root.join("own/ld")).unwrap();
    symlink("usr/bin", root.join("bin")).unwrap();
    let loader = check(root, &process("/bin/app"), &[], false).unwrap_err().to_string();
    assert!(loader.contains("/opt/there") && loader.contains("ld-linux"), "{loader}");
    symlink("circle", root.join("usr/bin/circle")).unwrap();
    assert_eq!(check(root, &process("circle"), &[], true), Ok(()));
}

#[test]
fn what_lies_in_a_mount_is_left_to_the_runtime() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    script(root, "usr/bin/app", "/opt/ld");
    script(root, "usr/bin/in-proc", "/proc/self/exe");
    script(root, "usr/bin/by-link", "/there/ld");
    symlink("/srv/volume", root.join("there")).unwrap();
    let said = |program: &str, targets: &[&str]| check(root, &process(program), &volumes(targets), false).is_ok();
    assert!(!said("app", &[]) && !said("by-link", &[]) && said("in-proc", &[]));
    assert!(!said("app", &["/data", "/opt/ld/below", "/optional"]));
    for target in ["/opt", "/opt/ld", "/usr", "/usr/bin/app", "/usr/local/bin", "/"] {
        assert!(said("app", &[target]), "{target}");
    }
    for target in ["/srv", "/srv/volume", "/there", "/there/ld"] {
        assert!(said("by-link", &[target]), "{target}");
    }
    assert!(!said("by-link", &["/srv/volumes"]));
}
