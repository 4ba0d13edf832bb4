//! `diff`, `browse`, `cp`: what they show of a generation, what they protect, and what they refuse.

mod stage;

use anyhow::{Result, ensure};
use perennial_testkit::tree::TreeListing;
use serde_json::{Value, json};
use stage::{Stage, names, text, write};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A directory to mount on; dropping it ends a mount that a failed test has left.
struct Target(PathBuf);

impl Target {
    fn new(stage: &Stage, name: &str) -> Result<Self> {
        let path = stage.path(name);
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    fn text(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    fn unmount(&self) -> Result<()> {
        ensure!(Command::new("umount").arg(&self.0).status()?.success(), "cannot unmount {}", self.text());
        Ok(())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // Usually nothing is mounted any more, and umount says so.
        Command::new("umount").arg("-l").arg(&self.0).stderr(Stdio::null()).status().ok();
    }
}

/// What `diff` prints, without the file that a run's name service is mounted on.
fn diff(stage: &Stage, args: &[&str]) -> Result<Vec<String>> {
    let out = stage.ok(&[&["diff"], args].concat())?.out();
    Ok(out.lines().filter(|line| !line.ends_with("/etc/resolv.conf")).map(str::to_owned).collect())
}

const FIRST: &str = "echo 1 >/etc/own; mkdir -p /srv/d/e; echo 1 >/srv/d/e/f; echo x >/srv/t; rm /etc/os-release";
const SECOND: &str =
    "echo longer >/etc/own; chmod 600 /srv/t; rm -r /srv/d/e; ln -s x /srv/d/e; touch /new; rm /etc/group";

#[test]
fn diff_lists_what_a_run_changed_with_its_kind() -> Result<()> {
    let stage = Stage::new()?;
    stage.sh_ok("web", FIRST)?;
    stage.sh_ok("web", SECOND)?;
    let second = ["D /etc/group", "M /etc/own", "A /new", "T /srv/d/e", "D /srv/d/e/f", "M /srv/t (metadata)"];
    assert_eq!(diff(&stage, &["web"])?, second, "the current generation against its parent");
    assert_eq!(diff(&stage, &["web@2", "1"])?, second);
    assert_eq!(
        diff(&stage, &["web@1"])?,
        ["D /etc/os-release", "A /etc/own", "A /srv", "A /srv/d", "A /srv/d/e", "A /srv/d/e/f", "A /srv/t"],
        "the first generation against its image"
    );
    let back = diff(&stage, &["web@1", "2"])?;
    assert_eq!(back, ["A /etc/group", "M /etc/own", "D /new", "T /srv/d/e", "A /srv/d/e/f", "M /srv/t (metadata)"]);
    assert!(diff(&stage, &["web", "image"])?.contains(&"A /srv/d/e".to_owned()));
    stage.sh_ok("web", "true")?;
    assert_eq!(diff(&stage, &["web"])?, [""; 0], "a run that changed nothing");
    Ok(())
}

#[test]
fn diff_says_in_json_what_text_cannot() -> Result<()> {
    let stage = Stage::new()?;
    stage.sh_ok("web", "echo 1 >/a; echo x >/m")?;
    stage.sh_ok("web", "echo 2 >/a; chmod 600 /m; touch \"$(printf '/b\\377')\"")?;
    let listed: Value = stage.json(&["diff", "web@2"])?;
    assert_eq!(
        (&listed["container"], &listed["from"], &listed["to"]),
        (&json!("web"), &json!({"seq": 1}), &json!({"seq": 2}))
    );
    let change = |path: &str| listed["changes"].as_array().unwrap().iter().find(|c| c["path"] == path).cloned();
    assert_eq!(change("/a"), Some(json!({"path": "/a", "kind": "M", "content": true, "metadata": true})));
    assert_eq!(change("/m"), Some(json!({"path": "/m", "kind": "M", "content": false, "metadata": true})));
    let odd = json!({"path": "/b\u{fffd}", "path_bytes": [b'/', b'b', 255], "kind": "A"});
    assert_eq!(change("/b\u{fffd}"), Some(odd));
    Ok(())
}

#[test]
fn diff_names_what_it_cannot_compare_with() -> Result<()> {
    let stage = Stage::new()?;
    stage.refused_with(&["diff", "web"], 3, &["web"])?;
    stage.ok(&["create", "web", "--image", "box", "--keep", "1"])?;
    stage.refused_with(&["diff", "web"], 3, &["has not exited once"])?;
    stage.sh_ok("web", "touch /a")?;
    stage.sh_ok("web", "touch /b")?;
    stage.quiet()?;
    stage.refused_unchanged(&["diff", "web"], 3, &["generation 1", "web@2", "`image`"])?;
    stage.refused_unchanged(&["diff", "web@1"], 3, &["no generation 1"])?;
    stage.refused_unchanged(&["diff", "web@2", "x"], 2, &["x"])?;
    assert!(diff(&stage, &["web", "image"])?.contains(&"A /a".to_owned()));
    Ok(())
}

#[test]
fn browse_shows_the_very_tree_and_lets_nobody_write() -> Result<()> {
    let stage = Stage::new()?;
    stage.sh_ok("web", FIRST)?;
    let view = Target::new(&stage, "view")?;
    let shown: Value = stage.json(&["browse", "web@1", view.text()])?;
    assert_eq!(shown, json!({"container": "web", "seq": 1, "target": view.text(), "mounted": true}));
    stage.ok(&["start", "web", "--detach", "--", "sleep", "1000"])?;
    // The run's own mount points differ; what it shows besides is the generation.
    let of_run = stage.seen_in("web")?.without("proc").without("sys").without("dev");
    let of_view = TreeListing::of(&view.0)?.without("proc").without("sys").without("dev");
    assert_eq!(of_run.entries.keys().collect::<Vec<_>>(), of_view.entries.keys().collect::<Vec<_>>());
    for path in ["etc", "srv", "bin"] {
        assert_eq!(of_run.below(path), of_view.below(path), "{path}");
    }
    assert!(fs::File::create(view.0.join("x")).is_err());
    stage.ok(&["rm", "--force", "web"])?;
    assert_eq!(TreeListing::of(&view.0)?.below("srv"), of_view.below("srv"), "the container is gone");
    stage.refused_with(&["image", "rm", "box"], 4, &["view", view.text()])?;
    stage.ok(&["browse", "--unmount", view.text()])?;
    assert!(names(&view.0)?.is_empty());
    assert_eq!(stage.layers()?.len(), 1, "only the image's layer is left");
    stage.ok(&["image", "rm", "box"])?;
    assert!(stage.layers()?.is_empty());
    Ok(())
}

#[test]
fn the_layers_of_a_view_are_neither_folded_nor_freed() -> Result<()> {
    let stage = Stage::new()?;
    // Directories are folded into each other; of sealed layers new ones are made.
    stage.ok(&["create", "web", "--image", "box", "--keep", "2", "--seal", "never"])?;
    for number in 1..=3 {
        stage.sh_ok("web", &format!("echo {number} >/f{number}; echo {number} >/f; mkdir /d{number}"))?;
    }
    stage.quiet()?;
    let view = Target::new(&stage, "view")?;
    stage.ok(&["browse", "web@3", view.text()])?;
    let before = TreeListing::of(&view.0)?;
    for number in 4..=8 {
        stage.sh_ok("web", &format!("rm -rf /f1 /d1; echo {number} >/f; rm -rf /d{}", number - 2))?;
    }
    stage.ok(&["gc"])?;
    assert_eq!(stage.seqs("web")?, [7, 8]);
    assert_eq!(TreeListing::of(&view.0)?, before);
    let protected = stage.layers()?.len();
    stage.ok(&["browse", "--unmount", view.text()])?;
    stage.sh_ok("web", "touch /last")?;
    stage.quiet()?;
    stage.ok(&["gc"])?;
    assert!(stage.layers()?.len() < protected, "what the view held is folded or freed after it");
    assert_eq!(stage.sh_ok("web", "cat /f; ls -d /d[0-9]* /f* /last 2>/dev/null || true")?, "8\n/f\n/f2\n/f3\n/last\n");
    Ok(())
}

#[test]
fn a_view_that_is_gone_protects_nothing() -> Result<()> {
    let stage = Stage::new()?;
    stage.sh_ok("web", "touch /a")?;
    let view = Target::new(&stage, "view")?;
    stage.ok(&["browse", "web", view.text()])?;
    stage.ok(&["rm", "web"])?;
    // As after a boot: the record is there and the mount is not.
    view.unmount()?;
    let diagnosis: Value = stage.json(&["doctor"])?;
    let objects: Vec<_> = diagnosis["findings"].as_array().unwrap().iter().map(|f| f["object"].clone()).collect();
    assert!(objects.contains(&json!(format!("view {}", view.text()))), "{diagnosis:#}");
    let planned: Value = stage.json(&["gc", "--dry-run"])?;
    assert_eq!(planned["plan"]["views"], json!([view.text()]));
    assert_eq!(planned["plan"]["layers"].as_array().map(Vec::len), Some(1));
    stage.ok(&["gc"])?;
    assert_eq!(stage.layers()?.len(), 1, "only the image's layer is left");
    stage.refused_with(&["browse", "--unmount", view.text()], 3, &[view.text()])?;
    Ok(())
}

#[test]
fn browse_refuses_what_it_cannot_mount_on() -> Result<()> {
    let stage = Stage::new()?;
    stage.sh_ok("web", "touch /a")?;
    let (full, view) = (stage.path("full"), Target::new(&stage, "view")?);
    fs::create_dir(&full)?;
    write(full.join("file"), "x")?;
    let inside = stage.root().join("staging");
    let file = full.join("file");
    let path = |path: &Path| path.display().to_string();
    for (target, named) in [(path(&full), "not empty"), (path(&file), "not a directory"), (path(&inside), "root")] {
        stage.refused_unchanged(&["browse", "web", &target], 2, &[&target, named])?;
    }
    stage.refused_unchanged(&["browse", "web", "/nonexistent/x"], 2, &["/nonexistent/x"])?;
    stage.refused_unchanged(&["browse", "web@7", view.text()], 3, &["7"])?;
    stage.ok(&["browse", "web", view.text()])?;
    stage.refused_unchanged(&["browse", "web", view.text()], 2, &["not empty"])?;
    let user = fs::File::open(view.0.join("a"))?;
    stage.refused_with(&["browse", "--unmount", view.text()], 4, &[view.text(), "in use", "fuser"])?;
    drop(user);
    stage.ok(&["browse", "--unmount", view.text()])?;
    Ok(())
}

#[test]
fn cp_copies_files_and_trees_with_everything() -> Result<()> {
    let stage = Stage::new()?;
    stage.sh_ok(
        "web",
        "mkdir -p /srv/d/e; echo 1 >/srv/d/f; ln /srv/d/f /srv/d/g; ln -s /etc/passwd /srv/d/l; mkfifo /srv/d/p; \
         chmod 4711 /srv/d/f; chown 12:34 /srv/d/e /srv/d/f; chmod 1777 /srv/d/e; touch -d '2001-02-03 04:05:06' /srv/d",
    )?;
    let view = Target::new(&stage, "view")?;
    stage.ok(&["browse", "web", view.text()])?;
    let expected = TreeListing::of(view.0.join("srv/d"))?;
    let to = |name: &str| stage.path(name).display().to_string();
    stage.ok(&["cp", "web@1:/srv/d", &to("copy")])?;
    assert_eq!(TreeListing::of(stage.path("copy"))?, expected, "under another name");
    fs::create_dir(stage.path("into"))?;
    let copied: Value = stage.json(&["cp", "web:/srv/d/", &to("into")])?;
    assert_eq!(text(&copied, "/target")?, to("into/d"));
    assert_eq!(copied["entries"], expected.entries.len() - 1);
    assert_eq!(TreeListing::of(stage.path("into/d"))?, expected, "into a directory");
    stage.ok(&["cp", "web:/srv/d/f", &to("file")])?;
    write(stage.path("file2"), "old")?;
    stage.ok(&["cp", "web:/srv/d/f", &to("file2")])?;
    assert_eq!(fs::read_to_string(stage.path("file2"))?, "1\n", "a file is replaced");
    stage.ok(&["browse", "--unmount", view.text()])?;
    Ok(())
}

#[test]
fn cp_never_leaves_the_generation_nor_overwrites_a_directory() -> Result<()> {
    let stage = Stage::new()?;
    stage.sh_ok("web", "ln -s ../../../../etc /out; ln -s /bin/../etc/passwd /pw; mkdir /d; touch /d/x")?;
    let to = |name: &str| stage.path(name).display().to_string();
    stage.ok(&["cp", "web:/out/passwd", &to("passwd")])?;
    assert!(fs::read_to_string(stage.path("passwd"))?.starts_with("root:x:0:0:root:/root:/bin/sh\nuser:"));
    stage.ok(&["cp", "web:/../../etc/group", &to("group")])?;
    assert!(fs::read_to_string(stage.path("group"))?.contains("extra:x:2000:user"));
    stage.ok(&["cp", "web:/pw", &to("link")])?;
    assert_eq!(fs::read_link(stage.path("link"))?, Path::new("/bin/../etc/passwd"), "a link is copied as one");
    fs::create_dir_all(stage.path("into/d"))?;
    write(stage.path("into/d/mine"), "x")?;
    stage.refused_unchanged(&["cp", "web:/d", &to("into")], 4, &["into/d", "not empty"])?;
    assert_eq!(names(&stage.path("into/d"))?, ["mine".to_owned()].into());
    stage.refused_unchanged(&["cp", "web:/nope", &to("x")], 3, &["/nope", "web@1"])?;
    stage.refused_unchanged(&["cp", "web:/d/x", &to("none/x")], 3, &["none"])?;
    stage.refused_unchanged(&["cp", "web", &to("x")], 2, &["NAME@SEQ:PATH"])?;
    let left: Vec<String> = names(&stage.path("."))?.into_iter().filter(|name| name.starts_with('.')).collect();
    assert_eq!(left, [""; 0], "nothing half-made is left");
    Ok(())
}
