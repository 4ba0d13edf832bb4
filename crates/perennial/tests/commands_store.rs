//! `doctor`, `gc`, `df`, `rm`: a whole root checked, freed and measured.

mod stage;

use anyhow::{Result, anyhow};
use perennial_store::records::sqlite::SqliteRecords;
use perennial_store::records::{RecordStore as _, Transaction, keys};
use perennial_testkit::host::wait_until;
use serde_json::{Value, json};
use stage::{IDLE, SOON, Stage, names, text, texts, write};
use std::collections::BTreeSet;
use std::fs;

/// Findings as `severity object: message`, without those about what this machine has installed.
fn findings(stage: &Stage, code: i32) -> Result<Vec<String>> {
    let run = stage.run(&["--json", "doctor"])?.code_is(code)?;
    let diagnosis: Value = run.json()?;
    assert_eq!(diagnosis.get("ok"), Some(&json!(code == 0)));
    let list = diagnosis.get("findings").and_then(Value::as_array);
    let list = list.ok_or_else(|| anyhow!("no findings in {diagnosis}"))?;
    let mut found = Vec::new();
    for finding in list {
        let object = text(finding, "/object")?;
        assert!(!text(finding, "/hint")?.is_empty(), "{finding}");
        if object != "host" {
            found.push(format!("{} {object}: {}", text(finding, "/severity")?, text(finding, "/message")?));
        }
    }
    Ok(found)
}

/// Kills the supervisor of a running container, as a crash would.
fn kill_supervisor(stage: &Stage, name: &str) -> Result<()> {
    let root = stage.root().display().to_string();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let arguments: Vec<&[u8]> = arguments.split(|byte| *byte == 0).collect();
        let has = |word: &str| arguments.contains(&word.as_bytes());
        if has(&root) && has("__supervise") && has(name) {
            let pid = rustix::process::Pid::from_raw(pid).ok_or_else(|| anyhow!("process 0"))?;
            rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
            return wait_until("the supervisor is gone", SOON, || {
                Ok(findings(stage, 0)?.iter().any(|finding| finding.contains("supervisor is gone")))
            });
        }
    }
    Err(anyhow!("{name} has no supervisor"))
}

#[test]
fn doctor_finds_nothing_in_a_sound_root_and_changes_nothing() -> Result<()> {
    let stage = Stage::new()?;
    stage.sh_ok("web", "touch /a")?;
    stage.ok(&["fork", "web", "copy"])?;
    stage.idle("live", &[])?;
    let before = stage.state()?;
    assert_eq!(findings(&stage, 0)?, [""; 0]);
    let told = stage.ok(&["doctor"])?.out();
    for word in ["kernel", "cgroups", "runc", "nothing is wrong"] {
        assert!(told.contains(word), "{told}");
    }
    before.assert_same(&stage.state()?)?;
    stage.ok(&["stop", "live"])?;
    Ok(())
}

#[test]
fn a29_doctor_names_the_generation_whose_layer_is_missing() -> Result<()> {
    let stage = Stage::new()?;
    stage.sh_ok("web", "touch /a")?;
    stage.sh_ok("web", "touch /b")?;
    stage.quiet()?;
    let layer = texts(&stage.generation("web", 2)?, "/layers")?.remove(0);
    fs::rename(stage.root().join("layers").join(&layer), stage.path("away"))?;
    let found = findings(&stage, 1)?;
    assert_eq!(found, [format!("error generation web@2: its layer {layer} is missing on disk")]);
    fs::rename(stage.path("away"), stage.root().join("layers").join(&layer))?;
    assert_eq!(findings(&stage, 0)?, [""; 0]);
    Ok(())
}

#[test]
fn doctor_goes_on_past_a_record_that_cannot_be_read() -> Result<()> {
    let stage = Stage::new()?;
    stage.sh_ok("web", "touch /a")?;
    stage.quiet()?;
    let id = text(&stage.inspect("web")?, "/id")?.parse()?;
    let records = SqliteRecords::open_or_create(&stage.root().join("records.db"))?;
    let key = keys::container(&id);
    let sound = records.get(&key)?.ok_or_else(|| anyhow!("no record {key}"))?.bytes;
    records.commit(&Transaction::new().put(&key, b"{}".to_vec()))?;
    let found = findings(&stage, 1)?;
    assert!(found.len() == 1 && found[0].starts_with(&format!("error record {key}: ")), "{found:?}");
    stage.refused_with(&["inspect", "web"], 6, &[&key])?;
    records.commit(&Transaction::new().put(&key, sound).delete(keys::name(&"web".parse()?)))?;
    assert_eq!(findings(&stage, 1)?, ["error container web: record name/web does not lead to it"]);
    Ok(())
}

#[test]
fn a28_what_belongs_to_no_container_is_set_aside_and_shown() -> Result<()> {
    let stage = Stage::new()?;
    let upper = stage.root().join("runs/0123456789abcdef/upper");
    fs::create_dir_all(&upper)?;
    write(upper.join("precious"), "x")?;
    fs::create_dir_all(stage.root().join("runs/00000000000000aa/upper"))?;
    let found = findings(&stage, 0)?;
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].contains("run 00000000000000aa: a run directory that no container names"), "{found:?}");
    assert!(found[1].contains(&upper.display().to_string()), "{found:?}");
    let told = stage.ok(&["gc"])?.out();
    assert!(told.contains(&upper.display().to_string()), "{told}");
    assert_eq!(names(&stage.root().join("runs"))?, ["0123456789abcdef".to_owned()].into());
    assert_eq!(fs::read_to_string(upper.join("precious"))?, "x");
    Ok(())
}

