//! Logins: basic and tokens, by a policy.

use super::site::{Answer, Site, now, options, refused, sha256};
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use perennial_core::registry::access::{Passwords, Policy};
use perennial_registry::serve::log::Log;
use perennial_registry::serve::{Accounts, Options, Scheme};
use serde_json::Value;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

const POLICY: &str = r#"{"rules": [
    {"user": "anonymous", "repositories": "public/*", "actions": ["pull"]},
    {"user": "ann", "repositories": "public/*", "actions": ["pull", "push"]},
    {"user": "ann", "repositories": "ann/*", "actions": ["pull", "push", "delete"]}]}"#;

fn site(storage: &std::path::Path, scheme: Scheme) -> Site {
    Site::start(with_accounts(storage, scheme))
}

fn with_accounts(storage: &std::path::Path, scheme: Scheme) -> Options {
    let sums = ["ann", "bob"].map(|name| format!("{name}:{}", bcrypt::hash(format!("{name}'s"), 4).unwrap()));
    let passwords = Passwords::parse(&sums.join("\n")).unwrap();
    let policy: Policy = serde_json::from_str(POLICY).unwrap();
    Options { accounts: Some(Accounts { scheme, passwords, policy }), ..options(storage) }
}

fn basic(name: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{name}:{name}'s")))
}

fn with(site: &Site, authorization: &str, method: &str, path: &str, body: &[u8]) -> Answer {
    site.ask(method, path, &[("Authorization", authorization)], body)
}

fn put(site: &Site, authorization: &str, name: &str) -> Answer {
    with(site, authorization, "POST", &format!("/v2/{name}/blobs/uploads/?digest={}", sha256(b"x")), b"x")
}

#[test]
fn with_passwords_everybody_may_do_what_the_policy_says() {
    let storage = tempfile::tempdir().unwrap();
    let site = site(storage.path(), Scheme::Basic);
    let large = site.ask("POST", "/v2/ann/a/blobs/uploads/", &[], &vec![0; 20_000_000]);
    refused(&large, 401, "UNAUTHORIZED");
    let ping = site.get("/v2/");
    refused(&ping, 401, "UNAUTHORIZED");
    assert_eq!(ping.header("www-authenticate"), Some("Basic realm=\"perennial\""));
    assert_eq!(with(&site, &basic("ann"), "GET", "/v2/", b"").status, 200);
    let wrong = format!("Basic {}", BASE64_STANDARD.encode("ann:bob's"));
    let nobody = format!("Basic {}", BASE64_STANDARD.encode("eve:x"));
    for bad in [wrong.as_str(), nobody.as_str(), "Basic ???", "Basic", "Digest x", "Bearer x.y.z"] {
        refused(&with(&site, bad, "GET", "/v2/", b""), 401, "UNAUTHORIZED");
    }
    refused(&put(&site, &basic("bob"), "public/a"), 403, "DENIED");
    refused(&put(&site, &basic("ann"), "other"), 403, "DENIED");
    assert_eq!(put(&site, &basic("ann"), "public/a").status, 201);
    let path = format!("/v2/public/a/blobs/{}", sha256(b"x"));
    assert_eq!(site.get(&path).body, b"x", "everybody may read what is public");
    refused(&site.ask("DELETE", &path, &[], b""), 401, "UNAUTHORIZED");
    refused(&with(&site, &basic("ann"), "DELETE", &path, b""), 403, "DENIED");
    assert_eq!(put(&site, &basic("ann"), "ann/a").status, 201);
    let own = path.replace("public", "ann");
    refused(&site.get(&own), 401, "UNAUTHORIZED");
    refused(&with(&site, &basic("bob"), "GET", &own, b""), 403, "DENIED");
    assert_eq!(with(&site, &basic("ann"), "DELETE", &own, b"").status, 202);
}

fn token(site: &Site, authorization: Option<&str>, scope: &str) -> Answer {
    let headers: Vec<(&str, &str)> = authorization.iter().map(|value| ("Authorization", *value)).collect();
    site.ask("GET", &format!("/token?service={}&scope={scope}", site.address), &headers, b"")
}

fn bearer(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["token"], answer.json()["access_token"]);
    format!("Bearer {}", answer.json()["token"].as_str().unwrap())
}

