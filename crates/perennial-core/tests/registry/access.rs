//! Who may do what.

use perennial_core::registry::access::{
    Access, Action, Passwords, PasswordsError, Policy, PolicyError, Rule, TokenFault, allows, bearer_challenge, grant,
    needed,
};
use perennial_core::registry::name::Repository;
use perennial_core::registry::route::Route;
use std::collections::BTreeSet;

fn name(text: &str) -> Repository {
    Repository::parse(text).unwrap()
}

fn policy() -> Policy {
    let text = r#"{"rules": [
        {"user": "anonymous", "repositories": "public/*", "actions": ["pull"]},
        {"user": "*", "repositories": "shared", "actions": ["pull", "push"]},
        {"user": "*", "repositories": "home/$user/*", "actions": ["pull", "push", "delete"]},
        {"user": "root", "repositories": "*", "actions": ["pull", "push", "delete"]}]}"#;
    serde_json::from_str(text).unwrap()
}

#[test]
fn what_no_rule_grants_is_refused() {
    for (user, repository, expected) in [
        (None, "public/a", "pull"),
        (None, "public/a/b", "pull"),
        (None, "public", ""),
        (None, "publicity/a", ""),
        (None, "shared", ""),
        (None, "home/x/a", ""),
        (Some("ann"), "public/a", "pull"),
        (Some("ann"), "shared", "pull push"),
        (Some("ann"), "shared/a", ""),
        (Some("ann"), "home/ann/a", "pull push delete"),
        (Some("ann"), "home/bob/a", ""),
        (Some("*"), "home/ann/a", ""),
        (Some("root"), "home/ann/a", "pull push delete"),
    ] {
        let granted = policy().granted(user, &name(repository));
        let granted: Vec<&str> = granted.into_iter().map(Action::as_str).collect();
        assert_eq!(granted.join(" "), expected, "{user:?} {repository}");
    }
    assert!(policy().has_anonymous());
    assert_eq!(Policy::default().granted(None, &name("a")), BTreeSet::new());
    assert_eq!(Policy::default().granted(Some("x"), &name("a")).len(), 3);
    assert!(serde_json::from_str::<Policy>(r#"{"rules": [], "rule": 1}"#).is_err());
}

#[test]
fn a_rule_that_can_grant_nothing_is_refused() {
    let passwords = Passwords::parse("root:$2y$05$abc").unwrap();
    assert_eq!(policy().check(&passwords), Ok(()));
    assert_eq!(Policy::default().check(&Passwords::default()), Ok(()));
    let rule = |user: &str, repositories: &str, actions: &[Action]| {
        let (user, repositories) = (user.into(), repositories.into());
        Policy { rules: vec![Rule { user, repositories, actions: actions.iter().copied().collect() }] }
            .check(&passwords)
    };
    let pull = &[Action::Pull];
    for (user, repositories) in
        [("root", "*"), ("*", "a/b"), ("anonymous", "a/b/*"), ("*", "$user"), ("*", "a-$user/*")]
    {
        assert_eq!(rule(user, repositories, pull), Ok(()), "{user} {repositories}");
    }
    for repositories in ["garden*", "*/a", "a/*/b", "", "/*", "/a", "a/", "a/**", "Garden", "**"] {
        let refused = Err(PolicyError::Repositories { repositories: repositories.into() });
        assert_eq!(rule("*", repositories, pull), refused);
    }
    for user in ["ann", "", "Root", "root*"] {
        assert_eq!(rule(user, "*", pull), Err(PolicyError::User { user: user.into() }));
    }
    assert_eq!(rule("*", "*", &[]), Err(PolicyError::Actions { user: "*".into() }));
}

#[test]
fn a_token_holds_what_was_asked_for_and_granted() {
    let scopes = [
        "repository:shared:pull,push,delete repository:home/ann/a:*",
        "repository:home/bob/a:pull",
        "registry:catalog:*",
        "repository:../x:pull",
        "nonsense",
    ];
    let granted = grant(&policy(), Some("ann"), scopes.into_iter()).unwrap();
    let access = |name: &str, actions: &[Action]| Access {
        kind: "repository".into(),
        name: name.into(),
        actions: actions.iter().copied().collect(),
    };
    let expected = [
        access("shared", &[Action::Pull, Action::Push]),
        access("home/ann/a", &[Action::Pull, Action::Push, Action::Delete]),
    ];
    assert_eq!(granted, expected);
    assert!(allows(&granted, Action::Push, &name("shared")));
    assert!(!allows(&granted, Action::Delete, &name("shared")));
    assert!(!allows(&granted, Action::Pull, &name("home/ann/b")));
    let many = "repository:shared:pull ".repeat(101);
    assert_eq!(grant(&policy(), Some("ann"), [many.as_str()].into_iter()).unwrap_err().status, 400);
}

#[test]
fn every_request_needs_its_action() {
    let sha = format!("sha256:{}", "0".repeat(64));
    let id = "01234567-89ab-4def-8123-456789abcdef";
    for (method, path, action) in [
        ("GET", "/v2/".to_owned(), None),
        ("HEAD", format!("/v2/a/blobs/{sha}"), Some(Action::Pull)),
        ("GET", "/v2/a/tags/list".to_owned(), Some(Action::Pull)),
        ("GET", format!("/v2/a/blobs/uploads/{id}"), Some(Action::Push)),
        ("DELETE", format!("/v2/a/blobs/uploads/{id}"), Some(Action::Push)),
        ("POST", "/v2/a/blobs/uploads/".to_owned(), Some(Action::Push)),
        ("PUT", "/v2/a/manifests/v1".to_owned(), Some(Action::Push)),
        ("DELETE", "/v2/a/manifests/v1".to_owned(), Some(Action::Delete)),
        ("DELETE", format!("/v2/a/blobs/{sha}"), Some(Action::Delete)),
    ] {
        assert_eq!(needed(method, &Route::parse(&path).unwrap().unwrap()), action, "{method} {path}");
    }
}

#[test]
fn a_challenge_names_where_tokens_are_and_what_is_needed() {
    let repository = name("a/b");
    let plain = "Bearer realm=\"http://h/token\",service=\"h\"";
    assert_eq!(bearer_challenge("http://h/token", "h", None, None), plain);
    let invalid = bearer_challenge("http://h/token", "h", None, Some(TokenFault::Invalid));
    assert_eq!(invalid, format!("{plain},error=\"invalid_token\""));
    assert_eq!(
        bearer_challenge("http://h/token", "h", Some((Action::Push, &repository)), Some(TokenFault::Insufficient)),
        "Bearer realm=\"http://h/token\",service=\"h\",scope=\"repository:a/b:pull,push\",error=\"insufficient_scope\""
    );
}

#[test]
fn passwords_are_kept_by_bcrypt_only() {
    let file = "# users\n\nann:$2y$05$abc\nbob:$2b$05$def\n";
    let passwords = Passwords::parse(file).unwrap();
    assert_eq!((passwords.sum_of("bob"), passwords.sum_of("eve")), (Some("$2b$05$def"), None));
    let decoys = [0, 1, 2, u64::MAX].map(|number| passwords.decoy(number));
    assert_eq!(decoys, ["$2y$05$abc", "$2b$05$def", "$2y$05$abc", "$2b$05$def"].map(Some));
    assert_eq!(Passwords::default().decoy(0), None);
    assert_eq!(Passwords::parse("ann:plain"), Err(PasswordsError::NotBcrypt { name: "ann".into() }));
    assert_eq!(Passwords::parse("ok:$2y$05$a\nann"), Err(PasswordsError::Line { line: 2 }));
    assert_eq!(Passwords::parse(":$2y$05$a"), Err(PasswordsError::Line { line: 1 }));
}
