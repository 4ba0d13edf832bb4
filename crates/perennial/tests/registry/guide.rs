//! The guide's page about a registry of one's own: its commands as they are written, the registry on one machine and its clients on
//! another, with a network between them.

use super::{Place, SOON};
use anyhow::{Context as _, Result, ensure};
use perennial_testkit::host::{run, wait_within};
use perennial_testkit::netns::{ADDRESSES, Network};
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// The page, of which commands are taken.
struct Page(String);

impl Page {
    fn read() -> Result<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/guide/registry.md");
        Ok(Self(fs::read_to_string(path)?.replace("\\\n", "")))
    }

    /// Returns the command that begins and goes on so, without its comment.
    fn command(&self, begin: &str, with: &str) -> Result<String> {
        let line = self.0.lines().find(|line| line.starts_with(begin) && line.contains(with));
        let line = line.with_context(|| format!("the guide has no command {begin} … {with}"))?;
        Ok(line.split("  #").next().unwrap_or(line).trim().to_owned())
    }

    fn policy(&self) -> Result<&str> {
        let json = self.0.split("```json\n").nth(1).and_then(|rest| rest.split("```").next());
        json.context("the guide has no policy")
    }
}

/// Two machines and what is on them.
struct Scene {
    network: Network,
    place: Place,
}

impl Scene {
    fn new() -> Result<Self> {
        let (network, place) = (Network::new()?, Place::new()?);
        let hosts = format!("127.0.0.1 localhost\n{} registry.example\n", ADDRESSES[0]);
        fs::File::create(place.path("hosts"))?.write_all(hosts.as_bytes())?;
        Ok(Self { network, place })
    }

    /// Returns a command of the guide on one of the machines, in the place's directory, with its own names of hosts.
    fn shell(&self, machine: usize, command: &str) -> Command {
        let place = self.place.disk.path();
        let command = command.replace("/srv/registry", &self.place.path("storage").display().to_string());
        let script = format!("mount --bind hosts /etc/hosts && exec {command}");
        let mut shell = Network::command(&self.network.names[machine], &["unshare", "--mount", "sh", "-c", &script]);
        let program = Path::new(env!("CARGO_BIN_EXE_perennial")).parent().unwrap_or(Path::new("/"));
        shell.current_dir(&place).env("HOME", &place).env_remove("XDG_CONFIG_HOME");
        shell.env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", program.display()));
        shell.env("PERENNIAL_ROOT", self.place.path("root")).env("REGISTRY_AUTH_FILE", self.place.path("auth.json"));
        shell
    }

    fn ok(&self, machine: usize, command: &str) -> Result<()> {
        run(&mut self.shell(machine, command)).map(drop).with_context(|| command.to_owned())
    }

    fn registry(&self, command: &str) -> Result<Server> {
        let mut child = self.shell(0, command).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("piped")?).read_line(&mut line)?;
        ensure!(line.contains("listens on"), "{command} said {line:?}");
        Ok(Server(child))
    }
}

/// A registry, ended when dropped.
struct Server(Child);

impl Server {
    fn stop(mut self) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let status = wait_within(&mut self.0, SOON)?.context("it goes on")?;
        ensure!(status.success(), "it ended with {status}");
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Gone already where it was stopped.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn the_guide_sets_up_a_registry_as_it_says() -> Result<()> {
    let (page, scene) = (Page::read()?, Scene::new()?);
    let image = scene.place.image()?;
    // On one machine, for itself.
    let open = scene.registry(&page.command("perennial registry", "on 127.0.0.1:5000")?)?;
    scene.ok(0, &page.command("skopeo copy", "garden/web:v1")?.replace("oci:web", &image))?;
    scene.ok(0, &page.command("perennial image pull", "garden/web:v1")?)?;
    open.stop()?;

    // For another, with a certificate of its own, logins and a policy.
    scene.ok(0, &page.command("openssl req", "CN=registry.example")?)?;
    let htpasswd = page.command("htpasswd", "passwords ann")?;
    scene.ok(0, &format!("{} secret", htpasswd.replace("-Bc ", "-Bbc ")))?;
    fs::File::create(scene.place.path("policy.json"))?.write_all(page.policy()?.as_bytes())?;
    let closed = scene.registry(&page.command("perennial registry", "--policy policy.json")?)?;
    let certificates = scene.place.path(".config/containers/certs.d/registry.example:5000");
    fs::create_dir_all(&certificates)?;
    fs::copy(scene.place.path("cert.pem"), certificates.join("ca.crt"))?;
    let there = "docker://registry.example:5000/garden/web:v2";
    let push = format!("skopeo copy {image} {there}");
    ensure!(scene.ok(1, &push).is_err(), "nobody has logged in");
    scene.ok(1, &format!("{} -p secret", page.command("skopeo login", "-u ann")?))?;
    scene.ok(1, &push)?;
    scene.ok(1, "perennial image pull registry.example:5000/garden/web:v2 web")?;
    ensure!(scene.ok(1, &format!("skopeo delete {there}")).is_err(), "the policy lets ann delete only at home");
    closed.stop()
}