#[test]
fn a_token_is_asked_for_where_the_challenge_says_and_lets_in_for_what_it_names() {
    let storage = tempfile::tempdir().unwrap();
    let site = site(storage.path(), Scheme::Token);
    let host = site.address;
    let challenge = site.get("/v2/").header("www-authenticate").unwrap().to_owned();
    assert_eq!(challenge, format!("Bearer realm=\"http://{host}/token\",service=\"{host}\""));
    let challenge = put(&site, "", "ann/a").header("www-authenticate").unwrap().to_owned();
    assert!(challenge.ends_with(",scope=\"repository:ann/a:pull,push\""), "{challenge}");
    let pushing = bearer(&token(&site, Some(&basic("ann")), "repository:ann/a:pull,push"));
    assert_eq!(with(&site, &pushing, "GET", "/v2/", b"").status, 200);
    assert_eq!(put(&site, &pushing, "ann/a").status, 201);
    let path = format!("/v2/ann/a/blobs/{}", sha256(b"x"));
    assert_eq!(with(&site, &pushing, "GET", &path, b"").body, b"x");
    let refusal = with(&site, &pushing, "DELETE", &path, b"");
    refused(&refusal, 401, "UNAUTHORIZED");
    assert!(refusal.header("www-authenticate").unwrap().ends_with("error=\"insufficient_scope\""));
    refused(&put(&site, &pushing, "ann/b"), 401, "UNAUTHORIZED");
    let bobs = bearer(&token(&site, Some(&basic("bob")), "repository:ann/a:pull,push"));
    refused(&with(&site, &bobs, "GET", &path, b""), 401, "UNAUTHORIZED");
    // A mount needs the right to read where it comes from.
    let mount = |authorization: &str, from: &str| {
        let path = format!("/v2/public/a/blobs/uploads/?mount={}{from}", sha256(b"x"));
        with(&site, authorization, "POST", &path, b"").status
    };
    let to = bearer(&token(&site, Some(&basic("ann")), "repository:public/a:pull,push"));
    let both = "repository:public/a:pull,push&scope=repository:ann/a:pull";
    let both = bearer(&token(&site, Some(&basic("ann")), both));
    assert_eq!([mount(&to, "&from=ann/a"), mount(&to, ""), mount(&both, "&from=ann/a")], [202, 202, 201]);
    let anonymous = bearer(&token(&site, None, "repository:public/a:pull,push"));
    let public = path.replace("/ann/", "/public/");
    assert_eq!(with(&site, &anonymous, "GET", &public, b"").body, b"x");
    refused(&put(&site, &anonymous, "public/a"), 401, "UNAUTHORIZED");
}

#[test]
fn a_token_that_was_changed_made_up_or_is_another_registrys_lets_nobody_in() {
    let storage = tempfile::tempdir().unwrap();
    let first = site(storage.path(), Scheme::Token);
    let token = bearer(&token(&first, Some(&basic("ann")), "repository:ann/a:pull"));
    let parts: Vec<&str> = token.split('.').collect();
    let mut claims: Value = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap();
    claims["access"][0]["actions"] = serde_json::json!(["pull", "push", "delete"]);
    let forged = BASE64_URL_SAFE_NO_PAD.encode(claims.to_string());
    let none = BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"JWT"}"#);
    for bad in [
        format!("{}.{forged}.{}", parts[0], parts[2]),
        format!("Bearer {none}.{forged}."),
        format!("Bearer {none}.{forged}.{}", parts[2]),
        "Bearer ".to_owned(),
        "Bearer a.b.c".to_owned(),
        format!("{token}x"),
    ] {
        let refusal = with(&first, &bad, "GET", "/v2/", b"");
        refused(&refusal, 401, "UNAUTHORIZED");
        // So that the client asks for a new one, and not for more rights.
        assert!(refusal.header("www-authenticate").unwrap().ends_with(",error=\"invalid_token\""), "{refusal:?}");
    }
    assert_eq!(with(&first, &token, "GET", "/v2/", b"").status, 200);
    let other = tempfile::tempdir().unwrap();
    let second = site(other.path(), Scheme::Token);
    refused(&with(&second, &token, "GET", "/v2/", b""), 401, "UNAUTHORIZED");
}

#[test]
fn behind_a_proxy_that_passes_on_several_names_one_address_is_told_and_meant() {
    let storage = tempfile::tempdir().unwrap();
    for (public_url, service) in [
        ("https://registry.example", "registry.example"),
        ("https://registry.example:8443/hub/", "registry.example:8443"),
    ] {
        let options = Options { public_url: Some(public_url.into()), ..with_accounts(storage.path(), Scheme::Token) };
        let site = Site::start(options);
        let ask = |host: &str, path: &str, authorization: &str| {
            let mut stream = std::net::TcpStream::connect(site.address).unwrap();
            let head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: {authorization}\r\n");
            stream.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes()).unwrap();
            Answer::read(stream, "GET").unwrap()
        };
        let realm = format!("{}/token", public_url.trim_end_matches('/'));
        let challenge = ask("inner:5000", "/v2/", "").header("www-authenticate").unwrap().to_owned();
        assert_eq!(challenge, format!("Bearer realm=\"{realm}\",service=\"{service}\""));
        let token = bearer(&ask("registry.example", "/token?scope=repository:ann/a:pull", &basic("ann")));
        assert_eq!(ask("inner:5000", "/v2/", &token).status, 200);
        assert_eq!(ask("other", "/v2/", &token).status, 200);
    }
}

