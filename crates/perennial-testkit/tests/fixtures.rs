//! The images, the file systems and the driver do what they say.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use perennial_testkit::cli::{Perennial, mounts_below};
use perennial_testkit::host::{now, run, write};
use perennial_testkit::image::{self, Compression, ImageText};
use perennial_testkit::loopfs::{FsKind, LoopFs};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::Duration;

#[test]
fn busybox_image_is_made_in_a_moment_and_other_tools_read_it() {
    let dir = tempfile::tempdir().unwrap();
    let started = now();
    image::busybox_oci(&dir.path().join("oci")).unwrap();
    println!("busybox layout in {:?}", now() - started);
    image::oci_archive(&dir.path().join("oci"), &dir.path().join("oci.tar")).unwrap();
    for source in ["oci:DIR/oci:latest", "oci-archive:DIR/oci.tar"] {
        let source = source.replace("DIR", dir.path().to_str().unwrap());
        let output = run(Command::new("skopeo").arg("inspect").arg(source)).unwrap();
        assert!(String::from_utf8_lossy(&output.stdout).contains("sha256:"));
    }
}

#[test]
fn layered_image_is_readable_in_every_compression() {
    let dir = tempfile::tempdir().unwrap();
    let (base, change) = (dir.path().join("base"), dir.path().join("change"));
    image::busybox_rootfs(&base).unwrap();
    fs::create_dir_all(change.join("etc")).unwrap();
    write(change.join("etc/.wh.os-release"), "").unwrap();
    for (number, compression) in [Compression::None, Compression::Gzip, Compression::Zstd].into_iter().enumerate() {
        let layout = dir.path().join(number.to_string());
        image::oci_layout(&layout, &[&base, &change], &ImageText::default(), compression).unwrap();
        let copy = dir.path().join(format!("{number}.copy"));
        let (from, to) = (format!("oci:{}:latest", layout.display()), format!("dir:{}", copy.display()));
        run(Command::new("skopeo").args(["copy", "--quiet", &from, &to])).unwrap();
    }
    let archive = dir.path().join("docker.tar");
    image::docker_archive(&archive, &[&base, &change], &ImageText::default(), "example/box:1").unwrap();
    run(Command::new("skopeo").arg("inspect").arg(format!("docker-archive:{}", archive.display()))).unwrap();
}

#[test]
fn dynamic_program_runs_inside_the_root_file_system() {
    let dir = tempfile::tempdir().unwrap();
    image::busybox_rootfs(dir.path()).unwrap();
    image::add_program(dir.path(), "/usr/bin/stat".as_ref(), "/bin/gnu-stat").unwrap();
    let output = run(Command::new("chroot").arg(dir.path()).args(["/bin/gnu-stat", "-c", "%a", "/tmp"])).unwrap();
    assert_eq!(output.stdout, b"1777\n");
}

#[test]
fn every_kind_of_file_system_mounts_and_leaves_nothing() {
    for kind in FsKind::ALL {
        let disk = LoopFs::new(kind, 0).unwrap();
        write(disk.path().join("file"), "x").unwrap();
        let path = disk.path();
        assert_eq!(mounts_below(path.parent().unwrap()).unwrap(), [path.as_path()]);
        drop(disk);
        assert!(!path.exists());
        assert_eq!(mounts_below(path.parent().unwrap()).unwrap(), [""; 0].map(std::path::PathBuf::from));
    }
}

#[test]
fn full_file_system_refuses_and_recovers() {
    let disk = LoopFs::small().unwrap();
    let filler = disk.fill(1 << 20).unwrap();
    assert!(disk.bytes_free().unwrap() <= 1 << 20);
    assert!(write(disk.path().join("big"), vec![1; 4 << 20]).is_err());
    filler.release().unwrap();
    write(disk.path().join("big"), vec![1; 4 << 20]).unwrap();
}

