//! Whom to believe that it is a registry: what this machine trusts, and the certificates that container engines keep for
//! single registries (containers-certs.d(5)), so that one that podman or docker can use can be used here.
//!
//! Of such a directory only the authorities are read, `*.crt`; certificates of a client (`*.cert`, `*.key`) are not used.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

/// Longest file of certificates, in bytes: that of all public authorities has a quarter of it.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// A file or directory cannot be read.
    #[error("certificates in {} cannot be read", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not what its name says.
    #[error("{} is not a certificate: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

impl TrustError {
    /// Returns what to do about it.
    #[must_use]
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::Read { .. } => "make it readable, or take it away",
            Self::Malformed { .. } => "put the certificate of the authority there, as PEM, or take the file away",
        }
    }
}

/// Returns the directories in which engines keep a directory for each registry, given the environment.
#[must_use]
pub fn directories(env: &dyn Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let path = |name: &str| env(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let config = path("XDG_CONFIG_HOME").or_else(|| path("HOME").map(|home| home.join(".config")));
    let own = config.map(|dir| dir.join("containers/certs.d"));
    own.into_iter().chain(["/etc/containers/certs.d", "/etc/docker/certs.d"].map(PathBuf::from)).collect()
}

/// Returns whether a registry, `HOST[:PORT]`, is spoken to by HTTP without TLS; where its certificates cannot be used it is
/// not spoken to at all.
#[must_use]
pub fn is_plain(registry: &str, plain_http: bool, directories: &[PathBuf]) -> bool {
    Trust::of(registry, plain_http, directories).is_ok_and(|trust| trust.is_plain)
}

/// How to speak to a registry.
#[derive(Debug)]
pub(crate) struct Trust {
    /// Whether to speak HTTP without TLS.
    pub is_plain: bool,
    /// Authorities to trust beside those of this machine, as DER.
    pub authorities: Vec<Vec<u8>>,
}

impl Trust {
    /// Decides how to speak to `host` (`HOST[:PORT]`): by TLS, but where it was asked otherwise, or where it is this
    /// machine itself and there are no certificates for it. The first of the `directories` that has some is used.
    ///
    /// # Errors
    /// Where certificates for the registry cannot be read or are not valid.
    pub(crate) fn of(host: &str, plain_http: bool, directories: &[PathBuf]) -> Result<Self, TrustError> {
        if plain_http {
            return Ok(Self { is_plain: true, authorities: Vec::new() });
        }
        let mut authorities = Vec::new();
        // A host that is a path would lead elsewhere; it is refused where it is looked up.
        let directories = if host.contains('/') || host == ".." { &[] } else { directories };
        for directory in directories {
            authorities = read_directory(&directory.join(host))?;
            if !authorities.is_empty() {
                break;
            }
        }
        Ok(Self { is_plain: authorities.is_empty() && is_loopback(host), authorities })
    }

    /// Returns the authorities for the client that does the logins.
    pub(crate) fn for_login(&self) -> Vec<oci_client::client::Certificate> {
        let encoding = || oci_client::client::CertificateEncoding::Der;
        let make = |data: &Vec<u8>| oci_client::client::Certificate { encoding: encoding(), data: data.clone() };
        self.authorities.iter().map(make).collect()
    }

    /// Returns the authorities for the client that does the transfers.
    pub(crate) fn for_transfers(&self) -> Result<Vec<reqwest::Certificate>, reqwest::Error> {
        self.authorities.iter().map(|data| reqwest::Certificate::from_der(data)).collect()
    }
}

/// What to do where a certificate is not trusted.
pub(crate) const UNTRUSTED_HINT: &str = "check that it is the right registry; where it is, put the certificate of whoever \
    signed it into /etc/containers/certs.d/HOST:PORT/ca.crt, or among those this machine trusts; one that has signed itself \
    must not say that it is an authority (openssl: basicConstraints=CA:FALSE)";

/// Returns whether a transfer failed because the certificate of the other side is not to be trusted.
pub(crate) fn is_untrusted(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(cause) = next {
        if matches!(cause.downcast_ref(), Some(rustls::Error::InvalidCertificate(_))) {
            return true;
        }
        // The source of an input error is that of what it wraps.
        let wrapped = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = wrapped.map_or_else(|| cause.source(), |inner| Some(inner));
    }
    false
}

/// Returns whether a registry is this machine itself, where TLS is not expected.
fn is_loopback(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Returns the certificates in the files `*.crt` of a directory; none where there is no such directory.
fn read_directory(directory: &Path) -> Result<Vec<Vec<u8>>, TrustError> {
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source| TrustError::Read { path, source }
    };
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(failed(directory)(error)),
    };
    let mut certificates = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed(directory))?.path();
        if path.extension().is_some_and(|extension| extension == "crt") {
            let malformed = |reason: String| TrustError::Malformed { path: path.clone(), reason };
            let bytes = std::fs::metadata(&path).map_err(failed(&path))?.len();
            if bytes > FILE_BYTES_MAX {
                return Err(malformed(format!("it has {bytes} bytes")));
            }
            let text = std::fs::read(&path).map_err(failed(&path))?;
            let before = certificates.len();
            for certificate in CertificateDer::pem_slice_iter(&text) {
                let certificate = certificate.map_err(|error| malformed(error.to_string()))?;
                let mut probe = rustls::RootCertStore::empty();
                probe.add(certificate.clone()).map_err(|error| malformed(error.to_string()))?;
                certificates.push(certificate.to_vec());
            }
            if certificates.len() == before {
                return Err(malformed("there is none in it".to_owned()));
            }
        }
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_keep_certificates_at_home_first() {
        let at = |home: Option<&'static str>, config: Option<&'static str>| {
            directories(&move |name| match name {
                "HOME" => home.map(OsString::from),
                "XDG_CONFIG_HOME" => config.map(OsString::from),
                _ => None,
            })
        };
        let system = ["/etc/containers/certs.d", "/etc/docker/certs.d"].map(PathBuf::from);
        assert_eq!(at(None, None), system);
        assert_eq!(at(Some("/h"), None)[0], Path::new("/h/.config/containers/certs.d"));
        assert_eq!(at(Some("/h"), Some("/c"))[0], Path::new("/c/containers/certs.d"));
        assert_eq!(at(Some("/h"), Some(""))[1..], system);
    }

    #[test]
    fn only_this_machine_is_spoken_to_without_tls_unasked() {
        for (host, is_plain) in [
            ("localhost", true),
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("127.9.9.9", true),
            ("[::1]:5000", true),
            ("10.0.0.1:5000", false),
            ("localhost.example:5000", false),
            ("registry.example", false),
        ] {
            assert_eq!(Trust::of(host, false, &[]).unwrap().is_plain, is_plain, "{host}");
            assert!(Trust::of(host, true, &[]).unwrap().is_plain, "{host}");
        }
    }

    fn write(path: &Path, text: &str) {
        std::io::Write::write_all(&mut std::fs::File::create(path).unwrap(), text.as_bytes()).unwrap();
    }

    #[test]
    fn what_is_not_a_certificate_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("localhost:5000");
        std::fs::create_dir(&place).unwrap();
        write(&place.join("notes.txt"), "not looked at");
        let trust = |host: &str| Trust::of(host, false, &[dir.path().to_path_buf()]);
        assert!(trust("localhost:5000").unwrap().is_plain);
        for text in ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            write(&place.join("ca.crt"), text);
            let error = trust("localhost:5000").unwrap_err();
            assert!(error.to_string().contains("localhost:5000/ca.crt"), "{error}");
        }
        assert!(trust("../localhost:5000").is_ok(), "a path is no host");
    }
}
