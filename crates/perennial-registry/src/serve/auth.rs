//! Who may do what: passwords, and the tokens that container clients ask for.
//!
//! A client that is not let in is told where tokens are made (`/token` of this registry); it asks there with its
//! password, or without one, and comes back with a token that names what it may do. A password itself is taken too. A
//! token is a JWT (HS256) that is valid for [`TOKEN_S`] and signed with a key that is made at each start; a client whose
//! token is not known any more asks for another by itself.

use super::app::{App, Call};
use super::meta::lock;
use super::reply::{self, Reply};
use super::trouble::Trouble;
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use hyper::header::{ALLOW, AUTHORIZATION, CACHE_CONTROL, HOST, WWW_AUTHENTICATE};
use hyper::{Method, StatusCode};
use perennial_core::registry::access::{
    Access, Action, Passwords, Policy, TokenFault, allows, bearer_challenge, grant,
};
use perennial_core::registry::bounds::{Failures, origin};
use perennial_core::registry::fault::{Code, Fault};
use perennial_core::registry::name::Repository;
use perennial_core::time::Time;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::Sha256;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long a token is valid: clients take 60 s where they are told nothing, and longer only saves requests.
const TOKEN_S: i64 = 300;
/// Passwords checked at once; a check is slow on purpose.
const LOGINS_MAX: usize = 8;
/// Of those, from one address.
const LOGINS_PER_ORIGIN_MAX: usize = 4;
/// Longest wait for a check.
const LOGIN_WAIT: Duration = Duration::from_secs(10);
/// Most logins that are remembered as right.
const REMEMBERED_MAX: usize = 10_000;

/// How clients log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// They send name and password with each request.
    Basic,
    /// They ask for tokens.
    Token,
}

/// What is needed to let only some clients in.
#[derive(Debug, Clone)]
pub struct Accounts {
    /// How clients log in.
    pub scheme: Scheme,
    /// Their passwords.
    pub passwords: Passwords,
    /// What they may do.
    pub policy: Policy,
}

/// What a request may do.
#[derive(Debug, Clone)]
pub(crate) enum Rights {
    /// Everything: nobody has to log in.
    All,
    /// What the policy grants to a user, or to somebody who has not logged in.
    Policy(Option<String>),
    /// What a token grants, and the user it was made for, if any.
    Token(Option<String>, Vec<Access>),
}

impl Rights {
    /// Returns who has logged in.
    pub(crate) fn user(&self) -> Option<&str> {
        match self {
            Self::All => None,
            Self::Policy(user) | Self::Token(user, _) => user.as_deref(),
        }
    }
}

/// The doorkeeper.
#[derive(Debug)]
pub(crate) struct Auth {
    accounts: Option<Accounts>,
    key: [u8; 32],
    logins: Arc<Semaphore>,
    /// The same for each address from which logins are being checked.
    origins: Mutex<BTreeMap<IpAddr, Arc<Semaphore>>>,
    right: Mutex<BTreeSet<[u8; 32]>>,
    failures: Arc<Mutex<Failures<[u8; 32]>>>,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: String,
    iat: i64,
    nbf: i64,
    exp: i64,
    access: Vec<Access>,
}

impl Auth {
    /// Makes one, with a key of its own.
    pub(crate) fn new(accounts: Option<Accounts>) -> Result<Self, Trouble> {
        let mut key = [0_u8; 32];
        rustix::rand::getrandom(&mut key, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| Trouble::io("cannot make a key for tokens")(error.into()))?;
        Ok(Self {
            accounts,
            key,
            logins: Arc::new(Semaphore::new(LOGINS_MAX)),
            origins: Mutex::default(),
            right: Mutex::default(),
            failures: Arc::default(),
        })
    }

    /// Lets a request in, or returns the challenge it is answered with; says who has logged in, in any case.
    pub(crate) async fn check(
        &self,
        app: &App,
        call: &Call,
        need: Option<(Action, &Repository)>,
        who: &mut Option<String>,
    ) -> Result<Result<Rights, Reply>, Trouble> {
        let Some(accounts) = &self.accounts else { return Ok(Ok(Rights::All)) };
        let header = call.header(&AUTHORIZATION).unwrap_or_default();
        let rights = match header.split_once(' ') {
            Some((kind, token)) if kind.eq_ignore_ascii_case("bearer") => self
                .verify(token.trim(), &service(app, call), app.now())
                .map(|(user, access)| Rights::Token(user, access)),
            Some((kind, login)) if kind.eq_ignore_ascii_case("basic") => {
                self.login(app, accounts, (login.trim(), call.from)).await?.map(|user| Rights::Policy(Some(user)))
            }
            Some(_) | None => Some(Rights::Policy(None)).filter(|_| header.is_empty()),
        };
        *who = rights.as_ref().and_then(Rights::user).map(str::to_owned);
        let is_let_in = match (&rights, need) {
            (None | Some(Rights::Policy(None)), None) | (None, Some(_)) => false,
            (Some(_), None) => true,
            (Some(rights), Some((action, repository))) => self.allows(rights, action, repository),
        };
        let fault = match &rights {
            None => Some(TokenFault::Invalid),
            Some(Rights::Token(..)) => Some(TokenFault::Insufficient),
            Some(_) => None,
        };
        match rights {
            Some(rights) if is_let_in => Ok(Ok(rights)),
            Some(Rights::Policy(Some(user))) => {
                Err(Fault::new(Code::Denied, format!("{user} may not do this here")).into())
            }
            Some(_) | None => Ok(Err(challenge((accounts.scheme, fault), app, call, need))),
        }
    }

