//! Who may do what: actions, the policy that grants them, scopes of tokens, and challenges (the token protocol that
//! container clients speak).

use super::fault::{Code, Fault};
use super::name::Repository;
use super::route::Route;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Most scopes in one request for a token.
pub const SCOPES_MAX: usize = 100;

/// Something that may be done with a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Read manifests, blobs and lists.
    Pull,
    /// Upload blobs, put manifests and tags.
    Push,
    /// Delete them.
    Delete,
}

impl Action {
    /// Returns its name in a scope.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Delete => "delete",
        }
    }

    /// Parses a name in a scope; `*` is every action, and what is not known is none.
    fn parse(text: &str) -> &'static [Self] {
        match text {
            "pull" => &[Self::Pull],
            "push" => &[Self::Push],
            "delete" => &[Self::Delete],
            "*" => &[Self::Pull, Self::Push, Self::Delete],
            _ => &[],
        }
    }
}

/// Returns what a request needs; nothing for the base, for which a login is enough.
#[must_use]
pub fn needed(method: &str, route: &Route) -> Option<Action> {
    route.repository()?;
    Some(match (method, route) {
        ("GET" | "HEAD", Route::Upload(..)) => Action::Push,
        ("GET" | "HEAD", _) => Action::Pull,
        ("DELETE", Route::Blob(..) | Route::Manifest(..)) => Action::Delete,
        (_, _) => Action::Push,
    })
}

/// One line of a policy: these users may do these things with these repositories.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// A user's name; `*` for everybody who has logged in, `anonymous` for everybody at all.
    pub user: String,
    /// A repository's name; `name/*` for all below `name/`, `*` for all. `$user` stands for the user's name.
    pub repositories: String,
    /// What they may do.
    pub actions: BTreeSet<Action>,
}

/// Who may do what. What no rule grants is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// The rules; each adds to what the others grant.
    pub rules: Vec<Rule>,
}

impl Default for Policy {
    /// Everybody who has logged in may do everything.
    fn default() -> Self {
        let actions = BTreeSet::from([Action::Pull, Action::Push, Action::Delete]);
        Self { rules: Vec::from([Rule { user: "*".to_string(), repositories: "*".to_string(), actions }]) }
    }
}

impl Policy {
    /// Returns what a user, or somebody who has not logged in, may do with a repository.
    #[must_use]
    pub fn granted(&self, user: Option<&str>, repository: &Repository) -> BTreeSet<Action> {
        let rules = self.rules.iter().filter(|rule| rule.is_for(user) && rule.covers(user, repository.as_str()));
        rules.flat_map(|rule| rule.actions.iter().copied()).collect()
    }

    /// Refuses a rule that grants nothing to anybody, as whoever wrote it meant something else.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub fn check(&self, passwords: &Passwords) -> Result<(), PolicyError> {
        for rule in &self.rules {
            let is_user = ["*", "anonymous"].contains(&rule.user.as_str()) || passwords.sum_of(&rule.user).is_some();
            if !is_user {
                return Err(PolicyError::User { user: rule.user.clone() });
            }
            let pattern = rule.repositories.replace("$user", "user");
            let name = pattern.strip_suffix("/*").unwrap_or(&pattern);
            if pattern != "*" && Repository::parse(name).is_err() {
                return Err(PolicyError::Repositories { repositories: rule.repositories.clone() });
            }
            if rule.actions.is_empty() {
                return Err(PolicyError::Actions { user: rule.user.clone() });
            }
        }
        Ok(())
    }

    /// Returns whether anything is granted to somebody who has not logged in.
    #[must_use]
    pub fn has_anonymous(&self) -> bool {
        self.rules.iter().any(|rule| rule.is_for(None))
    }
}

/// Why a policy cannot be meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A rule is for a user who has no password.
    #[error("a rule is for {user}, who has no password; `*` is everybody who has one, `anonymous` everybody")]
    User {
        /// Whose.
        user: String,
    },
    /// A rule's repositories are none.
    #[error("{repositories:?} can be no repositories: give a name, `name/*` for all below it, or `*` for all")]
    Repositories {
        /// What it says.
        repositories: String,
    },
    /// A rule grants no action.
    #[error("a rule for {user} grants no action")]
    Actions {
        /// Whose.
        user: String,
    },
}

impl Rule {
    fn is_for(&self, user: Option<&str>) -> bool {
        match user {
            None => self.user == "anonymous",
            Some(user) => self.user == "*" || self.user == "anonymous" || self.user == user,
        }
    }

    fn covers(&self, user: Option<&str>, repository: &str) -> bool {
        let pattern = match user {
            Some(user) => self.repositories.replace("$user", user),
            // A pattern of somebody's own never fits nobody.
            None => self.repositories.clone(),
        };
        match pattern.strip_suffix('*') {
            None => pattern == repository,
            Some("") => true,
            Some(prefix) => prefix.ends_with('/') && repository.starts_with(prefix),
        }
    }
}

