//! dockerd as a client: Debian's, unmodified, asked over its socket, so that it matters to nobody which `docker` is there.
//!
//! It runs beside whatever else is on the machine: in mount and process namespaces of its own, over `/etc` and `/run`, with
//! its own directories, without a bridge and without rules for packets. No container runs in it.

use super::{Place, Registry, SOON, digests, ok, secrets};
use anyhow::{Context as _, Result, ensure};
use perennial_testkit::host::wait_until;
use serde_json::{Value, json};
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// Longest time for an image to come or go; the machine may be busy.
const LIMIT: std::time::Duration = std::time::Duration::from_secs(120);

/// What it is started by: it writes a key to `/etc/docker` and makes `/run/docker`, which are not to be the machine's.
const START: &str = r#"
set -e
mkdir -p "$1/etc" "$1/work" "$1/data"
mount -t overlay -o "lowerdir=/etc,upperdir=$1/etc,workdir=$1/work" overlay /etc
mount -t tmpfs tmpfs /run
exec dockerd --config-file "$1/daemon.json" --data-root "$1/data" --exec-root "$2/exec" --pidfile "$2/pid" \
  --host "unix://$2/socket" --storage-driver vfs --bridge none --iptables=false --ip6tables=false --ip-forward=false \
  --ip-masq=false
"#;

struct Dockerd {
    child: Child,
    /// A short path, as sockets need.
    short: tempfile::TempDir,
    log: PathBuf,
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        // With it goes its namespace, and all that is in it.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Dockerd {
    fn start(place: &Place) -> Result<Self> {
        let short = tempfile::TempDir::with_prefix_in("dockerd-", "/tmp")?;
        let own = place.path("dockerd");
        fs::create_dir(&own)?;
        fs::File::create(own.join("daemon.json"))?.write_all(b"{}")?;
        let log = place.path("dockerd.log");
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]);
        command.args(["sh", "-c", START, "dockerd"]).arg(&own).arg(short.path());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&log)?).spawn()?;
        let mut server = Self { child, short, log };
        let started = wait_until("dockerd (`./setup --test` installs it)", SOON, || {
            let ended = server.child.try_wait()?;
            ensure!(ended.is_none(), "it ended with {ended:?}");
            Ok(server.ask("GET", "/_ping", &Value::Null).is_ok())
        });
        started.with_context(|| server.said())?;
        Ok(server)
    }

    /// The end of its log.
    fn said(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines.iter().skip(lines.len().saturating_sub(30)).fold(String::new(), |text, line| text + line + "\n")
    }

    /// Sends a request with somebody's name and password; returns what it says. It begins with success where the pull or
    /// push that was asked for fails on the way, and then says so in a line of its answer.
    fn ask(&self, method: &str, path: &str, login: &Value) -> Result<String> {
        use base64::Engine as _;
        let mut stream = UnixStream::connect(self.short.path().join("socket"))?;
        stream.set_read_timeout(Some(LIMIT))?;
        let auth = base64::engine::general_purpose::URL_SAFE.encode(login.to_string());
        write!(stream, "{method} {path} HTTP/1.0\r\nHost: docker\r\nX-Registry-Auth: {auth}\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer")?;
        let is_well = head.split(' ').nth(1).is_some_and(|status| status.starts_with('2'));
        ensure!(is_well && !body.contains("\"error\":"), "{method} {path}: {answer}");
        Ok(body.to_owned())
    }

    fn pull(&self, repository: &str, login: &Value) -> Result<()> {
        self.ask("POST", &format!("/images/create?fromImage={repository}&tag=v1"), login).map(drop)
    }

    fn push(&self, repository: &str, login: &Value) -> Result<()> {
        self.ask("POST", &format!("/images/{repository}/push?tag=v1"), login).map(drop)
    }

    fn tag(&self, from: &str, to: &str) -> Result<()> {
        self.ask("POST", &format!("/images/{from}:v1/tag?repo={to}&tag=v1"), &Value::Null).map(drop)
    }

    /// Takes the image away, so that the next pull is one.
    fn forget(&self, repository: &str) -> Result<()> {
        self.ask("DELETE", &format!("/images/{repository}:v1"), &Value::Null).map(drop)
    }

    fn id(&self, repository: &str) -> Result<Value> {
        let shown: Value =
            serde_json::from_str(&self.ask("GET", &format!("/images/{repository}:v1/json"), &Value::Null)?)?;
        Ok(shown["Id"].clone())
    }
}

#[test]
fn dockerd_pulls_and_pushes() -> Result<()> {
    let place = Place::new()?;
    let image = place.image()?;
    let registry = Registry::start(&place.path("storage"), &[])?;
    let (first, second) = (format!("{}/garden/web", registry.address), format!("{}/by/docker", registry.address));
    ok("skopeo", &["copy", "--dest-tls-verify=false", &image, &format!("docker://{first}:v1")])?;
    let dockerd = Dockerd::start(&place)?;
    let nobody = json!({});
    let all = || -> Result<()> {
        dockerd.pull(&first, &nobody)?;
        dockerd.tag(&first, &second)?;
        dockerd.push(&second, &nobody)?;
        let id = dockerd.id(&second)?;
        let config = |name: &str| -> Result<Value> {
            Ok(digests(&format!("docker://{name}:v1"), &["--tls-verify=false"])?["config"]["digest"].clone())
        };
        ensure!(config(&first)? == config(&second)?, "the image has changed on the way");
        ensure!(config(&first)? == id, "dockerd holds another image: {id}");
        dockerd.forget(&first)?;
        dockerd.forget(&second)?;
        dockerd.pull(&second, &nobody)?;
        ensure!(dockerd.id(&second)? == id, "what it pushed is not what it pulls");
        Ok(())
    };
    all().with_context(|| dockerd.said())?;
    registry.stop()
}

#[test]
fn dockerd_logs_in_with_tls_by_password_and_by_token() -> Result<()> {
    let place = Place::new()?;
    let image = place.image()?;
    let (key, certificate, passwords) = secrets(&place)?;
    let dockerd = Dockerd::start(&place)?;
    let (ann, wrong) =
        (json!({"username": "ann", "password": "secret"}), json!({"username": "ann", "password": "guessed"}));
    for scheme in ["basic", "token"] {
        let options = ["--tls-cert", &certificate, "--tls-key", &key, "--auth", scheme, "--htpasswd", &passwords];
        let registry = Registry::start(&place.path(scheme), &options)?;
        let (first, second) = (format!("{}/garden/web", registry.address), format!("{}/by/docker", registry.address));
        let to = ["copy", "--dest-tls-verify=false", "--dest-creds", "ann:secret"];
        ok("skopeo", &[&to[..], &[&image, &format!("docker://{first}:v1")]].concat())?;
        let all = || -> Result<()> {
            for login in [&json!({}), &wrong] {
                ensure!(dockerd.pull(&first, login).is_err(), "{scheme}: {login} may pull");
            }
            dockerd.pull(&first, &ann)?;
            dockerd.tag(&first, &second)?;
            ensure!(dockerd.push(&second, &wrong).is_err(), "{scheme}: a wrong password may push");
            dockerd.push(&second, &ann)
        };
        all().with_context(|| dockerd.said())?;
        let from = ["copy", "--src-tls-verify=false", "--src-creds", "ann:secret"];
        let back = format!("oci:{}:v1", place.path(&format!("back-{scheme}")).display());
        ok("skopeo", &[&from[..], &[&format!("docker://{second}:v1"), &back]].concat())?;
        registry.stop()?;
    }
    Ok(())
}
