//! `registry`.

use crate::cli::args::{AuthArg, RegistryArgs};
use crate::cli::output::{self, Style};
use crate::clock;
use crate::failure::{Code, Failure, Result};
use perennial_core::process::{parse_bytes, parse_duration_s};
use perennial_core::registry::access::{Passwords, Policy};
use perennial_core::registry::collect::Grace;
use perennial_core::registry::quota::Quota;
use perennial_registry::serve::log::{Line, Log};
use perennial_registry::serve::{Accounts, BLOCKING_THREADS, Options, S3, Scheme, Scrub, ServeError, Tls, serve};
use serde_json::{Map, Value, json};
use std::path::Path;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// How long an object store may say nothing; a part of 8 MiB is sent in that time.
const PATIENCE_WITH_STORE: Duration = Duration::from_secs(60);
/// Shortest time of grace: a push sends its blobs before the manifest that needs them, and waits between chunks.
const GRACE_LEAST: Duration = Duration::from_secs(60);
/// How long open connections are waited for at the end.
const GRACE_OF_END: Duration = Duration::from_secs(10);

/// Serves a registry until it is told to end.
///
/// # Errors
/// Where the options do not fit, or it cannot begin.
pub fn registry(args: &RegistryArgs, style: Style) -> Result<()> {
    let options = options(args, style)?;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.enable_all().max_blocking_threads(BLOCKING_THREADS).build()?;
    let served = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let end = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        let ready = |address| match style {
            Style::Json => output::line(json!({"address": address})),
            Style::Text => output::line(format!("a registry listens on {address}")),
        };
        Ok::<_, std::io::Error>(serve(options, ready, end).await)
    });
    served?.map_err(failed)
}

fn failed(error: ServeError) -> Failure {
    let (code, hint) = match &error {
        ServeError::InUse { .. } => (Code::Conflict, "stop the other one first, or give another directory"),
        ServeError::Foreign { .. } => (Code::Usage, "give another directory with --storage"),
        ServeError::Storage { .. } => (Code::Host, "give a directory that can be written with --storage"),
        ServeError::Store { .. } => (Code::Host, "see that it answers, and that the bucket and the key are right"),
        ServeError::Record { .. } => {
            (Code::Damaged, "the blobs are not touched; restore registry.db from a copy, and see the guide")
        }
        ServeError::Listen { .. } => (Code::Host, "give another address or port with --listen"),
        ServeError::Tls { .. } => (Code::Usage, "give PEM files with --tls-cert and --tls-key"),
    };
    Failure::from(error).code(code).hint(hint)
}

fn options(args: &RegistryArgs, style: Style) -> Result<Options> {
    let tls = args.tls_cert.clone().zip(args.tls_key.clone());
    let collect_every = duration("gc-every", &args.gc_every)?;
    let grace = duration("gc-grace", &args.gc_grace)?;
    if grace < GRACE_LEAST {
        let message = "--gc-grace is at least 1m: a push sends blobs before the manifest that needs them";
        return Err(Failure::new(Code::Usage, message));
    }
    let scrub = Scrub {
        bytes_per_s: bytes("scrub-rate", &args.scrub_rate)?,
        every: duration("scrub-every", &args.scrub_every)?,
    };
    if scrub.bytes_per_s == 0 || args.connections == 0 {
        return Err(Failure::new(Code::Usage, "--scrub-rate and --connections are at least 1"));
    }
    Ok(Options {
        listen: args.listen,
        storage: args.storage.clone(),
        s3: s3(args)?,
        tls: tls.map(|(certificate, key)| Tls { certificate, key }),
        public_url: args.public_url.clone(),
        accounts: accounts(args)?,
        quota: Quota(args.quota.as_deref().map(|text| bytes("quota", text)).transpose()?),
        is_read_only: args.read_only,
        takes_sparse: args.allow_sparse,
        grace: Grace { nanos: u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX) },
        collect_every: Some(collect_every).filter(|every| !every.is_zero()),
        collects_untagged: args.gc_untagged,
        collects_strays: args.gc_unknown,
        scrub: args.scrub.then_some(scrub),
        patience: duration("patience", &args.patience)?.max(Duration::from_secs(1)),
        connections_max: args.connections,
        grace_of_end: GRACE_OF_END,
        clock: clock::now,
        log: Log::new(move |line| print(line, style)),
    })
}

