//! Places that do not belong in the repository: hosts of registries, and directories of the machine it is written on.
//!
//! A host would make the project depend on a service nobody here runs; people choose their own. A directory of one
//! machine is never true on the next.

use super::{Problem, Tree};
use std::path::Path;

/// Hosts of registries of images and packages. Written in two parts so that this file does not hold them.
const HOSTS: &[&str] = &[
    concat!("docker", ".io"),
    concat!("ghcr", ".io"),
    concat!("gcr", ".io"),
    concat!("quay", ".io"),
    concat!("registry.k8s", ".io"),
    concat!("mcr.microsoft", ".com"),
    concat!("public.ecr", ".aws"),
    concat!("crates", ".io"),
    concat!("pypi", ".org"),
    concat!("npmjs", ".org"),
    concat!("deb.debian", ".org"),
    concat!("security.debian", ".org"),
];

/// Paths, or beginnings of paths, that may name hosts: cargo writes the registry of every package into its lock file, and
/// what an image's name means without a host is part of the formats that the crate for images reads, and its tests spell out.
const MAY_NAME_HOSTS: &[&str] = &["Cargo.lock", "crates/perennial-registry/"];

/// A host, and the one file that may name it: it is the name of Debian's package of dockerd too.
const PACKAGE_WITH_A_HOSTS_NAME: (&str, &str) = ("setup", concat!("docker", ".io"));

/// Returns every line that names a host of [`HOSTS`] or the directory the repository lies in.
pub(super) fn check(tree: &Tree, root: &Path) -> Vec<Problem> {
    // A checkout directly under `/` has too short a path to tell it from any other text.
    let checkout = root.to_str().filter(|_| root.components().count() > 2);
    let mut problems = Vec::new();
    for (path, text) in tree.texts() {
        let may_name_hosts = MAY_NAME_HOSTS.iter().any(|allowed| path.starts_with(allowed));
        for (index, line) in text.lines().enumerate() {
            for host in HOSTS.iter().filter(|host| !may_name_hosts && line.contains(**host)) {
                if (path, *host) == PACKAGE_WITH_A_HOSTS_NAME {
                    continue;
                }
                problems.push(Problem::of_line(path, index, format!("the registry host {host} is named")));
            }
            if checkout.is_some_and(|checkout| line.contains(checkout)) {
                problems.push(Problem::of_line(path, index, "the directory of this checkout is named"));
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_the_checkout_are_found_outside_the_lock_file() {
        let host = HOSTS.first().unwrap();
        let pull = format!("pull {host}/library/debian\n");
        let line = format!("{pull}cd /srv/checkout/perennial\n");
        let package = format!("packages=\"podman {host}\"\n");
        let tree = Tree::of(&[("README.md", &line), ("Cargo.lock", &pull), ("setup", &package)]);
        let problems: Vec<String> = check(&tree, Path::new("/srv/checkout")).iter().map(ToString::to_string).collect();
        assert_eq!(
            problems,
            [
                format!("README.md:1: the registry host {host} is named"),
                "README.md:2: the directory of this checkout is named".to_owned(),
            ]
        );
        assert_eq!(check(&tree, Path::new("/srv")).len(), 1);
    }
}
