//! One repository of a registry: its manifests by tag, its blobs in parts, both ways.
//!
//! Tasks: one thread, one runtime, made for each call; up to `PARALLEL` transfers at once. A transfer that breaks is
//! tried again; a download goes on where it stopped. Works with any registry that speaks the OCI Distribution
//! Specification; what one can do beyond it is asked first: [`Repository::has_conditional_tags`].
//!
//! What is received by [`Repository::read`] is not compared with a digest here, as only parts of blobs are asked for:
//! the caller does that.

mod blobs;
mod error;
mod manifests;

pub use blobs::{Lacking, Part, Sink, Upload, sum};
pub use error::RepositoryError;
pub use manifests::{Expected, Tagged};

use crate::credentials::{self, Credentials};
use crate::pull::{CONNECT_TIMEOUT, READ_TIMEOUT, blob};
use crate::trust::Trust;
use error::is_passing;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use reqwest::header::WWW_AUTHENTICATE;
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Transfers on their way at once.
const PARALLEL: usize = 4;
/// Longest body of an answer that is no content, in bytes: an error's text.
const ERROR_BYTES_MAX: usize = 4096;
/// What a registry says that compares a tag before it changes it.
pub(crate) const CONDITIONAL_TAGS: &str = "perennial-conditional-tags";

/// What is to be done in a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Only reading.
    Pull,
    /// Reading and writing.
    Push,
}

/// Which repository, and how to speak to its registry.
#[derive(Debug, Clone)]
pub struct RepositoryOptions {
    /// The registry, as `HOST[:PORT]`.
    pub registry: String,
    /// The repository.
    pub repository: String,
    /// The login.
    pub credentials: Credentials,
    /// Whether to speak HTTP without TLS. A registry on this machine's loopback is spoken to so where there are no
    /// certificates for it.
    pub plain_http: bool,
    /// Where certificates of registries are: [`crate::trust::directories`].
    pub certificates: Vec<PathBuf>,
    /// Failures in a row without a byte of progress after which a request is given up.
    pub tries_max: u32,
}

/// Bytes of contents that went over the network, headers not counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Sent.
    pub sent_bytes: u64,
    /// Received.
    pub received_bytes: u64,
    /// Requests.
    pub requests: u64,
}

#[derive(Debug, Default)]
struct Counters {
    sent: AtomicU64,
    received: AtomicU64,
    requests: AtomicU64,
}

/// How requests prove who sends them.
enum Authorization {
    Bearer(String),
    Basic(String, String),
}

/// A repository.
pub struct Repository {
    runtime: tokio::runtime::Runtime,
    http: reqwest::Client,
    login: Client,
    auth: RegistryAuth,
    reference: Reference,
    base: Url,
    access: Access,
    authorization: RefCell<Option<Authorization>>,
    has_conditional_tags: bool,
    tries_max: u32,
    counters: Arc<Counters>,
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repository").field("reference", &self.reference.whole()).finish_non_exhaustive()
    }
}

/// Splits `[HOST[:PORT]/]NAME[:TAG]` into registry, repository and tag.
///
/// # Errors
/// [`RepositoryError::Address`] where it is not valid, or names a digest.
pub fn parse_reference(text: &str) -> Result<(String, String, String), RepositoryError> {
    let invalid = |reason: String| RepositoryError::Address { text: text.to_owned(), reason };
    let reference: Reference = text.parse().map_err(|error| invalid(format!("{error}")))?;
    if reference.digest().is_some() {
        return Err(invalid("a digest cannot be given to what is sent".to_owned()));
    }
    let tag = reference.tag().unwrap_or("latest").to_owned();
    Ok((reference.registry().to_owned(), reference.repository().to_owned(), tag))
}

impl Repository {
    /// Logs in to a registry.
    ///
    /// # Errors
    /// [`RepositoryError`] where the address is not valid, the registry cannot be reached or refuses.
    pub fn open(options: &RepositoryOptions, access: Access) -> Result<Self, RepositoryError> {
        let text = format!("{}/{}", options.registry, options.repository);
        let invalid = |reason: String| RepositoryError::Address { text: text.clone(), reason };
        let reference = Reference::with_tag(options.registry.clone(), options.repository.clone(), "latest".to_owned());
        let login = credentials::find(&options.credentials, reference.registry(), reference.repository())?;
        let auth = login.map_or(RegistryAuth::Anonymous, |login| RegistryAuth::Basic(login.user, login.password));
        let host = reference.resolve_registry().to_owned();
        let trust = Trust::of(&host, options.plain_http, &options.certificates)?;
        let (scheme, protocol) =
            if trust.is_plain { ("http", ClientProtocol::Http) } else { ("https", ClientProtocol::Https) };
        let base = Url::parse(&format!("{scheme}://{host}/v2/")).map_err(|error| invalid(error.to_string()))?;
        // Fails only where another provider is installed already, which then serves as well.
        drop(rustls::crypto::ring::default_provider().install_default());
        let user_agent = concat!("perennial/", env!("CARGO_PKG_VERSION"));
        let config = ClientConfig {
            protocol,
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(READ_TIMEOUT),
            user_agent,
            extra_root_certificates: trust.for_login(),
            ..ClientConfig::default()
        };
        let unusable = |reason: String| RepositoryError::Client { reason };
        let login = Client::try_from(config).map_err(|error| unusable(error.to_string()))?;
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .user_agent(user_agent)
            .tls_certs_merge(trust.for_transfers().map_err(|error| unusable(error.to_string()))?)
            .build()
            .map_err(|error| unusable(error.to_string()))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let mut repository = Self {
            runtime: runtime.map_err(RepositoryError::Runtime)?,
            http,
            login,
            auth,
            reference,
            base,
            access,
            authorization: RefCell::new(None),
            has_conditional_tags: false,
            tries_max: options.tries_max.max(1),
            counters: Arc::default(),
        };
        repository.has_conditional_tags = repository.runtime.block_on(repository.greet())?;
        Ok(repository)
    }

