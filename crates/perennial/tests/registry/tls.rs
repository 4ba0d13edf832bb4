//! Perennial as a client of registries with certificates that nobody but their owner has signed: what podman is told about them
//! holds for it, too.

use super::{Place, Registry, ok, secrets};
use anyhow::{Context as _, Result, ensure};
use perennial_testkit::host::run;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A machine of its own: a root, and a home with what is known of registries.
struct Machine {
    place: PathBuf,
}

impl Machine {
    fn new(place: &Path) -> Result<Self> {
        fs::create_dir_all(place)?;
        Ok(Self { place: place.to_path_buf() })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_perennial"));
        command.env("PERENNIAL_ROOT", self.place.join("root")).env("HOME", &self.place);
        command.env_remove("XDG_CONFIG_HOME").env("REGISTRY_AUTH_FILE", self.login()).args(args);
        command
    }

    fn ok(&self, args: &[&str]) -> Result<String> {
        let done = run(&mut self.command(args)).with_context(|| format!("perennial {args:?}"))?;
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    }

    /// Returns what is said of a command that fails.
    fn refused(&self, args: &[&str]) -> Result<String> {
        let Output { status, stderr, .. } = self.command(args).output()?;
        ensure!(!status.success(), "perennial {args:?} works");
        Ok(String::from_utf8_lossy(&stderr).into_owned())
    }

    fn login(&self) -> PathBuf {
        self.place.join("auth.json")
    }

    /// Where the certificates of a registry belong.
    fn certificates(&self, address: &str) -> Result<PathBuf> {
        let directory = self.place.join(".config/containers/certs.d").join(address);
        fs::create_dir_all(&directory)?;
        Ok(directory)
    }
}

#[test]
fn a_container_travels_through_a_registry_with_a_certificate_of_its_own_and_logins() -> Result<()> {
    let place = Place::new()?;
    let image = place.image()?;
    let (key, certificate, passwords) = secrets(&place)?;
    let options = ["--tls-cert", &certificate, "--tls-key", &key, "--auth", "token", "--htpasswd", &passwords];
    let registry = Registry::start(&place.path("storage"), &options)?;
    let address = registry.address.as_str();
    let [here, there] = ["here", "there"].map(|name| Machine::new(&place.path(name)));
    let (here, there) = (here?, there?);
    for machine in [&here, &there] {
        fs::copy(&certificate, machine.certificates(address)?.join("ca.crt"))?;
        let (login, certs) =
            (machine.login().display().to_string(), machine.certificates(address)?.display().to_string());
        ok("skopeo", &["login", "--authfile", &login, "--cert-dir", &certs, "-u", "ann", "-p", "secret", address])?;
        machine.ok(&["remote", "add", "hub", &format!("{address}/home")])?;
    }
    let table = here.ok(&["remote", "ls"])?;
    ensure!(table.lines().nth(1).is_some_and(|line| line.contains(" yes ")), "by TLS: {table}");

    here.ok(&["image", "import", &image, "box"])?;
    let reference = format!("{address}/shared/box:v1");
    here.ok(&["image", "push", "box", &reference])?;
    there.ok(&["image", "pull", &reference, "box"])?;
    here.ok(&["create", "garden", "--image", "box"])?;
    here.ok(&["push", "garden", "hub"])?;
    there.ok(&["pull", "hub/garden"])?;
    ensure!(there.ok(&["ps", "--all"])?.contains("garden"), "the container has come");
    registry.stop()
}

#[test]
fn a_registry_with_the_certificate_of_somebody_else_is_not_spoken_to() -> Result<()> {
    let place = Place::new()?;
    let image = place.image()?;
    let (key, certificate, _) = secrets(&place)?;
    let registry = Registry::start(&place.path("storage"), &["--tls-cert", &certificate, "--tls-key", &key])?;
    let address = registry.address.as_str();
    let here = Machine::new(&place.path("here"))?;
    let other = place.path("other.crt").display().to_string();
    let other_key = place.path("other.key").display().to_string();
    let subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"];
    let make = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-keyout", &other_key, "-out", &other];
    ok("openssl", &[&make[..], &subject].concat())?;
    let ca = here.certificates(address)?.join("ca.crt");
    fs::copy(&other, &ca)?;
    here.ok(&["image", "import", &image, "box"])?;
    here.ok(&["create", "garden", "--image", "box"])?;
    here.ok(&["remote", "add", "hub", &format!("{address}/home")])?;
    let reference = format!("{address}/shared/box:v1");
    for args in
        [&["image", "push", "box", &reference][..], &["image", "pull", &reference, "again"], &["push", "garden", "hub"]]
    {
        let said = here.refused(args)?;
        ensure!(said.contains(&format!("the certificate of registry {address} is not trusted")), "{args:?}: {said}");
        ensure!(said.contains("certs.d"), "{args:?} does not say what to do: {said}");
    }
    // What cannot be understood is named, and nobody is spoken to without it.
    fs::File::create(&ca)?.write_all(b"roses")?;
    for args in [&["image", "pull", &reference, "again"][..], &["push", "garden", "hub"]] {
        let said = here.refused(args)?;
        ensure!(said.contains("ca.crt is not a certificate"), "{args:?}: {said}");
    }
    registry.stop()
}