#[test]
fn the_log_says_who_asked_and_from_where() {
    let storage = tempfile::tempdir().unwrap();
    let (sender, lines) = std::sync::mpsc::channel();
    let log = Log::new(move |line| {
        let field =
            |name: &str| line.fields.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string());
        let fields = ["status", "from", "user"].map(field);
        if line.event == "request" {
            sender.send(fields.map(Option::unwrap_or_default).join(" ")).unwrap();
        }
    });
    let site = Site::start(Options { log, ..with_accounts(storage.path(), Scheme::Token) });
    site.get("/v2/");
    let token = bearer(&token(&site, Some(&basic("ann")), "repository:ann/a:pull"));
    with(&site, &token, "GET", "/v2/", b"");
    with(&site, &token, "GET", "/v2/ann/b/tags/list", b"");
    with(&site, &basic("bob"), "GET", "/v2/ann/a/tags/list", b"");
    with(&site, &basic("eve"), "GET", "/v2/", b"");
    drop(site);
    let address = "\"127.0.0.1\"";
    let expected = ["401", "200 ann", "200 ann", "401 ann", "403 bob", "401"].map(|text| {
        let (status, user) = text.split_once(' ').map_or((text, String::new()), |(a, b)| (a, format!("\"{b}\"")));
        format!("{status} {address} {user}")
    });
    assert_eq!(lines.iter().collect::<Vec<_>>(), expected);
}

#[test]
fn a_wrong_password_gets_no_token_and_after_too_many_none_is_looked_at() {
    let storage = tempfile::tempdir().unwrap();
    let site = site(storage.path(), Scheme::Token);
    let login = |text: String| format!("Basic {}", BASE64_STANDARD.encode(text));
    let ask = |login: &str| token(&site, Some(login), "repository:ann/a:pull");
    let refusal = ask(&login("ann:0".into()));
    refused(&refusal, 401, "UNAUTHORIZED");
    assert_eq!(refusal.header("www-authenticate"), Some("Basic realm=\"perennial\""));
    for name in ["ann", "eve"] {
        let statuses: Vec<u16> = std::thread::scope(|scope| {
            let ask = |number| ask(&login(format!("{name}:{number}"))).status;
            let threads: Vec<_> = (1..40).map(|number| scope.spawn(move || ask(number))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let looked_at = statuses.iter().filter(|status| **status == 401).count();
        // As many as were under way at once may come to it.
        assert!((9..=13).contains(&looked_at), "{statuses:?}");
        assert_eq!(statuses.iter().filter(|status| **status == 429).count(), 39 - looked_at, "{statuses:?}");
    }
    refused(&ask(&basic("ann")), 429, "TOOMANYREQUESTS");
    assert_eq!(ask(&basic("bob")).status, 200, "another is let in");
    assert_eq!(site.ask("POST", "/token", &[], b"").status, 405);
}

#[test]
fn whoever_logs_in_rightly_is_let_in_while_others_try_names() {
    let storage = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..20).map(|number| format!("user{number}")).collect();
    let sums = names.iter().map(|name| format!("{name}:{}", bcrypt::hash(format!("{name}'s"), 4).unwrap()));
    let passwords = Passwords::parse(&sums.collect::<Vec<_>>().join("\n")).unwrap();
    let accounts = Some(Accounts { scheme: Scheme::Basic, passwords, policy: Policy::default() });
    let site = Site::start(Options { accounts, ..options(storage.path()) });
    let is_over = AtomicBool::new(false);
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        for thread in 0..16 {
            let (site, is_over) = (&site, &is_over);
            scope.spawn(move || {
                for number in 0.. {
                    if is_over.load(Ordering::Relaxed) {
                        return;
                    }
                    assert_eq!(with(site, &basic(&format!("{thread}.{number}")), "GET", "/v2/", b"").status, 401);
                }
            });
        }
        let statuses = names.iter().map(|name| with(&site, &basic(name), "GET", "/v2/", b"").status).collect();
        is_over.store(true, Ordering::Relaxed);
        statuses
    });
    assert_eq!(statuses, vec![200; 20]);
}

#[test]
fn a_name_that_nobody_has_is_refused_as_slowly_as_one_that_somebody_has() {
    let storage = tempfile::tempdir().unwrap();
    let site = site(storage.path(), Scheme::Basic);
    let took = |login: String| {
        let before = now().unix_nanos();
        let login = format!("Basic {}", BASE64_STANDARD.encode(login));
        assert_eq!(with(&site, &login, "GET", "/v2/", b"").status, 401);
        now().unix_nanos() - before
    };
    let least = |login: &dyn Fn(usize) -> String| (0..9).map(|number| took(login(number))).min().unwrap();
    let somebody = least(&|number| format!("ann:{number}"));
    let nobody = least(&|number| format!("eve{number}:x"));
    // The sums have a cost of 4; each more would double the time.
    assert!(nobody < 3 * somebody && somebody < 3 * nobody, "{nobody} {somebody}");
}