/// What a token lets its bearer do with one repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// What kind of thing: always `repository`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The repository.
    pub name: String,
    /// What may be done.
    pub actions: BTreeSet<Action>,
}

/// Reads the scopes of a request for a token and returns what of them the policy grants; what is not granted is left
/// out, as clients expect: the registry then refuses.
///
/// # Errors
/// `DENIED` with 400 where there are too many.
pub fn grant<'a>(
    policy: &Policy,
    user: Option<&str>,
    scopes: impl Iterator<Item = &'a str>,
) -> Result<Vec<Access>, Fault> {
    let mut all = Vec::new();
    for scope in scopes.flat_map(str::split_whitespace) {
        if all.len() == SCOPES_MAX {
            return Err(Fault::new(Code::Denied, format!("more than {SCOPES_MAX} scopes")).with_status(400));
        }
        let Some((rest, actions)) = scope.strip_prefix("repository:").and_then(|rest| rest.rsplit_once(':')) else {
            continue;
        };
        let Ok(name) = Repository::parse(rest) else { continue };
        let granted = policy.granted(user, &name);
        let asked = actions.split(',').flat_map(|action| Action::parse(action).iter().copied());
        let actions: BTreeSet<Action> = asked.filter(|action| granted.contains(action)).collect();
        if !actions.is_empty() {
            all.push(Access { kind: "repository".to_string(), name: name.to_string(), actions });
        }
    }
    Ok(all)
}

/// Returns whether a token lets its bearer do this.
#[must_use]
pub fn allows(access: &[Access], action: Action, repository: &Repository) -> bool {
    access
        .iter()
        .any(|item| item.kind == "repository" && item.name == repository.as_str() && item.actions.contains(&action))
}

/// What is wrong with the token that a client has sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenFault {
    /// It is over, another's, or no token: the client asks for a new one.
    Invalid,
    /// It does not let its bearer do this.
    Insufficient,
}

/// Returns the challenge that sends a client to where tokens are made.
#[must_use]
pub fn bearer_challenge(
    realm: &str,
    service: &str,
    need: Option<(Action, &Repository)>,
    fault: Option<TokenFault>,
) -> String {
    let scope = need.map_or_else(String::new, |(action, repository)| {
        let actions = if action == Action::Push { "pull,push" } else { action.as_str() };
        format!(",scope=\"repository:{repository}:{actions}\"")
    });
    let error = match fault {
        None => "",
        Some(TokenFault::Invalid) => ",error=\"invalid_token\"",
        Some(TokenFault::Insufficient) => ",error=\"insufficient_scope\"",
    };
    format!("Bearer realm=\"{realm}\",service=\"{service}\"{scope}{error}")
}

/// A file of names and bcrypt sums, as `htpasswd -B` writes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Passwords(Vec<(String, String)>);

/// Why a file of passwords cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PasswordsError {
    /// A line is not `NAME:SUM`.
    #[error("line {line} is not NAME:SUM")]
    Line {
        /// Which line, from 1.
        line: usize,
    },
    /// A sum is not bcrypt's.
    #[error("the password of {name} is not kept by bcrypt; `htpasswd -B` writes such files")]
    NotBcrypt {
        /// Whose.
        name: String,
    },
}

impl Passwords {
    /// Parses a file; empty lines and comments are passed over.
    ///
    /// # Errors
    /// [`PasswordsError`].
    pub fn parse(text: &str) -> Result<Self, PasswordsError> {
        let mut all = Vec::new();
        for (at, line) in text.lines().map(str::trim).enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let no_line = PasswordsError::Line { line: at.saturating_add(1) };
            let (name, sum) = line.split_once(':').filter(|(name, _)| !name.is_empty()).ok_or(no_line)?;
            if !["$2a$", "$2b$", "$2y$"].iter().any(|prefix| sum.starts_with(prefix)) {
                return Err(PasswordsError::NotBcrypt { name: name.to_string() });
            }
            all.push((name.to_string(), sum.to_string()));
        }
        Ok(Self(all))
    }

    /// Returns the sum that is checked for a name that nobody has, chosen by a number that is the name's own: as some names
    /// of the file are quicker to check than others, so are these.
    #[must_use]
    pub fn decoy(&self, number: u64) -> Option<&str> {
        let count = u64::try_from(self.0.len()).ok().filter(|count| *count > 0)?;
        self.0.get(usize::try_from(number % count).ok()?).map(|(_, sum)| sum.as_str())
    }

    /// Returns the sum of a user's password.
    #[must_use]
    pub fn sum_of(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, sum)| sum.as_str())
    }
}