/// A stand-in for the command under test.
fn script(dir: &std::path::Path, text: &str) -> Perennial {
    let path = dir.join("program");
    write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let root = dir.join("root");
    fs::create_dir_all(&root).unwrap();
    Perennial::at(path, root)
}

#[test]
fn driver_reports_codes_output_and_json() {
    let dir = tempfile::tempdir().unwrap();
    let cli = script(dir.path(), r#"echo '{"generations":[{"seq":3},{"seq":5}]}'; cat >&2; exit ${CODE:-0}"#);
    assert_eq!(cli.seqs("web").unwrap(), [3, 5]);
    let failed = cli.clone().env("CODE", "7").run_with(&["x"], b"some input").unwrap();
    assert_eq!((failed.code(), failed.err().as_str()), (7, "some input"));
    assert!(failed.ok().unwrap_err().to_string().contains("code 7"));
    assert!(cli.refused(&["x"]).is_err());
}

#[test]
fn driver_gives_up_on_a_command_that_hangs_and_not_on_its_children() {
    let dir = tempfile::tempdir().unwrap();
    let hangs = script(dir.path(), "exec sleep 60").limit(Duration::from_millis(300));
    assert!(hangs.run(&["x"]).unwrap_err().to_string().contains("still ran"));
    let leaves_a_child = script(dir.path(), "sleep 3 &").limit(Duration::from_secs(2));
    leaves_a_child.ok(&["x"]).unwrap();
}

#[test]
fn leaks_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let cli = script(dir.path(), "sleep 60; true");
    cli.assert_no_leaks(&["testkit-leak"]).unwrap();
    for name in ["runs/1", "staging/x", "mnt"] {
        fs::create_dir_all(cli.root().join(name)).unwrap();
    }
    run(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(cli.root().join("mnt"))).unwrap();
    let cgroup = std::path::Path::new("/sys/fs/cgroup/pids/testkit-leak");
    let cgroup = if cgroup.parent().unwrap().exists() { cgroup } else { "/sys/fs/cgroup/testkit-leak".as_ref() };
    fs::create_dir(cgroup).unwrap();
    let mut child = cli.spawn(&["x"]).unwrap();
    let mut apart = Command::new("unshare")
        .args(["--mount", "sh", "-c", "mount -t tmpfs \"$1\" /mnt; exec sleep 60", "x"])
        .arg(cli.root().join("private").into_os_string())
        .spawn()
        .unwrap();
    let apart_mark = format!("process {}: sleep 60 ", apart.id());
    perennial_testkit::host::wait_until("the private mount", Duration::from_secs(5), || {
        Ok(cli.leaks(&[])?.contains(&apart_mark))
    })
    .unwrap();
    let leaks = cli.leaks(&["testkit-leak"]).unwrap().join("\n");
    for word in ["mount ", "/runs/1", "/staging/x", "cgroup ", &format!("process {}", child.id()), &apart_mark] {
        assert!(leaks.contains(word), "no {word:?} in\n{leaks}");
    }
    fs::remove_dir(cgroup).unwrap();
    cli.clean_up().unwrap();
    child.wait().unwrap();
    apart.wait().unwrap();
    for name in ["runs/1", "staging/x"] {
        fs::remove_dir(cli.root().join(name)).unwrap();
    }
    cli.assert_no_leaks(&["testkit-leak"]).unwrap();
}

#[test]
fn minimal_debian_runs_the_actor() {
    let dir = tempfile::tempdir().unwrap();
    let started = now();
    perennial_testkit::actor::debian_oci(&dir.path().join("oci")).unwrap();
    println!("Debian layout in {:?}", now() - started);
    let (source, bundle) = (format!("{}:latest", dir.path().join("oci").display()), dir.path().join("bundle"));
    run(Command::new("umoci").args(["unpack", "--image", &source]).arg(&bundle)).unwrap();
    let rootfs = bundle.join("rootfs");
    let output = run(Command::new("chroot").arg(&rootfs).args([perennial_testkit::actor::ACTOR, "cases"])).unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("whiteout"));
}
