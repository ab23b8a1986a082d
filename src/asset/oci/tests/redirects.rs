//! Whom a registry's login reaches: the registry, the token server that it names, and nobody to whom a redirect leads.

use super::super::login::Logins;
use super::super::pull::ask_with;
use super::fake::{Fake, Reply, Request};
use super::local::Layout;
use super::{fetch_as, hasty, pin_as};
use crate::asset::Silent;
use crate::asset::oci::image::digest_of;
use crate::error::Error;
use crate::store::testing::scratch;
use crate::testing::tls;
use fs_err as fs;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};

const LAYER: &[u8] = b"a layer";
/// alice:s3cret-p4ss
const BASIC: &str = "YWxpY2U6czNjcmV0LXA0c3M=";

fn image() -> (Layout, Value) {
    let mut layout = Layout::default();
    let image = layout.image("amd64", json!({}), &[LAYER]);
    (layout, image)
}

fn logins(registry: &str, login: Value) -> Logins {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.keep().join("config.json");
    fs::write(&file, json!({ "auths": { registry: login } }).to_string()).unwrap();
    Logins::of_files(vec![file])
}

/// Resolves and fetches as alice.
fn pull(fake: &Fake) -> Result<Vec<u8>, Error> {
    pull_as(fake, &logins(&fake.address, json!({ "auth": BASIC })))
}

fn pull_as(fake: &Fake, logins: &Logins) -> Result<Vec<u8>, Error> {
    let s = scratch();
    let pin = pin_as(&scratch().store, &fake.reference(), logins, &[LAYER])?;
    let layers = fetch_as(&s.store, &fake.reference(), &pin, logins, &Silent)?;
    s.store.read(&layers[0])
}

fn credentials(request: &Request) -> Option<&str> {
    request.headers.get("authorization").map(String::as_str)
}

/// A registry that alice may read, which redirects what `moved` says: to `to` and the path and query that it was asked
/// for.
fn redirecting(moved: impl Fn(&str) -> bool + Send + Sync + 'static, to: String, status: u16) -> Fake {
    let (layout, image) = image();
    Fake::registry(&layout, &image, move |request, reply| {
        if credentials(request) != Some(&format!("Basic {BASIC}")) {
            return Reply::new(401, "").header("WWW-Authenticate", "Basic realm=\"here\"");
        }
        match moved(&request.path) {
            true => Reply::new(status, "").header("Location", format!("{to}{}", request.path)),
            false => reply,
        }
    })
}

/// Serves the image to anybody.
fn storage() -> Fake {
    let (layout, image) = image();
    Fake::registry(&layout, &image, |_, reply| reply)
}

#[test]
fn a_redirect_to_another_port_or_host_takes_no_login_along() {
    for (part, status) in [("/manifests/1", 307), ("/manifests/sha256", 302), ("/blobs/", 308), ("/v2/", 303)]
    {
        let storage = storage();
        let port = storage.address.rsplit(':').next().unwrap();
        for to in [
            format!("http://{}", storage.address),
            format!("//{}", storage.address),
            format!("http://localhost:{port}"),
            format!("http://bob:other@{}", storage.address),
            format!("http://alice:s3cret-p4ss@{}", storage.address),
        ] {
            let fake = redirecting(move |path| path.contains(part), to.clone(), status);
            assert_eq!(pull(&fake).unwrap(), LAYER, "{part} to {to}");
        }
        assert!(storage.asked().len() >= 5, "{part}");
        assert_eq!(storage.asked().iter().find_map(credentials), None, "{part}");
    }
}