fn s3(args: &RegistryArgs) -> Result<Option<S3>> {
    let Some(url) = &args.s3 else { return Ok(None) };
    let place = url.strip_prefix("s3://").filter(|place| !place.is_empty() && !place.starts_with('/'));
    let place = place.ok_or_else(|| Failure::new(Code::Usage, format!("--s3: {url:?} is not s3://BUCKET/PREFIX")))?;
    let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
    Ok(Some(S3 {
        bucket: bucket.to_owned(),
        prefix: prefix.trim_end_matches('/').to_owned(),
        endpoint: args.s3_endpoint.clone(),
        region: args.s3_region.clone(),
        key_id: args.s3_key_id.clone().unwrap_or_default(),
        secret: args.s3_secret.clone().unwrap_or_default(),
        patience: PATIENCE_WITH_STORE,
    }))
}

fn bytes(option: &str, text: &str) -> Result<u64> {
    parse_bytes(text).map_err(|error| Failure::new(Code::Usage, format!("--{option}: {error}")))
}

fn duration(option: &str, text: &str) -> Result<Duration> {
    let seconds = parse_duration_s(text).map_err(|error| Failure::new(Code::Usage, format!("--{option}: {error}")))?;
    Ok(Duration::from_secs(seconds.into()))
}

fn accounts(args: &RegistryArgs) -> Result<Option<Accounts>> {
    let scheme = match args.auth {
        AuthArg::None if args.htpasswd.is_some() => {
            return Err(Failure::new(Code::Usage, "--htpasswd is given, but --auth is not"));
        }
        AuthArg::None => return Ok(None),
        AuthArg::Basic => Scheme::Basic,
        AuthArg::Token => Scheme::Token,
    };
    let Some(path) = &args.htpasswd else {
        let message = "--auth needs the passwords, as a file with --htpasswd";
        return Err(Failure::new(Code::Usage, message).hint("`htpasswd -Bc FILE NAME` makes one"));
    };
    let usage =
        |path: &Path, error: &dyn std::fmt::Display| Failure::new(Code::Usage, format!("{}: {error}", path.display()));
    let read = |path: &Path| std::fs::read_to_string(path).map_err(|error| usage(path, &error));
    let passwords = Passwords::parse(&read(path)?).map_err(|error| usage(path, &error))?;
    let policy = match &args.policy {
        None => Policy::default(),
        Some(path) => {
            let policy: Policy = serde_json::from_str(&read(path)?).map_err(|error| usage(path, &error))?;
            policy.check(&passwords).map_err(|error| usage(path, &error))?;
            policy
        }
    };
    Ok(Some(Accounts { scheme, passwords, policy }))
}

/// Prints a line of the log on standard error: as JSON, or as words that can be told apart.
fn print(line: &Line<'_>, style: Style) {
    let at = clock::now();
    match style {
        Style::Json => {
            let head = [("at", json!(at)), ("level", json!(line.level.as_str())), ("event", json!(line.event))];
            let fields = head.into_iter().chain(line.fields.iter().cloned());
            let object: Map<String, Value> = fields.map(|(name, value)| (name.to_owned(), value)).collect();
            eprintln!("{}", Value::Object(object));
        }
        Style::Text => {
            let mut text = format!("{at} {} {}", line.level.as_str(), line.event);
            for (name, value) in &line.fields {
                text.push_str(&format!(" {name}={value}"));
            }
            eprintln!("{text}");
        }
    }
}
