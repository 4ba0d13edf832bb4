//! Names and passwords for registries: as given, or as other container tools have stored them.
//!
//! Reads the `auths`, `credHelpers` and `credsStore` of the files that podman, skopeo, buildah and docker share
//! (containers-auth.json(5)). A file that is missing is passed over; one that cannot be understood is an error, as
//! pulling without the login its owner relies on would only give a puzzling answer later.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A name and password.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// The name.
    pub user: String,
    /// The password or access token; never printed.
    pub password: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("user", &self.user).finish_non_exhaustive()
    }
}

impl std::str::FromStr for Login {
    type Err = CredentialsError;
    /// Reads `USER:PASSWORD`, as `--creds` takes it.
    fn from_str(text: &str) -> Result<Self, CredentialsError> {
        let (user, password) = text.split_once(':').ok_or(CredentialsError::Form)?;
        Ok(Self { user: user.to_owned(), password: password.to_owned() })
    }
}

/// Where the login for a registry comes from.
#[derive(Debug, Clone)]
pub enum Credentials {
    /// None is used.
    Anonymous,
    /// This one.
    Login(Login),
    /// The first that one of these files has for the registry; none if none has.
    Files(Vec<PathBuf>),
}

/// Why there is no login.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialsError {
    /// Not `USER:PASSWORD`.
    #[error("credentials are not of the form USER:PASSWORD")]
    Form,
    /// A file cannot be read.
    #[error("login file {} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not understood.
    #[error("login file {} is not understood: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A credential helper failed.
    #[error("credential helper {helper} gives no login for {registry}: {reason}")]
    Helper {
        /// The program.
        helper: String,
        /// The registry.
        registry: String,
        /// What it said.
        reason: String,
    },
}

/// Returns the files to look in, given the environment: `$REGISTRY_AUTH_FILE` alone where it is set, else podman's and
/// docker's places.
#[must_use]
pub fn files(env: &dyn Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let path = |name: &str| env(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(only) = path("REGISTRY_AUTH_FILE") {
        return vec![only];
    }
    let home = path("HOME");
    let config = path("XDG_CONFIG_HOME").or_else(|| home.as_ref().map(|home| home.join(".config")));
    let docker = path("DOCKER_CONFIG").or_else(|| home.map(|home| home.join(".docker")));
    let places = [
        path("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")),
        Some(PathBuf::from("/run/containers/0/auth.json")),
        config.map(|dir| dir.join("containers/auth.json")),
        docker.map(|dir| dir.join("config.json")),
    ];
    places.into_iter().flatten().collect()
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct AuthFile {
    auths: BTreeMap<String, AuthEntry>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AuthEntry {
    auth: String,
    username: String,
    password: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// Returns the login for a repository of a registry.
///
/// # Errors
/// When a file or helper that should have one fails.
pub fn find(credentials: &Credentials, registry: &str, repository: &str) -> Result<Option<Login>, CredentialsError> {
    let files = match credentials {
        Credentials::Anonymous => return Ok(None),
        Credentials::Login(login) => return Ok(Some(login.clone())),
        Credentials::Files(files) => files,
    };
    for path in files {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(CredentialsError::Read { path: path.clone(), source }),
        };
        let file: AuthFile = serde_json::from_slice(&text).map_err(|error| malformed(path, &error.to_string()))?;
        if let Some(login) = in_file(&file, path, registry, repository)? {
            return Ok(Some(login));
        }
    }
    Ok(None)
}

fn malformed(path: &Path, reason: &str) -> CredentialsError {
    CredentialsError::Malformed { path: path.to_path_buf(), reason: reason.to_owned() }
}

fn in_file(file: &AuthFile, path: &Path, registry: &str, repository: &str) -> Result<Option<Login>, CredentialsError> {
    for key in keys(registry, repository) {
        if let Some(helper) = file.cred_helpers.get(&key) {
            return ask_helper(helper, &key).map(Some);
        }
        let Some(entry) = file.auths.get(&key) else {
            continue;
        };
        if !entry.auth.is_empty() {
            let decoded = crate::tarball::base64_decoded(entry.auth.as_bytes()).and_then(|d| String::from_utf8(d).ok());
            let Some((user, password)) = decoded.as_deref().and_then(|text| text.split_once(':')) else {
                return Err(malformed(path, &format!("the login for {key} is not base 64 of USER:PASSWORD")));
            };
            let password = password.trim_end_matches('\0').to_owned();
            return Ok(Some(Login { user: user.to_owned(), password }));
        }
        if !entry.username.is_empty() {
            return Ok(Some(Login { user: entry.username.clone(), password: entry.password.clone() }));
        }
        if let Some(helper) = &file.creds_store {
            return ask_helper(helper, &key).map(Some);
        }
    }
    Ok(None)
}

/// Returns the keys a login can have, the most specific first.
fn keys(registry: &str, repository: &str) -> Vec<String> {
    let hosts: &[&str] = match registry {
        "docker.io" | "index.docker.io" => &["docker.io", "index.docker.io", "https://index.docker.io/v1/"],
        other => &[other],
    };
    let mut keys = Vec::new();
    for host in hosts {
        let mut part = repository;
        loop {
            keys.push(format!("{host}/{part}"));
            match part.rsplit_once('/') {
                Some((shorter, _)) => part = shorter,
                None => break,
            }
        }
    }
    for host in hosts {
        keys.extend([(*host).to_owned(), format!("https://{host}"), format!("http://{host}")]);
    }
    keys
}

/// Asks a `docker-credential-…` program (its protocol: the registry on standard input, JSON on standard output).
fn ask_helper(name: &str, registry: &str) -> Result<Login, CredentialsError> {
    let helper = format!("docker-credential-{name}");
    let failed =
        |reason: String| CredentialsError::Helper { helper: helper.clone(), registry: registry.to_owned(), reason };
    if name.contains('/') {
        return Err(failed("its name has a slash".to_owned()));
    }
    let mut command = Command::new(&helper);
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(registry.as_bytes()).map_err(|error| failed(error.to_string()))?;
    }
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stdout).trim().to_owned()));
    }
    let answer: HelperAnswer = serde_json::from_slice(&output.stdout).map_err(|error| failed(error.to_string()))?;
    if answer.username == "<token>" {
        return Err(failed("it gives an identity token, which is not supported".to_owned()));
    }
    Ok(Login { user: answer.username, password: answer.secret })
}
