//! `doctor` and `doctor --rebuild`.

use super::Context;
use crate::cli::output::{self, Style};
use crate::engine::diagnose::{Diagnosis, ability};
use crate::engine::rebuild;
use crate::failure::Result;
use perennial_core::check::Severity;
use perennial_runtime::cgroup::CgroupVersion;
use perennial_runtime::mount::Handing;
use perennial_runtime::probe::Ability;
use serde_json::{Value, json};
use std::path::Path;
use std::process::ExitCode;

/// Checks every invariant and what the machine can do; code 1 says that something is wrong.
///
/// # Errors
/// Where the root cannot be read at all.
pub fn doctor(context: &Context) -> Result<ExitCode> {
    let diagnosis = context.engine.diagnose()?;
    match context.style {
        Style::Json => output::json(&as_json(&diagnosis)),
        Style::Text => show(&diagnosis),
    }
    Ok(if diagnosis.has_errors() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Makes the record store again from the layers and says what there is.
///
/// # Errors
/// Where the records are whole, or the root cannot be read.
pub fn rebuild(root: &Path, style: Style, is_dry_run: bool) -> Result<ExitCode> {
    let rebuilt = rebuild::rebuild(root, is_dry_run)?;
    let generations = rebuild::generations(&rebuilt);
    match style {
        Style::Json => output::json(&json!({
            "dry_run": is_dry_run,
            "containers": rebuilt.containers.iter().map(|container| container.name.as_str()).collect::<Vec<_>>(),
            "generations": generations,
            "images": rebuilt.images.iter().map(|image| image.digest.as_str()).collect::<Vec<_>>(),
            "layers": rebuilt.layers.len(),
            "findings": rebuilt.findings,
        })),
        Style::Text => {
            for finding in &rebuilt.findings {
                output::line(format!("{}: {}\n  hint: {}", finding.object, finding.message, finding.hint));
            }
            output::line(format!(
                "{} {} containers with {generations} generations, {} images, {} layers",
                if is_dry_run { "would make the records of" } else { "made the records of" },
                rebuilt.containers.len(),
                rebuilt.images.len(),
                rebuilt.layers.len(),
            ));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn cgroups(version: CgroupVersion) -> &'static str {
    match version {
        CgroupVersion::V2 => "version 2",
        CgroupVersion::V1 => "version 1",
        CgroupVersion::None => "none",
    }
}

/// How sealed layers reach the kernel, in words.
fn handing(way: Handing) -> &'static str {
    match way {
        Handing::Descriptor => "by descriptor",
        Handing::Attached => "attached for each mount",
    }
}

fn as_json(diagnosis: &Diagnosis) -> Value {
    let works = |probed: &Ability| match ability(probed) {
        Ok(()) => json!({"works": true}),
        Err(why) => json!({"works": false, "why": why}),
    };
    let (host, directory) = (&diagnosis.host, &diagnosis.directory);
    json!({
        "ok": !diagnosis.has_errors(),
        "findings": diagnosis.findings,
        "host": {
            "kernel": host.kernel,
            "cgroups": cgroups(host.cgroups),
            "swap_accounting": host.swap_accounting,
            "runtime": host.runtime.as_ref().ok(),
            "netavark": host.netavark,
            "init": host.init,
            "mount_options": host.mount_options,
        },
        "root": {
            "overlay": works(&directory.overlay),
            "trusted_xattrs": works(&directory.trusted_xattrs),
            "whiteouts": works(&directory.whiteouts),
            "d_type": works(&directory.d_type),
            "reflink": works(&directory.reflink),
            "sealed_layers": if diagnosis.sealing.is_ok() { "yes" } else { "no" },
            "sealed_layers_handed": diagnosis.sealing.as_ref().ok().map(|way| handing(*way)),
        },
    })
}

fn show(diagnosis: &Diagnosis) {
    for finding in &diagnosis.findings {
        let severity = match finding.severity {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        output::line(format!("{severity}: {}: {}\n  hint: {}", finding.object, finding.message, finding.hint));
    }
    let (host, directory) = (&diagnosis.host, &diagnosis.directory);
    let works = |probed: &Ability| if *probed == Ability::Works { "yes" } else { "no" };
    let path = |path: &Option<std::path::PathBuf>| {
        path.as_ref().map_or_else(|| "not installed".to_owned(), |path| path.display().to_string())
    };
    let rows = [
        ("kernel", host.kernel.clone()),
        ("cgroups", cgroups(host.cgroups).to_owned()),
        ("OCI runtime", host.runtime.clone().unwrap_or_else(|why| why)),
        ("netavark", path(&host.netavark)),
        ("init", path(&host.init)),
        ("overlay in the root", works(&directory.overlay).to_owned()),
        ("trusted attributes", works(&directory.trusted_xattrs).to_owned()),
        ("reflinks", works(&directory.reflink).to_owned()),
        (
            "sealed layers",
            diagnosis.sealing.clone().map_or_else(|why| format!("no: {why}"), |way| format!("yes, {}", handing(way))),
        ),
        ("mount options", host.mount_options.join(",")),
    ];
    for (name, value) in rows {
        output::line(format!("{name:>20}: {value}"));
    }
    output::line(match (diagnosis.has_errors(), diagnosis.findings.is_empty()) {
        (true, _) => "something is wrong: see the errors above",
        (false, false) => "nothing is wrong; see the remarks above",
        (false, true) => "nothing is wrong",
    });
}