#[test]
fn a28_gc_ends_and_saves_a_run_whose_supervisor_died_as_its_plan_says() -> Result<()> {
    let stage = Stage::new()?;
    stage.ok(&["run", "web", "--image", "box", "--detach", "--", "sh", "-c", &format!("echo 1 >/kept; {IDLE}")])?;
    wait_until("the file is there", SOON, || Ok(stage.inside("web", "cat /kept 2>/dev/null || true")? == "1\n"))?;
    kill_supervisor(&stage, "web")?;
    let run = stage.run_ids("web")?.remove(0);
    let expected = json!([{"container": "web", "run": run}]);
    for _ in 0..2 {
        let planned: Value = stage.json(&["gc", "--dry-run"])?;
        assert_eq!((&planned["plan"]["recover"], &planned["done"]), (&expected, &json!(false)), "and does nothing");
    }
    let done: Value = stage.json(&["gc"])?;
    assert_eq!((&done["plan"]["recover"], &done["done"]), (&expected, &json!(true)));
    assert_eq!(stage.generation("web", 1)?["kind"], json!("salvage"));
    let listed = stage.ok(&["generations", "web"])?.out();
    assert!(listed.contains("\n0 of 5 kept and 1 salvage;"), "{listed}");
    let shown = stage.ok(&["ps"])?.out();
    assert!(shown.contains(" 0/5 + 1 salvage "), "{shown}");
    assert_eq!(stage.json::<Value>(&["generations", "web"])?["counted"], 0);
    stage.assert_only_generations_left("web")?;
    assert_eq!(stage.sh_ok("web", "cat /kept")?, "1\n");
    assert_eq!(findings(&stage, 0)?, [""; 0]);
    Ok(())
}

#[test]
fn gc_frees_what_nothing_names_and_nothing_else() -> Result<()> {
    let stage = Stage::new()?;
    stage.sh_ok("web", "echo 1; touch /a")?;
    stage.idle("live", &[])?;
    stage.quiet()?;
    let before = stage.state()?;
    let root = stage.root();
    for path in [
        "layers/00000000000000ff/tree/x",
        "staging/part/x",
        "logs/00000000000000ee",
        "trash/old/x",
        "oci/00000000000000dd",
    ] {
        fs::create_dir_all(root.join(path))?;
    }
    write(root.join("locks/layer-00000000000000cc"), "")?;
    write(root.join("locks/run-00000000000000bb"), "")?;
    let planned: Value = stage.json(&["gc", "--dry-run"])?;
    let plan = &planned["plan"];
    assert_eq!(plan["layers"], json!([{"id": "00000000000000ff", "bytes": 0}]));
    assert_eq!(texts(plan, "/staging")?, ["part"]);
    assert_eq!(texts(plan, "/logs")?, ["00000000000000ee"]);
    assert_eq!(texts(plan, "/trash")?, ["old"]);
    assert_eq!(texts(plan, "/runs")?, ["00000000000000bb", "00000000000000dd"]);
    let done: Value = stage.json(&["gc"])?;
    assert_eq!(&done["plan"], plan);
    before.assert_same(&stage.state()?)?;
    let locks = names(&root.join("locks"))?;
    assert!(!locks.iter().any(|name| name.ends_with("cc") && name.starts_with("layer-0000")), "{locks:?}");
    assert_eq!(stage.ok(&["gc"])?.out(), "nothing to free\n");
    assert_eq!(stage.phase("live")?, "Running");
    stage.ok(&["stop", "live"])?;
    Ok(())
}

#[test]
fn df_counts_a_shared_layer_once() -> Result<()> {
    let stage = Stage::new()?;
    stage.sh_ok("web", "head -c 300000 /dev/urandom >/big")?;
    stage.ok(&["fork", "web", "copy"])?;
    stage.ok(&["run", "copy", "--", "sh", "-c", "head -c 200000 /dev/urandom >/own"])?;
    stage.quiet()?;
    let found: Value = stage.json(&["df"])?;
    let bytes = |pointer: &str| found.pointer(pointer).and_then(Value::as_u64).unwrap_or_default();
    let [copy, web] = ["/containers/0", "/containers/1"].map(|at| bytes(&format!("{at}/bytes")));
    assert_eq!(
        (&found["containers"][0]["container"], &found["containers"][1]["container"]),
        (&json!("copy"), &json!("web"))
    );
    assert!((300_000..400_000).contains(&web) && (500_000..700_000).contains(&copy), "{found:#}");
    assert_eq!((bytes("/containers/0/shared_bytes"), bytes("/containers/1/shared_bytes")), (web, web));
    assert_eq!(bytes("/containers_bytes"), copy, "the shared layer is in it once");
    assert_eq!(bytes("/total_bytes"), copy + bytes("/images_bytes"));
    assert!(bytes("/free_bytes") > 0 && bytes("/images_bytes") > 0);
    let told = stage.ok(&["df"])?.out();
    for word in ["image box", "container web", "container copy", "trash", "free"] {
        assert!(told.contains(word), "{told}");
    }
    Ok(())
}

#[test]
fn rm_takes_the_logs_and_the_layers_along() -> Result<()> {
    let stage = Stage::new()?;
    stage.sh_ok("web", "echo said; touch /a")?;
    stage.sh_ok("other", "echo said; touch /a")?;
    stage.quiet()?;
    let logs = stage.root().join("logs");
    let other = text(&stage.inspect("other")?, "/id")?.to_owned();
    assert_eq!(names(&logs)?.len(), 2);
    stage.ok(&["rm", "web"])?;
    assert_eq!(names(&logs)?, [other].into());
    assert_eq!(stage.layers()?.len(), 2);
    assert_eq!(names(&stage.root().join("trash"))?, BTreeSet::new());
    assert_eq!(stage.ok(&["logs", "other"])?.out(), "said\n");
    Ok(())
}