    /// Returns whether a request that was let in may also do this.
    pub(crate) fn allows(&self, rights: &Rights, action: Action, repository: &Repository) -> bool {
        match (rights, &self.accounts) {
            (Rights::All, _) => true,
            (Rights::Token(_, access), _) => allows(access, action, repository),
            (Rights::Policy(_), None) => false,
            (Rights::Policy(user), Some(accounts)) => {
                accounts.policy.granted(user.as_deref(), repository).contains(&action)
            }
        }
    }

    /// Checks name and password; returns the name where they are right.
    async fn login(
        &self,
        app: &App,
        accounts: &Accounts,
        (login, from): (&str, IpAddr),
    ) -> Result<Option<String>, Trouble> {
        let decoded = BASE64_STANDARD.decode(login).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let Some((user, password)) = decoded.as_deref().and_then(|text| text.split_once(':')) else { return Ok(None) };
        let known = accounts.passwords.sum_of(user);
        let print: [u8; 32] = self.signed(&[user, password, known.unwrap_or_default()].join("\0"));
        if lock(&self.right).contains(&print) {
            return Ok(Some(user.to_owned()));
        }
        let from = origin(from);
        let sender = self.signed(&format!("{from}\0{user}"));
        let permits = self.turn(from).await?;
        // After the wait, so that many at once gain nothing.
        if lock(&self.failures).are_too_many(&sender, app.now()) {
            return Err(too_many("too many wrong passwords for this name: try again in a minute"));
        }
        // A name that nobody has takes as long as one that somebody has.
        let own = sender.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let Some(sum) = known.or_else(|| accounts.passwords.decoy(own)) else { return Ok(None) };
        let (sum, password, is_known) = (sum.to_owned(), password.to_owned(), known.is_some());
        let (failures, now) = (Arc::clone(&self.failures), app.now());
        let check = move || {
            let is_right = bcrypt::verify(password, &sum).unwrap_or(false) && is_known;
            if !is_right {
                // Here, so that nobody escapes it by going away.
                lock(&failures).add(sender, now);
            }
            drop(permits);
            Ok(is_right)
        };
        if !super::app::blocking(check).await? {
            return Ok(None);
        }
        let mut right = lock(&self.right);
        if right.len() >= REMEMBERED_MAX {
            right.clear();
        }
        right.insert(print);
        Ok(Some(user.to_owned()))
    }

    /// Waits for the turn of a check. Whoever sends many waits behind them; others do not.
    async fn turn(&self, from: IpAddr) -> Result<(OwnedSemaphorePermit, OwnedSemaphorePermit), Trouble> {
        let of_origin = {
            let mut origins = lock(&self.origins);
            // Those from which nothing is being checked, and nothing waits.
            origins.retain(|_, logins| Arc::strong_count(logins) > 1);
            let new = || Arc::new(Semaphore::new(LOGINS_PER_ORIGIN_MAX));
            Arc::clone(origins.entry(from).or_insert_with(new))
        };
        let both = async { Ok((of_origin.acquire_owned().await?, Arc::clone(&self.logins).acquire_owned().await?)) };
        let both: Result<_, tokio::sync::AcquireError> = tokio::time::timeout(LOGIN_WAIT, both)
            .await
            .map_err(|_| too_many("too many logins at once: try again in a moment"))?;
        both.map_err(|_| Trouble::Ending)
    }

    fn mac(&self, text: &str) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes keys of any length");
        mac.update(text.as_bytes());
        mac
    }

    fn signed(&self, text: &str) -> [u8; 32] {
        self.mac(text).finalize().into_bytes().into()
    }

    fn issue(&self, claims: &Claims) -> String {
        let part = |value: serde_json::Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!("{}.{}", part(json!({"alg": "HS256", "typ": "JWT"})), part(json!(claims)));
        let signature = BASE64_URL_SAFE_NO_PAD.encode(self.signed(&text));
        format!("{text}.{signature}")
    }

    fn verify(&self, token: &str, service: &str, now: Time) -> Option<(Option<String>, Vec<Access>)> {
        let (text, signature) = token.rsplit_once('.')?;
        let signature = BASE64_URL_SAFE_NO_PAD.decode(signature).ok()?;
        self.mac(text).verify_slice(&signature).ok()?;
        let (_, claims) = text.split_once('.')?;
        let claims: Claims = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
        let now = seconds(now);
        let is_valid = claims.aud == service && claims.nbf <= now && now < claims.exp;
        is_valid.then(|| (Some(claims.sub).filter(|user| !user.is_empty()), claims.access))
    }
}