#[test]
fn whoever_a_redirect_leads_to_is_not_answered() {
    let realm = Arc::new(Mutex::new(String::new()));
    let tokens = Fake::new(|_| Reply::new(200, r#"{"token":"t0ken"}"#));
    *realm.lock().unwrap() = format!("http://{}/token", tokens.address);
    for (part, challenge) in [
        ("/manifests/", "Basic realm=\"there\"".to_owned()),
        ("/blobs/", "Basic realm=\"there\"".to_owned()),
        ("/manifests/", format!("Bearer realm=\"{}\"", realm.lock().unwrap())),
        ("/blobs/", format!("Bearer realm=\"{}\",service=\"x\"", realm.lock().unwrap())),
    ] {
        let stranger = Fake::new(move |_| Reply::new(401, "").header("WWW-Authenticate", challenge.clone()));
        let fake = redirecting(move |path| path.contains(part), format!("http://{}", stranger.address), 307);
        let error = pull(&fake).unwrap_err();
        assert_eq!(error.code(), "oci.login-elsewhere", "{error}");
        assert!(error.to_string().contains("redirects to 127.0.0.1, which answers 401"), "{error}");
        assert!(!format!("{error:?}").contains("s3cret"));
        assert_eq!(stranger.asked().iter().find_map(credentials), None, "{part}");
        assert_eq!(stranger.asked().len(), 1, "{part}");
    }
    assert!(tokens.asked().is_empty(), "the token server of a stranger is not even asked");
}

#[test]
fn a_chain_that_comes_back_to_the_registry_comes_without_a_login() {
    let home = Arc::new(Mutex::new(String::new()));
    let back = Arc::clone(&home);
    let stranger = Fake::new(move |request| {
        let to = format!("http://{}{}?back", back.lock().unwrap(), request.path);
        Reply::new(307, "").header("Location", to)
    });
    let to = format!("http://{}", stranger.address);
    let fake = redirecting(|path| path.contains("/blobs/") && !path.ends_with("?back"), to, 307);
    *home.lock().unwrap() = fake.address.clone();
    let error = pull(&fake).unwrap_err();
    assert_eq!(error.code(), "oci.login-elsewhere", "{error}");
    let asked = fake.asked();
    let came_back: Vec<&Request> = asked.iter().filter(|request| request.path.ends_with("?back")).collect();
    assert_eq!(came_back.len(), 1);
    assert_eq!(credentials(came_back[0]), None);
}

#[test]
fn a_redirect_within_the_registry_keeps_the_login() {
    let fake =
        redirecting(|path| path.contains("/blobs/") && !path.starts_with("/moved"), "/moved".to_owned(), 307);
    assert_eq!(pull(&fake).unwrap(), LAYER);
    assert!(fake.asked().iter().any(|request| request.path.starts_with("/moved")));
    // A port is part of who it is; a name in another case is not.
    let upper = redirecting(|path| path.contains("/blobs/"), "http://LOCALHOST.invalid:1".to_owned(), 307);
    assert_eq!(pull(&upper).unwrap_err().code(), "oci.redirect");
}

/// A registry that wants the token of `realm`.
fn with_tokens(realm: String) -> Fake {
    let (layout, image) = image();
    Fake::registry(&layout, &image, move |request, reply| match credentials(request) {
        Some("Bearer t0ken") => reply,
        _ => Reply::new(401, "").header("WWW-Authenticate", format!("Bearer realm=\"{realm}\"")),
    })
}

fn token() -> Reply {
    Reply::new(200, r#"{"token":"t0ken"}"#)
}

#[test]
fn a_token_server_that_redirects_elsewhere_gets_no_login_there() {
    for (login, status) in [
        (json!({ "auth": BASIC }), 307),
        (json!({ "auth": BASIC }), 302),
        (json!({ "identitytoken": "1dent" }), 307),
        (json!({ "identitytoken": "1dent" }), 308),
    ] {
        let stranger = Fake::new(|_| token());
        let to = format!("http://{}/token", stranger.address);
        let server = Fake::new(move |_| Reply::new(status, "").header("Location", to.clone()));
        let fake = with_tokens(format!("http://{}/token", server.address));
        let error = pull_as(&fake, &logins(&fake.address, login.clone())).unwrap_err();
        assert_eq!(error.code(), "oci.redirect", "{error}");
        assert!(error.to_string().contains("the login is not meant for that"), "{error}");
        assert!(stranger.asked().is_empty(), "{login} {status}");
        // Who has no login has nothing to lose.
        if login.get("auth").is_some() {
            assert_eq!(pull_as(&fake, &Logins::default()).unwrap(), LAYER);
            assert_eq!(stranger.asked().iter().find_map(credentials), None);
        }
    }
}

#[test]
fn a_token_server_may_redirect_within_itself() {
    for login in [json!({ "auth": BASIC }), json!({ "identitytoken": "1dent" })] {
        let server = Fake::new(|request| match request.path.starts_with("/token") {
            true => Reply::new(307, "").header("Location", "/other?x=1"),
            false => token(),
        });
        let fake = with_tokens(format!("http://{}/token", server.address));
        assert_eq!(pull_as(&fake, &logins(&fake.address, login.clone())).unwrap(), LAYER);
        let moved: Vec<Request> =
            server.asked().into_iter().filter(|request| request.path.starts_with("/other")).collect();
        assert!(!moved.is_empty());
        match login.get("auth") {
            Some(_) => assert_eq!(credentials(&moved[0]), Some(format!("Basic {BASIC}").as_str())),
            None => assert!(moved[0].body.contains("refresh_token=1dent"), "{moved:?}"),
        }
    }
    // Turned into a GET, the request would say nothing any more.
    let server = Fake::new(|_| Reply::new(302, "").header("Location", "/other"));
    let fake = with_tokens(format!("http://{}/token", server.address));
    let error = pull_as(&fake, &logins(&fake.address, json!({ "identitytoken": "1dent" }))).unwrap_err();
    assert_eq!(error.code(), "oci.redirect", "{error}");
    let circle = Fake::new(|_| Reply::new(307, "").header("Location", "/token"));
    let fake = with_tokens(format!("http://{}/token", circle.address));
    assert_eq!(pull(&fake).unwrap_err().code(), "oci.redirect");
}

#[test]
fn a_user_in_a_token_servers_address_is_not_who_we_are() {
    let server = Fake::new(|_| token());
    let fake = with_tokens(format!("http://bob:other@{}/token", server.address));
    assert_eq!(pull_as(&fake, &Logins::default()).unwrap(), LAYER);
    assert_eq!(server.asked().iter().find_map(credentials), None);
    assert_eq!(pull(&fake).unwrap(), LAYER);
    let sent: Vec<String> = server.asked().iter().filter_map(|r| credentials(r).map(str::to_owned)).collect();
    assert!(!sent.is_empty() && sent.iter().all(|value| *value == format!("Basic {BASIC}")), "{sent:?}");
}

#[test]
fn from_https_nothing_leads_to_plain_http_not_even_on_this_machine() {
    const NAME: &str = "registry.example.org";
    use crate::testing::web::Reply as Answer;
    let plain = Fake::new(|_| token());
    let stranger = Fake::new(|_| Reply::new(401, "").header("WWW-Authenticate", "Basic realm=\"x\""));
    let (elsewhere, other) = tls::server("blobs.example.org", |_| {
        Answer::status(401).header("www-authenticate", "Basic realm=\"x\"")
    });
    for (answer, code) in [
        (Answer::redirect(format!("http://{}/x", stranger.address)), "oci.redirect"),
        (Answer::redirect("http://registry.example.org/x"), "oci.redirect"),
        (Answer::redirect("ftp://registry.example.org/x"), "oci.redirect"),
        (
            Answer::redirect(format!("https://blobs.example.org:{}/x", elsewhere.address().port())),
            "oci.login-elsewhere",
        ),
        (
            Answer::status(401)
                .header("www-authenticate", format!("Bearer realm=\"http://{}/token\"", plain.address)),
            "oci.insecure-login",
        ),
    ] {
        let (server, cert) = tls::server(NAME, move |_| answer.clone());
        let registry = format!("{NAME}:{}", server.address().port());
        let mut access = hasty(&logins(&registry, json!({ "auth": BASIC })));
        access.settings.roots = Some(vec![cert.der().to_vec(), other.der().to_vec()]);
        access.settings.hosts =
            vec![(NAME.to_owned(), server.address()), ("blobs.example.org".to_owned(), elsewhere.address())];
        let asked = ask_with(&scratch().store, &format!("{registry}/app:1"), &access, &Silent);
        let error = asked.map(|_| ()).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(server.seen().iter().all(|r| r.header("authorization").is_none()));
    }
    assert!(plain.asked().is_empty() && stranger.asked().is_empty());
    assert!(elsewhere.seen().iter().all(|request| request.header("authorization").is_none()));
}

#[test]
fn a_storage_that_refuses_is_named_and_not_the_login() {
    let storage = Fake::new(|_| Reply::new(403, "<Error>Expired</Error>"));
    let fake =
        redirecting(|path| path.contains(&digest_of(LAYER)), format!("http://{}", storage.address), 307);
    let error = pull(&fake).unwrap_err();
    assert_eq!(error.code(), "oci.login-elsewhere", "{error}");
    assert!(error.to_string().contains("answers 403"), "{error}");
}
