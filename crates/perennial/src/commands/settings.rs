//! Settings as typed, turned into a specification and a policy.

use crate::cli::args::{PolicyArgs, SettingsArgs, TerminalArgs};
use crate::failure::{Code, Failure, Result};
use perennial_core::generations::Policy;
use perennial_core::process::{
    self, parse_bytes, parse_cpus_milli, parse_duration_s, parse_memory_bytes, parse_volume,
};
use perennial_core::spec::{ContainerSpec, HealthCheck, Limits};
use std::fmt::Display;

/// Makes an option's failure name the option.
///
/// # Errors
/// As a mistake on the command line, where there was one.
pub fn option<T, E: Display>(name: &str, result: std::result::Result<T, E>) -> Result<T> {
    result.map_err(|error| Failure::new(Code::Usage, format!("--{name}: {error}")))
}

/// Turns settings into a specification, after checking everything that can be checked without the container.
///
/// # Errors
/// Where an option is not valid; it is named.
pub fn spec(args: &SettingsArgs, terminal: TerminalArgs, command: Vec<String>) -> Result<ContainerSpec> {
    let optional = |name: &str,
                    text: &Option<String>,
                    parse: fn(&str) -> std::result::Result<u64, process::ParseQuantityError>| {
        text.as_deref().map(|text| option(name, parse(text))).transpose()
    };
    let volumes = args.volume.iter().map(|text| option("volume", parse_volume(text))).collect::<Result<Vec<_>>>()?;
    option("cap-add", process::capabilities(&args.cap_add, &[]))?;
    option("cap-drop", process::capabilities(&[], &args.cap_drop))?;
    option("cap-add", process::capabilities(&args.cap_add, &args.cap_drop))?;
    if let Some(signal) = &args.stop_signal {
        option("stop-signal", signal.parse::<process::Signal>())?;
    }
    if let Some(user) = &args.user {
        option("user", user.parse::<process::UserSpec>())?;
    }
    check_workdir(args.workdir.as_deref())?;
    Ok(ContainerSpec {
        command,
        entrypoint: args.entrypoint.clone().map(|program| vec![program]),
        env: env(&args.env)?,
        user: args.user.clone(),
        workdir: args.workdir.clone(),
        volumes,
        hostname: args.hostname.as_deref().map(|text| option("hostname", process::parse_hostname(text))).transpose()?,
        limits: Limits {
            memory_bytes: optional("memory", &args.memory, parse_memory_bytes)?,
            cpus_milli: optional("cpus", &args.cpus, parse_cpus_milli)?,
            pids: args.pids_limit,
        },
        network: args.network.map(Into::into).unwrap_or_default(),
        cap_add: args.cap_add.clone(),
        cap_drop: args.cap_drop.clone(),
        init: args.init,
        tty: terminal.tty,
        interactive: terminal.interactive,
        health: health(args)?,
        runtime: args.runtime.clone(),
        stop_signal: args.stop_signal.clone(),
        stop_timeout_s: args.stop_timeout,
    })
}

/// Returns environment settings with their values: those of this command's own environment where only a name is given.
///
/// # Errors
/// Where one has no name, or its value is not UTF-8.
pub fn env(typed: &[String]) -> Result<Vec<String>> {
    let is_unspeakable = |name: &&String| matches!(std::env::var(name), Err(std::env::VarError::NotUnicode(_)));
    if let Some(name) = typed.iter().filter(|text| !text.contains('=')).find(is_unspeakable) {
        return Err(Failure::new(Code::Usage, format!("--env: the value of {name} in this environment is not UTF-8")));
    }
    option("env", process::env_from(typed, &|name| std::env::var(name).ok()))
}

/// Checks a working directory.
///
/// # Errors
/// Where it is not absolute.
pub fn check_workdir(workdir: Option<&str>) -> Result<()> {
    match workdir {
        Some(path) if !path.starts_with('/') => {
            Err(Failure::new(Code::Usage, format!("--workdir: {path:?} is not absolute")))
        }
        Some(_) | None => Ok(()),
    }
}

fn health(args: &SettingsArgs) -> Result<Option<HealthCheck>> {
    let Some(command) = &args.health_cmd else { return Ok(None) };
    // Nothing to run means that nothing is checked, whatever the image says.
    let command = if command == "none" { Vec::new() } else { vec![command.clone()] };
    Ok(Some(HealthCheck {
        command,
        interval_s: option("health-interval", parse_duration_s(&args.health_interval))?.max(1),
        timeout_s: option("health-timeout", parse_duration_s(&args.health_timeout))?.max(1),
        retries: args.health_retries.max(1),
        start_period_s: option("health-start-period", parse_duration_s(&args.health_start_period))?,
    }))
}

/// Turns settings into a policy.
///
/// # Errors
/// Where an option is not valid; it is named.
pub fn policy(args: &SettingsArgs) -> Result<Policy> {
    let mut policy = Policy::default();
    change_policy(&mut policy, &args.policy)?;
    Ok(policy)
}

/// Changes a policy by what was typed.
///
/// # Errors
/// Where an option is not valid; it is named.
pub fn change_policy(policy: &mut Policy, args: &PolicyArgs) -> Result<()> {
    if let Some(keep) = args.keep {
        policy.keep = keep;
    }
    match args.keep_bytes.as_deref() {
        Some("none") => policy.keep_bytes = None,
        Some(text) => policy.keep_bytes = Some(option("keep-bytes", parse_bytes(text))?),
        None => {}
    }
    if let Some(text) = &args.good_after {
        policy.good_after_s = option("good-after", parse_duration_s(text))?;
    }
    if let Some(seal) = args.seal {
        policy.seal = seal.into();
    }
    match args.hot.as_deref() {
        Some("all") => policy.hot = None,
        Some(text) => policy.hot = Some(option("hot", text.parse::<u32>())?),
        None => {}
    }
    match args.push.as_deref() {
        Some("none") => policy.push = None,
        Some(remote) => policy.push = Some(remote.to_owned()),
        None => {}
    }
    Ok(())
}

/// Returns the options that were given although the container exists already and keeps its own settings.
pub fn given(args: &SettingsArgs) -> Vec<&'static str> {
    let options = [
        ("--env", !args.env.is_empty()),
        ("--user", args.user.is_some()),
        ("--workdir", args.workdir.is_some()),
        ("--volume", !args.volume.is_empty()),
        ("--hostname", args.hostname.is_some()),
        ("--memory", args.memory.is_some()),
        ("--cpus", args.cpus.is_some()),
        ("--pids-limit", args.pids_limit.is_some()),
        ("--network", args.network.is_some()),
        ("--cap-add", !args.cap_add.is_empty()),
        ("--cap-drop", !args.cap_drop.is_empty()),
        ("--init", args.init),
        ("--health-cmd", args.health_cmd.is_some()),
        ("--keep", args.policy.keep.is_some()),
        ("--keep-bytes", args.policy.keep_bytes.is_some()),
        ("--good-after", args.policy.good_after.is_some()),
        ("--seal", args.policy.seal.is_some()),
        ("--hot", args.policy.hot.is_some()),
        ("--push", args.policy.push.is_some()),
        ("--runtime", args.runtime.is_some()),
        ("--entrypoint", args.entrypoint.is_some()),
        ("--stop-signal", args.stop_signal.is_some()),
        ("--stop-timeout", args.stop_timeout.is_some()),
    ];
    options.into_iter().filter(|(_, is_given)| *is_given).map(|(name, _)| name).collect()
}