    /// Returns whether the registry can be asked to change a tag only where it is as it was expected to be.
    #[must_use]
    pub const fn has_conditional_tags(&self) -> bool {
        self.has_conditional_tags
    }

    /// Returns the repository as people write it.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.reference.registry(), self.reference.repository())
    }

    /// Returns what went over the network so far.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let Counters { sent, received, requests } = &*self.counters;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Traffic { sent_bytes: load(sent), received_bytes: load(received), requests: load(requests) }
    }

    /// Logs in and asks what the registry can do.
    async fn greet(&self) -> Result<bool, RepositoryError> {
        let has_flag = self
            .retried(async || {
                self.log_in().await?;
                let response = self.send(self.request(Method::GET, self.base.clone())).await?;
                Ok(response.headers().get(CONDITIONAL_TAGS).is_some_and(|value| value == "1"))
            })
            .await?;
        Ok(has_flag)
    }

    async fn log_in(&self) -> Result<(), RepositoryError> {
        let operation = match self.access {
            Access::Pull => RegistryOperation::Pull,
            Access::Push => RegistryOperation::Push,
        };
        let token = self.login.auth(&self.reference, &self.auth, operation).await;
        let token = match token {
            Err(OciDistributionError::AuthenticationFailure(_)) if let Some(status) = self.login_trouble().await => {
                return Err(RepositoryError::refused(&self.name(), status, b"whoever gives out logins is in trouble"));
            }
            token => token.map_err(|error| RepositoryError::from_login(error, &self.name()))?,
        };
        self.authorization.replace(match (token, &self.auth) {
            (Some(token), _) => Some(Authorization::Bearer(token)),
            (None, RegistryAuth::Basic(user, password)) => Some(Authorization::Basic(user.clone(), password.clone())),
            (None, RegistryAuth::Anonymous | RegistryAuth::Bearer(_)) => None,
        });
        Ok(())
    }

    /// Asks whoever gives out tokens once more, without a login, as the client does not tell whether it refuses or is in
    /// trouble; returns its status in the second case.
    async fn login_trouble(&self) -> Option<StatusCode> {
        let greeting = self.http.get(self.base.clone()).send().await.ok()?;
        let challenge = greeting.headers().get(WWW_AUTHENTICATE)?.to_str().ok()?;
        let of = |name: &str| challenge.split_once(&format!("{name}=\""))?.1.split('"').next();
        let mut url = Url::parse(of("realm")?).ok()?;
        let actions = if self.access == Access::Push { "pull,push" } else { "pull" };
        let scope = format!("repository:{}:{actions}", self.reference.repository());
        url.query_pairs_mut().append_pair("scope", &scope);
        if let Some(service) = of("service") {
            url.query_pairs_mut().append_pair("service", service);
        }
        let status = self.http.get(url).send().await.ok()?.status();
        (status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS).then_some(status)
    }

    /// Returns the address of something in the repository.
    fn url(&self, rest: &str) -> Result<Url, RepositoryError> {
        let relative = format!("{}/{rest}", self.reference.repository());
        self.base
            .join(&relative)
            .map_err(|error| RepositoryError::Address { text: relative, reason: error.to_string() })
    }

    /// Begins a request; the login goes to the registry itself only.
    fn request(&self, method: Method, url: Url) -> RequestBuilder {
        let is_own = url.origin() == self.base.origin();
        let request = self.http.request(method, url);
        match &*self.authorization.borrow() {
            Some(Authorization::Bearer(token)) if is_own => request.bearer_auth(token),
            Some(Authorization::Basic(user, password)) if is_own => request.basic_auth(user, Some(password)),
            Some(_) | None => request,
        }
    }

    /// Sends a request once; what is not a success or `404` is an error.
    async fn send(&self, request: RequestBuilder) -> Result<Response, RepositoryError> {
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        let response = request.send().await.map_err(|source| self.unreachable(source))?;
        let status = response.status();
        if status.is_success() || status == StatusCode::NOT_FOUND {
            return Ok(response);
        }
        Err(self.refusal(response).await)
    }

    fn unreachable(&self, source: reqwest::Error) -> RepositoryError {
        RepositoryError::unreachable(self.reference.registry().to_owned(), source)
    }

    /// Makes an error of an answer.
    async fn refusal(&self, mut response: Response) -> RepositoryError {
        let status = response.status();
        let mut text = Vec::new();
        while text.len() < ERROR_BYTES_MAX
            && let Ok(Some(chunk)) = response.chunk().await
        {
            text.extend_from_slice(&chunk);
        }
        text.truncate(ERROR_BYTES_MAX);
        RepositoryError::refused(&self.name(), status, &text)
    }

    /// Tries until it works, the failure is final, or it has failed too often. A login that has run out is renewed.
    async fn retried<T>(&self, work: impl AsyncFn() -> Result<T, RepositoryError>) -> Result<T, RepositoryError> {
        let mut tries = 0;
        let mut is_renewed = false;
        loop {
            let error = match work().await {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            if matches!(error, RepositoryError::Unauthorized { .. })
                && !is_renewed
                && self.authorization.borrow().is_some()
            {
                is_renewed = true;
                self.log_in().await?;
                continue;
            }
            tries += 1;
            if tries >= self.tries_max || !is_passing(&error) {
                return Err(error);
            }
            tokio::time::sleep(blob::pause(tries)).await;
        }
    }
}