impl Call {
    /// Returns whether this request may also read all repositories.
    pub(crate) fn may_read_all(&self, app: &App) -> bool {
        match &self.rights {
            Rights::All => true,
            // A token names the repositories it was asked for; whoever has it may not be told about others.
            Rights::Token(..) | Rights::Policy(None) => false,
            Rights::Policy(user @ Some(_)) => app.auth.accounts.as_ref().is_some_and(|accounts| {
                let is_all = |repositories: &str| repositories == "*";
                accounts.policy.rules.iter().any(|rule| {
                    is_all(&rule.repositories)
                        && rule.actions.contains(&Action::Pull)
                        && (rule.user == "*" || rule.user == "anonymous" || Some(&rule.user) == user.as_ref())
                })
            }),
        }
    }
}

/// Returns the answer that says how to log in.
fn challenge(
    (scheme, token): (Scheme, Option<TokenFault>),
    app: &App,
    call: &Call,
    need: Option<(Action, &Repository)>,
) -> Reply {
    let fault = Fault::new(Code::Unauthorized, "log in first");
    let challenge = match scheme {
        Scheme::Basic => "Basic realm=\"perennial\"".to_owned(),
        Scheme::Token => bearer_challenge(&realm(app, call), &service(app, call), need, token),
    };
    reply::with(reply::refused(&fault), WWW_AUTHENTICATE, challenge)
}

fn too_many(message: &str) -> Trouble {
    Fault::new(Code::TooManyRequests, message).into()
}

fn seconds(time: Time) -> i64 {
    time.unix_nanos().div_euclid(1_000_000_000)
}

/// Returns the name of this registry in tokens: that of the address by which clients reach it, as a proxy may pass on
/// another name, and another one to `/token` than to the rest.
fn service(app: &App, call: &Call) -> String {
    let public = app.options.public_url.as_deref().map(|url| url.split_once("://").map_or(url, |(_, rest)| rest));
    match public.and_then(|rest| rest.split('/').next()).filter(|host| !host.is_empty()) {
        Some(host) => host.to_owned(),
        None => host(call),
    }
}

/// Returns the name by which the client knows this registry.
fn host(call: &Call) -> String {
    let host = call.header(&HOST).unwrap_or_default();
    let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']');
    if host.is_empty() || !host.chars().all(is_host) { "perennial".to_owned() } else { host.to_owned() }
}

fn realm(app: &App, call: &Call) -> String {
    let scheme = if app.options.tls.is_some() { "https" } else { "http" };
    match &app.options.public_url {
        Some(url) => format!("{}/token", url.trim_end_matches('/')),
        None => format!("{scheme}://{}/token", host(call)),
    }
}

/// Answers `GET /token`.
pub(crate) async fn token(app: &Arc<App>, call: &Call, who: &mut Option<String>) -> Result<Reply, Trouble> {
    let auth = &app.auth;
    let Some(accounts) = &auth.accounts else { return Ok(reply::empty(StatusCode::NOT_FOUND)) };
    if call.parts.method != Method::GET {
        let fault = Fault::new(Code::Unsupported, "tokens are asked for with GET");
        return Ok(reply::with(reply::refused(&fault), ALLOW, "GET"));
    }
    let user = match call.header(&AUTHORIZATION).and_then(|header| header.split_once(' ')) {
        None => None,
        Some((_, login)) => match auth.login(app, accounts, (login.trim(), call.from)).await? {
            Some(user) => Some(user),
            None => {
                let fault = Fault::new(Code::Unauthorized, "name or password is wrong");
                return Ok(reply::with(reply::refused(&fault), WWW_AUTHENTICATE, "Basic realm=\"perennial\""));
            }
        },
    };
    if user.is_none() && !accounts.policy.has_anonymous() {
        let fault = Fault::new(Code::Unauthorized, "log in first");
        return Ok(reply::with(reply::refused(&fault), WWW_AUTHENTICATE, "Basic realm=\"perennial\""));
    }
    who.clone_from(&user);
    let now = seconds(app.now());
    let access = grant(&accounts.policy, user.as_deref(), call.query.all("scope"))?;
    let claims = Claims {
        iss: "perennial".into(),
        sub: user.unwrap_or_default(),
        aud: service(app, call),
        iat: now,
        nbf: now.saturating_sub(60),
        exp: now.saturating_add(TOKEN_S),
        access,
    };
    let token = auth.issue(&claims);
    let body = json!({
        "token": token, "access_token": token, "expires_in": TOKEN_S,
        "issued_at": Time::from_unix_nanos(now.saturating_mul(1_000_000_000)),
    });
    Ok(reply::with(reply::json(StatusCode::OK, body.to_string()), CACHE_CONTROL, "no-store"))
}
