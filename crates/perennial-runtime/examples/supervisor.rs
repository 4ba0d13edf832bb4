//! The whole life of one container in one process, without a store: what the tests of this crate start.
//!
//! ```text
//! supervisor PLAN.json        a client may be handed over as standard input
//! ```
//!
//! It writes `pid` when the process runs and `result.json` when it has ended, both into the plan's directory.

use perennial_core::image::ImageConfig;
use perennial_core::process::{ProcessFacts, resolve, resolve_health, user_of};
use perennial_core::spec::ContainerSpec;
use perennial_runtime::bundle::{self, BundlePlan, HostFacts, NetworkPlan};
use perennial_runtime::cgroup::{self, Cgroup, CgroupVersion};
use perennial_runtime::logs::LogConfig;
use perennial_runtime::oci::{OciRuntime, StartFailure};
use perennial_runtime::supervise::{ExitStatus, HealthPlan, Session, SessionConfig, SessionEvent};
use perennial_runtime::user;
use rustix::fd::AsFd as _;
use serde::Deserialize;
use std::error::Error;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Deserialize)]
struct Plan {
    dir: PathBuf,
    id: String,
    spec: ContainerSpec,
    cgroups_path: String,
    runtime: String,
    log_bytes_max: u64,
    netns: Option<PathBuf>,
    resolv_conf: Option<PathBuf>,
    has_first_client: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("the path of a plan is needed")?;
    let plan: Plan = serde_json::from_slice(&std::fs::read(path)?)?;
    let mut session = open(&plan)?;
    let outcome = match start(&plan, &mut session) {
        Ok(pid) => {
            put(&plan.dir.join("pid"), &pid.to_string())?;
            let mut events = Vec::new();
            let status = session.wait(&mut |event| {
                // Tests look at events while the container runs.
                events.push(event);
                drop(put(&plan.dir.join("events"), &texts(&events).join("\n")));
            })?;
            clean_up(&plan)?;
            put(&plan.dir.join("result.json"), &result_of(status, &events).to_string())?;
            Ok(status.code)
        }
        Err(failure) => {
            let result = serde_json::json!({ "failure": failure.code, "message": failure.message });
            put(&plan.dir.join("result.json"), &result.to_string())?;
            Err(failure)
        }
    };
    session.finish(outcome);
    Ok(())
}

fn open(plan: &Plan) -> Result<Session, Box<dyn Error>> {
    let process = process_of(plan)?;
    let health = match &plan.spec.health {
        Some(check) => Some(HealthPlan { check: check.clone(), process: resolve_health(&process, check)? }),
        None => None,
    };
    let first_client = match plan.has_first_client {
        true => Some(std::io::stdin().as_fd().try_clone_to_owned()?),
        false => None,
    };
    Ok(Session::open(SessionConfig {
        tty: plan.spec.tty,
        interactive: plan.spec.interactive,
        log: LogConfig { path: plan.dir.join("log"), bytes_max: plan.log_bytes_max, files_max: 3 },
        control_socket: plan.dir.join("control.sock"),
        first_client,
        health,
        stop_signal: process.stop_signal,
        stop_timeout: Duration::from_secs(u64::from(process.stop_timeout_s)),
    })?)
}

fn process_of(plan: &Plan) -> Result<perennial_core::process::Process, Box<dyn Error>> {
    let image = ImageConfig::default();
    let user = user::lookup(&plan.dir.join("rootfs"), &user_of(&plan.spec, &image)?)?;
    let facts = ProcessFacts { user, hostname: hostname(plan).to_owned() };
    Ok(resolve(&plan.spec, &image, None, &facts)?)
}

fn hostname(plan: &Plan) -> &str {
    plan.spec.hostname.as_deref().unwrap_or("box")
}

fn start(plan: &Plan, session: &mut Session) -> Result<i32, StartFailure> {
    let fail = |error: Box<dyn Error>| StartFailure { code: 125, message: error.to_string() };
    let process = process_of(plan).map_err(fail)?;
    let init = plan.spec.init.then(bundle::find_init).transpose().map_err(|error| fail(error.into()))?;
    let network = match (&plan.netns, plan.spec.network) {
        (Some(path), _) => NetworkPlan::Namespace(path.clone()),
        (None, perennial_core::spec::Network::Host) => NetworkPlan::Host,
        (None, perennial_core::spec::Network::None | perennial_core::spec::Network::Bridge) => NetworkPlan::Empty,
    };
    let host = HostFacts {
        swap_accounting: cgroup::has_swap_accounting(),
        cgroup_v2: cgroup::version() == CgroupVersion::V2,
        recursive_read_only: bundle::has_recursive_read_only(),
    };
    let bundle_plan = BundlePlan {
        process: &process,
        rootfs: &plan.dir.join("rootfs"),
        hostname: hostname(plan),
        cgroups_path: &plan.cgroups_path,
        limits: &plan.spec.limits,
        host,
        network,
        volumes: &plan.spec.volumes,
        resolv_conf: plan.resolv_conf.as_deref(),
        init: init.as_ref(),
        console_size: session.console_size(),
    };
    let directory = plan.dir.join("bundle");
    bundle::write(&bundle_plan, &directory).map_err(|error| fail(error.into()))?;
    let runtime = runtime_of(plan).map_err(fail)?;
    Ok(session.start(&runtime, &plan.id, &directory, &plan.cgroups_path)?.pid)
}

fn runtime_of(plan: &Plan) -> Result<OciRuntime, Box<dyn Error>> {
    Ok(OciRuntime::by_path(&plan.runtime, &plan.dir.join("oci"))?)
}

fn clean_up(plan: &Plan) -> Result<(), Box<dyn Error>> {
    let cgroup = Cgroup::at(&plan.cgroups_path)?;
    cgroup.kill_all(Duration::from_secs(5))?;
    runtime_of(plan)?.delete(&plan.id, false)?;
    cgroup.remove()?;
    Ok(())
}

fn texts(events: &[SessionEvent]) -> Vec<String> {
    events.iter().map(|event| format!("{event:?}")).collect()
}

fn result_of(status: ExitStatus, events: &[SessionEvent]) -> serde_json::Value {
    serde_json::json!({
        "code": status.code,
        "signal": status.signal,
        "oom": status.oom,
        "stopped_by_request": status.stopped_by_request,
        "events": texts(events),
    })
}

/// Writes a file so that it appears whole.
fn put(path: &Path, text: &str) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    File::create(&temporary)?.write_all(text.as_bytes())?;
    std::fs::rename(temporary, path)
}
